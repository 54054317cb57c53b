//! The status page: one document with everything in it, which asks this port for `/status` and nobody for anything.

use std::net::IpAddr;
use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;
use http::{Response, StatusCode};
use serde::Serialize;

use super::text;
use crate::net::body::Body;

const PAGE: &str = include_str!("page.html");

/// Only the style and the script of the page itself run, and they reach this port alone; nobody may frame it.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; style-src '{}'; script-src '{}'; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        source_hash("<style>", "</style>"),
        source_hash("<script>", "</script>"),
    )
});

/// The hash of an element's content (CSP Level 3 §2.3.1).
fn source_hash(start: &str, end: &str) -> String {
    let after = PAGE.split_once(start).map_or("", |(_, after)| after);
    let content = after.split_once(end).map_or("", |(content, _)| content);
    let hash = digest(&SHA256, content.as_bytes());
    format!("sha256-{}", STANDARD.encode(hash))
}

/// The page.
pub(super) fn page() -> Response<Body> {
    let mut response = Response::new(Body::full(PAGE));
    guarded(response.headers_mut(), "text/html; charset=utf-8");
    if let Ok(policy) = HeaderValue::from_str(&POLICY) {
        response
            .headers_mut()
            .insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// A document of JSON.
pub(super) fn json(document: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(document) {
        Ok(json) => {
            let mut response = Response::new(Body::full(json));
            guarded(response.headers_mut(), "application/json");
            response
        }
        // Strings and numbers always are.
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn guarded(headers: &mut HeaderMap, content_type: &'static str) {
    for (name, value) in [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// Whether the page may be shown to whoever sent this. A web page that has its own name lead here (DNS rebinding) comes
/// with that name as Host; an address and localhost lead nowhere else, and `allowed` are names that are ours. A probe and a
/// scraper are not asked: they may know us by any name, and are told little.
pub(super) fn may_look(headers: &HeaderMap, allowed: &[String]) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    let Ok(host) = Authority::try_from(host.as_bytes()) else {
        return false;
    };
    let name = host.host();
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let is_ours = |allowed: &String| {
        allowed.eq_ignore_ascii_case(name) || allowed.eq_ignore_ascii_case(host.as_str())
    };
    !host.as_str().contains('@')
        && (bare.parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || allowed.iter().any(is_ours))
}

/// Whether a script of another site asks; a link that a person follows is no such thing.
pub(super) fn is_foreign_fetch(headers: &HeaderMap) -> bool {
    let field = |name: &'static str| headers.get(name).map(HeaderValue::as_bytes);
    let is_foreign =
        matches!(field("sec-fetch-site"), Some(site) if !matches!(site, b"none" | b"same-origin"));
    is_foreign && field("sec-fetch-mode") != Some(b"navigate")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may_look_as(host: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        may_look(&headers, &["pay.internal".to_owned()])
    }

    /// D-02, D-11
    #[test]
    fn a_name_of_others_is_not_ours() {
        for host in [
            "localhost",
            "LOCALHOST:9090",
            "127.0.0.1:9090",
            "10.2.3.4:9090",
            "[::1]:9090",
            "[2001:db8::7]",
            "Pay.Internal:9090",
        ] {
            assert!(may_look_as(host), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "pay.internal.evil.example",
            "evil.example@127.0.0.1",
            "",
        ] {
            assert!(!may_look_as(host), "{host}");
        }
        assert!(!may_look(&HeaderMap::new(), &[]));
    }

    /// Nothing else could be what the policy lets run.
    #[test]
    fn the_page_is_one_document_with_one_style_and_one_script() {
        for element in ["<style>", "<script>", "</style>", "</script>"] {
            assert_eq!(PAGE.matches(element).count(), 1, "{element}");
        }
        for absent in [
            "http://",
            "https://",
            " src=",
            " style=",
            " onclick=",
            "innerHTML",
            "@import",
            "url(",
        ] {
            let without_svg = PAGE.replace("http://www.w3.org/2000/svg", "");
            assert!(!without_svg.contains(absent), "{absent}");
        }
        assert!(POLICY.contains("script-src 'sha256-"));
        assert_eq!(POLICY.matches("sha256-").count(), 2);
    }
}
