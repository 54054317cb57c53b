//! Connecting to a server: DNS, TCP and TLS under one deadline, each way to fail told apart.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use hyper_util::client::legacy::connect::dns::{GaiAddrs, GaiResolver, Name};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::tls::{ClientTls, HttpVersions};
use crate::metrics::{ConnectOutcome, GaugeGuard, Metrics};

/// Makes connections for an [`HttpClient`](super::client::HttpClient).
#[derive(Clone)]
pub struct Connector {
    tcp: HttpConnector<Resolver>,
    tls: ClientTls,
    timeout: Duration,
    metrics: Option<Arc<Metrics>>,
    #[cfg(test)]
    memory: Option<tokio::sync::mpsc::UnboundedSender<tokio::io::DuplexStream>>,
}

impl Connector {
    /// `connect_timeout` covers DNS, TCP and TLS together. With `metrics`, connections and attempts are counted as
    /// those to an upstream.
    pub fn new(tls: ClientTls, connect_timeout: Duration, metrics: Option<Arc<Metrics>>) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(Resolver(GaiResolver::new()));
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        // Divided by hyper-util over the addresses of the host, so that one dead address leaves time for the next.
        tcp.set_connect_timeout(Some(connect_timeout));
        Self {
            tcp,
            tls,
            timeout: connect_timeout,
            metrics,
            #[cfg(test)]
            memory: None,
        }
    }

    /// Connects to no server: the far end of each connection comes out of the receiver, whatever the URI, and without
    /// the receiver connections are refused. Sockets would race with tokio's paused time.
    #[cfg(test)]
    pub fn in_memory() -> (
        Self,
        tokio::sync::mpsc::UnboundedReceiver<tokio::io::DuplexStream>,
    ) {
        let tls = ClientTls::load(None, HttpVersions::Http1).unwrap();
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        let connector = Self {
            memory: Some(sender),
            ..Self::new(tls, Duration::from_secs(5), None)
        };
        (connector, receiver)
    }

    pub(super) fn versions(&self) -> HttpVersions {
        self.tls.versions()
    }

    /// The same, and HTTP/2 is not offered.
    pub(super) fn http1_only(&self) -> Self {
        Self {
            tls: self.tls.http1_only(),
            ..self.clone()
        }
    }

    /// Connects to the authority of `uri`, with TLS if its scheme is `https`.
    ///
    /// # Errors
    /// The first step that failed.
    pub async fn connect(mut self, uri: Uri) -> Result<TokioIo<Stream>, ConnectError> {
        let started = Instant::now();
        let result = timeout(self.timeout, self.establish(&uri))
            .await
            .unwrap_or(Err(ConnectError::Timeout));
        if let Some(metrics) = &self.metrics {
            let outcome = match &result {
                Ok(_) => ConnectOutcome::Success,
                Err(error) => error.outcome(),
            };
            metrics.upstream_connect(outcome, started.elapsed());
        }
        let channel = result?;
        let open = self
            .metrics
            .as_ref()
            .map(|metrics| metrics.upstream_connection());
        Ok(TokioIo::new(Stream {
            channel,
            _open: open,
        }))
    }

    async fn establish(&mut self, uri: &Uri) -> Result<Channel, ConnectError> {
        #[cfg(test)]
        if let Some(memory) = &self.memory {
            let (near, far) = tokio::io::duplex(64 * 1024);
            let sent = memory.send(far);
            sent.map_err(|_| ConnectError::Tcp("nobody listens".into()))?;
            return Ok(Channel::Memory(near));
        }
        let tcp = self
            .tcp
            .call(uri.clone())
            .await
            .map_err(ConnectError::from_tcp)?
            .into_inner();
        if uri.scheme() != Some(&Scheme::HTTPS) {
            return Ok(Channel::Plain(tcp));
        }
        let host = uri.host().unwrap_or_default();
        let host = host
            .strip_prefix('[')
            .and_then(|h| h.strip_suffix(']'))
            .unwrap_or(host);
        let name = ServerName::try_from(host.to_owned()).map_err(|error| {
            ConnectError::Tls(io::Error::new(io::ErrorKind::InvalidInput, error))
        })?;
        let stream = self
            .tls
            .connector()
            .connect(name, tcp)
            .await
            .map_err(ConnectError::Tls)?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        if self.versions() == HttpVersions::Http2 && !http2 {
            let refused = io::Error::new(
                io::ErrorKind::Unsupported,
                "the server does not offer HTTP/2",
            );
            return Err(ConnectError::Tls(refused));
        }
        Ok(Channel::Tls(Box::new(stream)))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The host name has no address.
    #[error("DNS")]
    Dns(#[source] io::Error),
    /// No address accepted a TCP connection.
    #[error("TCP")]
    Tcp(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// DNS, TCP and TLS together took longer than the connect timeout.
    #[error("timed out")]
    Timeout,
    /// No TLS session: an alert, a certificate that does not verify, or no common protocol.
    #[error("TLS")]
    Tls(#[source] io::Error),
    /// This process or this machine has no file descriptor left for a connection.
    #[error("no file descriptor left")]
    Exhausted(#[source] io::Error),
}

impl ConnectError {
    /// hyper-util's error has no public name and no kind; what it stems from tells.
    fn from_tcp(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(present) = cause {
            if let Some(ResolveError(error)) = present.downcast_ref() {
                return Self::Dns(io::Error::new(error.kind(), error.to_string()));
            }
            match present.downcast_ref::<io::Error>() {
                Some(error) if error.kind() == io::ErrorKind::TimedOut => return Self::Timeout,
                Some(error) if is_exhausted(error) => {
                    return Self::Exhausted(io::Error::new(error.kind(), error.to_string()));
                }
                _ => cause = present.source(),
            }
        }
        Self::Tcp(Box::new(error))
    }

    fn outcome(&self) -> ConnectOutcome {
        match self {
            Self::Dns(_) => ConnectOutcome::Dns,
            Self::Tcp(_) => ConnectOutcome::Connect,
            Self::Timeout => ConnectOutcome::Timeout,
            Self::Tls(_) => ConnectOutcome::Tls,
            Self::Exhausted(_) => ConnectOutcome::Exhausted,
        }
    }
}

/// EMFILE and ENFILE; std has no kind for them.
fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(24 | 23))
}

/// The system's resolver, on tokio's blocking threads, with errors that can be told from those of TCP.
#[derive(Clone)]
struct Resolver(GaiResolver);

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct ResolveError(io::Error);

impl Service<Name> for Resolver {
    type Response = GaiAddrs;
    type Error = ResolveError;
    type Future = Pin<Box<dyn Future<Output = Result<GaiAddrs, ResolveError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ResolveError>> {
        self.0.poll_ready(cx).map_err(ResolveError)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let addresses = self.0.call(name);
        Box::pin(async move { addresses.await.map_err(ResolveError) })
    }
}

/// A connection to a server, counted while it is open.
pub struct Stream {
    channel: Channel,
    _open: Option<GaugeGuard>,
}

enum Channel {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    #[cfg(test)]
    Memory(tokio::io::DuplexStream),
}

/// Both directions of a byte stream.
trait Duplex: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

impl Stream {
    /// The TLS session, if there is one: protocol version and ALPN.
    pub fn tls(&self) -> Option<&rustls::ClientConnection> {
        match &self.channel {
            Channel::Tls(stream) => Some(stream.get_ref().1),
            _ => None,
        }
    }

    fn duplex(&mut self) -> Pin<&mut dyn Duplex> {
        match &mut self.channel {
            Channel::Plain(stream) => Pin::new(stream),
            Channel::Tls(stream) => Pin::new(&mut **stream),
            #[cfg(test)]
            Channel::Memory(stream) => Pin::new(stream),
        }
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self.tls().and_then(|tls| tls.alpn_protocol()) {
            Some(b"h2") => Connected::new().negotiated_h2(),
            _ => Connected::new(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.duplex().poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.duplex().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.duplex().poll_write_vectored(cx, bufs)
    }

    /// TCP and rustls both gather.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.duplex().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.duplex().poll_shutdown(cx)
    }
}
