//! The last attempts to get a token, for a person who wants to know what happened.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::access_token::{Grant, Moment};
use super::token_error::TokenError;
use crate::metrics::Trigger;

/// So many are remembered.
const KEPT: usize = 12;

/// One attempt, with nothing secret in it.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// When it ended.
    pub at: SystemTime,
    pub took: Duration,
    pub trigger: Trigger,
    /// The token, by its fingerprint, or why there is none.
    pub result: Result<String, Failure>,
}

/// Why there is no token, in words.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The OAuth error code, or the label of metrics.
    pub name: String,
    /// As logged: one line, printable.
    pub message: String,
    pub hint: Option<&'static str>,
}

/// The last of one key. Nothing waits while it is locked.
#[derive(Default)]
pub(super) struct Attempts(Mutex<VecDeque<Attempt>>);

impl Attempts {
    /// The attempt that began at `started` has ended.
    pub(super) fn record(
        &self,
        trigger: Trigger,
        started: Moment,
        result: &Result<Grant, TokenError>,
    ) {
        let attempt = Attempt {
            at: SystemTime::now(),
            took: started.monotonic.elapsed(),
            trigger,
            result: match result {
                Ok(grant) => Ok(grant.fingerprint.clone()),
                Err(error) => Err(Failure {
                    name: error.name(),
                    message: error.to_string(),
                    hint: error.hint(),
                }),
            },
        };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.truncate(KEPT - 1);
        kept.push_front(attempt);
    }

    /// The latest first.
    pub(super) fn latest(&self) -> Vec<Attempt> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_ones_are_kept() {
        let attempts = Attempts::default();
        for _ in 0..KEPT * 2 {
            let failure = Err(TokenError::BrokenOff);
            attempts.record(Trigger::Scheduled, Moment::now(), &failure);
        }
        let failure = Err(TokenError::TooLarge);
        attempts.record(Trigger::Manual, Moment::now(), &failure);
        let latest = attempts.latest();
        assert_eq!(latest.len(), KEPT);
        assert_eq!(latest[0].trigger, Trigger::Manual);
        let message = &latest[0].result.as_ref().unwrap_err().message;
        assert_eq!(message, "the answer is larger than 64 KiB");
    }
}
