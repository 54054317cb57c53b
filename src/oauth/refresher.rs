//! The one writer of a token: fetches it at start, renews it early, backs off after failures, and keeps the old one
//! until its own end.
//!
//! # A fleet of them
//!
//! Nothing is asked of a fleet but that each sidecar looks after itself: renewals are spread by jitter, and so are retries.
//! Ten thousand sidecars that are started at one moment, with tokens of an hour, in an hour and a quarter of paused time
//! (`fleet_tests.rs`, seed 1):
//!
//! | what the authorization server does | peak, requests/s | total | all served after | without a token in between |
//! |---|---|---|---|---|
//! | it answers all | 10,000, at the start | 20,000 | 0 s | 0 |
//! | it is away for the first half minute | 22,661, in the first second | 111,599 | 40 s | 0 |
//! | it answers 500 a second, and 503 beyond | 20,829, in the first second | 61,667 | 25 s | 0 |
//! | it is away for five minutes as all renew | 10,000, at the start | 107,686 | 0 s | 0 |
//!
//! A sidecar without a token tries again within a second of its first failure, because requests wait; that makes the peak.
//! From the fifth failure on it is one attempt in 5 s on average, and in 30 s while a token is held. The same file sends one
//! sidecar through two hours of bad days, for a thousand seeds: no token is used after its end, no request waits longer than
//! it may or in vain, and no two token requests are closer than 100 ms.

mod attempt;
mod waiting;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use super::access_token::{AccessToken, Grant, LifetimePolicy, Moment, SKEW_WORTH_TELLING};
use super::attempts::Attempts;
use super::failures::Failures;
use super::rejection::Rejections;
use super::rotation::Rotation;
use super::standing::Standing;
use super::token_cache::{Exchange, TokenCache, TokenHandle, TokenKey};
use super::token_endpoint::TokenEndpoint;
use super::token_error::TokenError;
use crate::metrics::{TokenMetrics, Trigger, unix_seconds};
use crate::trace::Tracer;
use waiting::Next;

/// Two attempts on demand are at least this far apart.
const DEMAND_INTERVAL: Duration = Duration::from_secs(1);
/// The shortest wait for another try when the server gave the token again that it gave before.
const SAME_TOKEN_INTERVAL: Duration = Duration::from_secs(30);

/// How one credential is used over time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RefreshPolicy {
    pub lifetime: LifetimePolicy,
    /// How long a request waits for a token.
    pub wait_timeout: Duration,
    /// How many requests wait at a time.
    pub max_waiting: usize,
    /// Whether a token is renewed though no request has used it.
    pub renew_unused: bool,
    /// Whether the last token is revoked (RFC 7009) at the end of the process.
    pub revoke_at_end: bool,
}

/// What a refresher is told from outside.
#[derive(Clone, Debug)]
pub struct Signals {
    /// Changes when files may have changed.
    pub files: watch::Receiver<()>,
    /// Told when a refresher ends that nobody asked to: a defect, and half a sidecar is worse than none.
    pub ended: mpsc::Sender<()>,
}

/// Renews the tokens of one key for as long as anybody holds a handle.
pub struct Refresher {
    key: Arc<TokenKey>,
    endpoint: TokenEndpoint,
    policy: RefreshPolicy,
    cache: TokenCache,
    exchange: Arc<Exchange>,
    standing: watch::Sender<Standing>,
    generation: u64,
    failures: Failures,
    rotation: Rotation,
    is_skewed: bool,
    missing_scope: Option<String>,
    tracer: Tracer,
}

impl Refresher {
    /// Starts the task on the present runtime, with its first attempt at once, and returns the handle for requests.
    pub fn spawn(
        key: TokenKey,
        endpoint: TokenEndpoint,
        policy: RefreshPolicy,
        cache: TokenCache,
        metrics: TokenMetrics,
        signals: Signals,
        tracer: Tracer,
    ) -> TokenHandle {
        let key = Arc::new(key);
        let (standing, receiver) = watch::channel(Standing::New);
        let exchange = Arc::new(Exchange {
            demand: Notify::new(),
            rejection: Notify::new(),
            renewal: Notify::new(),
            farewell: Notify::new(),
            rejections: Rejections::default(),
            attempts: Attempts::default(),
            has_come: AtomicBool::new(false),
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
            rotation: Rotation::default(),
            is_skewed: false,
            missing_scope: None,
            tracer,
        };
        tokio::spawn(async move {
            let unasked = TellTheEnd(signals.ended);
            refresher.run(signals.files).await;
            std::mem::forget(unasked);
        });
        handle
    }

    async fn run(mut self, mut files: watch::Receiver<()>) {
        let mut trigger = Trigger::Startup;
        loop {
            let started = Moment::now();
            let (abandoned, exchange) = (self.standing.clone(), self.exchange.clone());
            let result = tokio::select! {
                result = self.attempt(trigger) => result,
                () = abandoned.closed() => return self.end().await,
                () = exchange.farewell.notified() => return self.give_back().await,
            };
            self.exchange.attempts.record(trigger, started, &result);
            let standing = match result {
                Ok(grant) => self.hold(grant, started, trigger).await,
                Err(error) => self.fail(error).await,
            };
            self.publish(standing);
            trigger = loop {
                match self.next(started.monotonic, &mut files).await {
                    Next::Attempt(trigger) => break trigger,
                    Next::Rest => self.publish(Standing::Unused),
                    Next::Abandoned => return self.end().await,
                    Next::Farewell => return self.give_back().await,
                }
            };
        }
    }

    async fn hold(&mut self, grant: Grant, requested: Moment, trigger: Trigger) -> Standing {
        let took = requested.monotonic.elapsed();
        self.failures = Failures::default();
        self.compare_clocks(&grant, took);
        self.compare_scope(&grant);
        let before = self.cache.get(&self.key).await;
        let same = before
            .as_ref()
            .is_some_and(|token| token.is_same_as(&grant));
        self.generation += 1;
        // The first one is told by the last of the lines that a start prints.
        if self.generation > 1 {
            info!(
                token = self.key.label,
                fingerprint = %grant.fingerprint,
                lifetime_s = grant.lifetime.map(|lifetime| lifetime.as_secs_f64()),
                scope = grant.scope.as_deref(),
                took_ms = took.as_millis(),
                "token renewed"
            );
        }
        let token = AccessToken::new(
            grant,
            self.generation,
            requested,
            &self.policy.lifetime,
            fastrand::f64(),
        )
        .replacing(trigger == Trigger::Upstream401)
        .succeeding(before, Moment::now());
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
        self.exchange.has_come.store(true, Ordering::Relaxed);
        Standing::Holding {
            took,
            next,
            refused: self.rotation.refusal().cloned(),
        }
    }

    fn compare_clocks(&mut self, grant: &Grant, took: Duration) {
        let Some(skew) = grant.clock_skew(took) else {
            return;
        };
        self.exchange.metrics.set_clock_skew(skew);
        let is_skewed = skew.abs() > SKEW_WORTH_TELLING;
        if is_skewed && !self.is_skewed {
            warn!(
                token = self.key.label,
                skew_s = skew.round(),
                "the clock of the authorization server is not ours; assertions and tokens may be refused for it"
            );
        }
        self.is_skewed = is_skewed;
    }

    /// C-38: told when it changes, counted each time.
    fn compare_scope(&mut self, grant: &Grant) {
        if let Some(missing) = &grant.missing_scope {
            self.exchange.metrics.scope_downgraded();
            if self.missing_scope != grant.missing_scope {
                warn!(
                    token = self.key.label,
                    missing, "the token has less scope than was asked for"
                );
            }
        }
        self.missing_scope.clone_from(&grant.missing_scope);
    }

    async fn fail(&mut self, error: TokenError) -> Standing {
        let held = self.put_back().await;
        let usable_for = held.map_or(Duration::ZERO, |token| token.usable_for(Moment::now()));
        let mut delay = self
            .failures
            .next_delay(&error, usable_for, fastrand::f64());
        if error.refuses_credentials() && self.rotation.forget_proven() {
            delay = DEMAND_INTERVAL;
        }
        warn!(
            token = self.key.label,
            %error,
            hint = error.hint(),
            attempt = self.failures.in_a_row(),
            retry_s = delay.as_secs_f64(),
            usable_for_s = usable_for.as_secs(),
            "no token"
        );
        Standing::Failing {
            error: Arc::new(error),
            failures: self.failures.in_a_row(),
            retry_at: Instant::now() + delay,
        }
    }

    /// The token held, usable again if it was set aside for a renewal that did not come: it is the best there is.
    async fn put_back(&self) -> Option<Arc<AccessToken>> {
        let held = self.cache.get(&self.key).await;
        if let Some(token) = &held {
            token.put_back();
        }
        held
    }

    fn publish(&self, standing: Standing) {
        let metrics = &self.exchange.metrics;
        metrics.set_consecutive_failures(self.failures.in_a_row());
        metrics.set_next_refresh(standing.next_attempt().map_or(0.0, |next| {
            unix_seconds(SystemTime::now() + next.saturating_duration_since(Instant::now()))
        }));
        self.standing.send_replace(standing);
    }

    /// At the end of the process: revokes the token, where that is configured.
    async fn give_back(self) {
        if self.policy.revoke_at_end
            && let Some(token) = self.cache.get(&self.key).await
            && token.is_usable(Moment::now())
            && let Some(credentials) = self.rotation.proven()
        {
            let revocation = self
                .endpoint
                .revoke(credentials, &token, REVOCATION_TIMEOUT);
            match revocation.await {
                Ok(()) => info!(token = self.key.label, "token revoked"),
                Err(error) => warn!(token = self.key.label, %error, "token not revoked"),
            }
        }
        self.end().await;
    }

    /// Leaves nothing behind. A token that a reload made superfluous is not revoked: a server that gives the same one to
    /// all who ask has given it to the next refresher too.
    async fn end(self) {
        self.cache.remove(&self.key).await;
        self.exchange.metrics.set_available(false);
        self.standing.send_replace(Standing::Ended);
    }
}

/// How long the end of the process may be held up by a revocation request.
pub const REVOCATION_TIMEOUT: Duration = Duration::from_secs(2);

/// Dropped when a task ends that did not forget it.
struct TellTheEnd(mpsc::Sender<()>);

impl Drop for TellTheEnd {
    fn drop(&mut self) {
        // A full channel has been told already.
        let _ = self.0.try_send(());
    }
}

#[cfg(test)]
#[path = "refresher_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "fleet_tests.rs"]
mod fleet_tests;
