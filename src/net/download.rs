//! The body of a response, as it arrives. With its last byte the connection is free for another request.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

use super::client::Http1;
use super::pool::Pool;

/// A response body on its way in.
pub struct Download {
    incoming: Incoming,
    lease: Option<Lease>,
}

impl Download {
    pub(super) fn new(incoming: Incoming, lease: Lease) -> Self {
        Self {
            incoming,
            lease: Some(lease),
        }
    }

    /// Gives the rest up, and the connection too, for where this response ends is anybody's guess. With HTTP/2 that is
    /// always known.
    pub fn distrust(mut self) {
        // Taken, it is not put back.
        drop(self.lease.take().and_then(Lease::take));
    }
}

/// Of a connection that is used once, or of a stream.
impl From<Incoming> for Download {
    fn from(incoming: Incoming) -> Self {
        Self {
            incoming,
            lease: None,
        }
    }
}

impl http_body::Body for Download {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.incoming).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
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
