//! The memory of the whole process is bounded by what is configured, whatever the two sides do. Each bound is one of
//! growth, and is stated for each connection; the program is one that was built without optimization.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use socket2::SockRef;
use tokio::time::Instant;

use crate::support::client::request;
use crate::support::sidecar::Running;
use crate::support::{AuthorizationServer, Client, Crowd, PATIENCE, Setup, Upstream};

const KIB: usize = 1024;

fn memory(sidecar: &Running) -> usize {
    sidecar.process.memory_kib("VmRSS") * KIB
}

/// Waits until `progress` has stood still for a while. A busy machine may take long to get there, so there is more time
/// than elsewhere.
fn wait_for_standstill(mut progress: impl FnMut() -> usize) -> usize {
    let mut last = usize::MAX;
    let mut still = 0;
    let begun = Instant::now();
    while still < 50 {
        assert!(begun.elapsed() < 10 * PATIENCE, "no standstill: {last}");
        let present = progress();
        still = if present == last { still + 1 } else { 0 };
        last = present;
        thread::sleep(Duration::from_millis(10));
    }
    last
}

/// D-58, H-26: of a head that does not end the sidecar holds what one may have, and room for a piece of the body.
#[test]
fn half_heads_take_no_more_memory_than_their_limit() {
    const CONNECTIONS: usize = 1000;
    const EACH: usize = (32 + 32) * KIB;
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("max_connections = 1000\nheader_timeout = \"1h\"")
        .start_process_at_info();
    let crowd = Crowd::accepted_by(&sidecar, CONNECTIONS);
    // A connection that was just accepted has not taken its first buffer yet.
    let bare = wait_for_standstill(|| memory(&sidecar));
    crowd.send(1, "GET / HTTP/1.1\r\n");
    for number in 0..31 {
        crowd.send(1, format!("X-{number}: {}\r\n", "x".repeat(KIB - 10)));
    }
    let growth = wait_for_standstill(|| memory(&sidecar)) - bare;
    println!("{} bytes for each half head", growth / CONNECTIONS);
    assert!(
        growth >= CONNECTIONS * 31 * KIB,
        "{growth}: the heads were read"
    );
    // The allocator keeps what a buffer has outgrown for a while: how much, depends on how busy the machine is.
    assert!(growth <= CONNECTIONS * EACH * 3 / 2, "{growth}");

    for _ in 0..16 {
        crowd.send(1, format!("X-more: {}\r\n", "x".repeat(16 * KIB)));
    }
    sidecar.wait_for_metric("bearerd_connections_open", 0.0);
    let peak = sidecar.process.memory_kib("VmHWM") * KIB - bare;
    println!("{} bytes at the peak", peak / CONNECTIONS);
    assert!(peak <= CONNECTIONS * EACH * 3 / 2, "{peak}");
}

/// E-49, in short: connections that are used again and again cost what they cost at the beginning.
#[test]
fn memory_and_files_stay_flat_under_a_steady_load() {
    const CONNECTIONS: usize = 500;
    const AT_ONCE: usize = 50;
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth).start_process_at_info();
    let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| sidecar.client()).collect();
    let mut rounds = |number: usize| {
        for _ in 0..number {
            for some in clients.chunks_mut(AT_ONCE) {
                for client in some.iter_mut() {
                    client.send(request("POST /", &["Content-Length: 5"], "hello"));
                }
                for client in some {
                    assert_eq!(client.receive().ok(), "ok");
                }
            }
        }
        (memory(&sidecar), sidecar.process.open_files())
    };
    let (early, files) = rounds(3);
    let (late, files_late) = rounds(12);
    println!("{early} bytes early, {late} late; {files} and {files_late} files");
    assert!(
        late <= early + 4 * KIB * KIB,
        "{early} bytes early, {late} late"
    );
    // The pool of connections to the upstream may still have grown a little.
    assert!(
        files_late <= files + AT_ONCE,
        "{files} files early, {files_late} late"
    );
}

/// Sends so much as there is room for now.
fn fill(client: &mut Client) -> usize {
    let mut sent = 0;
    while let Ok(length) = client.try_send_now(&[b'x'; 4 * KIB]) {
        sent += length;
    }
    sent
}

/// E-55, D-53: many bodies at once, each way, that nobody takes at the other end.
#[test]
fn streams_that_nobody_reads_take_a_bounded_amount_of_memory() {
    const STREAMS: usize = 200;
    /// For each of the two bodies a buffer of 64 KiB where it is read and one where it is written, and as much on the way
    /// into each; and the connections themselves.
    const EACH: usize = (2 * 4 + 1) * 64 * KIB;
    let auth = AuthorizationServer::new();
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let upstream = Upstream::scripted(move |exchange| {
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")?;
        SockRef::from(exchange.socket()).set_send_buffer_size(16 * KIB)?;
        loop {
            exchange.send([b'x'; 4 * KIB])?;
            count.fetch_add(4 * KIB, Ordering::SeqCst);
        }
    });
    let sidecar = Setup::between(&upstream, &auth).start_process_at_info();
    assert_eq!(sidecar.admin("/livez").status(), 200);
    let before = memory(&sidecar);
    let mut clients: Vec<Client> = (0..STREAMS)
        .map(|_| {
            let mut client = sidecar.client();
            client.send(request("POST /", &["Content-Length: 100000000"], ""));
            client
        })
        .collect();
    upstream.wait_for_requests(STREAMS);
    let mut uploaded = 0;
    wait_for_standstill(|| {
        uploaded += clients.iter_mut().map(fill).sum::<usize>();
        uploaded + written.load(Ordering::SeqCst)
    });
    let growth = memory(&sidecar) - before;
    println!("{} KiB for each stream", growth / STREAMS / KIB);
    assert!(
        growth <= STREAMS * EACH,
        "{} KiB for each stream",
        growth / STREAMS / KIB
    );
}
