//! THE LIFE OF A TOKEN.
//!
//! A [`TokenHandle`] is what a request holds: it reads the [`token_cache`], and only when nothing usable is there it
//! waits for the attempt under way. A [`refresher`] is the one writer of its key: a task of its own, so that no caller
//! who goes away cancels a token request.
//!
//! ```text
//!            start                 success: insert, publish
//!   refresher ──▶ [ token request ] ───────────────────────▶ [ holding ] ──┐ at 70–80 % of the lifetime,
//!                    ▲        │ failure: the old token stays                │ or on demand when it is not usable,
//!                    │        ▼ until its own end                           │ or after a 401 of the upstream,
//!                    └── [ backing off ] ◀──────────────────────────────────┘ or when the secret has changed
//! ```
//!
//! A 401 of the upstream is judged by `rejection`: a token of some age is renewed, once for all requests that say so; a
//! fresh one opens a breaker, and the one before it is tried. A changed secret goes through `rotation`: the new one is
//! tried while the old token serves, and if the server does not know it, the old one is used on.
//!
//! A token request reads id and secret at that moment ([`token_endpoint`]), and proves who we are by one method
//! ([`client_auth`], [`client_assertion`]). Where the token endpoint is, the configuration says or the issuer does
//! ([`metadata`]).

pub mod access_token;
pub mod attempts;
pub mod client_assertion;
pub mod client_auth;
mod failures;
pub mod metadata;
pub mod refresher;
mod rejection;
mod rotation;
mod round_trip;
pub mod standing;
pub mod token_cache;
pub mod token_endpoint;
pub mod token_error;
pub mod token_response;

pub use token_cache::{Rejection, TokenHandle, Unavailable};

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;

use crate::metrics::Metrics;
use crate::net::client::HttpClient;
use crate::net::connect::{ConnectConfig, Connector};
use crate::net::tls::TlsError;
use crate::trace::Tracer;
use refresher::{RefreshPolicy, Refresher, Signals};
use token_cache::{TokenCache, TokenKey};
use token_endpoint::{TokenEndpoint, TokenEndpointConfig};

/// One credential as configured: a client of one authorization server, and how its tokens are used.
#[derive(Clone, Debug, PartialEq)]
pub struct CredentialConfig {
    /// The name in the configuration.
    pub name: String,
    pub endpoint: TokenEndpointConfig,
    pub policy: RefreshPolicy,
    /// To the token endpoint.
    pub connect: ConnectConfig,
    /// Whether a request may be sent once more, with a new token, after the upstream refused the one it had.
    pub replay_on_401: bool,
    /// The statuses of the upstream, all 4xx, that say that a token is not accepted.
    pub invalidate_on_status: Vec<StatusCode>,
}

impl CredentialConfig {
    /// Every file that is read to connect to the authorization server.
    pub fn tls_files(&self) -> impl Iterator<Item = &Path> {
        self.connect.files()
    }

    /// The same, and those that are read at each token request.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.tls_files().chain(self.endpoint.files())
    }

    /// A client of the token endpoint. It keeps no connections, and speaks HTTP/1.1: one small request an hour gains
    /// nothing from more.
    ///
    /// # Errors
    /// When a file for TLS cannot be used.
    pub fn token_endpoint(&self) -> Result<TokenEndpoint, TlsError> {
        let connector = Connector::new(&self.connect, None)?;
        Ok(TokenEndpoint::new(
            self.endpoint.clone(),
            HttpClient::new(connector),
        ))
    }
}

/// Starts refreshers, which share one cache.
pub struct Refreshers {
    cache: TokenCache,
    metrics: Arc<Metrics>,
    signals: Signals,
    editions: AtomicU64,
    tracer: Tracer,
}

impl Refreshers {
    /// None yet; `signals` go to each of them, and their requests are spans of `tracer`.
    pub fn new(metrics: Arc<Metrics>, signals: Signals, tracer: Tracer) -> Self {
        Self {
            cache: TokenCache::new(),
            metrics,
            signals,
            editions: AtomicU64::new(0),
            tracer,
        }
    }

    /// Starts one for tokens of `scope` on the present runtime, and returns the handle for requests. It ends when there is
    /// no handle any more. `label` is what logs, metrics and probes call its token.
    ///
    /// # Errors
    /// When a file for TLS cannot be used.
    pub fn start(
        &self,
        credential: &CredentialConfig,
        scope: Option<String>,
        label: &str,
        renew_unused: bool,
    ) -> Result<TokenHandle, TlsError> {
        let key = TokenKey {
            label: label.to_owned(),
            credential: credential.name.clone(),
            edition: self.editions.fetch_add(1, Ordering::Relaxed),
            scope: scope.clone(),
            audience: credential.endpoint.audience.clone(),
            resource: credential.endpoint.resource.clone(),
            extra_params: credential.endpoint.extra_params.clone(),
        };
        let endpoint = credential.token_endpoint()?.for_scope(scope);
        let policy = RefreshPolicy {
            renew_unused,
            ..credential.policy
        };
        Ok(Refresher::spawn(
            key,
            endpoint,
            policy,
            self.cache.clone(),
            self.metrics.token(label),
            self.signals.clone(),
            self.tracer.clone(),
        ))
    }
}

#[cfg(test)]
mod test_server;
