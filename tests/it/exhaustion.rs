//! More of everything than there is room for: connections, file descriptors, requests, scrapes. Whoever behaves is served,
//! and whatever was taken comes back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::support::client::request;
use crate::support::crowd::that_fit;
use crate::support::upstream::OK;
use crate::support::{AuthorizationServer, Client, Crowd, Setup, Upstream, eventually, wait_until};

const MANY: usize = 10_000;

/// D-50, D-51, H-01…H-03: first all of them at once, which takes as long as it takes, so that none may be gone before the
/// last has come; then as many that have to go, whether they are still on their way or not.
#[test]
fn ten_thousand_silent_and_slow_connections_keep_nobody_from_being_served() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let start = |header_timeout| {
        Setup::between(&upstream, &auth)
            .proxy("max_connections = 12000")
            .proxy(&format!("header_timeout = {header_timeout:?}"))
            .start_process_at_info()
    };
    let sidecar = start("1h");
    let number = that_fit(&sidecar, MANY);
    let crowd = Crowd::accepted_by(&sidecar, number);
    let open = sidecar.metric("bearerd_connections_open");
    assert_eq!(open, number as f64, "all at once");
    crowd.send(2, "GET / HTTP/1.1\r\nX: ");
    let mut kept = sidecar.client();
    for _ in 0..10 {
        crowd.send(2, "x");
        for _ in 0..10 {
            assert_eq!(kept.exchange(request("GET /", &[], "")).ok(), "ok");
            assert_eq!(sidecar.get("/").ok(), "ok");
        }
    }
    drop((crowd, kept, sidecar));

    let sidecar = start("5s");
    let crowd = Crowd::at(&sidecar, number);
    crowd.send(2, "GET / HTTP/1.1\r\nX: ");
    eventually("the end of the crowd", || {
        crowd.send(2, "x");
        assert_eq!(sidecar.get("/").ok(), "ok");
        (sidecar.metric("bearerd_connections_open") <= 1.0).then_some(())
    });
    assert!(crowd.is_closed());
}

/// D-50, D-51: what they cost the others.
#[test]
#[ignore = "a measurement, for a quiet machine and a release build"]
fn ten_thousand_silent_and_slow_connections_cost_others_little_time() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("max_connections = 12000\nheader_timeout = \"1h\"")
        .start_process_at_info();
    let latencies = || {
        let mut client = sidecar.client();
        let mut latencies: Vec<Duration> = (0..20_000)
            .map(|_| {
                let sent = Instant::now();
                assert_eq!(client.exchange(request("GET /", &[], "")).ok(), "ok");
                sent.elapsed()
            })
            .collect();
        latencies.sort();
        (
            latencies[latencies.len() / 2],
            latencies[latencies.len() * 99 / 100],
        )
    };
    let number = that_fit(&sidecar, MANY);
    latencies();
    let without = latencies();
    let crowd = Crowd::accepted_by(&sidecar, number);
    let over = AtomicBool::new(false);
    let with = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                crowd.send(2, "x");
                thread::sleep(Duration::from_secs(1));
            }
        });
        let with = latencies();
        over.store(true, Ordering::SeqCst);
        with
    });
    let ratio = with.1.as_secs_f64() / without.1.as_secs_f64();
    println!("p50 and p99 without: {without:?}, with {number}: {with:?}; p99 ratio {ratio:.2}");
    assert!(ratio <= 2.0, "{ratio}");
}

/// E-40, D-55: as many clients as four times the file descriptors.
#[test]
fn few_file_descriptors_mean_few_connections_and_no_busy_loop() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth).start_process_with_files(256);
    let crowd = Crowd::at(&sidecar, 1000);
    crowd.send(1, request("GET /", &[], ""));
    let mut answers = Vec::new();
    wait_until("answers", || {
        answers.extend(crowd.answers());
        answers
            .iter()
            .filter(|answer| answer.starts_with("HTTP/1.1 200 "))
            .count()
            >= 64
    });
    let (lines, used) = (
        sidecar.process.stderr().lines().count(),
        sidecar.process.processor_time(),
    );
    let window = Duration::from_secs(3);
    thread::sleep(window);
    let used = sidecar.process.processor_time() - used;
    let lines = sidecar.process.stderr().lines().count() - lines;
    assert!(
        used < window / 10,
        "{used:?} of processor time in {window:?}"
    );
    assert!(
        lines <= 4,
        "{lines} lines in {window:?}:\n{}",
        sidecar.process.stderr()
    );
    assert_eq!(sidecar.admin("/livez").status(), 200);
    answers.extend(crowd.answers());
    for answer in answers {
        let refused = answer.starts_with("HTTP/1.1 503 ") && answer.contains("overloaded");
        assert!(answer.starts_with("HTTP/1.1 200 ") || refused, "{answer}");
    }
    drop(crowd);
    wait_until("room again", || {
        let mut client = sidecar.client();
        let sent = client.try_send(request("GET /", &[], ""));
        let answer = sent.and_then(|()| client.try_receive());
        answer.is_ok_and(|answer| answer.is_some_and(|answer| answer.status() == 200))
    });
}

/// E-40, E-41, H-28: without one file descriptor left, neither side of the proxy gets a connection. It says so to those
/// it has, spins no loop over those it has not, and serves both as soon as it can.
#[test]
fn without_file_descriptors_it_says_so_and_recovers() {
    let auth = AuthorizationServer::new();
    let upstream =
        Upstream::answering_once(OK.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"));
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("header_timeout = \"1h\"")
        .start_process_at_info();
    let mut client = sidecar.client();
    assert_eq!(client.exchange(request("GET /", &[], "")).ok(), "ok");
    // Every descriptor that could be had is above this, whatever is closed meanwhile.
    sidecar.process.limit_files(3);
    for method in ["GET", "POST"] {
        let request = request(&format!("{method} /"), &["Content-Length: 0"], "");
        client.exchange(&request).assert_problem(503, "overloaded");
    }
    assert_eq!(upstream.requests().len(), 1);
    let mut waiting = sidecar.client();
    waiting.send(request("GET /", &[], ""));
    let used = sidecar.process.processor_time();
    let window = Duration::from_secs(2);
    thread::sleep(window);
    let used = sidecar.process.processor_time() - used;
    assert!(
        used < window / 10,
        "{used:?} of processor time in {window:?}"
    );
    assert!(!waiting.has_answer());
    sidecar.process.limit_files(1024);
    assert_eq!(client.exchange(request("GET /", &[], "")).ok(), "ok");
    assert_eq!(waiting.receive().ok(), "ok");
}

/// D-56: of twice as many requests as there is room for, each is served or refused, and none waits or hangs.
#[test]
fn under_twice_the_load_each_request_is_served_or_refused() {
    const ROOM: usize = 8;
    let auth = AuthorizationServer::new();
    let upstream = Upstream::scripted(|exchange| {
        thread::sleep(Duration::from_millis(5));
        exchange.send(OK)
    });
    let sidecar = Setup::between(&upstream, &auth)
        .proxy(&format!("max_in_flight = {ROOM}"))
        .start();
    let (served, refused): (Vec<usize>, Vec<usize>) = thread::scope(|scope| {
        let applications: Vec<_> = (0..2 * ROOM)
            .map(|_| {
                scope.spawn(|| {
                    let (mut served, mut refused) = (0, 0);
                    let mut client = sidecar.client();
                    while served + refused < 100 {
                        let answer = client.exchange(request("GET /", &[], ""));
                        if answer.status() == 200 {
                            served += 1;
                        } else {
                            answer.assert_problem(503, "overloaded");
                            refused += 1;
                        }
                    }
                    (served, refused)
                })
            })
            .collect();
        applications
            .into_iter()
            .map(|application| application.join().unwrap())
            .unzip()
    });
    let (served, refused): (usize, usize) = (served.iter().sum(), refused.iter().sum());
    println!("{served} served, {refused} refused");
    assert!(
        served > 0 && refused > 0,
        "{served} served, {refused} refused"
    );
    assert_eq!(served, upstream.requests().len());
    sidecar.wait_for_metric("http_server_active_requests", 0.0);
    assert_eq!(sidecar.get("/").ok(), "ok");
}

/// E-54: applications that go away in every phase of a request; whatever they held is free again.
#[test]
fn abandoned_requests_leave_nothing_behind() {
    let auth = AuthorizationServer::new();
    let upstream = Upstream::scripted(|exchange| {
        if exchange.head.line.starts_with("GET /download") {
            exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nbegin")?;
        }
        if exchange.head.line.starts_with("GET / ") {
            return exchange.send(OK);
        }
        exchange.stall()
    });
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("max_in_flight = 100\nmax_connections = 100")
        .start_process_at_info();
    assert_eq!(sidecar.get("/").ok(), "ok");
    sidecar.wait_for_metric("bearerd_connections_open", 0.0);
    let open = sidecar.process.open_files();
    for wave in 1..=10 {
        let clients: Vec<Client> = (0..90)
            .map(|number| {
                let mut client = sidecar.client();
                client.send(match number % 3 {
                    0 => request("GET /wait", &[], ""),
                    1 => request("GET /download", &[], ""),
                    _ => request("POST /upload", &["Content-Length: 1000000"], "begin"),
                });
                client
            })
            .collect();
        if wave % 2 == 0 {
            sidecar.wait_for_metric("http_server_active_requests", 90.0);
        }
        drop(clients);
        sidecar.wait_for_metric("http_server_active_requests", 0.0);
        sidecar.wait_for_metric("bearerd_connections_open", 0.0);
        assert_eq!(sidecar.get("/").ok(), "ok");
    }
    wait_until("closed files", || sidecar.process.open_files() <= open);
}

/// E-56: operators who ask too much, or leave their question half said, are no matter to applications.
#[test]
fn a_crowd_at_the_admin_port_is_not_noticed_at_the_other() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("header_timeout = \"3s\"")
        .start_process_at_info();
    let mut client = sidecar.client();
    let over = AtomicBool::new(false);
    let stuck: Vec<Client> = (0..60).map(|_| Client::connect(sidecar.admin)).collect();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    let mut scraper = Client::connect(sidecar.admin);
                    let _ = scraper.try_send(request("GET /metrics", &[], ""));
                    let _ = scraper.try_receive();
                }
            });
        }
        for _ in 0..1000 {
            assert_eq!(client.exchange(request("GET /", &[], "")).ok(), "ok");
        }
        over.store(true, Ordering::SeqCst);
    });
    for mut scraper in stuck {
        assert!(scraper.is_refused(), "none may stay for ever");
    }
    assert_eq!(sidecar.admin("/livez").status(), 200);
}
