//! One access token: ready to be sent, and until when.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use tokio::time::Instant;

/// One moment on both clocks. The monotonic clock stands still while a machine is suspended, the wall clock jumps when
/// it is set; a token is over when either says so.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The monotonic clock.
    pub monotonic: Instant,
    /// The wall clock.
    pub wall: SystemTime,
}

impl Moment {
    /// Both clocks now.
    pub fn now() -> Self {
        Self {
            monotonic: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    fn after(self, time: Duration) -> Self {
        // Lifetimes are capped at configuration, far below what either clock can hold.
        Self {
            monotonic: self.monotonic + time,
            wall: self.wall.checked_add(time).unwrap_or(self.wall),
        }
    }
}

/// How long tokens live and when they are renewed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LifetimePolicy {
    /// Renewal at this share of the lifetime, 0.0 to 1.0.
    pub refresh_at: f64,
    /// Renewal up to this share of the lifetime earlier, drawn evenly.
    pub refresh_jitter: f64,
    /// Not used in the last part of its lifetime: this, or 10 % if that is less.
    pub expiry_margin: Duration,
}

impl LifetimePolicy {
    /// The share of `lifetime` after which a token is renewed, for `jitter` drawn evenly from 0.0 to 1.0.
    fn renewal_after(&self, lifetime: Duration, jitter: f64) -> Duration {
        lifetime.mul_f64((self.refresh_at - jitter * self.refresh_jitter).clamp(0.0, 1.0))
    }

    fn usable_for(&self, lifetime: Duration) -> Duration {
        lifetime - self.expiry_margin.min(lifetime / 10)
    }
}

/// What the authorization server granted.
#[derive(Clone, Debug)]
pub struct Grant {
    /// `Bearer` and the token, marked sensitive.
    pub authorization: HeaderValue,
    /// The first 8 hex digits of the SHA-256 of the token: enough to tell tokens apart, nothing to use.
    pub fingerprint: String,
    /// As granted, fit for a log; none if the answer did not say, which means as asked.
    pub scope: Option<String>,
    /// What was asked for and not granted, where that is to be told: scopes separated by spaces.
    pub missing_scope: Option<String>,
    /// Counted from the start of the request, 1 s or more. `None` is a token that was over when it came: it is used
    /// once.
    pub lifetime: Option<Duration>,
    /// The server's clock when it answered, in whole seconds, if it said so.
    pub server_date: Option<SystemTime>,
}

/// A server's clock that is further from ours than this, in seconds, is worth a line.
pub const SKEW_WORTH_TELLING: f64 = 60.0;

impl Grant {
    /// How far the server's clock is ahead of ours, in seconds, as its `Date` tells to a second; the token request took
    /// `took` and has just ended.
    pub fn clock_skew(&self, took: Duration) -> Option<f64> {
        let theirs = self.server_date?;
        // It was written somewhere between the request and now.
        let ours = SystemTime::now() - took / 2;
        Some(match theirs.duration_since(ours) {
            Ok(ahead) => ahead.as_secs_f64(),
            Err(behind) => -behind.duration().as_secs_f64(),
        })
    }

    /// The token itself, for a person who asked to see it.
    pub fn expose(&self) -> &str {
        let value = self.authorization.to_str().unwrap_or_default();
        value.strip_prefix("Bearer ").unwrap_or(value)
    }
}

/// An access token in the cache.
pub struct AccessToken {
    authorization: HeaderValue,
    fingerprint: String,
    generation: u64,
    received_at: Instant,
    expires_at: Moment,
    usable_until: Moment,
    renew_at: Instant,
    set_aside: AtomicBool,
    /// Whether the upstream ever refused it.
    refused: AtomicBool,
    /// Whether the upstream ever accepted it.
    accepted: AtomicBool,
    /// Whether it came for one that the upstream refused.
    is_replacement: bool,
    used: AtomicBool,
    /// Whether it is used for one request alone, because it was over when it came.
    single_use: bool,
    /// The one before it, in case the upstream does not know this one yet.
    previous: Mutex<Previous>,
    /// Whether that one is used in its place: the only part of it that each request looks at.
    stands_back: AtomicBool,
}

/// The token before another one.
#[derive(Default)]
enum Previous {
    #[default]
    None,
    /// Good by time, and not tried.
    Untried(Arc<AccessToken>),
    /// Accepted where its successor was not: used until then.
    StandsIn(Arc<AccessToken>, Instant),
}

impl AccessToken {
    /// The `generation`th token of its key, asked for at `requested`; `jitter` is drawn evenly from 0.0 to 1.0.
    pub fn new(
        grant: Grant,
        generation: u64,
        requested: Moment,
        policy: &LifetimePolicy,
        jitter: f64,
    ) -> Self {
        let lifetime = grant.lifetime.unwrap_or(ONCE_LIFETIME);
        Self {
            authorization: grant.authorization,
            fingerprint: grant.fingerprint,
            generation,
            received_at: Instant::now(),
            expires_at: requested.after(lifetime),
            usable_until: requested.after(policy.usable_for(lifetime)),
            renew_at: requested.monotonic + policy.renewal_after(lifetime, jitter),
            set_aside: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            accepted: AtomicBool::new(false),
            is_replacement: false,
            used: AtomicBool::new(false),
            single_use: grant.lifetime.is_none(),
            previous: Mutex::default(),
            stands_back: AtomicBool::new(false),
        }
    }

    /// Comes for one that the upstream refused, if `is_replacement`.
    pub(super) fn replacing(mut self, is_replacement: bool) -> Self {
        self.is_replacement = is_replacement;
        self
    }

    /// Comes after `previous`, which is kept for a while if it is good.
    pub(super) fn succeeding(self, previous: Option<Arc<Self>>, now: Moment) -> Self {
        if let Some(previous) = previous {
            // One is enough: the one before that is gone.
            *previous.previous() = Previous::None;
            let was_refused = previous.refused.load(Ordering::Acquire);
            if !previous.single_use && !was_refused && previous.is_usable(now) {
                *self.previous() = Previous::Untried(previous);
            }
        }
        self
    }

    /// The value of the `Authorization` field. A clone counts a reference up.
    pub fn authorization(&self) -> HeaderValue {
        self.authorization.clone()
    }

    /// Names the token in logs.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Counts the tokens of a key up, so that a late 401 for an older one is seen as such.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// When it came.
    pub fn received_at(&self) -> Instant {
        self.received_at
    }

    /// When the authorization server stops accepting it.
    pub fn expires_at(&self) -> Moment {
        self.expires_at
    }

    /// When its renewal is due.
    pub fn renew_at(&self) -> Instant {
        self.renew_at
    }

    /// The upstream accepted it: when it refuses it later, it was revoked.
    pub fn is_accepted(&self) {
        if !self.accepted.load(Ordering::Relaxed) {
            self.accepted.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it was refused at `now` for another reason than its age: the upstream has never accepted it, it came just
    /// now, and there was one before it.
    pub(super) fn is_refused_fresh(&self, now: Moment) -> bool {
        let age = now.monotonic.saturating_duration_since(self.received_at);
        let follows_another =
            self.is_replacement || matches!(*self.previous(), Previous::Untried(_));
        age < FRESH && !self.accepted.load(Ordering::Relaxed) && follows_another
    }

    /// Whether it is used for one request alone, because it was over when it came.
    pub fn is_single_use(&self) -> bool {
        self.single_use
    }

    /// Whether any request has taken it.
    pub(super) fn was_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether it may be sent at `now`.
    pub fn is_usable(&self, now: Moment) -> bool {
        !self.usable_for(now).is_zero()
    }

    /// For how long it may still be sent, by the clock that ends it first.
    pub fn usable_for(&self, now: Moment) -> Duration {
        let spent = self.single_use && self.was_used();
        if spent || self.set_aside.load(Ordering::Acquire) {
            return Duration::ZERO;
        }
        let by_wall = self
            .usable_until
            .wall
            .duration_since(now.wall)
            .unwrap_or_default();
        self.usable_until
            .monotonic
            .saturating_duration_since(now.monotonic)
            .min(by_wall)
    }

    /// Takes it for one request: whether it is usable, and for a token of single use, whether this is the first take.
    pub fn take(&self, now: Moment) -> bool {
        if !self.is_usable(now) {
            return false;
        }
        if self.single_use {
            return !self.used.swap(true, Ordering::AcqRel);
        }
        // Read first: a store by every request would bounce between the workers' caches.
        if !self.was_used() {
            self.used.store(true, Ordering::Relaxed);
        }
        true
    }

    /// The upstream refused it: not to be used while its renewal is tried.
    pub fn set_aside(&self) {
        self.refused.store(true, Ordering::Release);
        self.set_aside.store(true, Ordering::Release);
    }

    /// There is no better one: to be used again.
    pub fn put_back(&self) {
        self.set_aside.store(false, Ordering::Release);
    }

    /// The token before this one, for one try; nothing at any later time, or if it is not usable at `now`.
    pub(super) fn take_previous(&self, now: Moment) -> Option<Arc<Self>> {
        let mut previous = self.previous();
        match std::mem::take(&mut *previous) {
            Previous::Untried(token) => token.is_usable(now).then_some(token),
            other => {
                *previous = other;
                None
            }
        }
    }

    /// The upstream accepts `token` and not this one: it is used until `until`, or to its own end.
    pub(super) fn stand_back(&self, token: Arc<Self>, until: Instant) {
        *self.previous() = Previous::StandsIn(token, until);
        self.stands_back.store(true, Ordering::Release);
    }

    /// The other one is not accepted either.
    pub(super) fn stand_forth(&self) {
        self.stands_back.store(false, Ordering::Release);
        *self.previous() = Previous::None;
    }

    /// What is used in its place at `now`.
    pub(super) fn stand_in(&self, now: Moment) -> Option<Arc<Self>> {
        if !self.stands_back.load(Ordering::Acquire) {
            return None;
        }
        if let Previous::StandsIn(token, until) = &*self.previous()
            && now.monotonic < *until
            && token.is_usable(now)
        {
            return Some(token.clone());
        }
        self.stand_forth();
        None
    }

    /// Nothing waits while it is locked, and requests lock it only when the upstream refused a fresh token.
    fn previous(&self) -> MutexGuard<'_, Previous> {
        self.previous.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `other` is the same token, not merely of the same key.
    pub fn is_same_as(&self, other: &Grant) -> bool {
        self.authorization == other.authorization
    }
}

/// A token refused before it is this old is not refused for its age.
const FRESH: Duration = Duration::from_secs(10);

/// How long a token that was over when it came may wait for the one request that tries it.
const ONCE_LIFETIME: Duration = Duration::from_secs(5);

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessToken")
            .field("fingerprint", &self.fingerprint)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: LifetimePolicy = LifetimePolicy {
        refresh_at: 0.8,
        refresh_jitter: 0.1,
        expiry_margin: Duration::from_secs(30),
    };

    fn token(lifetime: Option<u64>, jitter: f64) -> (AccessToken, Moment) {
        let requested = Moment::now();
        let grant = Grant {
            authorization: HeaderValue::from_static("Bearer t"),
            fingerprint: "e3b0c442".into(),
            scope: None,
            missing_scope: None,
            lifetime: lifetime.map(Duration::from_secs),
            server_date: None,
        };
        (
            AccessToken::new(grant, 1, requested, &POLICY, jitter),
            requested,
        )
    }

    #[test]
    fn renewal_is_due_between_70_and_80_percent() {
        for (jitter, seconds) in [(0.0, 2880), (0.5, 2700), (1.0, 2520)] {
            let (token, requested) = token(Some(3600), jitter);
            let due = token.renew_at() - requested.monotonic;
            assert_eq!(due.as_secs_f64().round() as u64, seconds);
        }
    }

    /// C-31: a short token is not eaten up by the margin.
    #[test]
    fn the_margin_is_at_most_a_tenth_of_the_lifetime() {
        let at = |start: Moment, seconds| start.after(Duration::from_millis(seconds));
        let (long, start) = token(Some(3600), 0.0);
        assert!(long.is_usable(at(start, 3_569_000)));
        assert!(!long.is_usable(at(start, 3_570_000)));
        let (short, start) = token(Some(5), 0.0);
        assert!(short.is_usable(at(start, 4_400)));
        assert!(!short.is_usable(at(start, 4_500)));
    }

    /// C-61, C-62: suspend stops the monotonic clock, a set clock moves the wall clock.
    #[test]
    fn either_clock_ends_it() {
        let (token, start) = token(Some(3600), 0.0);
        let hour = Duration::from_secs(3600);
        let suspended = Moment {
            wall: start.wall + 2 * hour,
            ..start
        };
        let set_back = Moment {
            monotonic: start.monotonic + hour,
            wall: start.wall - hour,
        };
        let set_to_1970 = Moment {
            wall: SystemTime::UNIX_EPOCH,
            ..start
        };
        assert!(!token.is_usable(suspended));
        assert!(!token.is_usable(set_back));
        assert!(token.is_usable(set_to_1970));
    }

    /// C-29: `expires_in` of 0 or less.
    #[test]
    fn a_token_that_was_over_when_it_came_is_taken_once() {
        let (token, start) = token(None, 0.0);
        assert!(token.take(start));
        assert!(!token.take(start));
        assert!(!token.is_usable(start));
    }

    #[test]
    fn a_token_set_aside_can_come_back() {
        let (token, start) = token(Some(3600), 0.0);
        token.set_aside();
        assert!(!token.take(start));
        token.put_back();
        assert!(token.take(start));
    }

    #[test]
    fn the_one_before_is_tried_once_and_stands_in_for_a_while() {
        let (first, start) = token(Some(3600), 0.0);
        let first = Arc::new(first);
        let second = token(Some(3600), 0.0)
            .0
            .succeeding(Some(first.clone()), start);
        assert!(second.stand_in(start).is_none(), "not without a reason");
        let tried = second.take_previous(start).unwrap();
        assert!(second.take_previous(start).is_none(), "once");
        second.stand_back(tried, start.monotonic + Duration::from_secs(30));
        assert!(Arc::ptr_eq(&second.stand_in(start).unwrap(), &first));
        let later = start.after(Duration::from_secs(30));
        assert!(second.stand_in(later).is_none(), "the fresh one again");
        assert!(second.stand_in(start).is_none(), "for good");
    }

    #[test]
    fn a_refused_or_ended_one_before_is_not_kept() {
        let now = token(Some(3600), 0.0).1;
        let successor = |first: AccessToken, now| {
            token(Some(3600), 0.0)
                .0
                .succeeding(Some(Arc::new(first)), now)
        };
        let refused = token(Some(3600), 0.0).0;
        refused.set_aside();
        refused.put_back();
        assert!(successor(refused, now).take_previous(now).is_none());
        let ended = now.after(Duration::from_secs(3600));
        let old = successor(token(Some(3600), 0.0).0, ended);
        assert!(old.take_previous(ended).is_none());
        let chain = Arc::new(successor(token(Some(3600), 0.0).0, now));
        let newest = token(Some(3600), 0.0)
            .0
            .succeeding(Some(chain.clone()), now);
        assert!(newest.take_previous(now).is_some());
        assert!(chain.take_previous(now).is_none(), "one is enough");
    }

    #[test]
    fn debug_shows_only_the_fingerprint() {
        let (token, _) = token(Some(3600), 0.0);
        let shown = format!("{token:?}");
        assert!(shown.contains("e3b0c442") && !shown.contains("Bearer"));
    }
}
