//! Every limit has an answer, and what goes over it costs nothing.

use std::io;
use std::thread;
use std::time::Duration;

use crate::support::client::request;
use crate::support::upstream::OK;
use crate::support::{AuthorizationServer, Gate, Setup, Sidecar, Upstream, eventually, wait_until};

/// D-57
#[test]
fn a_body_over_the_limit_is_refused() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("max_body_bytes = \"8B\"")
        .start();
    let post = |body: &str| {
        request(
            "POST /",
            &[&format!("Content-Length: {}", body.len())],
            body,
        )
    };
    assert_eq!(sidecar.send(post("12345678")).ok(), "ok");
    sidecar
        .send(post("123456789"))
        .assert_problem(413, "body_too_large");
    assert_eq!(upstream.requests().len(), 1);
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

/// A-052, H-22: the answer is readable although the body was not taken, also for an application that sends it all before it
/// reads, and fails when it cannot.
#[test]
fn a_refusal_is_readable_after_a_large_upload() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    let upload = vec![b'x'; 2_000_000];
    for fields in [
        vec!["Origin: null", "Content-Length: 2000000"],
        vec![
            "Origin: null",
            "Content-Length: 2000000",
            "Connection: close",
        ],
    ] {
        for _ in 0..50 {
            let mut client = sidecar.client();
            client.send(request("POST /", &fields, ""));
            client.send(&upload);
            client.receive().assert_problem(403, "forbidden_origin");
        }
    }
    let mut client = sidecar.client();
    client.send(request(
        "POST /",
        &["Origin: null", "Transfer-Encoding: chunked"],
        "",
    ));
    client.send([b"80000\r\n", &upload[..0x80000], b"\r\n0\r\n\r\n"].concat());
    client.receive().assert_problem(403, "forbidden_origin");
    assert_eq!(
        client.exchange(request("GET /", &[], "")).ok(),
        "ok",
        "the connection goes on"
    );
    assert_eq!(upstream.connections(), 1);
}

/// as long as it comes to an end.
#[test]
fn an_unwanted_upload_that_stalls_ends_its_connection() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    let mut client = sidecar.client();
    client.send(request(
        "POST /",
        &["Origin: null", "Content-Length: 9"],
        "x",
    ));
    client.receive().assert_problem(403, "forbidden_origin");
    assert!(client.is_closed());
}

/// D-56
#[test]
fn more_requests_in_flight_than_the_limit_are_refused_at_once() {
    let (gate, auth) = (Gate::default(), AuthorizationServer::new());
    let opened = gate.clone();
    let upstream = Upstream::scripted(move |exchange| {
        gate.wait();
        exchange.send(OK)
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

/// D-50, D-51, H-01…H-03: the deadline counts from the first moment, not from the last byte.
#[test]
fn a_head_that_does_not_come_in_time_ends_its_connection() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("header_timeout = \"500ms\"")
        .start();
    let mut silent = sidecar.client();
    let mut idle = sidecar.client();
    assert_eq!(idle.exchange(request("GET /", &[], "")).ok(), "ok");
    let mut slow = sidecar.client();
    let dripping = eventually("the end of a slow head", || {
        thread::sleep(Duration::from_millis(20));
        slow.try_send("X").err()
    });
    assert!(matches!(
        dripping.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    ));
    assert!(silent.is_closed());
    assert!(idle.is_closed());
    sidecar.wait_for_metric("bearerd_connections_open", 0.0);
}

/// D-53: an application that asks for much and reads nothing.
#[test]
fn an_answer_that_nobody_reads_is_given_up() {
    let auth = AuthorizationServer::new();
    let upstream = Upstream::scripted(|exchange| {
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")?;
        loop {
            exchange.send([b'x'; 65536])?;
        }
    });
    let sidecar = Setup::between(&upstream, &auth)
        .upstream("idle_timeout = \"500ms\"")
        .start();
    let mut client = sidecar.client();
    client.send(request("GET /", &[], ""));
    upstream.wait_for_requests(1);
    sidecar.wait_for_metric("http_server_active_requests", 0.0);
    assert!(!client.receive_what_comes().body.complete);
}

///
#[test]
fn the_limit_of_heads_is_the_configured_one() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("max_header_bytes = \"8KiB\"")
        .start();
    let of_length = |length: usize| {
        let fixed = request("GET /", &["X: "], "").len();
        request(
            "GET /",
            &[&format!("X: {}", "x".repeat(length - fixed))],
            "",
        )
    };
    assert_eq!(sidecar.send(of_length(8 * 1024)).ok(), "ok");
    assert_eq!(sidecar.send(of_length(8 * 1024 + 1)).status(), 431);
    assert_eq!(upstream.requests().len(), 1);
}
