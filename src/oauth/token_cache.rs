//! Where tokens stand: one moka cache by key, and the handle through which requests read it.
//!
//! moka's `try_get_with` would make waiting requests fetch, and insert what they fetched: a second writer, and one
//! that a client can cancel by going away. Here the refresher of the key alone fetches and inserts; a request that
//! finds nothing usable asks it to, and waits for what it publishes. Any number of them wait for the one attempt.

use std::sync::Arc;
use std::time::Duration;

use moka::Expiry;
use moka::future::Cache;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, timeout_at};

use super::access_token::{AccessToken, Moment};
use super::refresher::{RenewalLimit, Standing};
use crate::metrics::{LookupResult, TokenMetrics, UnauthorizedAction};

/// Every field that shapes a token; a key that lacks one would serve a wrong token.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct TokenKey {
    /// The name of the credential, which stands for client and authorization server.
    pub credential: String,
    pub scope: Option<String>,
    pub audience: Vec<String>,
    pub resource: Vec<String>,
    pub extra_params: Vec<(String, String)>,
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
    pub(super) limit: RenewalLimit,
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

    /// The name of the credential.
    pub fn name(&self) -> &str {
        &self.key.credential
    }

    /// A usable token: from the cache, or after a wait of at most `wait_timeout`, with at most `max_waiting` others.
    ///
    /// # Errors
    /// When there is none in time, or when it is known that there will be none in time.
    pub async fn token(&self) -> Result<Arc<AccessToken>, Unavailable> {
        let now = Moment::now();
        if let Some(token) = self.take(now).await {
            self.exchange
                .metrics
                .looked_up(if now.monotonic < token.renew_at() {
                    LookupResult::Fresh
                } else {
                    LookupResult::Refreshing
                });
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
        self.cache
            .get(&self.key)
            .await
            .filter(|token| token.take(now))
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

    /// The upstream did not accept `token`. It is set aside and renewed once, unless it was replaced already or there
    /// were too many such renewals.
    pub async fn reject(&self, token: &AccessToken) -> UnauthorizedAction {
        let Some(held) = self.cache.get(&self.key).await else {
            return UnauthorizedAction::Pass;
        };
        if held.generation() != token.generation() || !held.is_usable(Moment::now()) {
            return UnauthorizedAction::Pass;
        }
        // While the refresher backs off, a token set aside would not come back: the 401s pass.
        let backing_off = self.standing.borrow().error().is_some();
        if backing_off || !self.exchange.limit.allows(Instant::now()) {
            return UnauthorizedAction::Limit;
        }
        held.set_aside(true);
        self.exchange.rejection.notify_one();
        UnauthorizedAction::Renew
    }

    /// The token held, if it is usable. Takes nothing from a token of single use.
    pub async fn held(&self) -> Option<Arc<AccessToken>> {
        let now = Moment::now();
        self.cache
            .get(&self.key)
            .await
            .filter(|token| token.is_usable(now))
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
        self.exchange
            .metrics
            .set_available(self.held().await.is_some());
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
