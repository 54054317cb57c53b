//! Builds every part, runs them, and drains them in order. The only file that knows all parts.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};
use tracing_appender::non_blocking::ErrorCounter;

use crate::admin::Admin;
use crate::admin::health::{Health, rounded};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::net::client::HttpClient;
use crate::net::connect::Connector;
use crate::net::drain::{self, DrainTrigger, DrainWatch, Phase};
use crate::net::listener::{self, Connections, Refusal};
use crate::net::tls::TlsError;
use crate::oauth::TokenHandle;
use crate::oauth::refresher::Standing;
use crate::oauth::token_cache::TokenCache;
use crate::oauth::token_endpoint::ClientId;
use crate::proxy::Gateway;
use crate::proxy::error::connection_refusal;
use crate::proxy::guard::Guard;
use crate::proxy::upstream::Upstream;
use crate::runtime;

/// Connections to the admin port at a time.
const ADMIN_CONNECTIONS: usize = 64;
/// How long the workers have to go after everything was cut.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);

/// A sidecar with its sockets bound, so that a conflict of ports shows before anything has begun.
pub struct App {
    config: Config,
    proxies: Vec<TcpListener>,
    admin: TcpListener,
    addresses: Addresses,
    metrics: Arc<Metrics>,
    dropped_lines: Option<ErrorCounter>,
}

/// Where a sidecar listens; port 0 of the configuration is a real port here.
#[derive(Clone, Debug)]
pub struct Addresses {
    pub proxy: Vec<SocketAddr>,
    pub admin: SocketAddr,
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
        address: SocketAddr,
        source: io::Error,
    },
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
        let bind =
            |address| listener::bind(address).map_err(|source| RunError::Bind { address, source });
        let local = |socket: &TcpListener, address| {
            socket
                .local_addr()
                .map_err(|source| RunError::Bind { address, source })
        };
        let proxies = config
            .proxy
            .listen
            .iter()
            .map(|address| bind(*address))
            .collect::<Result<Vec<_>, _>>()?;
        let admin = bind(config.admin.listen)?;
        let mut addresses = Addresses {
            proxy: Vec::new(),
            admin: local(&admin, config.admin.listen)?,
        };
        for (socket, address) in proxies.iter().zip(&config.proxy.listen) {
            addresses.proxy.push(local(socket, *address)?);
        }
        Ok(Self {
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
    pub async fn run(self, mut stops: mpsc::Receiver<Stop>) -> Result<Outcome, RunError> {
        let (trigger, watch) = drain::channel();
        let connector = Upstream::connector(&self.config.upstream, Some(self.metrics.clone()))?;
        let mut tokens = self
            .config
            .credential
            .start(TokenCache::new(), &self.metrics)?;
        let gateway = Arc::new(self.gateway(tokens.clone(), watch.clone()));
        let connections = self.connections();
        let mut workers = self.start_workers(&connector, &gateway, &connections, &watch)?;
        self.announce();
        tokio::spawn(announce_first_token(tokens.clone()));

        let (_admin_trigger, admin_drain) = drain::channel();
        let health = Health::new(tokens.clone(), watch);
        let admin = Arc::new(Admin::new(
            health,
            self.metrics.clone(),
            self.dropped_lines.clone(),
        ));
        let admin_connections = Connections {
            slots: Arc::new(Semaphore::new(ADMIN_CONNECTIONS)),
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
        let open = || self.config.proxy.max_connections - connections.slots.available_permits();
        let in_flight = || self.config.proxy.max_in_flight - gateway.in_flight.available_permits();
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
            upstream,
            tokens,
            in_flight: Arc::new(Semaphore::new(proxy.max_in_flight)),
            max_body_bytes: proxy.max_body_bytes,
            access_log: proxy.access_log,
            metrics: self.metrics.clone(),
            drain,
        }
    }

    fn connections(&self) -> Connections {
        let proxy = &self.config.proxy;
        Connections {
            header_timeout: proxy.header_timeout,
            unread_timeout: self.config.upstream.idle_timeout,
            max_header_bytes: proxy.max_header_bytes,
            slots: Arc::new(Semaphore::new(proxy.max_connections)),
            refusal: Refusal::new(connection_refusal()),
            metrics: Some(self.metrics.clone()),
        }
    }

    fn start_workers(
        &self,
        connector: &Connector,
        gateway: &Arc<Gateway>,
        connections: &Connections,
        drain: &DrainWatch,
    ) -> Result<JoinSet<Result<io::Result<()>, oneshot::error::RecvError>>, RunError> {
        let mut workers = JoinSet::new();
        for index in 0..self.config.workers {
            let sockets = self
                .proxies
                .iter()
                .map(TcpListener::try_clone)
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

    /// The first five of the six lines that a start prints; the last one comes with the first token.
    fn announce(&self) {
        let upstream = &self.config.upstream;
        let endpoint = &self.config.credential.endpoint;
        info!(
            "bearerd {} (rustls/aws-lc-rs, {} workers)",
            env!("CARGO_PKG_VERSION"),
            self.config.workers
        );
        info!("config {}", self.config.sources);
        for address in &self.addresses.proxy {
            info!(
                "proxy  http://{address} -> {}",
                without_slash(&upstream.url)
            );
        }
        info!(
            "admin  http://{} (/livez /readyz /startupz /metrics)",
            self.addresses.admin
        );
        info!(
            "token  {}: client_credentials at {} as client_id {}, scope {:?}",
            self.config.credential.name,
            endpoint.url,
            match &endpoint.client_id {
                ClientId::Inline(client_id) => format!("{client_id:?}"),
                ClientId::File(file) => format!("of {file}"),
            },
            endpoint.scope.as_deref().unwrap_or("the server's default"),
        );
        for warning in &self.config.warnings {
            warn!("{warning}");
        }
    }
}

fn without_slash(url: &Uri) -> String {
    url.to_string().trim_end_matches('/').to_owned()
}

/// One data-plane worker: its own client, its own accepts.
async fn work(
    sockets: Vec<TcpListener>,
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

async fn announce_first_token(mut tokens: TokenHandle) {
    loop {
        if let Standing::Holding { took, next } = tokens.standing()
            && let Some(token) = tokens.held().await
        {
            let now = Instant::now();
            let left = token.expires_at().monotonic.saturating_duration_since(now);
            let renewal = match next {
                Some(next) => format!(
                    "next renewal in {}",
                    rounded(next.saturating_duration_since(now))
                ),
                None => "renewed on demand".to_owned(),
            };
            info!(
                "ready  first token obtained in {} ms ({}), expires in {}, {renewal}",
                took.as_millis(),
                token.fingerprint(),
                rounded(left)
            );
            return;
        }
        if !tokens.changed().await {
            return;
        }
    }
}
