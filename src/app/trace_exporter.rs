//! Sends spans to a collector (OTLP 1.x, `POST /v1/traces`, JSON), in batches, on the control thread. Best effort: spans
//! that a collector does not take are dropped and counted, and no request waits for it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Uri};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::{App, Outcome, RunError, Stop};
use crate::config::Otel;
use crate::net::body::Body;
use crate::net::client::HttpClient;
use crate::net::connect::{ConnectConfig, Connector};
use crate::net::tls::HttpVersions;
use crate::trace::{Queue, Tracer};

const BATCH_SPANS: usize = 512;
const BATCH_INTERVAL: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the end of the process may be held up by spans.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

impl App {
    /// Spans go where these variables say.
    pub fn tracing(mut self, otel: Otel) -> Self {
        self.otel = otel;
        self
    }

    /// Serves until `stops` yields, then drains, and at last sends the spans that are left. To be run on the control
    /// thread.
    ///
    /// # Errors
    /// When a part cannot be built, or a worker ends by itself.
    pub async fn run(self, stops: mpsc::Receiver<Stop>) -> Result<Outcome, RunError> {
        let (tracer, exporter) = TraceExporter::start(&self.otel);
        let result = self.serve(stops, tracer).await;
        if let Some(exporter) = exporter {
            exporter.flush().await;
        }
        result
    }
}

/// The task that sends, and how to end it.
struct TraceExporter {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl TraceExporter {
    /// Sends as `otel` says, from now on. Without a collector, or one that cannot be used, no spans are made.
    fn start(otel: &Otel) -> (Tracer, Option<Self>) {
        let Some(url) = otel.traces_url() else {
            return (Tracer::default(), None);
        };
        let Some(collector) = Collector::new(&url, otel) else {
            // The URL may hold a secret.
            warn!(
                hint = "the endpoint is an http or https URL, the headers are name=value,…",
                "no traces: the variables OTEL_EXPORTER_OTLP_… cannot be used"
            );
            return (Tracer::default(), None);
        };
        let (tracer, queue) = Tracer::queued();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(collector.send_all(queue, stopped));
        (tracer, Some(Self { stop, task }))
    }

    /// Sends what there is, within [`FLUSH_TIMEOUT`].
    async fn flush(self) {
        let _ = self.stop.send(());
        let abort = self.task.abort_handle();
        if timeout(FLUSH_TIMEOUT, self.task).await.is_err() {
            abort.abort();
            warn!("the last spans were not sent: the collector took too long");
        }
    }
}

struct Collector {
    client: HttpClient,
    url: Uri,
    headers: HeaderMap,
    resource: Value,
    lost: u64,
    is_failing: bool,
}

impl Collector {
    fn new(url: &str, otel: &Otel) -> Option<Self> {
        let url: Uri = url.parse().ok()?;
        let has_userinfo = url.authority()?.as_str().contains('@');
        if has_userinfo || !matches!(url.scheme_str(), Some("http" | "https")) {
            return None;
        }
        let connect = ConnectConfig::new(CONNECT_TIMEOUT, HttpVersions::Http1);
        let mut headers = match otel.headers() {
            Some(headers) => fields(headers.expose())?,
            None => HeaderMap::new(),
        };
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
        Some(Self {
            client: HttpClient::new(Connector::new(&connect, None).ok()?),
            url,
            headers,
            resource: json!({"attributes": [
                {"key": "service.name", "value": {"stringValue": otel.service_name()}},
                {"key": "service.version", "value": {"stringValue": env!("CARGO_PKG_VERSION")}},
            ]}),
            lost: 0,
            is_failing: false,
        })
    }

    async fn send_all(mut self, mut queue: Queue, mut stopped: oneshot::Receiver<()>) {
        let mut is_last = false;
        while !is_last {
            let mut batch = Vec::new();
            let interval = sleep(BATCH_INTERVAL);
            tokio::pin!(interval);
            while batch.len() < BATCH_SPANS {
                let room = BATCH_SPANS - batch.len();
                tokio::select! {
                    biased;
                    count = queue.spans.recv_many(&mut batch, room) => is_last = count == 0,
                    // What is in the queue still comes.
                    _ = &mut stopped, if !queue.spans.is_closed() => queue.spans.close(),
                    () = &mut interval => break,
                }
                if is_last {
                    break;
                }
            }
            if !batch.is_empty() {
                self.send(batch).await;
            }
            self.tell_dropped(&queue);
        }
    }

    async fn send(&mut self, spans: Vec<Value>) {
        let count = spans.len();
        let document = json!({"resourceSpans": [{
            "resource": self.resource,
            "scopeSpans": [{"scope": {"name": "bearerd"}, "spans": spans}],
        }]});
        let mut request = Request::new(Body::full(document.to_string()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        *request.headers_mut() = self.headers.clone();
        let reason = match timeout(REQUEST_TIMEOUT, self.client.send(request)).await {
            Ok(Ok(response)) if response.status().is_success() => None,
            Ok(Ok(response)) => Some(format!("status {}", response.status().as_u16())),
            Ok(Err(error)) => Some(error.fault.as_str().to_owned()),
            Err(_) => Some("no answer in time".to_owned()),
        };
        if let Some(reason) = &reason {
            self.lost += count as u64;
            if !self.is_failing {
                warn!(reason, spans = count, "the collector does not take spans");
            }
        }
        self.is_failing = reason.is_some();
    }

    /// Once in a batch, and only when some were lost since.
    fn tell_dropped(&mut self, queue: &Queue) {
        let lost = std::mem::take(&mut self.lost) + queue.dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            warn!(spans = lost, "spans were dropped");
        }
    }
}

/// The fields of `name=value,…`; values are percent-encoded.
fn fields(text: &str) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
        let (name, value) = pair.split_once('=')?;
        let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
        let mut value = HeaderValue::from_bytes(&decoded(value.trim())?).ok()?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Some(headers)
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(if byte == b'%' {
            let (high, low) = (bytes.next()?, bytes.next()?);
            let digit = |digit: u8| char::from(digit).to_digit(16);
            u8::try_from(digit(high)? * 16 + digit(low)?).ok()?
        } else {
            byte
        });
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_decoded_and_not_shown() {
        let fields = fields("Authorization=Basic%20c2VjcmV0,x-a = 1,").unwrap();
        assert_eq!(fields["authorization"], "Basic c2VjcmV0");
        assert_eq!(fields["x-a"], "1");
        assert!(!format!("{fields:?}").contains("c2Vj"));
        for bad in ["a", "=1", "a=%4", "a=%zz"] {
            assert!(super::fields(bad).is_none(), "{bad}");
        }
    }
}
