//! The traffic of the last quarter of an hour, in samples: enough for a curve, and no more memory than a page.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::metrics::{Metrics, Traffic, unix_now};

/// From one sample to the next.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
/// 15 minutes of them.
const SAMPLES: usize = 180;

/// What happened between two moments.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Its end, in Unix seconds.
    at: f64,
    requests_per_second: f64,
    server_errors_per_second: f64,
    refused_per_second: f64,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    connections: i64,
    upstream_connections: i64,
}

/// The last samples.
pub struct History(Mutex<VecDeque<Sample>>);

/// The same as columns, the oldest first: a third of the bytes.
#[derive(Default, Serialize)]
pub(super) struct Columns {
    at: Vec<f64>,
    requests_per_second: Vec<f64>,
    server_errors_per_second: Vec<f64>,
    refused_per_second: Vec<f64>,
    p50_ms: Vec<Option<f64>>,
    p99_ms: Vec<Option<f64>>,
    connections: Vec<i64>,
    upstream_connections: Vec<i64>,
}

impl History {
    /// None yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(VecDeque::with_capacity(SAMPLES))))
    }

    /// Takes samples until it is dropped.
    pub async fn record(self: Arc<Self>, metrics: Arc<Metrics>) {
        let mut ticks = interval(SAMPLE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is at once.
        let mut last = ticks.tick().await;
        let mut before = metrics.traffic();
        loop {
            ticks.tick().await;
            let (now, traffic) = (Instant::now(), metrics.traffic());
            self.add(&traffic.since(&before), now.duration_since(last));
            (last, before) = (now, traffic);
        }
    }

    fn add(&self, traffic: &Traffic, time: Duration) {
        let seconds = time.as_secs_f64().max(f64::EPSILON);
        let rate = |count: u64| rounded(count as f64 / seconds, 100.0);
        let millis = |share| {
            let duration = traffic.quantile(share)?;
            Some(rounded(duration.as_secs_f64() * 1000.0, 10.0))
        };
        let sample = Sample {
            at: rounded(unix_now(), 10.0),
            requests_per_second: rate(traffic.requests),
            server_errors_per_second: rate(traffic.server_errors),
            refused_per_second: rate(traffic.refused),
            p50_ms: millis(0.5),
            p99_ms: millis(0.99),
            connections: traffic.connections,
            upstream_connections: traffic.upstream_connections,
        };
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while samples.len() >= SAMPLES {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    pub(super) fn columns(&self) -> Columns {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut columns = Columns::default();
        for sample in samples.iter() {
            columns.at.push(sample.at);
            columns.requests_per_second.push(sample.requests_per_second);
            columns
                .server_errors_per_second
                .push(sample.server_errors_per_second);
            columns.refused_per_second.push(sample.refused_per_second);
            columns.p50_ms.push(sample.p50_ms);
            columns.p99_ms.push(sample.p99_ms);
            columns.connections.push(sample.connections);
            columns
                .upstream_connections
                .push(sample.upstream_connections);
        }
        columns
    }
}

/// To so many parts of one, for a page that nobody reads with sixteen digits.
fn rounded(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn samples_are_of_five_seconds_and_the_last_quarter_of_an_hour() {
        let (metrics, history) = (Metrics::new(), History::new());
        let recorder = tokio::spawn(history.clone().record(metrics.clone()));
        tokio::time::sleep(Duration::from_secs(1)).await;
        for status in [200, 200, 200, 200, 502] {
            let mut scope = metrics.request(&Method::GET);
            scope.answered(StatusCode::from_u16(status).unwrap());
        }
        let connection = metrics.connection();
        tokio::time::sleep(Duration::from_secs(8)).await;
        drop(connection);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let columns = history.columns();
        assert_eq!(columns.requests_per_second, [1.0, 0.0]);
        assert_eq!(columns.server_errors_per_second, [0.2, 0.0]);
        assert_eq!(columns.connections, [1, 0]);
        assert_eq!(columns.p50_ms, [Some(2.5), None]);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(history.columns().at.len(), SAMPLES);
        recorder.abort();
    }
}
