//! The HTTP client: pooled connections of one thread to one kind of server, and why a request got no response.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::header::UPGRADE;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::AlertDescription;

use super::body::{Body, BodyError, Chain};
use super::connect::{ConnectError, Connector};
use super::tls::HttpVersions;
use crate::metrics::SendFault;

/// How connections are kept between requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// A connection idle for this long is closed. Keep it below what the server waits.
    pub idle_timeout: Duration,
    /// Idle connections kept for one host; 0 keeps none.
    pub max_idle: usize,
}

/// A client of HTTP/1.1 and HTTP/2 servers. Clones share the pools; each worker thread has its own.
#[derive(Clone)]
pub struct HttpClient {
    connector: Connector,
    pool: PoolConfig,
    clients: Arc<ArcSwap<Clients>>,
}

/// Each has a pool of its own.
struct Clients {
    any: legacy::Client<Connector, Body>,
    /// For requests that HTTP/2 has no form for.
    http1: legacy::Client<Connector, Body>,
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

impl HttpClient {
    /// A client with empty pools. Its connections run on the tokio runtime that sends the first request.
    pub fn new(connector: Connector, pool: PoolConfig) -> Self {
        let clients = Clients::new(&connector, pool);
        Self {
            clients: Arc::new(ArcSwap::from_pointee(clients)),
            connector,
            pool,
        }
    }

    /// Uses no connection again that there is now; what is under way on them goes on. hyper tells nobody which connection
    /// an answer came on, short of paying for it with every request, and one that cannot be trusted is rare.
    pub fn forget_connections(&self) {
        let clients = Clients::new(&self.connector, self.pool);
        self.clients.store(Arc::new(clients));
    }

    /// Sends `request` to the authority of its URI and waits for the response head; the deadline is the caller's. One
    /// with `Upgrade` goes over HTTP/1.1.
    ///
    /// # Errors
    /// When there is no response head. The request may have reached the server unless the fault says otherwise.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, SendError> {
        let response = {
            let clients = self.clients.load();
            if request.headers().contains_key(UPGRADE) {
                clients.http1.request(request)
            } else {
                clients.any.request(request)
            }
        };
        response.await.map_err(SendError::from)
    }
}

impl Clients {
    fn new(connector: &Connector, pool: PoolConfig) -> Self {
        Self {
            any: client(connector.clone(), pool),
            http1: client(connector.http1_only(), pool),
        }
    }
}

fn client(connector: Connector, pool: PoolConfig) -> legacy::Client<Connector, Body> {
    legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        // Without this timer idle connections are only looked at when one is wanted, and stay open until then.
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(pool.idle_timeout)
        .pool_max_idle_per_host(pool.max_idle)
        .http1_max_buf_size(MAX_READ_BUFFER)
        .http1_max_headers(MAX_RESPONSE_FIELDS)
        .http2_only(connector.versions() == HttpVersions::Http2)
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        // One connection carries everything; without a PING, one that died unseen would take every request
        // along until its deadline.
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        // Only what was never written is sent again: hyper-util gives such a request back.
        .retry_canceled_requests(true)
        .build(connector)
}

/// No response head, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}", Chain(.source))]
pub struct SendError {
    /// What happened.
    pub fault: SendFault,
    /// The application's body was larger than its limit.
    pub body_too_large: bool,
    /// The server says that it did nothing about the request (RFC 9113 §8.7), or there never was a connection of its own
    /// to send it on: it may be sent again.
    pub unprocessed: bool,
    source: legacy::Error,
}

impl From<legacy::Error> for SendError {
    fn from(source: legacy::Error) -> Self {
        let (mut fault, mut unprocessed) = (SendFault::Reset, false);
        if source.is_connect() {
            // Unless a cause says more, this is a request that waited for the connection of another, which did not come
            // about, or was given up with that other.
            (fault, unprocessed) = (SendFault::Connect, true);
        }
        let mut body_too_large = false;
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&source);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<ConnectError>() {
                fault = match error {
                    ConnectError::Dns(_) => SendFault::Dns,
                    ConnectError::Tcp(_) | ConnectError::Proxy(_) => SendFault::Connect,
                    ConnectError::Timeout => SendFault::ConnectTimeout,
                    ConnectError::Tls(_) => SendFault::Tls,
                    ConnectError::Exhausted(_) => SendFault::Exhausted,
                };
                unprocessed = false;
                break;
            }
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
            source,
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
