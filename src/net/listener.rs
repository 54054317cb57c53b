//! Listening sockets: bind, accept, and carry HTTP/1.1 connections until they end or are drained.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
#[cfg(target_os = "linux")]
use socket2::SockRef;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::body::{Body, Chain};
use super::drain::{DrainWatch, Phase};
use crate::metrics::Metrics;

/// Binds a socket that any number of workers can accept from.
///
/// # Errors
/// Whatever the system says, above all that the address is in use.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = reserve(address)?;
    listen(&socket)?;
    Ok(socket.into())
}

/// Binds a socket that does not listen yet: connections are refused, and nobody else gets the port.
///
/// # Errors
/// As [`bind`].
pub fn reserve(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restart must not wait for the connections of its predecessor to leave TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Makes a reserved socket listen.
///
/// # Errors
/// Whatever the system says.
pub fn listen(socket: &Socket) -> io::Result<()> {
    socket.listen(1024)
}

/// What holds for every connection of a listener.
#[derive(Clone)]
pub struct Connections {
    /// From accept, or from the end of the last answer, to a complete request head; so it is the keep-alive limit too.
    pub header_timeout: Duration,
    /// How long a peer may leave its answer unread. Elsewhere than on Linux there is no such limit.
    pub unread_timeout: Duration,
    /// The largest request head, in bytes; above it the answer is 431.
    pub max_header_bytes: usize,
    /// Open connections, over all workers.
    pub slots: Arc<Semaphore>,
    /// What becomes of a connection that there is no slot for.
    pub refusal: Refusal,
    /// Where connections and what cannot be parsed are counted; none for the admin port.
    pub metrics: Option<Arc<Metrics>>,
}

/// Accepts from `socket` and answers every request with `handler`, until `drain` reaches [`Phase::Stopping`] and the
/// connections have ended, or [`Phase::Cutting`].
pub async fn serve<H, F>(
    socket: TcpListener,
    connections: Connections,
    mut drain: DrainWatch,
    handler: H,
) where
    H: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = match tokio::net::TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => {
            warn!(%error, "cannot listen");
            return;
        }
    };
    let mut tasks = JoinSet::new();
    let mut backoff = AcceptBackoff::default();
    let admit = |tasks: &mut JoinSet<()>, stream: tokio::net::TcpStream, peer| {
        let _ = stream.set_nodelay(true);
        // Nothing polls the body of an answer while the socket is full, so no timer of ours would see it.
        #[cfg(target_os = "linux")]
        let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(connections.unread_timeout));
        let Ok(slot) = connections.slots.clone().try_acquire_owned() else {
            connections.refusal.refuse(stream);
            return;
        };
        let (connections, drain, handler) = (connections.clone(), drain.clone(), handler.clone());
        tasks.spawn(async move {
            let _slot = slot;
            carry(stream, peer, connections, drain, handler).await;
        });
    };
    let mut stopping = drain.clone();
    loop {
        tokio::select! {
            biased;
            () = stopping.reached(Phase::Stopping) => break,
            Some(_) = tasks.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    backoff.reset();
                    admit(&mut tasks, stream, peer);
                }
                Err(error) => backoff.pause(&error).await,
            },
        }
    }
    // Connections that the kernel has completed but nobody accepted would be reset by closing the socket.
    while let Some(Ok((stream, peer))) = accept_now(&listener).await {
        admit(&mut tasks, stream, peer);
    }
    drop(listener);
    loop {
        tokio::select! {
            biased;
            ended = tasks.join_next() => if ended.is_none() { break },
            () = drain.reached(Phase::Cutting) => break,
        }
    }
}

async fn accept_now(
    listener: &tokio::net::TcpListener,
) -> Option<io::Result<(tokio::net::TcpStream, SocketAddr)>> {
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(match listener.poll_accept(cx) {
            std::task::Poll::Ready(accepted) => Some(accepted),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

/// One connection, from accept to close.
async fn carry<H, F>(
    stream: tokio::net::TcpStream,
    peer: SocketAddr,
    connections: Connections,
    mut drain: DrainWatch,
    handler: H,
) where
    H: Fn(Request<Incoming>, SocketAddr) -> F + Send,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let _open = connections
        .metrics
        .as_ref()
        .map(|metrics| metrics.connection());
    let service = service_fn(move |request| {
        let answer = handler(request, peer);
        async move { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(connections.header_timeout)
            .max_header_size(connections.max_header_bytes)
            // Room for one head and a piece of a body. hyper's default of 400 KiB, filled by thousands of slow
            // connections, would be gigabytes.
            .max_buf_size(connections.max_header_bytes.max(16 * 1024) + 32 * 1024)
            .serve_connection(TokioIo::new(stream), service)
    );
    let mut stopping = drain.clone();
    let mut graceful = false;
    let ended = loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => break ended,
            () = stopping.reached(Phase::Stopping), if !graceful => {
                graceful = true;
                connection.as_mut().graceful_shutdown();
            }
            () = drain.reached(Phase::Cutting), if graceful => return,
        }
    };
    if let Err(error) = ended {
        report(&error, peer, connections.metrics.as_deref());
    }
}

/// hyper answers what it cannot parse by itself, with an empty 400, 414 or 431, so the only trace of it is here.
fn report(error: &hyper::Error, peer: SocketAddr, metrics: Option<&Metrics>) {
    if error.is_parse() {
        if let Some(metrics) = metrics {
            metrics.downstream_parse_error();
        }
        warn!(target: "access", { client.address = %peer, error = %Chain(error) }, "not HTTP");
    } else {
        debug!(client.address = %peer, error = %Chain(error), "connection ended");
    }
}

/// Refuses connections with an answer that can be read.
#[derive(Clone)]
pub struct Refusal {
    response: Bytes,
    /// Refusals under way; beyond it connections are closed without an answer.
    slots: Arc<Semaphore>,
}

impl Refusal {
    /// How long a refused application has to take its answer.
    const TIMEOUT: Duration = Duration::from_secs(1);
    const SLOTS: usize = 64;

    /// `response` is the whole of it, head and body, a few hundred bytes.
    pub fn new(response: Bytes) -> Self {
        Self {
            response,
            slots: Arc::new(Semaphore::new(Self::SLOTS)),
        }
    }

    /// Closing at once would reset the connection and destroy the answer, because the request lies unread; so the
    /// answer is sent, our side is closed, and the rest is read away.
    fn refuse(&self, stream: tokio::net::TcpStream) {
        let Ok(slot) = self.slots.clone().try_acquire_owned() else {
            return;
        };
        let Ok(stream) = stream.into_std() else {
            return;
        };
        // A fresh socket has room for a few hundred bytes, so this does not block.
        if (&stream).write(&self.response).is_err()
            || stream.shutdown(std::net::Shutdown::Write).is_err()
        {
            return;
        }
        tokio::spawn(async move {
            let _slot = slot;
            let _ = tokio::time::timeout(Self::TIMEOUT, read_away(stream)).await;
        });
    }
}

async fn read_away(stream: TcpStream) -> io::Result<()> {
    let stream = tokio::net::TcpStream::from_std(stream)?;
    let mut scratch = [0; 4096];
    let mut left = 64;
    while left > 0 {
        stream.readable().await?;
        match stream.try_read(&mut scratch) {
            Ok(0) => return Ok(()),
            Ok(_) => left -= 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Waits between failing accepts, so that running out of file descriptors is not a busy loop.
struct AcceptBackoff(Duration);

impl Default for AcceptBackoff {
    fn default() -> Self {
        Self(Self::MIN)
    }
}

impl AcceptBackoff {
    const MIN: Duration = Duration::from_millis(5);
    const MAX: Duration = Duration::from_secs(1);

    fn reset(&mut self) {
        self.0 = Self::MIN;
    }

    async fn pause(&mut self, error: &io::Error) {
        // The peer gave up before we came to it: nothing is wrong here.
        if error.kind() == io::ErrorKind::ConnectionAborted {
            return;
        }
        warn!(%error, wait = ?self.0, "cannot accept a connection");
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(Self::MAX);
    }
}
