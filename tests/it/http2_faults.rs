//! HTTP/2 upstreams that refuse, say goodbye, or are held up by one of many.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::support::client::request;
use crate::support::h2_upstream::H2Upstream;
use crate::support::upstream::OK;
use crate::support::{AuthorizationServer, Client, Gate, PATIENCE, Setup, Upstream};

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
