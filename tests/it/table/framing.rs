//! A2: where the body of a request begins and ends.

use super::{Entry, check, forwarded, get, post, read_answers, refused};
use crate::support::client::request;
use crate::support::{AuthorizationServer, Sidecar, Upstream, wait_until};

const CHUNKED: &str = "Transfer-Encoding: chunked";
const HELLO: &str = "5\r\nhello\r\n0\r\n\r\n";

/// A POST of a body of this length, as it arrives.
fn counted(body: &str) -> String {
    format!("POST / HTTP/1.1\ncontent-length: {}\n\n{body}", body.len())
}

/// A request with a chunked body, as it arrives.
fn chunked(method: &str, body: &str) -> String {
    format!("{method} / HTTP/1.1\ntransfer-encoding: chunked\n\n{body}")
}

#[test]
fn a_length_is_one_number() {
    let digits = "5".repeat(21);
    let mut table: Vec<Entry> = [
        ("A-033", "5, 5"),
        ("A-033", "5, 6"),
        ("A-034", "+5"),
        ("A-034", "-1"),
        ("A-034", "-0"),
        ("A-034", "0x5"),
        ("A-034", "0o5"),
        ("A-034", "1_0"),
        ("A-034", "5 5"),
        ("A-034", "5.0"),
        ("A-034", ""),
        ("A-034", &digits),
    ]
    .into_iter()
    .map(|(row, length)| {
        let post = post(&[&format!("Content-Length: {length}")], "hello");
        refused(row, post, "400, closed")
    })
    .collect();
    let long = "x".repeat(200);
    for (length, body) in [("5", "hello"), ("005", "hello"), ("0200", &long)] {
        let post = post(&[&format!("Content-Length: {length}")], body);
        table.push(forwarded("A-035", post, counted(body)));
    }
    let length = |length: usize| format!("Content-Length: {length}");
    let twice = |one, other| post(&[&length(one), &length(other)], "hello");
    table.extend([
        refused("A-031", twice(5, 6), "400, closed"),
        refused("A-031", twice(6, 5), "400, closed"),
        forwarded("A-032", twice(5, 5), counted("hello")),
    ]);
    for fields in [
        [CHUNKED, "Content-Length: 6"],
        ["Content-Length: 6", CHUNKED],
    ] {
        let post = post(&fields, "0\r\n\r\nX");
        let upstreams = chunked("POST", "0\r\n\r\n");
        table.push(forwarded("A-030", post, upstreams).answered("200 ok, closed"));
    }
    check(&table);
}

#[test]
fn chunked_is_the_only_transfer_coding_and_comes_once() {
    let one = |coding: &str| post(&[&format!("Transfer-Encoding: {coding}")], HELLO);
    let mut table: Vec<Entry> = [
        ("A-036", "xchunked"),
        ("A-036", "chunked;q=1"),
        ("A-036", ""),
        ("A-036", "identity"),
        ("A-036", "chunked,"),
        ("A-036", "\x0bchunked"),
        ("A-036", "chunked\0"),
        ("A-039", "chunked, gzip"),
    ]
    .into_iter()
    .map(|(row, coding)| refused(row, one(coding), "400, closed"))
    .collect();
    let http_1_0 = format!("POST / HTTP/1.0\r\nHost: localhost\r\n{CHUNKED}\r\n\r\n{HELLO}");
    let unsupported = "501 unsupported_transfer_coding, closed";
    let twice = "400 bad_request, closed";
    table.extend([
        refused("A-037", one("gzip, chunked"), unsupported),
        refused(
            "A-037",
            post(&["Transfer-Encoding: gzip", CHUNKED], HELLO),
            unsupported,
        ),
        refused("A-038", one("chunked, chunked"), twice),
        refused("A-038", post(&[CHUNKED, CHUNKED], HELLO), twice),
        refused("A-040", http_1_0, "400, closed"),
        forwarded(
            "A-041",
            post(&["Transfer_Encoding: chunked"], ""),
            "POST / HTTP/1.1\n\n",
        ),
        forwarded(
            "A-041",
            post(&["Content_Length: 5"], ""),
            "POST / HTTP/1.1\n\n",
        ),
    ]);
    check(&table);
}

#[test]
fn framing_is_that_of_the_decoded_body() {
    let extended = post(&[CHUNKED], "5;a=b\r\nhello\r\n0;c\r\n\r\n");
    let counted_get = request("GET /", &["Content-Length: 4"], "term");
    let trailers =
        "5\r\nhello\r\n0\r\nAuthorization: Bearer evil\r\nContent-Length: 0\r\nX-Sum: 1\r\n\r\n";
    let with_trailers = post(&[CHUNKED, "Trailer: Authorization, X-Sum"], trailers);
    check(&[
        forwarded("A-043", extended, chunked("POST", HELLO)),
        forwarded(
            "A-047 H-13",
            request("GET /", &[CHUNKED], HELLO),
            chunked("GET", HELLO),
        ),
        forwarded(
            "A-047",
            request("DELETE /", &[CHUNKED], HELLO),
            chunked("DELETE", HELLO),
        ),
        forwarded(
            "A-048",
            counted_get,
            "GET / HTTP/1.1\ncontent-length: 4\n\nterm",
        ),
        forwarded("A-049", post(&["Content-Length: 0"], ""), counted("")),
        forwarded("A-050", get(&[]), "GET / HTTP/1.1\n\n"),
        forwarded(
            "A-050",
            request("DELETE /", &[], ""),
            "DELETE / HTTP/1.1\n\n",
        ),
        forwarded("A-053 D-20 H-23", with_trailers, chunked("POST", HELLO)),
    ]);
}

#[test]
fn a_body_is_never_taken_for_a_request() {
    let poison = String::from_utf8(request("GET /poison", &[], "")).unwrap();
    let length = format!("Content-Length: {}", poison.len());
    let expectant = post(&["Expect: 100-continue", "Content-Length: 5"], "hello");
    let next = request("GET /2", &[], "");
    let blocked = post(&["Origin: null", &length], &poison);
    // The wire shows its line ends as they are, in the body too.
    let passed = counted(&poison);
    check(&[
        refused("A-051", blocked, "403 forbidden_origin, open"),
        forwarded("A-051", post(&[&length], &poison), passed),
        forwarded("A-055", [expectant, next].concat(), counted("hello"))
            .and_forwarded("GET /2 HTTP/1.1\n\n")
            .answered("100, 200 ok, 200 ok, open"),
    ]);
}

/// The upstream gets a request that broke off, never a shorter one that looks whole.
#[test]
fn a_body_that_breaks_off_never_looks_complete() {
    let many = format!("0\r\n{}\r\n", "X: 1\r\n".repeat(20_000));
    let large = format!("0\r\nX: {}\r\n\r\n", "x".repeat(1024 * 1024));
    let extension = format!("5;a={}\r\nhello\r\n0\r\n\r\n", "a".repeat(64 * 1024));
    // What follows a first chunk.
    let mut table = vec![
        ("A-043", extension),
        ("A-043", "5;a\nb\r\nhello\r\n0\r\n\r\n".to_owned()),
        ("A-044", "5\r\nhelloXX\r\n0\r\n\r\n".to_owned()),
        ("A-044", "5\r\nhello0\r\n\r\n".to_owned()),
        ("A-044", "5\nhello\n0\n\n".to_owned()),
        ("A-045", String::new()),
        ("A-045", "9\r\nhello".to_owned()),
        ("A-045", "0\r\n".to_owned()),
        ("A-054", many),
        ("A-054", large),
    ];
    for size in [
        "0x5",
        "+5",
        " 5",
        "1_0",
        "-1",
        "",
        "5 5",
        "fffffffffffffffff",
    ] {
        table.push(("A-042", format!("{size}\r\nhello\r\n0\r\n\r\n")));
    }
    let chunks = table
        .iter()
        .map(|(row, rest)| (*row, CHUNKED, "5\r\nhello\r\n", rest.as_str()));
    let counted = [
        ("A-046", "Content-Length: 10", "hello", ""),
        ("A-046", "Content-Length: 10", "hello", "hell"),
    ];
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    for (number, (row, framing, begin, rest)) in chunks.chain(counted).enumerate() {
        let shown = &rest[..rest.len().min(40)];
        let mut client = sidecar.client();
        client.send(post(&[framing], begin));
        upstream.wait_for_requests(number + 1);
        // Where it is refused early, the rest of it may not be taken.
        let _ = client.try_send(rest);
        client.finish();
        let answered = read_answers(&mut client, false).answered;
        assert_eq!(answered, "400 bad_request, closed", "{row} {shown:?}");
        wait_until("its end", || upstream.requests()[number].is_over);
        let body = &upstream.requests()[number].body;
        assert!(!body.complete, "{row} {shown:?}: {body:?}");
        assert!(
            b"hellohello".starts_with(&body.data),
            "{row} {shown:?}: {body:?}"
        );
    }
    sidecar.stop();
}
