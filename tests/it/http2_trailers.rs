//! Trailers pass where both sides speak HTTP/2, which is what gRPC needs; elsewhere they end here.

use crate::support::client::request;
use crate::support::h2_client::fields;
use crate::support::h2_frames::{END_STREAM, Frame, HEADERS};
use crate::support::h2_upstream::{H2Request, H2Upstream};
use crate::support::server::Exchange;
use crate::support::upstream::OK;
use crate::support::{AuthorizationServer, H2Client, Setup, Sidecar, Upstream};

/// A sidecar that takes HTTP/2, before an upstream that speaks it.
fn before(upstream: &H2Upstream) -> (Sidecar, AuthorizationServer) {
    let auth = AuthorizationServer::new();
    let sidecar = Setup::new(&upstream.url(), &auth)
        .trusting(&upstream.authority)
        .proxy("http2 = true")
        .start();
    (sidecar, auth)
}

/// Sends a POST with this body and these trailers.
fn send(
    client: &mut H2Client,
    more: &[(&str, &str)],
    body: &str,
    trailers: &[(&str, &str)],
) -> u32 {
    let stream = client.open(&fields("POST /", more));
    client.send_data(stream, body.as_bytes(), 0);
    client.send(&Frame::headers(stream, trailers, END_STREAM));
    stream
}

/// Names and values, sorted.
fn sorted(trailers: Option<Vec<(String, String)>>) -> Vec<String> {
    let trailers = trailers.unwrap_or_default().into_iter();
    let mut lines: Vec<_> = trailers
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    lines.sort_unstable();
    lines
}

fn trailers_of(request: &H2Request) -> Vec<String> {
    let text = |value: &http::HeaderValue| value.to_str().unwrap().to_owned();
    let pairs = request.trailers.iter().flat_map(|trailers| trailers.iter());
    let pairs = pairs.map(|(name, value)| (name.to_string(), text(value)));
    sorted(Some(pairs.collect()))
}

///
#[test]
fn trailers_pass_both_ways() {
    let upstream = H2Upstream::mirror(
        &[("content-type", "application/grpc")],
        &[
            ("grpc-status", "0"),
            ("grpc-message", "all%20well"),
            ("receipt-bin", "AP8="),
        ],
    );
    let (sidecar, _auth) = before(&upstream);
    let mut client = sidecar.h2_client();
    let stream = send(
        &mut client,
        &[("te", "trailers")],
        "hello",
        &[("x-sum", "1"), ("x-sum", "2")],
    );
    let answer = client.receive(stream);
    assert_eq!(answer.ok(), "hello");
    assert_eq!(answer.value("content-type").unwrap(), "application/grpc");
    assert_eq!(
        answer.value("grpc-status"),
        None,
        "a trailer is no field of the head"
    );
    // The upstream gives the request's trailers back beside its own.
    let expected = [
        "grpc-message: all%20well",
        "grpc-status: 0",
        "receipt-bin: AP8=",
        "x-sum: 1",
        "x-sum: 2",
    ];
    assert_eq!(sorted(client.trailers(stream)), expected);
    let request = upstream.request();
    assert_eq!(
        (&request.body[..], trailers_of(&request)),
        (&b"hello"[..], vec!["x-sum: 1".into(), "x-sum: 2".into()])
    );
    assert_eq!(request.values("te"), ["trailers"]);
}

/// A message may be nothing but head and trailers.
#[test]
fn trailers_pass_without_a_body() {
    let upstream = H2Upstream::mirror(&[], &[("grpc-status", "5")]);
    let (sidecar, _auth) = before(&upstream);
    let mut client = sidecar.h2_client();
    let stream = client.open(&fields("POST /", &[]));
    client.send(&Frame::headers(stream, &[("x-sum", "0")], END_STREAM));
    assert_eq!(client.receive(stream).ok(), "");
    assert_eq!(
        sorted(client.trailers(stream)),
        ["grpc-status: 5", "x-sum: 0"]
    );
    assert_eq!(trailers_of(&upstream.request()), ["x-sum: 0"]);
}

/// gRPC's trailers-only form: an answer that is one HEADERS frame stays one.
#[test]
fn an_answer_of_a_head_alone_ends_with_it() {
    let upstream = H2Upstream::mirror(&[("grpc-status", "12"), ("grpc-message", "unknown")], &[]);
    let (sidecar, _auth) = before(&upstream);
    let mut client = sidecar.h2_client();
    let stream = client.ask(&fields("POST /", &[("te", "trailers")]));
    let head = loop {
        let frame = client.read().expect("an answer");
        if frame.stream == stream {
            break frame;
        }
    };
    assert!(head.kind == HEADERS && head.has(END_STREAM), "{head:?}");
    let answer = client.receive(stream);
    assert_eq!(answer.value("grpc-status").unwrap(), "12");
    assert_eq!(client.trailers(stream), None);
}

/// A-053, D-20: a trailer must not say what only a head may (RFC 9110 §6.5.1).
#[test]
fn forbidden_trailers_are_dropped() {
    let forbidden = [
        ("authorization", "Bearer evil"),
        ("proxy-authorization", "Basic ZXZpbA=="),
        ("content-length", "0"),
        ("host", "evil.example"),
        ("trailer", "x-sum"),
        ("x-forwarded-for", "10.0.0.1"),
        ("x_sum", "1"),
    ];
    let kept = ("x-kept", "1");
    let all = [&forbidden[..], &[kept]].concat();
    let upstream = H2Upstream::mirror(
        &[],
        &[
            ("authorization", "Bearer leaked"),
            ("proxy-authenticate", "Basic"),
            ("content-length", "0"),
            ("host", "evil.example"),
            ("alt-svc", "h2=\":443\""),
            ("trailer", "x-sum"),
            ("grpc-status", "0"),
        ],
    );
    let (sidecar, _auth) = before(&upstream);
    let mut client = sidecar.h2_client();
    let stream = send(&mut client, &[], "hello", &all);
    assert_eq!(client.receive(stream).ok(), "hello");
    assert_eq!(
        sorted(client.trailers(stream)),
        ["grpc-status: 0", "x-kept: 1"]
    );
    let request = upstream.request();
    assert_eq!(trailers_of(&request), ["x-kept: 1"]);
    assert_eq!(request.values("authorization"), ["Bearer token-1"]);
}

/// HTTP/1.1 upstreams cannot be trusted to treat trailers as anything but more fields. Behind TLS it is only
/// known late what the upstream speaks.
#[test]
fn trailers_do_not_reach_an_http1_upstream() {
    let ok = |exchange: &mut Exchange<'_>| {
        exchange.body();
        exchange.send(OK)
    };
    for upstream in [Upstream::scripted(ok), Upstream::scripted_tls(ok)] {
        let auth = AuthorizationServer::new();
        let sidecar = Setup::between(&upstream, &auth)
            .proxy("http2 = true")
            .start();
        let mut client = sidecar.h2_client();
        let trailers = [("x-sum", "1"), ("authorization", "Bearer evil")];
        for more in [("te", "trailers"), ("content-length", "5")] {
            let stream = send(&mut client, &[more], "hello", &trailers);
            assert_eq!(client.receive(stream).ok(), "ok");
        }
        drop(client);
        sidecar.stop();
        let [chunked, sized] = &upstream.requests()[..] else {
            panic!("two requests");
        };
        assert_eq!(chunked.body.raw, b"5\r\nhello\r\n0\r\n\r\n");
        assert_eq!(sized.body.raw, b"hello");
        for request in [chunked, sized] {
            assert_eq!(request.head.values("authorization"), ["Bearer token-1"]);
            assert_eq!(request.head.value("x-sum"), None);
        }
        if upstream.authority().is_none() {
            assert_eq!(chunked.head.value("te"), None);
        }
    }
}

/// What the application has not said is not said for it.
#[test]
fn te_reaches_the_upstream_only_from_http2() {
    let upstream = H2Upstream::echo();
    let (sidecar, _auth) = before(&upstream);
    assert_eq!(sidecar.h2_client().get("/").ok(), "");
    assert_eq!(upstream.request().values("te"), [""; 0]);
    let http1 = request("GET /", &["TE: trailers", "Connection: TE"], "");
    assert_eq!(sidecar.send(http1).ok(), "");
    assert_eq!(upstream.request().values("te"), [""; 0]);
}

/// An application of HTTP/1.1 gets the body whole, and no trailers.
#[test]
fn trailers_do_not_reach_an_http1_application() {
    let upstream = H2Upstream::mirror(&[], &[("grpc-status", "0")]);
    let (sidecar, _auth) = before(&upstream);
    let post = request(
        "POST /",
        &["Transfer-Encoding: chunked"],
        "5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
    );
    let answer = sidecar.send(post);
    assert_eq!(answer.ok(), "hello");
    assert_eq!(answer.body.raw, b"5\r\nhello\r\n0\r\n\r\n");
    assert_eq!(upstream.request().trailers, None);
}
