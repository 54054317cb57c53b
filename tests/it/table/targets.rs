//! A5, D1: what is asked for, of whom, and by whom.

use super::{Entry, GET, check, forwarded, get, post, refused};
use crate::support::client::request;

fn get_target(target: &str) -> Vec<u8> {
    request(&format!("GET {target}"), &[], "")
}

#[test]
fn what_is_asked_for_is_a_path() {
    let other = "GET http://other.example/x HTTP/1.1\r\nHost: other.example\r\n\r\n";
    let mut table: Vec<Entry> = [
        ("A-110 D-26", "http://other.example/x"),
        ("A-110", "https://localhost/x"),
        ("A-111", "http://127.0.0.1/x"),
        ("A-112", "http://u:p@127.0.0.1/x"),
        ("A-112", "http://u:p@localhost/x"),
        ("A-114", "h:80"),
        ("A-114", "localhost:80"),
        ("A-114", "admin"),
        ("A-115", "*"),
        ("A-120", ":80"),
    ]
    .into_iter()
    .map(|(row, target)| refused(row, get_target(target), "400 bad_request, closed"))
    .collect();
    table.extend([
        refused("A-110 D-26", other, "400 bad_request, closed"),
        refused(
            "A-115",
            request("OPTIONS *", &[], ""),
            "400 bad_request, closed",
        ),
        refused("A-115", request("OPTIONS */x", &[], ""), "400, closed"),
        refused("A-120", get_target("?q=1"), "400, closed"),
        refused("A-120", get_target("http:///x"), "400, closed"),
    ]);
    for (row, line) in [
        ("A-113", "CONNECT h:443"),
        ("A-113", "CONNECT localhost:443"),
        ("A-113", "CONNECT /"),
        ("D-29", "TRACE /"),
        ("D-29", "TRACK /"),
    ] {
        let refusal = "405 method_not_allowed, closed";
        table.push(refused(row, request(line, &[], ""), refusal));
    }
    check(&table);
}

#[test]
fn path_and_query_arrive_byte_for_byte_or_not_at_all() {
    let mut table = vec![forwarded(
        "A-116",
        get_target("/a#/../admin"),
        "GET /a HTTP/1.1\n\n",
    )];
    for (row, target) in [
        ("A-117", "//evil.example/x"),
        ("A-117", "///x"),
        ("A-118", "/a%2Fb%20c%zz?x=%0d%0a&y=a+b?z"),
        ("A-118", "/%"),
        ("A-118", "/%00"),
        ("A-118", "/?"),
        ("A-118", "/a;b=c/../d?"),
        ("A-118", "/./x/../y"),
        ("A-119", "/a\\b"),
        ("A-119", "/\""),
        ("A-119", "/{a}"),
        ("A-119", "/|^"),
        ("A-119", "/\u{e9}"),
        ("A-119", "/a?\u{e9}"),
    ] {
        let line = format!("GET {target} HTTP/1.1\n\n");
        table.push(forwarded(row, get_target(target), line));
    }
    for target in ["/<", "/>", "/`", "/a?<", "/a?>", "/a?\""] {
        table.push(refused("A-119", get_target(target), "400, closed"));
    }
    let overlong = b"GET /\xc0\xaf HTTP/1.1\r\nHost: localhost\r\n\r\n";
    table.push(refused("A-119", overlong.as_slice(), "400, closed"));
    check(&table);
}

/// A name that leads to this machine is not enough: names of others can do that too.
#[test]
fn only_own_names_are_answered_for() {
    let get_of = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let mut table = Vec::new();
    for host in [
        "localhost",
        "LOCALHOST:8080",
        "127.0.0.1",
        "127.0.0.1:8080",
        "[::1]:8080",
        // Seen through a forwarded port, it has another one.
        "localhost:1",
    ] {
        table.push(forwarded("D-02 A-122 H-12", get_of(host), GET));
    }
    for host in [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "192.0.2.1:8080",
        "[::ffff:127.0.0.1]",
        "LOCALHOST.",
        "0.0.0.0",
        "[::]:8080",
        "127.1",
        "2130706433",
        "127.0.0.1.",
        "127.0.0.2",
    ] {
        table.push(refused("D-02", get_of(host), "403 forbidden_host, open"));
    }
    check(&table);
}

#[test]
fn web_pages_of_other_origins_are_refused() {
    let preflight = [
        "Origin: https://evil.example",
        "Access-Control-Request-Method: POST",
    ];
    let handshake = [
        "Origin: https://evil.example",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version: 13",
    ];
    let refusal = "403 forbidden_origin, open";
    let mut table = vec![
        refused("D-05", request("OPTIONS /", &preflight, ""), refusal),
        refused("D-06", get(&handshake), refusal),
    ];
    for field in [
        "Origin: https://evil.example",
        "Origin: null",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
    ] {
        let simple = post(
            &[field, "Content-Type: text/plain", "Content-Length: 1"],
            "x",
        );
        table.push(refused("D-03", simple, refusal));
    }
    check(&table);
}
