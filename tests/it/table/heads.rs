//! A1: request heads.

use super::{Entry, GET, check, forwarded, get, refused};
use crate::support::client::request;

#[test]
fn every_request_has_one_valid_host() {
    let refusal = "400 bad_request, closed";
    let mut table = vec![
        refused("A-001", "GET / HTTP/1.1\r\n\r\n", refusal),
        refused("A-002", get(&["Host: 127.0.0.1"]), refusal),
        refused("A-003", get(&["Host: localhost"]), refusal),
        refused("A-005", "GET / HTTP/1.0\r\n\r\n", refusal),
    ];
    for host in [
        "",
        "u@localhost",
        "localhost/x",
        "localhost,b",
        "localhost:99999",
        "localhost:0",
        "localhost:",
        "localhost:8o",
        "localhost x",
        "[::1",
        "::1",
        ":8080",
    ] {
        let get = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        table.push(refused("A-004", get, refusal));
    }
    check(&table);
}

/// hyper answers these by itself, before anybody else sees them.
#[test]
fn what_is_not_http_is_refused() {
    let mut table: Vec<Entry> = [
        ("A-007", "X: a\rb"),
        ("A-008", "X: a\r\n b"),
        ("A-008", "X: a\r\n\tb"),
        ("A-009", "Transfer-Encoding : chunked"),
        ("A-011", ": x"),
        ("A-011", "no colon"),
        ("A-012", "X[]: 1"),
        ("A-012", "X Y: 1"),
        ("A-012", "X\u{e9}: 1"),
        ("A-013", "X: a\0b"),
        ("A-013", "X: a\x01b"),
        ("A-013", "X: a\x7fb"),
    ]
    .into_iter()
    .map(|(row, field)| refused(row, get(&[field]), "400, closed"))
    .collect();
    for (row, line) in [
        ("A-010", "GET / HTTP/1.1\r\n X: 1"),
        ("A-015", "GET\t/\tHTTP/1.1"),
        ("A-015", "GET  / HTTP/1.1"),
        ("A-015", "GET /  HTTP/1.1"),
        ("A-015", "GET / x HTTP/1.1"),
        ("A-016", "GET / HTTP/1"),
        ("A-016", "GET / HTTP/01.01"),
        ("A-016", "GET / http/1.1"),
        ("A-016", "GET / HTTP/9.9"),
        ("A-016", "GET / HTTP/1.2"),
    ] {
        let head = format!("{line}\r\nHost: localhost\r\n\r\n");
        table.push(refused(row, head, "400, closed"));
    }
    let http_2 = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    table.extend([
        refused("A-017", "GET /\r\n", "400, closed").finishing(),
        refused("A-018", http_2, "dropped"),
    ]);
    check(&table);
}

/// The limits at their values, and one above; fields are few enough that no choice of names makes them slow.
#[test]
fn heads_have_limits() {
    let get_of = |length: usize| {
        let fixed = get(&["X: "]).len();
        get(&[&format!("X: {}", "x".repeat(length - fixed))])
    };
    let seen_of = |length: usize| {
        let fixed = get(&["X: "]).len();
        format!("GET / HTTP/1.1\nx: {}\n\n", "x".repeat(length - fixed))
    };
    let fields = |number: usize| get(&vec!["X: 1"; number - 1]);
    let target = |length: usize| format!("GET /{}", "x".repeat(length - 1));
    let method = format!("{} /", "M".repeat(100 * 1024));
    let long = target(8000);
    let many = format!("GET / HTTP/1.1\n{}\n", "x: 1\n".repeat(99));
    check(&[
        forwarded(
            "A-020",
            request(&long, &[], ""),
            format!("{long} HTTP/1.1\n\n"),
        ),
        refused("A-020", request(&target(70_000), &[], ""), "431, closed").or_reset(),
        forwarded("A-021", get_of(32 * 1024), seen_of(32 * 1024)),
        refused("A-021", get_of(32 * 1024 + 1), "431, closed"),
        refused("A-021", get_of(100 * 1024), "431, closed").or_reset(),
        forwarded("A-022 D-65", fields(100), many),
        refused("A-022 D-65", fields(101), "431, closed"),
        refused("A-022", fields(10_000), "431, closed").or_reset(),
        refused("A-023", request(&method, &[], ""), "431, closed").or_reset(),
        refused("A-019", "\r\n".repeat(512 * 1024), "431, closed").or_reset(),
    ]);
}

#[test]
fn what_is_odd_but_http_is_forwarded_in_regular_form() {
    let lines = "GET / HTTP/1.1\nHost: localhost\nX: 1\n\n";
    let spaces = get(&["X: \t 1 \t"]);
    let after_empty_lines = [b"\r\n\r\n\r\n", get(&[]).as_slice()].concat();
    check(&[
        forwarded("A-006", lines, "GET / HTTP/1.1\nx: 1\n\n"),
        forwarded("A-006", spaces, "GET / HTTP/1.1\nx: 1\n\n"),
        forwarded("A-019", after_empty_lines, GET),
        forwarded("A-023", request("get /", &[], ""), "get / HTTP/1.1\n\n"),
        forwarded("A-023", request("FOO /", &[], ""), "FOO / HTTP/1.1\n\n"),
        forwarded(
            "A-005 H-14",
            "GET / HTTP/1.0\r\nHost: localhost\r\n\r\n",
            GET,
        )
        .answered("200 ok, dropped"),
    ]);
}

/// What comes after a request is the next request, or the end.
#[test]
fn requests_in_one_segment_are_answered_one_by_one() {
    let (first, second) = (request("GET /1", &[], ""), request("GET /2", &[], ""));
    let malformed = request("GET /malformed", &["X : 1"], "");
    let with_a_malformed_one = [first, malformed, second].concat();
    check(&[
        forwarded("A-025", with_a_malformed_one, "GET /1 HTTP/1.1\n\n")
            .answered("200 ok, 400, closed"),
    ]);
}
