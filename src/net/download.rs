//! The body of a response, as it arrives. With its last byte the connection is free for another request.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

use super::body::BodyError;
use super::client::Http1;
use super::http2::Busy;
use super::pool::Pool;

/// A response body on its way in.
pub struct Download(Source);

enum Source {
    Http1(Incoming, Option<Lease>),
    Http2 {
        stream: RecvStream,
        /// Bytes to come, if that is known.
        left: Option<u64>,
        _busy: Arc<Busy>,
    },
}

impl Download {
    /// Of a stream of HTTP/2, whose response has these `fields`.
    pub(super) fn of_stream(fields: &HeaderMap, stream: RecvStream, busy: Arc<Busy>) -> Self {
        let length = fields.get(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        Self(Source::Http2 {
            left: if stream.is_end_stream() {
                Some(0)
            } else {
                length
            },
            stream,
            _busy: busy,
        })
    }

    /// Of a connection that takes another request after it.
    pub(super) fn leased(self, lease: Lease) -> Self {
        Self(match self.0 {
            Source::Http1(incoming, _) => Source::Http1(incoming, Some(lease)),
            stream @ Source::Http2 { .. } => stream,
        })
    }

    /// Gives the rest up, and the connection too, for where this response ends is anybody's guess. With HTTP/2 that is
    /// always known.
    pub fn distrust(self) {
        // Taken, it is not put back.
        if let Source::Http1(_, Some(lease)) = self.0 {
            drop(lease.take());
        }
    }
}

/// Of a connection that is used once.
impl From<Incoming> for Download {
    fn from(incoming: Incoming) -> Self {
        Self(Source::Http1(incoming, None))
    }
}

impl http_body::Body for Download {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            Source::Http1(incoming, _) => {
                Pin::new(incoming).poll_frame(cx).map_err(BodyError::from)
            }
            Source::Http2 { stream, left, .. } => {
                let frame = poll_stream(stream, cx).map_err(BodyError::from);
                let frame = ready!(frame).transpose();
                if let (Some(left), Some(Ok(frame))) = (left, &frame) {
                    let length = frame.data_ref().map_or(0, Bytes::len);
                    *left = left.saturating_sub(length as u64);
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Http1(incoming, _) => incoming.is_end_stream(),
            Source::Http2 { stream, .. } => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Http1(incoming, _) => incoming.size_hint(),
            Source::Http2 { left, .. } => left.map(SizeHint::with_exact).unwrap_or_default(),
        }
    }
}

/// The next frame. One who has it makes room for as much to come.
fn poll_stream(
    stream: &mut RecvStream,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Frame<Bytes>>, h2::Error>> {
    match ready!(stream.poll_data(cx)) {
        Some(data) => {
            let data = data?;
            stream.flow_control().release_capacity(data.len())?;
            Poll::Ready(Ok(Some(Frame::data(data))))
        }
        None => {
            let trailers = ready!(stream.poll_trailers(cx))?;
            Poll::Ready(Ok(trailers.map(Frame::trailers)))
        }
    }
}

/// A connection that goes back to its pool.
pub(super) struct Lease {
    connection: Option<Http1>,
    pool: Arc<Pool>,
}

impl Lease {
    pub(super) fn new(connection: Http1, pool: Arc<Pool>) -> Self {
        Self {
            connection: Some(connection),
            pool,
        }
    }

    /// Takes the connection for a request; then it is the caller's.
    pub(super) fn take(mut self) -> Option<Http1> {
        self.connection.take()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.put_back(connection);
        }
    }
}
