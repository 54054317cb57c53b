//! What an answer of our own says, for each code there is.

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use serde::Serialize;

use crate::metrics::Code;

/// What an answer says; decided once for each code, in [`verdict`].
pub(super) struct Verdict {
    pub(super) status: StatusCode,
    /// RFC 9209 §2.3.
    pub(super) proxy_error: &'static str,
    pub(super) title: &'static str,
    pub(super) hint: &'static str,
}

#[expect(
    clippy::too_many_lines,
    reason = "one table of all answers, with a line for each part"
)]
pub(super) fn verdict(code: Code) -> Verdict {
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
        Code::ForbiddenPath => (
            StatusCode::BAD_REQUEST,
            "http_request_error",
            "The path is not allowed",
            "Several routes are told apart by path, so it must not contain dot segments, empty segments, \\, ;, control \
             bytes, or escapes that hide any of them or another route.",
        ),
        Code::NoRoute => (
            StatusCode::NOT_FOUND,
            "destination_not_found",
            "There is no route",
            "No [[route]] covers this path and method.",
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
            "Nothing was sent. Check [upstream] url and proxy_url, and that the API is up.",
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
            "The upstream has not seen the request. A private CA needs [upstream] ca_file; the log says what is wrong.",
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

pub(super) const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// The document (RFC 9457); empty if it cannot be written, which it always can.
pub(super) fn problem(code: Code, verdict: &Verdict, request_id: &str) -> Bytes {
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
