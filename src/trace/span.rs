//! Spans as they are made, up to the queue in which they wait for the exporter.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use http::uri::Authority;
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::context::{Context, TRACEPARENT, TRACESTATE};

/// Spans that may wait; later ones are dropped and counted.
pub const QUEUED_SPANS: usize = 2048;

/// Makes spans where a collector is configured. Clones share the queue.
#[derive(Clone, Default)]
pub struct Tracer(Option<Sink>);

#[derive(Clone)]
struct Sink {
    spans: mpsc::Sender<Value>,
    dropped: Arc<AtomicU64>,
}

/// The exporter's end: spans that have ended, as OTLP/JSON.
pub struct Queue {
    pub spans: mpsc::Receiver<Value>,
    /// How many found no room.
    pub dropped: Arc<AtomicU64>,
}

/// Something that is done. It ends when it is dropped.
pub struct Span(Option<Box<Recording>>);

struct Recording {
    sink: Sink,
    context: Context,
    parent: Option<u64>,
    kind: Kind,
    name: String,
    attributes: Vec<Value>,
    began: SystemTime,
    clock: Instant,
    failed: bool,
    has_ended: bool,
}

/// The numbers are those of `SpanKind` in OTLP.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Server = 2,
    Client = 3,
}

impl Tracer {
    /// One that keeps its spans in a queue for an exporter.
    pub fn queued() -> (Self, Queue) {
        let (sender, spans) = mpsc::channel(QUEUED_SPANS);
        let dropped = Arc::new(AtomicU64::new(0));
        let sink = Sink {
            spans: sender,
            dropped: dropped.clone(),
        };
        (Self(Some(sink)), Queue { spans, dropped })
    }

    /// For a request of the application. None is made in a trace that the application does not keep.
    pub fn server(&self, method: &Method, headers: &HeaderMap) -> Span {
        let Some(sink) = &self.0 else {
            return Span(None);
        };
        let parent = Context::of(headers);
        if parent.is_some_and(|parent| !parent.is_sampled()) {
            return Span(None);
        }
        let method = known(method);
        let mut recording = Recording::new(sink.clone(), parent, Kind::Server, method.to_owned());
        recording.attribute("http.request.method", method);
        Span(Some(recording))
    }

    /// For a request to the token endpoint, by the name of the token and why it is asked for.
    pub fn token_request(&self, token: &str, trigger: &'static str) -> Span {
        Span(self.0.as_ref().map(|sink| {
            let name = "token request".to_owned();
            let mut recording = Recording::new(sink.clone(), None, Kind::Client, name);
            recording.attribute("bearerd.token", token);
            recording.attribute("bearerd.trigger", trigger);
            recording
        }))
    }
}

impl Span {
    /// For one attempt to send a request to the upstream of this host, whose `headers` name the new span.
    pub fn client(&self, method: &Method, server: &Authority, headers: &mut HeaderMap) -> Self {
        let Some(own) = &self.0 else {
            return Self(None);
        };
        let (parent, method) = (Some(own.context), known(method));
        let sink = own.sink.clone();
        let mut recording = Recording::new(sink, parent, Kind::Client, method.to_owned());
        recording.attribute("http.request.method", method);
        recording.attribute("server.address", server.host());
        if own.parent.is_none() {
            // It belongs to a parent that was not valid (W3C Trace Context §3.3).
            headers.remove(TRACESTATE);
        }
        if let Some(value) = recording.context.header() {
            headers.insert(TRACEPARENT, value);
        }
        Self(Some(recording))
    }

    /// The route that was chosen.
    pub fn route(&mut self, name: &str) {
        if let Some(recording) = &mut self.0 {
            recording.attribute("bearerd.route", name);
        }
    }

    /// The answer; `error` is the code of one of our own.
    pub fn answered(&mut self, status: StatusCode, error: Option<&'static str>) {
        let Some(recording) = &mut self.0 else { return };
        recording.has_ended = true;
        recording
            .attributes
            .push(json!({"key": "http.response.status_code", "value": {"intValue": status.as_u16().to_string()}}));
        // A 4xx is the client's fault, and so no error of a server span.
        recording.failed =
            status.is_server_error() || recording.kind == Kind::Client && status.is_client_error();
        if let Some(error) = error {
            recording.attribute("error.type", error);
        } else if recording.failed {
            recording.attribute("error.type", status.as_str());
        }
    }

    /// How it ended without a status of its own.
    pub fn outcome(&mut self, outcome: &'static str, failed: bool) {
        let Some(recording) = &mut self.0 else { return };
        (recording.has_ended, recording.failed) = (true, failed);
        let key = if failed {
            "error.type"
        } else {
            "bearerd.outcome"
        };
        recording.attribute(key, outcome);
    }
}

impl Recording {
    fn new(sink: Sink, parent: Option<Context>, kind: Kind, name: String) -> Box<Self> {
        Box::new(Self {
            sink,
            context: parent.map_or_else(Context::root, Context::child),
            parent: parent.map(|parent| parent.span),
            kind,
            name,
            attributes: Vec::with_capacity(5),
            began: SystemTime::now(),
            clock: Instant::now(),
            failed: false,
            has_ended: false,
        })
    }

    fn attribute(&mut self, key: &'static str, value: &str) {
        let attribute = json!({"key": key, "value": {"stringValue": value}});
        self.attributes.push(attribute);
    }

    /// As OTLP/JSON has it: ids in hex, 64-bit numbers as text.
    fn take_json(&mut self) -> Value {
        let began = self.began.duration_since(UNIX_EPOCH).unwrap_or_default();
        // The wall clock may have jumped since.
        let ended = began + self.clock.elapsed();
        let mut span = json!({
            "traceId": format!("{:032x}", self.context.trace),
            "spanId": format!("{:016x}", self.context.span),
            "name": std::mem::take(&mut self.name),
            "kind": self.kind as u8,
            "startTimeUnixNano": began.as_nanos().to_string(),
            "endTimeUnixNano": ended.as_nanos().to_string(),
            "attributes": std::mem::take(&mut self.attributes),
        });
        if let Some(parent) = self.parent {
            span["parentSpanId"] = format!("{parent:016x}").into();
        }
        if self.failed {
            span["status"] = json!({"code": 2});
        }
        span
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if !self.has_ended {
            // Whoever waited for it went away.
            self.attribute("error.type", "downstream_aborted");
        }
        let sink = self.sink.clone();
        match sink.spans.try_reserve() {
            Ok(place) => place.send(self.take_json()),
            Err(_) => {
                sink.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// A name of a bounded set.
fn known(method: &Method) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];
    let known = KNOWN.into_iter().find(|known| method.as_str() == *known);
    known.unwrap_or("_OTHER")
}
