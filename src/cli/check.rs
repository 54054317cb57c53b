//! `check` and `token`: try the configuration, and say what was found and what to do.

use super::arguments::TokenFormat;
use super::{Exit, block_on};
use crate::config::{Config, TokenConfig};
use crate::net::body::Chain;
use crate::net::connect::ConnectError;
use crate::net::outbound_proxy::ProxyFault;
use crate::oauth::access_token::Grant;
use crate::oauth::token_error::TokenError;
use crate::proxy::upstream::{Upstream, UpstreamConfig};

pub(super) fn check(config: &Config, online: bool) -> Exit {
    say!("ok    configuration: {}", config.sources);
    for warning in &config.warnings {
        say!("warn  {warning}");
    }
    if !online {
        return Exit::Clean;
    }
    block_on(async {
        let mut first = Exit::Clean;
        for token in &config.tokens {
            let exit = check_token(config, token).await;
            first = first.or(exit);
        }
        for upstream in &config.upstreams {
            let exit = check_upstream(upstream).await;
            first = first.or(exit);
        }
        first
    })
}

async fn check_token(config: &Config, token: &TokenConfig) -> Exit {
    let name = &token.label;
    match fetch(config, token).await {
        Ok(grant) => {
            say!(
                "ok    token {name}: lifetime {}, scope {}, fingerprint {}",
                lifetime_text(&grant),
                grant.scope.as_deref().unwrap_or("as asked"),
                grant.fingerprint
            );
            if let Some(missing) = &grant.missing_scope {
                say!("warn  token {name}: asked for and not granted: {missing}");
            }
            Exit::Clean
        }
        Err(error) => {
            say!("fail  token {name}: {error}");
            if let Some(hint) = error.hint() {
                say!("      hint: {hint}");
            }
            token_exit(&error)
        }
    }
}

/// Connects, and sends nothing: a request to a payments API is not for us to invent.
async fn check_upstream(config: &UpstreamConfig) -> Exit {
    let (name, url) = (&config.name, &config.url);
    let connector = match Upstream::connector(config, None) {
        Ok(connector) => connector,
        Err(error) => {
            say!("fail  upstream {name}: {error}");
            return Exit::Config;
        }
    };
    match connector.connect(url.clone()).await {
        Ok(stream) => {
            let session = match stream.inner().tls() {
                Some(tls) => format!(
                    "{:?}, {}",
                    tls.protocol_version()
                        .unwrap_or(rustls::ProtocolVersion::TLSv1_3),
                    match tls.alpn_protocol() {
                        Some(b"h2") => "HTTP/2",
                        _ => "HTTP/1.1",
                    }
                ),
                None => "without TLS".to_owned(),
            };
            say!("ok    upstream {name}: connected to {url} ({session})");
            Exit::Clean
        }
        Err(error) => {
            say!("fail  upstream {name}: {}", Chain(&error));
            let hint = match error {
                ConnectError::Dns(_) => "the host name of [upstream] url has no address here",
                ConnectError::Tcp(_) | ConnectError::Timeout => {
                    "is the API up, and reachable from here?"
                }
                ConnectError::Tls(_) => {
                    "a private CA needs [upstream] ca_file, another name server_name; some APIs want client_cert_file"
                }
                ConnectError::Proxy(ProxyFault::Refused(_)) => {
                    "the proxy must allow CONNECT to the API; it is asked without credentials. no_proxy goes around it"
                }
                ConnectError::Proxy(_) => {
                    "is [upstream] proxy_url an HTTP proxy, up, and reachable from here?"
                }
                ConnectError::Exhausted(_) => "raise the limit of open files, ulimit -n",
            };
            say!("      hint: {hint}");
            Exit::Unavailable
        }
    }
}

/// With the first of the credentials that the server knows.
async fn fetch(config: &Config, token: &TokenConfig) -> Result<Grant, TokenError> {
    let endpoint = config.credentials[token.credential].token_endpoint()?;
    let endpoint = endpoint.for_scope(token.scope.clone());
    let credentials = endpoint.credentials()?;
    #[expect(clippy::expect_used, reason = "never none, by contract")]
    let (last, others) = credentials.split_last().expect("credentials");
    for credentials in others {
        match endpoint.fetch(credentials).await {
            // The next secret of the list may be the one.
            Err(error) if error.refuses_credentials() => {}
            result => return result,
        }
    }
    endpoint.fetch(last).await
}

fn lifetime_text(grant: &Grant) -> String {
    match grant.lifetime {
        Some(lifetime) => humantime::format_duration(lifetime).to_string(),
        None => "0s (over when it came)".to_owned(),
    }
}

fn token_exit(error: &TokenError) -> Exit {
    match error {
        TokenError::Secret(_) | TokenError::Assertion(_) | TokenError::Tls(_) => Exit::Config,
        error if error.is_permanent() => Exit::NoPermission,
        _ => Exit::Unavailable,
    }
}

/// The token of the first route, if there are several.
pub(super) fn token(config: &Config, show: bool, format: TokenFormat) -> Exit {
    let Some(token) = config.tokens.first() else {
        return Exit::Config;
    };
    block_on(async {
        match fetch(config, token).await {
            Ok(grant) => {
                print_token(&grant, show, format);
                Exit::Clean
            }
            Err(error) => {
                eprintln!("bearerd: {error}");
                if let Some(hint) = error.hint() {
                    eprintln!("  hint: {hint}");
                }
                token_exit(&error)
            }
        }
    })
}

fn print_token(grant: &Grant, show: bool, format: TokenFormat) {
    let token = if show { grant.expose() } else { "***" };
    match format {
        TokenFormat::Text => {
            say!("type         Bearer");
            say!("lifetime     {}", lifetime_text(grant));
            say!(
                "scope        {}",
                grant.scope.as_deref().unwrap_or("(as asked)")
            );
            say!("fingerprint  {}", grant.fingerprint);
            if show {
                say!("token        {token}");
            }
        }
        TokenFormat::Json => {
            let mut json = serde_json::json!({
                "token_type": "Bearer",
                "expires_in": grant.lifetime.map_or(0, |lifetime| lifetime.as_secs()),
                "scope": grant.scope,
                "fingerprint": grant.fingerprint,
            });
            if show {
                json["access_token"] = token.into();
            }
            say!("{json}");
        }
        TokenFormat::Header => say!("Authorization: Bearer {token}"),
    }
}
