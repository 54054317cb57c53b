//! One line for each request that is worth one.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::Duration;

use http::header::HeaderValue;
use http::{Method, Request, StatusCode, Uri};
use hyper::body::Incoming;
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
pub(super) struct AccessLine {
    method: Method,
    uri: Uri,
    peer: Peer,
}

impl AccessLine {
    pub(super) fn of(request: &Request<Incoming>, peer: Peer) -> Self {
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            peer,
        }
    }

    pub(super) fn write(
        &self,
        which: AccessLog,
        status: StatusCode,
        error: Option<(&'static str, String)>,
        request_id: &HeaderValue,
        duration: Duration,
        upstream: Duration,
    ) {
        let wanted = match which {
            AccessLog::Off => false,
            AccessLog::All => true,
            AccessLog::Errors => !status.is_success(),
        };
        if !wanted {
            return;
        }
        let (code, cause) = error.unzip();
        info!(
            target: "access",
            {
                http.request.method = %self.method,
                url.path = &*shown(self.uri.path()),
                http.response.status_code = status.as_u16(),
                error.type = code,
                cause,
                duration_ms = duration.as_secs_f64() * 1000.0,
                upstream_duration_ms = upstream.as_secs_f64() * 1000.0,
                client.address = %self.peer,
                request_id = request_id.to_str().unwrap_or_default()
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
