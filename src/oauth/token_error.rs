//! Why there is no token: what it means for the next attempt, and what a person can do.

use std::time::Duration;

use http::StatusCode;

use super::client_assertion::AssertionError;
use super::metadata::MetadataError;
use crate::metrics::{FetchOutcome, SendFault};
use crate::net::send_error::SendError;
use crate::net::tls::TlsError;
use crate::secret::SecretError;

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
    pub(super) fn new(status: StatusCode, code: &str, description: Option<String>) -> Self {
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

/// Where a redirect leads, as far as a person needs it.
#[derive(Debug, thiserror::Error)]
pub enum RedirectTarget {
    #[error("{0}")]
    Host(String),
    #[error("https at the same host")]
    Https,
    #[error("the same address with a slash at its end")]
    TrailingSlash,
    #[error("the same host")]
    SameHost,
}

/// No token, and why. No variant holds any of the answer's body but the sanitized parts of an OAuth error.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("{0}")]
    Secret(#[from] SecretError),
    #[error("{0}")]
    Assertion(#[from] AssertionError),
    #[error("{0}")]
    Tls(#[from] TlsError),
    #[error("metadata of the authorization server: {0}")]
    Metadata(MetadataError),
    #[error("no revocation endpoint is known")]
    NoRevocationEndpoint,
    #[error("the authorization server cannot be reached: {0}")]
    Send(#[source] SendError),
    #[error("no answer from the authorization server within {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    #[error("the answer broke off")]
    BrokenOff,
    #[error("an unexpected redirect (status {}) to {target}", .status.as_u16())]
    Redirect {
        status: StatusCode,
        target: RedirectTarget,
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
    /// With `on_scope_downgrade = "fail"`.
    #[error("the token lacks what was asked for: scope {0}")]
    ScopeDowngrade(String),
}

impl TokenError {
    /// The label value for metrics.
    pub fn outcome(&self) -> FetchOutcome {
        match self {
            Self::Secret(_) | Self::Assertion(_) => FetchOutcome::SecretError,
            Self::Metadata(MetadataError::Unread(error)) => error.outcome(),
            Self::Metadata(MetadataError::Nothing(_)) | Self::NoRevocationEndpoint => {
                FetchOutcome::HttpError
            }
            Self::Tls(_) => FetchOutcome::TlsError,
            Self::Send(error) => match error.fault {
                SendFault::ConnectTimeout | SendFault::Timeout => FetchOutcome::Timeout,
                SendFault::Tls => FetchOutcome::TlsError,
                SendFault::Protocol => FetchOutcome::InvalidResponse,
                SendFault::Dns
                | SendFault::Connect
                | SendFault::Reset
                | SendFault::Exhausted
                | SendFault::Downstream => FetchOutcome::NetworkError,
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
            Self::NotJson { .. }
            | Self::Malformed(_)
            | Self::TooLarge
            | Self::Encoded
            | Self::Metadata(_) => FetchOutcome::InvalidResponse,
            Self::ScopeDowngrade(_) => FetchOutcome::InvalidScope,
        }
    }

    /// Whether the same request cannot be expected to do better soon: the credentials or the request are refused. A
    /// bare 401 or 403 counts as such, because asking often with a wrong secret can lock an account.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Refused(refusal) => !matches!(refusal.code, ErrorCode::Other(_)),
            Self::Status { status, .. } => matches!(status.as_u16(), 401 | 403),
            // Whoever answers so will answer so again.
            Self::ScopeDowngrade(_) => true,
            Self::Secret(_)
            | Self::Assertion(_)
            | Self::Metadata(_)
            | Self::NoRevocationEndpoint
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

    /// Whether it is the credentials that are refused, or of no use, so that others may do better. Some servers say so with
    /// the status 401 and a code of their own choice.
    pub fn refuses_credentials(&self) -> bool {
        match self {
            Self::Assertion(_) => true,
            Self::Refused(refusal) => {
                refusal.code == ErrorCode::InvalidClient
                    || refusal.status == StatusCode::UNAUTHORIZED
            }
            Self::Status { status, .. } => *status == StatusCode::UNAUTHORIZED,
            _ => false,
        }
    }

    /// Whether the endpoint may have moved: nobody is there, or somebody who knows nothing of tokens.
    pub(super) fn suggests_a_move(&self) -> bool {
        match self {
            Self::Send(error) => matches!(
                error.fault,
                SendFault::Dns | SendFault::Connect | SendFault::ConnectTimeout
            ),
            Self::Status { status, .. } => matches!(status.as_u16(), 404 | 405 | 410),
            Self::Refused(refusal) => matches!(refusal.status.as_u16(), 404 | 405 | 410),
            Self::Redirect { .. } => true,
            _ => false,
        }
    }

    /// How long the authorization server asked us to wait: 1 s to 300 s.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            Self::Metadata(MetadataError::Unread(error)) => error.retry_after(),
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
                    "the server does not know the client by this: compare client_id and secret, key (key_id) or \
                     certificate with what is registered there; or it wants another client_auth, or \
                     basic_encoding = \"raw\""
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
                "the client id or its secret is wrong, or something in front of the authorization server refuses us"
            }
            Self::Redirect {
                target: RedirectTarget::TrailingSlash,
                ..
            } => "add the slash at the end of token_url",
            Self::Redirect {
                target: RedirectTarget::Https,
                ..
            } => "use https in token_url",
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
                    "there is no TLS session with the authorization server; a private CA needs ca_file, and a server \
                     that wants a certificate of ours client_cert_file"
                }
                SendFault::Connect | SendFault::ConnectTimeout => {
                    "is the authorization server up, and reachable from here?"
                }
                _ => return None,
            },
            Self::Assertion(error) => error.hint(),
            Self::Metadata(error) => return error.hint(),
            Self::NoRevocationEndpoint => "set revoke_url",
            Self::ScopeDowngrade(_) => {
                "let the authorization server grant it to this client, ask for less, or set \
                 on_scope_downgrade = \"warn\""
            }
            Self::Secret(_) => "put the secret there, readable by the user that runs bearerd",
            _ => return None,
        })
    }
}

/// What a server sent, cut and made safe for one line of a log.
pub(super) fn printable(text: &str) -> String {
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
