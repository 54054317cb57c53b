//! A connection to a server as bytes, with or without TLS, and the task that carries it.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;
use tracing::debug;

use super::body::Chain;
use super::progress::Progress;
use super::stream::poll_write_pieces;
use crate::metrics::GaugeGuard;

/// A connection to a server, counted while it is open.
pub struct Stream {
    channel: Channel,
    /// For whoever looks after it.
    traffic: Option<Arc<Traffic>>,
    _open: Option<GaugeGuard>,
}

/// What passes over a connection.
pub(super) struct Traffic {
    read: Arc<Progress>,
    writes: AtomicU64,
}

impl Traffic {
    /// The moment of the last bytes that came, or of the beginning.
    pub(super) fn last_read(&self) -> Instant {
        self.read.last()
    }

    /// How often something was written, or tried to be.
    pub(super) fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }
}

/// Where its bytes pass.
pub(super) enum Channel {
    Plain {
        tcp: TcpStream,
        is_proxied: bool,
    },
    Tls(Box<TlsStream<TcpStream>>),
    #[cfg(test)]
    Memory(tokio::io::DuplexStream),
}

/// Both directions of a byte stream.
trait Duplex: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

impl Stream {
    pub(super) fn new(channel: Channel, open: Option<GaugeGuard>) -> Self {
        Self {
            channel,
            traffic: None,
            _open: open,
        }
    }

    /// What passes over it from now on.
    pub(super) fn traffic(&mut self) -> Arc<Traffic> {
        let traffic = Traffic {
            read: Progress::new(),
            writes: AtomicU64::new(0),
        };
        self.traffic.insert(Arc::new(traffic)).clone()
    }

    fn about_to_write(&self) {
        if let Some(traffic) = &self.traffic {
            traffic.writes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The other end of the TCP connection: the server, or a proxy before it.
    pub fn peer(&self) -> Option<SocketAddr> {
        match &self.channel {
            Channel::Plain { tcp, .. } => tcp.peer_addr().ok(),
            Channel::Tls(stream) => stream.get_ref().0.peer_addr().ok(),
            #[cfg(test)]
            Channel::Memory(_) => None,
        }
    }

    /// The TLS session, if there is one: protocol version and ALPN.
    pub fn tls(&self) -> Option<&rustls::ClientConnection> {
        match &self.channel {
            Channel::Tls(stream) => Some(stream.get_ref().1),
            _ => None,
        }
    }

    /// Whether the two ends have agreed on HTTP/2 (RFC 9113 §3.2).
    pub(super) fn speaks_http2(&self) -> bool {
        self.tls().and_then(|tls| tls.alpn_protocol()) == Some(b"h2")
    }

    /// Whether a proxy reads the requests, not the server.
    pub(super) fn is_proxied(&self) -> bool {
        matches!(self.channel, Channel::Plain { is_proxied, .. } if is_proxied)
    }

    fn duplex(&mut self) -> Pin<&mut dyn Duplex> {
        match &mut self.channel {
            Channel::Plain { tcp, .. } => Pin::new(tcp),
            Channel::Tls(stream) => Pin::new(&mut **stream),
            #[cfg(test)]
            Channel::Memory(stream) => Pin::new(stream),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(self.duplex().poll_read(cx, buf));
        if let Some(traffic) = &self.traffic {
            traffic.read.touch();
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.about_to_write();
        self.duplex().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.about_to_write();
        match &mut self.channel {
            Channel::Plain { tcp, .. } => poll_write_pieces(Pin::new(tcp), cx, bufs),
            _ => self.duplex().poll_write_vectored(cx, bufs),
        }
    }

    /// TCP and rustls both gather.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.duplex().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.duplex().poll_shutdown(cx)
    }
}

/// Runs the end of a connection to a server that reads and writes, in a task of its own; requests and responses tell what
/// becomes of it.
pub(super) fn carry<E: Error + 'static>(
    connection: impl Future<Output = Result<(), E>> + Send + 'static,
) -> AbortHandle {
    // Boxed, because a task has room for what it awaits twice.
    let connection = Box::pin(connection);
    let carried = tokio::spawn(async {
        if let Err(error) = connection.await {
            debug!(error = %Chain(&error), "connection to a server ended");
        }
    });
    carried.abort_handle()
}
