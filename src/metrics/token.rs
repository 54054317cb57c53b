//! The metrics of tokens: one set of handles for each.

use std::time::Duration;

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry,
};

use super::labels::{FetchOutcome, LookupResult, SecretReload, Trigger};
use super::{histograms, register};

/// Handles for one token. Clones count in the same series.
#[derive(Clone)]
pub struct TokenMetrics {
    requests: [[IntCounter; FetchOutcome::ALL.len()]; Trigger::ALL.len()],
    duration: Histogram,
    lookups: [IntCounter; LookupResult::ALL.len()],
    available: IntGauge,
    expiry: Gauge,
    next_refresh: Gauge,
    last_success: Gauge,
    consecutive_failures: IntGauge,
    same: IntCounter,
    scope_downgrades: IntCounter,
    breaker_open: IntGauge,
    clock_skew: Gauge,
    secret_reloads: [IntCounter; SecretReload::ALL.len()],
}

impl TokenMetrics {
    /// A token request ended.
    pub fn requested(&self, trigger: Trigger, outcome: FetchOutcome, time: Duration) {
        self.requests[trigger as usize][outcome as usize].inc();
        self.duration.observe(time.as_secs_f64());
    }

    /// A request of the application looked for a token.
    pub fn looked_up(&self, result: LookupResult) {
        self.lookups[result as usize].inc();
    }

    /// A token was received at `now`, expiring at `expiry`; both in Unix seconds.
    pub fn received(&self, now: f64, expiry: f64) {
        self.last_success.set(now);
        self.expiry.set(expiry);
    }

    /// The authorization server answered with the token that was held already.
    pub fn received_same(&self) {
        self.same.inc();
    }

    /// Unix seconds of the next token request; 0 when none is scheduled.
    pub fn set_next_refresh(&self, at: f64) {
        self.next_refresh.set(at);
    }

    /// How many token requests failed since the last success.
    pub fn set_consecutive_failures(&self, failures: u32) {
        self.consecutive_failures.set(failures.into());
    }

    /// A token came with less scope than was asked for.
    pub fn scope_downgraded(&self) {
        self.scope_downgrades.inc();
    }

    /// Whether renewals are suspended because fresh tokens are refused.
    pub fn set_breaker_open(&self, open: bool) {
        self.breaker_open.set(open.into());
    }

    /// How far the authorization server's clock is ahead of ours, in seconds.
    pub fn set_clock_skew(&self, seconds: f64) {
        self.clock_skew.set(seconds);
    }

    /// Changed client credentials met their fate.
    pub fn secret_reloaded(&self, outcome: SecretReload) {
        self.secret_reloads[outcome as usize].inc();
    }

    /// Whether a usable token is held.
    pub fn set_available(&self, available: bool) {
        self.available.set(available.into());
    }
}

/// The families behind the handles of all tokens.
pub(super) struct TokenFamilies {
    requests: IntCounterVec,
    duration: HistogramVec,
    lookups: IntCounterVec,
    available: IntGaugeVec,
    expiry: GaugeVec,
    next_refresh: GaugeVec,
    last_success: GaugeVec,
    consecutive_failures: IntGaugeVec,
    same: IntCounterVec,
    scope_downgrades: IntCounterVec,
    breaker_open: IntGaugeVec,
    clock_skew: GaugeVec,
}

impl TokenFamilies {
    pub(super) fn new(r: &Registry) -> Self {
        let int_gauges = |name: &str, help: &str| {
            register(r, IntGaugeVec::new(Opts::new(name, help), &["token"]))
        };
        let gauges =
            |name: &str, help: &str| register(r, GaugeVec::new(Opts::new(name, help), &["token"]));
        let counters = |name: &str, help: &str, labels: &[&str]| {
            register(r, IntCounterVec::new(Opts::new(name, help), labels))
        };
        Self {
            requests: counters(
                "bearerd_token_requests_total",
                "Token endpoint requests.",
                &["token", "trigger", "outcome"],
            ),
            duration: histograms(
                r,
                "bearerd_token_request_duration_seconds",
                "Duration of token endpoint requests.",
                &["token"],
            ),
            lookups: counters(
                "bearerd_token_lookups_total",
                "Token lookups made by proxied requests.",
                &["token", "result"],
            ),
            available: int_gauges(
                "bearerd_token_available",
                "Whether an unexpired token is cached (1) or not (0).",
            ),
            expiry: gauges(
                "bearerd_token_expiry_timestamp_seconds",
                "Unix time at which the cached token expires.",
            ),
            next_refresh: gauges(
                "bearerd_token_next_refresh_timestamp_seconds",
                "Unix time of the next scheduled token request.",
            ),
            last_success: gauges(
                "bearerd_token_last_success_timestamp_seconds",
                "Unix time of the last successful token request.",
            ),
            consecutive_failures: int_gauges(
                "bearerd_token_consecutive_failures",
                "Token requests failed since the last success.",
            ),
            same: counters(
                "bearerd_token_same_total",
                "Renewals that brought the token that was held already.",
                &["token"],
            ),
            scope_downgrades: counters(
                "bearerd_token_scope_downgrades_total",
                "Tokens that came with less scope than was asked for.",
                &["token"],
            ),
            breaker_open: int_gauges(
                "bearerd_token_breaker_open",
                "Whether renewals after a 401 are suspended because fresh tokens are refused (1) or not (0).",
            ),
            clock_skew: gauges(
                "bearerd_clock_skew_seconds",
                "How far the authorization server's clock is ahead of ours, by the Date of its last token response.",
            ),
        }
    }

    pub(super) fn resolve(
        &self,
        token: &str,
        secret_reloads: [IntCounter; SecretReload::ALL.len()],
    ) -> TokenMetrics {
        TokenMetrics {
            requests: Trigger::ALL.map(|trigger| {
                FetchOutcome::ALL.map(|outcome| {
                    self.requests
                        .with_label_values(&[token, trigger.as_str(), outcome.as_str()])
                })
            }),
            duration: self.duration.with_label_values(&[token]),
            lookups: LookupResult::ALL
                .map(|result| self.lookups.with_label_values(&[token, result.as_str()])),
            available: self.available.with_label_values(&[token]),
            expiry: self.expiry.with_label_values(&[token]),
            next_refresh: self.next_refresh.with_label_values(&[token]),
            last_success: self.last_success.with_label_values(&[token]),
            consecutive_failures: self.consecutive_failures.with_label_values(&[token]),
            same: self.same.with_label_values(&[token]),
            scope_downgrades: self.scope_downgrades.with_label_values(&[token]),
            breaker_open: self.breaker_open.with_label_values(&[token]),
            clock_skew: self.clock_skew.with_label_values(&[token]),
            secret_reloads,
        }
    }
}
