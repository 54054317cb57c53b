//! The metrics of what is read again while the sidecar runs: the configuration, and secrets.

use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::labels::{ReloadOutcome, ReloadTrigger, SecretReload};
use super::{counters, gauge, register, unix_now};

/// Handles for all of it.
pub(super) struct ReloadMetrics {
    reloads: [[IntCounter; ReloadOutcome::ALL.len()]; ReloadTrigger::ALL.len()],
    last_is_good: IntGauge,
    last_good_at: Gauge,
    pub(super) secrets: [IntCounter; SecretReload::ALL.len()],
}

impl ReloadMetrics {
    pub(super) fn new(r: &Registry) -> Self {
        let reloads = register(
            r,
            IntCounterVec::new(
                Opts::new(
                    "bearerd_config_reloads_total",
                    "Times the configuration was read again.",
                ),
                &["trigger", "outcome"],
            ),
        );
        let last_is_good = gauge(
            r,
            "bearerd_config_last_reload_successful",
            "Whether the configuration that was read last is in use (1), or one before it (0).",
        );
        // What the process started with is in use.
        last_is_good.set(1);
        let last_good_at = register(
            r,
            Gauge::new(
                "bearerd_config_last_reload_success_timestamp_seconds",
                "Unix time at which the configuration in use was read.",
            ),
        );
        last_good_at.set(unix_now());
        Self {
            reloads: ReloadTrigger::ALL.map(|trigger| {
                ReloadOutcome::ALL
                    .map(|outcome| reloads.with_label_values(&[trigger.as_str(), outcome.as_str()]))
            }),
            last_is_good,
            last_good_at,
            secrets: counters::<SecretReload, _>(
                r,
                "bearerd_secret_reloads_total",
                "Changes of client credentials, by what became of them.",
                "outcome",
            ),
        }
    }

    /// The configuration was read again.
    pub(super) fn ended(&self, trigger: ReloadTrigger, outcome: ReloadOutcome) {
        self.reloads[trigger as usize][outcome as usize].inc();
        let is_good = outcome == ReloadOutcome::Success;
        self.last_is_good.set(is_good.into());
        if is_good {
            self.last_good_at.set(unix_now());
        }
    }

    pub(super) fn last(&self) -> (bool, f64) {
        (self.last_is_good.get() == 1, self.last_good_at.get())
    }
}
