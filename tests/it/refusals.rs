//! Requests that the sidecar answers itself, because of what they are. Nothing of them reaches the upstream.

use serde_json::Value;

use crate::support::client::request;
use crate::support::{AuthorizationServer, Response, Setup, Upstream};

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

/// D-33, D-34
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
    assert!(!answer.text().contains("evil"), "nothing is reflected");
}

/// D-02: besides the loopback names.
#[test]
fn listed_hosts_are_answered_for() {
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

/// D-03: besides programs, which send no Origin.
#[test]
fn pages_of_listed_origins_are_served() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("allowed_origins = [\"http://localhost:3000\"]")
        .start();
    let fields = ["Origin: http://localhost:3000", "Sec-Fetch-Site: same-site"];
    assert_eq!(sidecar.send(request("GET /", &fields, "")).ok(), "ok");
}

/// D-04, D-09: somebody who can make the application send a request cannot make it send this field.
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
