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
//! ([`client_auth`]).

pub mod access_token;
pub mod client_auth;
pub mod refresher;
pub mod token_cache;
pub mod token_endpoint;
pub mod token_error;
pub mod token_response;

pub use token_cache::{TokenHandle, Unavailable};

use std::time::Duration;

use crate::metrics::Metrics;
use crate::net::client::{HttpClient, PoolConfig};
use crate::net::connect::{ConnectConfig, Connector};
use crate::net::tls::TlsError;
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
    /// To the token endpoint.
    pub connect: ConnectConfig,
}

impl CredentialConfig {
    /// A client of the token endpoint. It keeps no connections, and speaks HTTP/1.1: one small request an hour gains
    /// nothing from more.
    ///
    /// # Errors
    /// When a file for TLS cannot be used.
    pub fn token_endpoint(&self) -> Result<TokenEndpoint, TlsError> {
        let connector = Connector::new(&self.connect, None)?;
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
    /// When a file for TLS cannot be used.
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
