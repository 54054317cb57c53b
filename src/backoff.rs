//! How long to wait after failures: exponential with full jitter, and nothing else.

use std::time::Duration;

/// Doubles from `min` to `max`. The jitter is full: every delay is drawn evenly from zero to the present ceiling, which
/// spreads a fleet that failed together (AWS Builders' Library, "Timeouts, retries, and backoff with jitter").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    min: Duration,
    max: Duration,
}

/// No delay is shorter than this, whatever the jitter draws: a refused connection fails in microseconds.
const FLOOR: Duration = Duration::from_millis(100);

impl Backoff {
    /// A backoff whose ceiling is `min` after the first failure and never more than `max`.
    pub const fn new(min: Duration, max: Duration) -> Self {
        Self { min, max }
    }

    /// The delay after `failures` failures in a row (1 for the first), for `jitter` drawn evenly from 0.0 to 1.0.
    pub fn delay(&self, failures: u32, jitter: f64) -> Duration {
        self.ceiling(failures)
            .mul_f64(jitter.clamp(0.0, 1.0))
            .max(FLOOR)
    }

    fn ceiling(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.min.saturating_mul(1 << doublings).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));

    #[test]
    fn the_ceiling_doubles_up_to_the_maximum() {
        let ceilings: Vec<u64> = (1..=8).map(|n| BACKOFF.delay(n, 1.0).as_secs()).collect();
        assert_eq!(ceilings, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(BACKOFF.delay(u32::MAX, 1.0).as_secs(), 60);
    }

    #[test]
    fn the_jitter_is_full_and_never_a_busy_loop() {
        assert_eq!(BACKOFF.delay(4, 0.5), Duration::from_secs(4));
        assert_eq!(BACKOFF.delay(4, 0.0), FLOOR);
        assert_eq!(BACKOFF.delay(0, 0.5), Duration::from_millis(500));
    }
}
