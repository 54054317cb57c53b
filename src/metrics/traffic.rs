//! What the metrics say of the traffic at one moment, for the status page.

use std::time::{Duration, SystemTime};

use super::labels::Code;
use super::{DURATION_BUCKETS, Metrics};

/// Seconds since 1970, as metrics tell points in time.
pub fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

/// Now.
pub fn unix_now() -> f64 {
    unix_seconds(SystemTime::now())
}

/// Totals since the start, and what there is now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Requests answered.
    pub requests: u64,
    /// Those that got a 5xx, of the upstream or of ours.
    pub server_errors: u64,
    /// Those that got an error of ours, whatever its status.
    pub refused: u64,
    /// Requests by how long they took: up to each of the boundaries of a histogram, and longer.
    pub durations: [u64; DURATION_BUCKETS.len() + 1],
    pub in_flight: i64,
    /// Connections of applications.
    pub connections: i64,
    pub tunnels: i64,
    pub upstream_connections: i64,
}

impl Traffic {
    /// What came since `before`; what there is now stays.
    pub fn since(&self, before: &Self) -> Self {
        let mut durations = self.durations;
        for (count, before) in durations.iter_mut().zip(before.durations) {
            *count = count.saturating_sub(before);
        }
        Self {
            requests: self.requests.saturating_sub(before.requests),
            server_errors: self.server_errors.saturating_sub(before.server_errors),
            refused: self.refused.saturating_sub(before.refused),
            durations,
            ..*self
        }
    }

    /// The duration that a share of the requests did not exceed, from 0.0 to 1.0; estimated within its bucket, and at most
    /// the last boundary. None without requests.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let all: u64 = self.durations.iter().sum();
        if all == 0 {
            return None;
        }
        let rank = share * all as f64;
        let mut below = 0.0;
        let mut lower = 0.0;
        for (count, upper) in self.durations.iter().zip(DURATION_BUCKETS) {
            let count = *count as f64;
            if count > 0.0 && below + count >= rank {
                let part = (rank - below) / count;
                return Some(Duration::from_secs_f64(lower + (upper - lower) * part));
            }
            below += count;
            lower = *upper;
        }
        Some(Duration::from_secs_f64(lower))
    }
}

impl Metrics {
    /// The traffic so far.
    pub fn traffic(&self) -> Traffic {
        let totals = self.server_duration.totals();
        Traffic {
            requests: totals.durations.iter().sum(),
            server_errors: totals.server_errors,
            refused: self.rejected.iter().map(|counter| counter.get()).sum(),
            durations: totals.durations,
            in_flight: self.server_active.get(),
            connections: self.connections_open.get(),
            tunnels: self.tunnels_open.get(),
            upstream_connections: self.upstream_connections.get(),
        }
    }

    /// How often the sidecar answered with each of its own errors, those that came at all.
    pub fn refusals(&self) -> Vec<(Code, u64)> {
        let counts = Code::ALL.into_iter().zip(&self.rejected);
        let counts = counts.map(|(code, counter)| (code, counter.get()));
        counts.filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode};

    use super::*;

    #[test]
    fn quantiles_are_estimated_within_buckets() {
        let mut traffic = Traffic::default();
        assert_eq!(traffic.quantile(0.5), None);
        // Ten up to 5 ms, ten from 50 to 75 ms.
        traffic.durations[0] = 10;
        traffic.durations[4] = 10;
        let millis = |share| traffic.quantile(share).unwrap().as_secs_f64() * 1000.0;
        assert!((millis(0.25) - 2.5).abs() < 1e-6);
        assert!((millis(0.5) - 5.0).abs() < 1e-6);
        assert!((millis(0.75) - 62.5).abs() < 1e-6);
        let mut slow = Traffic::default();
        slow.durations[DURATION_BUCKETS.len()] = 1;
        assert_eq!(slow.quantile(0.99), Some(Duration::from_secs(60)));
    }

    #[test]
    fn requests_are_counted_by_duration_and_errors_by_status() {
        let metrics = Metrics::new();
        let before = metrics.traffic();
        assert_eq!(before, Traffic::default());
        for status in [200, 404, 503] {
            let mut scope = metrics.request(&Method::GET);
            scope.answered(StatusCode::from_u16(status).unwrap());
        }
        let open = metrics.request(&Method::POST);
        metrics.rejected(Code::TokenUnavailable);
        let traffic = metrics.traffic().since(&before);
        assert_eq!((traffic.requests, traffic.server_errors), (3, 1));
        assert_eq!((traffic.refused, traffic.in_flight), (1, 1));
        assert_eq!(traffic.durations[0], 3, "all of them were fast");
        assert_eq!(metrics.refusals(), [(Code::TokenUnavailable, 1)]);
        drop(open);
        assert_eq!(metrics.traffic().since(&traffic).in_flight, 0);
    }
}
