//! What follows when the upstream refuses a token: a renewal for all requests that learn of it, and for this one a second
//! chance where that cannot pay twice.

use http::header::{self, HeaderMap};
use http::{Response, StatusCode};
use tracing::warn;

use super::error::ProxyError;
use super::hop;
use super::outgoing::Outgoing;
use crate::metrics::{Metrics, UnauthorizedAction};
use crate::net::download::Download;
use crate::oauth::access_token::AccessToken;
use crate::oauth::{Rejection, TokenHandle};

/// The tokens of a route, and what an answer says of them.
pub struct Tokens {
    pub handle: TokenHandle,
    /// Whether a request is sent once more after a 401.
    pub replay_on_401: bool,
    /// Statuses by which the upstream refuses a token.
    pub invalidate_on_status: Vec<StatusCode>,
}

impl Tokens {
    /// The answer to pass on: `answer`, or if that refuses `token`, the one to a second try where there is one.
    ///
    /// # Errors
    /// Those of the second try.
    pub async fn second_chance(
        &self,
        answer: Response<Download>,
        outgoing: &mut Outgoing<'_>,
        token: &AccessToken,
        metrics: &Metrics,
    ) -> Result<Response<Download>, ProxyError> {
        let refuses = self.invalidate_on_status.contains(&answer.status());
        if answer.status().is_success() {
            token.is_accepted();
        }
        if !refuses || !hop::response_framing_is_sound(answer.headers()) {
            return Ok(answer);
        }
        let (action, second) = if names_error(answer.headers(), "insufficient_scope") {
            // The token is good, and its scope is not (RFC 6750 §3.1).
            (UnauthorizedAction::Pass, None)
        } else {
            // Boxed, so that the many requests that need no second try have no room for one.
            Box::pin(self.retry(&answer, outgoing, token)).await
        };
        metrics.upstream_unauthorized(action);
        warn!(
            token = self.handle.name(),
            fingerprint = token.fingerprint(),
            status = answer.status().as_u16(),
            action = action.as_str(),
            "the upstream refused the token"
        );
        second.unwrap_or(Ok(answer))
    }

    async fn retry(
        &self,
        answer: &Response<Download>,
        outgoing: &mut Outgoing<'_>,
        token: &AccessToken,
    ) -> (
        UnauthorizedAction,
        Option<Result<Response<Download>, ProxyError>>,
    ) {
        let rejection = self.handle.reject(token).await;
        if let Err(action) = self.may_replay(answer, outgoing) {
            return (action, None);
        }
        match rejection {
            Rejection::Limited => (UnauthorizedAction::Limit, None),
            Rejection::BreakerOpen => (UnauthorizedAction::Breaker, None),
            Rejection::Previous(stand_in) => {
                let second = outgoing.send_again(stand_in.token()).await;
                if let Some(Ok(answer)) = &second
                    && !self.invalidate_on_status.contains(&answer.status())
                {
                    stand_in.is_accepted();
                }
                (UnauthorizedAction::ReplayedPrevious, second)
            }
            Rejection::Renewed => match self.handle.token().await {
                Err(_) => (UnauthorizedAction::NoToken, None),
                Ok(other) if other.authorization() == token.authorization() => {
                    (UnauthorizedAction::SameToken, None)
                }
                Ok(other) => {
                    let second = outgoing.send_again(&other).await;
                    if let Some(Ok(answer)) = &second
                        && self.invalidate_on_status.contains(&answer.status())
                        && !names_error(answer.headers(), "insufficient_scope")
                    {
                        // Not for this request, which has had its chance: it is how the breaker learns of it.
                        self.handle.reject(&other).await;
                    }
                    (UnauthorizedAction::Replayed, second)
                }
            },
        }
    }

    /// Whether the request may be sent a second time. The upstream refused it for its token, which a server checks before
    /// it acts; but only with a challenge that says so, or where it would not matter, is that believed.
    fn may_replay(
        &self,
        answer: &Response<Download>,
        outgoing: &Outgoing<'_>,
    ) -> Result<(), UnauthorizedAction> {
        let is_plain = names_error(answer.headers(), "invalid_token");
        if !self.replay_on_401 || answer.status() != StatusCode::UNAUTHORIZED {
            Err(UnauthorizedAction::SkippedOff)
        } else if !outgoing.is_whole() {
            Err(UnauthorizedAction::SkippedBody)
        } else if !is_plain && !outgoing.is_repeatable() {
            Err(UnauthorizedAction::SkippedUnsafe)
        } else {
            Ok(())
        }
    }
}

/// Whether a challenge has this `error` (RFC 6750 §3).
fn names_error(headers: &HeaderMap, error: &str) -> bool {
    let quoted = format!("error=\"{error}\"");
    let bare = format!("error={error}");
    headers
        .get_all(header::WWW_AUTHENTICATE)
        .iter()
        .any(|line| {
            let line = String::from_utf8_lossy(line.as_bytes());
            line.contains(&quoted) || line.contains(&bare)
        })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_challenge_names_its_error() {
        let named = |lines: &[&'static str], error| {
            let lines = lines.iter().map(|line| HeaderValue::from_static(line));
            let headers = lines.map(|line| (header::WWW_AUTHENTICATE, line)).collect();
            names_error(&headers, error)
        };
        let django = r#"Bearer realm="api",error="invalid_token",error_description="The access token is invalid.""#;
        assert!(named(&[django], "invalid_token"));
        assert!(!named(&[django], "insufficient_scope"));
        assert!(named(
            &["Basic", "Bearer error=invalid_token"],
            "invalid_token"
        ));
        assert!(!named(
            &["Bearer", "Bearer realm=\"invalid_token\""],
            "invalid_token"
        ));
        assert!(!named(&[], "invalid_token"));
    }
}
