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

/// So many bytes are put together before they are written: for the kernel a list of pieces is more work than that.
const SMALL: usize = 2048;

/// Writes `pieces` as one where that is cheaper.
pub(super) fn poll_write_pieces<W: AsyncWrite + ?Sized>(
    writer: Pin<&mut W>,
    cx: &mut Context<'_>,
    pieces: &[io::IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    if let [piece] = pieces {
        return writer.poll_write(cx, piece);
    }
    let mut whole = [0; SMALL];
    let mut length = 0;
    for piece in pieces {
        let Some(room) = whole.get_mut(length..length + piece.len()) else {
            return writer.poll_write_vectored(cx, pieces);
        };
        room.copy_from_slice(piece);
        length += piece.len();
    }
    writer.poll_write(cx, &whole[..length])
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
        poll_write_pieces(Pin::new(&mut self.channel), cx, bufs)
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn pieces_arrive_in_order_whatever_their_size() {
        for sizes in [&[7][..], &[100, 0, 280], &[SMALL, 1], &[SMALL - 1, 1]] {
            let pieces: Vec<Vec<u8>> = (0..).zip(sizes).map(|(n, size)| vec![n; *size]).collect();
            let mut whole = pieces.concat();
            let (mut near, mut far) = duplex(2 * SMALL);
            while !whole.is_empty() {
                // As what is left of them, after a write that took less than all.
                let (first, second) = whole.split_at(whole.len().min(sizes[0]));
                let slices = [io::IoSlice::new(first), io::IoSlice::new(second)];
                let written =
                    poll_fn(|cx| poll_write_pieces(Pin::new(&mut near), cx, &slices)).await;
                whole.drain(..written.unwrap());
            }
            drop(near);
            let mut read = Vec::new();
            far.read_to_end(&mut read).await.unwrap();
            assert_eq!(read, pieces.concat());
        }
    }
}
