//! Request bodies that can be sent once more: an HTTP/2 server may refuse a stream without having looked at it, when a
//! part of the body is already gone (RFC 9113 §8.7), and an upstream may refuse a token that was revoked.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use super::body::{BodyError, Relay};

/// Bytes that are kept of a body that has begun.
const MAX_KEPT: usize = 64 * 1024;

/// A body on its way, and what is gone of it so far. Clones are the same body.
#[derive(Clone)]
pub(super) struct Resendable(Arc<Mutex<Shared>>);

struct Shared {
    relay: Relay,
    /// As it was before the first byte.
    size: SizeHint,
    /// `None` when it was more than is kept.
    gone: Option<Vec<Piece>>,
    kept: usize,
    /// The number of the attempt that may take pieces.
    attempt: u32,
}

#[derive(Clone)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Resendable {
    pub(super) fn new(relay: Relay) -> Self {
        let size = relay.left();
        Self(Arc::new(Mutex::new(Shared {
            relay,
            size,
            gone: Some(Vec::new()),
            kept: 0,
            attempt: 0,
        })))
    }

    /// The body of the first attempt.
    pub(super) fn attempt(&self) -> Attempt {
        Attempt {
            number: self.lock().attempt,
            body: self.clone(),
            taken: 0,
        }
    }

    /// The body of one more attempt, from its first byte on; `None` if that is no longer here.
    pub(super) fn again(&self) -> Option<Attempt> {
        {
            let mut shared = self.lock();
            shared.gone.as_ref()?;
            shared.attempt += 1;
        }
        Some(self.attempt())
    }

    /// Whether every piece came, and all are kept.
    pub(super) fn is_whole(&self) -> bool {
        let shared = self.lock();
        shared.gone.is_some() && shared.relay.is_over()
    }

    /// Nothing waits while it holds the lock, and nobody but a superseded attempt contends for it.
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body of one attempt to send a request.
pub(super) struct Attempt {
    body: Resendable,
    number: u32,
    /// Pieces taken so far.
    taken: usize,
}

impl Attempt {
    pub(super) fn shared(&self) -> Resendable {
        self.body.clone()
    }

    pub(super) fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut shared = self.body.lock();
        if shared.attempt != self.number {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        let again = shared.gone.as_ref().and_then(|gone| gone.get(self.taken));
        if let Some(piece) = again.cloned() {
            self.taken += 1;
            return Poll::Ready(Some(Ok(piece.frame())));
        }
        let piece = shared.relay.poll_piece(cx);
        if let Poll::Ready(Some(Ok(frame))) = &piece {
            shared.keep(frame);
            self.taken += 1;
        }
        piece
    }

    pub(super) fn is_over(&self) -> bool {
        let shared = self.body.lock();
        let all_taken = shared
            .gone
            .as_ref()
            .is_none_or(|gone| gone.len() == self.taken);
        all_taken && shared.relay.is_over()
    }

    pub(super) fn left(&self) -> SizeHint {
        let shared = self.body.lock();
        if self.taken == 0 {
            shared.size
        } else {
            shared.relay.left()
        }
    }
}

impl Shared {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        let Some(gone) = &mut self.gone else { return };
        let piece = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => {
                self.kept += data.len();
                Piece::Data(data.clone())
            }
            (None, Some(trailers)) => Piece::Trailers(trailers.clone()),
            (None, None) => return,
        };
        if self.kept > MAX_KEPT {
            self.gone = None;
        } else {
            gone.push(piece);
        }
    }
}

impl Piece {
    fn frame(self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data),
            Self::Trailers(trailers) => Frame::trailers(trailers),
        }
    }
}
