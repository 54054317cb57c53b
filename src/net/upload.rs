//! The body of a request, as it arrives. Where nobody wants the rest of it, it is read all the same for a while: a server
//! that closes with bytes unread resets the connection, and the answer may be lost with it (RFC 9112 §9.6).

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::timeout;

/// A request body on its way in.
pub struct Upload {
    /// `None` after the end.
    incoming: Option<Incoming>,
    /// The application sends it only after a 100 (RFC 9110 §10.1.1), and reading it would send that.
    awaits_continue: bool,
}

/// How long the rest of an unwanted body is read: in all, and between two pieces.
const LINGERING_TIME: Duration = Duration::from_secs(30);
const LINGERING_TIMEOUT: Duration = Duration::from_secs(5);

impl Upload {
    /// `awaits_continue`: whether the application asked for a 100 first.
    pub fn new(incoming: Incoming, awaits_continue: bool) -> Self {
        Self {
            incoming: Some(incoming),
            awaits_continue,
        }
    }

    /// Whether nothing more comes.
    pub fn is_over(&self) -> bool {
        self.incoming
            .as_ref()
            .is_none_or(hyper::body::Body::is_end_stream)
    }

    /// How much is still to come, as far as is known.
    pub fn left(&self) -> SizeHint {
        self.incoming
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), hyper::body::Body::size_hint)
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(incoming) = &mut self.incoming else {
            return Poll::Ready(None);
        };
        self.awaits_continue = false;
        let frame = ready!(Pin::new(incoming).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.incoming = None;
        }
        Poll::Ready(frame)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.awaits_continue || self.is_over() {
            return;
        }
        if let Some(rest) = self.incoming.take() {
            // It ends by itself, and with its connection.
            tokio::spawn(timeout(LINGERING_TIME, read_away(rest)));
        }
    }
}

async fn read_away(mut rest: Incoming) {
    loop {
        let frame = poll_fn(|cx| Pin::new(&mut rest).poll_frame(cx));
        if !matches!(timeout(LINGERING_TIMEOUT, frame).await, Ok(Some(Ok(_)))) {
            return;
        }
    }
}
