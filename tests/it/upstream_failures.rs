//! What the application is told when the upstream fails, and that nothing is ever sent twice for it.

use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::support::client::request;
use crate::support::h2_upstream::H2Upstream;
use crate::support::server::Exchange;
use crate::support::upstream::OK;
use crate::support::{AuthorizationServer, Response, Setup, Sidecar, Upstream};

/// Sends a GET and a POST, each to a fresh sidecar, and asserts that both are answered so, after one attempt each.
fn assert_fails(
    upstream: impl Fn() -> Upstream,
    settings: &str,
    status: u16,
    code: &str,
) -> Vec<Response> {
    let post = request("POST /payments/", &["Content-Length: 5"], "hello");
    [request("GET /payments/", &[], ""), post]
        .into_iter()
        .map(|request| {
            let (upstream, auth) = (upstream(), AuthorizationServer::new());
            let sidecar = Setup::between(&upstream, &auth).upstream(settings).start();
            let answer = sidecar.send(&request);
            answer.assert_problem(status, code);
            assert!(!answer.text().contains(&upstream.address.to_string()));
            assert_eq!(sidecar.refused(code), 1.0);
            sidecar.stop();
            assert!(upstream.requests().len() <= 1, "sent twice");
            answer
        })
        .collect()
}

/// The same with an upstream that does this with every request.
fn assert_failing_script_fails(
    script: fn(&mut Exchange<'_>) -> io::Result<()>,
    settings: &str,
    status: u16,
    code: &str,
) {
    assert_fails(|| Upstream::scripted(script), settings, status, code);
}

/// E-11, H-18: an answer, not a closed connection.
#[test]
fn a_refused_connection_is_an_unreachable_upstream() {
    assert_fails(Upstream::down, "", 502, "upstream_unreachable");
}

/// E-26
#[test]
fn a_name_without_an_address_is_a_dns_error() {
    let auth = AuthorizationServer::new();
    let sidecar = Setup::new("http://name.invalid", &auth).start();
    sidecar.get("/").assert_problem(502, "upstream_dns_error");
}

/// C-75, E-28: a certificate of an unknown authority; nothing of the request is sent.
#[test]
fn a_certificate_that_does_not_verify_is_a_tls_error() {
    let (upstream, auth) = (
        Upstream::scripted_tls(|exchange| exchange.send(OK)),
        AuthorizationServer::new(),
    );
    let sidecar = Setup::new(&upstream.url(), &auth).start();
    sidecar.get("/").assert_problem(502, "upstream_tls_error");
    assert!(upstream.requests().is_empty());
}

/// C-75
#[test]
fn a_certificate_of_another_host_is_a_tls_error() {
    let (upstream, auth) = (
        Upstream::scripted_tls(|exchange| exchange.send(OK)),
        AuthorizationServer::new(),
    );
    let url = format!("https://localhost:{}", upstream.address.port());
    let sidecar = Setup::new(&url, &auth)
        .trusting(upstream.authority().unwrap())
        .start();
    sidecar.get("/").assert_problem(502, "upstream_tls_error");
    assert!(upstream.requests().is_empty());
}

/// A port where somebody listens who does not speak TLS.
#[test]
fn a_server_without_tls_is_a_tls_error() {
    let auth = AuthorizationServer::new();
    let greeting = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", greeting.local_addr().unwrap());
    let greeter = thread::spawn(move || {
        let (mut stream, _) = greeting.accept().unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH\r\n").unwrap();
    });
    let sidecar = Setup::new(&url, &auth).start();
    sidecar.get("/").assert_problem(502, "upstream_tls_error");
    greeter.join().unwrap();
}

/// E-12: a server that takes the connection and says nothing; the deadline covers TLS too.
#[test]
fn a_connection_that_does_not_come_about_in_time_is_a_timeout() {
    let (silent, auth) = (
        TcpListener::bind("127.0.0.1:0").unwrap(),
        AuthorizationServer::new(),
    );
    let url = format!("https://{}", silent.local_addr().unwrap());
    let sidecar = Setup::new(&url, &auth)
        .upstream("connect_timeout = \"300ms\"")
        .start();
    sidecar
        .get("/")
        .assert_problem(504, "upstream_connect_timeout");
}

/// E-13, E-14, A-082: it may have acted on the request, so even a GET is not sent again.
#[test]
fn a_connection_that_ends_before_the_answer_is_a_reset() {
    assert_failing_script_fails(
        |exchange| {
            exchange.body();
            exchange.reset()
        },
        "",
        502,
        "upstream_reset",
    );
    assert_failing_script_fails(
        |exchange| {
            exchange.body();
            exchange.close()
        },
        "",
        502,
        "upstream_reset",
    );
    assert_failing_script_fails(
        |exchange| {
            exchange.body();
            exchange.send("HTTP/1.1 200 OK\r\nContent-Le")?;
            exchange.close()
        },
        "",
        502,
        "upstream_reset",
    );
}

/// E-19, A-073
#[test]
fn an_answer_that_does_not_come_is_a_timeout() {
    let answers = assert_fails(
        || Upstream::scripted(|exchange| exchange.stall()),
        "response_timeout = \"300ms\"",
        504,
        "upstream_timeout",
    );
    let status = answers[0].value("proxy-status").unwrap();
    assert_eq!(status, "bearerd; error=http_response_timeout");
    assert_failing_script_fails(
        |exchange| {
            loop {
                exchange.send("HTTP/1.1 102 Processing\r\n\r\n")?;
                thread::sleep(Duration::from_millis(10));
            }
        },
        "response_timeout = \"300ms\"",
        504,
        "upstream_timeout",
    );
}

/// A-065 over HTTP/2: a stream that is reset.
#[test]
fn an_answer_that_breaks_off_over_http2_never_looks_complete() {
    let (upstream, auth) = (H2Upstream::endless(), AuthorizationServer::new());
    let sidecar = Setup::new(&upstream.url(), &auth)
        .trusting(&upstream.authority)
        .start();
    let mut client = sidecar.client();
    client.send(request(
        "POST /",
        &["Transfer-Encoding: chunked"],
        "5\r\nhello\r\n0\r\n\r\n",
    ));
    assert_eq!(client.receive_head().status(), 200);
    assert_eq!(client.receive_bytes(10), b"5\r\nhello\r\n");
    upstream.reset();
    assert!(client.is_over(), "there is no last chunk");
}

/// H-04, linkerd's `response_timeout_ignores_request_body`: the timeout counts from the last bytes of the request.
#[test]
fn an_upload_that_moves_may_take_longer_than_the_response_timeout() {
    let (sidecar, upstream, _auth) = Sidecar::before("response_timeout = \"2s\"", |exchange| {
        exchange.body();
        exchange.send(OK)
    });
    let mut client = sidecar.client();
    client.send(request("POST /", &["Content-Length: 12"], ""));
    for _ in 0..12 {
        thread::sleep(Duration::from_millis(250));
        client.send("x");
    }
    assert_eq!(client.receive().ok(), "ok");
    assert_eq!(upstream.request().body.data, b"xxxxxxxxxxxx");
}

/// D-52: an application that stops in the middle of its body.
#[test]
fn an_upload_that_stalls_is_cut() {
    let (sidecar, upstream, _auth) = Sidecar::before("idle_timeout = \"300ms\"", |exchange| {
        exchange.body();
        exchange.send(OK)
    });
    let mut client = sidecar.client();
    client.send(request("POST /", &["Content-Length: 10"], "hello"));
    client.receive().assert_problem(400, "bad_request");
    assert!(!upstream.request().body.complete);
}

/// E-20
#[test]
fn an_answer_that_stalls_is_cut() {
    let (sidecar, _upstream, _auth) = Sidecar::before("idle_timeout = \"300ms\"", |exchange| {
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")?;
        exchange.stall()
    });
    let mut client = sidecar.client();
    client.send(request("GET /", &[], ""));
    let answer = client.receive_what_comes();
    assert_eq!(
        (answer.text(), answer.body.complete),
        ("hello".to_owned(), false)
    );
    sidecar.wait_for_metric("http_server_active_requests", 0.0);
}

/// A-081, E-17
#[test]
fn an_early_answer_is_delivered_before_the_upload_ends() {
    let (sidecar, _upstream, _auth) = Sidecar::before("", |exchange| {
        exchange.send("HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nstop")?;
        exchange.stall()
    });
    let mut client = sidecar.client();
    client.send(request("POST /", &["Content-Length: 1000000"], "begin"));
    let answer = client.receive();
    assert_eq!((answer.status(), answer.text()), (413, "stop".to_owned()));
}

/// also to an application that sends everything before it reads, when nobody wants the rest of it.
#[test]
fn an_early_answer_is_readable_after_the_whole_upload() {
    let (sidecar, _upstream, _auth) = Sidecar::before("", |exchange| {
        exchange.send("HTTP/1.1 401 No\r\nContent-Length: 4\r\nConnection: close\r\n\r\nstop")?;
        exchange.stall()
    });
    for _ in 0..20 {
        let mut client = sidecar.client();
        client.send(request("POST /", &["Content-Length: 2000000"], ""));
        client.send(vec![b'x'; 2_000_000]);
        let answer = client.receive();
        assert_eq!((answer.status(), answer.text()), (401, "stop".to_owned()));
    }
}

/// E-22
#[test]
fn failures_of_the_upstream_itself_pass_untouched() {
    let answer =
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nbusy";
    let (sidecar, upstream, _auth) = Sidecar::before("", move |exchange| exchange.send(answer));
    let answer = sidecar.get("/");
    assert_eq!((answer.status(), answer.text()), (503, "busy".to_owned()));
    assert_eq!(answer.value("retry-after").unwrap(), "7");
    assert_eq!(answer.value("proxy-status"), None);
    assert_eq!(upstream.requests().len(), 1);
    assert_eq!(sidecar.refused("upstream_reset"), 0.0);
}

/// E-12, H-11: a server that does not even complete the TCP handshake.
#[test]
fn a_server_that_swallows_connections_is_a_timeout() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let loopback: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&loopback.into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    // Nobody accepts, so that the queue is soon full, and the kernel drops whatever else comes.
    let mut queue = Vec::new();
    while let Ok(queued) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        queue.push(queued);
    }
    let auth = AuthorizationServer::new();
    let sidecar = Setup::new(&format!("http://{address}"), &auth)
        .upstream("connect_timeout = \"300ms\"")
        .start();
    let answer = sidecar.get("/");
    answer.assert_problem(504, "upstream_connect_timeout");
}

/// E-18: an upstream that takes nothing more, and answers only then.
#[test]
fn an_answer_over_a_connection_that_is_half_closed_is_delivered() {
    let (sidecar, _upstream, _auth) = Sidecar::before("", |exchange| {
        exchange.body();
        exchange.socket().shutdown(Shutdown::Read)?;
        thread::sleep(Duration::from_millis(50));
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nla")?;
        thread::sleep(Duration::from_millis(50));
        exchange.send("te")?;
        exchange.close()
    });
    let post = request("POST /", &["Content-Length: 5"], "hello");
    assert_eq!(sidecar.send(&post).ok(), "late");
    assert_eq!(sidecar.send(&post).ok(), "late");
}

/// E-19: when the application has its answer, the upstream is told that nobody waits any more.
#[test]
fn a_request_that_timed_out_is_abandoned_upstream() {
    let (sidecar, upstream, _auth) =
        Sidecar::before("response_timeout = \"300ms\"", |exchange| exchange.stall());
    let post = request("POST /", &["Content-Length: 5"], "hello");
    sidecar.send(post).assert_problem(504, "upstream_timeout");
    assert!(upstream.request().is_over);
    sidecar.wait_for_metric("bearerd_upstream_connections_open", 0.0);
}

/// E-21: an answer that moves may take longer than every timeout there is.
#[test]
fn an_answer_that_moves_may_last() {
    let settings = "response_timeout = \"2s\"\nidle_timeout = \"2s\"";
    let (sidecar, _upstream, _auth) = Sidecar::before(settings, |exchange| {
        exchange.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")?;
        for _ in 0..12 {
            thread::sleep(Duration::from_millis(250));
            exchange.send("data: x\n\n")?;
        }
        exchange.close()
    });
    assert_eq!(sidecar.get("/").ok(), "data: x\n\n".repeat(12));
}

/// E-23, E-24: while the upstream is down, each request is refused at once after one attempt to connect; when it is back,
/// so is everything else.
#[test]
fn an_upstream_that_is_down_costs_one_attempt_for_each_request() {
    const APPLICATIONS: usize = 8;
    const REQUESTS: usize = 50;
    let (mut upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    // Much longer than anybody waits: nothing of what follows may come to wait for it.
    let sidecar = Setup::between(&upstream, &auth)
        .upstream("connect_timeout = \"1h\"\nresponse_timeout = \"1h\"")
        .start();
    assert_eq!(sidecar.get("/").ok(), "ok");
    upstream.stop();
    sidecar.wait_for_metric("bearerd_upstream_connections_open", 0.0);
    thread::scope(|scope| {
        for _ in 0..APPLICATIONS {
            scope.spawn(|| {
                let mut client = sidecar.client();
                for _ in 0..REQUESTS {
                    let answer = client.exchange(request("GET /", &[], ""));
                    answer.assert_problem(502, "upstream_unreachable");
                }
            });
        }
    });
    let refused = "bearerd_upstream_connect_duration_seconds_count{outcome=\"connect_error\"}";
    let all = (APPLICATIONS * REQUESTS) as f64;
    assert_eq!(sidecar.metric(refused), all, "attempts to connect");
    assert_eq!(sidecar.refused("upstream_unreachable"), all);
    upstream.restart();
    assert_eq!(sidecar.get("/").ok(), "ok");
}

/// E-28: a renewed certificate needs nothing; an expired one is an error, and nothing is sent, not even in clear.
#[test]
fn certificates_of_the_upstream_may_change_but_not_expire() {
    let auth = AuthorizationServer::new();
    let upstream = Upstream::scripted_tls(|exchange| exchange.send(OK));
    let sidecar = Setup::between(&upstream, &auth).start();
    let authority = upstream.authority().unwrap();
    let present = |certificate| {
        upstream.set_tls(certificate);
        upstream.close_connections();
        sidecar.wait_for_metric("bearerd_upstream_connections_open", 0.0);
    };
    assert_eq!(sidecar.get("/").ok(), "ok");
    present(authority.server("127.0.0.1", &["http/1.1"]));
    assert_eq!(sidecar.get("/").ok(), "ok");
    present(authority.expired_server("127.0.0.1", &["http/1.1"]));
    for _ in 0..3 {
        sidecar.get("/").assert_problem(502, "upstream_tls_error");
    }
    assert_eq!(upstream.requests().len(), 2);
    present(authority.server("127.0.0.1", &["http/1.1"]));
    assert_eq!(sidecar.get("/").ok(), "ok");
}
