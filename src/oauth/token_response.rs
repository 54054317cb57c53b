//! What a token endpoint answers, read strictly: one JSON object, known members once, a token that can stand in a header.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Visitor};

use super::access_token::Grant;
use super::token_endpoint::{ScopeDowngrade, TokenEndpointConfig};
use super::token_error::{Refusal, TokenError, printable};
use crate::secret::Secret;

/// The largest token taken; most servers refuse header fields far below it.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// `Retry-After` is obeyed within these bounds.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Reads a 200: the access token response (RFC 6749 §5.1), or an error in disguise.
///
/// # Errors
/// Whatever is not a bearer token that can be sent.
pub fn grant(
    config: &TokenEndpointConfig,
    headers: &HeaderMap,
    answer: &[u8],
) -> Result<Grant, TokenError> {
    let Some(answer) = object::<Answer>(answer) else {
        return Err(TokenError::NotJson {
            content_type: content_type(headers),
            bytes: answer.len(),
        });
    };
    if let Some(code) = answer.error {
        return Err(TokenError::Refused(Refusal::new(
            StatusCode::OK,
            &code,
            answer.error_description,
        )));
    }
    let token_type = answer
        .token_type
        .ok_or(TokenError::Malformed("no token_type"))?;
    if !token_type.trim().eq_ignore_ascii_case("bearer") {
        return Err(TokenError::Malformed("a token_type other than Bearer"));
    }
    let token = answer
        .access_token
        .ok_or(TokenError::Malformed("no access_token"))?;
    let lifetime = match answer.expires_in {
        ExpiresIn::Missing => Some(config.default_lifetime),
        ExpiresIn::Seconds(seconds) => lifetime(seconds, config.max_lifetime),
    };
    let missing = missing_scope(config.scope.as_deref(), answer.scope.as_deref());
    let missing_scope = match (config.on_scope_downgrade, missing) {
        (ScopeDowngrade::Ignore, _) | (_, None) => None,
        (ScopeDowngrade::Warn, missing) => missing,
        (ScopeDowngrade::Fail, Some(missing)) => return Err(TokenError::ScopeDowngrade(missing)),
    };
    Ok(Grant {
        authorization: authorization(&token)?,
        fingerprint: fingerprint(token.expose()),
        scope: answer.scope.map(|scope| printable(&scope)),
        missing_scope,
        lifetime,
        server_date: date(headers),
    })
}

/// The scopes that were asked for and not granted, separated by spaces; their order means nothing (RFC 6749 §3.3). An
/// answer without a scope grants what was asked for (§5.1).
fn missing_scope(asked: Option<&str>, granted: Option<&str>) -> Option<String> {
    let (asked, granted) = (asked?, granted?);
    let missing: Vec<&str> = asked
        .split(' ')
        .filter(|scope| !scope.is_empty() && !granted.split(' ').any(|granted| granted == *scope))
        .collect();
    (!missing.is_empty()).then(|| missing.join(" "))
}

/// The server's clock when it answered (RFC 9110 §6.6.1).
fn date(headers: &HeaderMap) -> Option<SystemTime> {
    let date = headers.get(header::DATE)?.to_str().ok()?;
    httpdate::parse_http_date(date).ok()
}

/// The access token response (RFC 6749 §5.1) or an error that came with the wrong status. Known members may come once.
#[derive(Deserialize)]
struct Answer {
    access_token: Option<Token>,
    token_type: Option<String>,
    #[serde(default)]
    expires_in: ExpiresIn,
    scope: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

/// A token on its way from the answer into a header value.
struct Token(Secret);

impl Token {
    fn expose(&self) -> &str {
        self.0.expose()
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|token| Self(Secret::new(token)))
    }
}

#[derive(Default)]
enum ExpiresIn {
    #[default]
    Missing,
    Seconds(f64),
}

impl<'de> Deserialize<'de> for ExpiresIn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seconds;
        impl Visitor<'_> for Seconds {
            type Value = ExpiresIn;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("seconds as a number or a numeric string")
            }
            fn visit_unit<E>(self) -> Result<ExpiresIn, E> {
                Ok(ExpiresIn::Missing)
            }
            fn visit_f64<E>(self, seconds: f64) -> Result<ExpiresIn, E> {
                Ok(ExpiresIn::Seconds(seconds))
            }
            fn visit_u64<E>(self, seconds: u64) -> Result<ExpiresIn, E> {
                Ok(ExpiresIn::Seconds(seconds as f64))
            }
            fn visit_i64<E>(self, seconds: i64) -> Result<ExpiresIn, E> {
                Ok(ExpiresIn::Seconds(seconds as f64))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ExpiresIn, E> {
                match text.trim().parse::<f64>() {
                    Ok(seconds) if seconds.is_finite() => Ok(ExpiresIn::Seconds(seconds)),
                    _ => Err(E::custom("not a number of seconds")),
                }
            }
        }
        deserializer.deserialize_any(Seconds)
    }
}

/// A JSON object. serde would take an array too, for a struct.
pub(super) fn object<T: DeserializeOwned>(answer: &[u8]) -> Option<T> {
    let answer = answer.trim_ascii_start();
    let is_object = answer.first() == Some(&b'{');
    is_object
        .then(|| serde_json::from_slice(answer).ok())
        .flatten()
}

/// `None` for a token that is over when it comes, or so soon after that renewing it would be a loop.
fn lifetime(seconds: f64, max: Duration) -> Option<Duration> {
    if seconds < 1.0 {
        return None;
    }
    Some(Duration::try_from_secs_f64(seconds).unwrap_or(max).min(max))
}

/// `Bearer` and the token (RFC 6750 §2.1). A token may hold visible ASCII alone: nothing that ends a field or a value.
fn authorization(token: &Token) -> Result<HeaderValue, TokenError> {
    let token = token.expose();
    if token.is_empty() {
        return Err(TokenError::Malformed("an empty access_token"));
    }
    if token.len() > MAX_TOKEN_BYTES {
        return Err(TokenError::Malformed("an access_token of more than 16 KiB"));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(TokenError::Malformed(
            "an access_token with characters other than visible ASCII",
        ));
    }
    let value = zeroize::Zeroizing::new(format!("Bearer {token}"));
    let mut value = HeaderValue::from_str(&value)
        .map_err(|_| TokenError::Malformed("an access_token that fits no header"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn fingerprint(token: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
    digest
        .as_ref()
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The error response (RFC 6749 §5.2), or whatever else came with a status other than 200.
pub fn refusal(status: StatusCode, headers: &HeaderMap, answer: &[u8]) -> TokenError {
    #[derive(Deserialize)]
    struct ErrorAnswer {
        error: String,
        error_description: Option<String>,
    }
    match object::<ErrorAnswer>(answer) {
        Some(answer) if status.is_client_error() && !is_transient(status) => TokenError::Refused(
            Refusal::new(status, &answer.error, answer.error_description),
        ),
        _ => TokenError::Status {
            status,
            retry_after: retry_after(headers, SystemTime::now()),
        },
    }
}

/// Whether it says that another attempt may do better.
pub(super) fn is_transient(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429)
}

/// Seconds or a date (RFC 9110 §10.2.3), within bounds; nothing if it is neither.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if value.bytes().all(|byte| byte.is_ascii_digit()) && !value.is_empty() {
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        httpdate::parse_http_date(value)
            .ok()?
            .duration_since(now)
            .unwrap_or_default()
    };
    Some(wait.clamp(RETRY_AFTER.0, RETRY_AFTER.1))
}

fn content_type(headers: &HeaderMap) -> String {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    printable(value.unwrap_or("none"))
}

#[cfg(test)]
#[path = "token_response_tests.rs"]
mod tests;
