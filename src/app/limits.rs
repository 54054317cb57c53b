//! How much there may be at once, as far as the process may open files for it.

use crate::config::Config;

/// Files that are neither connections of applications nor of upstreams: those to the admin port and the authorization
/// server, listeners, event queues, the log.
const OWN_FILES: usize = 96;

/// What there may be at once, so that the file descriptors suffice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) connections: usize,
    pub(super) in_flight: usize,
}

impl Limits {
    pub(super) fn of(config: &Config, files: Option<u64>) -> Self {
        let wanted = Self {
            connections: config.proxy.max_connections,
            in_flight: config.proxy.max_in_flight,
        };
        let upstreams = config.upstreams.iter();
        let idle: usize = upstreams.map(|upstream| upstream.pool.max_idle).sum();
        let idle = config.workers.saturating_mul(idle);
        match files {
            Some(files) => wanted.within(usize::try_from(files).unwrap_or(usize::MAX), idle),
            None => wanted,
        }
    }

    /// A connection of an application is worth nothing without one to the upstream: up to a half of `files` is kept for
    /// those, in use or idle.
    fn within(self, files: usize, idle: usize) -> Self {
        let files = files.saturating_sub(OWN_FILES);
        let upstream = self.in_flight.saturating_add(idle).min(files / 2);
        Self {
            connections: self.connections.min(files - upstream).max(1),
            in_flight: self.in_flight.min(upstream).max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// E-41
    #[test]
    fn files_are_kept_for_the_upstream() {
        let wanted = Limits {
            connections: 4096,
            in_flight: 1024,
        };
        for (files, connections, in_flight) in [
            (1 << 20, 4096, 1024),
            (4096 + 1024 + 128 + 96, 4096, 1024),
            (4096 + 1024 + 128 + 95, 4095, 1024),
            (1024, 464, 464),
            (256, 80, 80),
            (10, 1, 1),
        ] {
            let limits = Limits {
                connections,
                in_flight,
            };
            assert_eq!(wanted.within(files, 128), limits, "{files} files");
        }
    }
}
