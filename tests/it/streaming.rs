//! Bodies pass as they come, whatever their size, through a bounded amount of memory.

use std::io::{self, Read, Write};

use aws_lc_rs::digest::{Context, SHA256};

use crate::support::client::request;
use crate::support::h2_upstream::H2Upstream;
use crate::support::server::Exchange;
use crate::support::{AuthorizationServer, Gate, Setup, Sidecar, Upstream};

const MIB: usize = 1024 * 1024;
/// More than any buffer on the way.
const LARGE: usize = 100 * MIB;
/// The whole process, whatever passes through it. Half of it is the program itself, built without optimization.
const MAX_PEAK_KIB: usize = 40 * 1024;
/// What a hundred times as many bytes may add.
const MAX_GROWTH_KIB: usize = 16 * 1024;

const BLOCK: usize = 64 * 1024;

/// Writes a body of which no two blocks are alike, and returns its checksum.
fn write_large(to: &mut impl Write, length: usize) -> io::Result<String> {
    let mut checksum = Context::new(&SHA256);
    let mut block: Vec<u8> = (0..BLOCK).map(|byte| (byte % 251) as u8).collect();
    for number in 0..length / BLOCK {
        block[..8].copy_from_slice(&number.to_be_bytes());
        checksum.update(&block);
        to.write_all(&block)?;
    }
    to.flush()?;
    Ok(hex(checksum))
}

/// Reads a body of this length, and returns its checksum.
fn read_large(from: &mut impl Read, length: usize) -> io::Result<String> {
    let mut checksum = Context::new(&SHA256);
    let mut block = vec![0; BLOCK];
    for _ in 0..length / BLOCK {
        from.read_exact(&mut block)?;
        checksum.update(&block);
    }
    Ok(hex(checksum))
}

fn hex(checksum: Context) -> String {
    let digest = checksum.finish();
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Takes a body of `LARGE` bytes and answers with its checksum; to a GET answers with such a body.
fn take_or_give(exchange: &mut Exchange<'_>) -> io::Result<()> {
    if exchange.head.line.starts_with("GET") {
        exchange.send(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n"
        ))?;
        write_large(exchange.wire.get_mut(), LARGE)?;
        return Ok(());
    }
    let checksum = read_large(exchange.wire, LARGE)?;
    exchange.body_is_read();
    exchange.send(format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{checksum}",
        checksum.len()
    ))
}

/// D-53
fn large_bodies_pass_through_little_memory(upstream: &Upstream) {
    let auth = AuthorizationServer::new();
    let sidecar = Setup::between(upstream, &auth).start_process_at_info();
    let idle = sidecar.process.memory_kib("VmHWM");
    let mut client = sidecar.client();
    client.send(request(
        "POST /",
        &[&format!("Content-Length: {LARGE}")],
        "",
    ));
    let sent = write_large(client.stream(), LARGE).unwrap();
    assert_eq!(client.receive().ok(), sent);
    client.send(request("GET /", &[], ""));
    let head = client.receive_head();
    assert_eq!(head.value("content-length").unwrap(), LARGE.to_string());
    assert_eq!(read_large(client.reader(), LARGE).unwrap(), sent);

    let peak = sidecar.process.memory_kib("VmHWM");
    assert!(peak < MAX_PEAK_KIB, "{peak} KiB");
    assert!(
        peak - idle < MAX_GROWTH_KIB,
        "{peak} KiB, {idle} KiB when idle"
    );
}

#[test]
fn large_bodies_pass_through_little_memory_without_tls() {
    large_bodies_pass_through_little_memory(&Upstream::scripted(take_or_give));
}

#[test]
fn large_bodies_pass_through_little_memory_with_tls() {
    large_bodies_pass_through_little_memory(&Upstream::scripted_tls(take_or_give));
}

/// Larger than the windows of HTTP/2, so that flow control has to work both ways.
#[test]
fn a_large_body_passes_over_http2() {
    let (upstream, auth) = (H2Upstream::echo(), AuthorizationServer::new());
    let sidecar = Setup::new(&upstream.url(), &auth)
        .trusting(&upstream.authority)
        .start();
    let length = 16 * MIB;
    let mut client = sidecar.client();
    client.send(request(
        "POST /",
        &[&format!("Content-Length: {length}")],
        "",
    ));
    let sent = write_large(client.stream(), length).unwrap();
    assert_eq!(
        client.receive_head().value("content-length").unwrap(),
        length.to_string()
    );
    assert_eq!(read_large(client.reader(), length).unwrap(), sent);
    assert_eq!(
        upstream.request().values("content-length"),
        [length.to_string()]
    );
}

#[test]
fn an_answer_begins_to_arrive_before_it_ends() {
    let (gate, auth) = (Gate::default(), AuthorizationServer::new());
    let arrived = gate.clone();
    let upstream = Upstream::scripted(move |exchange| {
        exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")?;
        gate.wait();
        exchange.send("4\r\nlast\r\n0\r\n\r\n")
    });
    let sidecar = Sidecar::between(&upstream, &auth);
    let mut client = sidecar.client();
    client.send(request("GET /events", &[], ""));
    assert_eq!(client.receive_head().status(), 200);
    assert_eq!(client.receive_bytes(10), b"5\r\nfirst\r\n");
    arrived.open();
    assert_eq!(client.receive_bytes(14), b"4\r\nlast\r\n0\r\n\r\n");
}

#[test]
fn a_request_begins_to_arrive_before_it_ends() {
    let (gate, auth) = (Gate::default(), AuthorizationServer::new());
    let arrived = gate.clone();
    let upstream = Upstream::scripted(move |exchange| {
        let mut first = [0; 5];
        exchange.wire.read_exact(&mut first)?;
        arrived.open();
        let mut last = [0; 4];
        exchange.wire.read_exact(&mut last)?;
        exchange.body_is_read();
        assert_eq!((&first, &last), (b"first", b"last"));
        exchange.send(crate::support::upstream::OK)
    });
    let sidecar = Sidecar::between(&upstream, &auth);
    let mut client = sidecar.client();
    client.send(request("POST /", &["Content-Length: 9"], "first"));
    gate.wait();
    client.send("last");
    assert_eq!(client.receive().ok(), "ok");
}

/// Both ways at once: the answer to each part comes before the next part is sent.
#[test]
fn request_and_answer_pass_each_other() {
    let auth = AuthorizationServer::new();
    let upstream = Upstream::scripted(|exchange| {
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n")?;
        for _ in 0..3 {
            let mut byte = [0];
            exchange.wire.read_exact(&mut byte)?;
            exchange.send(byte)?;
        }
        exchange.body_is_read();
        Ok(())
    });
    let sidecar = Sidecar::between(&upstream, &auth);
    let mut client = sidecar.client();
    client.send(request("POST /", &["Content-Length: 3"], ""));
    assert_eq!(client.receive_head().status(), 200);
    for byte in [b"a", b"b", b"c"] {
        client.send(byte);
        assert_eq!(client.receive_bytes(1), byte);
    }
}
