//! Builds every part, runs them, and drains them in order. The only file that knows all parts.

mod admin_port;
mod announcement;
mod limits;
mod notifier;
mod plan;
mod reloader;
mod serving;
mod sockets;
mod stopping;
#[cfg(feature = "otel")]
mod trace_exporter;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::admin::log::LogControl;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::net::connection::Connections;
use crate::net::drain::{self, DrainWatch};
use crate::net::listener::{self, Refusal};
use crate::net::socket::{ListenAddress, ListeningSocket};
use crate::net::tls::TlsError;
use crate::oauth::Refreshers;
use crate::oauth::refresher::Signals;
use crate::proxy::connection_refusal;
use crate::runtime::{self, Confinement};
use crate::trace::Tracer;
use announcement::announce_first_token;
use limits::Limits;
pub use notifier::Notifier;
use plan::Planner;
pub use reloader::Reload;
use reloader::Reloader;
use serving::{Serving, Shared};
use sockets::Sockets;
pub use sockets::{Addresses, Inherited};
use stopping::{drain, end_tokens};

/// A sidecar with its sockets bound, so that a conflict of ports shows before anything has begun.
pub struct App {
    config: Config,
    limits: Limits,
    proxies: Vec<ListeningSocket>,
    admin: ListeningSocket,
    addresses: Addresses,
    metrics: Arc<Metrics>,
    log: Option<LogControl>,
    reload: Option<Reload>,
    confinement: Option<Confinement>,
    notifier: Arc<Notifier>,
    #[cfg(feature = "otel")]
    otel: crate::config::Otel,
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

impl Outcome {
    fn told(self) -> Self {
        if self.cut > 0 {
            warn!(requests = self.cut, "stopped, requests were cut");
        } else {
            info!("stopped, nothing was lost");
        }
        self
    }
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
    /// Binds every socket.
    ///
    /// # Errors
    /// When an address is in use or not ours.
    pub fn bind(config: Config) -> Result<Self, RunError> {
        Self::bind_rest(config, Inherited::default())
    }

    /// The same, but for the sockets that are there already.
    ///
    /// # Errors
    /// When an address is in use or not ours, or an inherited one is open to others than this machine.
    pub fn bind_rest(config: Config, inherited: Inherited) -> Result<Self, RunError> {
        let Sockets {
            proxies,
            admin,
            addresses,
        } = Sockets::bind(&config, inherited)?;
        Ok(Self {
            limits: Limits::of(&config, runtime::file_limit()),
            config,
            proxies,
            admin,
            addresses,
            metrics: Metrics::new(),
            log: None,
            reload: None,
            confinement: None,
            notifier: Arc::default(),
            #[cfg(feature = "otel")]
            otel: crate::config::Otel::default(),
        })
    }

    /// The configuration is read again when `reload` says so, and when its files change. Without this, only files that it
    /// names are.
    pub fn reloading(mut self, reload: Reload) -> Self {
        self.reload = Some(reload);
        self
    }

    /// This log is the process's own: operators may see and change what it writes.
    pub fn logging(mut self, log: LogControl) -> Self {
        self.log = Some(log);
        self
    }

    /// What the process gave up is told at the start.
    pub fn confined(mut self, confinement: Confinement) -> Self {
        self.confinement = Some(confinement);
        self
    }

    /// The service manager is told how things stand.
    pub fn notifying(mut self, notifier: Notifier) -> Self {
        self.notifier = Arc::new(notifier);
        self
    }

    /// Where it listens.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Serves until `stops` yields, then drains. To be run on the control thread.
    ///
    /// # Errors
    /// When a part cannot be built, or a worker ends by itself.
    #[cfg(not(feature = "otel"))]
    pub async fn run(self, stops: mpsc::Receiver<Stop>) -> Result<Outcome, RunError> {
        self.serve(stops, Tracer::default()).await
    }

    async fn serve(
        mut self,
        mut stops: mpsc::Receiver<Stop>,
        tracer: Tracer,
    ) -> Result<Outcome, RunError> {
        let (trigger, watch) = drain::channel();
        let (files, file_changes) = watch::channel(());
        let (refresher_ended, mut ended_refreshers) = mpsc::channel(1);
        let signals = Signals {
            files: file_changes,
            ended: refresher_ended,
        };
        let planner = self.planner(signals, tracer.clone());
        let plan = planner.plan(self.config.clone(), None)?;
        let shared = self.shared(&watch, tracer);
        let in_flight = shared.in_flight.clone();
        let in_flight = || self.limits.in_flight - in_flight.available_permits();
        let serving = Arc::new(Serving::new(&plan, shared, self.addresses.clone()));
        let connections = self.connections();
        // Given away: a socket that stayed here would listen on when the workers have stopped.
        let proxies = std::mem::take(&mut self.proxies);
        let mut workers = self.start_workers(&proxies, &serving, &connections, &watch)?;
        drop(proxies);
        self.announce();
        for handle in plan.handles() {
            tokio::spawn(announce_first_token(handle));
        }
        let current = Arc::new(ArcSwap::from_pointee(plan));
        let reloader = Reloader {
            planner,
            serving: serving.clone(),
            current: current.clone(),
            metrics: self.metrics.clone(),
            files,
            reload: self.reload.take(),
            notifier: self.notifier.clone(),
        };
        let reloader = tokio::spawn(reloader.run());
        let mut admin = self.serve_admin(&serving, &watch, &connections)?;
        let _watchdog = self.tell_service_manager();

        let stop = tokio::select! {
            stop = stops.recv() => stop.unwrap_or(Stop::AtOnce),
            Some(()) = admin.quits.recv() => Stop::Delayed,
            // Half a sidecar is worse than none: whoever started us starts us again.
            Some(_) = workers.join_next() => return Err(RunError::WorkerEnded),
            Some(()) = ended_refreshers.recv() => return Err(RunError::RefresherEnded),
        };
        // A configuration that comes now comes too late.
        reloader.abort();
        let open = || self.limits.connections - connections.slots.available_permits();
        let proxy = current.load().config.proxy.clone();
        let deadline = Instant::now() + proxy.drain_timeout;
        let delay = match stop {
            Stop::Delayed if open() > 0 => proxy.drain_delay,
            Stop::Delayed | Stop::AtOnce => Duration::ZERO,
        };
        self.notifier.stopping(in_flight());
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
        end_tokens(&current.load()).await;
        Ok(Outcome { cut }.told())
    }

    /// That it is ready, and while what it returns lives, that it is alive.
    fn tell_service_manager(&self) -> JoinSet<()> {
        let addresses = self.addresses.proxy.iter();
        let addresses: Vec<String> = addresses.map(announcement::url).collect();
        self.notifier
            .ready(&format!("serving on {}", addresses.join(", ")));
        let notifier = self.notifier.clone();
        let mut watchdog = JoinSet::new();
        watchdog.spawn(async move { notifier.keep_alive().await });
        watchdog
    }

    fn planner(&self, signals: Signals, tracer: Tracer) -> Planner {
        Planner {
            refreshers: Refreshers::new(self.metrics.clone(), signals, tracer),
            metrics: self.metrics.clone(),
            workers: self.config.workers,
        }
    }

    fn shared(&self, drain: &DrainWatch, tracer: Tracer) -> Shared {
        Shared {
            workers: self.config.workers,
            in_flight: Arc::new(Semaphore::new(self.limits.in_flight)),
            metrics: self.metrics.clone(),
            drain: drain.clone(),
            tracer,
        }
    }

    fn connections(&self) -> Connections {
        let proxy = &self.config.proxy;
        let upstreams = self.config.upstreams.iter();
        let unread_timeout = upstreams.map(|upstream| upstream.idle_timeout).max();
        Connections {
            header_timeout: proxy.header_timeout,
            unread_timeout: unread_timeout.unwrap_or_default(),
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
        serving: &Arc<Serving>,
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
            let serving = serving.clone();
            let (connections, drain) = (connections.clone(), drain.clone());
            let done = runtime::worker(index, move || {
                work(index, sockets, serving, connections, drain)
            });
            workers.spawn(done.map_err(RunError::Worker)?);
        }
        Ok(workers)
    }
}

/// One data-plane worker: its own pools, its own accepts.
async fn work(
    index: usize,
    sockets: Vec<ListeningSocket>,
    serving: Arc<Serving>,
    connections: Connections,
    drain: DrainWatch,
) {
    let mut listeners = JoinSet::new();
    for socket in sockets {
        let serving = serving.clone();
        listeners.spawn(listener::serve(
            socket,
            connections.clone(),
            drain.clone(),
            move |request, peer| {
                let service = serving.service(index);
                // Boxed, because it is moved three times on its way to hyper, and large.
                Box::pin(async move {
                    let gateway = &service.gateway;
                    gateway.handle(&service.pools, request, peer).await
                })
            },
        ));
    }
    listeners.join_all().await;
}
