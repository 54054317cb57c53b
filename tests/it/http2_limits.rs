//! The limits and deadlines of HTTP/2 connections: what goes over them costs nothing, and others are served meanwhile.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::h2_client::{GoAway, fields};
use crate::support::h2_frames::*;
use crate::support::sidecar::Ports;
use crate::support::upstream::OK;
use crate::support::{AuthorizationServer, Gate, H2Client, PATIENCE, Setup, Sidecar, Upstream};

/// A sidecar with these settings, before an upstream that answers with `ok`.
fn sidecar(proxy: &str) -> (Sidecar, Upstream, AuthorizationServer) {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("http2 = true")
        .proxy(proxy)
        .start();
    (sidecar, upstream, auth)
}

const SHORT: Duration = Duration::from_millis(300);
const SHORT_TIMEOUT: &str = "header_timeout = \"300ms\"";

/// H-01, D-50: nobody waits for a preface longer than for a request.
#[test]
fn a_connection_that_does_not_say_what_it_speaks_is_closed() {
    let (sidecar, _upstream, _auth) = sidecar(SHORT_TIMEOUT);
    for begin in [&b""[..], b"P", &PREFACE[..23], b"PR / HTTP/1.1\r\nHost:"] {
        let connected = Instant::now();
        let mut client = sidecar.client();
        client.send(begin);
        assert!(client.is_closed(), "{begin:?}");
        assert!(connected.elapsed() >= SHORT, "{begin:?}: too early");
    }
    sidecar.wait_for_metric("bearerd_connections_open", 0.0);
}

/// D-50, D-51: nor for what should follow it.
#[test]
fn a_connection_that_says_no_more_is_closed() {
    let (sidecar, upstream, _auth) = sidecar(SHORT_TIMEOUT);
    let mut client = sidecar.client();
    client.send(PREFACE);
    while let Ok(Some(_)) = read_frame(client.reader()) {}

    let mut client = sidecar.h2_client();
    let stream = client.new_stream();
    let half = Frame::new(HEADERS, END_STREAM, stream, encode(&fields("GET /", &[])));
    client.send(&half);
    client.end();
    assert_eq!(upstream.requests().len(), 0);
    sidecar.wait_for_metric("bearerd_connections_open", 0.0);
}

/// An idle connection is told so, and PINGs are no requests.
#[test]
fn an_idle_connection_ends_with_goaway() {
    let (sidecar, _upstream, _auth) = sidecar(SHORT_TIMEOUT);
    let mut client = sidecar.h2_client();
    assert_eq!(client.get("/").ok(), "ok");
    let idle_since = Instant::now();
    let ping = Frame::new(PING, 0, 0, b"still up");
    while client.try_send(std::slice::from_ref(&ping)).is_ok() && client.read().is_some() {
        assert!(idle_since.elapsed() < PATIENCE, "it is not idle yet");
    }
    assert!(idle_since.elapsed() >= SHORT - Duration::from_millis(50));
    let goaway = GoAway {
        last_stream: 1,
        code: ErrorCode::NoError,
    };
    assert_eq!(client.end(), Some(goaway));
}

/// What is in flight has the time that requests have, be it a wait, an upload or a download.
#[test]
fn a_connection_with_a_request_in_flight_is_not_idle() {
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::scripted(move |exchange| match exchange.head.line.as_str() {
        "GET /wait HTTP/1.1" => {
            held.wait();
            exchange.send(OK)
        }
        "GET /download HTTP/1.1" => {
            exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndo")?;
            held.wait();
            exchange.send("ne")
        }
        _ => {
            exchange.body();
            exchange.send(OK)
        }
    });
    let auth = AuthorizationServer::new();
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("http2 = true")
        .proxy(SHORT_TIMEOUT)
        .start();
    let mut waiting = sidecar.h2_client();
    let wait = waiting.ask(&fields("GET /wait", &[]));
    let mut downloading = sidecar.h2_client();
    let download = downloading.ask(&fields("GET /download", &[]));
    let mut uploading = sidecar.h2_client();
    let upload = uploading.open(&fields("POST /upload", &[]));
    upstream.wait_for_requests(3);
    // An idle connection shows that the time is over, more than twice.
    for _ in 0..3 {
        assert!(sidecar.client().is_closed());
    }
    gate.open();
    uploading.send_data(upload, b"hello", END_STREAM);
    assert_eq!(waiting.receive(wait).ok(), "ok");
    assert_eq!(downloading.receive(download).ok(), "done");
    assert_eq!(uploading.receive(upload).ok(), "ok");
    for mut client in [waiting, downloading, uploading] {
        assert_eq!(client.end().unwrap().code, ErrorCode::NoError);
    }
}

/// Limits are announced (RFC 9113 §6.5.2), and nothing is offered that is not kept.
#[test]
fn settings_tell_the_limits() {
    let (sidecar, _upstream, _auth) = sidecar("max_header_bytes = \"20KiB\"");
    let settings = sidecar.h2_client().settings;
    assert_eq!(settings[&MAX_CONCURRENT_STREAMS], 128);
    assert_eq!(settings[&MAX_HEADER_LIST_SIZE], 20 * 1024);
    const ENABLE_CONNECT_PROTOCOL: u16 = 8;
    assert_eq!(settings.get(&ENABLE_CONNECT_PROTOCOL), None);
}

/// D-56: the 129th request at once is refused, and may be sent again; the 128 know nothing of it.
#[test]
fn more_streams_than_allowed_are_refused() {
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::scripted(move |exchange| {
        held.wait();
        exchange.send(OK)
    });
    let auth = AuthorizationServer::new();
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("http2 = true")
        .start();
    let mut client = sidecar.h2_client();
    let streams: Vec<u32> = (0..128)
        .map(|_| client.ask(&fields("GET /", &[])))
        .collect();
    upstream.wait_for_requests(128);
    let one_more = client.ask(&fields("GET /", &[]));
    assert_eq!(client.reset(one_more), ErrorCode::RefusedStream);
    gate.open();
    for stream in streams {
        assert_eq!(client.receive(stream).ok(), "ok");
    }
    assert_eq!(client.get("/").ok(), "ok");
    assert_eq!(upstream.requests().len(), 129);
}

/// D-56
#[test]
fn more_requests_in_flight_than_allowed_are_answered() {
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::scripted(move |exchange| {
        held.wait();
        exchange.send(OK)
    });
    let auth = AuthorizationServer::new();
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("http2 = true\nmax_in_flight = 1")
        .start();
    let mut client = sidecar.h2_client();
    let first = client.ask(&fields("GET /", &[]));
    upstream.wait_for_requests(1);
    client.get("/").assert_problem(503, "overloaded");
    gate.open();
    assert_eq!(client.receive(first).ok(), "ok");
}

/// D-57
#[test]
fn a_body_over_the_limit_is_refused() {
    let (sidecar, upstream, _auth) = sidecar("max_body_bytes = \"8B\"");
    let mut client = sidecar.h2_client();
    let announced = client.open(&fields("POST /", &[("content-length", "9")]));
    client
        .receive(announced)
        .assert_problem(413, "body_too_large");
    assert_eq!(upstream.requests().len(), 0);
    let stream = client.open(&fields("POST /", &[]));
    client.send_data(stream, b"1234", 0);
    upstream.wait_for_requests(1);
    client.send_data(stream, b"56789", END_STREAM);
    client.receive(stream).assert_problem(413, "body_too_large");
    assert!(!upstream.request().body.complete);
}

/// a head above the limit is no head, in however many frames it comes.
#[test]
fn a_head_above_the_limit_is_refused() {
    let (sidecar, upstream, _auth) = sidecar("max_header_bytes = \"20KiB\"");
    let large = "x".repeat(6000);
    let mut client = sidecar.h2_client();
    for (number, is_served) in [(1, true), (3, true), (4, false), (5, false)] {
        let names: Vec<_> = (0..number)
            .map(|number| format!("x-large-{number}"))
            .collect();
        let more: Vec<_> = names.iter().map(|name| (&**name, &*large)).collect();
        let stream = client.new_stream();
        let block = encode(&fields("GET /", &more));
        let mut pieces = block.chunks(DEFAULT_FRAME_SIZE).peekable();
        let mut kind = HEADERS;
        while let Some(piece) = pieces.next() {
            let last = if pieces.peek().is_none() {
                END_HEADERS
            } else {
                0
            };
            let end = if kind == HEADERS { END_STREAM } else { 0 };
            client.send(&Frame::new(kind, last | end, stream, piece));
            kind = CONTINUATION;
        }
        let answer = client.receive(stream);
        let expected = if is_served { 200 } else { 431 };
        assert_eq!(answer.status(), expected, "{number} fields of 6,000 bytes");
    }
    assert_eq!(client.get("/").ok(), "ok");
    assert_eq!(upstream.requests().len(), 3);
}

/// Waits for the end of a connection that was abused, and says why it ended. Others are served.
fn ends_with(ports: &Ports, mut client: H2Client) -> ErrorCode {
    let goaway = client.end().expect("GOAWAY before the end");
    assert_eq!(ports.h2_client().get("/").ok(), "ok");
    assert_eq!(ports.get("/").ok(), "ok");
    goaway.code
}

/// D-60: requests that are taken back at once.
#[test]
fn rapid_resets_end_the_connection() {
    let (sidecar, upstream, _auth) = sidecar("");
    let mut client = sidecar.h2_client();
    let mut sent = 0;
    for _ in 0..100 {
        let frames: Vec<_> = (0..50)
            .flat_map(|_| {
                let stream = client.new_stream();
                let get = Frame::headers(stream, &fields("GET /", &[]), END_STREAM);
                [get, Frame::reset(stream, ErrorCode::Cancel)]
            })
            .collect();
        if client.try_send(&frames).is_err() {
            break;
        }
        sent += 50;
    }
    assert_eq!(ends_with(&sidecar, client), ErrorCode::EnhanceYourCalm);
    let served = upstream.requests().len();
    assert!(served < sent / 2, "{served} of {sent} reached the upstream");
    sidecar.wait_for_metric("http_server_active_requests", 0.0);
}

/// D-61: requests that we are made to reset.
#[test]
fn resets_of_our_own_end_the_connection() {
    let (sidecar, _upstream, _auth) = sidecar("");
    let overflowing = |stream| {
        vec![
            Frame::headers(stream, &fields("POST /", &[]), 0),
            Frame::window_update(stream, (1 << 31) - 1),
        ]
    };
    let malformed = |stream| {
        let fields = fields("GET /", &[("upgrade", "h2c")]);
        vec![Frame::headers(stream, &fields, END_STREAM)]
    };
    let ways: [&dyn Fn(u32) -> Vec<Frame>; 2] = [&overflowing, &malformed];
    for way in ways {
        let mut client = sidecar.h2_client();
        for _ in 0..200 {
            let frames: Vec<_> = (0..50).flat_map(|_| way(client.new_stream())).collect();
            if client.try_send(&frames).is_err() {
                break;
            }
        }
        assert_eq!(ends_with(&sidecar, client), ErrorCode::EnhanceYourCalm);
    }
    sidecar.wait_for_metric("http_server_active_requests", 0.0);
}

/// D-62: a head without end.
#[test]
fn floods_of_continuation_end_the_connection() {
    let (sidecar, upstream, _auth) = sidecar("");
    let block = encode(&fields("GET /", &[]));
    for piece in [
        vec![],
        encode(&[("x", "")]),
        encode(&[("x-large", &"x".repeat(16_000))]),
    ] {
        let mut client = sidecar.h2_client();
        let stream = client.new_stream();
        client.send(&Frame::new(HEADERS, END_STREAM, stream, &block));
        client.flood(&Frame::new(CONTINUATION, 0, stream, &piece));
        let end = client.end().expect("GOAWAY before the end");
        assert_eq!(
            end.code,
            ErrorCode::EnhanceYourCalm,
            "{} bytes",
            piece.len()
        );
    }
    assert_eq!(upstream.requests().len(), 0);
    assert_eq!(sidecar.h2_client().get("/").ok(), "ok");
}

/// What the whole program may grow by, where much more is thrown at it.
const MAX_GROWTH_KIB: usize = 32 * 1024;

/// D-62, D-63: frames that cost the sender nothing, and nothing is read of what they make us say.
#[test]
fn floods_of_small_frames_cost_no_memory() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("http2 = true")
        .start_process_at_info();
    assert_eq!(sidecar.h2_client().get("/").ok(), "ok");
    let idle = sidecar.process.memory_kib("VmHWM");
    let mut clients = Vec::new();
    for frame in [
        Frame::new(PING, 0, 0, [0; 8]),
        Frame::new(PING, ACK, 0, [0; 8]),
        Frame::settings(&[]),
        Frame::settings(&[(INITIAL_WINDOW_SIZE, 1000)]),
        Frame::new(PRIORITY, 0, 1, [0, 0, 0, 3, 0]),
        Frame::new(PRIORITY, 0, 1001, [0, 0, 0, 3, 0]),
        Frame::data(1, "", 0),
        Frame::new(DATA, PADDED, 1, [0]),
        Frame::data(1, "x", 0),
        Frame::window_update(0, 1),
        Frame::window_update(1, 1),
        Frame::reset(1, ErrorCode::Cancel),
        Frame::new(0xbe, 0, 0, ""),
        Frame::headers(3, &fields("GET /", &[("upgrade", "h2c")]), END_STREAM),
    ] {
        let mut client = sidecar.h2_client();
        client.open(&fields("POST /", &[]));
        client.new_stream();
        client.flood(&frame);
        assert_eq!(sidecar.h2_client().get("/").ok(), "ok", "{frame:?}");
        // It stays open, as far as we are concerned.
        clients.push(client);
    }
    assert_eq!(sidecar.get("/").ok(), "ok");
    let peak = sidecar.process.memory_kib("VmHWM");
    assert!(
        peak - idle < MAX_GROWTH_KIB,
        "{peak} KiB, {idle} KiB when idle"
    );
}

/// D-64: 15,000 bytes that stand for 60 million.
#[test]
fn a_field_block_that_expands_costs_no_memory() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("http2 = true")
        .start_process_at_info();
    assert_eq!(sidecar.h2_client().get("/").ok(), "ok");
    let idle = sidecar.process.memory_kib("VmHWM");
    let mut block = encode(&fields("GET /", &[]));
    let mut remembered = encode(&[("x-bomb", &"x".repeat(4000))]);
    remembered[0] = 0x40;
    block.extend_from_slice(&remembered);
    block.resize(block.len() + 11_000, 0x80 | 62);
    let mut other = sidecar.h2_client();
    for _ in 0..50 {
        let mut client = sidecar.h2_client();
        let stream = client.new_stream();
        client.send(&Frame::new(
            HEADERS,
            END_HEADERS | END_STREAM,
            stream,
            &block,
        ));
        match client.answer_or_reset(stream) {
            Ok(answer) => assert_eq!(answer.status(), 431),
            Err(code) => assert_ne!(code, ErrorCode::NoError),
        }
        assert_eq!(other.get("/").ok(), "ok");
    }
    let peak = sidecar.process.memory_kib("VmHWM");
    assert!(
        peak - idle < MAX_GROWTH_KIB,
        "{peak} KiB, {idle} KiB when idle"
    );
    assert_eq!(upstream.requests().len(), 51);
}

/// D-53, D-64: an application that lets an answer lie, by never opening the window for it, does not keep it for ever.
#[test]
fn an_answer_that_is_not_wanted_is_given_up() {
    let body = "x".repeat(1024 * 1024);
    let large = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    for (answer, window) in [(OK.to_owned(), 0), (large, DEFAULT_WINDOW)] {
        let (upstream, auth) = (Upstream::answering(answer), AuthorizationServer::new());
        let sidecar = Setup::between(&upstream, &auth)
            .proxy("http2 = true")
            .upstream("idle_timeout = \"300ms\"")
            .start();
        let settings = [(INITIAL_WINDOW_SIZE, window)];
        let mut client = H2Client::connect_with(sidecar.proxy, &settings);
        let stream = client.ask(&fields("GET /", &[]));
        client.hold(stream);
        client.receive_head(stream);
        sidecar.wait_for_metric("http_server_active_requests", 0.0);
        assert!(!client.receive_what_comes(stream).body.complete);
        client.ping();
    }
}
