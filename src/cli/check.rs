//! `check` and `token`: try the configuration, and say what was found and what to do.

use std::time::Duration;

use http::Uri;
use tokio::time::Instant;

use super::arguments::TokenFormat;
use super::doctor::Patient;
use super::{Exit, block_on};
use crate::config::{Config, TokenConfig};
use crate::net::connect::Connector;
use crate::oauth::CredentialConfig;
use crate::oauth::access_token::{Grant, SKEW_WORTH_TELLING};
use crate::oauth::token_endpoint::{Location, TokenEndpoint};
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
        for (index, token) in config.tokens.iter().enumerate() {
            let others = &config.tokens[..index];
            let is_reached = others
                .iter()
                .any(|other| other.credential == token.credential);
            let exit = check_token(config, token, is_reached).await;
            first = first.or(exit);
        }
        for upstream in &config.upstreams {
            let exit = check_upstream(upstream).await;
            first = first.or(exit);
        }
        first
    })
}

/// The way there is the same for each scope of a credential, and told once.
async fn check_token(config: &Config, token: &TokenConfig, is_reached: bool) -> Exit {
    let name = format!("token {}", token.label);
    let credential = &config.credentials[token.credential];
    let fail = |error: &TokenError| {
        say!("fail  {name}: {error}");
        if let Some(hint) = error.hint() {
            say!("      hint: {hint}");
        }
        token_exit(error)
    };
    let endpoint = match credential.token_endpoint() {
        Ok(endpoint) => endpoint.for_scope(token.scope.clone()),
        Err(error) => return fail(&error.into()),
    };
    let url = match endpoint.url().await {
        Ok(url) => url,
        Err(error) => return fail(&error),
    };
    if !is_reached {
        let connector = match Connector::new(&credential.connect, None) {
            Ok(connector) => connector,
            Err(error) => return fail(&error.into()),
        };
        let reached = reach(credential, &name, &url, connector).await;
        if reached != Exit::Clean {
            return reached;
        }
    }
    let started = Instant::now();
    match fetch(&endpoint).await {
        Ok(grant) => {
            tell_of_grant(&name, &grant, token.scope.as_deref(), started.elapsed());
            Exit::Clean
        }
        Err(error) => {
            let exit = fail(&error);
            if may_lack_a_slash(&error, &url) {
                say!("      hint: {url} does not end in a slash; for django-oauth-toolkit it must");
            }
            exit
        }
    }
}

async fn reach(credential: &CredentialConfig, name: &str, url: &Uri, connector: Connector) -> Exit {
    if let Location::Issuer(issuer) = &credential.endpoint.location {
        let issuer = issuer.identifier();
        say!("ok    {name}: the metadata of {issuer} say that tokens are at {url}");
    }
    let patient = Patient {
        name: name.to_owned(),
        table: format!("credential.{}", credential.name),
        url,
        connect: &credential.connect,
    };
    patient.examine(connector).await
}

fn tell_of_grant(name: &str, grant: &Grant, asked: Option<&str>, took: Duration) {
    say!(
        "ok    {name}: lifetime {}, scope {}, fingerprint {} ({} ms)",
        lifetime_text(grant),
        grant.scope.as_deref().unwrap_or("as asked"),
        grant.fingerprint,
        took.as_millis()
    );
    if let Some(missing) = &grant.missing_scope {
        say!("warn  {name}: asked for and not granted: {missing}");
        say!(
            "      hint: asked for {:?}; let the authorization server grant it, or ask for less",
            asked.unwrap_or_default()
        );
    }
    if grant
        .lifetime
        .is_none_or(|lifetime| lifetime < SHORT_LIFETIME)
    {
        say!(
            "warn  {name}: tokens live for less than a minute, so they are asked for all the time"
        );
    }
    match grant.clock_skew(took) {
        Some(skew) if skew.abs() > SKEW_WORTH_TELLING => {
            let ahead = if skew > 0.0 { "ahead of" } else { "behind" };
            say!(
                "warn  {name}: its clock is {:.0} s {ahead} ours",
                skew.abs()
            );
            say!(
                "      hint: one of the two is wrong; assertions and tokens may be refused for it"
            );
        }
        Some(_) => say!("ok    {name}: its clock is ours, to a few seconds"),
        None => {}
    }
}

/// Tokens that live shorter than this are rather a mistake.
const SHORT_LIFETIME: Duration = Duration::from_secs(60);

/// Django answers so where only the address with a slash is known.
fn may_lack_a_slash(error: &TokenError, url: &Uri) -> bool {
    let is_other = matches!(error, TokenError::Status { status, .. }
        if matches!(status.as_u16(), 404 | 405 | 500));
    is_other && !url.path().ends_with('/')
}

/// Connects, and sends nothing: a request to a payments API is not for us to invent.
async fn check_upstream(config: &UpstreamConfig) -> Exit {
    let name = format!("upstream {}", config.name);
    let connector = match Upstream::connector(config, None) {
        Ok(connector) => connector,
        Err(error) => {
            say!("fail  {name}: {error}");
            return Exit::Config;
        }
    };
    let patient = Patient {
        name,
        table: format!("upstream.{}", config.name),
        url: &config.url,
        connect: &config.connect,
    };
    patient.examine(connector).await
}

/// With the first of the credentials that the server knows.
async fn fetch(endpoint: &TokenEndpoint) -> Result<Grant, TokenError> {
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
        let endpoint = config.credentials[token.credential].token_endpoint();
        let grant = match endpoint {
            Ok(endpoint) => fetch(&endpoint.for_scope(token.scope.clone())).await,
            Err(error) => Err(error.into()),
        };
        match grant {
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
