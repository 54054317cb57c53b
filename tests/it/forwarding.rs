//! What reaches the upstream, beside what the tables say.

use crate::support::client::request;
use crate::support::h2_upstream::H2Upstream;
use crate::support::{AuthorizationServer, Setup, Sidecar, Upstream};

/// A-121: by text, never by the rules for references.
#[test]
fn the_base_path_is_put_in_front() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    for base in ["/v1", "/v1/"] {
        let sidecar = Setup::new(&format!("{}{base}", upstream.url()), &auth).start();
        let address = upstream.address;
        let empty = format!("GET http://{address} HTTP/1.1\r\nHost: {address}\r\n\r\n");
        assert_eq!(sidecar.send(empty).ok(), "ok");
        for target in ["/", "//x/../y?z", "/../x", "/..", "//evil.example/"] {
            assert_eq!(sidecar.get(target).ok(), "ok");
        }
    }
    let seen = upstream.requests();
    let targets: Vec<_> = seen.iter().map(|request| request.target()).collect();
    let once = [
        "/v1/",
        "/v1/",
        "/v1//x/../y?z",
        "/v1/../x",
        "/v1/..",
        "/v1//evil.example/",
    ];
    assert_eq!(targets, [once, once].concat());
}

/// A-110, A-111: the form that an HTTP proxy gets, for the upstream alone.
#[test]
fn the_absolute_form_of_the_upstream_is_taken() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    let address = upstream.address;
    let get = format!("GET http://{address}/x HTTP/1.1\r\nHost: {address}\r\n\r\n");
    assert_eq!(sidecar.send(get).ok(), "ok");
    assert_eq!(upstream.request().target(), "/x");
}

/// A-092, H-20: hyper's HTTP/2 client strips what `Connection` names, by itself.
#[test]
fn exactly_one_authorization_arrives_over_http2() {
    let (upstream, auth) = (H2Upstream::echo(), AuthorizationServer::new());
    let sidecar = Setup::new(&upstream.url(), &auth)
        .trusting(&upstream.authority)
        .start();
    let fields = [
        "Authorization: Bearer evil",
        "Connection: Authorization",
        "Content-Length: 5",
    ];
    assert_eq!(
        sidecar.send(request("POST /x?y", &fields, "hello")).ok(),
        "hello"
    );
    let request = upstream.request();
    assert_eq!(request.values("authorization"), ["Bearer token-1"]);
    assert_eq!(request.values("via"), ["1.1 bearerd"]);
    assert_eq!(request.values("host"), [""; 0]);
    assert_eq!(request.uri.to_string(), format!("{}/x?y", upstream.url()));
    assert_eq!(
        (request.method.as_str(), &request.body[..]),
        ("POST", &b"hello"[..])
    );
}

/// D-23
#[test]
fn a_request_id_is_kept_or_made_and_comes_back() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    let of_length = |length: usize| format!("X-Request-Id: {}", "r".repeat(length));
    let (longest, longer, giant) = (of_length(128), of_length(129), of_length(10 * 1024));
    for (fields, is_kept) in [
        (vec!["X-Request-Id: kept-1"], true),
        (vec![longest.as_str()], true),
        (vec![], false),
        (vec!["X-Request-Id:"], false),
        (vec![&longer], false),
        (vec![&giant], false),
        (vec!["X-Request-Id: a b"], false),
        (vec!["X-Request-Id: \u{e9}"], false),
    ] {
        let answer = sidecar.send(request("GET /", &fields, ""));
        let sent = upstream
            .requests()
            .pop()
            .unwrap()
            .head
            .value("x-request-id")
            .unwrap();
        assert_eq!(answer.value("x-request-id").unwrap(), sent);
        if is_kept {
            assert_eq!(fields, [format!("X-Request-Id: {sent}")]);
        } else {
            assert_eq!(sent.len(), 32, "a new one: {sent}");
        }
    }
}

/// They belong to the application, whoever else could read or write them.
#[test]
fn trace_context_passes_unchanged() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    let fields = [
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate: a=1",
        "baggage: b=2",
    ];
    assert_eq!(sidecar.send(request("GET /", &fields, "")).ok(), "ok");
    let wire = upstream.request().wire();
    for field in fields {
        assert!(wire.contains(&format!("\n{field}\n")), "{wire}");
    }
}

/// A-014
#[test]
fn field_values_are_bytes_both_ways() {
    let value: Vec<u8> = (0x80..=0xff).collect();
    let answer = [
        b"HTTP/1.1 200 OK\r\nx-bytes: ",
        &value[..],
        b"\r\ncontent-length: 0\r\n\r\n",
    ];
    let (upstream, auth) = (
        Upstream::answering(answer.concat()),
        AuthorizationServer::new(),
    );
    let sidecar = Sidecar::between(&upstream, &auth);
    let head = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Bytes: ";
    let answer = sidecar.send([head, &value[..], b"\r\n\r\n"].concat());
    let field = ("x-bytes".to_owned(), value);
    assert!(upstream.request().head.fields.contains(&field));
    assert!(answer.head.fields.contains(&field));
}

/// A-103: the application waits for leave to send its body.
#[test]
fn expect_100_continue_is_answered_when_the_body_is_wanted() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    let mut client = sidecar.client();
    client.send(request(
        "POST /",
        &["Expect: 100-continue", "Content-Length: 5"],
        "",
    ));
    assert_eq!(client.receive_head().status(), 100);
    client.send("hello");
    assert_eq!(client.receive().ok(), "ok");
    assert_eq!(upstream.request().head.value("expect"), None);
    assert_eq!(upstream.request().body.data, b"hello");
}

#[test]
fn configured_fields_are_set_and_removed() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth)
        .upstream("set_headers = { X-Team = \"shop\" }\nremove_headers = [\"Cookie\"]")
        .start();
    assert_eq!(
        sidecar
            .send(request("GET /", &["X-Team: evil", "Cookie: a=1"], ""))
            .ok(),
        "ok"
    );
    assert_eq!(upstream.request().head.values("x-team"), ["shop"]);
    assert_eq!(upstream.request().head.value("cookie"), None);
}
