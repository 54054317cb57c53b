//! Whether applications take the answers they get over HTTP/2. One that never opens its window has a connection that
//! lives, and an answer that nothing asks for more of: no deadline of the connection or of the body would ever see it.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::rt::Executor;
use hyper_util::rt::TokioExecutor;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

/// How one answer is taken.
pub(super) struct Uptake {
    origin: Instant,
    /// When the last piece was given, in milliseconds after the origin; [`ASKED`](Self::ASKED) while more is asked for.
    given: AtomicU64,
}

impl Uptake {
    const ASKED: u64 = u64::MAX;

    fn new() -> Arc<Self> {
        Arc::new(Self {
            origin: Instant::now(),
            given: AtomicU64::new(Self::ASKED),
        })
    }

    /// The peer has room for more.
    pub(super) fn asked(&self) {
        self.given.store(Self::ASKED, Ordering::Relaxed);
    }

    /// It has something to take.
    pub(super) fn given(&self) {
        let millis = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(Self::ASKED);
        self.given.store(millis, Ordering::Relaxed);
    }

    /// Resolves when something was given, and for `limit` no more was asked for.
    async fn refused_for(&self, limit: Duration) {
        loop {
            let now = Instant::now();
            let deadline = match self.given.load(Ordering::Relaxed) {
                Self::ASKED => now + limit,
                millis => self.origin + Duration::from_millis(millis) + limit,
            };
            if deadline <= now {
                return;
            }
            sleep_until(deadline).await;
        }
    }
}

/// Runs the streams of one connection, and gives up those whose answers are not taken.
#[derive(Clone)]
pub(super) struct Streams {
    /// What is left for so long is not wanted. Less than a buffer in that time is as good as nothing.
    limit: Duration,
    /// Of the request that hyper is about to hand over.
    next: Arc<Mutex<Option<Arc<Uptake>>>>,
}

impl Streams {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            next: Arc::default(),
        }
    }

    /// To be called for each request. hyper makes a task of its answer right after.
    pub(super) fn begin(&self) -> Arc<Uptake> {
        let uptake = Uptake::new();
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(uptake.clone());
        uptake
    }
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let uptake = self
            .next
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let limit = self.limit;
        TokioExecutor::new().execute(async move {
            let Some(uptake) = uptake else {
                return stream.await;
            };
            tokio::select! {
                biased;
                () = stream => {}
                // Dropping it resets the stream.
                () = uptake.refused_for(limit) => {
                    warn!(idle_s = limit.as_secs_f64(), "an answer that the application does not take");
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{sleep, timeout};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    /// However long the upstream takes: that is not the application's fault.
    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_asked_for_is_not_given_up() {
        let uptake = Uptake::new();
        let refused = timeout(10 * LIMIT, uptake.refused_for(LIMIT));
        refused.await.unwrap_err();
        uptake.given();
        uptake.asked();
        let refused = timeout(10 * LIMIT, uptake.refused_for(LIMIT));
        refused.await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_given_up_when_its_last_piece_has_waited_for_the_limit() {
        let uptake = Uptake::new();
        let begun = Instant::now();
        let taking = async {
            for _ in 0..10 {
                sleep(LIMIT / 2).await;
                uptake.asked();
                uptake.given();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = taking => {}
            () = uptake.refused_for(LIMIT) => {}
        }
        assert_eq!(begun.elapsed(), 5 * LIMIT + LIMIT);
    }
}
