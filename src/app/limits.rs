//! How much there may be at once, as far as the process may open files for it.

use crate::config::Config;

/// Files that are neither connections of applications nor of upstreams: those to the admin port and the authorization
/// server, listeners, event queues, the log.
const OWN_FILES: usize = 64;
/// What there may be at once, so that the file descriptors suffice.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) connections: usize,
    pub(super) in_flight: usize,
}

impl Limits {
    /// A connection of an application is worth nothing without one to the upstream: up to a half of `files` is kept for
    /// those.
    pub(super) fn of(config: &Config, files: Option<u64>) -> Self {
        let files = files.map_or(usize::MAX, |files| {
            usize::try_from(files).unwrap_or(usize::MAX)
        });
        let files = files.saturating_sub(OWN_FILES);
        let idle = config.workers.saturating_mul(config.upstream.pool.max_idle);
        let in_flight = config.proxy.max_in_flight;
        let upstream = in_flight.saturating_add(idle).min(files / 2);
        Self {
            connections: config.proxy.max_connections.min(files - upstream).max(1),
            in_flight: in_flight.min(upstream).max(1),
        }
    }
}
