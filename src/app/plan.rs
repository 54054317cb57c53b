//! What is served with, built from one configuration. A new configuration makes a new plan, which takes over from the old
//! one whatever has not changed: connections to upstreams, and tokens.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::config::{Config, TokenConfig};
use crate::metrics::Metrics;
use crate::net::pool::Pool;
use crate::net::tls::TlsError;
use crate::oauth::standing::Standing;
use crate::oauth::token_error::TokenError;
use crate::oauth::{CredentialConfig, Refreshers, TokenHandle};
use crate::proxy::guard::Guard;
use crate::proxy::replay::Tokens;
use crate::proxy::route::Routes;
use crate::proxy::upstream::{Upstream, UpstreamConfig};
use crate::reload::Fingerprint;

/// What plans are made with.
pub(super) struct Planner {
    pub(super) refreshers: Refreshers,
    pub(super) metrics: Arc<Metrics>,
    pub(super) workers: usize,
}

/// Everything that one configuration leads to.
pub(super) struct Plan {
    pub(super) config: Config,
    /// In the order of the configuration.
    pub(super) upstreams: Vec<PlannedUpstream>,
    /// In the order of the configuration.
    pub(super) tokens: Vec<PlannedToken>,
    /// Of what it is built from, as it was then.
    pub(super) contents: Fingerprint,
}

/// An upstream, and each worker's connections to it.
#[derive(Clone)]
pub(super) struct PlannedUpstream {
    pub(super) upstream: Arc<Upstream>,
    /// In the order of the workers.
    pub(super) pools: Vec<Arc<Pool>>,
    files: Fingerprint,
}

/// A token, and what it was started for.
#[derive(Clone)]
pub(super) struct PlannedToken {
    pub(super) handle: TokenHandle,
    config: TokenConfig,
    credential: CredentialConfig,
    files: Fingerprint,
}

impl Planner {
    /// The plan for `config`; what is the same in `before` is taken over.
    ///
    /// # Errors
    /// When a file for TLS cannot be used.
    pub(super) fn plan(&self, config: Config, before: Option<&Plan>) -> Result<Plan, TlsError> {
        // Before anything is read: what changes in between is seen as a change.
        let contents = Fingerprint::of(built_from(&config));
        let upstreams = config
            .upstreams
            .iter()
            .map(|config| self.upstream(config, before))
            .collect::<Result<_, _>>()?;
        let tokens = config
            .tokens
            .iter()
            .map(|token| self.token(token, &config.credentials[token.credential], before))
            .collect::<Result<_, _>>()?;
        Ok(Plan {
            config,
            upstreams,
            tokens,
            contents,
        })
    }

    fn upstream(
        &self,
        config: &UpstreamConfig,
        before: Option<&Plan>,
    ) -> Result<PlannedUpstream, TlsError> {
        let files = Fingerprint::of(config.files());
        let same = before.and_then(|before| {
            before
                .upstreams
                .iter()
                .find(|known| known.upstream.config() == config && known.files == files)
        });
        if let Some(same) = same {
            return Ok(same.clone());
        }
        let connector = Upstream::connector(config, Some(self.metrics.clone()))?;
        let upstream = Arc::new(Upstream::new(config.clone(), &self.metrics));
        let origin = upstream.origin();
        let pools = (0..self.workers)
            .map(|_| Pool::new(connector.clone(), origin.clone(), config.pool))
            .collect();
        Ok(PlannedUpstream {
            upstream,
            pools,
            files,
        })
    }

    fn token(
        &self,
        config: &TokenConfig,
        credential: &CredentialConfig,
        before: Option<&Plan>,
    ) -> Result<PlannedToken, TlsError> {
        let files = Fingerprint::of(credential.tls_files());
        let same = before.and_then(|before| {
            before.tokens.iter().find(|known| {
                known.config.scope == config.scope
                    && known.config.label == config.label
                    && known.config.renew_unused == config.renew_unused
                    && known.credential == *credential
                    && known.files == files
            })
        });
        if let Some(same) = same {
            return Ok(same.clone());
        }
        let handle = self.refreshers.start(
            credential,
            config.scope.clone(),
            &config.label,
            config.renew_unused,
        )?;
        Ok(PlannedToken {
            handle,
            config: config.clone(),
            credential: credential.clone(),
            files,
        })
    }
}

impl Plan {
    /// The handles of all tokens.
    pub(super) fn handles(&self) -> Vec<TokenHandle> {
        self.tokens
            .iter()
            .map(|token| token.handle.clone())
            .collect()
    }

    /// Who may do what, as the configuration says.
    pub(super) fn guard(&self) -> Guard {
        let authorities = self.upstreams.iter();
        let authorities = authorities.map(|planned| planned.upstream.authority().clone());
        Guard::new(self.config.proxy.guard.clone(), authorities.collect())
    }

    /// What goes where.
    pub(super) fn routes(&self) -> Routes {
        Routes::new(self.config.routes.clone())
    }

    /// The tokens as routes use them.
    pub(super) fn route_tokens(&self) -> Vec<Tokens> {
        let tokens = self.tokens.iter();
        let tokens = tokens.map(|token| Tokens {
            handle: token.handle.clone(),
            replay_on_401: token.credential.replay_on_401,
            invalidate_on_status: token.credential.invalidate_on_status.clone(),
        });
        tokens.collect()
    }

    /// Every file that is read for it but the configuration's own, secrets included.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        let upstreams = self.config.upstreams.iter().flat_map(UpstreamConfig::files);
        let credentials = self.config.credentials.iter();
        upstreams.chain(credentials.flat_map(CredentialConfig::files))
    }

    /// Every file that is read once, when the plan is made: a change of one asks for a new plan.
    pub(super) fn built_from(&self) -> impl Iterator<Item = &Path> {
        built_from(&self.config)
    }

    /// Whether it serves: every token that is in use can be used.
    pub(super) async fn serves(&self) -> bool {
        for token in &self.tokens {
            let is_unused = matches!(token.handle.standing(), Standing::Unused);
            if !is_unused && token.handle.held().await.is_none() {
                return false;
            }
        }
        true
    }

    /// Waits until every token has come, so that requests can go on without a break.
    ///
    /// # Errors
    /// Which one did not, and why: it was refused, or there was none within `limit`.
    pub(super) async fn wait_for_tokens(&self, limit: Duration) -> Result<(), String> {
        let deadline = Instant::now() + limit;
        for token in &self.tokens {
            let mut handle = token.handle.clone();
            while handle.held().await.is_none() {
                let standing = handle.standing();
                if matches!(standing, Standing::Unused | Standing::Holding { .. }) {
                    break;
                }
                let is_refused = standing.error().is_some_and(TokenError::is_permanent);
                let may_change =
                    !is_refused && matches!(timeout_at(deadline, handle.changed()).await, Ok(true));
                if !may_change {
                    let name = handle.name();
                    return Err(match standing.error() {
                        Some(error) => format!("token {name}: {error}"),
                        None => format!("token {name}: no answer in time"),
                    });
                }
            }
        }
        Ok(())
    }
}

fn built_from(config: &Config) -> impl Iterator<Item = &Path> {
    let upstreams = config.upstreams.iter().flat_map(UpstreamConfig::files);
    let credentials = config.credentials.iter();
    upstreams.chain(credentials.flat_map(CredentialConfig::tls_files))
}
