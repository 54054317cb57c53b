//! What a refresher waits for between two attempts.

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::{DEMAND_INTERVAL, Refresher};
use crate::metrics::Trigger;
use crate::oauth::access_token::Moment;
use crate::oauth::rotation::credentials_changed;
use crate::oauth::standing::Standing;

/// Why a refresher acts.
pub(super) enum Next {
    Attempt(Trigger),
    /// The token is left to its end; so is the refresher, until somebody wants one.
    Rest,
    /// Nobody holds a handle any more.
    Abandoned,
    /// The process ends.
    Farewell,
}

impl Refresher {
    /// Waits for the next reason to act; the last attempt began at `last`.
    pub(super) async fn next(&self, last: Instant, files: &mut watch::Receiver<()>) -> Next {
        let standing = self.standing.borrow().clone();
        let work = async {
            match standing {
                Standing::Failing { retry_at, .. } => {
                    self.back_off(retry_at, files).await;
                    Next::Attempt(Trigger::Scheduled)
                }
                Standing::Unused => {
                    self.exchange.demand.notified().await;
                    Next::Attempt(Trigger::OnDemand)
                }
                Standing::New | Standing::Ended | Standing::Holding { next: None, .. } => {
                    Next::Attempt(self.demanded(last).await)
                }
                Standing::Holding {
                    next: Some(next), ..
                } => self.renewal(last, next, files).await,
            }
        };
        let wish = async {
            self.exchange.renewal.notified().await;
            sleep_until(last + DEMAND_INTERVAL).await;
            Next::Attempt(Trigger::Manual)
        };
        tokio::select! {
            next = work => next,
            next = wish => next,
            () = self.standing.closed() => Next::Abandoned,
            () = self.exchange.farewell.notified() => Next::Farewell,
        }
    }

    async fn renewal(&self, last: Instant, next: Instant, files: &mut watch::Receiver<()>) -> Next {
        tokio::select! {
            () = sleep_until(next) => {
                let held = self.cache.get(&self.key).await;
                if self.policy.renew_unused || held.is_none_or(|token| token.was_used()) {
                    Next::Attempt(Trigger::Scheduled)
                } else {
                    Next::Rest
                }
            }
            trigger = self.demanded(last) => Next::Attempt(trigger),
            () = credentials_changed(&self.endpoint, &self.rotation, files) => {
                sleep_until(last + DEMAND_INTERVAL).await;
                Next::Attempt(Trigger::Reload)
            }
        }
    }

    /// Resolves at `retry_at`, or earlier when id or secret have changed since the last attempt.
    async fn back_off(&self, retry_at: Instant, files: &mut watch::Receiver<()>) {
        loop {
            tokio::select! {
                () = sleep_until(retry_at) => return,
                // On another thread, a token can be set aside just before the failure is published.
                () = self.exchange.rejection.notified() => { self.put_back().await; }
                () = credentials_changed(&self.endpoint, &self.rotation, files) => {
                    info!(token = self.key.label, "client credentials changed, trying them now");
                    return;
                }
            }
        }
    }

    async fn demanded(&self, last: Instant) -> Trigger {
        loop {
            let trigger = tokio::select! {
                biased;
                () = self.exchange.rejection.notified() => Trigger::Upstream401,
                () = self.exchange.demand.notified() => Trigger::OnDemand,
            };
            // Either can be older than the token that answered it.
            let held = self.cache.get(&self.key).await;
            if held.is_none_or(|token| !token.is_usable(Moment::now())) {
                sleep_until(last + DEMAND_INTERVAL).await;
                return trigger;
            }
        }
    }
}
