//! THE WINDOW: what operators and the orchestrator see, on a port of its own, served by the control thread.

pub mod health;

use std::sync::Arc;

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tracing_appender::non_blocking::ErrorCounter;

use crate::metrics::Metrics;
use crate::net::body::Body;
use health::{Health, Report};

/// Answers the admin port.
pub struct Admin {
    health: Health,
    metrics: Arc<Metrics>,
    /// Log lines that could not be written in time.
    dropped_lines: Option<ErrorCounter>,
}

impl Admin {
    /// `dropped_lines` comes from the log, where there is one.
    pub fn new(health: Health, metrics: Arc<Metrics>, dropped_lines: Option<ErrorCounter>) -> Self {
        Self {
            health,
            metrics,
            dropped_lines,
        }
    }

    /// Answers one request. Nothing here changes anything, so only GET and HEAD are known.
    pub async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = text(
                StatusCode::METHOD_NOT_ALLOWED,
                "method not allowed\n".to_owned(),
            );
            response
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let verbose = request.uri().query().is_some_and(|query| {
            query
                .split('&')
                .any(|part| part == "verbose" || part == "verbose=true")
        });
        match request.uri().path() {
            "/livez" => self.report("livez", Health::live(), verbose),
            "/readyz" => self.report("readyz", self.health.ready().await, verbose),
            "/startupz" => self.report("startupz", self.health.started().await, verbose),
            "/metrics" => self.metrics().await,
            _ => text(
                StatusCode::NOT_FOUND,
                "not found; there is /livez /readyz /startupz /metrics\n".to_owned(),
            ),
        }
    }

    fn report(&self, name: &str, report: Report, verbose: bool) -> Response<Body> {
        let status = if report.passes() {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        text(status, report.text(name, verbose))
    }

    async fn metrics(&self) -> Response<Body> {
        self.metrics.set_ready(self.health.ready().await.passes());
        self.health.refresh_metrics().await;
        if let Some(dropped) = &self.dropped_lines {
            self.metrics
                .set_log_lines_dropped(dropped.dropped_lines().try_into().unwrap_or(u64::MAX));
        }
        let mut response = Response::new(Body::full(self.metrics.render()));
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
        );
        response
    }
}

fn text(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
