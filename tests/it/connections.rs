//! Connections to upstream and application: kept, used again, and given up at the right moment.

use crate::support::client::request;
use crate::support::upstream::OK;
use crate::support::{AuthorizationServer, Gate, Setup, Sidecar, Upstream, wait_until};

/// connections of the two sides live and die apart.
#[test]
fn connections_are_kept_on_both_sides() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth)
        .tables("[runtime]\nworkers = 1")
        .start();
    let mut client = sidecar.client();
    for _ in 0..3 {
        assert_eq!(client.exchange(request("GET /", &[], "")).ok(), "ok");
    }
    let answer = client.exchange(request("GET /", &["Connection: close"], ""));
    assert_eq!(answer.value("connection").unwrap(), "close");
    assert!(client.is_closed());
    assert_eq!(sidecar.get("/").ok(), "ok");
    assert_eq!((upstream.requests().len(), upstream.connections()), (5, 1));
}

/// what nobody asked for is not delivered, and its connection not used again.
#[test]
fn unasked_bytes_after_an_answer_reach_nobody() {
    let (sidecar, upstream, _auth) = Sidecar::before("", |exchange| {
        exchange.send(format!("{OK}HTTP/1.1 408 Late\r\n\r\n"))
    });
    let mut client = sidecar.client();
    for _ in 0..5 {
        assert_eq!(client.exchange(request("GET /", &[], "")).ok(), "ok");
        sidecar.wait_for_metric("bearerd_upstream_connections_open", 0.0);
    }
    assert_eq!((upstream.requests().len(), upstream.connections()), (5, 5));
}

/// E-15: the upstream closes the connection while it is idle.
#[test]
fn a_stale_connection_costs_nothing() {
    let (sidecar, upstream, _auth) = Sidecar::before("", |exchange| {
        exchange.body();
        exchange.send(OK)
    });
    let post = request("POST /", &["Content-Length: 5"], "hello");
    for _ in 0..5 {
        assert_eq!(sidecar.send(&post).ok(), "ok");
        upstream.close_connections();
        sidecar.wait_for_metric("bearerd_upstream_connections_open", 0.0);
    }
    assert_eq!(upstream.requests().len(), 5);
}

/// E-15: the same while the next request is on its way already: it may fail, and is never sent twice.
#[test]
fn a_request_that_races_the_close_is_sent_at_most_once() {
    let (sidecar, upstream, _auth) = Sidecar::before("", |exchange| {
        exchange.body();
        exchange.send(OK)?;
        exchange.close()
    });
    let mut client = sidecar.client();
    for number in 0..200 {
        let post = request(&format!("POST /{number}"), &["Content-Length: 5"], "hello");
        let answer = client.exchange(post);
        assert!(
            answer.status() == 200 || answer.problem() == (502, "upstream_reset".to_owned()),
            "{answer:?}"
        );
    }
    let mut targets: Vec<String> = upstream
        .requests()
        .iter()
        .map(|request| request.target().to_owned())
        .collect();
    let all = targets.len();
    targets.sort_unstable();
    targets.dedup();
    assert_eq!(targets.len(), all, "sent twice");
}

/// H-05
#[test]
fn a_request_that_the_application_abandons_is_abandoned_upstream() {
    let gate = Gate::default();
    let held = gate.clone();
    let (sidecar, upstream, _auth) = Sidecar::before("", move |exchange| {
        held.wait();
        exchange.send(OK)
    });
    let mut client = sidecar.client();
    client.send(request("GET /", &[], ""));
    upstream.wait_for_requests(1);
    drop(client);
    sidecar.wait_for_metric("http_server_active_requests", 0.0);
    gate.open();
    wait_until("an idle sidecar", || {
        sidecar.metric("bearerd_upstream_connections_open") == 0.0
    });
    assert_eq!(sidecar.get("/").ok(), "ok");
    assert_eq!(
        upstream.requests().len(),
        2,
        "the abandoned request is not sent again"
    );
}
