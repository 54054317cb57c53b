//! The one writer of a token: fetches it at start, renews it early, backs off after failures, and keeps the old one
//! until its own end.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::access_token::{AccessToken, Grant, LifetimePolicy, Moment};
use super::client_auth::Credentials;
use super::token_cache::{Exchange, TokenCache, TokenHandle, TokenKey};
use super::token_endpoint::TokenEndpoint;
use super::token_error::TokenError;
use crate::backoff::Backoff;
use crate::metrics::{FetchOutcome, TokenMetrics, Trigger};

/// After a failure that may pass, while a usable token is held.
const TRANSIENT: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// After a failure that may pass, while none is held.
const TRANSIENT_EMPTY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
/// After a refusal. Not jittered: its causes do not strike a whole fleet at one moment.
const PERMANENT: Backoff = Backoff::new(Duration::from_secs(30), Duration::from_secs(300));
/// Two attempts on demand are at least this far apart.
const DEMAND_INTERVAL: Duration = Duration::from_secs(1);
/// The shortest wait for another try when the server gave the token again that it gave before.
const SAME_TOKEN_INTERVAL: Duration = Duration::from_secs(30);
/// While backing off, id and secret are read so often; a change ends the backoff.
const CREDENTIALS_POLL: Duration = Duration::from_secs(1);

/// How one credential is used over time.
#[derive(Clone, Copy, Debug)]
pub struct RefreshPolicy {
    pub lifetime: LifetimePolicy,
    /// How long a request waits for a token.
    pub wait_timeout: Duration,
    /// How many requests wait at a time.
    pub max_waiting: usize,
}

/// How things stand after the last attempt. Published after every one.
#[derive(Clone, Debug, Default)]
pub enum Standing {
    /// There has been no attempt yet.
    #[default]
    New,
    /// The last attempt brought a token.
    Holding {
        /// How long the attempt took.
        took: Duration,
        /// When the next one is; none for a token that is only renewed on demand.
        next: Option<Instant>,
    },
    /// The last attempts failed.
    Failing {
        /// Why the last one did.
        error: Arc<TokenError>,
        /// How many did, since the last success.
        failures: u32,
        /// When the next one is.
        retry_at: Instant,
    },
}

impl Standing {
    /// When the next attempt is, if the last one failed.
    pub fn retry_at(&self) -> Option<Instant> {
        match self {
            Self::New | Self::Holding { .. } => None,
            Self::Failing { retry_at, .. } => Some(*retry_at),
        }
    }

    /// Why the last attempt failed.
    pub fn error(&self) -> Option<&TokenError> {
        match self {
            Self::New | Self::Holding { .. } => None,
            Self::Failing { error, .. } => Some(error),
        }
    }
}

/// Renews the tokens of one key for as long as its task runs.
pub struct Refresher {
    key: Arc<TokenKey>,
    endpoint: TokenEndpoint,
    policy: RefreshPolicy,
    cache: TokenCache,
    exchange: Arc<Exchange>,
    standing: watch::Sender<Standing>,
    generation: u64,
    failures: Failures,
    /// What the last attempt was made with; none if it could not be read.
    credentials: Option<Credentials>,
}

impl Refresher {
    /// Starts the task on the present runtime, with its first attempt at once, and returns the handle for requests.
    pub fn spawn(
        key: TokenKey,
        endpoint: TokenEndpoint,
        policy: RefreshPolicy,
        cache: TokenCache,
        metrics: TokenMetrics,
    ) -> TokenHandle {
        let key = Arc::new(key);
        let (standing, receiver) = watch::channel(Standing::New);
        let exchange = Arc::new(Exchange {
            demand: tokio::sync::Notify::new(),
            rejection: tokio::sync::Notify::new(),
            limit: RenewalLimit::default(),
            metrics,
        });
        let handle = TokenHandle::new(
            key.clone(),
            cache.clone(),
            exchange.clone(),
            receiver,
            policy.max_waiting,
            policy.wait_timeout,
        );
        let refresher = Self {
            key,
            endpoint,
            policy,
            cache,
            exchange,
            standing,
            generation: 0,
            failures: Failures::default(),
            credentials: None,
        };
        tokio::spawn(refresher.run());
        handle
    }

    async fn run(mut self) {
        let mut trigger = Trigger::Startup;
        loop {
            let started = Moment::now();
            let result = self.attempt().await;
            let took = started.monotonic.elapsed();
            let outcome = match &result {
                Ok(_) => FetchOutcome::Success,
                Err(error) => error.outcome(),
            };
            self.exchange.metrics.requested(trigger, outcome, took);
            let standing = match result {
                Ok(grant) => self.hold(grant, started, took).await,
                Err(error) => self.fail(error).await,
            };
            self.publish(standing);
            trigger = self.next_trigger(started.monotonic).await;
        }
    }

    async fn attempt(&mut self) -> Result<Grant, TokenError> {
        let tried = self.credentials.take();
        let credentials = self.endpoint.credentials()?.swap_remove(0);
        if tried.is_some_and(|tried| !tried.is_same_as(&credentials)) {
            // What was learnt of the old ones says nothing of these.
            self.failures.of_class = 0;
        }
        let credentials = self.credentials.insert(credentials);
        self.endpoint.fetch(credentials).await
    }

    async fn hold(&mut self, grant: Grant, requested: Moment, took: Duration) -> Standing {
        self.failures = Failures::default();
        let before = self.cache.get(&self.key).await;
        let same = before.is_some_and(|token| token.is_same_as(&grant));
        self.generation += 1;
        // The first one is told by the last of the lines that a start prints.
        if self.generation > 1 {
            info!(
                token = %self.key.credential,
                fingerprint = %grant.fingerprint,
                lifetime_s = grant.lifetime.map(|lifetime| lifetime.as_secs_f64()),
                scope = grant.scope.as_deref(),
                took_ms = took.as_millis(),
                "token renewed"
            );
        }
        let jitter = fastrand::f64();
        let token = AccessToken::new(
            grant,
            self.generation,
            requested,
            &self.policy.lifetime,
            jitter,
        );
        let now = Instant::now();
        let mut next = token.renew_at().max(now + DEMAND_INTERVAL);
        if same {
            self.exchange.metrics.received_same();
            let left = token.expires_at().monotonic.saturating_duration_since(now);
            next = now + SAME_TOKEN_INTERVAL.max(left / 2);
        }
        let next = (!token.is_single_use()).then_some(next);
        self.exchange.metrics.received(
            unix_seconds(SystemTime::now()),
            unix_seconds(token.expires_at().wall),
        );
        self.cache.insert(self.key.clone(), Arc::new(token)).await;
        Standing::Holding { took, next }
    }

    async fn fail(&mut self, error: TokenError) -> Standing {
        let held = self.put_back().await;
        let usable_for = held.map_or(Duration::ZERO, |token| token.usable_for(Moment::now()));
        let delay = self
            .failures
            .next_delay(&error, usable_for, fastrand::f64());
        warn!(
            token = %self.key.credential,
            %error,
            hint = error.hint(),
            attempt = self.failures.in_a_row,
            retry_s = delay.as_secs_f64(),
            usable_for_s = usable_for.as_secs(),
            "no token"
        );
        Standing::Failing {
            error: Arc::new(error),
            failures: self.failures.in_a_row,
            retry_at: Instant::now() + delay,
        }
    }

    /// The token held, usable again if it was set aside for a renewal that did not come: it is the best there is.
    async fn put_back(&self) -> Option<Arc<AccessToken>> {
        let held = self.cache.get(&self.key).await;
        if let Some(token) = &held {
            token.set_aside(false);
        }
        held
    }

    fn publish(&self, standing: Standing) {
        let metrics = &self.exchange.metrics;
        metrics.set_consecutive_failures(self.failures.in_a_row);
        let next = match &standing {
            Standing::New => None,
            Standing::Holding { next, .. } => *next,
            Standing::Failing { retry_at, .. } => Some(*retry_at),
        };
        metrics.set_next_refresh(next.map_or(0.0, |next| {
            unix_seconds(SystemTime::now() + next.saturating_duration_since(Instant::now()))
        }));
        self.standing.send_replace(standing);
    }

    /// Waits for the next reason to ask for a token; the last attempt began at `last`.
    async fn next_trigger(&self, last: Instant) -> Trigger {
        let standing = self.standing.borrow().clone();
        match standing {
            Standing::Failing { retry_at, .. } => {
                self.back_off(retry_at).await;
                Trigger::Scheduled
            }
            Standing::New | Standing::Holding { next: None, .. } => self.demanded(last).await,
            Standing::Holding {
                next: Some(next), ..
            } => tokio::select! {
                () = sleep_until(next) => Trigger::Scheduled,
                trigger = self.demanded(last) => trigger,
            },
        }
    }

    /// Resolves at `retry_at`, or earlier when id or secret have changed since the last attempt.
    async fn back_off(&self, retry_at: Instant) {
        loop {
            let wake = retry_at.min(Instant::now() + CREDENTIALS_POLL);
            tokio::select! {
                () = sleep_until(wake) => {}
                // On another thread, a token can be set aside just before the failure is published.
                () = self.exchange.rejection.notified() => {
                    self.put_back().await;
                    continue;
                }
            }
            if wake >= retry_at {
                return;
            }
            let changed = match (self.endpoint.credentials(), &self.credentials) {
                (Ok(present), Some(tried)) => !present[0].is_same_as(tried),
                (Ok(_), None) => true,
                (Err(_), _) => false,
            };
            if changed {
                info!(token = %self.key.credential, "client credentials changed, trying them now");
                return;
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

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

/// The failures since the last success.
#[derive(Debug, Default)]
struct Failures {
    in_a_row: u32,
    /// Of the class of the last one: a refusal after an outage starts its own backoff.
    of_class: u32,
    permanent: bool,
}

impl Failures {
    /// Counts `error` and says how long to wait, when the token held is usable for `usable_for` more. `jitter` is
    /// drawn evenly from 0.0 to 1.0.
    fn next_delay(&mut self, error: &TokenError, usable_for: Duration, jitter: f64) -> Duration {
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

/// Bounds how often 401s of the upstream may cause a renewal: once in 10 s and 30 times an hour.
#[derive(Default)]
pub(super) struct RenewalLimit(Mutex<VecDeque<Instant>>);

impl RenewalLimit {
    const INTERVAL: Duration = Duration::from_secs(10);
    const WINDOW: Duration = Duration::from_secs(3600);
    const PER_WINDOW: usize = 30;

    /// Whether one more is allowed at `now`; if so, it is counted.
    pub(super) fn allows(&self, now: Instant) -> bool {
        let mut granted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
#[path = "refresher_tests.rs"]
mod tests;
