//! The log: format, level, and a writer that never holds up a request.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};

use crate::config::{LogConfig, LogFormat};

/// Lines that may wait for a slow reader of the log; later ones are dropped and counted.
const BUFFERED_LINES: usize = 16 * 1024;

/// Keeps the log's writer running; dropping it writes what is left.
pub struct Telemetry {
    _writer: WorkerGuard,
    dropped: ErrorCounter,
}

impl Telemetry {
    /// Sends the log of the whole process to the standard error output. Standard output stays free for what a command
    /// was asked for.
    pub fn start(config: LogConfig) -> Self {
        let (writer, guard) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(BUFFERED_LINES)
            .thread_name("bearerd-log")
            .finish(std::io::stderr());
        let dropped = writer.error_counter();
        let terminal = std::io::stderr().is_terminal();
        let log = tracing_subscriber::fmt()
            .with_max_level(LevelFilter::from_level(config.level))
            .with_writer(writer);
        let text = match config.format {
            LogFormat::Auto => terminal,
            LogFormat::Text => true,
            LogFormat::Json => false,
        };
        if text {
            log.with_ansi(terminal).with_target(false).init();
        } else {
            log.json().flatten_event(true).init();
        }
        Self {
            _writer: guard,
            dropped,
        }
    }

    /// Counts the lines that were dropped.
    pub fn dropped_lines(&self) -> ErrorCounter {
        self.dropped.clone()
    }
}
