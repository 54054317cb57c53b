//! Requests that the sidecar answers itself, because of what they are. Nothing of them reaches the upstream.

use serde_json::Value;

use crate::support::client::request;
use crate::support::{
    AuthorizationServer, Client, Gate, Response, Setup, Sidecar, Upstream, wait_until,
};

/// Asserts that a sidecar with these lines in `[proxy]` refuses `request` so, counts it, and forwards nothing.
fn assert_refused_with(
    proxy: &str,
    request: impl AsRef<[u8]>,
    status: u16,
    code: &str,
) -> Response {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth).proxy(proxy).start();
    let shown = String::from_utf8_lossy(request.as_ref()).into_owned();
    let answer = sidecar.send(&request);
    answer.assert_problem(status, code);
    assert!(!answer.text().contains(&upstream.address.to_string()));
    let refused = format!("bearerd_rejected_requests_total{{reason=\"{code}\"}}");
    assert_eq!(sidecar.metric(&refused), 1.0);
    sidecar.stop();
    assert_eq!(upstream.connections(), 0, "{shown}");
    answer
}

fn assert_refused(request: impl AsRef<[u8]>, status: u16, code: &str) -> Response {
    assert_refused_with("", request, status, code)
}

/// A GET with this text after its request line.
fn get_with(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\n{fields}\r\n")
}

#[test]
fn a_refusal_says_who_refuses_and_why() {
    let answer = assert_refused(
        get_with("Host: evil.example\r\nX-Request-Id: r-1\r\n"),
        403,
        "forbidden_host",
    );
    assert_eq!(answer.value("x-request-id").unwrap(), "r-1");
    assert_eq!(
        answer.value("proxy-status").unwrap(),
        "bearerd; error=http_request_denied"
    );
    let problem: Value = serde_json::from_slice(&answer.body.data).unwrap();
    assert_eq!(problem["type"], "urn:bearerd:problem:forbidden_host");
    assert_eq!(problem["title"], "The Host is not allowed");
    assert!(
        !answer.text().contains("evil"),
        "D-33: nothing is reflected"
    );
}

/// A-001…A-004
#[test]
fn exactly_one_valid_host_is_needed() {
    for hosts in [
        "",
        "Host: a\r\nHost: b\r\n",
        "Host: localhost\r\nHost: localhost\r\n",
        "Host: u@localhost\r\n",
    ] {
        assert_refused(get_with(hosts), 400, "bad_request");
    }
}

/// D-02
#[test]
fn other_hosts_are_not_answered_for() {
    for host in [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "192.0.2.1:8080",
    ] {
        assert_refused(
            get_with(&format!("Host: {host}\r\n")),
            403,
            "forbidden_host",
        );
    }
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("allowed_hosts = [\"sidecar.internal\"]")
        .start();
    for host in [
        "sidecar.internal:8080",
        "LOCALHOST",
        "127.0.0.1",
        "[::1]:8080",
    ] {
        assert_eq!(
            sidecar.send(get_with(&format!("Host: {host}\r\n"))).ok(),
            "ok"
        );
    }
}

/// D-03
#[test]
fn web_pages_of_other_origins_are_refused() {
    for field in [
        "Origin: https://evil.example",
        "Origin: null",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
    ] {
        let post = request(
            "POST /",
            &[field, "Content-Type: text/plain", "Content-Length: 1"],
            "x",
        );
        assert_refused(post, 403, "forbidden_origin");
    }
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("allowed_origins = [\"http://localhost:3000\"]")
        .start();
    let fields = ["Origin: http://localhost:3000", "Sec-Fetch-Site: same-site"];
    assert_eq!(sidecar.send(request("GET /", &fields, "")).ok(), "ok");
}

/// D-04
#[test]
fn a_required_header_is_required_with_its_value() {
    let proxy = "require_header = \"X-Sidecar: 1\"";
    assert_refused_with(proxy, request("GET /", &[], ""), 403, "missing_header");
    assert_refused_with(
        proxy,
        request("GET /", &["X-Sidecar: 2"], ""),
        403,
        "missing_header",
    );
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth).proxy(proxy).start();
    assert_eq!(
        sidecar.send(request("GET /", &["x-sidecar: 1"], "")).ok(),
        "ok"
    );
}

/// A-113, D-29
#[test]
fn methods_that_would_show_or_tunnel_the_credential_are_refused() {
    for line in ["TRACE /", "TRACK /", "CONNECT localhost:443"] {
        let answer = assert_refused(request(line, &[], ""), 405, "method_not_allowed");
        assert!(answer.value("allow").unwrap().contains("GET"));
    }
}

/// A-110…A-115
#[test]
fn targets_that_are_no_path_are_refused() {
    for target in [
        "http://other.example/x",
        "http://u:p@localhost/x",
        "https://localhost/x",
        "*",
        "localhost:80",
    ] {
        assert_refused(
            request(&format!("GET {target}"), &[], ""),
            400,
            "bad_request",
        );
    }
}

///
#[test]
fn framing_that_could_be_read_in_two_ways_is_refused() {
    let body = "5\r\nhello\r\n0\r\n\r\n";
    for (codings, status, code) in [
        (
            vec!["Transfer-Encoding: chunked, chunked"],
            400,
            "bad_request",
        ),
        (
            vec!["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
            400,
            "bad_request",
        ),
        (
            vec!["Transfer-Encoding: gzip, chunked"],
            501,
            "unsupported_transfer_coding",
        ),
    ] {
        assert_refused(request("POST /", &codings, body), status, code);
    }
}

///
#[test]
fn other_expectations_cannot_be_met() {
    let post = request("POST /", &["Expect: payment", "Content-Length: 1"], "x");
    assert_refused(post, 417, "expectation_failed");
}

///
#[test]
fn a_request_that_has_been_here_is_a_loop() {
    let get = request("GET /", &["Via: 1.1 proxy.example, 1.1 bearerd"], "");
    assert_refused(get, 508, "loop_detected");
}

/// The sidecar as its own upstream.
#[test]
fn a_loop_ends_at_its_second_pass() {
    let auth = AuthorizationServer::new();
    let outer = Upstream::scripted(|exchange| {
        exchange.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    });
    let inner = Setup::new(&outer.url(), &auth).start();
    let sidecar = Setup::new(&format!("http://{}", inner.proxy), &auth).start();
    sidecar.get("/").assert_problem(508, "loop_detected");
    assert_eq!(outer.connections(), 0);
}

///
#[test]
fn more_connection_options_than_anybody_sends_are_refused() {
    let options = format!("Connection: {}", vec!["x"; 65].join(","));
    assert_refused(request("GET /", &[&options], ""), 400, "bad_request");
}

/// D-57
#[test]
fn a_body_over_the_limit_is_refused() {
    let limit = "max_body_bytes = \"8B\"";
    let post = request("POST /", &["Content-Length: 9"], "123456789");
    assert_refused_with(limit, post, 413, "body_too_large");
}

/// D-57: of a chunked body the length shows only on the way, so the upstream gets an aborted request.
#[test]
fn a_chunked_body_over_the_limit_never_looks_complete() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("max_body_bytes = \"8B\"")
        .start();
    let fields = ["Transfer-Encoding: chunked"];
    let at_the_limit = sidecar.send(request("POST /", &fields, "8\r\n12345678\r\n0\r\n\r\n"));
    assert_eq!(at_the_limit.ok(), "ok");
    let mut client = sidecar.client();
    client.send(request("POST /", &fields, "4\r\n1234\r\n"));
    upstream.wait_for_requests(2);
    client.send("5\r\n56789\r\n0\r\n\r\n");
    client.receive().assert_problem(413, "body_too_large");
    wait_until("its end at the upstream", || upstream.requests()[1].is_over);
    assert!(!upstream.requests()[1].body.complete);
}

/// the answer is readable although the body was not taken.
#[test]
fn a_refusal_is_readable_while_a_large_body_is_sent() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    for _ in 0..20 {
        let mut client = sidecar.client();
        client.send(request(
            "POST /",
            &["Origin: null", "Content-Length: 50000000"],
            "",
        ));
        for _ in 0..20 {
            if client.try_send([b'x'; 10_000]).is_err() {
                break;
            }
        }
        client.receive().assert_problem(403, "forbidden_origin");
    }
    assert_eq!(upstream.connections(), 0);
}

///
#[test]
fn a_refused_expectant_request_gets_no_100_first() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    let fields = ["Origin: null", "Expect: 100-continue", "Content-Length: 5"];
    let answer = sidecar.send(request("POST /", &fields, ""));
    answer.assert_problem(403, "forbidden_origin");
}

/// what was a body is never taken for a request.
#[test]
fn the_body_of_a_refused_request_is_no_request() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    let poison = request("GET /poison", &[], "");
    let length = format!("Content-Length: {}", poison.len());
    let mut client = sidecar.client();
    client.send(request("POST /", &["Origin: null", &length], poison));
    client.receive().assert_problem(403, "forbidden_origin");
    client.finish();
    assert!(client.is_closed(), "one answer, and no more");
    assert_eq!(upstream.connections(), 0);
}

/// D-56
#[test]
fn more_requests_in_flight_than_the_limit_are_refused_at_once() {
    let (gate, auth) = (Gate::default(), AuthorizationServer::new());
    let opened = gate.clone();
    let upstream = Upstream::scripted(move |exchange| {
        gate.wait();
        exchange.send(crate::support::upstream::OK)
    });
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("max_in_flight = 1")
        .start();
    let mut first = sidecar.client();
    first.send(request("GET /", &[], ""));
    upstream.wait_for_requests(1);
    let second = sidecar.get("/");
    second.assert_problem(503, "overloaded");
    assert_eq!(second.value("retry-after").unwrap(), "1");
    opened.open();
    assert_eq!(first.receive().ok(), "ok");
    wait_until("room again", || sidecar.get("/").status() == 200);
}

/// D-55, A-052: the request lies unread, and its answer arrives all the same.
#[test]
fn more_connections_than_the_limit_get_a_readable_refusal() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("max_connections = 1")
        .start();
    let mut first = sidecar.client();
    assert_eq!(first.exchange(request("GET /", &[], "")).ok(), "ok");
    for _ in 0..20 {
        let mut second = sidecar.client();
        let _ = second.try_send(request("POST /", &["Content-Length: 5"], "hello"));
        let answer = second.receive();
        answer.assert_problem(503, "overloaded");
        assert_eq!(answer.value("connection").unwrap(), "close");
        assert!(second.is_closed());
    }
    assert_eq!(
        sidecar.admin("/livez").status(),
        200,
        "the admin port has room of its own"
    );
    drop(first);
    wait_until("room again", || sidecar.get("/").status() == 200);
    assert!(
        upstream
            .requests()
            .iter()
            .all(|request| request.method() == "GET")
    );
}

/// A-006… …A-042: hyper answers these itself; they are counted, and nothing is forwarded.
#[test]
fn what_is_not_http_is_refused_and_counted() {
    let large = format!("X: {}", "x".repeat(64 * 1024));
    let many = vec!["X: 1"; 101];
    let not_http = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n".to_vec(),
        b"GET\t/\tHTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        b"GET / HTTP/1.2\r\nHost: localhost\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        request("GET /", &["X: a\r\n b"], ""),
        request("GET /", &["Transfer-Encoding : chunked"], ""),
        request("GET /", &["X: \x00"], ""),
        request("GET /", &[": x"], ""),
        request("GET /", &["no colon"], ""),
        request(
            "POST /",
            &["Content-Length: 5", "Content-Length: 6"],
            "hello",
        ),
        request("POST /", &["Content-Length: +5"], "hello"),
        request("POST /", &["Content-Length: 5, 6"], "hello"),
        request("POST /", &["Transfer-Encoding: xchunked"], "hello"),
        request("POST /", &["Transfer-Encoding: chunked, gzip"], "hello"),
        b"POST / HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            .to_vec(),
        request("GET /", &[&large], ""),
        request("GET /", &many, ""),
        request(&format!("GET /{}", "x".repeat(70_000)), &[], ""),
    ];
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    for (number, bytes) in not_http.iter().enumerate() {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]);
        let mut client = Client::connect(sidecar.proxy);
        let _ = client.try_send(bytes);
        client.finish();
        assert!(client.is_refused(), "{shown}");
        sidecar.wait_for_metric("bearerd_downstream_parse_errors_total", (number + 1) as f64);
    }
    assert_eq!(upstream.connections(), 0);
    assert_eq!(sidecar.get("/").ok(), "ok");
}

/// both framings at once are one request for both sides, or none.
#[test]
fn content_length_beside_chunked_goes_no_further() {
    let framings = ["Content-Length: 6", "Transfer-Encoding: chunked"];
    for fields in [framings, [framings[1], framings[0]]] {
        let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
        let sidecar = Sidecar::between(&upstream, &auth);
        let mut client = sidecar.client();
        client.send(request("POST /", &fields, "0\r\n\r\nX"));
        let status = client.receive().status();
        client.finish();
        assert!(client.is_closed());
        if status == 200 {
            let sent = upstream.request();
            assert_eq!(sent.head.value("content-length"), None);
            assert_eq!(sent.body.raw, b"0\r\n\r\n");
        } else {
            assert_eq!((status, upstream.connections()), (400, 0));
        }
    }
}

/// A-042…A-046: the upstream sees a request that broke off, never a shorter one that looks whole.
#[test]
fn a_request_body_that_breaks_off_never_looks_complete() {
    for (framing, body) in [
        ("Content-Length: 10", "hello"),
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n"),
        ("Transfer-Encoding: chunked", "5\r\nhelloXX\r\n0\r\n\r\n"),
        (
            "Transfer-Encoding: chunked",
            "5\r\nhello\r\n+1\r\nx\r\n0\r\n\r\n",
        ),
        (
            "Transfer-Encoding: chunked",
            "5\r\nhello\r\n0x1\r\nx\r\n0\r\n\r\n",
        ),
    ] {
        let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
        let sidecar = Sidecar::between(&upstream, &auth);
        let mut client = sidecar.client();
        client.send(request("POST /", &[framing], body));
        client.finish();
        drop(client);
        upstream.wait_for_requests(1);
        let body = upstream.request().body;
        assert!(
            !body.complete,
            "{framing}: {:?}",
            String::from_utf8_lossy(&body.raw)
        );
    }
}
