//! Connections come out of a channel here, and time stands still until all wait for it.

use std::convert::Infallible;

use http::header::{HOST, HeaderValue};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::*;
use crate::metrics::SendFault;
use crate::net::tls::HttpVersions;

const IDLE: Duration = Duration::from_secs(30);

type Servers = UnboundedReceiver<DuplexStream>;
type Answer = Result<Response<Download>, SendError>;

fn pool(versions: HttpVersions, max_idle: usize) -> (Arc<Pool>, Servers) {
    let (connector, servers) = Connector::in_memory(versions);
    let origin = Origin::of(&"http://api.example:8000".parse().unwrap()).unwrap();
    let idle_timeout = IDLE;
    let config = PoolConfig {
        idle_timeout,
        max_idle,
    };
    (Pool::new(connector, origin, config), servers)
}

fn ask(pool: &Arc<Pool>) -> JoinHandle<Answer> {
    ask_with(pool, Request::new(Body::empty()))
}

fn ask_with(pool: &Arc<Pool>, mut request: Request<Body>) -> JoinHandle<Answer> {
    *request.uri_mut() = "/a?b".parse().unwrap();
    let pool = pool.clone();
    tokio::spawn(async move { pool.send(request).await })
}

/// One request answered over a new connection, whose other end this is.
async fn used(pool: &Arc<Pool>, servers: &mut Servers) -> DuplexStream {
    let asked = ask(pool);
    let mut server = servers.recv().await.unwrap();
    serve(&mut server).await;
    answered(asked).await;
    server
}

/// Reads one request, and answers it.
async fn serve(server: &mut DuplexStream) -> String {
    let request = read(server).await;
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    server.write_all(answer).await.unwrap();
    request
}

async fn read(server: &mut DuplexStream) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(server.read_u8().await.unwrap());
    }
    String::from_utf8(request).unwrap()
}

/// Takes the whole answer.
async fn answered(asked: JoinHandle<Answer>) {
    let answer = asked.await.unwrap().unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
}

async fn is_closed(mut server: DuplexStream) -> bool {
    let read = timeout(Duration::from_millis(1), server.read_u8()).await;
    read.is_ok_and(|read| read.is_err())
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_used_again_after_the_last_byte() {
    let (pool, mut servers) = pool(HttpVersions::Http1, 4);
    let first = ask(&pool);
    let mut server = servers.recv().await.unwrap();
    let request = serve(&mut server).await;
    assert!(request.starts_with("GET /a?b HTTP/1.1\r\n"), "{request}");
    assert!(
        request.contains("\r\nhost: api.example:8000\r\n"),
        "{request}"
    );
    let unread = first.await.unwrap().unwrap();

    // While the first is not read, its connection is not free.
    let mut other = used(&pool, &mut servers).await;

    let third = ask(&pool);
    serve(&mut other).await;
    answered(third).await;
    assert!(servers.try_recv().is_err());
    drop(unread);
}

/// H-08
#[tokio::test(start_paused = true)]
async fn what_is_idle_for_the_timeout_is_closed() {
    let (pool, mut servers) = pool(HttpVersions::Http1, 4);
    for _ in 0..3 {
        let mut server = used(&pool, &mut servers).await;
        let idle = Instant::now();
        assert!(server.read_u8().await.is_err(), "closed");
        assert_eq!(idle.elapsed(), IDLE);
        // The next time does not begin with a look at the idle.
        sleep(IDLE / 3).await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_limit_are_kept() {
    for (max_idle, kept) in [(0, 0), (1, 1), (2, 2), (4, 3)] {
        let (pool, mut servers) = pool(HttpVersions::Http1, max_idle);
        let asked: Vec<_> = (0..3).map(|_| ask(&pool)).collect();
        let mut open = Vec::new();
        for _ in 0..3 {
            let mut server = servers.recv().await.unwrap();
            serve(&mut server).await;
            open.push(server);
        }
        for asked in asked {
            answered(asked).await;
        }
        let mut closed = 0;
        for server in open {
            closed += usize::from(is_closed(server).await);
        }
        assert_eq!(3 - closed, kept);
    }
}

/// A request that goes away takes no connection along.
#[tokio::test(start_paused = true)]
async fn what_one_connected_for_the_next_can_use() {
    let (pool, mut servers) = pool(HttpVersions::Http1, 4);
    tokio::select! {
        biased;
        _ = pool.send(Request::new(Body::empty())) => unreachable!("nobody has answered"),
        () = std::future::ready(()) => {}
    }
    let mut server = servers.recv().await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let asked = ask(&pool);
    serve(&mut server).await;
    answered(asked).await;
    assert!(servers.try_recv().is_err());
}

/// Its connection has an answer on the way that nobody waits for.
#[tokio::test(start_paused = true)]
async fn a_request_under_way_that_goes_away_ends_its_connection() {
    let (pool, mut servers) = pool(HttpVersions::Http1, 4);
    let gone = ask(&pool);
    let mut server = servers.recv().await.unwrap();
    read(&mut server).await;
    gone.abort();
    assert!(is_closed(server).await);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_cannot_be_trusted_is_not_used_again() {
    let (pool, mut servers) = pool(HttpVersions::Http1, 4);
    let asked = ask(&pool);
    let mut server = servers.recv().await.unwrap();
    serve(&mut server).await;
    asked.await.unwrap().unwrap().into_body().distrust();
    assert!(is_closed(server).await);
}

/// H-07, E-15: the server closed it, and no byte of the request was written.
#[tokio::test(start_paused = true)]
async fn a_request_goes_over_another_connection_when_an_idle_one_is_closed() {
    let (pool, mut servers) = pool(HttpVersions::Http1, 4);
    drop(used(&pool, &mut servers).await);
    // Nothing has told the pool yet.
    used(&pool, &mut servers).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_server_each_request_fails_for_what_it_tried() {
    let (pool, servers) = pool(HttpVersions::Http1, 4);
    drop(servers);
    for asked in [ask(&pool), ask(&pool)] {
        let error = asked.await.unwrap().err().unwrap();
        assert_eq!(error.fault, SendFault::Connect);
        assert_eq!(error.to_string(), "TCP: nobody listens");
        assert!(!error.unprocessed);
    }
}

fn serve_http2(server: DuplexStream) -> JoinHandle<()> {
    let service = service_fn(|request: Request<Incoming>| async move {
        assert_eq!(request.uri(), "http://api.example:8000/a?b");
        assert!(!request.headers().contains_key(HOST));
        Ok::<_, Infallible>(Response::new(Body::full("ok")))
    });
    let server =
        http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(server), service);
    tokio::spawn(async move {
        let _ = server.await;
    })
}

#[tokio::test(start_paused = true)]
async fn one_connection_of_http2_does_for_all() {
    let (pool, mut servers) = pool(HttpVersions::Http2, 1);
    let asked: Vec<_> = (0..3).map(|_| ask(&pool)).collect();
    let server = serve_http2(servers.recv().await.unwrap());
    for asked in asked {
        answered(asked).await;
    }
    answered(ask(&pool)).await;
    assert!(servers.try_recv().is_err());

    // For a request that it cannot carry there is another.
    let mut upgrade = Request::new(Body::empty());
    let websocket = HeaderValue::from_static("websocket");
    upgrade.headers_mut().insert(UPGRADE, websocket);
    let upgrade = ask_with(&pool, upgrade);
    let request = serve(&mut servers.recv().await.unwrap()).await;
    assert!(request.ends_with("upgrade: websocket\r\nhost: api.example:8000\r\n\r\n"));
    answered(upgrade).await;

    server.abort();
    let error = ask(&pool).await.unwrap().err().unwrap();
    assert!(error.unprocessed, "nothing was written to one that is gone");
    let asked = ask(&pool);
    let server = serve_http2(servers.recv().await.unwrap());
    answered(asked).await;

    let idle = Instant::now();
    server.await.unwrap();
    assert_eq!(idle.elapsed(), IDLE);
}

/// What an attempt ends with says nothing to those who came after it had begun.
#[tokio::test]
async fn those_who_came_later_are_not_told_of_a_failure() {
    let mut state = State::default();
    let mut told = Vec::new();
    for number in 1..=4 {
        let (hand_over, wait) = oneshot::channel();
        told.push(wait);
        state.waiting.push_back(Waiting {
            number,
            connects: number == 2,
            hand_over,
        });
    }
    drop(told.remove(0));
    state.fail(&Arc::new(ConnectError::Timeout), 2, 3);
    for wait in &mut told[..2] {
        assert!(matches!(wait.try_recv(), Ok(Err(_))));
    }
    assert!(told[2].try_recv().is_err());
    let left: Vec<_> = state.waiting.iter().map(|left| left.number).collect();
    assert_eq!(left, [4]);
}
