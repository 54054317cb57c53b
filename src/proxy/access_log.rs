//! One line for each request that is worth one.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::Duration;

use http::header::HeaderValue;
use http::{Method, StatusCode};
use tracing::info;

use crate::net::socket::Peer;

/// Which requests are logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessLog {
    /// Those whose status is not 2xx.
    #[default]
    Errors,
    /// All.
    All,
    /// None.
    Off,
}

/// What the access log says of a request. Queries, header values and bodies stay out of it.
pub(super) struct AccessLine<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    pub(super) status: StatusCode,
    /// An error of ours: its code, and what it was.
    pub(super) error: Option<(&'static str, String)>,
    pub(super) duration: Duration,
    /// The part of it in which the upstream was waited for.
    pub(super) upstream: Duration,
    pub(super) peer: Peer,
    pub(super) request_id: &'a HeaderValue,
}

impl AccessLine<'_> {
    /// Writes it, if `which` has it.
    pub(super) fn write(self, which: AccessLog) {
        let wanted = match which {
            AccessLog::Off => false,
            AccessLog::All => true,
            AccessLog::Errors => !self.status.is_success(),
        };
        if !wanted {
            return;
        }
        let (code, cause) = self.error.unzip();
        info!(
            target: "access",
            {
                http.request.method = %self.method,
                url.path = &*shown(self.path),
                http.response.status_code = self.status.as_u16(),
                error.type = code,
                cause,
                duration_ms = self.duration.as_secs_f64() * 1000.0,
                upstream_duration_ms = self.upstream.as_secs_f64() * 1000.0,
                client.address = %self.peer,
                request_id = self.request_id.to_str().unwrap_or_default()
            },
            "request"
        );
    }
}

/// A path for the log: so much of it as a person reads. What is not ASCII stands there as escapes, as it could have been
/// sent: it may hold what ends a line, turns it around or speaks to a terminal.
fn shown(path: &str) -> Cow<'_, str> {
    let path = &path[..path.floor_char_boundary(1024)];
    if path.is_ascii() {
        return path.into();
    }
    let mut escaped = String::with_capacity(3 * path.len());
    for byte in path.bytes() {
        if byte.is_ascii() {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped.into()
}
