//! What must not cross a hop, in either direction (RFC 9110 §7.6.1), and how a body is framed on the other side.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};

use super::error::{BadRequest, ProxyError};

/// Connection-specific fields, whether a `Connection` line names them or not. Framing is among them: it is made anew
/// from the decoded body.
fn is_of_the_connection(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
            | "proxy-authenticate"
            | "content-length"
    )
}

/// Credentials and claims of the application that are not ours to pass on: the upstream must see our credential alone,
/// nobody verified the others, and the last two make some servers act on another path than the one we saw.
/// `X-HTTP-Method-Override` is not among them: without it a PATCH that the application means would be carried out as the
/// POST that it came in.
fn is_of_the_application(name: &str) -> bool {
    matches!(
        name,
        "authorization"
            | "proxy-authorization"
            | "host"
            | "expect"
            | "forwarded"
            | "x-real-ip"
            | "x-original-url"
            | "x-rewrite-url"
    )
}

/// Must not reach the application: what is between us and the upstream, and ways around us (RFC 7838).
fn is_of_the_upstream(name: &str) -> bool {
    matches!(name, "authorization" | "proxy-authorization" | "alt-svc")
}

/// By which the upstream knows a request again (draft-ietf-httpapi-idempotency-key-header).
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// More options in `Connection` than any honest peer sends.
const MAX_CONNECTION_OPTIONS: usize = 64;

/// How the body of a request is framed towards the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// By what the body knows of itself: an exact length, or nothing for an empty body.
    Natural,
    /// `Content-Length: 0`, because the application said so (RFC 9110 §8.6).
    ExplicitlyEmpty,
    /// Chunked, because the application did: hyper would drop the body of a GET otherwise.
    Chunked,
}

impl Framing {
    /// Reads the application's framing, and refuses codings that would go on without their label.
    ///
    /// # Errors
    /// 501 for a coding besides chunked, 400 for chunked twice or not last (RFC 9112 §6.1).
    pub fn of_request(headers: &HeaderMap) -> Result<Self, ProxyError> {
        match codings(headers) {
            None if headers.get(header::CONTENT_LENGTH).is_some_and(is_zero) => {
                Ok(Self::ExplicitlyEmpty)
            }
            None => Ok(Self::Natural),
            Some((1, false)) => Ok(Self::Chunked),
            Some((_, true)) => Err(ProxyError::UnsupportedTransferCoding),
            Some((_, false)) => Err(ProxyError::BadRequest(BadRequest::TransferEncoding)),
        }
    }

    /// Writes it; to be called after [`strip_request`].
    pub fn apply(self, headers: &mut HeaderMap) {
        match self {
            Self::Natural => {}
            Self::ExplicitlyEmpty => {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
            }
            Self::Chunked => {
                headers.insert(
                    header::TRANSFER_ENCODING,
                    HeaderValue::from_static("chunked"),
                );
            }
        }
    }
}

/// How often `Transfer-Encoding` says chunked, and whether it says anything else; `None` if there is no such field.
fn codings(headers: &HeaderMap) -> Option<(usize, bool)> {
    let mut found = None;
    for line in headers.get_all(header::TRANSFER_ENCODING) {
        let (chunked, other) = found.get_or_insert((0, false));
        for coding in line.as_bytes().split(|byte| *byte == b',') {
            match coding.trim_ascii() {
                b"" => {}
                coding if coding.eq_ignore_ascii_case(b"chunked") => *chunked += 1,
                _ => *other = true,
            }
        }
    }
    found
}

/// Whether a response has one framing that both sides read alike. hyper decodes one chunked and no more, so the body of
/// any other coding would go on without its label; and a length beside it invites to read another answer into the body
/// (RFC 9112 §6.3).
pub fn response_framing_is_sound(headers: &HeaderMap) -> bool {
    match codings(headers) {
        None | Some((0, false)) => true,
        Some((1, false)) => !headers.contains_key(header::CONTENT_LENGTH),
        _ => false,
    }
}

fn is_zero(length: &HeaderValue) -> bool {
    !length.is_empty() && length.as_bytes().iter().all(|digit| *digit == b'0')
}

/// In HTTP/2 white space around a value is malformed (RFC 9113 §8.2.1), and hyper lets it pass. In HTTP/1.1 it is no part
/// of the value, and is gone.
///
/// # Errors
/// Where there is any.
pub fn refuse_outer_whitespace(headers: &HeaderMap, version: Version) -> Result<(), ProxyError> {
    let is_padded = |value: &HeaderValue| value.as_bytes().trim_ascii().len() < value.len();
    if version == Version::HTTP_2 && headers.values().any(is_padded) {
        return Err(ProxyError::BadRequest(BadRequest::OuterWhitespace));
    }
    Ok(())
}

/// Removes from a request what must not reach the upstream: everything that any `Connection` line names, the
/// connection-specific fields, credentials and claims that are not ours, and names with `_`, which some servers read
/// as `-`.
///
/// # Errors
/// A `Connection` with more than 64 options, or one that would take the `Idempotency-Key` away, on which it depends
/// whether a payment is made twice.
pub fn strip_request(headers: &mut HeaderMap) -> Result<(), ProxyError> {
    if headers.contains_key(header::CONNECTION) {
        let has_key = headers.contains_key(IDEMPOTENCY_KEY);
        strip_named(headers)?;
        if has_key && !headers.contains_key(IDEMPOTENCY_KEY) {
            return Err(ProxyError::BadRequest(BadRequest::ConnectionNamesKey));
        }
    }
    remove_where(headers, |name| {
        is_of_the_connection(name) || is_of_the_application(name) || is_unclear(name)
    });
    Ok(())
}

/// A name that some servers read as another, or a claim about the request's way that nobody verified.
fn is_unclear(name: &str) -> bool {
    name.as_bytes().contains(&b'_') || name.starts_with("x-forwarded-")
}

/// Removes from a response what must not reach the application. A `Content-Length` stays only where it describes a
/// body that is not sent: as the answer to HEAD, and in a 304 (RFC 9110 §8.6).
pub fn strip_response(headers: &mut HeaderMap, method: &Method, status: StatusCode) {
    let describes = method == Method::HEAD || status == StatusCode::NOT_MODIFIED;
    let length = describes.then(|| headers.get(header::CONTENT_LENGTH).cloned());
    // Too many options are no reason to refuse an answer that the upstream has acted for; the known fields go anyway.
    let _ = strip_named(headers);
    remove_where(headers, |name| {
        is_of_the_connection(name) || is_of_the_upstream(name)
    });
    if let Some(length) = length.flatten() {
        headers.insert(header::CONTENT_LENGTH, length);
    }
}

/// Removes from trailers what must not be taken for part of a head (RFC 9110 §6.5.1).
pub fn strip_trailers(trailers: &mut HeaderMap) {
    let is_of_a_head = |name: &str| {
        matches!(
            name,
            "content-type" | "content-encoding" | "content-range" | "cookie" | "set-cookie" | "via"
        )
    };
    remove_where(trailers, |name| {
        is_of_the_connection(name)
            || is_of_the_application(name)
            || is_of_the_upstream(name)
            || is_of_a_head(name)
            || is_unclear(name)
    });
}

/// Whether the application can take trailers (RFC 9110 §10.1.4), and speaks a version that carries them safely.
pub fn takes_trailers(headers: &HeaderMap, version: Version) -> bool {
    version == Version::HTTP_2
        && headers
            .get(header::TE)
            .is_some_and(|te| te.as_bytes() == b"trailers")
}

/// HTTP/2 may split `Cookie` into many fields, for its compression; nothing else may (RFC 9113 §8.2.3). Empty ones would
/// leave a space at an end, which HTTP/2 forbids (RFC 9113 §8.2.1).
pub fn join_cookies(headers: &mut HeaderMap) {
    let cookies = headers.get_all(header::COOKIE);
    if cookies.iter().nth(1).is_none() {
        return;
    }
    let cookies = cookies.iter().map(HeaderValue::as_bytes);
    let cookies: Vec<&[u8]> = cookies.filter(|cookie| !cookie.is_empty()).collect();
    let joined = Bytes::from(cookies.join(&b"; "[..]));
    if let Ok(joined) = HeaderValue::from_maybe_shared(joined) {
        headers.insert(header::COOKIE, joined);
    }
}

/// Counts `Max-Forwards` down (RFC 9110 §7.6.2). `false` when the request goes no further than to us. Only OPTIONS has a
/// meaning for it here: TRACE is refused.
pub fn may_be_forwarded(method: &Method, headers: &mut HeaderMap) -> bool {
    if method != Method::OPTIONS {
        return true;
    }
    let left = headers
        .get(header::MAX_FORWARDS)
        .and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
    match left {
        Some(0) => false,
        Some(left) => {
            headers.insert(header::MAX_FORWARDS, HeaderValue::from(left - 1));
            true
        }
        None => true,
    }
}

/// Removes every field that any `Connection` line names, in one pass over all lines.
fn strip_named(headers: &mut HeaderMap) -> Result<(), ProxyError> {
    let mut named = Vec::new();
    for option in headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
    {
        // What is not a field name cannot name a field.
        let Ok(name) = HeaderName::from_bytes(option.trim_ascii()) else {
            continue;
        };
        if named.len() == MAX_CONNECTION_OPTIONS {
            return Err(ProxyError::BadRequest(BadRequest::Connection));
        }
        named.push(name);
    }
    for name in named {
        headers.remove(name);
    }
    Ok(())
}

/// Removes the fields whose names are `unwanted`. A message has few fields: looking through them costs a fraction of
/// looking up every name that could be there.
fn remove_where(headers: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) {
    let names = headers.keys().filter(|name| unwanted(name.as_str()));
    for name in names.cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
}

#[cfg(test)]
#[path = "hop_tests.rs"]
mod tests;
