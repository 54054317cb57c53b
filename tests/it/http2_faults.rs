//! HTTP/2 upstreams that refuse, say goodbye, or are held up by one of many.

use std::convert::Infallible;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::support::client::request;
use crate::support::h2_frame_upstream::{Asked, FrameUpstream, Move};
use crate::support::h2_frames::ErrorCode;
use crate::support::h2_upstream::H2Upstream;
use crate::support::upstream::OK;
use crate::support::{
    AuthorizationServer, Client, Gate, PATIENCE, Setup, Sidecar, Upstream, wait_until,
};

/// E-55 over HTTP/2: those who do not read their answers hold up nobody else on the same connection to the upstream.
#[test]
fn answers_that_nobody_reads_do_not_hold_up_others() {
    let (upstream, auth) = (H2Upstream::echo(), AuthorizationServer::new());
    let sidecar = Setup::new(&upstream.url(), &auth)
        .trusting(&upstream.authority)
        .tables("[runtime]\nworkers = 1")
        .start();
    let large = vec![b'x'; 8 * 1024 * 1024];
    let length = format!("Content-Length: {}", large.len());
    let stuck: Vec<Client> = (0..10)
        .map(|number| {
            let mut client = sidecar.client();
            client.send(request(&format!("POST /{number}"), &[&length], &large));
            assert_eq!(client.receive_head().status(), 200);
            let mut other = sidecar.client();
            other.send(request("POST /", &["Content-Length: 5"], "hello"));
            assert_eq!(
                other.receive().ok(),
                "hello",
                "beside {number} that do not read"
            );
            client
        })
        .collect();
    drop(stuck);
}

/// The same from the side of the applications: uploads that the upstream does not take hold up no other request on the
/// connection that they share.
#[test]
fn uploads_that_nobody_takes_do_not_hold_up_others() {
    const STUCK: usize = 40;
    let (gate, auth) = (Gate::default(), AuthorizationServer::new());
    let held = gate.clone();
    let upstream = Upstream::scripted(move |exchange| {
        if exchange.head.line.starts_with("POST /stuck") {
            held.wait();
            return exchange.close();
        }
        exchange.body();
        exchange.send(OK)
    });
    let sidecar = Setup::between(&upstream, &auth)
        .proxy("http2 = true")
        .start();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(sidecar.proxy).await.unwrap();
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let sent = Arc::new(AtomicUsize::new(0));
        let mut post = |path: &str, length: usize| {
            let uri = format!("http://localhost{path}");
            let body = Upload {
                left: length,
                sent: sent.clone(),
            };
            sender.send_request(http::Request::post(uri).body(body).unwrap())
        };
        let stuck: Vec<_> = (0..STUCK)
            .map(|_| tokio::spawn(post("/stuck", usize::MAX)))
            .collect();
        wait_for_standstill(&sent).await;
        assert_eq!(upstream.requests().len(), STUCK);
        let other = tokio::time::timeout(PATIENCE / 2, post("/", 100_000)).await;
        let answer = other.expect("the other is not held up").unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
        gate.open();
        drop(stuck);
    });
}

/// Waits until nothing more was sent for half a second.
async fn wait_for_standstill(sent: &AtomicUsize) {
    let mut last = usize::MAX;
    while last != sent.load(Ordering::SeqCst) {
        last = sent.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// A body that counts what has become of it.
struct Upload {
    left: usize,
    sent: Arc<AtomicUsize>,
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let length = self.left.min(16 * 1024);
        if length == 0 {
            return Poll::Ready(None);
        }
        self.left -= length;
        self.sent.fetch_add(length, Ordering::SeqCst);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![b'x'; length])))))
    }
}

/// The kinds of requests that differ in how they could be sent again.
fn kinds() -> [(&'static str, Vec<u8>, Vec<u8>); 5] {
    let large = vec![b'x'; 64 * 1024];
    let length = format!("Content-Length: {}", large.len());
    let chunked = "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
    [
        ("GET", request("GET /", &[], ""), Vec::new()),
        (
            "an empty POST",
            request("POST /", &["Content-Length: 0"], ""),
            Vec::new(),
        ),
        (
            "a POST",
            request("POST /", &["Content-Length: 5"], "hello"),
            b"hello".to_vec(),
        ),
        (
            "a chunked POST",
            request("POST /", &["Transfer-Encoding: chunked"], chunked),
            b"hello world".to_vec(),
        ),
        ("a large POST", request("POST /", &[&length], &large), large),
    ]
}

fn before(upstream: &FrameUpstream, auth: &AuthorizationServer) -> Sidecar {
    Setup::new(&upstream.url(), auth)
        .trusting(&upstream.authority)
        .tables("[runtime]\nworkers = 1")
        .start()
}

/// Sends each kind of request to an upstream that does `first` with the first stream, when its head has come or when all
/// of it has, and answers all others. Returns how often the upstream got it, having asserted what the application was told.
fn assert_first_stream(
    first: impl Fn(u32) -> Vec<Move> + Clone + Send + Sync + 'static,
    sent_again: bool,
) {
    for (kind, request, body) in kinds() {
        for at_the_head in [true, false] {
            let first = first.clone();
            let upstream = FrameUpstream::scripted(move |asked| {
                let head = asked.body.is_empty();
                match asked.number {
                    0 if at_the_head && head || !at_the_head && asked.whole => first(asked.stream),
                    0 => Vec::new(),
                    _ => answer_whole(asked),
                }
            });
            let auth = AuthorizationServer::new();
            let sidecar = before(&upstream, &auth);
            let answer = sidecar.send(&request);
            let requests = upstream.requests();
            let what = format!(
                "{kind}, refused at its head: {at_the_head}, {:?}",
                answer.head
            );
            if sent_again {
                assert_eq!(answer.status(), 200, "{what}");
                assert!(answer.body.data == body, "{what}");
                assert_eq!(requests.len(), 2, "{what}");
                assert!(requests[1].body == body && requests[1].executed, "{what}");
                assert!(!requests[0].executed);
            } else {
                assert_eq!(
                    answer.problem(),
                    (502, "upstream_reset".to_owned()),
                    "{what}"
                );
                assert_eq!(requests.len(), 1, "{what}");
            }
        }
    }
}

fn answer_whole(asked: &Asked) -> Vec<Move> {
    if asked.whole {
        vec![Move::Answer]
    } else {
        Vec::new()
    }
}

/// a refused stream was not looked at, whatever of it has come.
#[test]
fn a_refused_stream_is_sent_once_more() {
    assert_first_stream(|_| vec![Move::Reset(ErrorCode::RefusedStream)], true);
}

/// a stream above the last that a server names in its GOAWAY was not looked at, whatever the reason for leaving.
#[test]
fn a_stream_above_the_last_of_a_goodbye_is_sent_once_more() {
    for code in [
        ErrorCode::NoError,
        ErrorCode::InternalError,
        ErrorCode::EnhanceYourCalm,
    ] {
        assert_first_stream(move |_| vec![Move::Goodbye { last: 0, code }], true);
        assert_first_stream(
            move |_| vec![Move::Goodbye { last: 0, code }, Move::Close],
            true,
        );
    }
}

/// with any other code it may have been looked at.
#[test]
fn a_stream_that_was_reset_is_never_sent_again() {
    for code in [
        ErrorCode::NoError,
        ErrorCode::InternalError,
        ErrorCode::Cancel,
        ErrorCode::EnhanceYourCalm,
        ErrorCode::Http11Required,
    ] {
        assert_first_stream(move |_| vec![Move::Reset(code)], false);
    }
}

/// so it may have been where the goodbye includes it, or where there is none.
#[test]
fn a_stream_that_may_have_been_looked_at_is_never_sent_again() {
    for code in [ErrorCode::NoError, ErrorCode::InternalError] {
        assert_first_stream(
            move |last| vec![Move::Goodbye { last, code }, Move::Close],
            false,
        );
    }
    assert_first_stream(|_| vec![Move::Close], false);
}

/// twice is enough.
#[test]
fn a_request_that_is_refused_twice_is_not_sent_a_third_time() {
    for goodbye in [false, true] {
        let upstream = FrameUpstream::scripted(move |asked| match (asked.whole, goodbye) {
            (false, _) => Vec::new(),
            (true, false) => vec![Move::Reset(ErrorCode::RefusedStream)],
            (true, true) => vec![
                Move::Goodbye {
                    last: 0,
                    code: ErrorCode::NoError,
                },
                Move::Close,
            ],
        });
        let auth = AuthorizationServer::new();
        let sidecar = before(&upstream, &auth);
        for (number, (kind, request, _)) in kinds().into_iter().enumerate() {
            let answer = sidecar.send(&request);
            assert_eq!(
                answer.problem(),
                (502, "upstream_reset".to_owned()),
                "{kind}"
            );
            assert_eq!(upstream.requests().len(), 2 * (number + 1), "{kind}");
        }
    }
}

/// of a long body not all is kept, so it cannot be sent again.
#[test]
fn a_refused_request_of_which_too_much_is_gone_is_not_sent_again() {
    let upstream = FrameUpstream::scripted(|asked| match asked.number {
        0 if asked.whole => vec![Move::Reset(ErrorCode::RefusedStream)],
        0 => Vec::new(),
        _ => answer_whole(asked),
    });
    let auth = AuthorizationServer::new();
    let sidecar = before(&upstream, &auth);
    let large = vec![b'x'; 64 * 1024 + 1];
    let length = format!("Content-Length: {}", large.len());
    let answer = sidecar.send(request("POST /", &[&length], large));
    answer.assert_problem(502, "upstream_reset");
    assert_eq!(upstream.requests().len(), 1);
    assert_eq!(sidecar.get("/").ok(), "", "the connection was not to blame");
}

const APPLICATIONS: usize = 8;

/// Lets each application pay so often, each time another payment, and asserts that each was executed once and answered.
fn pay(sidecar: &Sidecar, upstream: &FrameUpstream, each: usize) {
    thread::scope(|scope| {
        for application in 0..APPLICATIONS {
            scope.spawn(move || {
                let mut client = sidecar.client();
                for number in 0..each {
                    let payment = format!("{application}/{number}");
                    let length = format!("Content-Length: {}", payment.len());
                    let answer = client.exchange(request("POST /", &[&length], &payment));
                    assert_eq!(answer.ok(), payment);
                }
            });
        }
    });
    let mut executed: Vec<Vec<u8>> = upstream
        .requests()
        .into_iter()
        .filter(|asked| asked.executed)
        .map(|asked| asked.body)
        .collect();
    let all = executed.len();
    executed.sort();
    executed.dedup();
    assert_eq!(
        (executed.len(), all),
        (APPLICATIONS * each, APPLICATIONS * each)
    );
}

/// E-29: a server that takes one stream at a time.
#[test]
fn requests_wait_for_an_upstream_that_takes_one_stream_at_a_time() {
    let upstream = FrameUpstream::with_max_streams(1, answer_whole);
    let auth = AuthorizationServer::new();
    let sidecar = before(&upstream, &auth);
    pay(&sidecar, &upstream, 50);
    let connections = upstream.connections();
    println!("{connections} connections");
    assert!(connections <= APPLICATIONS, "{connections} connections");
}

/// E-29: a server that says goodbye again and again, while others are on their way; it looks at none that is above the
/// last one, and answers those below.
#[test]
fn goodbyes_under_load_cost_nothing() {
    const LAST: u32 = 2 * 10 + 1;
    let upstream = FrameUpstream::scripted(|asked| {
        if !asked.whole || asked.stream > LAST {
            return Vec::new();
        }
        if asked.stream == LAST {
            let goodbye = Move::Goodbye {
                last: LAST,
                code: ErrorCode::NoError,
            };
            return vec![goodbye, Move::Answer];
        }
        vec![Move::Answer]
    });
    let auth = AuthorizationServer::new();
    let sidecar = before(&upstream, &auth);
    pay(&sidecar, &upstream, 50);
    let connections = upstream.connections();
    println!(
        "{connections} connections, {} streams",
        upstream.requests().len()
    );
    assert!(connections >= APPLICATIONS * 50 / 11);
}

/// A-140, H-30: applications that give up again and again do not cost the others their answers, although all of them
/// share a connection to the upstream.
#[test]
fn cancelled_requests_cost_others_nothing() {
    const WAVES: usize = 40;
    const WAVE: usize = 50;
    let upstream = FrameUpstream::scripted(|asked| {
        if asked.body == b"hang" {
            return Vec::new();
        }
        answer_whole(asked)
    });
    let auth = AuthorizationServer::new();
    let sidecar = before(&upstream, &auth);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = sidecar.client();
                while !over.load(Ordering::SeqCst) {
                    let answer = client.exchange(request("POST /", &["Content-Length: 2"], "ok"));
                    assert_eq!(answer.ok(), "ok");
                }
            });
        }
        let hanging = || {
            let requests = upstream.requests();
            requests
                .iter()
                .filter(|asked| asked.body == b"hang")
                .count()
        };
        for wave in 1..=WAVES {
            let clients: Vec<Client> = (0..WAVE)
                .map(|_| {
                    let mut client = sidecar.client();
                    client.send(request("POST /", &["Content-Length: 4"], "hang"));
                    client
                })
                .collect();
            wait_until("hanging requests", || hanging() == wave * WAVE);
            drop(clients);
        }
        over.store(true, Ordering::SeqCst);
    });
    sidecar.wait_for_metric("http_server_active_requests", 0.0);
    wait_until("the end of each", || {
        let requests = upstream.requests();
        requests
            .iter()
            .all(|asked| asked.executed || asked.reset == Some(ErrorCode::Cancel))
    });
    println!("{} connections", upstream.connections());
}

const VERSIONS: [&str; 2] = ["auto", "2"];

fn ask(sidecar: &Sidecar, number: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..number).map(|_| sidecar.client()).collect();
    for client in &mut clients {
        client.send(request("POST /", &["Content-Length: 2"], "ok"));
    }
    clients
}

/// E-12 over HTTP/2: requests that wait for one connection are told that nothing was sent when it does not come about.
#[test]
fn a_connection_that_does_not_come_about_is_no_reset_for_those_who_wait_for_it() {
    for version in VERSIONS {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", silent.local_addr().unwrap());
        let auth = AuthorizationServer::new();
        let sidecar = Setup::new(&url, &auth)
            .upstream(&format!("http = {version:?}\nconnect_timeout = \"300ms\""))
            .tables("[runtime]\nworkers = 1")
            .start();
        for mut client in ask(&sidecar, 10) {
            let (_, code) = client.receive().problem();
            let codes = ["upstream_connect_timeout", "upstream_unreachable"];
            assert!(codes.contains(&code.as_str()), "http = {version}: {code}");
        }
    }
}

/// H-06 for connections: whoever began one may go away; others who wait for it are served.
#[test]
fn a_connection_outlives_the_request_that_it_was_made_for() {
    const OTHERS: usize = 10;
    for version in VERSIONS {
        let gate = Gate::default();
        let upstream = FrameUpstream::held_back(&gate, answer_whole);
        let auth = AuthorizationServer::new();
        let sidecar = Setup::new(&upstream.url(), &auth)
            .trusting(&upstream.authority)
            .upstream(&format!("http = {version:?}\nconnect_timeout = \"1h\""))
            .tables("[runtime]\nworkers = 1")
            .start();
        let first = ask(&sidecar, 1);
        wait_until("the first connection", || upstream.connections() == 1);
        let others = ask(&sidecar, OTHERS);
        sidecar.wait_for_metric("http_server_active_requests", 1.0 + OTHERS as f64);
        drop(first);
        sidecar.wait_for_metric("http_server_active_requests", OTHERS as f64);
        gate.open();
        for mut client in others {
            assert_eq!(client.receive().ok(), "ok", "http = {version}");
        }
    }
}
