//! The token endpoint: one request of the client credentials grant (RFC 6749 §4.4), and a strict reading of the answer.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Collected, LengthLimitError, Limited};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Visitor};
use tokio::time::timeout;

use super::access_token::Grant;
use super::client_auth::{BasicEncoding, ClientAuth, TokenRequest};
use crate::metrics::{FetchOutcome, SendFault};
use crate::net::body::Body;
use crate::net::client::{HttpClient, SendError};
use crate::net::tls::TlsError;
use crate::secret::{Secret, SecretError, SecretSource};

/// The largest answer read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// The largest token taken; most servers refuse header fields far below it.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// `Retry-After` is obeyed within these bounds.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Where the client identifier comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientId {
    /// The configuration.
    Inline(String),
    /// A file, read at each token request, together with the secret.
    File(SecretSource),
}

/// What every token request of one key says.
#[derive(Clone, Debug)]
pub struct TokenEndpointConfig {
    /// `https`, or `http` where the configuration allows it; no user information, no fragment.
    pub url: Uri,
    pub client_id: ClientId,
    pub client_secret: SecretSource,
    pub client_auth: ClientAuth,
    pub basic_encoding: BasicEncoding,
    /// Space-delimited (RFC 6749 §3.3).
    pub scope: Option<String>,
    pub audience: Vec<String>,
    /// Absolute URIs (RFC 8707 §2).
    pub resource: Vec<String>,
    pub extra_params: Vec<(String, String)>,
    /// The whole exchange: connect, request, the last byte of the answer.
    pub request_timeout: Duration,
    /// The lifetime of a token that comes without `expires_in`.
    pub default_lifetime: Duration,
    /// The longest lifetime believed.
    pub max_lifetime: Duration,
}

/// Asks for tokens.
pub struct TokenEndpoint {
    config: TokenEndpointConfig,
    client: HttpClient,
}

impl TokenEndpoint {
    /// `client` needs no pool: a token request happens about once an hour, and after a failure a new connection may
    /// reach a better node.
    pub fn new(config: TokenEndpointConfig, client: HttpClient) -> Self {
        Self { config, client }
    }

    /// Reads id and secret as they are now.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn credentials(&self) -> Result<Credentials, SecretError> {
        let client_id = match &self.config.client_id {
            ClientId::Inline(client_id) => client_id.clone(),
            ClientId::File(file) => file.read()?.expose().to_owned(),
        };
        Ok(Credentials {
            client_id,
            client_secret: self.config.client_secret.read()?,
        })
    }

    /// Sends one token request. Redirects are not followed, nothing is sent twice.
    ///
    /// # Errors
    /// Everything that is not a usable token; within `request_timeout`.
    pub async fn fetch(&self, credentials: &Credentials) -> Result<Grant, TokenError> {
        timeout(self.config.request_timeout, self.exchange(credentials))
            .await
            .unwrap_or(Err(TokenError::TimedOut(self.config.request_timeout)))
    }

    async fn exchange(&self, credentials: &Credentials) -> Result<Grant, TokenError> {
        let response = self
            .client
            .send(self.request(credentials))
            .await
            .map_err(TokenError::Send)?;
        let (head, body) = response.into_parts();
        if head.status.is_redirection() {
            return Err(TokenError::Redirect {
                status: head.status,
                host: redirect_host(&head.headers),
            });
        }
        let answer = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
        if head.status != StatusCode::OK {
            // The status tells the class, whatever can be read of the body.
            let answer = answer.map(Collected::to_bytes).unwrap_or_default();
            return Err(refusal(head.status, &head.headers, &answer));
        }
        let answer = match answer {
            Ok(answer) => answer.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => return Err(TokenError::TooLarge),
            Err(_) => return Err(TokenError::BrokenOff),
        };
        let encoding = head.headers.get(header::CONTENT_ENCODING);
        if encoding.is_some_and(|encoding| encoding != "identity") {
            return Err(TokenError::Encoded);
        }
        self.grant(&head.headers, &answer)
    }

    fn request(&self, credentials: &Credentials) -> Request<Body> {
        let config = &self.config;
        let mut form = TokenRequest::default();
        form.append("grant_type", "client_credentials");
        if let Some(scope) = &config.scope {
            form.append("scope", scope);
        }
        for audience in &config.audience {
            form.append("audience", audience);
        }
        for resource in &config.resource {
            form.append("resource", resource);
        }
        for (name, value) in &config.extra_params {
            form.append(name, value);
        }
        config.client_auth.authenticate(
            config.basic_encoding,
            &credentials.client_id,
            &credentials.client_secret,
            &mut form,
        );
        let mut request = Request::new(Body::full(Bytes::copy_from_slice(form.form().as_bytes())));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = config.url.clone();
        let headers = request.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        );
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("bearerd/", env!("CARGO_PKG_VERSION"))),
        );
        if let Some(authorization) = form.authorization {
            headers.insert(header::AUTHORIZATION, authorization);
        }
        request
    }

    fn grant(&self, headers: &HeaderMap, answer: &[u8]) -> Result<Grant, TokenError> {
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
            ExpiresIn::Missing => Some(self.config.default_lifetime),
            ExpiresIn::Seconds(seconds) => lifetime(seconds, self.config.max_lifetime),
        };
        Ok(Grant {
            authorization: authorization(&token)?,
            fingerprint: fingerprint(token.expose()),
            scope: answer.scope,
            lifetime,
        })
    }
}

/// Id and secret, read as one pair.
pub struct Credentials {
    client_id: String,
    client_secret: Secret,
}

impl Credentials {
    /// Whether both are the same as in `other`.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.client_id == other.client_id
            && self.client_secret.expose() == other.client_secret.expose()
    }
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
fn object<T: DeserializeOwned>(answer: &[u8]) -> Option<T> {
    let answer = answer.trim_ascii_start();
    let is_object = answer.first() == Some(&b'{');
    is_object
        .then(|| serde_json::from_slice(answer).ok())
        .flatten()
}

/// `None` for a token that is over when it comes.
fn lifetime(seconds: f64, max: Duration) -> Option<Duration> {
    if seconds <= 0.0 {
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
fn refusal(status: StatusCode, headers: &HeaderMap, answer: &[u8]) -> TokenError {
    #[derive(Deserialize)]
    struct ErrorAnswer {
        error: String,
        error_description: Option<String>,
    }
    match object::<ErrorAnswer>(answer) {
        Some(answer) if status.is_client_error() && !is_transient_status(status) => {
            TokenError::Refused(Refusal::new(
                status,
                &answer.error,
                answer.error_description,
            ))
        }
        _ => TokenError::Status {
            status,
            retry_after: retry_after(headers, SystemTime::now()),
        },
    }
}

fn is_transient_status(status: StatusCode) -> bool {
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

fn redirect_host(headers: &HeaderMap) -> Option<String> {
    let location = headers.get(header::LOCATION)?.to_str().ok()?;
    let location: Uri = location.parse().ok()?;
    Some(printable(location.host()?))
}

fn content_type(headers: &HeaderMap) -> String {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    printable(value.unwrap_or("none"))
}

/// What a server sent, cut and made safe for one line of a log.
fn printable(text: &str) -> String {
    text.chars()
        .take(200)
        .map(|c| {
            if c == ' ' || c.is_ascii_graphic() {
                c
            } else {
                '?'
            }
        })
        .collect()
}

/// An `error` of RFC 6749 §5.2, from the authorization server itself.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    code: ErrorCode,
    description: Option<String>,
}

/// The error codes that are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    InvalidClient,
    UnauthorizedClient,
    InvalidScope,
    UnsupportedGrantType,
    InvalidRequest,
    /// Any other, cut and made printable.
    Other(String),
}

impl Refusal {
    fn new(status: StatusCode, code: &str, description: Option<String>) -> Self {
        let code = match code {
            "invalid_client" => ErrorCode::InvalidClient,
            "unauthorized_client" => ErrorCode::UnauthorizedClient,
            "invalid_scope" => ErrorCode::InvalidScope,
            "unsupported_grant_type" => ErrorCode::UnsupportedGrantType,
            "invalid_request" => ErrorCode::InvalidRequest,
            other => ErrorCode::Other(printable(other)),
        };
        Self {
            status,
            code,
            description: description.map(|text| printable(&text)),
        }
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::InvalidClient => "invalid_client",
            Self::UnauthorizedClient => "unauthorized_client",
            Self::InvalidScope => "invalid_scope",
            Self::UnsupportedGrantType => "unsupported_grant_type",
            Self::InvalidRequest => "invalid_request",
            Self::Other(code) => code,
        })
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (status {})", self.code, self.status.as_u16())?;
        match &self.description {
            Some(description) => write!(f, ": {description}"),
            None => Ok(()),
        }
    }
}

/// No token, and why. No variant holds any of the answer's body but the sanitized parts of an OAuth error.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("{0}")]
    Secret(#[from] SecretError),
    #[error("{0}")]
    Tls(#[from] TlsError),
    #[error("the authorization server cannot be reached: {0}")]
    Send(#[source] SendError),
    #[error("no answer from the authorization server within {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    #[error("the answer broke off")]
    BrokenOff,
    #[error("an unexpected redirect (status {}) to {}", .status.as_u16(), .host.as_deref().unwrap_or("the same host"))]
    Redirect {
        status: StatusCode,
        host: Option<String>,
    },
    #[error("{0}")]
    Refused(Refusal),
    #[error("status {}", .status.as_u16())]
    Status {
        status: StatusCode,
        retry_after: Option<Duration>,
    },
    #[error("the answer is not a JSON token response (content-type {content_type}, {bytes} bytes)")]
    NotJson { content_type: String, bytes: usize },
    #[error("the answer has {0}")]
    Malformed(&'static str),
    #[error("the answer is larger than 64 KiB")]
    TooLarge,
    #[error("the answer has a content coding that was not asked for")]
    Encoded,
}

impl TokenError {
    /// The label value for metrics.
    pub fn outcome(&self) -> FetchOutcome {
        match self {
            Self::Secret(_) => FetchOutcome::SecretError,
            Self::Tls(_) => FetchOutcome::TlsError,
            Self::Send(error) => match error.fault {
                SendFault::ConnectTimeout | SendFault::Timeout => FetchOutcome::Timeout,
                SendFault::Tls => FetchOutcome::TlsError,
                SendFault::Protocol => FetchOutcome::InvalidResponse,
                SendFault::Dns | SendFault::Connect | SendFault::Reset | SendFault::Downstream => {
                    FetchOutcome::NetworkError
                }
            },
            Self::TimedOut(_) => FetchOutcome::Timeout,
            Self::BrokenOff => FetchOutcome::NetworkError,
            Self::Refused(refusal) => match refusal.code {
                ErrorCode::InvalidClient => FetchOutcome::InvalidClient,
                ErrorCode::UnauthorizedClient => FetchOutcome::UnauthorizedClient,
                ErrorCode::InvalidScope => FetchOutcome::InvalidScope,
                ErrorCode::UnsupportedGrantType
                | ErrorCode::InvalidRequest
                | ErrorCode::Other(_) => FetchOutcome::OtherOauthError,
            },
            Self::Redirect { .. } | Self::Status { .. } => FetchOutcome::HttpError,
            Self::NotJson { .. } | Self::Malformed(_) | Self::TooLarge | Self::Encoded => {
                FetchOutcome::InvalidResponse
            }
        }
    }

    /// Whether the same request cannot be expected to do better soon: the credentials or the request are refused. A
    /// bare 401 or 403 counts as such, because asking often with a wrong secret can lock an account.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Refused(refusal) => !matches!(refusal.code, ErrorCode::Other(_)),
            Self::Status { status, .. } => matches!(status.as_u16(), 401 | 403),
            Self::Secret(_)
            | Self::Tls(_)
            | Self::Send(_)
            | Self::TimedOut(_)
            | Self::BrokenOff
            | Self::Redirect { .. }
            | Self::NotJson { .. }
            | Self::Malformed(_)
            | Self::TooLarge
            | Self::Encoded => false,
        }
    }

    /// How long the authorization server asked us to wait: 1 s to 300 s.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// A short name for one line of a status: the OAuth error code, or the metric label.
    pub fn name(&self) -> String {
        match self {
            Self::Refused(refusal) => refusal.code.to_string(),
            _ => self.outcome().as_str().to_owned(),
        }
    }

    /// What a person can do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Refused(refusal) => match refusal.code {
                ErrorCode::InvalidClient => {
                    "the client id or secret is wrong, or the server wants the other client_auth \
                     (client_secret_basic or client_secret_post), or basic_encoding = \"raw\""
                }
                ErrorCode::UnauthorizedClient => {
                    "this client may not use the client credentials grant; allow it at the authorization server"
                }
                ErrorCode::InvalidScope => "ask only for scopes that this client was given",
                ErrorCode::UnsupportedGrantType => "is token_url really the token endpoint?",
                ErrorCode::InvalidRequest | ErrorCode::Other(_) => return None,
            },
            Self::Status { status, .. } if *status == StatusCode::NOT_FOUND => {
                "is token_url complete? A trailing slash can be part of it"
            }
            Self::Status { status, .. } if matches!(status.as_u16(), 401 | 403) => {
                "the client id or secret is wrong, or something in front of the authorization server refuses us"
            }
            Self::Redirect { .. } => {
                "token requests do not follow redirects; set token_url to the final address, often with a \
                 trailing slash or https"
            }
            Self::NotJson { .. } => {
                "is token_url the token endpoint, and not a web page or a login?"
            }
            Self::Send(error) => match error.fault {
                SendFault::Dns => "the host name of token_url has no address here",
                SendFault::Tls => {
                    "the certificate of the authorization server could not be verified; a private CA needs ca_file"
                }
                SendFault::Connect | SendFault::ConnectTimeout => {
                    "is the authorization server up, and reachable from here?"
                }
                _ => return None,
            },
            Self::Secret(_) => "put the secret there, readable by the user that runs bearerd",
            _ => return None,
        })
    }
}

#[cfg(test)]
#[path = "token_endpoint_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "token_exchange_tests.rs"]
mod exchange_tests;
