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

/// What an answer says about one error: decided once, in [`ProxyError::verdict`].
struct Verdict {
    status: StatusCode,
    code: Code,
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
        self.verdict().code
    }

    fn verdict(&self) -> Verdict {
        let verdict = |status, code, proxy_error, title, hint| Verdict {
            status,
            code,
            proxy_error,
            title,
            hint,
        };
        match self {
            Self::BadRequest(reason) => verdict(
                StatusCode::BAD_REQUEST,
                Code::BadRequest,
                "http_request_error",
                "The request is malformed",
                match reason {
                    BadRequest::Host => {
                        "Send exactly one Host field that names this sidecar, such as 127.0.0.1:8080."
                    }
                    BadRequest::Target => {
                        "Send the path of the API alone, such as GET /payments/ HTTP/1.1."
                    }
                    BadRequest::TransferEncoding => {
                        "Send one Transfer-Encoding: chunked, or a Content-Length."
                    }
                    BadRequest::Connection => "Send fewer options in Connection.",
                },
            ),
            Self::Forbidden(Forbidden::Host) => verdict(
                StatusCode::FORBIDDEN,
                Code::ForbiddenHost,
                "http_request_denied",
                "The Host is not allowed",
                "Call the sidecar as localhost, 127.0.0.1 or [::1], or list the name in [proxy] allowed_hosts.",
            ),
            Self::Forbidden(Forbidden::Origin) => verdict(
                StatusCode::FORBIDDEN,
                Code::ForbiddenOrigin,
                "http_request_denied",
                "The request comes from a web page of another origin",
                "Browsers may use this sidecar only from origins listed in [proxy] allowed_origins.",
            ),
            Self::Forbidden(Forbidden::Header) => verdict(
                StatusCode::FORBIDDEN,
                Code::MissingHeader,
                "http_request_denied",
                "A required header is missing",
                "Send the header that [proxy] require_header names, with its value.",
            ),
            Self::Forbidden(Forbidden::Peer) => verdict(
                StatusCode::FORBIDDEN,
                Code::ForbiddenPeer,
                "http_request_denied",
                "The peer is not on this machine",
                "This sidecar listens on a loopback address and serves its own machine alone.",
            ),
            Self::MethodNotAllowed => verdict(
                StatusCode::METHOD_NOT_ALLOWED,
                Code::MethodNotAllowed,
                "http_request_denied",
                "The method is not allowed",
                "CONNECT, TRACE and TRACK are never forwarded with a credential.",
            ),
            Self::BodyTooLarge(_) => verdict(
                StatusCode::PAYLOAD_TOO_LARGE,
                Code::BodyTooLarge,
                "http_request_error",
                "The request body is too large",
                "The limit is [proxy] max_body_bytes.",
            ),
            Self::ExpectationFailed => verdict(
                StatusCode::EXPECTATION_FAILED,
                Code::ExpectationFailed,
                "http_request_error",
                "The expectation cannot be met",
                "The only expectation known is 100-continue.",
            ),
            Self::UnsupportedTransferCoding => verdict(
                StatusCode::NOT_IMPLEMENTED,
                Code::UnsupportedTransferCoding,
                "http_request_error",
                "The transfer coding is not supported",
                "Send the body chunked or with a Content-Length, and name compression in Content-Encoding.",
            ),
            Self::LoopDetected => verdict(
                StatusCode::LOOP_DETECTED,
                Code::LoopDetected,
                "proxy_loop_detected",
                "The request has passed a sidecar before",
                "The upstream url leads back to a bearerd; check [upstream] url.",
            ),
            Self::Overloaded => verdict(
                StatusCode::SERVICE_UNAVAILABLE,
                Code::Overloaded,
                "connection_limit_reached",
                "Too many requests at once",
                "Try again later. The limits are [proxy] max_connections and max_in_flight.",
            ),
            Self::Token(unavailable) if unavailable.permanent => verdict(
                StatusCode::SERVICE_UNAVAILABLE,
                Code::TokenUnavailable,
                "proxy_configuration_error",
                "There is no usable access token",
                "The authorization server refuses the client credentials or the request. Run bearerd check --online.",
            ),
            Self::Token(_) => verdict(
                StatusCode::SERVICE_UNAVAILABLE,
                Code::TokenUnavailable,
                "proxy_internal_error",
                "There is no usable access token",
                "The authorization server gives none at present; this recovers by itself. GET /readyz?verbose on the \
                 admin port says why.",
            ),
            Self::Send(error) => return send_verdict(error),
            Self::ResponseTimeout(_) => verdict(
                StatusCode::GATEWAY_TIMEOUT,
                Code::UpstreamTimeout,
                "http_response_timeout",
                "The upstream did not answer in time",
                "It may have acted on the request. The limit is [upstream] response_timeout.",
            ),
            Self::SurpriseUpgrade => verdict(
                StatusCode::BAD_GATEWAY,
                Code::UpstreamProtocolError,
                "http_upgrade_failed",
                "The upstream's answer is not valid",
                "It switched protocols although it was not asked to.",
            ),
            Self::Panicked => verdict(
                StatusCode::INTERNAL_SERVER_ERROR,
                Code::InternalError,
                "proxy_internal_error",
                "The sidecar failed",
                "This is a defect of bearerd; its log has more.",
            ),
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
        let problem = problem(&verdict, request_id.to_str().unwrap_or_default());
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

fn send_verdict(error: &SendError) -> Verdict {
    if error.body_too_large {
        return ProxyError::BodyTooLarge(0).verdict();
    }
    let verdict = |status, code, title, hint| Verdict {
        status,
        code,
        proxy_error: error.fault.as_str(),
        title,
        hint,
    };
    match error.fault {
        SendFault::Dns => verdict(
            StatusCode::BAD_GATEWAY,
            Code::UpstreamDnsError,
            "The upstream's name has no address",
            "Nothing was sent. Check [upstream] url and the DNS of this machine.",
        ),
        SendFault::Connect => verdict(
            StatusCode::BAD_GATEWAY,
            Code::UpstreamUnreachable,
            "The upstream cannot be reached",
            "Nothing was sent. Check [upstream] url, and that the API is up.",
        ),
        SendFault::Tls => verdict(
            StatusCode::BAD_GATEWAY,
            Code::UpstreamTlsError,
            "No TLS session with the upstream",
            "Nothing was sent. A private CA needs [upstream] ca_file; the log says what did not verify.",
        ),
        SendFault::ConnectTimeout => verdict(
            StatusCode::GATEWAY_TIMEOUT,
            Code::UpstreamConnectTimeout,
            "Connecting to the upstream took too long",
            "Nothing was sent. The limit is [upstream] connect_timeout.",
        ),
        SendFault::Timeout => verdict(
            StatusCode::GATEWAY_TIMEOUT,
            Code::UpstreamTimeout,
            "The upstream did not answer in time",
            "It may have acted on the request. The limit is [upstream] response_timeout.",
        ),
        SendFault::Reset => verdict(
            StatusCode::BAD_GATEWAY,
            Code::UpstreamReset,
            "The upstream closed the connection without an answer",
            "It may have acted on the request, so it was not sent again.",
        ),
        SendFault::Protocol => verdict(
            StatusCode::BAD_GATEWAY,
            Code::UpstreamProtocolError,
            "The upstream's answer is not valid",
            "It may have acted on the request, so it was not sent again.",
        ),
        SendFault::Downstream => Verdict {
            proxy_error: "http_request_error",
            ..verdict(
                StatusCode::BAD_REQUEST,
                Code::BadRequest,
                "The request body broke off",
                "The upstream got an aborted request.",
            )
        },
    }
}

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

fn problem(verdict: &Verdict, request_id: &str) -> Bytes {
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
        r#type: format!("urn:bearerd:problem:{}", verdict.code.as_str()),
        title: verdict.title,
        status: verdict.status.as_u16(),
        detail: "This answer is from bearerd, not from the API behind it.",
        code: verdict.code.as_str(),
        hint: verdict.hint,
        request_id,
    };
    serde_json::to_vec(&problem)
        .map(Bytes::from)
        .unwrap_or_default()
}

/// A whole response for a connection that there is no room for; written without HTTP machinery.
pub fn connection_refusal() -> Bytes {
    let verdict = ProxyError::Overloaded.verdict();
    let body = problem(&verdict, "");
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\ncache-control: no-store\r\n\
         proxy-status: bearerd; error={}\r\nretry-after: 1\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        verdict.proxy_error,
        body.len()
    );
    [head.as_bytes(), &body].concat().into()
}
