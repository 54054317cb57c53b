//! WebSockets: which handshakes pass, and what the others become.

use crate::support::certificates::Authority;
use crate::support::client::request;
use crate::support::server::Server;
use crate::support::websocket::{
    ASK, ROUTES, SWITCH, assert_echo, before, echo, granting, handshake, open, setup,
    wait_for_tunnels,
};
use crate::support::{AuthorizationServer, Setup, Upstream};

#[test]
fn a_handshake_passes_and_then_bytes() {
    let (sidecar, upstream, _auth) = before(echo);
    let more = [
        "X-Request-Id: r",
        "Authorization: Bearer evil",
        "Sec-WebSocket-Protocol: payments.v1, payments.v2",
        "Sec-WebSocket-Extensions: permessage-deflate",
        "Cookie: a=1",
    ];
    let mut client = sidecar.client();
    client.send(handshake(&more, ""));
    let answer = client.receive_head();
    assert_eq!(answer.status(), 101);
    for (name, value) in [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ("x-request-id", "r"),
    ] {
        assert_eq!(answer.value(name).unwrap(), value);
    }
    assert_eq!(answer.head.framing(), None);
    wait_for_tunnels(&sidecar, 1.0);
    assert_echo(&mut client, "\u{0}GET / HTTP/1.1\r\n\r\n\u{7f}");
    assert_eq!(sidecar.get("/").ok(), "ok", "others are served");
    client.finish();
    assert_eq!(client.receive_rest(), b"");
    wait_for_tunnels(&sidecar, 0.0);
    assert_eq!(
        sidecar.get("/socket").ok(),
        "ok",
        "the token and the route are as ever"
    );
    let handshake = upstream.requests().remove(0).wire();
    let host = format!("host: {}\n", upstream.address);
    let expected = [
        "GET /socket HTTP/1.1\n",
        "authorization: Bearer token-1\n",
        "connection: upgrade\n",
        "cookie: a=1\n",
        &host,
        "sec-websocket-extensions: permessage-deflate\n",
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\n",
        "sec-websocket-protocol: payments.v1, payments.v2\n",
        "sec-websocket-version: 13\n",
        "upgrade: websocket\n",
        "via: 1.1 bearerd\n",
        "x-request-id: r\n",
        "\n",
    ];
    assert_eq!(handshake, expected.concat());
}

/// Names of protocols and options have no case, and may stand in a list.
#[test]
fn a_handshake_may_be_written_in_many_ways() {
    let (sidecar, upstream, _auth) = before(echo);
    for (connection, upgrade) in [
        ("keep-alive, Upgrade", "WebSocket"),
        ("UPGRADE", "WEBSOCKET"),
        ("upgrade,,keep-alive", "websocket"),
        ("Upgrade", "websocket, h2c"),
        ("Upgrade, HTTP2-Settings", "h2c, websocket"),
    ] {
        let fields = [
            format!("Connection: {connection}"),
            format!("Upgrade: {upgrade}"),
            "HTTP2-Settings: AAMAAABkAAQAAP__".to_owned(),
        ];
        let fields: Vec<_> = fields.iter().map(String::as_str).collect();
        let mut client = sidecar.client();
        client.send(request("GET /socket", &fields, ""));
        assert_eq!(client.receive_head().status(), 101, "{fields:?}");
        assert_echo(&mut client, "hello");
        let head = upstream.requests().pop().unwrap().head;
        assert_eq!(head.value("upgrade").unwrap(), "websocket");
        assert_eq!(head.value("connection").unwrap(), "upgrade");
        assert_eq!(head.value("http2-settings"), None, "A-096");
    }
}

/// A-096, A-097, D-38: what is no WebSocket on a route that allows it is an ordinary request.
#[test]
fn what_is_no_handshake_is_forwarded_plainly() {
    let upgrade = "Upgrade: websocket";
    let connection = "Connection: Upgrade";
    let elsewhere = request("GET /elsewhere", &ASK, "");
    for (what, request) in [
        ("another route", elsewhere),
        (
            "nothing in Connection",
            request("GET /socket", &[upgrade], ""),
        ),
        (
            "something else in Connection",
            request("GET /socket", &[upgrade, "Connection: keep-alive"], ""),
        ),
        (
            "nothing in Upgrade",
            request("GET /socket", &[connection], ""),
        ),
        (
            "h2c",
            request(
                "GET /socket",
                &[
                    "Connection: Upgrade, HTTP2-Settings",
                    "Upgrade: h2c",
                    "HTTP2-Settings: AAMAAABkAAQAAP__",
                ],
                "",
            ),
        ),
        (
            "TLS",
            request("GET /socket", &[connection, "Upgrade: TLS/1.3"], ""),
        ),
        (
            "nearly",
            request("GET /socket", &[connection, "Upgrade: websocket/13"], ""),
        ),
        ("a POST", request("POST /socket", &ASK, "")),
        (
            "a POST with a body",
            request(
                "POST /socket",
                &[&ASK[..], &["Content-Length: 5"]].concat(),
                "hello",
            ),
        ),
        (
            "a GET with a body",
            request(
                "GET /socket",
                &[&ASK[..], &["Content-Length: 5"]].concat(),
                "hello",
            ),
        ),
    ] {
        let (sidecar, upstream, _auth) = before(echo);
        let mut client = sidecar.client();
        assert_eq!(client.exchange(request).ok(), "ok", "{what}");
        let head = upstream.requests().remove(0).head;
        for name in ["upgrade", "connection", "http2-settings"] {
            assert_eq!(head.value(name), None, "{what}");
        }
        wait_for_tunnels(&sidecar, 0.0);
    }
}

/// RFC 9110 §7.8: HTTP/1.0 knows no upgrade.
#[test]
fn an_upgrade_in_http10_is_ignored() {
    let (sidecar, upstream, _auth) = before(echo);
    let http10 = String::from_utf8(handshake(&[], "")).unwrap();
    let mut client = sidecar.client();
    client.send(http10.replace("HTTP/1.1", "HTTP/1.0"));
    let answer = client.receive_rest();
    assert!(
        answer.starts_with(b"HTTP/1.0 200 OK\r\n"),
        "{}",
        answer.escape_ascii()
    );
    assert_eq!(upstream.request().head.value("upgrade"), None);
}

/// A-072, A-097: nobody asked for it.
#[test]
fn a_101_that_was_not_asked_for_is_an_error() {
    let (upstream, auth) = (Upstream::answering_once(SWITCH), AuthorizationServer::new());
    let sidecar = setup(&upstream, &auth).start();
    for request in [
        request("GET /elsewhere", &ASK, ""),
        request("GET /socket", &[], ""),
        request("GET /socket", &["Connection: Upgrade", "Upgrade: h2c"], ""),
        request(
            "POST /socket",
            &[&ASK[..], &["Content-Length: 0"]].concat(),
            "",
        ),
    ] {
        sidecar
            .send(request)
            .assert_problem(502, "upstream_protocol_error");
    }
}

/// RFC 9110 §7.8: the upstream may not choose what was not offered.
#[test]
fn a_101_for_another_protocol_is_an_error() {
    for fields in [
        "Connection: Upgrade\r\nUpgrade: h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
        "Connection: Upgrade\r\n",
        "Upgrade: websocket\r\n",
        "",
    ] {
        let answer = format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\nevil");
        let (upstream, auth) = (Upstream::answering_once(answer), AuthorizationServer::new());
        let sidecar = setup(&upstream, &auth).start();
        let answer = sidecar.send(handshake(&[], ""));
        answer.assert_problem(502, "upstream_protocol_error");
        wait_for_tunnels(&sidecar, 0.0);
        assert_eq!(sidecar.metric("http_server_active_requests"), 0.0);
    }
}

#[test]
fn a_refused_handshake_is_an_ordinary_answer() {
    let (upstream, auth) = (
        Upstream::scripted(|exchange| {
            let refused = exchange.head.value("upgrade").is_some();
            let status = if refused {
                "426 Upgrade Required\r\nX-Why: version"
            } else {
                "200 OK"
            };
            exchange.send(format!("HTTP/1.1 {status}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nno"))
        }),
        AuthorizationServer::new(),
    );
    let sidecar = setup(&upstream, &auth).start();
    let mut client = sidecar.client();
    for _ in 0..2 {
        let answer = client.exchange(handshake(&[], ""));
        assert_eq!((answer.status(), answer.text()), (426, "no".to_owned()));
        assert_eq!(answer.value("x-why").unwrap(), "version");
        assert_eq!(answer.value("connection"), None);
        assert_eq!(client.exchange(request("GET /", &[], "")).ok(), "no");
    }
    wait_for_tunnels(&sidecar, 0.0);
    sidecar.wait_for_metric("http_server_active_requests", 0.0);
}

/// E-11, E-13, A-082
#[test]
fn a_handshake_that_fails_is_told_as_any_failure() {
    for (upstream, code) in [
        (Upstream::down(), "upstream_unreachable"),
        (
            Upstream::scripted(|exchange| exchange.reset()),
            "upstream_reset",
        ),
        (
            Upstream::answering_once("HTTP/1.1 101 Swi"),
            "upstream_reset",
        ),
    ] {
        let auth = AuthorizationServer::new();
        let sidecar = setup(&upstream, &auth).start();
        sidecar.send(handshake(&[], "")).assert_problem(502, code);
        wait_for_tunnels(&sidecar, 0.0);
    }
}

/// D-06, D-02: browsers ask nobody before they open a WebSocket, so the rules for origins are all there is.
#[test]
fn web_pages_of_other_origins_get_no_socket() {
    let (upstream, auth) = (granting(echo), AuthorizationServer::new());
    let sidecar = setup(&upstream, &auth)
        .proxy("allowed_origins = [\"http://localhost:3000\"]")
        .start();
    for origin in [
        "https://evil.example",
        "null",
        "http://localhost:3001",
        "http://localhost.evil.example",
    ] {
        let origin = format!("Origin: {origin}");
        let answer = sidecar.send(handshake(&[&origin], ""));
        answer.assert_problem(403, "forbidden_origin");
    }
    let cross_site = handshake(
        &["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: websocket"],
        "",
    );
    sidecar
        .send(cross_site)
        .assert_problem(403, "forbidden_origin");
    let rebound = String::from_utf8(handshake(&[], ""))
        .unwrap()
        .replace("Host: localhost", "Host: evil.example");
    sidecar.send(rebound).assert_problem(403, "forbidden_host");
    assert_eq!(upstream.requests().len(), 0);
    for origin in ["Origin: http://localhost", "Origin: http://localhost:3000"] {
        let mut client = sidecar.client();
        client.send(handshake(&[origin], ""));
        assert_eq!(client.receive_head().status(), 101, "{origin}");
    }
}

/// Over TLS the connection of a handshake offers HTTP/1.1 alone, whatever the others use.
#[test]
fn an_https_upstream_is_asked_over_http1() {
    let authority = Authority::new();
    let tls = authority.server("127.0.0.1", &["h2", "http/1.1"]);
    let server = Server::start(Some(tls), |exchange| {
        exchange.send(SWITCH)?;
        let result = echo(exchange);
        exchange.close()?;
        result
    });
    let auth = AuthorizationServer::new();
    let sidecar = Setup::new(&format!("https://{}", server.address), &auth)
        .trusting(&authority)
        .tables(ROUTES)
        .start();
    let mut client = open(&sidecar);
    assert_echo(&mut client, "hello");
    client.finish();
    assert_eq!(client.receive_rest(), b"");
    assert_eq!(
        server.requests()[0].head.value("authorization").unwrap(),
        "Bearer token-1"
    );
}
