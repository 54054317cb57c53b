//! An accepted connection as bytes, TCP or Unix.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
#[cfg(target_os = "linux")]
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

/// An accepted connection.
pub(super) struct Stream {
    /// Bytes that were read to see what they are, and not used.
    unread: Bytes,
    channel: Either<TcpStream, UnixStream>,
}

impl Stream {
    pub(super) fn new(channel: Either<TcpStream, UnixStream>) -> Self {
        Self {
            unread: Bytes::new(),
            channel,
        }
    }

    /// Sends small pieces at once, and gives a peer up that leaves what was sent unacknowledged for `unread_timeout`.
    pub(super) fn configure(&self, unread_timeout: Duration) {
        let Either::Left(tcp) = &self.channel else {
            return;
        };
        let _ = tcp.set_nodelay(true);
        // Nothing polls the body of an answer while the socket is full, so no timer of ours would see it.
        #[cfg(target_os = "linux")]
        let _ = SockRef::from(tcp).set_tcp_user_timeout(Some(unread_timeout));
        #[cfg(not(target_os = "linux"))]
        let _ = unread_timeout;
    }

    /// Gives `bytes` back: they will be read again, before everything else.
    pub(super) fn unread(&mut self, bytes: Bytes) {
        debug_assert!(self.unread.is_empty(), "one thing at a time is looked at");
        self.unread = bytes;
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            return Pin::new(&mut self.channel).poll_read(cx, buf);
        }
        let length = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread[..length]);
        self.unread.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.channel).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.channel).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.channel.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.channel).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.channel).poll_shutdown(cx)
    }
}
