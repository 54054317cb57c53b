//! The admin port, on the control thread: what it shows, and what it is told.

use std::sync::Arc;

use http::Uri;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::announcement::{url, without_slash};
use super::plan::Plan;
use super::serving::Serving;
use super::{Addresses, App, RunError};
use crate::admin::Admin;
use crate::admin::health::Health;
use crate::admin::history::History;
use crate::admin::status::{About, AboutToken, AboutUpstream, Sources};
use crate::admin::verbs::Verbs;
use crate::config::Config;
use crate::metrics::unix_now;
use crate::net::connection::Connections;
use crate::net::drain::{self, DrainTrigger, DrainWatch};
use crate::net::listener;
use crate::oauth::token_endpoint::Location;

/// Connections to the admin port at a time.
const ADMIN_CONNECTIONS: usize = 64;

/// The admin port; it is served until this is dropped.
pub(super) struct AdminPort {
    /// Yields a wish to end that came in there.
    pub(super) quits: mpsc::Receiver<()>,
    _drain: DrainTrigger,
    _history: JoinSet<()>,
}

impl App {
    pub(super) fn serve_admin(
        &self,
        serving: &Serving,
        proxy_drain: &DrainWatch,
        connections: &Connections,
    ) -> Result<AdminPort, RunError> {
        let (trigger, drain) = drain::channel();
        let (quitter, quits) = mpsc::channel(1);
        let verbs = Verbs::new(
            &self.addresses.admin,
            serving.tokens.clone(),
            self.config.admin.quit.then_some(quitter),
            self.log.clone(),
        );
        let history = History::new();
        let mut recorder = JoinSet::new();
        recorder.spawn(history.clone().record(self.metrics.clone()));
        let sources = Sources {
            about: serving.about.clone(),
            tokens: serving.tokens.clone(),
            history,
            metrics: self.metrics.clone(),
            drain: proxy_drain.clone(),
            started_at: unix_now(),
        };
        let health = Health::new(serving.tokens.clone(), proxy_drain.clone());
        let admin = Arc::new(Admin::new(health, sources, verbs, self.log.clone()));
        let connections = Connections {
            slots: Arc::new(Semaphore::new(ADMIN_CONNECTIONS)),
            http2: false,
            metrics: None,
            ..connections.clone()
        };
        let socket = self.admin.try_clone().map_err(RunError::Worker)?;
        tokio::spawn(listener::serve(
            socket,
            connections,
            drain,
            move |request, peer| {
                let admin = admin.clone();
                async move { admin.handle(request, peer).await }
            },
        ));
        Ok(AdminPort {
            quits,
            _drain: trigger,
            _history: recorder,
        })
    }
}

impl Plan {
    /// What it says of itself.
    pub(super) fn about(&self, addresses: &Addresses) -> About {
        let config = &self.config;
        let upstreams = config.upstreams.iter().map(|upstream| AboutUpstream {
            name: upstream.name.clone(),
            url: without_slash(&upstream.url),
        });
        About {
            source: config.sources.to_string(),
            warnings: config.warnings.clone(),
            workers: config.workers,
            listen: addresses.proxy.iter().map(url).collect(),
            admin: url(&addresses.admin),
            allowed_hosts: config.proxy.guard.allowed_hosts.clone(),
            upstreams: upstreams.collect(),
            tokens: about_tokens(config),
        }
    }
}

fn about_tokens(config: &Config) -> Vec<AboutToken> {
    let tokens = config.tokens.iter();
    let tokens = tokens.map(|token| {
        let endpoint = &config.credentials[token.credential].endpoint;
        AboutToken {
            label: token.label.clone(),
            endpoint: match &endpoint.location {
                Location::Url(url) => without_query(url),
                Location::Issuer(issuer) => issuer.identifier().to_owned(),
            },
            scope: token.scope.clone(),
        }
    });
    tokens.collect()
}

/// A query can hold whatever its writer thought fit.
fn without_query(url: &Uri) -> String {
    let text = url.to_string();
    text.split('?').next().unwrap_or_default().to_owned()
}
