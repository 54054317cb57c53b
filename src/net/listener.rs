//! Accepts connections until the drain, and sees to it that none is lost by its end.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};
use tracing::warn;

use super::body::Body;
use super::connection::{Connections, carry};
use super::drain::{DrainWatch, Phase};
use super::socket::{Acceptor, HANDSHAKE, ListeningSocket, Peer};
use super::stream::Stream;

/// tokio writes to an eventfd of its own whenever a timer is set that is due before all others, to wake the very thread
/// that sets it. Where little goes on, the head timeout of a connection is such a timer with each request. One that is
/// always due earlier saves a system call and a wake-up each time, for this one wake-up.
const BEAT: Duration = Duration::from_secs(5);

/// Accepts from `socket` and answers every request with `handler`, until `drain` reaches [`Phase::Stopping`] and the
/// connections have ended, or [`Phase::Cutting`].
pub async fn serve<H, F>(
    socket: ListeningSocket,
    connections: Connections,
    mut drain: DrainWatch,
    handler: H,
) where
    H: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let acceptor = match Acceptor::new(socket) {
        Ok(acceptor) => acceptor,
        Err(error) => {
            warn!(%error, "cannot listen");
            return;
        }
    };
    let mut tasks = JoinSet::new();
    let mut backoff = AcceptBackoff::default();
    let admit = |tasks: &mut JoinSet<()>, stream: Stream, peer| {
        stream.configure(connections.unread_timeout);
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
    let mut beat = interval(BEAT);
    loop {
        tokio::select! {
            biased;
            () = stopping.reached(Phase::Stopping) => break,
            Some(_) = tasks.join_next() => {}
            _ = beat.tick() => {}
            accepted = acceptor.accept() => match accepted {
                Ok((stream, peer)) => {
                    backoff.reset();
                    admit(&mut tasks, stream, peer);
                }
                Err(error) => backoff.pause(&error).await,
            },
        }
    }
    if acceptor.shut() {
        let mut handshakes = pin!(sleep(HANDSHAKE));
        loop {
            tokio::select! {
                biased;
                Ok((stream, peer)) = acceptor.accept() => admit(&mut tasks, stream, peer),
                () = &mut handshakes => break,
            }
        }
    }
    drop(acceptor);
    loop {
        tokio::select! {
            biased;
            ended = tasks.join_next() => if ended.is_none() { break },
            () = drain.reached(Phase::Cutting) => break,
        }
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
    /// What is read of the request that the answer does not wait for.
    const MAX_REQUEST_BYTES: u64 = 256 * 1024;

    /// `response` is the whole of it, head and body, a few hundred bytes.
    pub fn new(response: Bytes) -> Self {
        Self {
            response,
            slots: Arc::new(Semaphore::new(Self::SLOTS)),
        }
    }

    fn refuse(&self, stream: Stream) {
        let Ok(slot) = self.slots.clone().try_acquire_owned() else {
            return;
        };
        let response = self.response.clone();
        tokio::spawn(async move {
            let _slot = slot;
            let _ = tokio::time::timeout(Self::TIMEOUT, Self::answer(stream, response)).await;
        });
    }

    /// Closing at once would reset the connection and destroy the answer, because the request lies unread; so the
    /// answer is sent, our side is closed, and the rest is read away.
    async fn answer(mut stream: Stream, response: Bytes) -> io::Result<()> {
        stream.write_all(&response).await?;
        stream.shutdown().await?;
        let mut request = stream.take(Self::MAX_REQUEST_BYTES);
        tokio::io::copy(&mut request, &mut tokio::io::sink()).await?;
        Ok(())
    }
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
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(Self::MAX);
    }
}
