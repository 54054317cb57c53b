//! `health`, `wait` and `quit`: ask the admin port of a running sidecar. An image without a shell has no curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use tokio::time::{Instant, sleep, timeout};

use super::arguments::Probe;
use super::{Exit, block_on, refused};
use crate::config::{Config, Inputs};
use crate::net::body::Body;
use crate::net::client::HttpClient;
use crate::net::connect::{ConnectConfig, Connector};
use crate::net::tls::{HttpVersions, TlsError};

impl Probe {
    fn path(self) -> &'static str {
        match self {
            Self::Startup => "/startupz",
            Self::Ready => "/readyz?verbose",
            Self::Live => "/livez",
        }
    }
}

pub(super) fn with_admin<F: Future<Output = Exit>>(
    inputs: &Inputs,
    command: impl FnOnce(AdminClient) -> F,
) -> Exit {
    match Config::load_admin(inputs) {
        Ok(admin) => match AdminClient::new(admin.listen) {
            Ok(admin) => block_on(async { command(admin).await }),
            Err(error) => {
                eprintln!("bearerd: {error}");
                Exit::Failure
            }
        },
        Err(error) => refused(&error),
    }
}

pub(super) async fn health(admin: AdminClient, probe: Probe) -> Exit {
    match admin.get(probe.path()).await {
        Ok((status, text)) => {
            say!("{}", text.trim_end());
            if status == StatusCode::OK {
                Exit::Clean
            } else {
                Exit::Failure
            }
        }
        Err(message) => {
            eprintln!("bearerd: {message}");
            Exit::Failure
        }
    }
}

pub(super) async fn wait(admin: AdminClient, limit: Duration) -> Exit {
    const INTERVAL: Duration = Duration::from_millis(100);
    let deadline = Instant::now() + limit;
    loop {
        let last = match admin.get("/readyz").await {
            Ok((StatusCode::OK, _)) => return Exit::Clean,
            Ok((_, text)) => text,
            Err(message) => format!("{message}\n"),
        };
        if Instant::now() + INTERVAL >= deadline {
            eprint!(
                "bearerd: not ready within {}\n{last}",
                humantime::format_duration(limit)
            );
            return Exit::Failure;
        }
        sleep(INTERVAL).await;
    }
}

/// Ends when the wish was heard; the sidecar drains then.
pub(super) async fn quit(admin: AdminClient) -> Exit {
    match admin.ask(Method::POST, "/quitquitquit").await {
        Ok((StatusCode::ACCEPTED, text)) => {
            say!("{}", text.trim_end());
            Exit::Clean
        }
        Ok((status, text)) => {
            eprintln!("bearerd: {} ({})", text.trim_end(), status.as_u16());
            Exit::Failure
        }
        Err(message) => {
            eprintln!("bearerd: {message}");
            Exit::Failure
        }
    }
}

/// Asks the admin port of a running sidecar.
pub(super) struct AdminClient {
    address: SocketAddr,
    client: HttpClient,
}

impl AdminClient {
    const TIMEOUT: Duration = Duration::from_secs(2);
    const MAX_ANSWER_BYTES: usize = 64 * 1024;

    /// A sidecar that listens everywhere is asked on loopback.
    fn new(listen: SocketAddr) -> Result<Self, TlsError> {
        let ip = match listen.ip() {
            ip if !ip.is_unspecified() => ip,
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        let config = ConnectConfig::new(Self::TIMEOUT, HttpVersions::Http1);
        Ok(Self {
            address: SocketAddr::new(ip, listen.port()),
            client: HttpClient::new(Connector::new(&config, None)?),
        })
    }

    async fn get(&self, path: &str) -> Result<(StatusCode, String), String> {
        self.ask(Method::GET, path).await
    }

    async fn ask(&self, method: Method, path: &str) -> Result<(StatusCode, String), String> {
        let unreachable =
            |cause: String| format!("no answer from http://{}: {cause}", self.address);
        match timeout(Self::TIMEOUT, self.exchange(method, path)).await {
            Ok(answer) => answer.map_err(unreachable),
            Err(_) => Err(unreachable("timed out".to_owned())),
        }
    }

    async fn exchange(&self, method: Method, path: &str) -> Result<(StatusCode, String), String> {
        let uri: Uri = format!("http://{}{path}", self.address)
            .parse()
            .map_err(|error| format!("{error}"))?;
        let mut request = Request::new(Body::empty());
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        let (head, body) = self
            .client
            .send(request)
            .await
            .map_err(|error| error.to_string())?
            .into_parts();
        let body = Limited::new(body, Self::MAX_ANSWER_BYTES);
        let body = body
            .collect()
            .await
            .map_err(|error| error.to_string())?
            .to_bytes();
        Ok((head.status, String::from_utf8_lossy(&body).into_owned()))
    }
}
