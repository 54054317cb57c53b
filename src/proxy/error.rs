//! Everything that can go wrong with a request, and what the application is told: the only maker of error answers.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Response, StatusCode, header};

use super::problem::{PROBLEM_JSON, Verdict, problem, verdict};
use crate::metrics::{Code, SendFault};
use crate::net::body::Body;
use crate::net::send_error::SendError;
use crate::oauth::Unavailable;

/// `Proxy-Status` (RFC 9209).
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
/// `X-Request-Id`: not a standard, but what everybody looks for.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// `Allow` (RFC 9110 §10.2.1): what the sidecar takes. The upstream may know more methods, or fewer.
pub const ALLOWED_METHODS: HeaderValue =
    HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

/// Why a request was not answered by the upstream.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("{0}")]
    BadRequest(BadRequest),
    #[error("{0}")]
    Forbidden(Forbidden),
    #[error("a path that could mean more than one thing")]
    ForbiddenPath,
    #[error("no route for this path and method")]
    NoRoute,
    #[error("method not allowed")]
    MethodNotAllowed,
    #[error("body larger than {0} bytes")]
    BodyTooLarge(u64),
    #[error("Expect with something other than 100-continue")]
    ExpectationFailed,
    #[error("a transfer coding other than chunked")]
    UnsupportedTransferCoding,
    #[error("the request has been here before")]
    LoopDetected,
    #[error("too many requests in flight")]
    Overloaded,
    #[error("{0}")]
    Token(#[from] Unavailable),
    #[error("{0}")]
    Send(#[from] SendError),
    #[error("no response head from the upstream within {} s", .0.as_secs_f64())]
    ResponseTimeout(Duration),
    #[error("the upstream switched protocols, which nobody asked for")]
    SurpriseUpgrade,
    #[error("the upstream asked for a proxy's credentials")]
    ProxyChallenge,
    #[error("no new tunnels while draining")]
    Draining,
    #[error("the upstream's answer has a framing that can be read in two ways")]
    AmbiguousFraming,
    #[error("a handler panicked")]
    Panicked,
}

/// A request that no server should take.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadRequest {
    #[error("not exactly one valid Host field")]
    Host,
    #[error("a request target that is neither a path nor an address of the upstream")]
    Target,
    #[error("Transfer-Encoding that does not end in one chunked")]
    TransferEncoding,
    #[error("a Connection field with more than 64 options")]
    Connection,
    #[error("a Connection field that names Idempotency-Key")]
    ConnectionNamesKey,
    #[error("a field value that begins or ends with white space")]
    OuterWhitespace,
}

/// A request of somebody who may not use the credential.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Forbidden {
    #[error("the Host is not one that this sidecar answers for")]
    Host,
    #[error("the request comes from a web page of another origin")]
    Origin,
    #[error("the required header is missing")]
    Header,
    #[error("the peer is not on this machine")]
    Peer,
}

impl ProxyError {
    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.verdict().status
    }

    /// The `code` member of the answer, and the reason in the metrics.
    pub fn code(&self) -> Code {
        match self {
            Self::BadRequest(_) => Code::BadRequest,
            Self::Forbidden(Forbidden::Host) => Code::ForbiddenHost,
            Self::Forbidden(Forbidden::Origin) => Code::ForbiddenOrigin,
            Self::Forbidden(Forbidden::Header) => Code::MissingHeader,
            Self::Forbidden(Forbidden::Peer) => Code::ForbiddenPeer,
            Self::ForbiddenPath => Code::ForbiddenPath,
            Self::NoRoute => Code::NoRoute,
            Self::MethodNotAllowed => Code::MethodNotAllowed,
            Self::BodyTooLarge(_) => Code::BodyTooLarge,
            Self::ExpectationFailed => Code::ExpectationFailed,
            Self::UnsupportedTransferCoding => Code::UnsupportedTransferCoding,
            Self::LoopDetected => Code::LoopDetected,
            Self::Overloaded => Code::Overloaded,
            Self::Token(_) => Code::TokenUnavailable,
            Self::Send(error) if error.body_too_large => Code::BodyTooLarge,
            Self::Send(error) => match error.fault {
                SendFault::Dns => Code::UpstreamDnsError,
                SendFault::Connect => Code::UpstreamUnreachable,
                SendFault::ConnectTimeout => Code::UpstreamConnectTimeout,
                SendFault::Tls => Code::UpstreamTlsError,
                SendFault::Reset => Code::UpstreamReset,
                SendFault::Timeout => Code::UpstreamTimeout,
                SendFault::Protocol => Code::UpstreamProtocolError,
                SendFault::Exhausted => Code::Overloaded,
                SendFault::Downstream => Code::BadRequest,
            },
            Self::ResponseTimeout(_) => Code::UpstreamTimeout,
            Self::SurpriseUpgrade | Self::AmbiguousFraming | Self::ProxyChallenge => {
                Code::UpstreamProtocolError
            }
            Self::Draining => Code::Draining,
            Self::Panicked => Code::InternalError,
        }
    }

    /// The verdict on the code, with what this very error says better.
    fn verdict(&self) -> Verdict {
        let verdict = verdict(self.code());
        match self {
            Self::BadRequest(reason) => Verdict {
                hint: reason.hint(),
                ..verdict
            },
            Self::Token(unavailable) if unavailable.permanent => Verdict {
                proxy_error: "proxy_configuration_error",
                hint: "The authorization server refuses the client credentials or the request. Run bearerd check \
                       --online.",
                ..verdict
            },
            _ => verdict,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Token(unavailable) => Some(unavailable.retry_after),
            Self::Overloaded | Self::Draining => Some(Duration::from_secs(1)),
            Self::Send(error) if error.fault == SendFault::Exhausted => {
                Some(Duration::from_secs(1))
            }
            _ => None,
        }
    }

    /// Whether the connection ends with the answer: the next bytes may not be what they seem, or be the rest of a body,
    /// or be meant for a tunnel (RFC 9112 §9.6 and §11.2).
    pub fn ends_the_connection(&self) -> bool {
        matches!(
            self.code(),
            Code::BadRequest
                | Code::UnsupportedTransferCoding
                | Code::BodyTooLarge
                | Code::MethodNotAllowed
        )
    }

    /// The answer: a problem document (RFC 9457) that reflects nothing of the request but the id, and tells nothing of
    /// the upstream, the authorization server or the secret.
    pub fn into_response(self, request_id: &HeaderValue) -> Response<Body> {
        let verdict = self.verdict();
        let problem = problem(
            self.code(),
            &verdict,
            request_id.to_str().unwrap_or_default(),
        );
        let mut response = Response::new(Body::full(problem));
        *response.status_mut() = verdict.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, PROBLEM_JSON);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_REQUEST_ID, request_id.clone());
        if let Ok(status) =
            HeaderValue::from_str(&format!("bearerd; error={}", verdict.proxy_error))
        {
            headers.insert(PROXY_STATUS, status);
        }
        if let Some(wait) = self.retry_after() {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if matches!(self, Self::MethodNotAllowed) {
            headers.insert(header::ALLOW, ALLOWED_METHODS);
        }
        response
    }
}

impl BadRequest {
    fn hint(self) -> &'static str {
        match self {
            Self::Host => {
                "Send exactly one Host field that names this sidecar, such as 127.0.0.1:8080."
            }
            Self::Target => "Send the path of the API alone, such as GET /payments/ HTTP/1.1.",
            Self::TransferEncoding => "Send one Transfer-Encoding: chunked, or a Content-Length.",
            Self::Connection => "Send fewer options in Connection.",
            Self::ConnectionNamesKey => {
                "A field named in Connection goes no further; without its key the request could be paid twice."
            }
            Self::OuterWhitespace => "Send field values without white space around them.",
        }
    }
}
