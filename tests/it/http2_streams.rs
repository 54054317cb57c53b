//! Many streams on one HTTP/2 connection: none stands in the way of another, and the end of the connection loses none.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use crate::support::h2_client::fields;
use crate::support::h2_frames::{
    DEFAULT_WINDOW, END_STREAM, ErrorCode, Frame, INITIAL_WINDOW_SIZE,
};
use crate::support::sidecar::Running;
use crate::support::upstream::OK;
use crate::support::{AuthorizationServer, Gate, H2Client, Setup, Upstream, wait_until};

const MIB: usize = 1024 * 1024;

/// A body of this length of which no two parts of 4 bytes are alike.
fn numbered(length: usize) -> Vec<u8> {
    (0..length as u32 / 4).flat_map(u32::to_be_bytes).collect()
}

/// An upstream that gives every body back.
fn echo() -> Upstream {
    Upstream::scripted(|exchange| {
        let body = exchange.body();
        exchange.send(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
            body.data.len()
        ))?;
        exchange.send(body.data)
    })
}

/// An upstream that sends [`LARGE`] bytes to who asks for `/large`, and answers others with [`OK`].
fn sometimes_large() -> Upstream {
    Upstream::scripted(|exchange| {
        if exchange.head.line.starts_with("GET /large") {
            exchange.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n"
            ))?;
            return exchange.send(large());
        }
        exchange.send(OK)
    })
}

const LARGE: usize = 2 * MIB;

fn large() -> &'static [u8] {
    static BODY: LazyLock<Vec<u8>> = LazyLock::new(|| numbered(LARGE));
    &BODY
}

fn start(upstream: &Upstream, proxy: &str) -> (Running, AuthorizationServer) {
    let auth = AuthorizationServer::new();
    let sidecar = Setup::between(upstream, &auth)
        .proxy("http2 = true")
        .proxy(proxy)
        .start_process_at_info();
    (sidecar, auth)
}

#[test]
fn many_requests_at_once_do_not_get_mixed_up() {
    let upstream = echo();
    let (sidecar, _auth) = start(&upstream, "");
    let mut client = sidecar.h2_client();
    for round in 0..5 {
        let streams: Vec<_> = (0..100)
            .map(|number| {
                let stream = client.open(&fields(&format!("POST /{round}/{number}"), &[]));
                client.send_data(stream, format!("{round} {number} ").as_bytes(), 0);
                stream
            })
            .collect();
        // The last one first.
        for (number, stream) in streams.iter().enumerate().rev() {
            let end = "x".repeat(number * 100);
            client.send_data(*stream, end.as_bytes(), END_STREAM);
        }
        for (number, stream) in streams.iter().enumerate() {
            let expected = format!("{round} {number} {}", "x".repeat(number * 100));
            assert_eq!(client.receive(*stream).ok(), expected);
        }
    }
    assert_eq!(upstream.requests().len(), 500);
}

/// D-53, E-55: whoever reads slowly waits alone, and in a bounded amount of memory.
#[test]
fn answers_that_are_not_read_do_not_stop_the_others() {
    const MAX_GROWTH_KIB: usize = 40 * 1024;
    let upstream = sometimes_large();
    let (sidecar, _auth) = start(&upstream, "");
    let mut client = sidecar.h2_client();
    assert_eq!(client.get("/").ok(), "ok");
    let idle = sidecar.process.memory_kib("VmHWM");
    let slow: Vec<_> = (0..100)
        .map(|_| {
            let stream = client.ask(&fields("GET /large", &[]));
            client.hold(stream);
            stream
        })
        .collect();
    for stream in &slow {
        client.wait_for_bytes(*stream, DEFAULT_WINDOW as usize);
    }
    assert_eq!(client.get("/").ok(), "ok");
    let quick = client.ask(&fields("GET /large", &[]));
    assert!(client.receive(quick).body.data == large());
    let growth = sidecar.process.memory_kib("VmHWM") - idle;
    assert!(growth < MAX_GROWTH_KIB, "{growth} KiB for 200 MiB");
    for stream in &slow {
        assert_eq!(client.received(*stream), DEFAULT_WINDOW as usize);
    }
    client.release(slow[50]);
    assert!(client.receive(slow[50]).body.data == large());
}

/// D-53, E-55: the same where nothing stops us but that nobody reads from the socket.
#[test]
fn answers_that_pile_up_cost_little_memory() {
    const MAX_GROWTH_KIB: usize = 80 * 1024;
    let upstream = sometimes_large();
    let (sidecar, _auth) = start(&upstream, "");
    assert_eq!(sidecar.h2_client().get("/").ok(), "ok");
    let idle = sidecar.process.memory_kib("VmHWM");
    let endless = (1 << 31) - 1;
    let mut client = H2Client::connect_with(sidecar.proxy, &[(INITIAL_WINDOW_SIZE, endless)]);
    client.send(&Frame::window_update(0, endless - DEFAULT_WINDOW));
    for _ in 0..100 {
        client.ask(&fields("GET /large", &[]));
    }
    upstream.wait_for_requests(101);
    wait_for_rest(&sidecar);
    let mut other = sidecar.h2_client();
    let stream = other.ask(&fields("GET /large", &[]));
    assert!(other.receive(stream).body.data == large());
    let growth = sidecar.process.memory_kib("VmHWM") - idle;
    assert!(growth < MAX_GROWTH_KIB, "{growth} KiB for 200 MiB");
}

/// Waits until it has nothing more to do: it has used no processor time for 20 looks.
fn wait_for_rest(sidecar: &Running) {
    let (mut used, mut looks) = (Duration::ZERO, 0);
    wait_until("rest", || {
        let now = sidecar.process.processor_time();
        looks = if now == used { looks + 1 } else { 0 };
        used = now;
        looks == 20
    });
}

/// An upstream that holds its answers back.
fn holding(gate: &Gate) -> Upstream {
    let gate = gate.clone();
    Upstream::scripted(move |exchange| {
        gate.wait();
        exchange.send(OK)
    })
}

/// E-30
#[test]
fn streams_in_flight_are_finished_after_sigterm() {
    let gate = Gate::default();
    let upstream = holding(&gate);
    let (sidecar, _auth) = start(&upstream, "drain_delay = \"100ms\"");
    let mut client = sidecar.h2_client();
    let streams: Vec<_> = (0..3).map(|_| client.ask(&fields("GET /", &[]))).collect();
    upstream.wait_for_requests(3);
    sidecar.process.signal("TERM");
    assert_eq!(client.goaway().code, ErrorCode::NoError);
    gate.open();
    for stream in &streams {
        assert_eq!(client.receive(*stream).ok(), "ok");
    }
    let end = client.end().unwrap();
    assert_eq!(
        (end.last_stream, end.code),
        (streams[2], ErrorCode::NoError)
    );
    let ended = sidecar.process.ended();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("nothing was lost"),
        "{}",
        ended.stderr
    );
}

/// E-30: others must learn of it first, so it serves on, and says so.
#[test]
fn during_the_delay_new_connections_are_served() {
    let upstream = Upstream::ok();
    let proxy = "drain_delay = \"1h\"\ndrain_timeout = \"2h\"";
    let (sidecar, _auth) = start(&upstream, proxy);
    let mut client = sidecar.h2_client();
    assert_eq!(client.get("/").ok(), "ok");
    sidecar.process.signal("TERM");
    assert_eq!(client.goaway().code, ErrorCode::NoError);
    client.end();
    for _ in 0..3 {
        let mut client = sidecar.h2_client();
        // An honest client asks for nothing more once it was told to go (RFC 9113 §6.8).
        client.ping();
        assert!(!client.is_told_to_go(), "before its first request");
        assert_eq!(client.get("/").ok(), "ok");
        assert_eq!(client.goaway().code, ErrorCode::NoError);
    }
    sidecar.process.signal("TERM");
    assert_eq!(sidecar.process.ended().code, 0, "nothing was in flight");
}

#[test]
fn sigint_ends_idle_connections_at_once() {
    let upstream = Upstream::ok();
    let proxy = "header_timeout = \"1h\"\ndrain_delay = \"1h\"\ndrain_timeout = \"2h\"";
    let (sidecar, _auth) = start(&upstream, proxy);
    let mut client = sidecar.h2_client();
    assert_eq!(client.get("/").ok(), "ok");
    let mut unused = sidecar.h2_client();
    sidecar.process.signal("INT");
    for client in [&mut client, &mut unused] {
        assert_eq!(client.end().unwrap().code, ErrorCode::NoError);
    }
    assert_eq!(sidecar.process.ended().code, 0);
}

/// GOAWAY comes in two steps, of which the second waits for the peer (RFC 9113 §6.8); not for ever.
#[test]
fn a_peer_that_does_not_read_does_not_hold_up_the_drain() {
    let upstream = Upstream::ok();
    let proxy = "header_timeout = \"1h\"\ndrain_timeout = \"2h\"";
    let (sidecar, _auth) = start(&upstream, proxy);
    let mut client = sidecar.h2_client();
    assert_eq!(client.get("/").ok(), "ok");
    sidecar.process.signal("INT");
    assert_eq!(sidecar.process.ended().code, 0);
    assert_eq!(client.end().unwrap().code, ErrorCode::NoError);
}

/// E-31
#[test]
fn streams_that_are_not_finished_in_time_are_cut() {
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::scripted(move |exchange| {
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfirst")?;
        held.wait();
        exchange.send("last")
    });
    let (sidecar, _auth) = start(&upstream, "drain_delay = \"0s\"\ndrain_timeout = \"500ms\"");
    let mut client = sidecar.h2_client();
    let stream = client.ask(&fields("GET /", &[]));
    client.wait_for_bytes(stream, 5);
    sidecar.process.signal("TERM");
    let ended = sidecar.process.ended();
    assert_eq!(ended.code, 1);
    assert!(
        ended.stderr.contains("requests were cut"),
        "{}",
        ended.stderr
    );
    let answer = client.receive_what_comes(stream);
    assert_eq!(
        (answer.text(), answer.body.complete),
        ("first".to_owned(), false)
    );
    gate.open();
}

/// E-30: until the listener is gone, every request that reached the upstream is answered.
#[test]
fn under_load_nothing_is_lost() {
    let upstream = Upstream::ok();
    let (sidecar, _auth) = start(&upstream, "drain_delay = \"1s\"");
    let address = sidecar.proxy;
    let applications: Vec<_> = (0..4)
        .map(|_| thread::spawn(move || requests_until_refused(address)))
        .collect();
    upstream.wait_for_requests(100);
    sidecar.process.signal("TERM");
    let answered: usize = applications
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .sum();
    assert_eq!(sidecar.process.ended().code, 0);
    assert_eq!(answered, upstream.requests().len());
}

/// Sends requests for as long as new connections are taken; returns how many were answered.
fn requests_until_refused(address: SocketAddr) -> usize {
    let mut answered = 0;
    while let Some(mut client) = H2Client::try_connect(address) {
        while !client.is_told_to_go() {
            let stream = client.new_stream();
            let get = Frame::headers(stream, &fields("GET /", &[]), END_STREAM);
            // What crosses GOAWAY may be sent again elsewhere: nobody has looked at it.
            match client
                .try_send(&[get])
                .map(|()| client.answer_or_reset(stream))
            {
                Ok(Ok(answer)) => assert_eq!(answer.ok(), "ok"),
                Ok(Err(ErrorCode::NoError | ErrorCode::RefusedStream)) | Err(_) => break,
                Ok(Err(code)) => panic!("{code:?}"),
            }
            answered += 1;
        }
    }
    answered
}
