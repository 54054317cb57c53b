//! Everything that can go wrong with a request, and what the application is told: the only maker of error answers.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde::Serialize;

use crate::metrics::{Code, SendFault};
use crate::net::body::Body;
use crate::net::client::SendError;
use crate::oauth::Unavailable;

/// `Proxy-Status` (RFC 9209).
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
/// `X-Request-Id`: not a standard, but what everybody looks for.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Why a request was not answered by the upstream.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("{0}")]
    BadRequest(BadRequest),
    #[error("{0}")]
    Forbidden(Forbidden),
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

/// What an answer says; decided once for each code, in [`verdict`].
struct Verdict {
    status: StatusCode,
    /// RFC 9209 §2.3.
    proxy_error: &'static str,
    title: &'static str,
    hint: &'static str,
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
                SendFault::Downstream => Code::BadRequest,
            },
            Self::ResponseTimeout(_) => Code::UpstreamTimeout,
            Self::SurpriseUpgrade | Self::AmbiguousFraming => Code::UpstreamProtocolError,
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
            Self::Overloaded => Some(Duration::from_secs(1)),
            _ => None,
        }
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
            headers.insert(
                header::ALLOW,
                HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
            );
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
        }
    }
}

#[expect(
    clippy::too_many_lines,
    reason = "one table of all answers, with a line for each part"
)]
fn verdict(code: Code) -> Verdict {
    let (status, proxy_error, title, hint) = match code {
        Code::BadRequest => (
            StatusCode::BAD_REQUEST,
            "http_request_error",
            "The request is malformed",
            "Its body broke off or stalled; the upstream got an aborted request.",
        ),
        Code::ForbiddenHost => (
            StatusCode::FORBIDDEN,
            "http_request_denied",
            "The Host is not allowed",
            "Call the sidecar as localhost, 127.0.0.1 or [::1], or list the name in [proxy] allowed_hosts.",
        ),
        Code::ForbiddenOrigin => (
            StatusCode::FORBIDDEN,
            "http_request_denied",
            "The request comes from a web page of another origin",
            "Browsers may use this sidecar only from origins listed in [proxy] allowed_origins.",
        ),
        Code::MissingHeader => (
            StatusCode::FORBIDDEN,
            "http_request_denied",
            "A required header is missing",
            "Send the header that [proxy] require_header names, with its value.",
        ),
        Code::ForbiddenPeer => (
            StatusCode::FORBIDDEN,
            "http_request_denied",
            "The peer is not on this machine",
            "This sidecar listens on a loopback address and serves its own machine alone.",
        ),
        Code::MethodNotAllowed => (
            StatusCode::METHOD_NOT_ALLOWED,
            "http_request_denied",
            "The method is not allowed",
            "CONNECT, TRACE and TRACK are never forwarded with a credential.",
        ),
        Code::BodyTooLarge => (
            StatusCode::PAYLOAD_TOO_LARGE,
            "http_request_error",
            "The request body is too large",
            "The limit is [proxy] max_body_bytes.",
        ),
        Code::ExpectationFailed => (
            StatusCode::EXPECTATION_FAILED,
            "http_request_error",
            "The expectation cannot be met",
            "The only expectation known is 100-continue.",
        ),
        Code::UnsupportedTransferCoding => (
            StatusCode::NOT_IMPLEMENTED,
            "http_request_error",
            "The transfer coding is not supported",
            "Send the body chunked or with a Content-Length, and name compression in Content-Encoding.",
        ),
        Code::InternalError => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "proxy_internal_error",
            "The sidecar failed",
            "This is a defect of bearerd; its log has more.",
        ),
        Code::LoopDetected => (
            StatusCode::LOOP_DETECTED,
            "proxy_loop_detected",
            "The request has passed a sidecar before",
            "The upstream url leads back to a bearerd; check [upstream] url.",
        ),
        Code::UpstreamUnreachable => (
            StatusCode::BAD_GATEWAY,
            "connection_refused",
            "The upstream cannot be reached",
            "Nothing was sent. Check [upstream] url, and that the API is up.",
        ),
        Code::UpstreamDnsError => (
            StatusCode::BAD_GATEWAY,
            "dns_error",
            "The upstream's name has no address",
            "Nothing was sent. Check [upstream] url and the DNS of this machine.",
        ),
        Code::UpstreamTlsError => (
            StatusCode::BAD_GATEWAY,
            "tls_protocol_error",
            "There is no TLS session with the upstream",
            "Nothing was sent. A private CA needs [upstream] ca_file; the log says what did not verify.",
        ),
        Code::UpstreamReset => (
            StatusCode::BAD_GATEWAY,
            "connection_terminated",
            "The upstream closed the connection without an answer",
            "It may have acted on the request, so it was not sent again.",
        ),
        Code::UpstreamProtocolError => (
            StatusCode::BAD_GATEWAY,
            "http_protocol_error",
            "The upstream's answer is not valid",
            "It may have acted on the request, so it was not sent again.",
        ),
        Code::TokenUnavailable => (
            StatusCode::SERVICE_UNAVAILABLE,
            "proxy_internal_error",
            "There is no usable access token",
            "The authorization server gives none at present; this recovers by itself. GET /readyz?verbose on the \
             admin port says why.",
        ),
        Code::Overloaded => (
            StatusCode::SERVICE_UNAVAILABLE,
            "connection_limit_reached",
            "Too many requests at once",
            "Try again later. The limits are [proxy] max_connections and max_in_flight.",
        ),
        Code::Draining => (
            StatusCode::SERVICE_UNAVAILABLE,
            "destination_unavailable",
            "The sidecar is stopping",
            "Try again; it is about to be replaced.",
        ),
        Code::UpstreamConnectTimeout => (
            StatusCode::GATEWAY_TIMEOUT,
            "connection_timeout",
            "Connecting to the upstream took too long",
            "Nothing was sent. The limit is [upstream] connect_timeout.",
        ),
        Code::UpstreamTimeout => (
            StatusCode::GATEWAY_TIMEOUT,
            "http_response_timeout",
            "The upstream did not answer in time",
            "It may have acted on the request. The limit is [upstream] response_timeout.",
        ),
    };
    Verdict {
        status,
        proxy_error,
        title,
        hint,
    }
}

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

fn problem(code: Code, verdict: &Verdict, request_id: &str) -> Bytes {
    #[derive(Serialize)]
    struct Problem<'a> {
        r#type: String,
        title: &'a str,
        status: u16,
        detail: &'a str,
        code: &'a str,
        hint: &'a str,
        request_id: &'a str,
    }
    let problem = Problem {
        r#type: format!("urn:bearerd:problem:{}", code.as_str()),
        title: verdict.title,
        status: verdict.status.as_u16(),
        detail: "This answer is from bearerd, not from the API behind it.",
        code: code.as_str(),
        hint: verdict.hint,
        request_id,
    };
    serde_json::to_vec(&problem)
        .map(Bytes::from)
        .unwrap_or_default()
}

/// A whole response for a connection that there is no room for; written without HTTP machinery.
pub fn connection_refusal() -> Bytes {
    let verdict = verdict(Code::Overloaded);
    let body = problem(Code::Overloaded, &verdict, "");
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\ncache-control: no-store\r\n\
         proxy-status: bearerd; error={}\r\nretry-after: 1\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        verdict.proxy_error,
        body.len()
    );
    [head.as_bytes(), &body].concat().into()
}
