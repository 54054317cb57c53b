//! Requests that the sidecar answers itself, because of what they are. Nothing of them reaches the upstream.

use serde_json::Value;

use crate::support::client::request;
use crate::support::{AuthorizationServer, Response, Setup, Sidecar, Upstream};

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
    assert_eq!(sidecar.refused(code), 1.0);
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

///
#[test]
fn a_refused_expectant_request_gets_no_100_first() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    let fields = ["Origin: null", "Expect: 100-continue", "Content-Length: 5"];
    let answer = sidecar.send(request("POST /", &fields, ""));
    answer.assert_problem(403, "forbidden_origin");
}
