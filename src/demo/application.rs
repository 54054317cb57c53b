//! The application of the demo: it speaks plain HTTP to bearerd and knows nothing of tokens.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::server::locked;
use crate::net::body::Body;
use crate::net::client::HttpClient;
use crate::net::connect::{ConnectConfig, Connector};
use crate::net::tls::{HttpVersions, TlsError};

/// For one exchange. Longer than bearerd makes a request wait for a token.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer read; the metrics are the longest there is.
const MAX_ANSWER_BYTES: usize = 512 * 1024;
/// One request in so many is a POST.
const POST_EVERY: u64 = 10;

/// A small HTTP client.
#[derive(Clone)]
pub(super) struct Application {
    client: HttpClient,
}

/// A request as the application writes it.
#[derive(Clone, Debug)]
pub(super) struct OutgoingRequest {
    pub(super) method: Method,
    pub(super) target: &'static str,
    pub(super) header_lines: Vec<(&'static str, String)>,
    pub(super) body: &'static str,
}

/// An answer, whole.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// By which bearerd knows the request, here and at the API.
    pub(super) request_id: String,
    pub(super) location: Option<String>,
    pub(super) body: Bytes,
    pub(super) took: Duration,
}

impl OutgoingRequest {
    /// A GET of `target` at `host`.
    pub(super) fn get(host: SocketAddr, target: &'static str) -> Self {
        Self {
            method: Method::GET,
            target,
            header_lines: vec![
                ("host", host.to_string()),
                ("accept", "application/json".to_owned()),
            ],
            body: "",
        }
    }

    /// A POST of `body`, which is JSON.
    pub(super) fn post(host: SocketAddr, target: &'static str, body: &'static str) -> Self {
        let mut request = Self::get(host, target);
        request.method = Method::POST;
        request.body = body;
        request
            .with("content-type", "application/json")
            .with("content-length", &body.len().to_string())
    }

    /// With one more header line.
    pub(super) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.header_lines.push((name, value.to_owned()));
        self
    }

    fn request(&self, address: SocketAddr) -> Result<Request<Body>, String> {
        let mut request = Request::new(Body::full(self.body));
        if self.body.is_empty() {
            *request.body_mut() = Body::empty();
        }
        *request.method_mut() = self.method.clone();
        let uri = format!("http://{address}{}", self.target);
        *request.uri_mut() = uri.parse::<Uri>().map_err(|error| error.to_string())?;
        for (name, value) in &self.header_lines {
            let value = HeaderValue::from_str(value).map_err(|error| error.to_string())?;
            request
                .headers_mut()
                .append(HeaderName::from_static(name), value);
        }
        Ok(request)
    }
}

impl Application {
    /// Its connections run on the runtime that sends the first request.
    pub(super) fn new() -> Result<Self, TlsError> {
        let config = ConnectConfig::new(TIMEOUT, HttpVersions::Http1);
        let connector = Connector::new(&config, None)?;
        Ok(Self {
            client: HttpClient::new(connector),
        })
    }

    /// Sends `request` to `address` and reads the whole answer.
    pub(super) async fn send(
        &self,
        address: SocketAddr,
        request: &OutgoingRequest,
    ) -> Result<Answer, String> {
        let request = request.request(address)?;
        match timeout(TIMEOUT, self.exchange(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
        }
    }

    async fn exchange(&self, request: Request<Body>) -> Result<Answer, String> {
        let started = Instant::now();
        let response = self
            .client
            .send(request)
            .await
            .map_err(|error| error.to_string())?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
        let field = |name: HeaderName| {
            let value = head.headers.get(name)?.to_str().ok()?;
            Some(value.to_owned())
        };
        Ok(Answer {
            status: head.status,
            request_id: field(HeaderName::from_static("x-request-id")).unwrap_or_default(),
            location: field(header::LOCATION),
            body: body.map_err(|error| error.to_string())?.to_bytes(),
            took: started.elapsed(),
        })
    }
}

/// What became of the requests so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub(super) requests: u64,
    /// Without a 2xx.
    pub(super) failed: u64,
    pub(super) slowest: Duration,
    pub(super) last_failure: Option<String>,
}

#[derive(Default)]
struct Counters {
    requests: AtomicU64,
    failed: AtomicU64,
    slowest_micros: AtomicU64,
    last_failure: Mutex<Option<String>>,
}

/// The application at work: one request after the other, at a steady pace.
pub(super) struct Traffic {
    counters: Arc<Counters>,
    /// From the start of one request to that of the next; none ends it.
    pace: watch::Sender<Option<Duration>>,
    task: JoinHandle<()>,
}

impl Traffic {
    /// Starts on the present runtime.
    pub(super) fn start(application: Application, address: SocketAddr, pause: Duration) -> Self {
        let counters = Arc::new(Counters::default());
        let (pace, receiver) = watch::channel(Some(pause));
        let task = tokio::spawn(work(application, address, counters.clone(), receiver));
        Self {
            counters,
            pace,
            task,
        }
    }

    pub(super) fn set_pause(&self, pause: Duration) {
        self.pace.send_replace(Some(pause));
    }

    pub(super) fn counts(&self) -> Counts {
        let counters = &self.counters;
        Counts {
            requests: counters.requests.load(Ordering::Relaxed),
            failed: counters.failed.load(Ordering::Relaxed),
            slowest: Duration::from_micros(counters.slowest_micros.load(Ordering::Relaxed)),
            last_failure: locked(&counters.last_failure).clone(),
        }
    }

    /// Ends after the request in flight.
    pub(super) async fn stop(&mut self) -> Counts {
        self.pace.send_replace(None);
        let _ = timeout(TIMEOUT + TIMEOUT, &mut self.task).await;
        self.counts()
    }
}

async fn work(
    application: Application,
    address: SocketAddr,
    counters: Arc<Counters>,
    mut pace: watch::Receiver<Option<Duration>>,
) {
    let get = OutgoingRequest::get(address, "/payments/");
    let post = OutgoingRequest::post(
        address,
        "/payments/",
        r#"{"amount": 100, "currency": "EUR"}"#,
    );
    for number in 1.. {
        let Some(pause) = *pace.borrow_and_update() else {
            return;
        };
        let started = Instant::now();
        let request = if number % POST_EVERY == 0 {
            &post
        } else {
            &get
        };
        counters.note(application.send(address, request).await);
        // Ends early when the pace changes.
        let _ = timeout_at(started + pause, pace.changed()).await;
    }
}

impl Counters {
    fn note(&self, answer: Result<Answer, String>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let failure = match answer {
            Ok(answer) => {
                let micros = u64::try_from(answer.took.as_micros()).unwrap_or(u64::MAX);
                self.slowest_micros.fetch_max(micros, Ordering::Relaxed);
                (!answer.status.is_success()).then(|| format!("status {}", answer.status))
            }
            Err(error) => Some(error),
        };
        if failure.is_some() {
            self.failed.fetch_add(1, Ordering::Relaxed);
            *locked(&self.last_failure) = failure;
        }
    }
}
