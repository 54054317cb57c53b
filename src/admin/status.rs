//! How the sidecar is, as one document. It is made of names, numbers and fingerprints; nothing here could hold a secret.

use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::time::Instant;

use super::history::{Columns, History};
use super::log::LogControl;
use crate::metrics::{Metrics, unix_now, unix_seconds};
use crate::net::drain::{DrainWatch, Phase};
use crate::oauth::attempts::Attempt;
use crate::oauth::standing::Standing;
use crate::oauth::{TokenHandle, access_token};

/// What a configuration says of itself. A reload makes a new one.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// Where it came from, in words.
    pub source: String,
    pub warnings: Vec<String>,
    pub workers: usize,
    /// Where applications and operators call.
    pub listen: Vec<String>,
    pub admin: String,
    /// By which names, besides addresses and localhost, the page may be asked for.
    pub allowed_hosts: Vec<String>,
    pub upstreams: Vec<AboutUpstream>,
    pub tokens: Vec<AboutToken>,
}

/// One upstream.
#[derive(Clone, Debug, Serialize)]
pub struct AboutUpstream {
    pub name: String,
    /// Without its query, of which it has none.
    pub url: String,
}

/// One kind of token.
#[derive(Clone, Debug)]
pub struct AboutToken {
    pub label: String,
    /// The token endpoint or the issuer, without a query.
    pub endpoint: String,
    pub scope: Option<String>,
}

/// What the status is made of.
pub struct Sources {
    pub about: Arc<ArcSwap<About>>,
    pub tokens: Arc<ArcSwap<Vec<TokenHandle>>>,
    pub history: Arc<History>,
    pub metrics: Arc<Metrics>,
    pub drain: DrainWatch,
    /// Unix seconds.
    pub started_at: f64,
}

/// Points in time are Unix seconds.
#[derive(Serialize)]
pub(super) struct Status {
    version: &'static str,
    now: f64,
    started_at: f64,
    /// `serving`, `draining` or `stopping`.
    phase: &'static str,
    /// Whether every token in use is usable, and there is no drain.
    ready: bool,
    workers: usize,
    listen: Vec<String>,
    admin: String,
    config: ConfigStatus,
    log: LogStatus,
    tokens: Vec<TokenStatus>,
    upstreams: Vec<AboutUpstream>,
    traffic: TrafficStatus,
    history: Columns,
}

#[derive(Serialize)]
struct ConfigStatus {
    source: String,
    warnings: Vec<String>,
    /// When what is in use was read.
    loaded_at: f64,
    /// False when the last one that was read is not in use, because something is wrong with it.
    last_is_in_use: bool,
}

#[derive(Serialize)]
struct LogStatus {
    level: Option<String>,
    dropped_lines: u64,
}

#[derive(Serialize)]
struct TokenStatus {
    name: String,
    endpoint: Option<String>,
    scope: Option<String>,
    /// `new`, `holding`, `failing`, `unused` or `ended`.
    state: &'static str,
    usable: bool,
    fingerprint: Option<String>,
    received_at: Option<f64>,
    /// When requests stop using it.
    usable_until: Option<f64>,
    expires_at: Option<f64>,
    /// The renewal, or after a failure the next attempt.
    next_attempt_at: Option<f64>,
    failures: u32,
    breaker_open: bool,
    attempts: Vec<AttemptStatus>,
}

#[derive(Serialize)]
struct AttemptStatus {
    at: f64,
    took_ms: u128,
    trigger: &'static str,
    fingerprint: Option<String>,
    error: Option<String>,
    message: Option<String>,
    hint: Option<&'static str>,
}

#[derive(Serialize)]
struct TrafficStatus {
    requests: u64,
    server_errors: u64,
    in_flight: i64,
    connections: i64,
    tunnels: i64,
    upstream_connections: i64,
    /// Errors of our own since the start, by code.
    refused: Vec<Refused>,
}

#[derive(Serialize)]
struct Refused {
    code: &'static str,
    count: u64,
}

impl Sources {
    /// Everything as it is now.
    pub(super) async fn status(&self, ready: bool, log: Option<&LogControl>) -> Status {
        let about = self.about.load_full();
        let handles = self.tokens.load_full();
        let mut tokens = Vec::with_capacity(handles.len());
        for handle in handles.iter() {
            let about = about.tokens.iter().find(|t| t.label == handle.name());
            tokens.push(token(handle, about).await);
        }
        let (last_is_in_use, loaded_at) = self.metrics.last_reload();
        let about = (*about).clone();
        Status {
            version: env!("CARGO_PKG_VERSION"),
            now: unix_now(),
            started_at: self.started_at,
            phase: match self.drain.phase() {
                Phase::Serving => "serving",
                Phase::Draining => "draining",
                Phase::Stopping | Phase::Cutting => "stopping",
            },
            ready,
            workers: about.workers,
            listen: about.listen,
            admin: about.admin,
            config: ConfigStatus {
                source: about.source,
                warnings: about.warnings,
                loaded_at,
                last_is_in_use,
            },
            log: LogStatus {
                level: log.and_then(LogControl::level).map(|l| l.to_string()),
                dropped_lines: log.map_or(0, LogControl::dropped_lines),
            },
            tokens,
            upstreams: about.upstreams,
            traffic: self.traffic(),
            history: self.history.columns(),
        }
    }

    fn traffic(&self) -> TrafficStatus {
        let traffic = self.metrics.traffic();
        let refusals = self.metrics.refusals().into_iter();
        TrafficStatus {
            requests: traffic.requests,
            server_errors: traffic.server_errors,
            in_flight: traffic.in_flight,
            connections: traffic.connections,
            tunnels: traffic.tunnels,
            upstream_connections: traffic.upstream_connections,
            refused: refusals
                .map(|(code, count)| Refused {
                    code: code.as_str(),
                    count,
                })
                .collect(),
        }
    }
}

async fn token(handle: &TokenHandle, about: Option<&AboutToken>) -> TokenStatus {
    let held = handle.held().await;
    let standing = handle.standing();
    let now = access_token::Moment::now();
    // The wall clock tells when, but only the monotonic one is asked for.
    let wall = |at: Instant| {
        let ahead = at.saturating_duration_since(now.monotonic);
        let behind = now.monotonic.saturating_duration_since(at);
        unix_seconds(now.wall + ahead) - behind.as_secs_f64()
    };
    TokenStatus {
        name: handle.name().to_owned(),
        endpoint: about.map(|about| about.endpoint.clone()),
        scope: about.and_then(|about| about.scope.clone()),
        state: match standing {
            Standing::New => "new",
            Standing::Holding { .. } => "holding",
            Standing::Unused => "unused",
            Standing::Failing { .. } => "failing",
            Standing::Ended => "ended",
        },
        usable: held.is_some(),
        fingerprint: held.as_ref().map(|token| token.fingerprint().to_owned()),
        received_at: held.as_ref().map(|token| wall(token.received_at())),
        usable_until: held
            .as_ref()
            .map(|token| unix_seconds(now.wall + token.usable_for(now))),
        expires_at: held
            .as_ref()
            .map(|token| unix_seconds(token.expires_at().wall)),
        next_attempt_at: standing.next_attempt().map(wall),
        failures: match standing {
            Standing::Failing { failures, .. } => failures,
            _ => 0,
        },
        breaker_open: handle.breaker_is_open(),
        attempts: handle.attempts().into_iter().map(attempt).collect(),
    }
}

fn attempt(attempt: Attempt) -> AttemptStatus {
    let Attempt {
        at,
        took,
        trigger,
        result,
    } = attempt;
    let (fingerprint, failure) = match result {
        Ok(fingerprint) => (Some(fingerprint), None),
        Err(failure) => (None, Some(failure)),
    };
    AttemptStatus {
        at: unix_seconds(at),
        took_ms: took.as_millis(),
        trigger: trigger.as_str(),
        fingerprint,
        hint: failure.as_ref().and_then(|failure| failure.hint),
        error: failure.as_ref().map(|failure| failure.name.clone()),
        message: failure.map(|failure| failure.message),
    }
}
