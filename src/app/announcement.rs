//! The lines that a start prints: what runs, from where to where, and as whom.

use http::Uri;
use tokio::time::Instant;
use tracing::{info, warn};

use super::App;
use crate::admin::health::rounded;
use crate::net::socket::ListenAddress;
use crate::oauth::TokenHandle;
use crate::oauth::standing::Standing;
use crate::oauth::token_endpoint::ClientId;
use crate::runtime;

impl App {
    /// The first five of the six lines that a start prints; the last one comes with the first token.
    pub(super) fn announce(&self) {
        let confinement = self
            .confinement
            .map(|confinement| format!(", {confinement}"));
        info!(
            "bearerd {} (rustls/aws-lc-rs, {} workers{})",
            env!("CARGO_PKG_VERSION"),
            self.config.workers,
            confinement.unwrap_or_default()
        );
        info!("config {}", self.config.sources);
        let upstreams = self.config.upstreams.iter();
        let upstreams: Vec<String> = upstreams.map(|u| without_slash(&u.url)).collect();
        for address in &self.addresses.proxy {
            info!("proxy  {} -> {}", url(address), upstreams.join(", "));
        }
        info!(
            "admin  {} (/ /status /metrics /livez /readyz /startupz)",
            url(&self.addresses.admin)
        );
        for token in &self.config.tokens {
            let endpoint = &self.config.credentials[token.credential].endpoint;
            info!(
                "token  {}: client_credentials at {} as client_id {}, scope {:?}",
                token.label,
                endpoint.location,
                match &endpoint.client_id {
                    ClientId::Inline(client_id) => format!("{client_id:?}"),
                    ClientId::File(file) => format!("of {file}"),
                },
                token.scope.as_deref().unwrap_or("the server's default"),
            );
        }
        for warning in &self.config.warnings {
            warn!("{warning}");
        }
        let proxy = &self.config.proxy;
        if self.limits.connections < proxy.max_connections {
            warn!(
                files = runtime::file_limit(),
                max_connections = proxy.max_connections,
                "at most {} connections and {} requests at once: this process may not open more files",
                self.limits.connections,
                self.limits.in_flight
            );
        }
    }
}

pub(super) fn url(address: &ListenAddress) -> String {
    match address {
        ListenAddress::Tcp(address) => format!("http://{address}"),
        ListenAddress::Unix(_) => address.to_string(),
    }
}

pub(super) fn without_slash(url: &Uri) -> String {
    url.to_string().trim_end_matches('/').to_owned()
}

/// The sixth line, when there is a token.
pub(super) async fn announce_first_token(mut tokens: TokenHandle) {
    loop {
        if let Standing::Holding { took, next, .. } = tokens.standing()
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
                "ready  first token obtained in {} ms ({}) for {}, expires in {}, {renewal}",
                took.as_millis(),
                token.fingerprint(),
                tokens.name(),
                rounded(left)
            );
            return;
        }
        if !tokens.changed().await {
            return;
        }
    }
}
