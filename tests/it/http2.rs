//! HTTP/2 from the application: what becomes of its requests, and of the answers to them.

use std::io;

use crate::support::client::request;
use crate::support::h2_client::fields;
use crate::support::h2_frames::{END_STREAM, ErrorCode, Frame, HEADERS};
use crate::support::h2_upstream::H2Upstream;
use crate::support::server::Exchange;
use crate::support::upstream::OK;
use crate::support::{AuthorizationServer, Gate, Setup, Sidecar, Upstream};

/// A sidecar that takes HTTP/2, before this upstream.
fn before(upstream: &Upstream, auth: &AuthorizationServer) -> Sidecar {
    Setup::between(upstream, auth).proxy("http2 = true").start()
}

/// The same before an upstream that speaks HTTP/2 too.
fn before_h2(upstream: &H2Upstream, auth: &AuthorizationServer) -> Sidecar {
    Setup::new(&upstream.url(), auth)
        .trusting(&upstream.authority)
        .proxy("http2 = true")
        .start()
}

/// The same before an upstream that does this with every request.
fn before_script(
    script: impl Fn(&mut Exchange<'_>) -> io::Result<()> + Send + Sync + 'static,
) -> (Sidecar, Upstream, AuthorizationServer) {
    let (upstream, auth) = (Upstream::scripted(script), AuthorizationServer::new());
    (before(&upstream, &auth), upstream, auth)
}

const ID: (&str, &str) = ("x-request-id", "r");

/// H-14: the same request, whatever it came in.
#[test]
fn an_upstream_cannot_tell_which_http_the_application_speaks() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = before(&upstream, &auth);
    let line = "POST /payments//a%2Fb?x=%0d&y=a+b?z";
    let http1 = request(
        line,
        &[
            "X-Request-Id: r",
            "Content-Length: 5",
            "Accept: a",
            "Accept: b",
        ],
        "hello",
    );
    assert_eq!(sidecar.send(http1).ok(), "ok");
    let more = [
        ID,
        ("content-length", "5"),
        ("accept", "a"),
        ("accept", "b"),
    ];
    let mut client = sidecar.h2_client();
    let stream = client.open(&fields(line, &more));
    client.send_data(stream, b"hello", END_STREAM);
    assert_eq!(client.receive(stream).ok(), "ok");
    drop(client);
    sidecar.stop();
    let [http1, http2] = &upstream.requests()[..] else {
        panic!("two requests");
    };
    // Via says how the message came (RFC 9110 §7.6.3).
    let without_via = |wire: String| {
        let (vias, others): (Vec<_>, Vec<_>) = wire
            .lines()
            .map(str::to_owned)
            .partition(|line| line.starts_with("via: "));
        assert!(vias.len() == 1 && vias[0].ends_with(" bearerd"), "{vias:?}");
        others
    };
    assert_eq!(without_via(http1.wire()), without_via(http2.wire()));
    assert_eq!(
        http2.head.value("host").unwrap(),
        upstream.address.to_string()
    );
}

/// The first bytes tell which HTTP it is; those of HTTP/1.1 may look alike for a while.
#[test]
fn http1_that_begins_like_the_preface_is_http1() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = before(&upstream, &auth);
    for line in ["GET /", "POST /", "PROPFIND /", "PRI /"] {
        let mut client = sidecar.client();
        for byte in request(line, &[], "") {
            client.send([byte]);
        }
        assert_eq!(client.receive().ok(), "ok", "{line}");
    }
    let almost = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX";
    let mut client = sidecar.client();
    client.send(almost);
    assert!(client.is_refused());
    assert_eq!(upstream.requests().len(), 4);
}

/// A-050, A-049, A-047: framing is made for the upstream.
#[test]
fn bodies_are_framed_for_http1() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = before(&upstream, &auth);
    let mut client = sidecar.h2_client();
    let length = ("content-length", "5");
    let empty = ("content-length", "0");
    for (line, more, body, framed) in [
        ("GET /", &[][..], "", ""),
        ("DELETE /", &[], "", ""),
        ("POST /", &[empty], "", "content-length: 0\n\n"),
        ("POST /", &[length], "hello", "content-length: 5\n\nhello"),
        (
            "POST /",
            &[],
            "hello",
            "transfer-encoding: chunked\n\n5\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "GET /",
            &[],
            "hello",
            "transfer-encoding: chunked\n\n5\r\nhello\r\n0\r\n\r\n",
        ),
    ] {
        let answer = if body.is_empty() {
            client.exchange(&fields(line, more))
        } else {
            let stream = client.open(&fields(line, more));
            client.send_data(stream, body.as_bytes(), END_STREAM);
            client.receive(stream)
        };
        assert_eq!(answer.ok(), "ok", "{line} {more:?}");
        let sent = upstream.requests().pop().unwrap();
        let (framing, rest) = framed.split_once('\n').unwrap_or_default();
        let found = ["content-length", "transfer-encoding"]
            .iter()
            .find_map(|name| Some(format!("{name}: {}", sent.head.value(name)?)));
        assert_eq!(found.unwrap_or_default(), framing, "{line} {more:?}");
        assert_eq!(sent.body.raw, rest.trim_start_matches('\n').as_bytes());
    }
}

/// D-20, D-21, D-22, D-24: what is not the application's to say.
#[test]
fn exactly_one_authorization_arrives() {
    let claims = [
        ("authorization", "Bearer evil"),
        ("authorization", "Basic ZXZpbA=="),
        ("authorization", ""),
        ("proxy-authorization", "Basic ZXZpbA=="),
        ("x-forwarded-for", "10.0.0.1"),
        ("forwarded", "for=10.0.0.1"),
        ("x_forwarded_for", "10.0.0.1"),
        ("content_length", "5"),
        ("http2-settings", "AAMAAABkAAQAAP__"),
    ];
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = before(&upstream, &auth);
    let answer = sidecar.h2_client().exchange(&fields("GET /", &claims));
    assert_eq!(answer.ok(), "ok");
    let head = upstream.request().head;
    let mut names: Vec<_> = head.fields.iter().map(|(name, _)| &**name).collect();
    names.sort_unstable();
    assert_eq!(names, ["authorization", "host", "via", "x-request-id"]);
    assert_eq!(head.value("authorization").unwrap(), "Bearer token-1");

    let upstream = H2Upstream::echo();
    let sidecar = before_h2(&upstream, &auth);
    let answer = sidecar.h2_client().exchange(&fields("GET /", &claims));
    assert_eq!(answer.ok(), "");
    let headers = upstream.request().headers;
    let mut names: Vec<_> = headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["authorization", "via", "x-request-id"]);
    assert!(
        headers["authorization"]
            .to_str()
            .unwrap()
            .starts_with("Bearer token-")
    );
}

/// A-137
#[test]
fn cookies_are_joined() {
    let cookies = [("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=\"3\"")];
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = before(&upstream, &auth);
    let answer = sidecar.h2_client().exchange(&fields("GET /", &cookies));
    assert_eq!(answer.ok(), "ok");
    let cookie = upstream.request().head.values("cookie");
    assert_eq!(cookie, ["a=1; b=2; c=\"3\""]);
}

/// A-134, D-02: `:authority` is what `Host` is in HTTP/1.1.
#[test]
fn the_authority_obeys_the_rules_for_host() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("http2 = true\nallowed_hosts = [\"shop.internal\"]")
        .start();
    let own = sidecar.proxy.to_string();
    let upstreams = upstream.address.to_string();
    for authority in [
        "localhost",
        "LOCALHOST:1",
        "[::1]:8080",
        "shop.internal",
        &own,
        &upstreams,
    ] {
        let mut fields = fields("GET /", &[]);
        fields[2].1 = authority;
        assert_eq!(
            sidecar.h2_client().exchange(&fields).ok(),
            "ok",
            "{authority}"
        );
    }
    let served = upstream.requests();
    assert_eq!(served.len(), 6);
    for request in served {
        assert_eq!(request.head.value("host").unwrap(), upstreams);
    }
    for authority in [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "0.0.0.0",
    ] {
        let mut fields = fields("GET /", &[]);
        fields[2].1 = authority;
        let answer = sidecar.h2_client().exchange(&fields);
        answer.assert_problem(403, "forbidden_host");
    }
    for authority in [
        "localhost:0",
        "localhost:99999",
        "u@localhost",
        "localhost,b",
    ] {
        let mut fields = fields("GET /", &[]);
        fields[2].1 = authority;
        assert_refused(&sidecar, &fields, "bad_request");
    }
    assert_eq!(upstream.requests().len(), 6);
}

/// A request that is answered with 400 and this code, or not taken for a request at all.
fn assert_refused(sidecar: &Sidecar, fields: &[(&str, &str)], code: &str) {
    let mut client = sidecar.h2_client();
    let stream = client.ask(fields);
    match client.answer_or_reset(stream) {
        Ok(answer) => answer.assert_problem(400, code),
        Err(reset) => assert_eq!(reset, ErrorCode::ProtocolError, "{fields:?}"),
    }
}

/// A-134
#[test]
fn a_host_that_differs_from_the_authority_is_refused() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = before(&upstream, &auth);
    let same = fields("GET /", &[("host", "localhost")]);
    assert_eq!(sidecar.h2_client().exchange(&same).ok(), "ok");
    let head = upstream.request().head;
    assert_eq!(head.value("host").unwrap(), upstream.address.to_string());

    let upstreams = upstream.address.to_string();
    for hosts in [
        &[("host", "evil.example")][..],
        &[("host", "localhost:1")],
        &[("host", "127.0.0.1")],
        &[("host", &upstreams)],
        &[("host", "")],
        &[("host", "localhost"), ("host", "localhost")],
        &[("host", "localhost"), ("host", "evil.example")],
    ] {
        let answer = sidecar.h2_client().exchange(&fields("GET /", hosts));
        answer.assert_problem(400, "bad_request");
    }
    let mut without_authority = fields("GET /", &[]);
    without_authority.remove(2);
    assert_refused(&sidecar, &without_authority, "bad_request");
    assert_eq!(upstream.requests().len(), 1);
}

/// D-03, D-06: a browser that speaks HTTP/2 is a browser.
#[test]
fn web_pages_of_other_origins_are_refused() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = before(&upstream, &auth);
    let mut client = sidecar.h2_client();
    let own = fields("GET /", &[("origin", "http://localhost")]);
    assert_eq!(client.exchange(&own).ok(), "ok");
    for field in [
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
    ] {
        let answer = client.exchange(&fields("GET /", &[field]));
        answer.assert_problem(403, "forbidden_origin");
    }
    assert_eq!(upstream.requests().len(), 1);
}

/// A-113, A-136, D-29: targets and methods.
#[test]
fn targets_that_are_no_paths_are_refused() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = before(&upstream, &auth);
    for line in [
        "GET x",
        "GET *",
        "OPTIONS *",
        "GET http://evil.example/x",
        "GET ",
        "GET? /",
        "GE\tT /",
    ] {
        assert_refused(&sidecar, &fields(line, &[]), "bad_request");
    }
    for scheme in ["http://x/?", "ht tp"] {
        let mut fields = fields("GET /", &[]);
        fields[1].1 = scheme;
        assert_refused(&sidecar, &fields, "bad_request");
    }
    let mut client = sidecar.h2_client();
    let trace = client.exchange(&fields("TRACE /", &[]));
    trace.assert_problem(405, "method_not_allowed");
    let connect = [(":method", "CONNECT"), (":authority", "localhost:443")];
    let tunnel = client.exchange(&connect);
    tunnel.assert_problem(405, "method_not_allowed");
    assert_eq!(upstream.requests().len(), 0);
    // The type for targets cuts a fragment off before anybody sees it, as in HTTP/1.1 (A-116).
    assert_eq!(client.get("/x#/../y").ok(), "ok");
    assert_eq!(upstream.request().head.line, "GET /x HTTP/1.1");
}

/// A-101: our own Via, in whatever protocol it came.
#[test]
fn a_loop_is_detected() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = before(&upstream, &auth);
    let mut client = sidecar.h2_client();
    assert_eq!(client.get("/").ok(), "ok");
    let ours = upstream.request().head.value("via").unwrap();
    for via in [
        &*ours,
        "1.1 bearerd",
        "2 bearerd, 1.1 fred",
        "HTTP/2.0 bearerd",
    ] {
        let answer = client.exchange(&fields("GET /", &[("via", via)]));
        answer.assert_problem(508, "loop_detected");
    }
}

/// A-090, D-31: what is between us and the upstream has no place in HTTP/2 at all; the client of the tests checks each
/// answer for it.
#[test]
fn connection_specific_fields_of_an_answer_stay_behind() {
    let (sidecar, _upstream, _auth) = before_script(|exchange| {
        exchange.send(
            "HTTP/1.1 203 Whatever\r\nConnection: keep-alive, X-Foo\r\nKeep-Alive: timeout=5\r\nX-Foo: 1\r\n\
             Proxy-Connection: keep-alive\r\nUpgrade: h2c\r\nTE: trailers\r\nAlt-Svc: h2=\":443\"\r\n\
             Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Kept: 1\r\n\r\n\
             5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
        )
    });
    let mut client = sidecar.h2_client();
    let stream = client.ask(&fields("GET /", &[ID]));
    let answer = client.receive(stream);
    assert_eq!((answer.status(), answer.text()), (203, "hello".to_owned()));
    let mut names: Vec<_> = answer.head.fields.iter().map(|(name, _)| &**name).collect();
    names.sort_unstable();
    names.retain(|name| *name != "date");
    assert_eq!(
        names,
        ["set-cookie", "set-cookie", "x-kept", "x-request-id"]
    );
    assert_eq!(client.trailers(stream), None, "of HTTP/1.1 there are none");
    let refused = client.exchange(&fields("TRACE /", &[]));
    refused.assert_problem(405, "method_not_allowed");
}

/// A-069, A-070
#[test]
fn answers_without_a_body_end_with_their_head() {
    for (method, head, length) in [
        ("HEAD", "200 OK\r\nContent-Length: 5", Some("5")),
        ("GET", "204 No Content", None),
        ("GET", "304 Not Modified\r\nContent-Length: 5", Some("5")),
    ] {
        let answer = format!("HTTP/1.1 {head}\r\n\r\n");
        let (sidecar, _upstream, _auth) = before_script(move |exchange| exchange.send(&answer));
        let mut client = sidecar.h2_client();
        let stream = client.ask(&fields(&format!("{method} /"), &[]));
        let frame = loop {
            let frame = client.read().expect("an answer");
            if frame.stream == stream {
                break frame;
            }
        };
        assert!(
            frame.kind == HEADERS && frame.has(END_STREAM),
            "{head}: {frame:?}"
        );
        let answer = client.receive(stream);
        assert_eq!(answer.value("content-length").as_deref(), length, "{head}");
    }
}

#[test]
fn locations_of_the_upstream_lead_through_the_sidecar() {
    let (sidecar, _upstream, _auth) = before_script(|exchange| {
        let host = exchange.head.value("host").unwrap();
        exchange.send(format!(
            "HTTP/1.1 302 Found\r\nLocation: http://{host}/next\r\nContent-Length: 0\r\n\r\n"
        ))
    });
    let answer = sidecar.h2_client().get("/");
    assert_eq!(answer.value("location").unwrap(), "http://localhost/next");
}

/// E-11 and others: our own answers are the same in HTTP/2.
#[test]
fn failures_are_told_as_in_http1() {
    let (upstream, auth) = (Upstream::down(), AuthorizationServer::new());
    let sidecar = before(&upstream, &auth);
    let answer = sidecar.h2_client().get("/");
    answer.assert_problem(502, "upstream_unreachable");
    let length = answer.body.data.len().to_string();
    assert_eq!(answer.value("content-length").unwrap(), length);
}

/// A-065: a body that broke off is no body; the other streams know nothing of it.
#[test]
fn an_answer_that_breaks_off_is_reset() {
    let gate = Gate::default();
    let held = gate.clone();
    let (sidecar, upstream, _auth) = before_script(move |exchange| {
        if exchange.head.line.starts_with("GET /whole") {
            held.wait();
            return exchange.send(OK);
        }
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")?;
        exchange.close()
    });
    let mut client = sidecar.h2_client();
    let whole = client.ask(&fields("GET /whole", &[]));
    upstream.wait_for_requests(1);
    let broken = client.ask(&fields("GET /broken", &[]));
    let answer = client.receive_what_comes(broken);
    assert_eq!(
        (answer.text(), answer.body.complete),
        ("hello".to_owned(), false)
    );
    assert_eq!(client.reset(broken), ErrorCode::InternalError);
    gate.open();
    assert_eq!(client.receive(whole).ok(), "ok");
}

/// A-045, A-046: a request that breaks off is no shorter request.
#[test]
fn a_request_that_is_reset_is_cut_at_the_upstream() {
    let (sidecar, upstream, _auth) = before_script(|exchange| {
        exchange.body();
        exchange.send(OK)
    });
    let mut client = sidecar.h2_client();
    let stream = client.open(&fields("POST /", &[]));
    client.send_data(stream, b"hello", 0);
    upstream.wait_for_requests(1);
    client.send(&Frame::reset(stream, ErrorCode::Cancel));
    let body = upstream.request().body;
    assert!(
        !body.complete && b"5\r\nhello\r\n".starts_with(&body.raw[..]),
        "{body:?}"
    );
    sidecar.wait_for_metric("http_server_active_requests", 0.0);
    assert_eq!(client.get("/").ok(), "ok");
}

/// E-54: what nobody waits for any more is not worked on.
#[test]
fn a_cancelled_request_is_given_up_at_the_upstream() {
    let (sidecar, upstream, _auth) = before_script(|exchange| {
        if exchange.number > 0 {
            return exchange.send(OK);
        }
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")?;
        exchange.stall()
    });
    let mut client = sidecar.h2_client();
    let stream = client.ask(&fields("GET /", &[]));
    client.wait_for_bytes(stream, 5);
    client.send(&Frame::reset(stream, ErrorCode::Cancel));
    // The upstream's script ends when its connection does.
    assert!(upstream.request().is_over);
    sidecar.wait_for_metric("http_server_active_requests", 0.0);
    assert_eq!(client.get("/").ok(), "ok");
}

/// A-081
#[test]
fn an_early_answer_is_delivered_before_the_upload_ends() {
    let (sidecar, _upstream, _auth) = before_script(|exchange| {
        if exchange.head.line.starts_with("GET") {
            return exchange.send(OK);
        }
        exchange.send("HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nstop")?;
        exchange.stall()
    });
    let mut client = sidecar.h2_client();
    let stream = client.open(&fields("POST /", &[]));
    client.send_data(stream, b"begin", 0);
    let answer = client.receive(stream);
    assert_eq!((answer.status(), answer.text()), (413, "stop".to_owned()));
    assert_eq!(client.get("/").ok(), "ok");
}

/// Both ways at once, each part after the answer to the one before.
#[test]
fn request_and_answer_pass_each_other() {
    let (sidecar, _upstream, auth) = before_script(|exchange| {
        use std::io::Read;
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n")?;
        for _ in 0..3 {
            let mut byte = [0];
            exchange.wire.read_exact(&mut byte)?;
            exchange.send(byte)?;
        }
        exchange.body_is_read();
        Ok(())
    });
    let upstream = H2Upstream::mirror(&[], &[]);
    let h2 = before_h2(&upstream, &auth);
    for sidecar in [sidecar, h2] {
        let mut client = sidecar.h2_client();
        let stream = client.open(&fields("POST /", &[("content-length", "3")]));
        assert_eq!(client.receive_head(stream).status(), 200);
        for number in 1..=3 {
            let flags = if number == 3 { END_STREAM } else { 0 };
            client.send_data(stream, b"x", flags);
            client.wait_for_bytes(stream, number);
        }
        assert_eq!(client.receive(stream).ok(), "xxx");
    }
}
