//! The configuration: file < environment < flags, checked as a whole, with every mistake told at once.
//!
//! The parts own their settings ([`GuardConfig`], [`UpstreamConfig`], [`CredentialConfig`] …); this folder reads the
//! tables they are written in and resolves them. A secret is never written in the file, only where it is.

mod client_auth;
mod connect;
mod credential;
mod effective;
pub mod error;
#[cfg(feature = "otel")]
mod otel;
mod overlay;
mod resolve;
mod route;
mod service_manager;
mod setting;
mod tables;
mod upstream;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::net::socket::ListenAddress;
use crate::oauth::CredentialConfig;
use crate::proxy::AccessLog;
use crate::proxy::guard::GuardConfig;
use crate::proxy::route::RouteConfig;
use crate::proxy::upstream::UpstreamConfig;
pub use error::ConfigError;
#[cfg(feature = "otel")]
pub use otel::Otel;
pub use overlay::{Flags, Inputs};
pub use service_manager::ServiceManager;
use tables::Tables;

/// Everything that is configured, checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub proxy: ProxyConfig,
    pub admin: AdminConfig,
    /// Data-plane worker threads; never 0.
    pub workers: usize,
    pub log: LogConfig,
    /// At least one.
    pub upstreams: Vec<UpstreamConfig>,
    /// At least one.
    pub credentials: Vec<CredentialConfig>,
    /// At least one.
    pub routes: Vec<RouteConfig>,
    /// Those that the routes name, at least one; each once.
    pub tokens: Vec<TokenConfig>,
    /// Where it all came from, for one line of the log.
    pub sources: Sources,
    /// What is odd but does not stop us.
    pub warnings: Vec<String>,
}

/// One kind of token that routes ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenConfig {
    /// Which of the credentials, from 0.
    pub credential: usize,
    /// Space-delimited (RFC 6749 §3.3); none for the server's default.
    pub scope: Option<String>,
    /// What logs, metrics and probes call it: the credential, and its scope where that is not the credential's own.
    pub label: String,
    /// Whether it is renewed though no request uses it: one of each credential is.
    pub renew_unused: bool,
}

/// The listener for applications.
#[derive(Clone, Debug, PartialEq)]
pub struct ProxyConfig {
    /// At least one.
    pub listen: Vec<ListenAddress>,
    /// Of the files of Unix sockets.
    pub unix_socket_mode: u32,
    pub guard: GuardConfig,
    /// Whether HTTP/2 with prior knowledge is spoken beside HTTP/1.1.
    pub http2: bool,
    /// From accept, or from the last answer, to a complete request head.
    pub header_timeout: Duration,
    /// Open connections.
    pub max_connections: usize,
    /// Requests in flight.
    pub max_in_flight: usize,
    /// Bytes of a request head.
    pub max_header_bytes: usize,
    /// Bytes of a request body.
    pub max_body_bytes: Option<u64>,
    /// After SIGTERM: serve on for this long.
    pub drain_delay: Duration,
    /// From the signal to the end, `drain_delay` included.
    pub drain_timeout: Duration,
    pub access_log: AccessLog,
}

/// The listener for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    pub listen: SocketAddr,
    /// Whether `POST /quitquitquit` ends the process.
    pub quit: bool,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9090)),
            quit: false,
        }
    }
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    pub level: tracing::Level,
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: tracing::Level::INFO,
            format: LogFormat::Auto,
        }
    }
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    Text,
    Json,
}

/// Where the configuration came from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub file: Option<PathBuf>,
    /// Variables that were used.
    pub variables: usize,
    /// Flags that were used.
    pub flags: usize,
}

impl std::fmt::Display for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.file {
            Some(path) => write!(f, "{}", path.display())?,
            None => f.write_str("no file")?,
        }
        write!(f, " + {} variables + {} flags", self.variables, self.flags)
    }
}

impl Config {
    /// Reads and checks everything `inputs` name. Secret files are read once, to prove that they can be.
    ///
    /// # Errors
    /// Every mistake there is, at once; only what makes the file unreadable as TOML stops at the first.
    pub fn load(inputs: &Inputs) -> Result<Self, ConfigError> {
        let (mut tables, file) = read_tables(inputs)?;
        let mut problems = Vec::new();
        let sources = inputs.lay_over(&mut tables, &mut problems);
        let config = resolve::config(tables, sources, inputs.warnings(), &mut problems);
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(ConfigError::new(file, problems)),
        }
    }

    /// The configuration in effect as TOML, each value with a comment that says where it comes from, and what may be a
    /// secret as `***`. Only of one that is good: in another, anything can stand where a secret would.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    pub fn effective(inputs: &Inputs) -> Result<String, ConfigError> {
        let config = Self::load(inputs)?;
        let (mut tables, file) = read_tables(inputs)?;
        inputs.lay_over(&mut tables, &mut Vec::new());
        Ok(effective::text(&tables, file.as_ref(), config.workers))
    }

    /// The settings that differ in `next` and are looked at when the process starts, and never again.
    pub fn changed_for_restart(&self, next: &Self) -> Vec<&'static str> {
        let (old, new) = (&self.proxy, &next.proxy);
        let changes = [
            ("proxy.listen", old.listen != new.listen),
            (
                "proxy.unix_socket_mode",
                old.unix_socket_mode != new.unix_socket_mode,
            ),
            ("proxy.http2", old.http2 != new.http2),
            (
                "proxy.header_timeout",
                old.header_timeout != new.header_timeout,
            ),
            (
                "proxy.max_connections",
                old.max_connections != new.max_connections,
            ),
            (
                "proxy.max_in_flight",
                old.max_in_flight != new.max_in_flight,
            ),
            (
                "proxy.max_header_bytes",
                old.max_header_bytes != new.max_header_bytes,
            ),
            ("admin.listen", self.admin.listen != next.admin.listen),
            ("admin.quit", self.admin.quit != next.admin.quit),
            ("runtime.workers", self.workers != next.workers),
            ("log", self.log != next.log),
        ];
        changes
            .into_iter()
            .filter_map(|(key, has_changed)| has_changed.then_some(key))
            .collect()
    }

    /// The admin address alone, for commands that only talk to a running sidecar.
    ///
    /// # Errors
    /// When the file cannot be read, or the address is wrong; other mistakes do not matter here.
    pub fn load_admin(inputs: &Inputs) -> Result<AdminConfig, ConfigError> {
        let (mut tables, file) = read_tables(inputs)?;
        inputs.lay_over(&mut tables, &mut Vec::new());
        let mut problems = Vec::new();
        let admin = resolve::admin(tables.admin, &mut problems);
        if problems.is_empty() {
            Ok(admin)
        } else {
            Err(ConfigError::new(file, problems))
        }
    }
}

type FileText = Option<(PathBuf, String)>;

fn read_tables(inputs: &Inputs) -> Result<(Tables, FileText), ConfigError> {
    let Some(path) = inputs.file() else {
        return Ok((Tables::default(), None));
    };
    let text =
        std::fs::read_to_string(&path).map_err(|error| ConfigError::unreadable(&path, &error))?;
    match toml::from_str(&text) {
        Ok(tables) => Ok((tables, Some((path, text)))),
        Err(error) => Err(ConfigError::malformed(path, text, &error)),
    }
}

#[cfg(test)]
mod tests;
