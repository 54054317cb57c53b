//! The straight line a request walks. Read it top to bottom.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Request, Response, StatusCode, Uri};
use hyper::body::{Body as _, Incoming};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{info, warn};

use super::error::{BadRequest, ProxyError, X_REQUEST_ID};
use super::guard::Guard;
use super::hop::{self, Framing};
use super::upstream::Upstream;
use crate::metrics::{Metrics, UnauthorizedAction};
use crate::net::body::{Body, Direction, Progress, Relay};
use crate::net::client::HttpClient;
use crate::net::drain::{DrainWatch, Phase};
use crate::oauth::TokenHandle;
use crate::oauth::access_token::AccessToken;

/// Which requests are logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessLog {
    /// Those whose status is not 2xx.
    #[default]
    Errors,
    /// All.
    All,
    /// None.
    Off,
}

/// Forwards requests with a token. Shared by all workers; what belongs to a worker, its client, is an argument.
pub struct Gateway {
    pub guard: Guard,
    pub upstream: Upstream,
    pub tokens: TokenHandle,
    /// Requests in flight, over all workers.
    pub in_flight: Arc<Semaphore>,
    /// The largest request body, in bytes.
    pub max_body_bytes: Option<u64>,
    pub access_log: AccessLog,
    pub metrics: Arc<Metrics>,
    pub drain: DrainWatch,
}

impl Gateway {
    /// Answers `request`, whatever happens: the upstream's answer, or one of ours.
    pub async fn handle(
        &self,
        client: &HttpClient,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Response<Body> {
        let mut scope = self.metrics.request(request.method());
        let permit = self.in_flight.clone().try_acquire_owned();
        let request_id = request_id(request.headers());
        let line = AccessLine::of(&request, peer);
        let mut upstream_time = Duration::ZERO;
        let result = match &permit {
            Err(_) => Err(ProxyError::Overloaded),
            Ok(_) => {
                let forwarded =
                    pin!(self.forward(client, request, peer, &request_id, &mut upstream_time));
                let forwarded = catch_panic(forwarded).await;
                forwarded.unwrap_or(Err(ProxyError::Panicked))
            }
        };
        let (mut response, error) = match result {
            Ok(response) => (response, None),
            Err(error) => {
                let code = error.code();
                self.metrics.rejected(code);
                let cause = error.to_string();
                let response = error.into_response(&request_id);
                (response.map(Answer::Ours), Some((code.as_str(), cause)))
            }
        };
        let status = response.status();
        scope.answered(status);
        let duration = scope.started().elapsed();
        self.metrics
            .overhead(duration.saturating_sub(upstream_time));
        line.write(
            self.access_log,
            status,
            error,
            &request_id,
            duration,
            upstream_time,
        );
        response.headers_mut().insert(X_REQUEST_ID, request_id);
        if self.drain.phase() >= Phase::Draining {
            response
                .headers_mut()
                .insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.map(|answer| match answer {
            Answer::Ours(body) => body,
            // In flight until the last byte was passed on.
            Answer::Upstreams(relay) => Body::relay(relay.holding((scope, permit))),
        })
    }

    /// The straight line.
    async fn forward(
        &self,
        client: &HttpClient,
        request: Request<Incoming>,
        peer: SocketAddr,
        request_id: &HeaderValue,
        upstream_time: &mut Duration,
    ) -> Result<Response<Answer>, ProxyError> {
        // Who may use the credential, and for what.
        let (mut head, body) = request.into_parts();
        self.guard.check(&head, peer)?;
        expects_nothing_but_continue(&head.headers)?;
        let (body, framing, progress) = self.request_body(&head, body)?;
        let host = head.headers.get(header::HOST).cloned();

        // Only end-to-end fields go on.
        hop::strip_request(&mut head.headers)?;
        self.upstream.prepare(&mut head.headers)?;
        head.headers.insert(X_REQUEST_ID, request_id.clone());
        framing.apply(&mut head.headers);
        let mut request = Request::new(body);
        *request.uri_mut() = self.target(&head.uri)?;
        *request.method_mut() = head.method.clone();
        *request.headers_mut() = head.headers;

        // Normally no wait. `Authorization` is set LAST: nothing of the application's can touch it any more.
        let token = self.tokens.token().await?;
        request
            .headers_mut()
            .insert(header::AUTHORIZATION, token.authorization());
        let sent = Instant::now();
        let response = self
            .upstream
            .send(client, request, progress.as_deref())
            .await;
        *upstream_time = sent.elapsed();
        let (answer, body) = response?.into_parts();

        // A new response too: version, reason phrase and extensions of the upstream's stay behind.
        if answer.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(ProxyError::SurpriseUpgrade);
        }
        if !hop::response_framing_is_sound(&answer.headers) {
            return Err(ProxyError::AmbiguousFraming);
        }
        if answer.status == StatusCode::UNAUTHORIZED {
            self.unauthorized(&answer.headers, &token).await;
        }
        let relay = Relay::new(
            body,
            Direction::Response,
            self.upstream.config().idle_timeout,
        );
        let mut response = Response::new(Answer::Upstreams(relay));
        *response.status_mut() = answer.status;
        *response.headers_mut() = answer.headers;
        hop::strip_response(response.headers_mut(), &head.method, answer.status);
        self.upstream
            .rewrite_location(response.headers_mut(), host.as_ref());
        Ok(response)
    }

    /// The application's body on its way: framed anew, bounded, under the idle timeout.
    fn request_body(
        &self,
        head: &Parts,
        body: Incoming,
    ) -> Result<(Body, Framing, Option<Arc<Progress>>), ProxyError> {
        let framing = Framing::of_request(&head.headers)?;
        if let (Some(limit), Some(length)) = (self.max_body_bytes, body.size_hint().exact())
            && length > limit
        {
            return Err(ProxyError::BodyTooLarge(limit));
        }
        if body.is_end_stream() {
            return Ok((Body::empty(), framing, None));
        }
        let progress = Progress::new();
        let relay = Relay::new(
            body,
            Direction::Request,
            self.upstream.config().idle_timeout,
        )
        .limited(self.max_body_bytes)
        .reporting(progress.clone());
        Ok((Body::relay(relay), framing, Some(progress)))
    }

    fn target(&self, uri: &Uri) -> Result<Uri, ProxyError> {
        self.upstream
            .uri(uri)
            .map_err(|_| ProxyError::BadRequest(BadRequest::Target))
    }

    /// A 401 passes, and the token that got it is renewed, unless it says that the token is good and its scope is not
    /// (RFC 6750 §3.1).
    async fn unauthorized(&self, headers: &HeaderMap, token: &AccessToken) {
        let about_scope = headers
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .any(|challenge| {
                challenge
                    .as_bytes()
                    .windows(18)
                    .any(|part| part == b"insufficient_scope")
            });
        let action = if about_scope {
            UnauthorizedAction::Pass
        } else {
            self.tokens.reject(token).await
        };
        self.metrics.upstream_unauthorized(action);
        warn!(
            token = self.tokens.name(),
            fingerprint = token.fingerprint(),
            action = action.as_str(),
            "the upstream answered 401"
        );
    }
}

/// Whose body an answer has.
enum Answer {
    Ours(Body),
    Upstreams(Relay),
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
    if let Some(id) = headers.get(X_REQUEST_ID)
        && (1..=128).contains(&id.len())
        && id.as_bytes().iter().all(u8::is_ascii_graphic)
    {
        return id.clone();
    }
    HeaderValue::from_str(&format!("{:032x}", fastrand::u128(..)))
        .unwrap_or_else(|_| HeaderValue::from_static("unknown"))
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

/// What the access log says of a request. Queries, header values and bodies stay out of it.
struct AccessLine {
    method: http::Method,
    uri: Uri,
    peer: SocketAddr,
}

impl AccessLine {
    fn of(request: &Request<Incoming>, peer: SocketAddr) -> Self {
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            peer,
        }
    }

    fn write(
        &self,
        which: AccessLog,
        status: StatusCode,
        error: Option<(&'static str, String)>,
        request_id: &HeaderValue,
        duration: Duration,
        upstream: Duration,
    ) {
        let wanted = match which {
            AccessLog::Off => false,
            AccessLog::All => true,
            AccessLog::Errors => !status.is_success(),
        };
        if !wanted {
            return;
        }
        let (code, cause) = error.unzip();
        info!(
            target: "access",
            {
                http.request.method = %self.method,
                url.path = shown(self.uri.path()),
                http.response.status_code = status.as_u16(),
                error.type = code,
                cause,
                duration_ms = duration.as_secs_f64() * 1000.0,
                upstream_duration_ms = upstream.as_secs_f64() * 1000.0,
                client.address = %self.peer,
                request_id = request_id.to_str().unwrap_or_default()
            },
            "request"
        );
    }
}

/// A path for the log: so much of it as a person reads. It is ASCII but for what `http` lets through as UTF-8.
fn shown(path: &str) -> &str {
    &path[..path.floor_char_boundary(1024)]
}
