//! A request on its way to the upstream, and once more where that is allowed: what must not be sent twice does not leave
//! a second time from here.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, Uri};
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::error::ProxyError;
use super::hop;
use super::upstream::Upstream;
use crate::metrics::{RetryReason, SendFault};
use crate::net::body::{Again, Body};
use crate::net::download::Download;
use crate::net::pool::Pool;
use crate::net::progress::Progress;
use crate::oauth::access_token::AccessToken;
use crate::trace::Span;

/// A request as it leaves, but for its body and its `Authorization`.
pub struct Outgoing<'a> {
    pub upstream: &'a Upstream,
    pub pool: &'a Arc<Pool>,
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    /// The body, for any time but the first.
    pub again: Again,
    /// How the body moves.
    pub progress: Option<Arc<Progress>>,
    /// From the last bytes of the request to the response head.
    pub response_timeout: Duration,
    /// How long the upstream has been waited for.
    pub upstream_time: &'a mut Duration,
    /// Of the application's request.
    pub span: &'a Span,
}

impl Outgoing<'_> {
    /// Sends it for the first time, and waits for the response head.
    ///
    /// # Errors
    /// When there is none. Nothing is sent a second time but what the upstream says it did nothing about.
    pub async fn send(
        &mut self,
        body: Body,
        token: &AccessToken,
    ) -> Result<Response<Download>, ProxyError> {
        let request = self.request(body, token.authorization());
        match self.send_once(request).await {
            Err(ProxyError::Send(error)) if error.unprocessed => {
                let Some(body) = self.again.body() else {
                    return Err(error.into());
                };
                debug!("a request that the upstream did not look at is sent again");
                self.upstream.metrics().retried(RetryReason::Unprocessed);
                let request = self.request(body, token.authorization());
                self.send_once(request).await
            }
            result => result,
        }
    }

    /// Sends it once more, with another token. `None` when its body is not here from the first byte to the last.
    pub async fn send_again(
        &mut self,
        token: &AccessToken,
    ) -> Option<Result<Response<Download>, ProxyError>> {
        if !self.is_whole() {
            return None;
        }
        let body = self.again.body()?;
        self.upstream.metrics().retried(RetryReason::InvalidToken);
        let request = self.request(body, token.authorization());
        Some(self.send_once(request).await)
    }

    /// Whether its body is here from the first byte to the last, or there is none.
    pub fn is_whole(&self) -> bool {
        self.again.is_whole()
    }

    /// Whether it may be carried out twice and mean the same: the method is safe (RFC 9110 §9.2.1), or the application
    /// gave it a key by which the upstream knows it again.
    pub fn is_repeatable(&self) -> bool {
        self.method.is_safe() || self.headers.contains_key(hop::IDEMPOTENCY_KEY)
    }

    /// `Authorization` is set LAST: nothing of the application's can touch it any more.
    fn request(&self, body: Body, authorization: HeaderValue) -> Request<Body> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request
            .headers_mut()
            .insert(header::AUTHORIZATION, authorization);
        request
    }

    /// Waits for the response head, for as long as the request body moves and the response timeout more.
    async fn send_once(
        &mut self,
        mut request: Request<Body>,
    ) -> Result<Response<Download>, ProxyError> {
        let server = self.upstream.authority();
        let mut span = self
            .span
            .client(&self.method, server, request.headers_mut());
        let sent = Instant::now();
        let mut last = sent;
        let mut sending = pin!(self.pool.send(request));
        let result = loop {
            if let Ok(result) = timeout_at(last + self.response_timeout, sending.as_mut()).await {
                break result.map_err(ProxyError::from);
            }
            match self.progress.as_deref().map(Progress::last) {
                Some(moved) if moved > last => last = moved,
                _ => break Err(ProxyError::ResponseTimeout(self.response_timeout)),
            }
        };
        let time = sent.elapsed();
        *self.upstream_time += time;
        let metrics = self.upstream.metrics();
        match &result {
            Ok(response) => {
                metrics.answered(&self.method, response.status(), time);
                span.answered(response.status(), None);
            }
            Err(error) => {
                metrics.failed(&self.method, fault(error), time);
                span.outcome(error.code().as_str(), true);
            }
        }
        result
    }
}

fn fault(error: &ProxyError) -> SendFault {
    match error {
        ProxyError::Send(error) => error.fault,
        ProxyError::ResponseTimeout(_) => SendFault::Timeout,
        _ => SendFault::Protocol,
    }
}
