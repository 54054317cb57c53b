//! Request durations by method and status, with a hard bound on the number of series.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Method;
use prometheus::core::Collector as _;
use prometheus::{Histogram, HistogramVec};

use super::DURATION_BUCKETS;
use super::labels::SendFault;

/// The methods that are told apart; all others are `_OTHER`, as OpenTelemetry has it.
const METHODS: [&str; 10] = [
    "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "QUERY",
];
const OTHER: &str = "_OTHER";

/// Statuses 100 to 599, one place for those that belong to no class, and one for each way to have none.
const STATUSES: usize = UNCLASSED + 1;
const UNCLASSED: usize = 500;
const RESULTS: usize = STATUSES + SendFault::ALL.len();

/// So many (method, result) pairs of one histogram get a series of their own; later ones fold into the method
/// `_OTHER` with the first status of their class or with their fault, at most 14 more. An application cannot
/// grow the registry by inventing methods, nor an upstream by inventing statuses.
const MAX_PAIRS: usize = 12;

/// What all series of a histogram add up to.
#[derive(Default)]
pub(super) struct Totals {
    /// Up to each boundary, and longer.
    pub(super) durations: [u64; DURATION_BUCKETS.len() + 1],
    /// Those with a status of 500 to 599.
    pub(super) server_errors: u64,
}

/// A histogram by method and result. Handles are resolved once, then found by index.
pub(super) struct RequestDurations {
    family: HistogramVec,
    server_address: Option<String>,
    pairs: Box<[OnceLock<Histogram>]>,
    resolved: AtomicUsize,
}

impl RequestDurations {
    /// Over labels (method, status).
    pub(super) fn server(family: HistogramVec) -> Self {
        Self::new(family, None)
    }

    /// Over labels (method, status, server address, error type).
    pub(super) fn client(family: HistogramVec, server_address: &str) -> Self {
        Self::new(family, Some(server_address.to_owned()))
    }

    fn new(family: HistogramVec, server_address: Option<String>) -> Self {
        Self {
            family,
            server_address,
            pairs: (0..(METHODS.len() + 1) * RESULTS)
                .map(|_| OnceLock::new())
                .collect(),
            resolved: AtomicUsize::new(0),
        }
    }

    /// All of it together.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for metric in self
            .family
            .collect()
            .iter()
            .flat_map(|family| family.get_metric())
        {
            let histogram = metric.get_histogram();
            let count = histogram.get_sample_count();
            let mut below = 0;
            for (index, bucket) in histogram.get_bucket().iter().enumerate() {
                totals.durations[index] += bucket.cumulative_count().saturating_sub(below);
                below = bucket.cumulative_count();
            }
            totals.durations[DURATION_BUCKETS.len()] += count.saturating_sub(below);
            let is_error = metric.get_label().iter().any(|label| {
                label.name() == "http_response_status_code" && label.value().starts_with('5')
            });
            if is_error {
                totals.server_errors += count;
            }
        }
        totals
    }

    pub(super) fn observe(&self, method: &Method, status: u16, time: Duration) {
        let result = usize::from(status).saturating_sub(100).min(UNCLASSED);
        self.observe_pair(method_index(method), result, time);
    }

    pub(super) fn observe_fault(&self, method: &Method, fault: SendFault, time: Duration) {
        self.observe_pair(method_index(method), STATUSES + fault as usize, time);
    }

    fn observe_pair(&self, method: usize, result: usize, time: Duration) {
        self.pair(method, result).observe(time.as_secs_f64());
    }

    fn pair(&self, method: usize, result: usize) -> &Histogram {
        let place = &self.pairs[method * RESULTS + result];
        if let Some(histogram) = place.get() {
            return histogram;
        }
        if self.resolved.fetch_add(1, Ordering::Relaxed) < MAX_PAIRS {
            return place.get_or_init(|| self.resolve(method, result));
        }
        let class = if result < UNCLASSED {
            result / 100 * 100
        } else {
            result
        };
        self.pairs[METHODS.len() * RESULTS + class]
            .get_or_init(|| self.resolve(METHODS.len(), class))
    }

    fn resolve(&self, method: usize, result: usize) -> Histogram {
        let method = METHODS.get(method).copied().unwrap_or(OTHER);
        let (status, fault) = match result.checked_sub(STATUSES) {
            None if result == UNCLASSED => ("other".to_owned(), ""),
            None => ((result + 100).to_string(), ""),
            Some(fault) => (String::new(), SendFault::ALL.map(SendFault::as_str)[fault]),
        };
        match &self.server_address {
            None => self.family.with_label_values(&[method, &status]),
            Some(address) => self
                .family
                .with_label_values(&[method, &status, address, fault]),
        }
    }
}

fn method_index(method: &Method) -> usize {
    METHODS
        .iter()
        .position(|known| *known == method.as_str())
        .unwrap_or(METHODS.len())
}

#[cfg(test)]
mod tests {
    use prometheus::HistogramOpts;
    use prometheus::core::Collector;

    use super::*;

    #[test]
    fn a_flood_of_methods_and_statuses_stays_bounded() {
        let labels = ["http_request_method", "http_response_status_code"];
        let family = HistogramVec::new(HistogramOpts::new("d", "d"), &labels).unwrap();
        let durations = RequestDurations::server(family.clone());
        for status in 0..1000 {
            for method in METHODS.into_iter().chain(["FOO", "get"]) {
                let method = Method::from_bytes(method.as_bytes()).unwrap();
                durations.observe(&method, status, Duration::from_millis(1));
            }
        }
        let series = family.collect()[0].get_metric().len();
        assert!((MAX_PAIRS..=MAX_PAIRS + 14).contains(&series), "{series}");
        let counted: u64 = family.collect()[0]
            .get_metric()
            .iter()
            .map(|m| m.get_histogram().get_sample_count())
            .sum();
        assert_eq!(counted, 12_000, "nothing is lost by folding");
    }
}
