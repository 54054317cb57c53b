//! One connection of an application, from accept to close: HTTP/1.1, HTTP/2 where it is asked for, and what an upgrade
//! makes of it.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use hyper::body::Incoming;
use hyper::header::UPGRADE;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncReadExt as _;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, warn};

use super::body::{Body, Chain};
use super::drain::{DrainWatch, Phase};
use super::listener::Refusal;
use super::progress::Progress;
use super::socket::Peer;
use super::stream::Stream;
use super::tunnel::Tunnel;
use super::uptake::Streams;
use crate::metrics::Metrics;

/// What holds for every connection of a listener.
#[derive(Clone)]
pub struct Connections {
    /// From accept, or from the end of the last answer, to a complete request head; so it is the keep-alive limit too.
    pub header_timeout: Duration,
    /// How long a peer may leave its answer unread. Elsewhere than on Linux there is no such limit.
    pub unread_timeout: Duration,
    /// The largest request head, in bytes; above it the answer is 431.
    pub max_header_bytes: usize,
    /// Whether HTTP/2 with prior knowledge (RFC 9113 §3.3) is spoken too.
    pub http2: bool,
    /// Open connections, over all workers.
    pub slots: Arc<Semaphore>,
    /// What becomes of a connection that there is no slot for.
    pub refusal: Refusal,
    /// Where connections and what cannot be parsed are counted; none for the admin port.
    pub metrics: Option<Arc<Metrics>>,
}

/// After the stop a connection may still bring a request that was on its way, for so long.
const LAST_CALL: Duration = Duration::from_secs(1);
/// What an HTTP/2 client sends first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Requests that one HTTP/2 connection may have in flight.
const MAX_STREAMS: u32 = 128;
/// Bytes that a peer may send on one stream ahead of their being forwarded.
const STREAM_WINDOW: u32 = 64 * 1024;
/// As many as all streams together: in a smaller window a few uploads that the upstream does not take would hold up all
/// other requests of the connection.
const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;
/// Bytes of an answer that wait for the peer, on one stream.
const MAX_SEND_BUFFER: usize = 64 * 1024;

/// Carries `stream` until it ends, or the drain ends it.
pub(super) async fn carry<H, F>(
    mut stream: Stream,
    peer: Peer,
    connections: Connections,
    drain: DrainWatch,
    handler: H,
) where
    H: Fn(Request<Incoming>, Peer) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let _open = connections
        .metrics
        .as_ref()
        .map(|metrics| metrics.connection());
    if !connections.http2 {
        return http1(stream, peer, &connections, drain, handler).await;
    }
    let mut stopping = drain.clone();
    let speaks_http2 = tokio::select! {
        first = timeout(connections.header_timeout, speaks_http2(&mut stream)) => first,
        () = last_call(&mut stopping) => return,
    };
    match speaks_http2 {
        // Boxed, so that the many connections that are not HTTP/2 have no room for one.
        Ok(Ok(true)) => Box::pin(http2(stream, peer, &connections, drain, handler)).await,
        Ok(Ok(false)) => http1(stream, peer, &connections, drain, handler).await,
        // It went away, or has nothing to say.
        Ok(Err(_)) | Err(_) => {}
    }
}

/// Resolves when connections that bring nothing more are to be closed.
async fn last_call(drain: &mut DrainWatch) {
    drain.reached(Phase::Stopping).await;
    let _ = timeout(LAST_CALL, drain.reached(Phase::Cutting)).await;
}

/// Reads so much that it is clear what the peer speaks, and puts it back.
async fn speaks_http2(stream: &mut Stream) -> io::Result<bool> {
    let mut begin = BytesMut::with_capacity(PREFACE.len());
    loop {
        let missing = PREFACE.len() - begin.len();
        let read = stream.read_buf(&mut (&mut begin).limit(missing)).await?;
        let is_http2 = begin == PREFACE;
        if read == 0 || is_http2 || !PREFACE.starts_with(&begin) {
            stream.unread(begin.freeze());
            return Ok(is_http2);
        }
    }
}

async fn http1<H, F>(
    stream: Stream,
    peer: Peer,
    connections: &Connections,
    mut drain: DrainWatch,
    handler: H,
) where
    H: Fn(Request<Incoming>, Peer) -> F + Send,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let upgraded: Mutex<Option<(Tunnel, OnUpgrade)>> = Mutex::new(None);
    let service = service_fn(|mut request: Request<Incoming>| {
        let upgrade = request
            .headers()
            .contains_key(UPGRADE)
            .then(|| hyper::upgrade::on(&mut request));
        let answer = handler(request, peer);
        let upgraded = &upgraded;
        async move {
            let mut answer = answer.await;
            if let Some(upgrade) = upgrade
                && let Some(tunnel) = answer.extensions_mut().remove::<Tunnel>()
            {
                *upgraded.lock().unwrap_or_else(PoisonError::into_inner) = Some((tunnel, upgrade));
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(connections.header_timeout)
            .max_header_size(connections.max_header_bytes)
            // Room for one head and a piece of a body. hyper's default of 400 KiB, filled by thousands of slow
            // connections, would be gigabytes. By default it is less than the 64 KiB that rustls takes at a time.
            .max_buf_size(connections.max_header_bytes.max(16 * 1024) + 24 * 1024)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    );
    let mut stopping = drain.clone();
    let mut graceful = false;
    let ended = loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => break ended,
            () = last_call(&mut stopping), if !graceful => {
                graceful = true;
                connection.as_mut().graceful_shutdown();
            }
            () = drain.reached(Phase::Cutting), if graceful => return,
        }
    };
    if let Err(error) = ended {
        return report(&error, peer, connections.metrics.as_deref());
    }
    let upgraded = upgraded
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some((tunnel, downstream)) = upgraded {
        tokio::select! {
            () = tunnel.splice(downstream) => {}
            () = drain.reached(Phase::Cutting) => {}
        }
    }
}

async fn http2<H, F>(
    stream: Stream,
    peer: Peer,
    connections: &Connections,
    mut drain: DrainWatch,
    handler: H,
) where
    H: Fn(Request<Incoming>, Peer) -> F + Send,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let activity = Activity::new();
    let streams = Streams::new(connections.unread_timeout);
    let service = service_fn(|request| {
        let (busy, uptake) = (activity.begin(), streams.begin());
        let answer = handler(request, peer);
        async move {
            let answer = answer.await;
            Ok::<_, Infallible>(answer.map(|body| body.holding(busy).watched(uptake)))
        }
    });
    let mut connection = pin!(
        http2::Builder::new(streams.clone())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(MAX_SEND_BUFFER)
            .max_header_list_size(u32::try_from(connections.max_header_bytes).unwrap_or(u32::MAX))
            .serve_connection(TokioIo::new(stream), service)
    );
    let mut draining = drain.clone();
    let mut graceful = false;
    let mut patience = connections.header_timeout;
    let mut look_again = Instant::now() + patience;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    report(&error, peer, connections.metrics.as_deref());
                }
                return;
            }
            () = time_to_go(&mut draining, &activity), if !graceful => {
                graceful = true;
                connection.as_mut().graceful_shutdown();
                // A peer that does not read would not hear of it.
                patience = patience.min(LAST_CALL);
                look_again = Instant::now() + patience;
            }
            () = drain.reached(Phase::Cutting), if graceful => return,
            () = sleep_until(look_again) => {
                let now = Instant::now();
                look_again = activity.idle_since().unwrap_or(now) + patience;
                if look_again <= now {
                    if graceful {
                        return;
                    }
                    graceful = true;
                    connection.as_mut().graceful_shutdown();
                    look_again = now + patience;
                }
            }
        }
    }
}

/// Resolves when an HTTP/2 connection is to be given up because of the drain. GOAWAY before the first request would leave
/// nowhere to go for a peer that connects during the delay, so it comes with that request, as with HTTP/1.1.
async fn time_to_go(drain: &mut DrainWatch, activity: &Activity) {
    drain.reached(Phase::Draining).await;
    tokio::select! {
        () = activity.begun() => {}
        () = last_call(drain) => {}
    }
}

/// What an HTTP/2 connection has in flight. hyper has no idle timeout for it.
struct Activity {
    progress: Arc<Progress>,
    /// Holds a permit from the first request on.
    begun: Notify,
}

impl Activity {
    fn new() -> Self {
        Self {
            progress: Progress::new(),
            begun: Notify::new(),
        }
    }

    fn begin(&self) -> Busy {
        self.begun.notify_one();
        Busy(self.progress.clone())
    }

    /// Resolves once, when there has been a request.
    async fn begun(&self) {
        self.begun.notified().await;
    }

    /// The end of the last request, or the beginning; `None` while there is one in flight.
    fn idle_since(&self) -> Option<Instant> {
        (Arc::strong_count(&self.progress) == 1).then(|| self.progress.last())
    }
}

/// A request in flight, to the last byte of its answer.
struct Busy(Arc<Progress>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.touch();
    }
}

/// hyper answers what it cannot parse by itself, with an empty 400, 414 or 431, or an HTTP/2 error, so the only trace of
/// it is here.
fn report(error: &hyper::Error, peer: Peer, metrics: Option<&Metrics>) {
    if error.is_parse() || is_http2_violation(error) {
        if let Some(metrics) = metrics {
            metrics.downstream_parse_error();
        }
        warn!(target: "access", { client.address = %peer, error = %Chain(error) }, "not HTTP");
    } else {
        debug!(client.address = %peer, error = %Chain(error), "connection ended");
    }
}

fn is_http2_violation(error: &hyper::Error) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<h2::Error>())
        .is_some_and(|error| error.is_library())
}
