//! The failures since the last success, and how long to wait after them.

use std::time::Duration;

use super::token_error::TokenError;
use crate::backoff::Backoff;

/// After a failure that may pass, while a usable token is held.
const TRANSIENT: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// After a failure that may pass, while none is held.
const TRANSIENT_EMPTY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
/// After a refusal. Not jittered: its causes do not strike a whole fleet at one moment.
const PERMANENT: Backoff = Backoff::new(Duration::from_secs(30), Duration::from_secs(300));

/// Counts failures.
#[derive(Debug, Default)]
pub(super) struct Failures {
    in_a_row: u32,
    /// Of the class of the last one: a refusal after an outage starts its own backoff.
    of_class: u32,
    permanent: bool,
}

impl Failures {
    /// How many there were.
    pub(super) fn in_a_row(&self) -> u32 {
        self.in_a_row
    }

    /// The next attempt is made with other credentials: what was learnt of the old ones says nothing of these.
    pub(super) fn forget_backoff(&mut self) {
        self.of_class = 0;
    }

    /// Counts `error` and says how long to wait, when the token held is usable for `usable_for` more. `jitter` is
    /// drawn evenly from 0.0 to 1.0.
    pub(super) fn next_delay(
        &mut self,
        error: &TokenError,
        usable_for: Duration,
        jitter: f64,
    ) -> Duration {
        self.in_a_row = self.in_a_row.saturating_add(1);
        let permanent = error.is_permanent();
        self.of_class = if self.permanent == permanent {
            self.of_class.saturating_add(1)
        } else {
            1
        };
        self.permanent = permanent;
        let asked = error.retry_after();
        if permanent {
            // Asking often with a wrong secret can lock an account, even where the server invites to it.
            return PERMANENT
                .delay(self.of_class, 1.0)
                .max(asked.unwrap_or_default());
        }
        if let Some(asked) = asked {
            return asked;
        }
        // The longer backoff holds only for as long as there is something to serve.
        TRANSIENT
            .delay(self.of_class, jitter)
            .min(usable_for + TRANSIENT_EMPTY.delay(self.of_class, jitter))
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// How long is waited after one `error` after another, at the greatest jitter.
    fn delays(error: &TokenError, usable_for: Duration) -> Vec<u64> {
        let mut failures = Failures::default();
        let delays = (0..8).map(|_| failures.next_delay(error, usable_for, 1.0).as_secs());
        delays.collect()
    }

    fn status(status: u16, retry_after: Option<Duration>) -> TokenError {
        TokenError::Status {
            status: StatusCode::from_u16(status).unwrap(),
            retry_after,
        }
    }

    /// C-44
    #[test]
    fn an_outage_backs_off_further_only_while_a_token_is_held() {
        let delays = |usable_for| delays(&TokenError::BrokenOff, usable_for);
        assert_eq!(delays(secs(3600)), [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(delays(Duration::ZERO), [1, 2, 4, 8, 10, 10, 10, 10]);
        assert_eq!(delays(secs(20)), [1, 2, 4, 8, 16, 30, 30, 30]);
    }

    #[test]
    fn a_refusal_after_an_outage_starts_its_own_backoff() {
        let mut failures = Failures::default();
        let mut delay = |error| failures.next_delay(&error, Duration::ZERO, 1.0).as_secs();
        let [outage, refusal] = [503, 403].map(|code| move || status(code, None));
        assert_eq!([outage(), outage(), outage()].map(&mut delay), [1, 2, 4]);
        assert_eq!([refusal(), refusal()].map(&mut delay), [30, 60]);
        assert_eq!([outage(), refusal()].map(&mut delay), [1, 30]);
        assert_eq!(failures.in_a_row(), 7);
    }

    /// C-42, C-45: `Retry-After` can make the backoff after a refusal longer, not shorter.
    #[test]
    fn a_refusal_is_not_tried_again_earlier_because_the_server_says_so() {
        let delays = |asked| delays(&status(401, Some(secs(asked))), Duration::ZERO);
        assert_eq!(delays(1), [30, 60, 120, 240, 300, 300, 300, 300]);
        assert_eq!(delays(100), [100, 100, 120, 240, 300, 300, 300, 300]);
    }
}
