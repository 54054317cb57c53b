//! What reaches the upstream, byte for byte.

use crate::support::client::request;
use crate::support::h2_upstream::H2Upstream;
use crate::support::{AuthorizationServer, Setup, Sidecar, Upstream};

/// Asserts that of `request` exactly this reaches the upstream, besides what every request carries.
fn assert_forwarded(request: impl AsRef<[u8]>, line: &str, fields: &[&str], body: &str) {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    assert_eq!(sidecar.send(request).ok(), "ok");
    sidecar.stop();
    let host = format!("host: {}", upstream.address);
    let mut expected = vec!["authorization: Bearer token-1", &host, "via: 1.1 bearerd"];
    expected.extend(fields);
    if !fields
        .iter()
        .any(|field| field.starts_with("x-request-id:"))
    {
        expected.push("x-request-id: r");
    }
    expected.sort_unstable();
    let expected = format!("{line} HTTP/1.1\n{}\n\n{body}", expected.join("\n"));
    assert_eq!(upstream.request().wire(), expected);
}

const ID: &str = "X-Request-Id: r";

/// A-050, A-100, A-122
#[test]
fn a_get_without_a_body_has_no_framing() {
    assert_forwarded(
        request("GET /payments/", &[ID], ""),
        "GET /payments/",
        &[],
        "",
    );
    assert_forwarded(
        request("DELETE /payments/3", &[ID], ""),
        "DELETE /payments/3",
        &[],
        "",
    );
}

/// A-035
#[test]
fn a_body_of_known_length_keeps_its_length_in_canonical_form() {
    for length in ["5", "005"] {
        let length = format!("Content-Length: {length}");
        let post = request("POST /payments/", &[ID, &length], "hello");
        assert_forwarded(post, "POST /payments/", &["content-length: 5"], "hello");
    }
}

/// A-043: the chunks are made anew, so an extension goes no further.
#[test]
fn a_chunked_body_stays_chunked() {
    let body = "5;a=b\r\nhello\r\n0\r\n\r\n";
    let post = request("POST /payments/", &[ID, "Transfer-Encoding: chunked"], body);
    let fields = ["transfer-encoding: chunked"];
    assert_forwarded(post, "POST /payments/", &fields, "5\r\nhello\r\n0\r\n\r\n");
}

/// A-047, A-048
#[test]
fn a_get_with_a_body_keeps_it() {
    let body = "5\r\nhello\r\n0\r\n\r\n";
    let chunked = request("GET /search", &[ID, "Transfer-Encoding: chunked"], body);
    assert_forwarded(
        chunked,
        "GET /search",
        &["transfer-encoding: chunked"],
        body,
    );
    let counted = request("GET /search", &[ID, "Content-Length: 4"], "term");
    assert_forwarded(counted, "GET /search", &["content-length: 4"], "term");
}

/// A-049
#[test]
fn an_explicitly_empty_body_stays_explicit() {
    let post = request("POST /payments/3/void", &[ID, "Content-Length: 0"], "");
    assert_forwarded(post, "POST /payments/3/void", &["content-length: 0"], "");
}

/// A-053
#[test]
fn trailers_of_a_request_end_here() {
    let body = "5\r\nhello\r\n0\r\nAuthorization: Bearer evil\r\nX-Checksum: 1\r\n\r\n";
    let fields = [ID, "Transfer-Encoding: chunked", "Trailer: X-Checksum"];
    assert_forwarded(
        request("POST /", &fields, body),
        "POST /",
        &["transfer-encoding: chunked"],
        "5\r\nhello\r\n0\r\n\r\n",
    );
}

/// A-117, A-118, A-119
#[test]
fn path_and_query_are_byte_identical() {
    for target in [
        "/a%2Fb%20c%zz?x=%0d%0a&y=a+b?z",
        "//evil.example/x",
        "/a;b=c/../d?",
    ] {
        let line = format!("GET {target}");
        assert_forwarded(request(&line, &[ID], ""), &line, &[], "");
    }
}

/// A-116, A-119
#[test]
fn odd_targets_arrive_as_they_are_or_not_at_all() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    for target in [
        "/\"", "/{a}", "/<a>", "/a\\b", "/|^`", "/é", "/a?é", "/%", "/%00", "/a b",
    ] {
        let before = upstream.requests().len();
        let answer = sidecar.get(target);
        if answer.status() == 200 {
            assert_eq!(upstream.requests()[before].target(), target);
        } else {
            assert_eq!(
                (answer.status(), upstream.requests().len()),
                (400, before),
                "{target}"
            );
        }
    }
}

/// A-121
#[test]
fn the_base_path_is_put_in_front() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::new(&format!("{}/v1/", upstream.url()), &auth).start();
    assert_eq!(sidecar.get("//x/../y?z").ok(), "ok");
    assert_eq!(upstream.request().target(), "/v1//x/../y?z");
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

/// A-005
#[test]
fn an_http_1_0_request_becomes_http_1_1() {
    let get = format!("GET / HTTP/1.0\r\nHost: localhost\r\n{ID}\r\n\r\n");
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    let mut client = sidecar.client();
    client.send(get);
    assert!(client.receive_head().head.line.ends_with(" 200 OK"));
    assert_eq!(upstream.request().head.line, "GET / HTTP/1.1");
}

/// A-091, A-092, A-093: no field of the application can add, remove or replace a credential.
#[test]
fn exactly_one_authorization_arrives_and_it_is_ours() {
    for fields in [
        vec!["Authorization: Bearer evil"],
        vec![
            "authorization: Basic ZXZpbDo=",
            "AUTHORIZATION: Bearer evil",
        ],
        vec!["Proxy-Authorization: Basic ZXZpbDo="],
        vec!["Connection: Authorization"],
        vec![
            "Connection: close,  AUTHORIZATION ,",
            "Connection: authorization, Host, Via",
        ],
        vec!["Connection: X-Request-Id"],
    ] {
        let fields = [fields, vec![ID]].concat();
        assert_forwarded(request("GET /", &fields, ""), "GET /", &[], "");
    }
}

/// A-094
#[test]
fn odd_connection_options_do_no_harm() {
    let get = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: r\r\nX-Foo: 1\r\nConnection: \xff,, a b ,x-FOO,\r\n\r\n";
    assert_forwarded(get, "GET /", &[], "");
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

/// A-041, A-090, A-091, A-095, A-096, D-23, D-24
#[test]
fn what_is_meant_for_this_hop_goes_no_further() {
    let hop_by_hop = [
        ID,
        "Connection: X-Foo, close",
        "X-Foo: 1",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "TE: trailers",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAAQAAP__",
        "X-Forwarded-For: 10.0.0.1",
        "Forwarded: for=10.0.0.1",
        "X-Real-IP: 10.0.0.1",
        "Content_Length: 5",
        "X-Kept: 1",
    ];
    assert_forwarded(
        request("GET /", &hop_by_hop, ""),
        "GET /",
        &["x-kept: 1"],
        "",
    );
}

/// A-100
#[test]
fn via_and_trace_context_of_the_application_stay() {
    let traceparent = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let fields = [
        ID,
        "Via: 1.0 fred",
        traceparent,
        "tracestate: a=1",
        "baggage: b=2",
    ];
    assert_forwarded(
        request("GET /", &fields, ""),
        "GET /",
        &[
            "via: 1.0 fred",
            traceparent,
            "tracestate: a=1",
            "baggage: b=2",
        ],
        "",
    );
}

#[test]
fn a_request_id_is_kept_or_made_and_comes_back() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    let long = format!("X-Request-Id: {}", "r".repeat(129));
    for fields in [
        vec!["X-Request-Id: kept-1"],
        vec![],
        vec![&long],
        vec!["X-Request-Id: a b"],
    ] {
        let answer = sidecar.send(request("GET /", &fields, ""));
        let sent = upstream
            .requests()
            .pop()
            .unwrap()
            .head
            .value("x-request-id");
        assert_eq!(answer.value("x-request-id"), sent);
        match fields[..] {
            ["X-Request-Id: kept-1"] => assert_eq!(sent.unwrap(), "kept-1"),
            _ => assert_eq!(sent.unwrap().len(), 32),
        }
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
