//! Every metric: its name, its help, the closed set of its label values, and the guards that record it.
//!
//! The names are an interface: dashboards and alerts of users stand on them. HTTP metrics carry the OpenTelemetry
//! names, all others the prefix `bearerd_`. Points in time are exported, never seconds left. Every series whose labels
//! are enumerated starts at 0, so that `increase()` sees the first event.

mod bounded;
mod families;
mod labels;
mod reload;
mod token;
mod traffic;

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry, TextEncoder,
};
use tokio::time::Instant;

use bounded::RequestDurations;
use families::{
    build_info, connect_durations, overhead, parse_errors, rejected, retries, unauthorized,
};
pub use labels::{
    Code, ConnectOutcome, FetchOutcome, LookupResult, ReloadOutcome, ReloadTrigger, RetryReason,
    SecretReload, SendFault, Trigger, UnauthorizedAction,
};
use reload::ReloadMetrics;
use token::TokenFamilies;
pub use token::TokenMetrics;
pub use traffic::{Traffic, unix_now, unix_seconds};

/// OpenTelemetry's advised boundaries for HTTP, and two more because payment calls can be slow.
const DURATION_BUCKETS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0,
];
const OVERHEAD_BUCKETS: &[f64] = &[
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1,
];

/// All metrics of one process (or of one sidecar, where a test runs several).
pub struct Metrics {
    registry: Registry,
    server_duration: RequestDurations,
    server_active: IntGauge,
    overhead: Histogram,
    rejected: [IntCounter; Code::ALL.len()],
    parse_errors: IntCounter,
    connections_open: IntGauge,
    tunnels_open: IntGauge,
    upstream_unauthorized: [IntCounter; UnauthorizedAction::ALL.len()],
    client_duration: HistogramVec,
    upstream_retries: [IntCounter; RetryReason::ALL.len()],
    upstream_connections: IntGauge,
    upstream_connect: [Histogram; ConnectOutcome::ALL.len()],
    token_families: TokenFamilies,
    reloads: ReloadMetrics,
    ready: IntGauge,
    log_lines_dropped: IntCounter,
}

impl Metrics {
    /// A fresh registry with every metric in it.
    pub fn new() -> Arc<Self> {
        let registry = Registry::new();
        let r = &registry;
        build_info(r);
        #[cfg(target_os = "linux")]
        register_collector(
            r,
            prometheus::process_collector::ProcessCollector::for_self(),
        );
        Arc::new(Self {
            server_duration: RequestDurations::server(histograms(
                r,
                "http_server_request_duration_seconds",
                "Duration of HTTP requests received from the local application, until the response body was fully \
                 relayed.",
                &["http_request_method", "http_response_status_code"],
            )),
            server_active: gauge(
                r,
                "http_server_active_requests",
                "HTTP requests from the local application currently in flight.",
            ),
            overhead: overhead(r),
            rejected: rejected(r),
            parse_errors: parse_errors(r),
            connections_open: gauge(
                r,
                "bearerd_connections_open",
                "Open connections from applications.",
            ),
            tunnels_open: gauge(
                r,
                "bearerd_tunnels_open",
                "Open connections from applications that were upgraded to another protocol.",
            ),
            upstream_unauthorized: unauthorized(r),
            client_duration: histograms(
                r,
                "http_client_request_duration_seconds",
                "Duration of HTTP requests sent upstream, until the response head, per attempt.",
                &[
                    "http_request_method",
                    "http_response_status_code",
                    "server_address",
                    "error_type",
                ],
            ),
            upstream_retries: retries(r),
            upstream_connections: gauge(
                r,
                "bearerd_upstream_connections_open",
                "Open connections to upstreams.",
            ),
            upstream_connect: connect_durations(r),
            token_families: TokenFamilies::new(r),
            reloads: ReloadMetrics::new(r),
            ready: gauge(r, "bearerd_ready", "Whether the readiness check passes."),
            log_lines_dropped: counter(
                r,
                "bearerd_log_lines_dropped_total",
                "Log lines dropped because the log could not be written fast enough.",
            ),
            registry,
        })
    }

    /// The whole registry in the Prometheus text format.
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(32 * 1024);
        // Writing to memory cannot fail, and every family was checked when it was registered.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        text
    }

    /// Starts counting one request of the application.
    pub fn request(self: &Arc<Self>, method: &Method) -> RequestScope {
        self.server_active.inc();
        RequestScope {
            metrics: self.clone(),
            method: method.clone(),
            started: Instant::now(),
            status: None,
        }
    }

    /// The handles for one upstream host.
    pub fn upstream(&self, server_address: &str) -> UpstreamMetrics {
        UpstreamMetrics {
            duration: RequestDurations::client(self.client_duration.clone(), server_address),
            retries: self.upstream_retries.clone(),
        }
    }

    /// The handles for one token; every enumerated series of it starts at 0 now.
    pub fn token(&self, token: &str) -> TokenMetrics {
        self.token_families
            .resolve(token, self.reloads.secrets.clone())
    }

    /// The configuration was read again.
    pub fn reloaded(&self, trigger: ReloadTrigger, outcome: ReloadOutcome) {
        self.reloads.ended(trigger, outcome);
    }

    /// Whether the configuration that was read last is in use, and when that in use was read, in Unix seconds.
    pub fn last_reload(&self) -> (bool, f64) {
        self.reloads.last()
    }

    /// A request was answered with an error of our own.
    pub fn rejected(&self, code: Code) {
        self.rejected[code as usize].inc();
    }

    /// The time one request spent inside the sidecar, upstream time excluded.
    pub fn overhead(&self, time: Duration) {
        self.overhead.observe(time.as_secs_f64());
    }

    /// A 401 of the upstream was handled.
    pub fn upstream_unauthorized(&self, action: UnauthorizedAction) {
        self.upstream_unauthorized[action as usize].inc();
    }

    /// What an application sent was not HTTP.
    pub fn downstream_parse_error(&self) {
        self.parse_errors.inc();
    }

    /// Counts one open connection from an application until the guard is dropped.
    pub fn connection(&self) -> GaugeGuard {
        GaugeGuard::new(&self.connections_open)
    }

    /// Counts one upgraded connection until the guard is dropped.
    pub fn tunnel(&self) -> GaugeGuard {
        GaugeGuard::new(&self.tunnels_open)
    }

    /// Counts one open connection to an upstream until the guard is dropped.
    pub fn upstream_connection(&self) -> GaugeGuard {
        GaugeGuard::new(&self.upstream_connections)
    }

    /// One attempt to connect to an upstream ended.
    pub fn upstream_connect(&self, outcome: ConnectOutcome, time: Duration) {
        self.upstream_connect[outcome as usize].observe(time.as_secs_f64());
    }

    /// Whether the readiness check passes now.
    pub fn set_ready(&self, ready: bool) {
        self.ready.set(ready.into());
    }

    /// Brings the counter of dropped log lines up to `total`.
    pub fn set_log_lines_dropped(&self, total: u64) {
        self.log_lines_dropped
            .inc_by(total.saturating_sub(self.log_lines_dropped.get()));
    }
}

/// One request of the application, from its head to the last byte of the answer; recorded when dropped.
pub struct RequestScope {
    metrics: Arc<Metrics>,
    method: Method,
    started: Instant,
    status: Option<StatusCode>,
}

impl RequestScope {
    /// When the request head was complete.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The answer's status. A scope dropped without one was abandoned by the application before there was an answer.
    pub fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
    }
}

impl Drop for RequestScope {
    fn drop(&mut self) {
        self.metrics.server_active.dec();
        // 499 is nginx's "client closed request"; no answer of ours or the upstream's carries it.
        let status = self.status.map_or(499, |status| status.as_u16());
        self.metrics
            .server_duration
            .observe(&self.method, status, self.started.elapsed());
    }
}

/// Handles for one upstream host.
pub struct UpstreamMetrics {
    duration: RequestDurations,
    retries: [IntCounter; RetryReason::ALL.len()],
}

impl UpstreamMetrics {
    /// A response head arrived.
    pub fn answered(&self, method: &Method, status: StatusCode, time: Duration) {
        self.duration.observe(method, status.as_u16(), time);
    }

    /// A request is sent once more.
    pub fn retried(&self, reason: RetryReason) {
        self.retries[reason as usize].inc();
    }

    /// No response head arrived.
    pub fn failed(&self, method: &Method, fault: SendFault, time: Duration) {
        self.duration.observe_fault(method, fault, time);
    }
}

/// Adds one to a gauge for as long as it lives.
pub struct GaugeGuard(IntGauge);

impl GaugeGuard {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Registers a metric of a fixed name.
///
/// # Panics
/// When a name is malformed or used twice; names are constants of this folder, so a test run shows it.
#[expect(
    clippy::expect_used,
    reason = "names and labels are constants of this folder"
)]
fn register<C: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<C>,
) -> C {
    let metric = metric.expect("metric names and labels are well-formed");
    register_collector(registry, metric.clone());
    metric
}

#[expect(clippy::expect_used, reason = "names are constants of this folder")]
fn register_collector(registry: &Registry, collector: impl prometheus::core::Collector + 'static) {
    registry
        .register(Box::new(collector))
        .expect("metric names are unique");
}

fn gauge(r: &Registry, name: &str, help: &str) -> IntGauge {
    register(r, IntGauge::new(name, help))
}

fn counter(r: &Registry, name: &str, help: &str) -> IntCounter {
    register(r, IntCounter::new(name, help))
}

/// One counter for each value of a closed label.
fn counters<L: labels::Label<N>, const N: usize>(
    r: &Registry,
    name: &str,
    help: &str,
    label: &str,
) -> [IntCounter; N] {
    let family = register(r, IntCounterVec::new(Opts::new(name, help), &[label]));
    L::VALUES.map(|value| family.with_label_values(&[value]))
}

fn histograms(r: &Registry, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    let options = HistogramOpts::new(name, help).buckets(DURATION_BUCKETS.to_vec());
    register(r, HistogramVec::new(options, labels))
}
