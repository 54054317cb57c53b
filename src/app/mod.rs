//! Builds every part, runs them, and drains them in order. The only file that knows all parts.

mod announcement;
mod limits;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};
use tracing_appender::non_blocking::ErrorCounter;

use crate::admin::Admin;
use crate::admin::health::Health;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::net::client::HttpClient;
use crate::net::connect::Connector;
use crate::net::connection::Connections;
use crate::net::drain::{self, DrainTrigger, DrainWatch, Phase};
use crate::net::listener::{self, Refusal};
use crate::net::socket::{ListenAddress, ListeningSocket};
use crate::net::tls::TlsError;
use crate::oauth::TokenHandle;
use crate::oauth::token_cache::TokenCache;
use crate::proxy::Gateway;
use crate::proxy::connection_refusal;
use crate::proxy::guard::Guard;
use crate::proxy::route::Routes;
use crate::proxy::upstream::Upstream;
use crate::runtime;
use announcement::announce_first_token;
use limits::Limits;

/// Connections to the admin port at a time.
const ADMIN_CONNECTIONS: usize = 64;
/// How long the workers have to go after everything was cut.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);

/// A sidecar with its sockets bound, so that a conflict of ports shows before anything has begun.
pub struct App {
    config: Config,
    limits: Limits,
    proxies: Vec<ListeningSocket>,
    admin: ListeningSocket,
    addresses: Addresses,
    metrics: Arc<Metrics>,
    dropped_lines: Option<ErrorCounter>,
}

/// Where a sidecar listens; port 0 of the configuration is a real port here.
#[derive(Clone, Debug)]
pub struct Addresses {
    pub proxy: Vec<ListenAddress>,
    pub admin: ListenAddress,
}

impl Addresses {
    /// The first TCP address for applications.
    pub fn proxy_tcp(&self) -> Option<SocketAddr> {
        self.proxy.iter().find_map(ListenAddress::tcp)
    }
}

/// Sockets that a service manager opened for this process.
#[derive(Default)]
pub struct Inherited {
    /// Instead of `[proxy] listen`.
    pub proxy: Vec<ListeningSocket>,
    /// Instead of `[admin] listen`.
    pub admin: Option<ListeningSocket>,
}

/// A wish to end. A second one of any kind cuts what is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM: others must learn of it first, so serve on for `drain_delay`.
    Delayed,
    /// SIGINT: somebody is waiting at a terminal.
    AtOnce,
}

/// How a sidecar ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Requests that were cut.
    pub cut: usize,
}

/// Why a sidecar could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot listen on {address}: {source}")]
    Bind {
        address: ListenAddress,
        source: io::Error,
    },
    #[error("the service manager's socket {0} is not on a loopback address")]
    NotLoopback(SocketAddr),
    #[error("cannot use a socket of the service manager: {0}")]
    Inherited(#[source] io::Error),
    #[error("{0}")]
    Tls(#[from] TlsError),
    #[error("cannot start a worker: {0}")]
    Worker(#[source] io::Error),
    #[error("a worker ended by itself")]
    WorkerEnded,
    #[error("the refresher ended by itself")]
    RefresherEnded,
}

impl App {
    /// Binds every socket. `dropped_lines` counts what the log had to drop.
    ///
    /// # Errors
    /// When an address is in use or not ours.
    pub fn bind(config: Config, dropped_lines: Option<ErrorCounter>) -> Result<Self, RunError> {
        Self::bind_rest(config, Inherited::default(), dropped_lines)
    }

    /// The same, but for the sockets that are there already.
    ///
    /// # Errors
    /// When an address is in use or not ours, or an inherited one is open to others than this machine.
    pub fn bind_rest(
        config: Config,
        inherited: Inherited,
        dropped_lines: Option<ErrorCounter>,
    ) -> Result<Self, RunError> {
        let bind = |address: &ListenAddress| {
            ListeningSocket::bind(address, config.proxy.unix_socket_mode).map_err(|source| {
                RunError::Bind {
                    address: address.clone(),
                    source,
                }
            })
        };
        let address = |socket: &ListeningSocket| socket.address().map_err(RunError::Inherited);
        let proxies = if inherited.proxy.is_empty() {
            let addresses = config.proxy.listen.iter();
            addresses.map(bind).collect::<Result<Vec<_>, _>>()?
        } else {
            inherited.proxy
        };
        let admin = match inherited.admin {
            Some(socket) => socket,
            None => bind(&ListenAddress::Tcp(config.admin.listen))?,
        };
        let addresses = Addresses {
            proxy: proxies.iter().map(address).collect::<Result<_, _>>()?,
            admin: address(&admin)?,
        };
        if !config.proxy.guard.allow_remote_clients
            && let Some(open) = addresses
                .proxy
                .iter()
                .filter_map(ListenAddress::tcp)
                .find(|address| !address.ip().is_loopback())
        {
            return Err(RunError::NotLoopback(open));
        }
        Ok(Self {
            limits: Limits::of(&config, runtime::file_limit()),
            config,
            proxies,
            admin,
            addresses,
            metrics: Metrics::new(),
            dropped_lines,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Serves until `stops` yields, then drains. To be run on the control thread.
    ///
    /// # Errors
    /// When a part cannot be built, or a worker ends by itself.
    pub async fn run(mut self, mut stops: mpsc::Receiver<Stop>) -> Result<Outcome, RunError> {
        let (trigger, watch) = drain::channel();
        let connector = Upstream::connector(&self.config.upstream, Some(self.metrics.clone()))?;
        let mut tokens = self
            .config
            .credential
            .start(TokenCache::new(), &self.metrics)?;
        let gateway = Arc::new(self.gateway(tokens.clone(), watch.clone()));
        let connections = self.connections();
        // Given away: a socket that stayed here would listen on when the workers have stopped.
        let proxies = std::mem::take(&mut self.proxies);
        let mut workers =
            self.start_workers(&proxies, &connector, &gateway, &connections, &watch)?;
        drop(proxies);
        self.announce();
        tokio::spawn(announce_first_token(tokens.clone()));

        let (_admin_trigger, admin_drain) = drain::channel();
        let admin = self.admin(Health::new(tokens.clone(), watch));
        let admin_connections = Connections {
            slots: Arc::new(Semaphore::new(ADMIN_CONNECTIONS)),
            http2: false,
            metrics: None,
            ..connections.clone()
        };
        tokio::spawn(listener::serve(
            self.admin,
            admin_connections,
            admin_drain,
            move |request, _| {
                let admin = admin.clone();
                async move { admin.handle(request).await }
            },
        ));

        let refresher_ended = async { while tokens.changed().await {} };
        let stop = tokio::select! {
            stop = stops.recv() => stop.unwrap_or(Stop::AtOnce),
            // Half a sidecar is worse than none: whoever started us starts us again.
            Some(_) = workers.join_next() => return Err(RunError::WorkerEnded),
            () = refresher_ended => return Err(RunError::RefresherEnded),
        };
        let open = || self.limits.connections - connections.slots.available_permits();
        let in_flight = || self.limits.in_flight - gateway.in_flight.available_permits();
        let deadline = Instant::now() + self.config.proxy.drain_timeout;
        let delay = match stop {
            Stop::Delayed if open() > 0 => self.config.proxy.drain_delay,
            Stop::Delayed | Stop::AtOnce => Duration::ZERO,
        };
        info!(
            connections = open(),
            requests = in_flight(),
            delay_s = delay.as_secs_f64(),
            "draining"
        );
        let cut = drain(
            &trigger,
            &mut workers,
            &mut stops,
            delay,
            deadline,
            in_flight,
        )
        .await;
        if cut > 0 {
            warn!(requests = cut, "stopped, requests were cut");
        } else {
            info!("stopped, nothing was lost");
        }
        Ok(Outcome { cut })
    }

    fn gateway(&self, tokens: TokenHandle, drain: DrainWatch) -> Gateway {
        let proxy = &self.config.proxy;
        let upstream = Upstream::new(self.config.upstream.clone(), &self.metrics);
        Gateway {
            guard: Guard::new(proxy.guard.clone(), upstream.authority().clone()),
            routes: Routes::new(self.config.routes.clone()),
            upstream,
            tokens,
            in_flight: Arc::new(Semaphore::new(self.limits.in_flight)),
            max_body_bytes: proxy.max_body_bytes,
            access_log: proxy.access_log,
            metrics: self.metrics.clone(),
            drain,
        }
    }

    fn admin(&self, health: Health) -> Arc<Admin> {
        let dropped_lines = self.dropped_lines.clone();
        Arc::new(Admin::new(health, self.metrics.clone(), dropped_lines))
    }

    fn connections(&self) -> Connections {
        let proxy = &self.config.proxy;
        Connections {
            header_timeout: proxy.header_timeout,
            unread_timeout: self.config.upstream.idle_timeout,
            max_header_bytes: proxy.max_header_bytes,
            http2: proxy.http2,
            slots: Arc::new(Semaphore::new(self.limits.connections)),
            refusal: Refusal::new(connection_refusal()),
            metrics: Some(self.metrics.clone()),
        }
    }

    fn start_workers(
        &self,
        proxies: &[ListeningSocket],
        connector: &Connector,
        gateway: &Arc<Gateway>,
        connections: &Connections,
        drain: &DrainWatch,
    ) -> Result<JoinSet<Result<io::Result<()>, oneshot::error::RecvError>>, RunError> {
        let mut workers = JoinSet::new();
        for index in 0..self.config.workers {
            let sockets = proxies
                .iter()
                .map(ListeningSocket::try_clone)
                .collect::<io::Result<Vec<_>>>();
            let sockets = sockets.map_err(RunError::Worker)?;
            let (connector, gateway) = (connector.clone(), gateway.clone());
            let (connections, drain) = (connections.clone(), drain.clone());
            let done = runtime::worker(index, move || {
                work(sockets, connector, gateway, connections, drain)
            });
            workers.spawn(done.map_err(RunError::Worker)?);
        }
        Ok(workers)
    }
}

/// One data-plane worker: its own client, its own accepts.
async fn work(
    sockets: Vec<ListeningSocket>,
    connector: Connector,
    gateway: Arc<Gateway>,
    connections: Connections,
    drain: DrainWatch,
) {
    let config = gateway.upstream.config();
    let client = HttpClient::new(connector, config.pool);
    let mut listeners = JoinSet::new();
    for socket in sockets {
        let (gateway, client) = (gateway.clone(), client.clone());
        listeners.spawn(listener::serve(
            socket,
            connections.clone(),
            drain.clone(),
            move |request, peer| {
                let (gateway, client) = (gateway.clone(), client.clone());
                // Boxed, because it is moved three times on its way to hyper, and large.
                Box::pin(async move { gateway.handle(&client, request, peer).await })
            },
        ));
    }
    listeners.join_all().await;
}

/// Ends in order, and returns how many requests were cut.
async fn drain<T: 'static>(
    trigger: &DrainTrigger,
    workers: &mut JoinSet<T>,
    stops: &mut mpsc::Receiver<Stop>,
    delay: Duration,
    deadline: Instant,
    in_flight: impl Fn() -> usize,
) -> usize {
    let all_ended = async |workers: &mut JoinSet<T>| while workers.join_next().await.is_some() {};
    trigger.advance(Phase::Draining);
    let second = tokio::select! {
        () = sleep(delay) => false,
        Some(_) = stops.recv() => true,
    };
    trigger.advance(Phase::Stopping);
    if !second {
        tokio::select! {
            () = all_ended(workers) => return 0,
            () = sleep_until(deadline) => {}
            Some(_) = stops.recv() => {}
        }
    }
    let cut = in_flight();
    trigger.advance(Phase::Cutting);
    let _ = timeout(CUT_TIMEOUT, all_ended(workers)).await;
    cut
}
