//! What an application sends, from one end to the other: whatever it is, the upstream gets requests that have one
//! meaning, and the application gets its own answers, not more than it asked for.

use super::fields::{elements, reaches_the_upstream};
use super::message::{self, Body, Fields, Framing, Reading, RequestHead, ResponseHead};
use super::sidecar::{End, Forwarded, Run, SECRET, TOKEN, number, sidecar};

/// In a request the authority of the upstream.
pub const UPSTREAM: &str = "upstream.test";

/// Everything that an application sends on a connection.
pub fn request_head(bytes: &[u8]) {
    let sidecar = sidecar();
    let upstream = sidecar.upstream();
    let bytes = replaced(bytes, UPSTREAM.as_bytes(), upstream.as_bytes());

    let run = sidecar.run(&bytes, End::Finishes);
    check(&bytes, &run, &upstream);

    // A request that ends the connection; twice, because the first may become a part of what was before.
    let last = "GET /last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let bytes = [&bytes, last.as_bytes(), last.as_bytes()].concat();
    let run = sidecar.run(&bytes, End::Waits);
    let (sent, answers) = check(&bytes, &run, &upstream);
    let is_answered = answers > 0 || run.was_reset || sent.requests.is_empty();
    assert!(is_answered, "no answer to {}", bytes.escape_ascii());
}

fn replaced(bytes: &[u8], what: &[u8], with: &[u8]) -> Vec<u8> {
    let mut rest = bytes;
    let mut replaced = Vec::new();
    while let Some(at) = rest.windows(what.len()).position(|part| part == what) {
        replaced.extend_from_slice(&rest[..at]);
        replaced.extend_from_slice(with);
        rest = &rest[at + what.len()..];
    }
    [&replaced, rest].concat()
}

/// The requests that were sent, and how many answers came.
fn check<'a>(bytes: &'a [u8], run: &Run, upstream: &str) -> (Sent<'a>, usize) {
    let sent = Sent::of(bytes);
    assert_eq!(run.faults, [""; 0], "the upstream got no HTTP");
    for forwarded in &run.forwarded {
        let broken = check_forwarded(forwarded, upstream).err();
        assert_eq!(broken, None, "{forwarded:?}");
    }
    check_origin(&run.forwarded, &sent);
    for secret in [TOKEN, SECRET] {
        let is_shown = contains(&run.answers, secret.as_bytes());
        // An application may have said it itself, in its X-Request-Id.
        assert!(!is_shown || contains(bytes, secret.as_bytes()), "{secret}");
    }
    let answers = check_answers(run, &sent);
    (sent, answers)
}

/// What was sent, as far as it has one meaning.
#[derive(Debug)]
struct Sent<'a> {
    requests: Vec<(RequestHead, Option<Body>)>,
    /// What comes after them, and what a server makes of it, if it takes it at all, nobody can say.
    rest: &'a [u8],
}

impl<'a> Sent<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        let mut requests = Vec::new();
        let mut rest = bytes;
        while let Reading::Whole(head, length) = message::request_head(rest) {
            let is_last = elements(head.fields.values("connection")).contains(&"close".to_owned());
            match message::body(head.framing, &rest[length..]) {
                Reading::Whole(body, body_length) => {
                    rest = &rest[length + body_length..];
                    requests.push((head, Some(body)));
                }
                // All there is belongs to it.
                Reading::Incomplete => {
                    rest = &[];
                    requests.push((head, None));
                }
                Reading::Broken(_) => break,
            }
            if is_last {
                rest = &[];
            }
        }
        Self { requests, rest }
    }

    /// No more requests than these can be found in the rest: each has an empty line.
    fn most_in_rest(&self) -> usize {
        let empty_lines =
            |line: &[u8]| self.rest.windows(line.len()).filter(|w| *w == line).count();
        empty_lines(b"\n\r\n") + empty_lines(b"\n\n")
    }

    fn names(&self, method: &[u8]) -> bool {
        let is_named = |(head, _): &(RequestHead, _)| head.method.as_bytes() == method;
        self.requests.iter().any(is_named) || self.rest.windows(method.len()).any(|w| w == method)
    }
}

/// Everything that holds for any request at the upstream, wherever it comes from.
fn check_forwarded(forwarded: &Forwarded, upstream: &str) -> Result<(), &'static str> {
    let Forwarded { head, body, .. } = forwarded;
    let fields = &head.fields;
    let rule = |holds: bool, rule| if holds { Ok(()) } else { Err(rule) };
    let is_origin_form = head.target.starts_with(b"/") && !head.target.contains(&b'#');
    rule(is_origin_form, "a target in origin-form")?;
    let is_method = !matches!(head.method.as_str(), "CONNECT" | "TRACE" | "TRACK");
    rule(is_method, "a method that is forwarded")?;
    let host = fields.the_one("host");
    rule(
        host == Some(upstream.as_bytes()),
        "one Host, the configured",
    )?;
    let authorization = format!("Bearer {TOKEN}");
    let is_ours = fields.the_one("authorization") == Some(authorization.as_bytes());
    rule(is_ours, "one Authorization, ours")?;
    let via = fields.values("via");
    let is_ours = |via: &&&[u8]| [&b"1.0 bearerd"[..], b"1.1 bearerd"].contains(via);
    rule(
        via.last().is_some_and(|via| is_ours(&via)),
        "Via ends in ours",
    )?;
    rule(via.iter().filter(is_ours).count() == 1, "Via has ours once")?;
    let id = fields.the_one("x-request-id").unwrap_or_default();
    let is_id = (1..=128).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic);
    rule(is_id, "one X-Request-Id")?;
    if let Some(body) = body {
        rule(!body.has_extensions, "no chunk extensions")?;
        rule(body.trailers == Fields::default(), "no trailers")?;
    }
    let crosses = fields
        .0
        .iter()
        .all(|field| is_ours_to_write(&field.name) || reaches_the_upstream(&field.name, &[]));
    rule(crosses, "end-to-end fields only")
}

fn is_ours_to_write(name: &str) -> bool {
    let framing = ["content-length", "transfer-encoding"];
    let others = ["host", "authorization", "via", "x-request-id"];
    framing.contains(&name) || others.contains(&name)
}

/// Every forwarded request is one that was sent, in the order in which it was sent, and none comes twice.
fn check_origin(forwarded: &[Forwarded], sent: &Sent<'_>) {
    let mut requests = sent.requests.iter();
    let mut left_in_rest = sent.most_in_rest();
    for forwarded in forwarded {
        if !requests.any(|request| is_same(forwarded, request)) {
            assert!(left_in_rest > 0, "nobody sent {forwarded:?}, of {sent:?}");
            left_in_rest -= 1;
        }
    }
}

/// Method, target, body and end-to-end fields, byte for byte.
fn is_same(forwarded: &Forwarded, (head, body): &(RequestHead, Option<Body>)) -> bool {
    let is_same_body = match (&forwarded.body, body) {
        // It broke off between us and the upstream, for whatever reason.
        (None, _) => true,
        (Some(_), None) => false,
        (Some(got), Some(sent)) => got.data == sent.data,
    };
    let is_empty = |framing| matches!(framing, Framing::None);
    let is_same_framing = is_empty(forwarded.head.framing) == is_empty(head.framing);
    let named = elements(head.fields.values("connection"));
    let names = forwarded.head.fields.0.iter().chain(&head.fields.0);
    let are_same_fields = names
        .map(|field| field.name.as_str())
        .filter(|name| *name == "via" || !is_ours_to_write(name))
        .all(|name| {
            let got = forwarded.head.fields.values(name);
            if reaches_the_upstream(name, &named) {
                got == expected(name, head)
            } else {
                got.is_empty() || (name == "via" && got == [b"1.1 bearerd"])
            }
        });
    forwarded.head.method == head.method
        && forwarded.head.target == origin_form(&head.target)
        && is_same_body
        && is_same_framing
        && are_same_fields
}

/// The values with which a field that goes on arrives.
fn expected(name: &str, head: &RequestHead) -> Vec<Vec<u8>> {
    let sent = head.fields.values(name);
    match name {
        "via" => sent
            .iter()
            .copied()
            .chain([&b"1.1 bearerd"[..]])
            .map(<[u8]>::to_vec)
            .collect(),
        // It is one field (RFC 9113 §8.2.3).
        "cookie" => {
            let cookies = sent.iter().copied().filter(|cookie| !cookie.is_empty());
            vec![cookies.collect::<Vec<_>>().join(&b"; "[..])]
        }
        "max-forwards" if head.method == "OPTIONS" => {
            let number = |value: &[u8]| std::str::from_utf8(value).ok()?.parse::<u32>().ok();
            match sent.first().and_then(|value| number(value)) {
                // That is 0: it goes no further.
                Some(left) => left
                    .checked_sub(1)
                    .map(|left| left.to_string().into_bytes())
                    .into_iter()
                    .collect(),
                None => sent.iter().map(|value| value.to_vec()).collect(),
            }
        }
        _ => sent.iter().map(|value| value.to_vec()).collect(),
    }
}

/// A target without its fragment, and without the authority of the absolute-form.
fn origin_form(target: &[u8]) -> Vec<u8> {
    let target = target
        .split(|byte| *byte == b'#')
        .next()
        .unwrap_or_default();
    let Some(rest) = target
        .get(..7)
        .filter(|scheme| scheme.eq_ignore_ascii_case(b"http://"))
    else {
        return target.to_vec();
    };
    let rest = &target[rest.len()..];
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?'));
    match &rest[end.unwrap_or(rest.len())..] {
        path @ [b'/', ..] => path.to_vec(),
        query => [b"/", query].concat(),
    }
}

/// Checks every answer, and returns how many there are.
fn check_answers(run: &Run, sent: &Sent<'_>) -> usize {
    let shown = run.answers.escape_ascii();
    let mut numbers = run
        .forwarded
        .iter()
        .filter(|forwarded| forwarded.body.is_some())
        .map(|forwarded| forwarded.number);
    let mut rest = &run.answers[..];
    let mut answers = 0;
    while !rest.is_empty() {
        let (head, length) = match message::response_head(rest) {
            Reading::Whole(head, length) => (head, length),
            Reading::Incomplete if run.was_reset => break,
            reading => panic!("{reading:?} in {shown}"),
        };
        rest = &rest[length..];
        if head.status == 100 {
            continue;
        }
        answers += 1;
        let is_framed = head.framing != Framing::None || head.status == 204;
        assert!(is_framed, "an answer without an end: {shown}");
        let has_no_body = sent.names(b"HEAD") && (rest.is_empty() || rest.starts_with(b"HTTP/1."));
        let body = match message::body(head.framing, rest) {
            _ if has_no_body => None,
            Reading::Whole(body, length) => {
                rest = &rest[length..];
                Some(body)
            }
            Reading::Incomplete if run.was_reset => break,
            reading => panic!("{reading:?} in {shown}"),
        };
        if head.status == 200 {
            let number = number(&head.fields).unwrap_or_else(|| panic!("whose answer? {shown}"));
            assert!(
                numbers.any(|own| own == number),
                "not its own answer: {shown}"
            );
            let is_whole = body.is_none_or(|body| body.data == number.to_string().as_bytes());
            assert!(is_whole, "not the body of its answer: {shown}");
        } else {
            check_refusal(&head, body.as_ref());
        }
        let says_close = elements(head.fields.values("connection")).contains(&"close".to_owned());
        assert!(
            !says_close || rest.is_empty(),
            "more after the end: {shown}"
        );
    }
    // One for what cannot be read.
    let most = sent.requests.len() + sent.most_in_rest() + usize::from(!sent.rest.is_empty());
    assert!(answers <= most, "{answers} answers of {most}: {shown}");
    answers
}

/// An answer of ours is a problem document, or says that an OPTIONS ended here, and one of hyper's is empty.
fn check_refusal(head: &ResponseHead, body: Option<&Body>) {
    if head.status == 204 {
        assert!(head.fields.the_one("allow").is_some(), "{head:?}");
        return;
    }
    let is_refusal = (400..=599).contains(&head.status) && head.status != 500;
    assert!(is_refusal, "{head:?}");
    let Some(body) = body else { return };
    match head.fields.the_one("content-type") {
        None => assert!(body.data.is_empty(), "{head:?}"),
        Some(content_type) => {
            assert_eq!(content_type, b"application/problem+json");
            assert!(head.fields.the_one("proxy-status").is_some(), "{head:?}");
            let problem: serde_json::Value = serde_json::from_slice(&body.data).expect("JSON");
            assert_eq!(problem["status"], head.status);
        }
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
