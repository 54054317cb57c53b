//! Connecting to a server: DNS, TCP, TLS and a proxy before it under one deadline, each way to fail told apart.

use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tower_service::Service;

use super::channel::{Channel, Stream};
use super::outbound_proxy::{self, OutboundProxy, ProxyFault};
use super::resolve::{ResolveError, Resolver};
use super::tls::{ClientTls, HttpVersions, TlsConfig, TlsError};
use crate::metrics::{ConnectOutcome, Metrics};

/// How a server is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectConfig {
    /// DNS, TCP, the proxy's answer and TLS together.
    pub timeout: Duration,
    pub tls: TlsConfig,
    /// Between us and the server; those named by the environment are not used.
    pub proxy: Option<OutboundProxy>,
    /// How long the addresses of a name are used before they are looked up again; 0 looks them up for each connection.
    /// When that fails, the last good ones are used.
    pub dns_refresh: Duration,
}

impl ConnectConfig {
    /// Directly, with the built-in roots and no cache of addresses.
    pub fn new(timeout: Duration, versions: HttpVersions) -> Self {
        Self {
            timeout,
            tls: TlsConfig {
                versions,
                ..TlsConfig::default()
            },
            proxy: None,
            dns_refresh: Duration::ZERO,
        }
    }

    /// The files that [`Connector::new`] reads. When the content of one changes, a new connector has to be made.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let identity = self.tls.client_identity.iter();
        let identity = identity.flat_map(|identity| [&identity.cert_file, &identity.key_file]);
        self.tls.ca_file.iter().chain(identity).map(AsRef::as_ref)
    }
}

/// Makes connections to servers. Clones share what is known of names.
#[derive(Clone)]
pub struct Connector {
    tcp: HttpConnector<Resolver>,
    resolver: Resolver,
    tls: ClientTls,
    proxy: Option<Arc<OutboundProxy>>,
    timeout: Duration,
    metrics: Option<Arc<Metrics>>,
    #[cfg(test)]
    memory: Option<tokio::sync::mpsc::UnboundedSender<tokio::io::DuplexStream>>,
}

/// How long an address of the other family waits for those of the first (RFC 8305 §5).
const HAPPY_EYEBALLS: Duration = Duration::from_millis(300);

impl Connector {
    /// Reads the files of `config` as they are now. With `metrics`, connections and attempts are counted as those to an
    /// upstream.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn new(config: &ConnectConfig, metrics: Option<Arc<Metrics>>) -> Result<Self, TlsError> {
        let resolver = Resolver::new(config.dns_refresh, patience(config));
        Self::resolving(config, resolver, metrics)
    }

    fn resolving(
        config: &ConnectConfig,
        resolver: Resolver,
        metrics: Option<Arc<Metrics>>,
    ) -> Result<Self, TlsError> {
        let tls = ClientTls::load(&config.tls)?;
        let mut tcp = HttpConnector::new_with_resolver(resolver.clone());
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        // Divided by hyper-util over the addresses of one family, so that one dead address leaves time for the next.
        tcp.set_connect_timeout(Some(config.timeout));
        tcp.set_happy_eyeballs_timeout(Some(HAPPY_EYEBALLS.min(patience(config))));
        Ok(Self {
            tcp,
            resolver,
            tls,
            proxy: config.proxy.clone().map(Arc::new),
            timeout: config.timeout,
            metrics,
            #[cfg(test)]
            memory: None,
        })
    }

    /// Connects to no server: the far end of each connection comes out of the receiver, whatever the URI, and without
    /// the receiver connections are refused. Sockets would race with tokio's paused time.
    #[cfg(test)]
    pub fn in_memory(
        versions: HttpVersions,
    ) -> (
        Self,
        tokio::sync::mpsc::UnboundedReceiver<tokio::io::DuplexStream>,
    ) {
        let config = ConnectConfig::new(Duration::from_secs(5), versions);
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        let connector = Self {
            memory: Some(sender),
            ..Self::new(&config, None).unwrap()
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
    pub async fn connect(&self, uri: &Uri) -> Result<TokioIo<Stream>, ConnectError> {
        let started = Instant::now();
        let result = timeout(self.timeout, self.establish(uri))
            .await
            .unwrap_or(Err(ConnectError::Timeout));
        if let Some(metrics) = &self.metrics {
            let outcome = match &result {
                Ok(_) => ConnectOutcome::Success,
                Err(error) => error.outcome(),
            };
            metrics.upstream_connect(outcome, started.elapsed());
        }
        if result
            .as_ref()
            .is_err_and(ConnectError::may_be_of_old_addresses)
        {
            self.resolver
                .doubt(self.next_hop(uri).host().unwrap_or_default());
        }
        let channel = result?;
        let open = self
            .metrics
            .as_ref()
            .map(|metrics| metrics.upstream_connection());
        Ok(TokioIo::new(Stream::new(channel, open)))
    }

    /// Waits for the first steps on a new connection, for as long as connecting may take.
    pub(super) async fn in_time<T, E: Into<ConnectError>>(
        &self,
        handshake: impl Future<Output = Result<T, E>>,
    ) -> Result<T, ConnectError> {
        let result = timeout(self.timeout, handshake).await;
        result.map_err(|_| ConnectError::Timeout)?.map_err(E::into)
    }

    fn proxy_for(&self, uri: &Uri) -> Option<&OutboundProxy> {
        let host = uri.host().unwrap_or_default();
        self.proxy.as_deref().filter(|proxy| proxy.is_for(host))
    }

    /// Where TCP goes.
    fn next_hop<'a>(&'a self, uri: &'a Uri) -> &'a Uri {
        self.proxy_for(uri).map_or(uri, |proxy| &proxy.url)
    }

    async fn establish(&self, uri: &Uri) -> Result<Channel, ConnectError> {
        #[cfg(test)]
        if let Some(memory) = &self.memory {
            let (near, far) = tokio::io::duplex(64 * 1024);
            let sent = memory.send(far);
            sent.map_err(|_| ConnectError::Tcp("nobody listens".into()))?;
            return Ok(Channel::Memory(near));
        }
        let is_proxied = self.proxy_for(uri).is_some();
        let next_hop = self.next_hop(uri).clone();
        let tcp = self.tcp.clone().call(next_hop).await;
        let mut tcp = match tcp.map_err(ConnectError::from_tcp) {
            Ok(tcp) => tcp.into_inner(),
            Err(error) if is_proxied => return Err(error.of_proxy()),
            Err(error) => return Err(error),
        };
        if uri.scheme() != Some(&Scheme::HTTPS) {
            return Ok(Channel::Plain { tcp, is_proxied });
        }
        if is_proxied {
            let target = outbound_proxy::target(uri).ok_or(ProxyFault::Target)?;
            tcp = OutboundProxy::tunnel(tcp, &target).await?;
        }
        self.secure(tcp, uri).await
    }

    async fn secure(&self, tcp: TcpStream, uri: &Uri) -> Result<Channel, ConnectError> {
        let name = self.tls.server_name(uri.host().unwrap_or_default());
        let name = name.map_err(ConnectError::Tls)?;
        let stream = self.tls.connector().connect(name, tcp).await;
        let stream = stream.map_err(ConnectError::Tls)?;
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

/// What waits for an answer that may not come gets this part of the time, so that the rest can still do it.
fn patience(config: &ConnectConfig) -> Duration {
    config.timeout / 4
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
    /// It broke before there was a request on it.
    #[error("HTTP")]
    Http(#[from] hyper::Error),
    /// The same, with HTTP/2.
    #[error("HTTP/2")]
    Http2(#[from] h2::Error),
    /// All of it together took longer than the connect timeout.
    #[error("timed out")]
    Timeout,
    /// No TLS session: an alert, a certificate that does not verify, or no common protocol.
    #[error("TLS")]
    Tls(#[source] io::Error),
    /// The proxy on the way cannot be reached, or lets nobody through.
    #[error("outbound proxy")]
    Proxy(#[from] ProxyFault),
    /// This process or this machine has no file descriptor left for a connection.
    #[error("no file descriptor left")]
    Exhausted(#[source] io::Error),
}

impl ConnectError {
    /// hyper-util's error has no public name and no kind; what it stems from tells.
    fn from_tcp(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(present) = cause {
            if let Some(error) = present.downcast_ref::<ResolveError>() {
                return Self::Dns(error.to_io());
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

    /// Whether other addresses of the next hop could have done better.
    fn may_be_of_old_addresses(&self) -> bool {
        matches!(
            self,
            Self::Tcp(_) | Self::Timeout | Self::Proxy(ProxyFault::Unreachable(_))
        )
    }

    /// The same failure on the way to a proxy: what the server's own address is like is not known then.
    fn of_proxy(self) -> Self {
        match self {
            Self::Dns(_) | Self::Tcp(_) => Self::Proxy(ProxyFault::Unreachable(Box::new(self))),
            other => other,
        }
    }

    fn outcome(&self) -> ConnectOutcome {
        match self {
            Self::Dns(_) => ConnectOutcome::Dns,
            Self::Tcp(_) | Self::Http(_) | Self::Http2(_) | Self::Proxy(_) => {
                ConnectOutcome::Connect
            }
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

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(20);

    /// Where packets are lost, as far as a client can tell: the queue of connections is full, and nobody takes any.
    struct Dead {
        address: SocketAddr,
        _listener: TcpListener,
        _queued: Vec<TcpStream>,
    }

    impl Dead {
        async fn at(address: SocketAddr) -> io::Result<Self> {
            let socket = match address {
                SocketAddr::V4(_) => TcpSocket::new_v4()?,
                SocketAddr::V6(_) => TcpSocket::new_v6()?,
            };
            socket.bind(address)?;
            let listener = socket.listen(1)?;
            let address = listener.local_addr()?;
            let mut queued = Vec::new();
            let moment = Duration::from_millis(200);
            while let Ok(stream) = timeout(moment, TcpStream::connect(address)).await {
                queued.push(stream?);
            }
            Ok(Self {
                address,
                _listener: listener,
                _queued: queued,
            })
        }
    }

    async fn alive() -> (SocketAddr, TcpListener) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        (listener.local_addr().unwrap(), listener)
    }

    fn connector(
        timeout: Duration,
        look_up: impl Fn() -> Vec<SocketAddr> + Send + Sync + 'static,
    ) -> Connector {
        let config = ConnectConfig::new(timeout, HttpVersions::Http1);
        let an_hour = Duration::from_secs(3600);
        let resolver = Resolver::with(an_hour, patience(&config), move |_| Ok(look_up()));
        Connector::resolving(&config, resolver, None).unwrap()
    }

    /// Without a port, that of the address counts.
    async fn connect(connector: &Connector) -> Result<SocketAddr, ConnectError> {
        let uri = Uri::from_static("http://api.example");
        let stream = connector.connect(&uri).await?;
        Ok(stream.inner().peer().unwrap())
    }

    /// E-27, E-10: a family of addresses that leads nowhere costs a moment.
    #[tokio::test]
    async fn the_other_family_of_addresses_gets_its_chance_soon() {
        let (alive, _listener) = alive().await;
        // Where there is no IPv6, that is refused at once, which is no worse.
        let dead = Dead::at((Ipv6Addr::LOCALHOST, 0).into()).await;
        let address = match &dead {
            Ok(dead) => dead.address,
            Err(_) => (Ipv6Addr::LOCALHOST, 9).into(),
        };
        let connector = connector(TIMEOUT, move || vec![address, alive]);
        let started = Instant::now();
        assert_eq!(connect(&connector).await.unwrap(), alive);
        assert!(started.elapsed() < TIMEOUT / 2, "{:?}", started.elapsed());
    }

    /// H-11, E-10: one dead address leaves time for the next one of the same family.
    #[tokio::test]
    async fn one_dead_address_leaves_time_for_the_next() {
        let (alive, _listener) = alive().await;
        let dead = Dead::at((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let addresses = vec![dead.address, alive];
        let connector = connector(Duration::from_secs(4), move || addresses.clone());
        assert_eq!(connect(&connector).await.unwrap(), alive);
    }

    /// E-10: an address where nobody listens costs nothing.
    #[tokio::test]
    async fn the_next_address_is_tried_at_once_after_a_refusal() {
        let ((refusing, listener), (alive, _listener)) = (alive().await, alive().await);
        drop(listener);
        let connector = connector(TIMEOUT, move || vec![refusing, alive]);
        assert_eq!(connect(&connector).await.unwrap(), alive);
    }

    /// E-25: addresses that nobody answers at are looked up again before their time.
    #[tokio::test]
    async fn addresses_that_do_not_answer_are_doubted() {
        let ((old, listener), (new, _listener)) = (alive().await, alive().await);
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        let connector = connector(TIMEOUT, move || {
            let is_first = counter.fetch_add(1, Ordering::SeqCst) == 0;
            vec![if is_first { old } else { new }]
        });
        for _ in 0..3 {
            assert_eq!(connect(&connector).await.unwrap(), old);
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        drop(listener);
        let started = Instant::now();
        while connect(&connector).await.is_err() {
            assert!(started.elapsed() < TIMEOUT);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(connect(&connector).await.unwrap(), new);
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }
}
