//! What requests are served with at this moment: one gateway for all workers, and each worker's pools. A reload swaps
//! both at once; a request that has begun ends with what it began with.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;

use super::Addresses;
use super::plan::Plan;
use crate::admin::status::About;
use crate::metrics::Metrics;
use crate::net::drain::DrainWatch;
use crate::net::pool::Pool;
use crate::oauth::TokenHandle;
use crate::proxy::Gateway;
use crate::trace::Tracer;

/// What one worker serves with.
pub(super) struct Service {
    pub(super) gateway: Arc<Gateway>,
    /// In the order of the gateway's upstreams.
    pub(super) pools: Vec<Arc<Pool>>,
}

/// What all of them do.
pub(super) struct Serving {
    services: Vec<ArcSwap<Service>>,
    /// What probes and metrics ask about.
    pub(super) tokens: Arc<ArcSwap<Vec<TokenHandle>>>,
    /// What the status page tells.
    pub(super) about: Arc<ArcSwap<About>>,
    addresses: Addresses,
    shared: Shared,
}

/// What no reload changes.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) workers: usize,
    /// Requests in flight, over all workers.
    pub(super) in_flight: Arc<Semaphore>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) drain: DrainWatch,
    pub(super) tracer: Tracer,
}

impl Serving {
    /// Serves by `plan` at these addresses.
    pub(super) fn new(plan: &Plan, shared: Shared, addresses: Addresses) -> Self {
        let services = services(plan, &shared);
        Self {
            services: services.map(ArcSwap::from_pointee).collect(),
            tokens: Arc::new(ArcSwap::from_pointee(plan.handles())),
            about: Arc::new(ArcSwap::from_pointee(plan.about(&addresses))),
            addresses,
            shared,
        }
    }

    /// Serves by `plan` from now on.
    pub(super) fn serve(&self, plan: &Plan) {
        for (service, next) in self.services.iter().zip(services(plan, &self.shared)) {
            service.store(Arc::new(next));
        }
        self.tokens.store(Arc::new(plan.handles()));
        self.about.store(Arc::new(plan.about(&self.addresses)));
    }

    /// What the worker of this number serves its next request with.
    pub(super) fn service(&self, worker: usize) -> Arc<Service> {
        self.services[worker].load_full()
    }
}

/// In the order of the workers.
fn services(plan: &Plan, shared: &Shared) -> impl Iterator<Item = Service> {
    let proxy = &plan.config.proxy;
    let upstreams = plan.upstreams.iter();
    let gateway = Arc::new(Gateway {
        guard: plan.guard(),
        routes: plan.routes(),
        upstreams: upstreams.map(|planned| planned.upstream.clone()).collect(),
        tokens: plan.route_tokens(),
        in_flight: shared.in_flight.clone(),
        max_body_bytes: proxy.max_body_bytes,
        access_log: proxy.access_log,
        metrics: shared.metrics.clone(),
        drain: shared.drain.clone(),
        tracer: shared.tracer.clone(),
    });
    (0..shared.workers).map(move |worker| {
        let upstreams = plan.upstreams.iter();
        Service {
            gateway: gateway.clone(),
            pools: upstreams
                .map(|planned| planned.pools[worker].clone())
                .collect(),
        }
    })
}
