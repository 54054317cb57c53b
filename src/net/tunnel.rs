//! What an upgrade makes of a connection: bytes both ways, whatever they mean.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::time::{timeout, timeout_at};
use tracing::debug;

use super::body::Chain;
use super::progress::Progress;

/// The upstream's half of an upgraded connection. It travels in the extensions of the answer 101 to the connection that
/// the answer goes out on, which splices the two.
#[derive(Clone)]
pub struct Tunnel {
    upstream: OnUpgrade,
    idle_timeout: Duration,
    /// Dropped when the tunnel ends.
    _held: Arc<dyn Send + Sync>,
}

/// Bytes on their way, in each direction.
const BUFFER: usize = 16 * 1024;

impl Tunnel {
    /// It ends when nothing has moved for `idle_timeout`, either way; `guard` lives as long as it.
    pub fn new(
        upstream: OnUpgrade,
        idle_timeout: Duration,
        guard: impl Send + Sync + 'static,
    ) -> Self {
        Self {
            upstream,
            idle_timeout,
            _held: Arc::new(guard),
        }
    }

    /// Passes bytes on until both sides have ended, one broke off, or nothing moves any more. The end of one direction
    /// is passed on and leaves the other open.
    pub(super) async fn splice(self, downstream: OnUpgrade) {
        let both = async { tokio::try_join!(downstream, self.upstream) };
        let (downstream, upstream) = match timeout(self.idle_timeout, both).await {
            Ok(Ok(both)) => both,
            Ok(Err(error)) => return debug!(error = %Chain(&error), "no tunnel"),
            Err(_) => return debug!("no tunnel in time"),
        };
        let (from_downstream, to_downstream) = split(TokioIo::new(downstream));
        let (from_upstream, to_upstream) = split(TokioIo::new(upstream));
        let progress = Progress::new();
        let mut both_ways = pin!(async {
            tokio::try_join!(
                pass(from_downstream, to_upstream, &progress),
                pass(from_upstream, to_downstream, &progress),
            )
        });
        loop {
            let deadline = progress.last() + self.idle_timeout;
            match timeout_at(deadline, both_ways.as_mut()).await {
                Ok(Ok(_)) => return,
                Ok(Err(error)) => return debug!(%error, "a tunnel broke off"),
                Err(_) if progress.last() + self.idle_timeout <= deadline => {
                    return debug!(idle_s = self.idle_timeout.as_secs_f64(), "an idle tunnel");
                }
                Err(_) => {}
            }
        }
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    progress: &Progress,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        progress.touch();
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
    }
}
