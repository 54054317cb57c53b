//! What a pool has, and who waits for it: no task, no wait.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::net::client::{Connection, Http1};
use crate::net::connect::ConnectError;
use crate::net::download::Lease;
use crate::net::http2::Http2;

/// What a pool has, and who waits for it.
#[derive(Default)]
pub(super) struct State {
    /// Ready for a request; the one that was used last is the last.
    pub(super) idle: VecDeque<Idle>,
    pub(super) shared: Option<Shared>,
    /// First come, first served.
    pub(super) waiting: VecDeque<Waiting>,
    /// Requests that have had to wait so far.
    pub(super) count: u64,
    /// Attempts under way that may bring a connection for all.
    pub(super) attempts: usize,
    /// Whether each needs a connection of its own, as far as is known.
    pub(super) is_http1: bool,
    pub(super) is_swept: bool,
}

pub(super) struct Idle {
    pub(super) connection: Http1,
    pub(super) since: Instant,
}

/// The connection of all requests.
pub(super) struct Shared {
    pub(super) connection: Http2,
    /// When the last request took it.
    pub(super) used: Instant,
}

/// A request without a connection.
pub(super) struct Waiting {
    pub(super) number: u64,
    /// Whether there is an attempt of its own, which will be told it whatever becomes of it.
    pub(super) connects: bool,
    pub(super) hand_over: oneshot::Sender<HandOver>,
}

pub(super) type HandOver = Result<Reserved, Arc<ConnectError>>;

/// A connection on its way to a request, which may have gone away.
pub(super) enum Reserved {
    Http1(Lease, Age),
    Http2(Http2),
}

/// What it says of a connection that nothing could be written on it.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Age {
    /// It never worked.
    New,
    /// It has been closed since the last request.
    Used,
}

impl State {
    /// One that is there already.
    pub(super) fn take(&mut self, must_be_http1: bool) -> Option<Connection> {
        if !must_be_http1 && let Some(shared) = &mut self.shared {
            if !shared.connection.is_closed() {
                shared.used = Instant::now();
                return Some(Connection::Http2(shared.connection.clone()));
            }
            self.shared = None;
        }
        while let Some(Idle { connection, .. }) = self.idle.pop_back() {
            if connection.sender.is_ready() {
                return Some(Connection::Http1(connection));
            }
        }
        None
    }

    /// All have it from now on.
    pub(super) fn share(&mut self, connection: Http2) {
        for waiting in self.waiting.drain(..) {
            let _ = waiting
                .hand_over
                .send(Ok(Reserved::Http2(connection.clone())));
        }
        self.shared = Some(Shared {
            connection,
            used: Instant::now(),
        });
    }

    /// Gives it to the request of that number, to the first that waits, or back. Whoever has an attempt of its own gets
    /// what that brings: so none is left without.
    pub(super) fn hand_over(
        &mut self,
        mut lease: Lease,
        age: Age,
        number: Option<u64>,
    ) -> Option<Http1> {
        let mut own = number.and_then(|number| {
            let mut numbers = self.waiting.iter().map(|waiting| waiting.number);
            numbers.position(|other| other == number)
        });
        while let Some(waiting) = self.waiting.remove(own.take().unwrap_or_default()) {
            match waiting.hand_over.send(Ok(Reserved::Http1(lease, age))) {
                // It has gone away.
                Err(Ok(Reserved::Http1(back, _))) => lease = back,
                _ => return None,
            }
        }
        lease.take()
    }

    /// Tells those who hoped for it, and forgets those who have gone away.
    pub(super) fn fail(&mut self, error: &Arc<ConnectError>, number: u64, last: u64) {
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        let waiting = waiting.filter(|waiting| !waiting.hand_over.is_closed());
        let hoped = |waiting: &Waiting| {
            waiting.number == number || !waiting.connects && waiting.number <= last
        };
        let (failed, others): (VecDeque<_>, _) = waiting.partition(hoped);
        self.waiting = others;
        for waiting in failed {
            let _ = waiting.hand_over.send(Err(error.clone()));
        }
    }

    /// Returns when to look again.
    pub(super) fn close_idle(&mut self, idle_timeout: Duration) -> Instant {
        let now = Instant::now();
        let is_over = |since: Instant| since + idle_timeout <= now;
        while self.idle.front().is_some_and(|idle| is_over(idle.since)) {
            self.idle.pop_front();
        }
        // Streams under way on it go on.
        let _ = self.shared.take_if(|shared| is_over(shared.used));
        let idle = self.idle.front().map(|idle| idle.since);
        let shared = self.shared.as_ref().map(|shared| shared.used);
        let oldest = idle.into_iter().chain(shared).min();
        oldest.unwrap_or(now) + idle_timeout
    }
}
