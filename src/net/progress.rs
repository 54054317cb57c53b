//! When something last moved.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// When a body last moved; shared between the body and whoever waits for what comes after it.
pub struct Progress {
    origin: Instant,
    last_millis: AtomicU64,
}

impl Progress {
    /// Begins now.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            origin: Instant::now(),
            last_millis: AtomicU64::new(0),
        })
    }

    /// Something moved now.
    pub(super) fn touch(&self) {
        let millis = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_millis.store(millis, Ordering::Relaxed);
    }

    /// The moment of the last bytes, or of the beginning.
    pub fn last(&self) -> Instant {
        self.origin + Duration::from_millis(self.last_millis.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn progress_tells_when_a_body_last_moved() {
        let begun = Instant::now();
        let progress = Progress::new();
        sleep(Duration::from_secs(7)).await;
        assert_eq!(progress.last(), begun, "not yet");
        progress.touch();
        let moved = Instant::now();
        sleep(Duration::from_secs(7)).await;
        assert_eq!(progress.last(), moved);
    }
}
