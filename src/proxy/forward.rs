//! The straight line a request walks. Read it top to bottom.

use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use hyper::upgrade::OnUpgrade;
use tokio::sync::Semaphore;

use super::access_log::{AccessLine, AccessLog};
use super::error::{ALLOWED_METHODS, BadRequest, ProxyError, X_REQUEST_ID};
use super::guard::Guard;
use super::hop::{self, Framing};
use super::outgoing::Outgoing;
use super::replay::Tokens;
use super::route::{RouteConfig, Routes};
use super::upgrade;
use super::upstream::Upstream;
use crate::metrics::Metrics;
use crate::net::body::{Body, Relay};
use crate::net::download::Download;
use crate::net::drain::{DrainWatch, Phase};
use crate::net::pool::Pool;
use crate::net::progress::Progress;
use crate::net::socket::Peer;
use crate::net::tunnel::Tunnel;
use crate::net::upload::Upload;
use crate::trace::{Span, Tracer};

/// Forwards requests with a token. Shared by all workers; what belongs to a worker, its pools, is an argument. A
/// configuration that is read anew makes a new one.
pub struct Gateway {
    pub guard: Guard,
    pub routes: Routes,
    /// In the order by which routes name them.
    pub upstreams: Vec<Arc<Upstream>>,
    /// In the order by which routes name them.
    pub tokens: Vec<Tokens>,
    /// Requests in flight, over all workers.
    pub in_flight: Arc<Semaphore>,
    /// The largest request body, in bytes.
    pub max_body_bytes: Option<u64>,
    pub access_log: AccessLog,
    pub metrics: Arc<Metrics>,
    pub drain: DrainWatch,
    pub tracer: Tracer,
}

impl Gateway {
    /// Answers `request`, whatever happens: the upstream's answer, or one of ours. `pools` are the worker's, in the order
    /// of the upstreams.
    pub async fn handle(
        &self,
        pools: &[Arc<Pool>],
        request: Request<Incoming>,
        peer: Peer,
    ) -> Response<Body> {
        let (mut head, body) = request.into_parts();
        let mut scope = self.metrics.request(&head.method);
        let mut span = self.tracer.server(&head.method, &head.headers);
        let permit = self.in_flight.clone().try_acquire_owned();
        let request_id = request_id(&head.headers);
        let mut upstream_time = Duration::ZERO;
        let result = match &permit {
            Err(_) => Err(ProxyError::Overloaded),
            Ok(_) => {
                let request = (&mut head, body);
                let time = &mut upstream_time;
                let forwarded =
                    pin!(self.forward(pools, request, peer, &request_id, time, &mut span));
                let forwarded = catch_panic(forwarded).await;
                forwarded.unwrap_or(Err(ProxyError::Panicked))
            }
        };
        let mut closes = self.drain.phase() >= Phase::Draining;
        let (mut response, error) = match result {
            Ok(response) => (response, None),
            Err(error) => {
                closes |= error.ends_the_connection();
                let code = error.code();
                self.metrics.rejected(code);
                let cause = error.to_string();
                let response = error.into_response(&request_id);
                (response.map(Answer::Body), Some((code.as_str(), cause)))
            }
        };
        let status = response.status();
        scope.answered(status);
        span.answered(status, error.as_ref().map(|(code, _)| *code));
        let duration = scope.started().elapsed();
        self.metrics
            .overhead(duration.saturating_sub(upstream_time));
        let line = AccessLine {
            method: &head.method,
            path: head.uri.path(),
            status,
            error,
            duration,
            upstream: upstream_time,
            peer,
            request_id: &request_id,
        };
        line.write(self.access_log);
        let version = head.version;
        response.headers_mut().insert(X_REQUEST_ID, request_id);
        let (mut head, answer) = response.into_parts();
        let body = match answer {
            // In flight until the last byte was passed on.
            Answer::Body(body) => body.holding((scope, permit, span)),
            Answer::Tunnel(upstream, idle_timeout) => {
                let guard = (permit, self.metrics.tunnel());
                head.extensions
                    .insert(Tunnel::new(upstream, idle_timeout, guard));
                return Response::from_parts(head, Body::empty());
            }
        };
        // HTTP/2 says it with GOAWAY, and loses nothing of a connection with one bad request.
        if closes && version < Version::HTTP_2 {
            head.headers
                .insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Response::from_parts(head, body)
    }

    /// The straight line.
    async fn forward(
        &self,
        pools: &[Arc<Pool>],
        (head, body): (&mut Parts, Incoming),
        peer: Peer,
        request_id: &HeaderValue,
        upstream_time: &mut Duration,
        span: &mut Span,
    ) -> Result<Response<Answer>, ProxyError> {
        // Who may use the credential, and for what.
        let body = Upload::new(body, head.headers.contains_key(header::EXPECT));
        let named = self.guard.check(head, peer)?;
        let route = self.routes.choose(&head.method, head.uri.path(), named)?;
        span.route(&route.name);
        let (upstream, tokens) = (&*self.upstreams[route.upstream], &self.tokens[route.tokens]);
        expects_nothing_but_continue(&head.headers)?;
        if !hop::may_be_forwarded(&head.method, &mut head.headers) {
            return Ok(end_of_the_way());
        }
        let asked = Asked::of(head, route);
        if asked.upgrade && self.drain.phase() >= Phase::Draining {
            return Err(ProxyError::Draining);
        }
        let (body, framing, progress) = self.request_body(head, body, upstream)?;

        // Only end-to-end fields go on.
        hop::refuse_outer_whitespace(&head.headers, head.version)?;
        hop::strip_request(&mut head.headers)?;
        hop::join_cookies(&mut head.headers);
        upstream.prepare(&mut head.headers, head.version)?;
        head.headers.insert(X_REQUEST_ID, request_id.clone());
        framing.apply(&mut head.headers);
        if asked.trailers && upstream.may_speak_http2() {
            let trailers = HeaderValue::from_static("trailers");
            head.headers.insert(header::TE, trailers);
        }
        if asked.upgrade {
            upgrade::apply(&mut head.headers);
        }
        let mut outgoing = Outgoing {
            uri: target(upstream, route, &head.uri)?,
            upstream,
            pool: &pools[route.upstream],
            method: head.method.clone(),
            headers: std::mem::take(&mut head.headers),
            again: body.again(),
            progress,
            response_timeout: route
                .response_timeout
                .unwrap_or_else(|| upstream.config().response_timeout),
            upstream_time,
            span,
        };

        // Normally no wait.
        let token = tokens.handle.token().await?;
        let response = outgoing.send(body, &token).await?;
        let response = tokens
            .second_chance(response, &mut outgoing, &token, &self.metrics)
            .await?;
        answer(response, &asked, upstream)
    }

    /// The application's body on its way: framed anew, bounded, under the idle timeout.
    fn request_body(
        &self,
        head: &Parts,
        body: Upload,
        upstream: &Upstream,
    ) -> Result<(Body, Framing, Option<Arc<Progress>>), ProxyError> {
        let framing = Framing::of_request(&head.headers)?;
        if let (Some(limit), Some(length)) = (self.max_body_bytes, body.left().exact())
            && length > limit
        {
            return Err(ProxyError::BodyTooLarge(limit));
        }
        if body.is_over() {
            return Ok((Body::empty(), framing, None));
        }
        let is_http2 = head.version == Version::HTTP_2;
        // HTTP/2 needs no framing, and hyper would drop the body of a GET without one on its way to HTTP/1.1.
        let framing = match framing {
            Framing::Natural if is_http2 && body.left().exact().is_none() => Framing::Chunked,
            framing => framing,
        };
        let progress = Progress::new();
        let relay = Relay::upload(body, upstream.config().idle_timeout)
            .limited(self.max_body_bytes)
            .reporting(progress.clone())
            .with_trailers(is_http2.then_some(hop::strip_trailers));
        Ok((Body::resendable(relay), framing, Some(progress)))
    }
}

fn target(upstream: &Upstream, route: &RouteConfig, uri: &Uri) -> Result<Uri, ProxyError> {
    route
        .target(uri)
        .and_then(|target| upstream.target(target).ok())
        .ok_or(ProxyError::BadRequest(BadRequest::Target))
}

/// The way back. A new response too: version, reason phrase and extensions of the upstream's stay behind.
fn answer(
    mut response: Response<Download>,
    asked: &Asked<'_>,
    upstream: &Upstream,
) -> Result<Response<Answer>, ProxyError> {
    if !hop::response_framing_is_sound(response.headers()) {
        response.into_body().distrust();
        return Err(ProxyError::AmbiguousFraming);
    }
    let tunnel = match response.status() {
        StatusCode::SWITCHING_PROTOCOLS
            if asked.upgrade && upgrade::is_granted(response.headers()) =>
        {
            Some(hyper::upgrade::on(&mut response))
        }
        StatusCode::SWITCHING_PROTOCOLS => return Err(ProxyError::SurpriseUpgrade),
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => return Err(ProxyError::ProxyChallenge),
        _ => None,
    };
    let carries_trailers = asked.version == Version::HTTP_2 && response.version() == asked.version;
    let idle_timeout = upstream.config().idle_timeout;
    let (mut head, body) = response.into_parts();
    hop::strip_response(&mut head.headers, &asked.method, head.status);
    upstream.rewrite_location(&mut head.headers, asked.host.as_ref(), asked.prefix);
    let body = match tunnel {
        Some(upstream) => {
            upgrade::apply(&mut head.headers);
            Answer::Tunnel(upstream, idle_timeout)
        }
        None => {
            let relay = Relay::download(body, idle_timeout);
            let relay = relay.with_trailers(carries_trailers.then_some(hop::strip_trailers));
            Answer::Body(Body::relay(relay))
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    if head.status.canonical_reason().is_none() {
        // An empty phrase is valid (RFC 9112 §4); hyper would make one up.
        let phrase = ReasonPhrase::from_static(b"");
        response.extensions_mut().insert(phrase);
    }
    Ok(response)
}

/// What follows the head of an answer.
enum Answer {
    Body(Body),
    /// The connection becomes another thing, which ends when nothing moves for so long.
    Tunnel(OnUpgrade, Duration),
}

/// What the answer to a request depends on.
struct Asked<'a> {
    method: Method,
    version: Version,
    /// How the application called us.
    host: Option<HeaderValue>,
    /// What of the path the upstream does not see.
    prefix: &'a str,
    /// For a WebSocket, on a route that allows it.
    upgrade: bool,
    /// With trailers, over HTTP/2.
    trailers: bool,
}

impl<'a> Asked<'a> {
    fn of(head: &Parts, route: &'a RouteConfig) -> Self {
        let authority = match head.version {
            Version::HTTP_2 => head.uri.authority(),
            _ => None,
        };
        let host = match authority {
            Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
            None => head.headers.get(header::HOST).cloned(),
        };
        Self {
            method: head.method.clone(),
            version: head.version,
            host,
            prefix: if route.strip_prefix { &route.path } else { "" },
            upgrade: upgrade::is_wanted(head, route),
            trailers: hop::takes_trailers(&head.headers, head.version),
        }
    }
}

/// The answer to an OPTIONS that was not to go further than here.
fn end_of_the_way() -> Response<Answer> {
    let mut response = Response::new(Answer::Body(Body::empty()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
        .headers_mut()
        .insert(header::ALLOW, ALLOWED_METHODS);
    response
}

/// hyper answers `Expect: 100-continue` when the body is first asked for; other expectations are unknown (RFC 9110
/// §10.1.1).
fn expects_nothing_but_continue(headers: &HeaderMap) -> Result<(), ProxyError> {
    let unknown = headers
        .get_all(header::EXPECT)
        .iter()
        .any(|expectation| !expectation.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if unknown {
        Err(ProxyError::ExpectationFailed)
    } else {
        Ok(())
    }
}

/// The application's id if it is 1 to 128 visible ASCII characters, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(X_REQUEST_ID).filter(|id| {
        (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
    });
    let mut id = given.cloned().unwrap_or_else(new_request_id);
    // No other request has it: HTTP/2 has no reason to remember it (RFC 7541 §6.2.3).
    id.set_sensitive(true);
    id
}

/// 128 random bits, as 32 hexadecimal digits.
fn new_request_id() -> HeaderValue {
    let random = fastrand::u128(..);
    let digit = |at: u32| b"0123456789abcdef"[(random >> (4 * at) & 0xf) as usize];
    let digits: [u8; 32] = std::array::from_fn(|at| digit(at as u32));
    HeaderValue::from_bytes(&digits).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

/// `None` if `future` panicked. The panic was logged by the hook; the connection and the process go on.
async fn catch_panic<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(move |cx| {
        match std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Some),
            Err(_) => Poll::Ready(None),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Code;

    /// H-19
    #[tokio::test]
    async fn a_panic_is_an_answer() {
        let panics = pin!(async { panic!("as in a defect") });
        assert_eq!(catch_panic::<_>(panics).await, None::<()>);
        let returns = pin!(async { 1 });
        assert_eq!(catch_panic(returns).await, Some(1));

        assert_eq!(ProxyError::Panicked.code(), Code::InternalError);
        let answer = ProxyError::Panicked.into_response(&HeaderValue::from_static("r"));
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
