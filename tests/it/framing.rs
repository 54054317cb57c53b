//! Where requests begin and end: nothing is taken for a request that is none, and nothing for whole that broke off.

use crate::support::client::request;
use crate::support::{AuthorizationServer, Client, Sidecar, Upstream};

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
