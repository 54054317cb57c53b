//! What is done about a token that the upstream does not accept: bounds for renewals, and a breaker for tokens that are
//! refused as soon as they come.
//!
//! A token that is refused after it was accepted, or after a while, was revoked, and a new one helps. If the new one is
//! refused within seconds too, it is for another reason: clocks, a replica that lags, a key that the upstream does not
//! know. New ones would be refused as well, and asking for them all the time would harm the authorization server.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;

/// How long the breaker stays open, the first time and at most.
const OPEN: Backoff = Backoff::new(Duration::from_secs(30), Duration::from_secs(300));
/// After so long without a fresh token refused, the next time is a first time again.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// What is to be done about a refused token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// Renew it.
    Renew,
    /// Too many were renewed for this reason.
    Limited,
    /// The breaker opened now, until then.
    Opened(Instant),
    /// The breaker is open.
    Open,
}

/// The refusals of one key. Nothing waits while it is locked.
#[derive(Default)]
pub(super) struct Rejections(Mutex<State>);

#[derive(Default)]
struct State {
    renewals: RenewalLimit,
    opened: u32,
    open_until: Option<Instant>,
}

impl Rejections {
    /// Judges the refusal of a token; `is_fresh` if it cannot be for its age.
    pub(super) fn judge(&self, is_fresh: bool, now: Instant) -> Judgement {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.open_until.is_some_and(|until| now < until) {
            return Judgement::Open;
        }
        if is_fresh {
            return Judgement::Opened(state.open(now));
        }
        if state.renewals.allows(now) {
            Judgement::Renew
        } else {
            Judgement::Limited
        }
    }

    /// Whether renewals are suspended at `now`.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.open_until.is_some_and(|until| now < until)
    }
}

impl State {
    fn open(&mut self, now: Instant) -> Instant {
        let is_forgotten = self
            .open_until
            .is_some_and(|until| now.saturating_duration_since(until) >= FORGOTTEN);
        self.opened = if is_forgotten {
            1
        } else {
            self.opened.saturating_add(1)
        };
        let until = now + OPEN.delay(self.opened, 1.0);
        self.open_until = Some(until);
        until
    }
}

/// Bounds how often 401s of the upstream may cause a renewal: once in 10 s and 30 times an hour.
#[derive(Default)]
struct RenewalLimit(VecDeque<Instant>);

impl RenewalLimit {
    const INTERVAL: Duration = Duration::from_secs(10);
    const WINDOW: Duration = Duration::from_secs(3600);
    const PER_WINDOW: usize = 30;

    /// Whether one more is allowed at `now`; if so, it is counted.
    fn allows(&mut self, now: Instant) -> bool {
        let granted = &mut self.0;
        while granted
            .front()
            .is_some_and(|first| now.duration_since(*first) >= Self::WINDOW)
        {
            granted.pop_front();
        }
        let too_soon = granted
            .back()
            .is_some_and(|last| now.duration_since(*last) < Self::INTERVAL);
        if too_soon || granted.len() >= Self::PER_WINDOW {
            return false;
        }
        granted.push_back(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn renewals_after_a_401_are_30_an_hour() {
        let mut limit = RenewalLimit::default();
        let start = Instant::now();
        let granted = (0..7200).filter(|second| limit.allows(start + secs(*second)));
        let granted: Vec<u64> = granted.collect();
        let first: Vec<u64> = (0..30).map(|n| n * 10).collect();
        let second: Vec<u64> = (0..30).map(|n| 3600 + n * 10).collect();
        assert_eq!(granted, [first, second].concat());
    }

    /// C-58
    #[test]
    fn fresh_tokens_that_are_refused_open_the_breaker_for_30_s_doubling_to_5_min() {
        let rejections = Rejections::default();
        let mut now = Instant::now();
        for open_for in [30, 60, 120, 240, 300, 300] {
            let until = now + secs(open_for);
            assert_eq!(rejections.judge(true, now), Judgement::Opened(until));
            assert_eq!(rejections.judge(true, until - secs(1)), Judgement::Open);
            assert_eq!(rejections.judge(false, until - secs(1)), Judgement::Open);
            assert!(rejections.is_open(until - secs(1)));
            assert!(!rejections.is_open(until));
            // Old enough to be renewed, and the new one is refused at once.
            assert_eq!(rejections.judge(false, until), Judgement::Renew);
            assert_eq!(rejections.judge(false, until), Judgement::Limited);
            now = until + secs(1);
        }
        let later = now + secs(300) + FORGOTTEN;
        let opened = Judgement::Opened(later + secs(30));
        assert_eq!(rejections.judge(true, later), opened, "a first time again");
    }
}
