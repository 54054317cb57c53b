//! What `bearerd::proxy::hop` removes and keeps, and how it frames.

use std::collections::BTreeMap;

use bearerd::proxy::hop::{self, Framing};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};

use super::fields::{elements, reaches_the_application, reaches_the_upstream};

/// Fields as the lines `name: value`; what is no field is passed over.
pub fn hop(lines: &[u8]) {
    let headers = headers(lines);
    request(&headers);
    for status in [StatusCode::OK, StatusCode::NOT_MODIFIED] {
        for method in [Method::GET, Method::HEAD] {
            response(&headers, &method, status);
        }
    }
}

fn request(headers: &HeaderMap) {
    let framing = framing(headers);
    let named = elements(values(headers, &header::CONNECTION));
    let mut stripped = headers.clone();
    // Without it a payment may be made twice.
    let takes_key = named.iter().any(|name| name == "idempotency-key")
        && headers.contains_key("idempotency-key");
    if hop::strip_request(&mut stripped).is_err() {
        assert!(takes_key || named.len() > 64, "refused: {headers:?}");
        return;
    }
    assert!(!takes_key, "not refused: {headers:?}");
    assert_eq!(
        by_name(&stripped),
        kept(headers, |name| reaches_the_upstream(name, &named)),
        "of {headers:?}"
    );
    let mut again = stripped.clone();
    assert!(hop::strip_request(&mut again).is_ok());
    assert_eq!(again, stripped);

    let Some(framing) = framing else { return };
    framing.apply(&mut stripped);
    let lines = |name| stripped.get_all(name).iter().collect::<Vec<_>>();
    let written = (
        &lines(header::CONTENT_LENGTH)[..],
        &lines(header::TRANSFER_ENCODING)[..],
    );
    let is_sound = match (framing, written) {
        (Framing::Natural, ([], [])) => true,
        (Framing::ExplicitlyEmpty, ([length], [])) => *length == "0",
        (Framing::Chunked, ([], [coding])) => *coding == "chunked",
        _ => false,
    };
    assert!(is_sound, "{framing:?} was written as {written:?}");
}

/// The framing of a request, which must be what the fields say, or none if they cannot be obeyed.
fn framing(headers: &HeaderMap) -> Option<Framing> {
    let codings = elements(values(headers, &header::TRANSFER_ENCODING));
    let expected = match &codings[..] {
        [] if headers.contains_key(header::TRANSFER_ENCODING) => None,
        [] => match headers.get(header::CONTENT_LENGTH) {
            Some(length) if is_zero(length) => Some(Framing::ExplicitlyEmpty),
            _ => Some(Framing::Natural),
        },
        [coding] if coding == "chunked" => Some(Framing::Chunked),
        _ => None,
    };
    let framing = Framing::of_request(headers).ok();
    assert_eq!(framing, expected, "of {headers:?}");
    framing
}

fn response(headers: &HeaderMap, method: &Method, status: StatusCode) {
    let codings = elements(values(headers, &header::TRANSFER_ENCODING));
    let has_length = headers.contains_key(header::CONTENT_LENGTH);
    let is_sound = match &codings[..] {
        [] => true,
        [coding] => coding == "chunked" && !has_length,
        _ => false,
    };
    assert_eq!(
        hop::response_framing_is_sound(headers),
        is_sound,
        "{headers:?}"
    );

    let named = elements(values(headers, &header::CONNECTION));
    let mut stripped = headers.clone();
    hop::strip_response(&mut stripped, method, status);
    let describes = method == Method::HEAD || status == StatusCode::NOT_MODIFIED;
    if named.len() > 64 {
        // An answer is not refused for it: what is named may stay, what is known by itself may not.
        if describes {
            stripped.remove(header::CONTENT_LENGTH);
        }
        let known = |name: &&HeaderName| !reaches_the_application(name.as_str(), &[]);
        assert_eq!(stripped.keys().find(known), None, "{method} {status}");
        return;
    }
    let mut expected = kept(headers, |name| reaches_the_application(name, &named));
    if describes && let Some(length) = headers.get(header::CONTENT_LENGTH) {
        expected.insert("content-length", vec![length.as_bytes()]);
    }
    assert_eq!(
        by_name(&stripped),
        expected,
        "{method} {status}: {headers:?}"
    );
}

type ByName<'a> = BTreeMap<&'a str, Vec<&'a [u8]>>;

fn by_name(headers: &HeaderMap) -> ByName<'_> {
    kept(headers, |_| true)
}

fn kept(headers: &HeaderMap, keeps: impl Fn(&str) -> bool) -> ByName<'_> {
    let names = headers.keys().filter(|name| keeps(name.as_str()));
    names
        .map(|name| (name.as_str(), values(headers, name).collect()))
        .collect()
}

fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).into_iter().map(HeaderValue::as_bytes)
}

fn headers(lines: &[u8]) -> HeaderMap {
    let fields = lines.split(|byte| *byte == b'\n').filter_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        Some((name, value))
    });
    fields.collect()
}

fn is_zero(length: &HeaderValue) -> bool {
    !length.is_empty() && length.as_bytes().iter().all(|digit| *digit == b'0')
}
