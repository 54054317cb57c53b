//! The log, as far as operators see and change it while it is written.

use std::fmt;
use std::str::FromStr;

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::ErrorCounter;
use tracing_subscriber::{Registry, reload};

/// The levels there are, the quietest first.
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// The log of this process. Clones are the same log.
#[derive(Clone)]
pub struct LogControl {
    dropped_lines: ErrorCounter,
    level: reload::Handle<LevelFilter, Registry>,
}

impl LogControl {
    /// `dropped_lines` counts what could not be written in time; `level` decides what is written.
    pub fn new(dropped_lines: ErrorCounter, level: reload::Handle<LevelFilter, Registry>) -> Self {
        Self {
            dropped_lines,
            level,
        }
    }

    /// Lines that were dropped so far.
    pub(super) fn dropped_lines(&self) -> u64 {
        let dropped = self.dropped_lines.dropped_lines();
        dropped.try_into().unwrap_or(u64::MAX)
    }

    /// The level now; none when the log has ended.
    pub(super) fn level(&self) -> Option<LogLevel> {
        let level = self.level.clone_current()?.into_level()?;
        Some(LogLevel(level))
    }

    /// Logs from now on what is at least as grave as `level`; whether the log is still there to do so.
    pub(super) fn set_level(&self, level: LogLevel) -> bool {
        self.level.reload(LevelFilter::from_level(level.0)).is_ok()
    }
}

/// A level, by the words of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogLevel(Level);

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            // Numbers are levels to tracing too.
            Ok(level) if LEVELS.contains(&text) => Ok(Self(level)),
            _ => Err(format!("one of {}", LEVELS.join(", "))),
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.as_str().to_ascii_lowercase())
    }
}
