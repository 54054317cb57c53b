//! For the tests of this folder: an authorization server in memory that answers as it is told, and a refresher that
//! asks it. Nothing here is a socket, so that tokio's paused time is exact.

use std::fmt::Display;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::access_token::{AccessToken, Grant, LifetimePolicy, Moment};
use super::client_auth::{BasicEncoding, ClientAuth, SecretMethod};
use super::refresher::{RefreshPolicy, Refresher, Signals};
use super::token_cache::{TokenCache, TokenHandle, TokenKey};
use super::token_endpoint::{
    ClientId, Location, ScopeDowngrade, TokenEndpoint, TokenEndpointConfig,
};
use crate::metrics::Metrics;
use crate::net::client::HttpClient;
use crate::net::connect::Connector;
use crate::net::tls::HttpVersions;
use crate::secret::SecretSource;
use crate::trace::Tracer;

/// Timers of tokio have a resolution of a millisecond.
pub(super) const TICK: Duration = Duration::from_millis(1);

/// The defaults.
pub(super) const POLICY: RefreshPolicy = RefreshPolicy {
    lifetime: LifetimePolicy {
        refresh_at: 0.8,
        refresh_jitter: 0.1,
        expiry_margin: secs(30),
    },
    wait_timeout: secs(5),
    max_waiting: 1024,
    renew_unused: true,
    revoke_at_end: false,
};

pub(super) const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A token endpoint as configured, with its secret in `secret`.
pub(super) fn config(secret: SecretSource) -> TokenEndpointConfig {
    TokenEndpointConfig {
        location: Location::Url("http://as.example/o/token/".parse().unwrap()),
        revoke_url: None,
        client_id: ClientId::Inline("sidecar".into()),
        client_auth: ClientAuth::Secrets(SecretMethod::Basic(BasicEncoding::Form), vec![secret]),
        scope: None,
        audience: Vec::new(),
        resource: Vec::new(),
        extra_params: Vec::new(),
        on_scope_downgrade: ScopeDowngrade::Warn,
        request_timeout: secs(10),
        default_lifetime: secs(300),
        max_lifetime: secs(86_400),
    }
}

/// A client, and the far ends of its connections.
pub(super) fn client() -> (HttpClient, mpsc::UnboundedReceiver<DuplexStream>) {
    let (connector, connections) = Connector::in_memory(HttpVersions::Http1);
    (HttpClient::new(connector), connections)
}

/// One whole request: its head as it came, and its form if it has one.
pub(super) async fn read_request(stream: &mut DuplexStream) -> String {
    let mut stream = BufReader::new(stream);
    let mut request = String::new();
    while !request.ends_with("\r\n\r\n") {
        let read = stream.read_line(&mut request).await.unwrap();
        assert_ne!(read, 0, "a whole head");
    }
    let mut length = request
        .lines()
        .filter_map(|line| line.strip_prefix("content-length: "));
    let mut form = vec![0; length.next().map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut form).await.unwrap();
    request + str::from_utf8(&form).unwrap()
}

/// What the server does with one request.
pub(super) struct Answer {
    after: Duration,
    text: String,
}

impl Answer {
    /// A token of `expires_in` seconds.
    pub(super) fn token(token: impl Display, expires_in: impl Display) -> Self {
        let body = format!(
            r#"{{"access_token":"{token}","token_type":"Bearer","expires_in":{expires_in}}}"#
        );
        Self::new(200, "content-type: application/json", &body)
    }

    /// No token.
    pub(super) fn status(status: u16) -> Self {
        Self::new(status, "content-type: text/plain", "no")
    }

    /// No token, and when to ask again.
    pub(super) fn retry_after(status: u16, retry_after: &str) -> Self {
        Self::new(status, &format!("retry-after: {retry_after}"), "")
    }

    /// An error response (RFC 6749 §5.2).
    pub(super) fn refusal(status: u16, error: &str) -> Self {
        let body = format!(r#"{{"error":"{error}"}}"#);
        Self::new(status, "content-type: application/json", &body)
    }

    /// Whatever: `field` is one line of the head.
    pub(super) fn new(status: u16, field: &str, body: &str) -> Self {
        let length = body.len();
        Self {
            after: Duration::ZERO,
            text: format!(
                "HTTP/1.1 {status} -\r\n{field}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            ),
        }
    }

    /// Sent only after `delay`.
    pub(super) fn after(self, delay: Duration) -> Self {
        Self {
            after: delay,
            ..self
        }
    }
}

/// A request that came.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub at: Instant,
    pub text: String,
}

/// The value of the Basic scheme for this secret of the client of [`config`].
pub(super) fn basic(secret: &str) -> String {
    STANDARD.encode(format!("sidecar:{secret}"))
}

/// Answers every token request, and remembers it.
#[derive(Clone)]
pub(super) struct AuthorizationServer(watch::Receiver<Vec<Seen>>);

impl AuthorizationServer {
    /// The `n`th request on `connections`, from 1, is answered with `script(n)`.
    pub(super) fn start(
        connections: mpsc::UnboundedReceiver<DuplexStream>,
        mut script: impl FnMut(usize) -> Answer + Send + 'static,
    ) -> Self {
        Self::start_by(connections, move |n, _| script(n))
    }

    /// The same, by what the request says.
    pub(super) fn start_by(
        mut connections: mpsc::UnboundedReceiver<DuplexStream>,
        mut script: impl FnMut(usize, &str) -> Answer + Send + 'static,
    ) -> Self {
        let (seen, receiver) = watch::channel(Vec::new());
        tokio::spawn(async move {
            while let Some(mut stream) = connections.recv().await {
                let text = read_request(&mut stream).await;
                let at = Instant::now();
                let answer = script(seen.borrow().len() + 1, &text);
                seen.send_modify(|seen| seen.push(Seen { at, text }));
                tokio::spawn(async move {
                    if !answer.after.is_zero() {
                        tokio::time::sleep(answer.after).await;
                    }
                    // The client may have given up.
                    let _ = stream.write_all(answer.text.as_bytes()).await;
                });
            }
        });
        Self(receiver)
    }

    /// How many requests came.
    pub(super) fn count(&self) -> usize {
        self.0.borrow().len()
    }

    /// The `n`th request, from 1, once it has come.
    pub(super) async fn request(&self, n: usize) -> Seen {
        let mut seen = self.0.clone();
        let seen = seen.wait_for(|seen| seen.len() >= n).await.unwrap();
        seen[n - 1].clone()
    }

    /// When the requests came.
    pub(super) fn times(&self) -> Vec<Instant> {
        self.0.borrow().iter().map(|seen| seen.at).collect()
    }

    /// The times from request to request.
    pub(super) fn gaps(&self) -> Vec<Duration> {
        self.times().windows(2).map(|at| at[1] - at[0]).collect()
    }
}

/// A token that could be revoked.
pub(super) fn held_token() -> AccessToken {
    let mut authorization = HeaderValue::from_static("Bearer c4n4ry+/=");
    authorization.set_sensitive(true);
    let grant = Grant {
        authorization,
        fingerprint: String::new(),
        scope: None,
        missing_scope: None,
        lifetime: Some(secs(3600)),
        server_date: None,
    };
    AccessToken::new(grant, 1, Moment::now(), &POLICY.lifetime, 0.0)
}

/// What is logged on this thread, for as long as it lives.
pub(super) struct Log {
    lines: Lines,
    _guard: tracing::subscriber::DefaultGuard,
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(super) fn start() -> Self {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        Self {
            lines,
            _guard: tracing::subscriber::set_default(subscriber),
        }
    }

    /// What has come since the last look.
    pub(super) fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut self.lines.0.lock().unwrap())).unwrap()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A refresher at work.
pub(super) struct Rig {
    pub server: AuthorizationServer,
    pub handle: TokenHandle,
    /// Holds the client secret.
    pub secret: tempfile::NamedTempFile,
    metrics: Arc<Metrics>,
    files: watch::Sender<()>,
    ended: mpsc::Receiver<()>,
}

impl Rig {
    /// With the default policy.
    pub(super) fn start(script: impl FnMut(usize) -> Answer + Send + 'static) -> Self {
        Self::with(POLICY, script)
    }

    /// The same, and the server answers by what the request says.
    pub(super) fn start_by(script: impl FnMut(usize, &str) -> Answer + Send + 'static) -> Self {
        Self::with_by(POLICY, script)
    }

    pub(super) fn with(
        policy: RefreshPolicy,
        mut script: impl FnMut(usize) -> Answer + Send + 'static,
    ) -> Self {
        Self::with_by(policy, move |n, _| script(n))
    }

    fn with_by(
        policy: RefreshPolicy,
        script: impl FnMut(usize, &str) -> Answer + Send + 'static,
    ) -> Self {
        let secret = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(secret.path(), "s3cret").unwrap();
        let (client, connections) = client();
        let metrics = Metrics::new();
        let key = TokenKey {
            label: "payments".into(),
            credential: "payments".into(),
            edition: 0,
            scope: None,
            audience: Vec::new(),
            resource: Vec::new(),
            extra_params: Vec::new(),
        };
        let config = TokenEndpointConfig {
            // Longer than any answer takes here.
            request_timeout: secs(100),
            ..config(SecretSource::File(secret.path().into()))
        };
        let (files, file_changes) = watch::channel(());
        let (sender, ended) = mpsc::channel(1);
        let signals = Signals {
            files: file_changes,
            ended: sender,
        };
        let handle = Refresher::spawn(
            key,
            TokenEndpoint::new(config, client),
            policy,
            TokenCache::new(),
            metrics.token("payments"),
            signals,
            Tracer::default(),
        );
        Self {
            server: AuthorizationServer::start_by(connections, script),
            handle,
            secret,
            metrics,
            files,
            ended,
        }
    }

    /// Changes the client secret, and tells of it.
    pub(super) fn write_secret(&self, secret: &str) {
        std::fs::write(self.secret.path(), secret).unwrap();
        self.files.send_replace(());
    }

    /// Where refreshers tell that they ended unasked.
    pub(super) fn take_ended(&mut self) -> mpsc::Receiver<()> {
        let (_, none) = mpsc::channel(1);
        std::mem::replace(&mut self.ended, none)
    }

    /// The token that a request gets, or why it gets none.
    pub(super) async fn token(&self) -> Result<String, String> {
        sent(&self.handle).await
    }

    /// The same, and no time may pass.
    pub(super) async fn token_at_once(&self) -> Result<String, String> {
        let before = Instant::now();
        let token = self.token().await;
        assert_eq!(before.elapsed(), Duration::ZERO, "{token:?}");
        token
    }

    /// The value of one series of the metrics.
    pub(super) fn metric(&self, series: &str) -> f64 {
        let text = String::from_utf8(self.metrics.render()).unwrap();
        let mut values = text.lines().filter_map(|line| line.strip_prefix(series));
        values.next().unwrap().trim().parse().unwrap()
    }
}

/// The token in the `Authorization` that `handle` yields.
pub(super) async fn sent(handle: &TokenHandle) -> Result<String, String> {
    let token = handle.token().await.map_err(|error| error.to_string())?;
    let value = token.authorization();
    let token = value.to_str().unwrap().strip_prefix("Bearer ").unwrap();
    Ok(token.to_owned())
}
