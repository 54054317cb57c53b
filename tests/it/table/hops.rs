//! A4, D2: what is between two neighbours alone, and what nobody verified.

use super::{Entry, GET, check, forwarded, get, post, refused};
use crate::support::client::request;

#[test]
fn what_connection_names_goes_no_further() {
    let options = |number: usize| format!("Connection: {}", vec!["x"; number].join(","));
    let end_to_end = [
        "Connection: Host, Content-Length, Content-Type, Cookie, X-Request-Id, Via",
        "Content-Length: 5",
        "Content-Type: text/plain",
        "Cookie: a=1",
        "X-Request-Id: r",
        "Idempotency-Key: 1",
    ];
    let kept = "POST / HTTP/1.1\ncontent-length: 5\nidempotency-key: 1\n\nhello";
    let with_its_key = ["Connection: close, Idempotency-Key", "Idempotency-Key: 1"];
    let not_utf_8 =
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Foo: 1\r\nConnection: \xff,, a b ,x-FOO,\r\n\r\n";
    let mut table: Vec<Entry> = [
        ("A-090", &["Connection: x-foo", "X-Foo: 1", "x-foo: 2"][..]),
        (
            "A-090",
            &[
                "X-Foo: 1",
                "X-Bar: 2",
                "Connection: X-FOO",
                "Connection: x-bar",
            ],
        ),
        ("A-092", &["Connection: Authorization"]),
        (
            "A-092",
            &["Connection: authorization", "Authorization: Bearer evil"],
        ),
        ("A-092", &["Connection:  AUTHORIZATION ,"]),
        (
            "A-092",
            &["Connection: keep-alive", "Connection: authorization"],
        ),
        (
            "A-094",
            &["Connection: ,", "Connection:", "Connection: , ,"],
        ),
        ("A-094", &[&options(64)]),
    ]
    .into_iter()
    .map(|(row, fields)| forwarded(row, get(fields), GET))
    .collect();
    table.extend([
        forwarded("A-093", post(&end_to_end, "hello"), kept),
        refused("A-093", get(&with_its_key), "400 bad_request, closed"),
        forwarded("A-094", not_utf_8.as_slice(), GET),
        refused("A-094", get(&[&options(65)]), "400 bad_request, closed"),
        refused("A-094", get(&[&options(500)]), "400 bad_request, closed"),
        forwarded("A-098", get(&["Connection: close"]), GET).answered("200 ok, closed"),
        forwarded("A-098", get(&["Connection: x", "Connection: CLOSE"]), GET)
            .answered("200 ok, closed"),
    ]);
    check(&table);
}

#[test]
fn what_is_meant_for_this_hop_goes_no_further_unnamed() {
    let h2c = [
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAAQAAP__",
        "Connection: Upgrade, HTTP2-Settings",
    ];
    let mut table: Vec<Entry> = [
        ("A-091", &["Keep-Alive: timeout=5"][..]),
        ("A-091", &["Proxy-Connection: keep-alive"]),
        ("A-091", &["TE: trailers"]),
        ("A-091", &["Upgrade: foo"]),
        ("A-091", &["Trailer: X-Sum"]),
        ("A-091", &["Proxy-Authorization: Basic ZXZpbDo="]),
        ("A-091", &["Proxy-Authenticate: Basic"]),
        ("A-091", &["HTTP2-Settings: AAMAAABkAAQAAP__"]),
        ("A-095", &["TE: trailers, gzip"]),
        ("A-096 D-38", &h2c),
        ("A-097", &["Upgrade: websocket"]),
        ("A-097", &["Upgrade: websocket", "Connection: Upgrade"]),
    ]
    .into_iter()
    .map(|(row, fields)| forwarded(row, get(fields), GET))
    .collect();
    let others = ["Upgrade: websocket", "Sec-WebSocket-Version: 13"];
    let plain = "GET / HTTP/1.1\nsec-websocket-version: 13\n\n";
    table.push(forwarded("A-097", get(&others), plain));
    check(&table);
}

#[test]
fn via_is_appended_and_ends_loops() {
    let vias = [
        "Via: 1.0 fred, 1.1 p.example",
        "Via: 1.1 not-bearerd (bearerd)",
    ];
    let kept = "GET / HTTP/1.1\nvia: 1.0 fred, 1.1 p.example\nvia: 1.1 not-bearerd (bearerd)\n\n";
    let first = ["Via: 1.1 bearerd"];
    let later = ["Via: 1.0 fred, 1.1 bearerd (x)", "Via: 1.1 p.example"];
    check(&[
        forwarded("A-100", get(&[]), GET),
        forwarded("A-100", get(&vias), kept),
        refused("A-101", get(&first), "508 loop_detected, open"),
        refused("A-101", get(&later), "508 loop_detected, open"),
    ]);
}

#[test]
fn max_forwards_counts_for_options() {
    let with = |line: &str, hops: &str| request(line, &[&format!("Max-Forwards: {hops}")], "");
    let passed =
        |method: &str, hops: &str| format!("{method} / HTTP/1.1\nmax-forwards: {hops}\n\n");
    check(&[
        refused("A-102", with("OPTIONS /", "0"), "204, open"),
        forwarded("A-102", with("OPTIONS /", "5"), passed("OPTIONS", "4")),
        forwarded("A-102", with("OPTIONS /", "1"), passed("OPTIONS", "0")),
        forwarded(
            "A-102",
            with("OPTIONS /", "soon"),
            passed("OPTIONS", "soon"),
        ),
        forwarded("A-102", with("GET /", "0"), passed("GET", "0")),
        forwarded(
            "A-102",
            request("OPTIONS /", &[], ""),
            "OPTIONS / HTTP/1.1\n\n",
        ),
    ]);
}

#[test]
fn the_only_expectation_is_100_continue() {
    let expecting = |expectations: &[&str], body: &str| {
        post(&[expectations, &["Content-Length: 5"]].concat(), body)
    };
    let hello = "POST / HTTP/1.1\ncontent-length: 5\n\nhello";
    let http_1_0 = "POST / HTTP/1.0\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello";
    let foreign = expecting(&["Origin: null", "Expect: 100-continue"], "");
    let unknown = expecting(&["Expect: payment"], "hello");
    let one_unknown = expecting(&["Expect: 100-continue", "Expect: payment"], "hello");
    check(&[
        forwarded(
            "A-103",
            expecting(&["Expect: 100-Continue"], "hello"),
            hello,
        )
        .answered("100, 200 ok, open"),
        refused("A-104", foreign, "403 forbidden_origin, dropped"),
        refused("A-105", unknown, "417 expectation_failed, open"),
        refused("A-105", one_unknown, "417 expectation_failed, open"),
        forwarded("A-106", http_1_0, hello).answered("200 ok, dropped"),
    ]);
}

#[test]
fn no_credential_of_the_application_arrives() {
    let mut table: Vec<Entry> = [
        ("D-20", &["Authorization: Bearer evil"][..]),
        (
            "D-20",
            &[
                "authorization: Basic ZXZpbDo=",
                "AUTHORIZATION: Bearer evil",
            ],
        ),
        ("D-20", &["Authorization:"]),
        ("D-20", &["Authorization: Bearer token-1"]),
        ("D-21", &["Proxy-Authorization: Basic ZXZpbDo="]),
    ]
    .into_iter()
    .map(|(row, fields)| forwarded(row, get(fields), GET))
    .collect();
    let cookies = "GET / HTTP/1.1\ncookie: a=1; b=2\n\n";
    table.push(forwarded(
        "D-21",
        get(&["Cookie: a=1", "Cookie: b=2"]),
        cookies,
    ));
    check(&table);
}

/// Nor do claims that some server behind us could trust, or read under another name.
#[test]
fn claims_that_nobody_verified_do_not_arrive() {
    let table: Vec<Entry> = [
        ("D-09 D-22", "X-Forwarded-For: 127.0.0.1"),
        ("D-22", "X-Forwarded-Host: evil.example"),
        ("D-22", "X-Forwarded-Proto: https"),
        ("D-22", "X-Forwarded-Uri: /admin"),
        ("D-09 D-22", "Forwarded: for=127.0.0.1"),
        ("D-22", "X-Real-IP: 127.0.0.1"),
        ("D-22", "X-Original-URL: /admin"),
        ("D-22", "X-Rewrite-URL: /admin"),
        ("D-24", "X_Forwarded_For: 127.0.0.1"),
        ("D-24", "Content_Length: 5"),
        ("D-24", "Transfer_Encoding: chunked"),
        ("D-24", "X_Request_Id: r"),
        ("D-24", "authorization_: Bearer evil"),
        ("D-24", "_: 1"),
    ]
    .into_iter()
    .map(|(row, field)| forwarded(row, get(&[field]), GET))
    .collect();
    check(&table);
}
