//! Families that stand alone: their names, help and labels.

use prometheus::{Histogram, HistogramOpts, IntCounter, Opts, Registry};

use super::labels::{Code, ConnectOutcome, RetryReason, UnauthorizedAction};
use super::{OVERHEAD_BUCKETS, counter, counters, histograms, register};

pub(super) fn rejected(r: &Registry) -> [IntCounter; Code::ALL.len()] {
    counters::<Code, _>(
        r,
        "bearerd_rejected_requests_total",
        "Requests answered by the sidecar itself, with an error of its own.",
        "reason",
    )
}

pub(super) fn unauthorized(r: &Registry) -> [IntCounter; UnauthorizedAction::ALL.len()] {
    counters::<UnauthorizedAction, _>(
        r,
        "bearerd_upstream_401_total",
        "Answers of the upstream that refused the token, by what came of it for the request.",
        "action",
    )
}

pub(super) fn retries(r: &Registry) -> [IntCounter; RetryReason::ALL.len()] {
    counters::<RetryReason, _>(
        r,
        "bearerd_upstream_retries_total",
        "Requests sent to the upstream once more.",
        "reason",
    )
}

pub(super) fn parse_errors(r: &Registry) -> IntCounter {
    counter(
        r,
        "bearerd_downstream_parse_errors_total",
        "Connections ended because what the application sent could not be parsed as HTTP.",
    )
}

pub(super) fn overhead(r: &Registry) -> Histogram {
    let options = HistogramOpts::new(
        "bearerd_request_overhead_seconds",
        "Time a request spent inside the sidecar until the response head, upstream time excluded.",
    );
    register(
        r,
        Histogram::with_opts(options.buckets(OVERHEAD_BUCKETS.to_vec())),
    )
}

pub(super) fn connect_durations(r: &Registry) -> [Histogram; ConnectOutcome::ALL.len()] {
    let family = histograms(
        r,
        "bearerd_upstream_connect_duration_seconds",
        "Duration of DNS, TCP and TLS set-up of upstream connections.",
        &["outcome"],
    );
    ConnectOutcome::ALL.map(|outcome| family.with_label_values(&[outcome.as_str()]))
}

pub(super) fn build_info(r: &Registry) {
    let info = register(
        r,
        prometheus::IntGaugeVec::new(
            Opts::new("bearerd_build_info", "Build information."),
            &["version", "crypto"],
        ),
    );
    info.with_label_values(&[env!("CARGO_PKG_VERSION"), "aws-lc-rs"])
        .set(1);
}
