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
//!                    │        ▼ until its own end                           │ or after a 401 of the upstream
//!                    └── [ backing off ] ◀──────────────────────────────────┘
//! ```
//!
//! A token request reads id and secret at that moment ([`token_endpoint`]), and proves who we are by one method
//! ([`client_auth`], [`client_assertion`]). Where the token endpoint is, the configuration says or the issuer does
//! ([`metadata`]).

pub mod access_token;
pub mod client_assertion;
pub mod client_auth;
pub mod metadata;
pub mod refresher;
mod round_trip;
pub mod token_cache;
pub mod token_endpoint;
pub mod token_error;
pub mod token_response;

pub use token_cache::{TokenHandle, Unavailable};

use std::path::PathBuf;
use std::time::Duration;

use http::StatusCode;

use crate::metrics::Metrics;
use crate::net::client::{HttpClient, PoolConfig};
use crate::net::connect::Connector;
use crate::net::tls::{ClientTls, HttpVersions, TlsError};
use refresher::{RefreshPolicy, Refresher};
use token_cache::{TokenCache, TokenKey};
use token_endpoint::{TokenEndpoint, TokenEndpointConfig};

/// One credential as configured: a client of one authorization server, and how its tokens are used.
#[derive(Clone, Debug)]
pub struct CredentialConfig {
    /// The name in the configuration.
    pub name: String,
    pub endpoint: TokenEndpointConfig,
    pub policy: RefreshPolicy,
    /// DNS, TCP and TLS together.
    pub connect_timeout: Duration,
    /// Trusted instead of the built-in roots.
    pub ca_file: Option<PathBuf>,
    /// Whether the last tokens are revoked when the process stops.
    pub revoke_on_shutdown: bool,
    /// Whether a request may be sent once more, with a new token, after the upstream refused the one it had.
    pub replay_on_401: bool,
    /// The statuses of the upstream, all 4xx, that say that a token is not accepted.
    pub invalidate_on_status: Vec<StatusCode>,
}

impl CredentialConfig {
    /// A client of the token endpoint. It keeps no connections, and speaks HTTP/1.1: one small request an hour gains
    /// nothing from more.
    ///
    /// # Errors
    /// When the CA file cannot be used.
    pub fn token_endpoint(&self) -> Result<TokenEndpoint, TlsError> {
        let tls = ClientTls::load(self.ca_file.as_deref(), HttpVersions::Http1)?;
        let connector = Connector::new(tls, self.connect_timeout, None);
        let pool = PoolConfig {
            idle_timeout: Duration::from_secs(1),
            max_idle: 0,
        };
        let client = HttpClient::new(connector, pool);
        Ok(TokenEndpoint::new(self.endpoint.clone(), client))
    }

    /// Starts the refresher on the present runtime, and returns the handle for requests.
    ///
    /// # Errors
    /// When the CA file cannot be used.
    pub fn start(&self, cache: TokenCache, metrics: &Metrics) -> Result<TokenHandle, TlsError> {
        let key = TokenKey {
            credential: self.name.clone(),
            scope: self.endpoint.scope.clone(),
            audience: self.endpoint.audience.clone(),
            resource: self.endpoint.resource.clone(),
            extra_params: self.endpoint.extra_params.clone(),
        };
        let endpoint = self.token_endpoint()?;
        Ok(Refresher::spawn(
            key,
            endpoint,
            self.policy,
            cache,
            metrics.token(&self.name),
        ))
    }
}

#[cfg(test)]
mod test_server;
