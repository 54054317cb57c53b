//! THE WINDOW: what operators and the orchestrator see, on a port of its own, served by the control thread. Whoever reaches
//! it may look; only this machine may change anything ([`verbs`]).

pub mod health;
pub mod history;
pub mod log;
mod page;
pub mod status;
pub mod verbs;

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;

use crate::net::body::Body;
use crate::net::socket::Peer;
use health::{Health, Report};
use log::LogControl;
use page::{is_foreign_fetch, json, may_look, page};
use status::Sources;
use verbs::{Verb, Verbs};

/// Answers the admin port.
pub struct Admin {
    health: Health,
    sources: Sources,
    verbs: Verbs,
    log: Option<LogControl>,
}

impl Admin {
    /// `log` is the one of this process, where it has one of its own.
    pub fn new(health: Health, sources: Sources, verbs: Verbs, log: Option<LogControl>) -> Self {
        Self {
            health,
            sources,
            verbs,
            log,
        }
    }

    /// Answers one request.
    pub async fn handle(&self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let Some(verb) = Verb::of(request.uri().path()) else {
            return self.look(&request).await;
        };
        if *request.method() != Method::POST {
            return method_not_allowed(HeaderValue::from_static("POST"));
        }
        let (head, body) = request.into_parts();
        self.verbs.answer(verb, &head, body, peer).await
    }

    /// Nothing here changes anything, so only GET and HEAD are known.
    async fn look(&self, request: &Request<Incoming>) -> Response<Body> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return method_not_allowed(HeaderValue::from_static("GET, HEAD"));
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
            "/" | "/status" => self.show(request).await,
            _ => text(
                StatusCode::NOT_FOUND,
                "not found; there is / /status /livez /readyz /startupz /metrics\n".to_owned(),
            ),
        }
    }

    /// What is for a person and his browser, and not for the web pages of others.
    async fn show(&self, request: &Request<Incoming>) -> Response<Body> {
        let headers = request.headers();
        if !may_look(headers, &self.sources.about.load().allowed_hosts) {
            let message =
                "ask by address or as localhost, or list the name in [proxy] allowed_hosts\n";
            return text(StatusCode::FORBIDDEN, message.to_owned());
        }
        if is_foreign_fetch(headers) {
            let message = "this is not for web pages of other origins\n";
            return text(StatusCode::FORBIDDEN, message.to_owned());
        }
        if request.uri().path() == "/" {
            return page();
        }
        let is_ready = self.health.ready().await.passes();
        json(&self.sources.status(is_ready, self.log.as_ref()).await)
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
        let metrics = &self.sources.metrics;
        metrics.set_ready(self.health.ready().await.passes());
        self.health.refresh_metrics().await;
        if let Some(log) = &self.log {
            metrics.set_log_lines_dropped(log.dropped_lines());
        }
        let mut response = Response::new(Body::full(metrics.render()));
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
        );
        response
    }
}

fn method_not_allowed(allowed: HeaderValue) -> Response<Body> {
    let mut response = text(
        StatusCode::METHOD_NOT_ALLOWED,
        "method not allowed\n".to_owned(),
    );
    response.headers_mut().insert(header::ALLOW, allowed);
    response
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
