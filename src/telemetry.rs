//! The log: format, level, and a writer that never holds up a request.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{fmt, reload};

use crate::admin::log::LogControl;
use crate::config::{LogConfig, LogFormat};

/// Lines that may wait for a slow reader of the log; later ones are dropped and counted.
const BUFFERED_LINES: usize = 8 * 1024;

/// Keeps the log's writer running; dropping it writes what is left.
pub struct Telemetry {
    _writer: WorkerGuard,
    control: LogControl,
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
        let dropped_lines = writer.error_counter();
        let terminal = std::io::stderr().is_terminal();
        let (level, handle) = reload::Layer::new(LevelFilter::from_level(config.level));
        let registry = tracing_subscriber::registry().with(level);
        let lines = fmt::layer().with_writer(writer);
        let text = match config.format {
            LogFormat::Auto => terminal,
            LogFormat::Text => true,
            LogFormat::Json => false,
        };
        if text {
            registry
                .with(lines.with_ansi(terminal).with_target(false))
                .init();
        } else {
            registry.with(lines.json().flatten_event(true)).init();
        }
        Self {
            _writer: guard,
            control: LogControl::new(dropped_lines, handle),
        }
    }

    /// What the admin port may see and change of it.
    pub fn control(&self) -> LogControl {
        self.control.clone()
    }
}
