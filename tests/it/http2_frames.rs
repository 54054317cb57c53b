//! The frame layer of HTTP/2: what breaks its rules gets the error that RFC 9113 names, reaches no upstream, and is
//! nobody else's trouble.

use crate::support::h2_client::{GoAway, fields};
use crate::support::h2_frames::*;
use crate::support::upstream::OK;
use crate::support::{AuthorizationServer, Gate, H2Client, Setup, Sidecar, Upstream};

/// What comes of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// GOAWAY with this code, and the end of the connection.
    Connection(ErrorCode),
    /// RST_STREAM with this code on stream 1, and a connection that goes on.
    Stream(ErrorCode),
    /// Nothing at all.
    Ignored,
}
use ErrorCode::*;
use Outcome::*;

/// Errors that have a code of their own. hyper says the generic one for most of them (RFC 9113 §7).
const PROTOCOL: &[Outcome] = &[Connection(ProtocolError)];
const SIZE: &[Outcome] = &[Connection(FrameSizeError), Connection(ProtocolError)];
const FLOW: &[Outcome] = &[Connection(FlowControlError), Connection(ProtocolError)];
const COMPRESSION: &[Outcome] = &[Connection(CompressionError), Connection(ProtocolError)];
/// An error of one stream may be one of the connection (RFC 9113 §5.4.1).
const MALFORMED: &[Outcome] = &[Stream(ProtocolError), Connection(ProtocolError)];
const CLOSED: &[Outcome] = &[
    Stream(StreamClosed),
    Connection(StreamClosed),
    Connection(ProtocolError),
];

/// A sidecar that takes HTTP/2, before an upstream that answers with `ok`.
fn sidecar() -> (Sidecar, Upstream, AuthorizationServer) {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("http2 = true")
        .start();
    (sidecar, upstream, auth)
}

/// Sends `frames` on a connection of their own and looks what comes of it.
fn outcome(sidecar: &Sidecar, frames: &[Frame]) -> Outcome {
    let mut client = sidecar.h2_client();
    // For errors of streams, which must be known to be read.
    for _ in 0..8 {
        client.new_stream();
    }
    // What breaks the connection may do so before everything is sent. A pong may overtake a reset, the second cannot.
    let pings = [b"and now?", b"and now!"].map(|payload| Frame::new(PING, 0, 0, payload));
    let _ = client.try_send(frames);
    let _ = client.try_send(&pings[..1]);
    while let Some(frame) = client.read() {
        match frame.kind {
            RST_STREAM => {
                assert_eq!(frame.stream, 1, "{frame:?}");
                client.ping();
                return Stream(ErrorCode::read(&frame.payload));
            }
            PING if frame.has(ACK) && frame.payload == pings[1].payload => return Ignored,
            PING if frame.has(ACK) => {
                let _ = client.try_send(&pings[1..]);
            }
            _ => {}
        }
    }
    let goaway = client.end().expect("GOAWAY before the end");
    Connection(goaway.code)
}

/// A GET on a stream.
fn get(stream: u32) -> Frame {
    Frame::headers(stream, &fields("GET /", &[]), END_STREAM)
}

/// A POST on a stream, whose body has not ended.
fn post(stream: u32) -> Frame {
    Frame::headers(stream, &fields("POST /", &[]), 0)
}

/// A frame with a payload of so many zeros.
fn zeros(kind: u8, flags: u8, stream: u32, length: usize) -> Frame {
    Frame::new(kind, flags, stream, vec![0; length])
}

/// A GET whose field block is made of these bytes.
fn block(bytes: &[u8]) -> Frame {
    let mut block = encode(&fields("GET /", &[]));
    block.extend_from_slice(bytes);
    Frame::new(HEADERS, END_HEADERS | END_STREAM, 1, block)
}

/// Each case on a connection of its own; after each, another connection is served as ever.
fn assert_outcomes(cases: &[(&str, &[Frame], &[Outcome])]) {
    let (sidecar, upstream, _auth) = sidecar();
    let mut other = sidecar.h2_client();
    let mut wrong = Vec::new();
    for (name, frames, expected) in cases {
        let outcome = outcome(&sidecar, frames);
        if !expected.contains(&outcome) {
            wrong.push(format!("{name}: {outcome:?}, not {expected:?}"));
        }
        let before = upstream.requests().len();
        assert_eq!(other.get("/").ok(), "ok", "others, after {name}");
        assert_eq!(upstream.requests().len(), before + 1);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A-130, RFC 9113 §4.1, §4.2, §6
#[test]
fn frames_of_wrong_size_or_on_wrong_streams_break_the_connection() {
    assert_outcomes(&[
        ("DATA on 0", &[zeros(DATA, 0, 0, 1)], PROTOCOL),
        ("HEADERS on 0", &[get(0)], PROTOCOL),
        ("PRIORITY on 0", &[zeros(PRIORITY, 0, 0, 5)], PROTOCOL),
        ("RST_STREAM on 0", &[zeros(RST_STREAM, 0, 0, 4)], PROTOCOL),
        (
            "RST_STREAM of 3",
            &[post(1), zeros(RST_STREAM, 0, 1, 3)],
            SIZE,
        ),
        ("SETTINGS on 1", &[zeros(SETTINGS, 0, 1, 0)], PROTOCOL),
        ("SETTINGS of 5", &[zeros(SETTINGS, 0, 0, 5)], SIZE),
        ("SETTINGS ACK of 6", &[zeros(SETTINGS, ACK, 0, 6)], SIZE),
        (
            "PUSH_PROMISE",
            &[zeros(PUSH_PROMISE, END_HEADERS, 1, 4)],
            PROTOCOL,
        ),
        ("PING on 1", &[zeros(PING, 0, 1, 8)], PROTOCOL),
        ("PING of 7", &[zeros(PING, 0, 0, 7)], SIZE),
        ("GOAWAY on 1", &[zeros(GOAWAY, 0, 1, 8)], PROTOCOL),
        ("WINDOW_UPDATE of 3", &[zeros(WINDOW_UPDATE, 0, 0, 3)], SIZE),
        (
            "CONTINUATION on 0",
            &[zeros(CONTINUATION, END_HEADERS, 0, 0)],
            PROTOCOL,
        ),
        (
            "a frame of 16,385 bytes",
            &[post(1), zeros(DATA, 0, 1, 16_385)],
            SIZE,
        ),
        (
            "an unknown frame of 16,385 bytes",
            &[zeros(0xbe, 0, 0, 16_385)],
            SIZE,
        ),
        (
            "more padding than payload",
            &[post(1), Frame::new(DATA, PADDED, 1, [2, 0])],
            PROTOCOL,
        ),
    ]);
}

/// A-130, RFC 9113 §5.1, §5.1.1, §6.2, §6.10
#[test]
fn frames_out_of_order_break_the_connection() {
    let half = Frame::new(HEADERS, END_STREAM, 1, encode(&fields("GET /", &[])));
    let rest = |stream| {
        Frame::new(
            CONTINUATION,
            END_HEADERS,
            stream,
            encode(&[("x-rest", "1")]),
        )
    };
    assert_outcomes(&[
        ("a stream of even number", &[get(2)], PROTOCOL),
        ("a stream of lower number", &[get(5), get(3)], PROTOCOL),
        ("DATA on an idle stream", &[zeros(DATA, 0, 1, 1)], PROTOCOL),
        (
            "RST_STREAM on an idle stream",
            &[Frame::reset(1, Cancel)],
            PROTOCOL,
        ),
        (
            "WINDOW_UPDATE on an idle stream",
            &[Frame::window_update(1, 1)],
            PROTOCOL,
        ),
        ("CONTINUATION without HEADERS", &[rest(1)], PROTOCOL),
        (
            "CONTINUATION on another stream",
            &[half.clone(), rest(3)],
            PROTOCOL,
        ),
        (
            "PING within a field block",
            &[half.clone(), zeros(PING, 0, 0, 8), rest(1)],
            PROTOCOL,
        ),
        (
            "another HEADERS within a field block",
            &[half, get(3)],
            PROTOCOL,
        ),
    ]);
}

/// A-130, RFC 9113 §5.1, §6.9.1, §8.1: a second message, or more of one that has ended.
#[test]
fn nothing_follows_the_end_of_a_stream() {
    let after = [get(1), Frame::data(1, "x", 0)];
    assert_outcomes(&[
        ("DATA after END_STREAM", &after, CLOSED),
        ("HEADERS after END_STREAM", &[get(1), get(1)], CLOSED),
        (
            "trailers that are not the end",
            &[post(1), Frame::headers(1, &[("x-trailer", "1")], 0)],
            MALFORMED,
        ),
    ]);
}

/// A-130, RFC 9113 §6.5.2
#[test]
fn settings_are_checked() {
    let setting = |id, value| [Frame::settings(&[(id, value)])];
    assert_outcomes(&[
        ("push 2", &setting(ENABLE_PUSH, 2), PROTOCOL),
        ("window 2^31", &setting(INITIAL_WINDOW_SIZE, 1 << 31), FLOW),
        (
            "frames of 16,383",
            &setting(MAX_FRAME_SIZE, 16_383),
            PROTOCOL,
        ),
        (
            "frames of 2^24",
            &setting(MAX_FRAME_SIZE, 1 << 24),
            PROTOCOL,
        ),
        ("an unknown setting", &setting(0xbe, 1), &[Ignored]),
        (
            "a table of 4 GiB",
            &setting(HEADER_TABLE_SIZE, u32::MAX),
            &[Ignored],
        ),
    ]);
}

/// A-130, RFC 9113 §5.2, §6.9
#[test]
fn windows_are_kept() {
    let update = Frame::window_update;
    let full = (1 << 31) - 1;
    let widen = Frame::settings(&[(INITIAL_WINDOW_SIZE, full)]);
    assert_outcomes(&[
        ("0 for the connection", &[update(0, 0)], PROTOCOL),
        ("0 for a stream", &[post(1), update(1, 0)], MALFORMED),
        ("too much for the connection", &[update(0, full)], FLOW),
        (
            "too much for a stream",
            &[post(1), update(1, full)],
            &[Stream(FlowControlError), Connection(FlowControlError)],
        ),
        (
            "too much by settings",
            &[post(1), update(1, 1), widen],
            FLOW,
        ),
    ]);
}

/// A-130: more than the sidecar gave leave for.
#[test]
fn data_beyond_the_window_is_refused() {
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::scripted(move |exchange| {
        // Nothing is read, so that no more leave is given.
        held.wait();
        exchange.close()
    });
    let auth = AuthorizationServer::new();
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("http2 = true")
        .start();
    let mut client = sidecar.h2_client();
    let stream = client.open(&fields("POST /", &[]));
    // More than windows and the buffers of sockets hold together.
    let frame = zeros(DATA, 0, stream, DEFAULT_FRAME_SIZE);
    let _ = client.try_send(&vec![frame; 2048]);
    match client.answer_or_reset(stream) {
        Err(code) => assert_eq!(code, FlowControlError),
        Ok(answer) => panic!("{answer:?}"),
    }
    gate.open();
}

/// A-130, RFC 7541 §2.3.3, §4.2, §5.2, §6.3
#[test]
fn field_blocks_that_cannot_be_read_break_the_connection() {
    let mut table_of_5000 = Vec::new();
    encode_integer(&mut table_of_5000, 0x20, 5, 5000);
    let table_first = [&table_of_5000[..], &encode(&fields("GET /", &[]))].concat();
    assert_outcomes(&[
        ("index 0", &[block(&[0x80])], COMPRESSION),
        ("index 62 of an empty table", &[block(&[0xbe])], COMPRESSION),
        ("an endless index", &[block(&[0xff; 12])], COMPRESSION),
        ("a cut literal", &[block(&[0, 5, b'x'])], COMPRESSION),
        (
            "a Huffman code of the end",
            &[block(&[0, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xff])],
            COMPRESSION,
        ),
        (
            "Huffman padding of zeros",
            &[block(&[0, 1, b'x', 0x81, 0x00])],
            COMPRESSION,
        ),
        (
            "a table larger than allowed",
            &[Frame::new(
                HEADERS,
                END_HEADERS | END_STREAM,
                1,
                table_first,
            )],
            COMPRESSION,
        ),
    ]);
}

/// A-130, RFC 9113 §4.1, §5.5
#[test]
fn what_is_unknown_is_ignored() {
    let (sidecar, upstream, _auth) = sidecar();
    let mut client = sidecar.h2_client();
    let stream = client.open(&fields("POST /", &[]));
    for frame in [
        zeros(0xbe, 0xff, 0, 100),
        zeros(0xbe, 0xff, stream, 100),
        Frame::new(DATA, 0xf0, stream, "he"),
        Frame::new(DATA, PADDED, stream, b"\x03llo\0\0\0"),
        zeros(PRIORITY, 0, stream, 5),
        zeros(PRIORITY, 0, 101, 5),
        Frame::window_update(stream, 1000),
        Frame::new(PING, ACK, 0, b"nobody's"),
    ] {
        client.send(&frame);
    }
    client.send_data(stream, b"", END_STREAM);
    assert_eq!(client.receive(stream).ok(), "ok");
    assert_eq!(upstream.request().body.data, b"hello");
}

/// RFC 9113 §6.7, §6.5.3
#[test]
fn pings_are_answered_with_their_payload() {
    let (sidecar, _upstream, _auth) = sidecar();
    let mut client = sidecar.h2_client();
    client.send(&Frame::new(PING, 0, 0, b"\x00\xff payld"));
    let pong = Frame::new(PING, ACK, 0, b"\x00\xff payld");
    while client.read().expect("a pong") != pong {}
}

/// A-130, RFC 9113 §3.4
#[test]
fn after_the_preface_come_frames() {
    let (sidecar, upstream, _auth) = sidecar();
    let mut client = sidecar.client();
    client.send([&PREFACE[..], b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"].concat());
    let mut last = None;
    while let Ok(Some(frame)) = read_frame(client.reader()) {
        last = Some(frame);
    }
    let last = last.expect("GOAWAY");
    assert_eq!(last.kind, GOAWAY, "{last:?}");
    assert_eq!(ErrorCode::read(&last.payload[4..]), FrameSizeError);
    assert_eq!(upstream.requests().len(), 0);
}

/// Requests that are malformed are no requests (RFC 9113 §8.1.1): the stream is reset, or the connection with it, and the
/// upstream hears nothing.
fn assert_malformed(cases: &[Vec<(&str, &str)>]) {
    let (sidecar, upstream, _auth) = sidecar();
    let mut wrong = Vec::new();
    for fields in cases {
        let outcome = outcome(&sidecar, &[Frame::headers(1, fields, END_STREAM)]);
        if !MALFORMED.contains(&outcome) {
            wrong.push(format!("{fields:?}: {outcome:?}"));
        }
        assert_eq!(upstream.requests().len(), 0, "{fields:?}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A-131, A-138
#[test]
fn connection_specific_fields_make_a_request_malformed() {
    let cases: Vec<_> = [
        ("connection", "keep-alive"),
        ("connection", "authorization"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "identity"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("te", "trailers, gzip"),
    ]
    .into_iter()
    .map(|field| fields("POST /", &[field]))
    .collect();
    assert_malformed(&cases);
}

/// A-132
#[test]
fn pseudo_fields_come_once_and_first() {
    let good = fields("GET /", &[]);
    let without = |name: &str| {
        let mut fields = good.clone();
        fields.retain(|(field, _)| *field != name);
        fields
    };
    let with = |field| [&good[..], &[field]].concat();
    assert_malformed(&[
        without(":method"),
        without(":scheme"),
        without(":path"),
        with((":path", "/")),
        with((":path", "/other")),
        with((":method", "GET")),
        with((":scheme", "http")),
        with((":authority", "localhost")),
        with((":unknown", "1")),
        with((":status", "200")),
        with((":protocol", "websocket")),
        [&[("x-first", "1")], &good[..]].concat(),
    ]);
}

/// A-132: hyper drops them and does not say so, where RFC 9113 §8.1 calls the request malformed.
#[test]
fn pseudo_fields_in_trailers_change_nothing() {
    let (sidecar, upstream, _auth) = sidecar();
    let evil = [
        (":method", "DELETE"),
        (":path", "/evil"),
        (":status", "200"),
    ];
    let frames = [
        post(1),
        Frame::data(1, "hello", 0),
        Frame::headers(1, &evil, END_STREAM),
    ];
    let mut client = sidecar.h2_client();
    let stream = client.new_stream();
    client.try_send(&frames).unwrap();
    assert_eq!(client.receive(stream).ok(), "ok");
    let request = upstream.request();
    assert_eq!(request.head.line, "POST / HTTP/1.1");
    assert_eq!(request.body.raw, b"5\r\nhello\r\n0\r\n\r\n");
}

/// A-133
#[test]
fn names_and_values_are_checked() {
    let (good, bad): (&[_], &[_]) = (
        &[("x-bytes", "\u{fc}"), ("x-tab", "a\tb"), ("x-empty", "")],
        &[
            ("X-Upper", "1"),
            ("x name", "1"),
            ("x\nname", "1"),
            ("", "1"),
            ("x-cr", "a\rb"),
            ("x-crlf", "a\r\nauthorization: evil"),
            ("x-lf", "a\nb"),
            ("x-nul", "a\0b"),
        ],
    );
    let cases: Vec<_> = bad
        .iter()
        .map(|field| fields("GET /", std::slice::from_ref(field)))
        .collect();
    assert_malformed(&cases);
    let (sidecar, upstream, _auth) = sidecar();
    assert_eq!(
        sidecar.h2_client().exchange(&fields("GET /", good)).ok(),
        "ok"
    );
    let head = upstream.request().head;
    for (name, value) in [
        ("x-space", " a"),
        ("x-space", "a "),
        ("x-tab", "\ta"),
        ("cookie", " "),
    ] {
        let answer = sidecar
            .h2_client()
            .exchange(&fields("GET /", &[(name, value)]));
        answer.assert_problem(400, "bad_request");
    }
    assert_eq!(head.value("x-tab").unwrap(), "a\tb");
    assert_eq!(head.value("x-bytes").unwrap(), "\u{fc}");
}

/// A-135, A-138: a length that lies must not become another request in the upstream's eyes.
#[test]
fn a_body_has_the_length_that_was_announced() {
    let cases: [(&str, &[u8]); 4] = [
        ("5", b"hell"),
        ("5", b"hello!"),
        ("5", b""),
        ("0", b"GET /x"),
    ];
    for (length, body) in cases {
        let (sidecar, upstream, _auth) = sidecar();
        let mut client = sidecar.h2_client();
        let stream = client.open(&fields("POST /", &[("content-length", length)]));
        let _ = client.try_send(&[Frame::data(stream, body, END_STREAM)]);
        assert_eq!(client.reset(stream), ProtocolError, "{length} {body:?}");
        client.ping();
        // Another connection, since this one may have been spoilt.
        assert_eq!(sidecar.h2_client().get("/after").ok(), "ok");
        let requests = upstream.requests().into_iter();
        for request in requests.filter(|request| request.body.complete) {
            // A request that announced nothing is complete before its bytes come.
            let is_bare = length == "0" && request.body.raw.is_empty();
            assert!(
                is_bare || request.target() == "/after",
                "{length} {body:?}: {request:?}"
            );
        }
    }
}

/// A-135, A-138
#[test]
fn lengths_that_are_none_make_a_request_malformed() {
    let cases: Vec<_> = ["-1", "+5", "5, 5", "0x5", "18446744073709551616"]
        .into_iter()
        .map(|length| fields("POST /", &[("content-length", length)]))
        .chain([fields(
            "POST /",
            &[("content-length", "0"), ("content-length", "5")],
        )])
        .collect();
    assert_malformed(&cases);
}

/// A stream in trouble is one stream: the others go on, and so does the connection.
#[test]
fn a_stream_error_leaves_the_other_streams_alone() {
    let gate = Gate::default();
    let held = gate.clone();
    let (upstream, auth) = (
        Upstream::scripted(move |exchange| {
            held.wait();
            exchange.send(OK)
        }),
        AuthorizationServer::new(),
    );
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("http2 = true")
        .start();
    let mut client = sidecar.h2_client();
    let good = client.ask(&fields("GET /", &[]));
    upstream.wait_for_requests(1);
    let bad = client.ask(&fields("GET /", &[("upgrade", "h2c")]));
    assert_eq!(client.reset(bad), ProtocolError);
    gate.open();
    assert_eq!(client.receive(good).ok(), "ok");
}

/// RFC 9113 §6.8: who announces his end is served to it.
#[test]
fn a_connection_that_says_goodbye_is_served_to_its_end() {
    let (sidecar, _upstream, _auth) = sidecar();
    let mut client = H2Client::connect(sidecar.proxy);
    let stream = client.ask(&fields("GET /", &[]));
    client.send(&zeros(GOAWAY, 0, 0, 8));
    assert_eq!(client.receive(stream).ok(), "ok");
    let end = client.end();
    assert!(
        end.is_none_or(|GoAway { code, .. }| code == NoError),
        "{end:?}"
    );
}
