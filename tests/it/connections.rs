//! Connections to upstream and application: kept, used again, and given up at the right moment.

use std::thread;

use crate::support::authorization_server::grant;
use crate::support::client::request;
use crate::support::upstream::OK;
use crate::support::{AuthorizationServer, Client, Gate, Setup, Sidecar, Upstream, wait_until};

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

/// H-08: idle connections are swept although nobody asks for one.
#[test]
fn an_idle_connection_to_the_upstream_is_closed_in_time() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth)
        .upstream("pool_idle_timeout = \"200ms\"")
        .start();
    assert_eq!(sidecar.get("/").ok(), "ok");
    sidecar.wait_for_metric("bearerd_upstream_connections_open", 0.0);
    assert_eq!(upstream.connections(), 1);
}

/// H-09
#[test]
fn no_more_idle_connections_are_kept_than_configured() {
    const AT_ONCE: usize = 10;
    let (gate, auth) = (Gate::default(), AuthorizationServer::new());
    let held = gate.clone();
    let upstream = Upstream::scripted(move |exchange| {
        held.wait();
        exchange.send(OK)
    });
    let sidecar = Setup::between(&upstream, &auth)
        .upstream("max_idle_connections = 2")
        .tables("[runtime]\nworkers = 1")
        .start();
    let mut clients: Vec<Client> = (0..AT_ONCE).map(|_| sidecar.client()).collect();
    for client in &mut clients {
        client.send(request("GET /", &[], ""));
    }
    upstream.wait_for_requests(AT_ONCE);
    assert_eq!(upstream.connections(), AT_ONCE);
    gate.open();
    for client in &mut clients {
        assert_eq!(client.receive().ok(), "ok");
    }
    sidecar.wait_for_metric("bearerd_upstream_connections_open", 2.0);
    for client in &mut clients {
        assert_eq!(client.exchange(request("GET /", &[], "")).ok(), "ok");
    }
    assert_eq!(upstream.connections(), AT_ONCE, "and those are used again");
}

/// H-10: a request that finds no idle connection begins a new one, and takes whichever is there first; so there may be
/// more connections than requests at a time, but not many more.
#[test]
fn a_steady_load_does_not_make_ever_more_connections() {
    const APPLICATIONS: usize = 16;
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth).start();
    thread::scope(|scope| {
        for _ in 0..APPLICATIONS {
            scope.spawn(|| {
                let mut client = sidecar.client();
                for _ in 0..100 {
                    assert_eq!(client.exchange(request("GET /", &[], "")).ok(), "ok");
                }
            });
        }
    });
    let connections = upstream.connections();
    println!("{connections} connections");
    assert!(connections <= 2 * APPLICATIONS, "{connections} connections");
}

/// E-10: a name may have an address where nobody listens (of `localhost` on many machines `::1`), and a node may be bad: each
/// token request has a connection of its own, so the next one finds a better.
#[test]
fn each_token_request_finds_a_way_of_its_own() {
    let upstream = Upstream::ok();
    let auth = AuthorizationServer::scripted(|exchange| match exchange.number {
        0 => exchange.reset(),
        _ => exchange.send(grant("token", 3600.0)),
    });
    let url = format!("http://localhost:{}/o/token/", auth.address.port());
    let sidecar =
        Setup::between(&upstream, &auth).start_process_with(&[("BEARERD_TOKEN_URL", &url)]);
    sidecar.wait_until_ready();
    assert_eq!(sidecar.get("/").ok(), "ok");
    assert_eq!((auth.requests().len(), auth.connections()), (2, 2));
}
