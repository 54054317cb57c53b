//! The HTTP client: a connection to a server, a request on it, and why there was no response.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::header;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::rt::Executor;
use hyper_util::rt::TokioTimer;
use rustls::AlertDescription;
use tokio_util::either::Either;
use tracing::debug;

use super::body::{Body, BodyError, Chain};
use super::connect::{ConnectError, Connector};
use super::download::Download;
use super::tls::HttpVersions;
use crate::metrics::SendFault;

/// Sends each request on a connection of its own. What sends many keeps its connections in a
/// [`Pool`](super::pool::Pool).
#[derive(Clone)]
pub struct HttpClient(Connector);

impl HttpClient {
    /// Its connections run on the tokio runtime that sends the request.
    pub fn new(connector: Connector) -> Self {
        Self(connector)
    }

    /// Sends `request` to the authority of its URI and waits for the response head; the deadline is the caller's.
    ///
    /// # Errors
    /// When there is no response head. The request may have reached the server unless the fault says otherwise.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Download>, SendError> {
        let origin = Origin::of(request.uri()).ok_or_else(SendError::leads_nowhere)?;
        let connection = Connection::open(&self.0, &origin).await;
        let mut connection = connection.map_err(|error| SendError::connect(Arc::new(error)))?;
        let response = connection.send(&origin, request).await;
        let response = response.map_err(|unanswered| unanswered.error)?;
        Ok(response.map(Download::from))
    }
}

/// Where requests go: scheme, host and port.
#[derive(Clone)]
pub struct Origin {
    scheme: Scheme,
    authority: Authority,
    host: HeaderValue,
}

impl Origin {
    /// `http` or `https`, and an authority without user information.
    pub fn new(scheme: Scheme, authority: Authority) -> Self {
        let host = match authority.port_u16() {
            Some(port) if port != default_port(&scheme) => format!("{}:{port}", authority.host()),
            _ => authority.host().to_owned(),
        };
        Self {
            // An authority has no byte that a field must not have.
            host: HeaderValue::try_from(host).unwrap_or_else(|_| HeaderValue::from_static("")),
            scheme,
            authority,
        }
    }

    /// That of a URL with scheme and authority.
    pub fn of(url: &Uri) -> Option<Self> {
        let (scheme, authority) = (url.scheme()?, url.authority()?);
        Some(Self::new(scheme.clone(), authority.clone()))
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// Host and port, as they were given.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// A URI here, of what path it may be.
    fn uri(&self, path: Option<PathAndQuery>) -> Uri {
        let uri = Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        // Its parts were valid before.
        uri.build().unwrap_or_default()
    }

    /// Gives `request` the form of its connection: HTTP/2 has the authority in the URI (RFC 9113 §8.3.1), HTTP/1.1 in
    /// `Host`, and to a proxy in both (RFC 9112 §3.2.2).
    fn address(&self, request: &mut Request<Body>, connection: &Connection) {
        let (in_host, in_uri) = match connection {
            Connection::Http1(connection) => (true, connection.is_proxied),
            Connection::Http2(_) => (false, true),
        };
        if in_host {
            request
                .headers_mut()
                .insert(header::HOST, self.host.clone());
        } else {
            request.headers_mut().remove(header::HOST);
        }
        if request.uri().scheme().is_some() != in_uri {
            let path = request.uri().path_and_query().cloned();
            *request.uri_mut() = match path {
                path if in_uri => self.uri(path),
                Some(path) => path.into(),
                None => Uri::default(),
            };
        }
    }
}

/// The port of a URL that names none (RFC 9110 §4.2): 443 for `https`, 80 for `http`.
pub fn default_port(scheme: &Scheme) -> u16 {
    if *scheme == Scheme::HTTPS { 443 } else { 80 }
}

/// An open connection to a server; its other end is a task of its own, which ends with it, and after the last response.
pub(super) enum Connection {
    Http1(Http1),
    /// Clones are the same connection.
    Http2(http2::SendRequest<Body>),
}

/// A connection that takes one request after the other.
pub(super) struct Http1 {
    pub(super) sender: http1::SendRequest<Body>,
    /// A proxy, which has to be told the authority, reads the requests.
    is_proxied: bool,
}

/// hyper's default of 400 KiB for each connection would be the largest part of the memory under load.
const MAX_READ_BUFFER: usize = 64 * 1024;
/// Fields of a response head; above it the response is refused.
const MAX_RESPONSE_FIELDS: usize = 256;
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of one answer that may wait here for its application.
const STREAM_WINDOW: u32 = 256 * 1024;
/// As many as the requests in flight can add up to. In a smaller window a few answers that nobody reads would hold up all
/// others on the connection.
const CONNECTION_WINDOW: u32 = 1 << 30;

impl Connection {
    /// Connects, within the connector's timeout.
    pub(super) async fn open(connector: &Connector, origin: &Origin) -> Result<Self, ConnectError> {
        let stream = connector.connect(&origin.uri(None)).await?;
        let channel = stream.inner();
        if channel.speaks_http2() || connector.versions() == HttpVersions::Http2 {
            let handshake = http2::Builder::new(Tasks)
                .timer(TokioTimer::new())
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                // One connection carries everything; without a PING, one that died unseen would take every request
                // along until its deadline.
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .handshake(stream);
            let (sender, connection) = connector.in_time(handshake).await?;
            tokio::spawn(carry(connection));
            Ok(Self::Http2(sender))
        } else {
            let is_proxied = channel.is_proxied();
            let handshake = http1::Builder::new()
                .max_buf_size(MAX_READ_BUFFER)
                .max_headers(MAX_RESPONSE_FIELDS)
                .handshake(stream);
            let (sender, connection) = connector.in_time(handshake).await?;
            tokio::spawn(carry(connection.with_upgrades()));
            Ok(Self::Http1(Http1 { sender, is_proxied }))
        }
    }

    /// Sends `request`, whose URI may be a path alone, and waits for the response head. Dropping the future ends the
    /// connection, or with HTTP/2 the stream.
    pub(super) fn send(
        &mut self,
        origin: &Origin,
        mut request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Incoming>, Unanswered>> + use<> {
        origin.address(&mut request, self);
        let response = match self {
            Self::Http1(connection) => Either::Left(connection.sender.try_send_request(request)),
            Self::Http2(sender) => Either::Right(sender.try_send_request(request)),
        };
        async { response.await.map_err(Unanswered::from) }
    }
}

/// Runs what hyper does for each request on an HTTP/2 connection. That is 1.5 KB, which tokio would move six times on its
/// way into a task, and once more out of it.
#[derive(Clone)]
struct Tasks;

impl<F> Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        tokio::spawn(Box::pin(future));
    }
}

/// Requests and responses tell what becomes of a connection.
async fn carry(connection: impl Future<Output = hyper::Result<()>>) {
    if let Err(error) = connection.await {
        debug!(error = %Chain(&error), "connection to a server ended");
    }
}

/// A request without a response.
pub(super) struct Unanswered {
    pub(super) error: SendError,
    /// The request, if nothing of it was written.
    pub(super) unsent: Option<Request<Body>>,
}

impl From<TrySendError<Request<Body>>> for Unanswered {
    fn from(mut error: TrySendError<Request<Body>>) -> Self {
        let unsent = error.take_message();
        let mut error = SendError::from(error.into_error());
        error.unprocessed |= unsent.is_some();
        Self { error, unsent }
    }
}

/// No response head, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}", Chain(&**.source))]
pub struct SendError {
    /// What happened.
    pub fault: SendFault,
    /// The application's body was larger than its limit.
    pub body_too_large: bool,
    /// Nothing of the request was written, or the server says that it did nothing about it (RFC 9113 §8.7): it may be
    /// sent again.
    pub unprocessed: bool,
    source: Arc<dyn std::error::Error + Send + Sync>,
}

impl SendError {
    /// There is no connection.
    pub(super) fn connect(error: Arc<ConnectError>) -> Self {
        Self {
            fault: match *error {
                ConnectError::Dns(_) => SendFault::Dns,
                ConnectError::Tcp(_) | ConnectError::Http(_) | ConnectError::Proxy(_) => {
                    SendFault::Connect
                }
                ConnectError::Timeout => SendFault::ConnectTimeout,
                ConnectError::Tls(_) => SendFault::Tls,
                ConnectError::Exhausted(_) => SendFault::Exhausted,
            },
            body_too_large: false,
            // It would be one more wait for the same.
            unprocessed: false,
            source: error,
        }
    }

    fn leads_nowhere() -> Self {
        let cause = io::Error::new(io::ErrorKind::InvalidInput, "no host to connect to");
        Self::connect(Arc::new(ConnectError::Dns(cause)))
    }
}

impl From<hyper::Error> for SendError {
    fn from(source: hyper::Error) -> Self {
        let (mut fault, mut unprocessed) = (SendFault::Reset, false);
        let mut body_too_large = false;
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&source);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<BodyError>() {
                fault = SendFault::Downstream;
                body_too_large = matches!(error, BodyError::TooLarge(_));
                break;
            }
            if is_certificate_refused(error) {
                fault = SendFault::Tls;
            }
            if let Some(error) = error.downcast_ref::<h2::Error>() {
                unprocessed = is_unprocessed(error);
            }
            if let Some(error) = error.downcast_ref::<hyper::Error>()
                && error.is_parse()
            {
                fault = SendFault::Protocol;
            }
            cause = error.source();
        }
        Self {
            fault,
            body_too_large,
            unprocessed,
            source: Arc::new(source),
        }
    }
}

/// With TLS 1.3 a server looks at our certificate when the session exists for us already (RFC 8446 §4.4.2). It has not
/// looked at any request then.
fn is_certificate_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let error = error.downcast_ref::<io::Error>();
    let error = error.and_then(|error| error.get_ref()?.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::AlertReceived(alert)) = error else {
        return false;
    };
    matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
    )
}

/// A refused stream, or one above the last that the server says it has seen: h2 ends no other stream with a GOAWAY of
/// the server's.
fn is_unprocessed(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
}
