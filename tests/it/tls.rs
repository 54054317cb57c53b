//! TLS with upstream and authorization server: whom the sidecar believes, and by what it proves who it is.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use rustls::ServerConfig;

use crate::support::certificates::Authority;
use crate::support::client::request;
use crate::support::upstream::OK;
use crate::support::{AuthorizationServer, Process, Setup, Upstream, wait_until};

const ALPN: &[&str] = &["http/1.1"];
const HOST: &str = "127.0.0.1";

/// Servers that prove nothing, and what the log says of each.
fn bad_servers(authority: &Authority) -> [(Arc<ServerConfig>, &'static str); 5] {
    [
        (authority.expired_server(HOST, ALPN), "certificate expired"),
        (authority.early_server(HOST, ALPN), "not valid yet"),
        (
            authority.server("api.example", ALPN),
            "not valid for name \"127.0.0.1\"; certificate is only valid for DnsName(\"api.example\")",
        ),
        (Authority::self_signed_server(HOST, ALPN), "UnknownIssuer"),
        (Authority::new().server(HOST, ALPN), "UnknownIssuer"),
    ]
}

/// Waits for a line of the log that holds `cause`.
fn wait_for_cause(process: &Process, cause: &str) {
    // The log is JSON.
    let cause = cause.replace('"', "\\\"");
    wait_until(&format!("{cause} in the log"), || {
        process.stderr().contains(&cause)
    });
}

/// C-75, E-28: the upstream. The cause is in the log, and no byte of a request is sent.
#[test]
fn an_upstream_that_proves_nothing_gets_nothing() {
    let (upstream, auth) = (
        Upstream::scripted_tls(|exchange| exchange.send(OK)),
        AuthorizationServer::new(),
    );
    let sidecar = Setup::between(&upstream, &auth).start_process();
    for (tls, cause) in bad_servers(upstream.authority().unwrap()) {
        upstream.set_tls(tls);
        let post = request("POST /", &["Content-Length: 5"], "hello");
        sidecar.send(post).assert_problem(502, "upstream_tls_error");
        wait_for_cause(&sidecar.process, cause);
    }
    assert_eq!((upstream.connections(), upstream.received()), (5, 0));
    let failed = "bearerd_upstream_connect_duration_seconds_count{outcome=\"tls_error\"}";
    assert_eq!(sidecar.metric(failed), 5.0);
}

/// C-75, E-06: the authorization server. The secret is not sent, and the upstream does not hear of it.
#[test]
fn an_authorization_server_that_proves_nothing_gets_no_secret() {
    let upstream = Upstream::ok();
    for index in 0..5 {
        let auth = AuthorizationServer::tls();
        let (tls, cause) = bad_servers(auth.authority().unwrap())[index].clone();
        auth.set_tls(tls);
        let sidecar = Setup::between(&upstream, &auth)
            .credential("wait_timeout = \"10ms\"")
            .start_process_unready();
        sidecar.get("/").assert_problem(503, "token_unavailable");
        wait_for_cause(&sidecar.process, cause);
        let outcome = "bearerd_token_requests_total{outcome=\"tls_error\",token=\"payments\",trigger=\"startup\"}";
        sidecar.wait_for_metric(outcome, 1.0);
        assert!(auth.connections() > 0);
        assert_eq!(auth.received(), 0);
    }
    assert_eq!(upstream.connections(), 0);
}

/// C-75: a server that speaks nothing newer than TLS 1.1.
#[test]
fn tls_1_1_is_not_spoken() {
    let auth = AuthorizationServer::new();
    let old = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", old.local_addr().unwrap());
    let server = thread::spawn(move || {
        let (mut stream, _) = old.accept().unwrap();
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).unwrap();
        // A fatal alert, protocol_version, in a record of TLS 1.1.
        stream.write_all(&[21, 3, 2, 0, 2, 2, 70]).unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        hello
    });
    let sidecar = Setup::new(&url, &auth).start();
    sidecar.get("/").assert_problem(502, "upstream_tls_error");
    let hello = server.join().unwrap();
    assert_eq!(hello[0], 22, "a handshake, and nothing in clear");
}

/// A server that is believed by another name than that of its URL is asked for by that name.
#[test]
fn server_name_is_what_is_verified() {
    let (upstream, auth) = (
        Upstream::scripted_tls(|exchange| exchange.send(OK)),
        AuthorizationServer::new(),
    );
    let authority = upstream.authority().unwrap();
    upstream.set_tls(authority.server("api.example", ALPN));
    let named = |name: &str| {
        Setup::between(&upstream, &auth)
            .upstream(&format!("server_name = {name:?}"))
            .start()
    };
    assert_eq!(named("api.example").get("/").ok(), "ok");
    assert_eq!(
        upstream.request().head.value("host").unwrap(),
        upstream.address.to_string(),
        "the request itself is for the host of the URL"
    );
    let answer = named("other.example").get("/");
    answer.assert_problem(502, "upstream_tls_error");
    // An address can be the name too; it is not sent as SNI.
    upstream.set_tls(authority.server("10.0.0.7", ALPN));
    assert_eq!(named("10.0.0.7").get("/").ok(), "ok");
}

fn identity((certificate, key): &(PathBuf, PathBuf)) -> String {
    format!("client_cert_file = {certificate:?}\nclient_key_file = {key:?}")
}

/// An upstream that wants a certificate gets ours, over HTTP/1.1 and for an upgrade, and refuses those of others.
#[test]
fn an_upstream_may_want_a_client_certificate() {
    let (upstream, auth) = (
        Upstream::scripted_tls(|exchange| {
            exchange.body();
            exchange.send(OK)
        }),
        AuthorizationServer::new(),
    );
    let (clients, strangers) = (Authority::new(), Authority::new());
    let authority = upstream.authority().unwrap();
    upstream.set_tls(authority.server_for(&clients, HOST, ALPN));
    let with = |lines: &str| Setup::between(&upstream, &auth).upstream(lines).start();
    let ours = identity(&clients.client("shop"));
    let sidecar = with(&ours);
    assert_eq!(sidecar.get("/").ok(), "ok");
    let upgrade = ["Connection: Upgrade", "Upgrade: websocket"];
    assert_eq!(sidecar.send(request("GET /", &upgrade, "")).ok(), "ok");
    assert_eq!(upstream.requests().len(), 2);
    let theirs = identity(&strangers.client("shop"));
    for lines in ["", theirs.as_str()] {
        let answer = with(lines).get("/");
        answer.assert_problem(502, "upstream_tls_error");
    }
    assert_eq!(upstream.requests().len(), 2);
}

/// C-13: so may an authorization server, with a certificate of its own.
#[test]
fn an_authorization_server_may_want_a_client_certificate() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::tls());
    let clients = Authority::new();
    auth.set_tls(auth.authority().unwrap().server_for(&clients, HOST, ALPN));
    let without = Setup::between(&upstream, &auth)
        .credential("wait_timeout = \"10ms\"")
        .start_unready();
    let outcome = "bearerd_token_requests_total{outcome=\"tls_error\",token=\"payments\",trigger=\"startup\"}";
    without.wait_for_metric(outcome, 1.0);
    without.get("/").assert_problem(503, "token_unavailable");
    assert_eq!(auth.received(), 0);
    let with = Setup::between(&upstream, &auth)
        .credential(&identity(&clients.client("shop")))
        .start();
    assert_eq!(with.get("/").ok(), "ok");
    assert_eq!(auth.requests().len(), 1);
}

/// What is wrong with the files is told at the start, and their content is not shown.
#[test]
fn a_client_certificate_that_cannot_be_used_is_told_at_the_start() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let clients = Authority::new();
    let (one, other) = (clients.client("one"), clients.client("other"));
    let mixed = identity(&(one.0, other.1));
    let config = Setup::between(&upstream, &auth).credential(&mixed);
    let config = config.config_file().display().to_string();
    let ended = Process::run(&["--config", &config, "check"], &[]);
    assert_eq!(ended.code, 78);
    assert!(
        ended
            .stderr
            .contains("other.key: is not the key of the certificate"),
        "{}",
        ended.stderr
    );
    assert!(ended.stderr.contains("hint: the first certificate"));
    assert!(!ended.stderr.contains("BEGIN"));
}
