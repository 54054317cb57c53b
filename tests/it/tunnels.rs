//! Connections that an upgrade made tunnels of: bytes pass as they are, until both sides have ended.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::support::sidecar::Running;
use crate::support::websocket::{
    SWITCH, assert_echo, before, echo, granting, handshake, open, setup, wait_for_tunnels,
};
use crate::support::{AuthorizationServer, Client, Upstream, wait_until};

/// Bytes of which no two parts of 4 are alike.
fn numbered(length: u32) -> Vec<u8> {
    (0..length / 4).flat_map(u32::to_be_bytes).collect()
}

const MIB: u32 = 1024 * 1024;

/// The first bytes of a tunnel may come in one piece with the heads, and may be many.
#[test]
fn bytes_right_after_the_heads_are_not_lost() {
    for length in [1, 100, 300 * 1024] {
        let expected = numbered(length + 3);
        let bytes = expected.clone();
        let (sidecar, _upstream, _auth) = before(move |exchange| {
            let mut early = vec![0; bytes.len()];
            exchange.wire.read_exact(&mut early)?;
            assert!(early == bytes, "as the application sent it");
            Ok(())
        });
        let mut client = sidecar.client();
        let mut writer = client.writer();
        let early = handshake(&[], &expected);
        let sending = thread::spawn(move || writer.write_all(&early).unwrap());
        assert_eq!(client.receive_head().status(), 101);
        assert_eq!(client.receive_rest(), b"");
        sending.join().unwrap();

        let answer = [SWITCH.as_bytes(), &expected].concat();
        let (upstream, auth) = (Upstream::answering_once(answer), AuthorizationServer::new());
        let sidecar = setup(&upstream, &auth).start();
        let mut client = open(&sidecar);
        assert!(client.receive_rest() == expected, "as the upstream sent it");
    }
}

/// Neither direction waits for the other, whatever lies in buffers.
#[test]
fn both_ways_at_once() {
    let (sidecar, upstream, _auth) = before(|exchange| {
        let mut writer = exchange.socket().try_clone()?;
        let writing = thread::spawn(move || writer.write_all(&numbered(16 * MIB)));
        let mut bytes = vec![0; 16 * MIB as usize];
        exchange.wire.read_exact(&mut bytes)?;
        assert!(bytes == numbered(16 * MIB), "as the application sent it");
        writing.join().unwrap()
    });
    let mut client = open(&sidecar);
    let mut writer = client.writer();
    let writing = thread::spawn(move || writer.write_all(&numbered(16 * MIB)).unwrap());
    assert!(
        client.receive_rest() == numbered(16 * MIB),
        "as the upstream sent it"
    );
    writing.join().unwrap();
    assert!(upstream.request().is_over);
}

/// Who has nothing more to say may still listen.
#[test]
fn the_end_of_one_direction_leaves_the_other_open() {
    let (sidecar, upstream, _auth) = before(|exchange| {
        let mut all = Vec::new();
        exchange.wire.read_to_end(&mut all)?;
        exchange.send([&all[..], b" and goodbye"].concat())
    });
    let mut client = open(&sidecar);
    client.send("hello");
    client.finish();
    assert_eq!(client.receive_rest(), b"hello and goodbye");
    assert!(upstream.request().is_over);

    let (sidecar, upstream, _auth) = before(|exchange| {
        exchange.send("goodbye")?;
        exchange.socket().shutdown(Shutdown::Write)?;
        let mut all = Vec::new();
        exchange.wire.read_to_end(&mut all)?;
        assert_eq!(all, b"hello");
        Ok(())
    });
    let mut client = open(&sidecar);
    assert_eq!(client.receive_rest(), b"goodbye");
    client.send("hello");
    client.finish();
    assert!(upstream.request().is_over);
    wait_for_tunnels(&sidecar, 0.0);
}

/// E-54: who breaks off takes the other side along.
#[test]
fn a_reset_ends_both_sides() {
    let (sidecar, upstream, _auth) = before(|exchange| {
        exchange.send("hello")?;
        exchange.stall()
    });
    let mut client = open(&sidecar);
    assert_eq!(client.receive_bytes(5), b"hello");
    client.reset();
    assert!(upstream.request().is_over);
    wait_for_tunnels(&sidecar, 0.0);

    let upstream = Upstream::scripted(|exchange| {
        exchange.send(SWITCH)?;
        exchange.wire.read_exact(&mut [0; 5])?;
        exchange.reset()
    });
    let auth = AuthorizationServer::new();
    let sidecar = setup(&upstream, &auth).start();
    let mut client = open(&sidecar);
    client.send("hello");
    assert!(client.is_over());
    wait_for_tunnels(&sidecar, 0.0);
}

/// A peer that reads slowly holds the other back, and no memory.
#[test]
fn a_slow_reader_costs_no_memory() {
    const MAX_GROWTH_KIB: usize = 8 * 1024;
    let upstream = granting(|exchange| exchange.wire.get_mut().write_all(&numbered(24 * MIB)));
    let auth = AuthorizationServer::new();
    let sidecar = setup(&upstream, &auth).start_process();
    assert_eq!(sidecar.get("/").ok(), "ok");
    let idle = sidecar.process.memory_kib("VmHWM");
    let mut client = open(&sidecar);
    assert_eq!(client.receive_bytes(4), [0; 4]);
    // Another tunnel goes to its end meanwhile.
    assert!(open(&sidecar).receive_rest() == numbered(24 * MIB));
    assert!(client.receive_rest() == numbered(24 * MIB)[4..]);
    let growth = sidecar.process.memory_kib("VmHWM") - idle;
    assert!(growth < MAX_GROWTH_KIB, "{growth} KiB");
}

#[test]
fn a_tunnel_idle_in_both_directions_is_closed() {
    let idle_timeout = Duration::from_millis(300);
    let (upstream, auth) = (granting(echo), AuthorizationServer::new());
    let sidecar = setup(&upstream, &auth)
        .upstream("idle_timeout = \"300ms\"")
        .start();
    let mut client = open(&sidecar);
    assert_echo(&mut client, "hello");
    let idle_since = Instant::now();
    assert!(client.is_over());
    // What it counts from is known to a part of a millisecond only.
    assert!(idle_since.elapsed() >= idle_timeout - Duration::from_millis(100));
    assert!(upstream.request().is_over);
    wait_for_tunnels(&sidecar, 0.0);
}

/// One direction is enough, be it this one or that one.
#[test]
fn a_tunnel_in_use_is_not_idle() {
    let pace = Duration::from_millis(100);
    let (upstream, auth) = (
        granting(move |exchange| {
            exchange.wire.read_exact(&mut [0; 25])?;
            for _ in 0..25 {
                exchange.send("x")?;
                thread::sleep(pace);
            }
            Ok(())
        }),
        AuthorizationServer::new(),
    );
    let sidecar = setup(&upstream, &auth)
        .upstream("idle_timeout = \"2s\"")
        .start();
    let mut client = open(&sidecar);
    for _ in 0..25 {
        client.send("x");
        thread::sleep(pace);
    }
    assert_eq!(client.receive_rest(), [b'x'; 25]);
}

/// H-25, D-55, D-56: a tunnel is in flight and holds its connection, until it ends.
#[test]
fn a_tunnel_counts_in_every_limit() {
    let (upstream, auth) = (granting(echo), AuthorizationServer::new());
    let sidecar = setup(&upstream, &auth).proxy("max_in_flight = 1").start();
    let tunnel = open(&sidecar);
    sidecar.get("/").assert_problem(503, "overloaded");
    sidecar
        .send(handshake(&[], ""))
        .assert_problem(503, "overloaded");
    drop(tunnel);
    wait_until("room again", || sidecar.get("/").status() == 200);

    let sidecar = setup(&upstream, &auth).proxy("max_connections = 1").start();
    let mut tunnel = open(&sidecar);
    sidecar.get("/").assert_problem(503, "overloaded");
    assert_eq!(sidecar.metric("bearerd_connections_open"), 1.0);
    assert_echo(&mut tunnel, "hello");
    drop(tunnel);
    wait_until("room again", || sidecar.get("/").status() == 200);
}

#[test]
fn many_tunnels_do_not_get_mixed_up() {
    let (sidecar, _upstream, _auth) = before(echo);
    let mut tunnels: Vec<_> = (0..50).map(|_| open(&sidecar)).collect();
    wait_for_tunnels(&sidecar, 50.0);
    for (number, tunnel) in tunnels.iter_mut().enumerate() {
        tunnel.send(format!("tunnel {number:2}"));
    }
    for (number, tunnel) in tunnels.iter_mut().enumerate() {
        let expected = format!("tunnel {number:2}");
        assert_eq!(tunnel.receive_bytes(expected.len()), expected.as_bytes());
    }
    drop(tunnels);
    wait_for_tunnels(&sidecar, 0.0);
}

/// A sidecar with an open tunnel, asked to stop.
fn stopping(proxy: &str) -> (Running, Client, Upstream, AuthorizationServer) {
    let (upstream, auth) = (granting(echo), AuthorizationServer::new());
    let sidecar = setup(&upstream, &auth).proxy(proxy).start_process();
    let mut client = open(&sidecar);
    assert_echo(&mut client, "before");
    sidecar.process.signal("TERM");
    wait_until("the drain", || {
        sidecar.process.stderr().contains("draining")
    });
    (sidecar, client, upstream, auth)
}

/// H-25, E-30: there is no telling a WebSocket to go, so it has all the time there is.
#[test]
fn a_tunnel_survives_the_drain_delay_and_may_end_by_itself() {
    let (sidecar, mut client, _upstream, _auth) = stopping("drain_delay = \"100ms\"");
    wait_until("the end of the delay", || {
        Client::try_connect(sidecar.proxy).is_none()
    });
    assert_echo(&mut client, "after the delay");
    client.finish();
    assert_eq!(client.receive_rest(), b"");
    let ended = sidecar.process.ended();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("nothing was lost"),
        "{}",
        ended.stderr
    );
}

/// During the delay what exists goes on, and nothing begins that would have to be cut.
#[test]
fn no_tunnel_begins_in_the_drain() {
    let proxy = "drain_delay = \"1h\"\ndrain_timeout = \"2h\"";
    let (sidecar, mut client, _upstream, _auth) = stopping(proxy);
    assert_echo(&mut client, "in the delay");
    sidecar
        .send(handshake(&[], ""))
        .assert_problem(503, "draining");
    client.finish();
    assert_eq!(client.receive_rest(), b"");
    wait_for_tunnels(&sidecar, 0.0);
    sidecar.process.signal("TERM");
    assert_eq!(sidecar.process.ended().code, 0);
}

/// H-25, E-31
#[test]
fn a_tunnel_that_does_not_end_in_time_is_cut() {
    let proxy = "drain_delay = \"0s\"\ndrain_timeout = \"500ms\"";
    let (sidecar, mut client, upstream, _auth) = stopping(proxy);
    assert!(client.is_over());
    assert!(upstream.request().is_over);
    let ended = sidecar.process.ended();
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("cut"), "{}", ended.stderr);
}
