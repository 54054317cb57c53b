//! Where tokens stand: one moka cache by key, and the handle through which requests read it.
//!
//! moka's `try_get_with` would make waiting requests fetch, and insert what they fetched: a second writer, and one
//! that a client can cancel by going away. Here the refresher of the key alone fetches and inserts; a request that
//! finds nothing usable asks it to, and waits for what it publishes. Any number of them wait for the one attempt.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use moka::Expiry;
use moka::future::Cache;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::access_token::{AccessToken, Moment};
use super::attempts::{Attempt, Attempts};
use super::refresher::REVOCATION_TIMEOUT;
use super::rejection::{Judgement, Rejections};
use super::standing::Standing;
use crate::metrics::{LookupResult, TokenMetrics};

/// Every field that shapes a token; a key that lacks one would serve a wrong token.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TokenKey {
    /// What logs, metrics and probes call its token.
    pub label: String,
    /// The name of the credential.
    pub credential: String,
    /// The number of its refresher, which stands for client and authorization server as they were configured then.
    pub edition: u64,
    pub scope: Option<String>,
    pub audience: Vec<String>,
    pub resource: Vec<String>,
    pub extra_params: Vec<(String, String)>,
}

/// Every request looks a token up, and no two keys of a process are of one edition: the texts need not be hashed for it.
impl Hash for TokenKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.edition.hash(state);
    }
}

/// The tokens of all keys. Clones share them.
#[derive(Clone)]
pub struct TokenCache(Cache<Arc<TokenKey>, Arc<AccessToken>>);

/// Far above the number of keys, which the configuration fixes: nothing is ever evicted for its size.
const MAX_TOKENS: u64 = 10_000;

impl TokenCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self(
            Cache::builder()
                .max_capacity(MAX_TOKENS)
                .expire_after(AtItsEnd)
                .build(),
        )
    }

    pub(super) async fn get(&self, key: &Arc<TokenKey>) -> Option<Arc<AccessToken>> {
        self.0.get(key).await
    }

    pub(super) async fn insert(&self, key: Arc<TokenKey>, token: Arc<AccessToken>) {
        self.0.insert(key, token).await;
    }

    pub(super) async fn remove(&self, key: &Arc<TokenKey>) {
        self.0.invalidate(key).await;
    }
}

impl Default for TokenCache {
    fn default() -> Self {
        Self::new()
    }
}

/// moka counts with its own clock, which stands still in suspend; so this is only the broom, and every read still asks
/// the token itself.
struct AtItsEnd;

#[expect(clippy::disallowed_types, reason = "moka's interface")]
impl Expiry<Arc<TokenKey>, Arc<AccessToken>> for AtItsEnd {
    fn expire_after_create(
        &self,
        _: &Arc<TokenKey>,
        token: &Arc<AccessToken>,
        _: std::time::Instant,
    ) -> Option<Duration> {
        Some(
            token
                .expires_at()
                .monotonic
                .saturating_duration_since(Instant::now()),
        )
    }

    /// moka's default keeps the duration of the replaced entry, so a renewed token would end with its predecessor.
    fn expire_after_update(
        &self,
        key: &Arc<TokenKey>,
        token: &Arc<AccessToken>,
        now: std::time::Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.expire_after_create(key, token, now)
    }
}

/// What a refresher and the handles of its key share.
pub(super) struct Exchange {
    /// A request found nothing usable.
    pub(super) demand: Notify,
    /// The upstream did not accept a token.
    pub(super) rejection: Notify,
    /// An operator wants another one.
    pub(super) renewal: Notify,
    /// The process ends.
    pub(super) farewell: Notify,
    pub(super) rejections: Rejections,
    pub(super) attempts: Attempts,
    /// Whether there ever was a token.
    pub(super) has_come: AtomicBool,
    pub(super) metrics: TokenMetrics,
}

/// Yields usable tokens of one key. Clones share everything.
#[derive(Clone)]
pub struct TokenHandle {
    key: Arc<TokenKey>,
    cache: TokenCache,
    exchange: Arc<Exchange>,
    standing: watch::Receiver<Standing>,
    waiting: Arc<Semaphore>,
    wait_timeout: Duration,
}

impl TokenHandle {
    pub(super) fn new(
        key: Arc<TokenKey>,
        cache: TokenCache,
        exchange: Arc<Exchange>,
        standing: watch::Receiver<Standing>,
        max_waiting: usize,
        wait_timeout: Duration,
    ) -> Self {
        Self {
            key,
            cache,
            exchange,
            standing,
            waiting: Arc::new(Semaphore::new(max_waiting)),
            wait_timeout,
        }
    }

    /// What logs, metrics and probes call the token.
    pub fn name(&self) -> &str {
        &self.key.label
    }

    /// A usable token: from the cache, or after a wait of at most `wait_timeout`, with at most `max_waiting` others.
    ///
    /// # Errors
    /// When there is none in time, or when it is known that there will be none in time.
    pub async fn token(&self) -> Result<Arc<AccessToken>, Unavailable> {
        let now = Moment::now();
        if let Some(token) = self.take(now).await {
            let result = if now.monotonic < token.renew_at() {
                LookupResult::Fresh
            } else {
                self.wake_at_rest();
                LookupResult::Refreshing
            };
            self.exchange.metrics.looked_up(result);
            return Ok(token);
        }
        let result = self.wait(now.monotonic + self.wait_timeout).await;
        self.exchange.metrics.looked_up(match &result {
            Ok(_) => LookupResult::Waited,
            Err(_) => LookupResult::Missing,
        });
        result
    }

    async fn take(&self, now: Moment) -> Option<Arc<AccessToken>> {
        let token = self.cache.get(&self.key).await?;
        let token = token.stand_in(now).unwrap_or(token);
        token.take(now).then_some(token)
    }

    /// A token that nobody used was not renewed when it was due; now somebody does.
    fn wake_at_rest(&self) {
        if matches!(*self.standing.borrow(), Standing::Unused) {
            self.exchange.demand.notify_one();
        }
    }

    async fn wait(&self, deadline: Instant) -> Result<Arc<AccessToken>, Unavailable> {
        let mut standing = self.standing.clone();
        let Ok(_permit) = self.waiting.try_acquire() else {
            return Err(Unavailable::new(&standing.borrow()));
        };
        loop {
            // Seen before the cache is read: what is published after this read wakes us.
            let seen = standing.borrow_and_update().clone();
            if let Some(token) = self.take(Moment::now()).await {
                return Ok(token);
            }
            if seen.retry_at().is_some_and(|retry_at| retry_at >= deadline) {
                return Err(Unavailable::new(&seen));
            }
            self.exchange.demand.notify_one();
            match timeout_at(deadline, standing.changed()).await {
                Ok(Ok(())) => {}
                // The deadline, or the refresher is gone because the process ends.
                Err(_) | Ok(Err(_)) => return Err(Unavailable::new(&seen)),
            }
        }
    }

    /// The upstream did not accept `token`: what can be done about it. It is set aside and renewed once, however many
    /// requests say so, unless there were too many such renewals, or it is too young to be refused for its age.
    pub async fn reject(&self, token: &AccessToken) -> Rejection {
        let now = Moment::now();
        let Some(held) = self.cache.get(&self.key).await else {
            return Rejection::Renewed;
        };
        if held.generation() != token.generation() {
            // It was replaced meanwhile, or it is one that stood in for the present one.
            held.stand_forth();
            return Rejection::Renewed;
        }
        if !held.is_usable(now) {
            return Rejection::Renewed;
        }
        // While the refresher backs off, a token set aside would not come back: the 401s pass.
        if self.standing.borrow().error().is_some() {
            return Rejection::Limited;
        }
        match self
            .exchange
            .rejections
            .judge(held.is_refused_fresh(now), now.monotonic)
        {
            Judgement::Renew => {
                held.set_aside();
                self.exchange.rejection.notify_one();
                Rejection::Renewed
            }
            Judgement::Limited => Rejection::Limited,
            Judgement::Open => Rejection::BreakerOpen,
            Judgement::Opened(until) => match held.take_previous(now) {
                Some(token) => Rejection::Previous(StandIn { token, held, until }),
                None => Rejection::BreakerOpen,
            },
        }
    }

    /// Renews it now, usable or not, whatever the backoff says; at most once a second. The old one serves until then.
    pub fn renew(&self) {
        self.exchange.renewal.notify_one();
    }

    /// Whether renewals after a 401 are suspended, because fresh tokens are not accepted.
    pub fn breaker_is_open(&self) -> bool {
        self.exchange.rejections.is_open(Instant::now())
    }

    /// Ends it, with a revocation where that is configured, within 2 s. For the end of the process: other handles of the
    /// key are worth nothing then.
    pub async fn end(&self) {
        let mut standing = self.standing.clone();
        self.exchange.farewell.notify_one();
        let ended = standing.wait_for(|standing| matches!(standing, Standing::Ended));
        let _ = timeout(REVOCATION_TIMEOUT, ended).await;
    }

    /// The token held, if it is usable. Takes nothing from a token of single use.
    pub async fn held(&self) -> Option<Arc<AccessToken>> {
        let now = Moment::now();
        self.cache
            .get(&self.key)
            .await
            .filter(|token| token.is_usable(now))
    }

    /// Whether there ever was a token.
    pub fn has_come(&self) -> bool {
        self.exchange.has_come.load(Ordering::Relaxed)
    }

    /// The last attempts, the latest first.
    pub fn attempts(&self) -> Vec<Attempt> {
        self.exchange.attempts.latest()
    }

    /// How the last attempt ended, and when the next one is.
    pub fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// Resolves when there has been an attempt since the last call; `false` if there will be none any more.
    pub async fn changed(&mut self) -> bool {
        self.standing.changed().await.is_ok()
    }

    /// Brings the gauge of availability up to date; the end of a token is no event that would do it.
    pub async fn refresh_metrics(&self) {
        let metrics = &self.exchange.metrics;
        metrics.set_available(self.held().await.is_some());
        metrics.set_breaker_open(self.breaker_is_open());
    }
}

/// What can be done about a token that the upstream did not accept.
pub enum Rejection {
    /// Another one is there, or asked for: [`TokenHandle::token`] yields it.
    Renewed,
    /// The token is fresh, and the one before it is good by time: the upstream may not know the fresh one yet.
    Previous(StandIn),
    /// There were too many renewals for this reason.
    Limited,
    /// Fresh tokens are not accepted; asking for more of them would change nothing.
    BreakerOpen,
}

/// The token before one that is not accepted, to be tried once.
pub struct StandIn {
    token: Arc<AccessToken>,
    held: Arc<AccessToken>,
    until: Instant,
}

impl StandIn {
    /// The token to try.
    pub fn token(&self) -> &Arc<AccessToken> {
        &self.token
    }

    /// The upstream accepts it: it is used until the fresh one is due for another try.
    pub fn is_accepted(self) {
        self.held.stand_back(self.token, self.until);
    }
}

/// No usable token, and none in time.
#[derive(Clone, Debug, thiserror::Error)]
#[error("no usable token: {reason}")]
pub struct Unavailable {
    /// When to try again: 1 s or more.
    pub retry_after: Duration,
    /// Whether our configuration is at fault rather than the authorization server's condition.
    pub permanent: bool,
    reason: String,
}

impl Unavailable {
    fn new(standing: &Standing) -> Self {
        let retry_after = standing
            .retry_at()
            .map(|at| at.saturating_duration_since(Instant::now()))
            .unwrap_or_default();
        Self {
            retry_after: retry_after.max(Duration::from_secs(1)),
            permanent: standing.error().is_some_and(|error| error.is_permanent()),
            reason: match standing.error() {
                Some(error) => error.to_string(),
                None => "no answer from the authorization server yet".to_owned(),
            },
        }
    }
}

#[cfg(test)]
#[path = "token_cache_tests.rs"]
mod tests;
