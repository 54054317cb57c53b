//! Upgrades of a connection to another protocol (RFC 9110 §7.8): WebSocket, where a route allows it, and nothing else.
//! `h2c` above all is never passed on: it would be a tunnel around every rule there is.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Version};

use super::route::RouteConfig;

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// Whether the application asks for a WebSocket (RFC 6455 §4.1), and may have it.
pub fn is_wanted(head: &Parts, route: &RouteConfig) -> bool {
    route.websocket
        && head.method == Method::GET
        && head.version == Version::HTTP_11
        && lists(&head.headers, header::CONNECTION, "upgrade")
        && lists(&head.headers, header::UPGRADE, "websocket")
        && !head.headers.contains_key(header::TRANSFER_ENCODING)
        && !head.headers.contains_key(header::CONTENT_LENGTH)
}

/// Whether `answer`, a 101, is the one that was asked for.
pub fn is_granted(answer: &HeaderMap) -> bool {
    let mut protocols = answer.get_all(header::UPGRADE).iter();
    matches!(
        (protocols.next(), protocols.next()),
        (Some(protocol), None) if protocol.as_bytes().eq_ignore_ascii_case(WEBSOCKET.as_bytes())
    ) && lists(answer, header::CONNECTION, "upgrade")
}

/// Says it on the other side of the hop, in either direction; to be called after stripping.
pub fn apply(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, WEBSOCKET);
}

fn lists(headers: &HeaderMap, name: HeaderName, option: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .any(|listed| listed.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
}
