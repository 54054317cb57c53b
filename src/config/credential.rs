//! `[credential.NAME]`.

use http::{StatusCode, Uri};
use url::Url;

use super::client_auth::{client_auth, read};
use super::connect::{ConnectSettings, is_read_by_a_proxy};
use super::error::Problem;
use super::setting::{
    Problems, as_uri, checked_url, choice, count_or_zero, duration, duration_or_zero, flag, list,
    missing, parsed, share,
};
use super::tables::{CredentialTable, Flag, List, Map, Numbers, Setting, Text};
use crate::net::connect::ConnectConfig;
use crate::net::tls::HttpVersions;
use crate::oauth::CredentialConfig;
use crate::oauth::access_token::LifetimePolicy;
use crate::oauth::client_auth::ClientAuth;
use crate::oauth::metadata::{Issuer, is_confidential};
use crate::oauth::refresher::RefreshPolicy;
use crate::oauth::token_endpoint::{ClientId, Location, ScopeDowngrade, TokenEndpointConfig};
use crate::secret::SecretSource;

pub(super) fn credential(
    name: String,
    mut table: CredentialTable,
    problems: &mut Problems,
) -> Option<CredentialConfig> {
    let place = format!("credential.{name}");
    let connect = connect(&mut table, problems);
    let client_auth = client_auth(&mut table, &place, problems);
    check_certificate(client_auth.as_ref(), &connect, &place, problems);
    let reach = Reach {
        connect: &connect,
        allow_insecure: flag(table.allow_insecure_token_url, false),
    };
    let location = location(table.token_url, table.issuer, reach, &place, problems);
    let revoke_url = table
        .revoke_url
        .and_then(|url| endpoint_url(&url, "revocation", reach, problems));
    let is_discovered = matches!(location, Some(Location::Issuer(_)));
    let revoke_on_shutdown = revoke_on_shutdown(
        table.revoke_on_shutdown,
        revoke_url.is_some() || is_discovered,
        problems,
    );
    let client_id = client_id(table.client_id, table.client_id_file, &place, problems);
    let lifetime = LifetimePolicy {
        refresh_at: share(table.refresh_at, 0.8, problems),
        refresh_jitter: share(table.refresh_jitter, 0.1, problems),
        expiry_margin: duration_or_zero(table.expiry_margin, "30s", problems),
    };
    let policy = RefreshPolicy {
        lifetime,
        wait_timeout: duration_or_zero(table.wait_timeout, "5s", problems),
        max_waiting: count_or_zero(table.max_waiting, 1024),
        renew_unused: true,
        revoke_at_end: revoke_on_shutdown,
    };
    let scope = parsed(table.scope, problems, scope);
    let resource = resources(table.resource, problems);
    let extra_params = extra_params(table.extra_params, problems);
    let on_scope_downgrade = choice(
        table.on_scope_downgrade,
        problems,
        &[
            ("warn", ScopeDowngrade::Warn),
            ("fail", ScopeDowngrade::Fail),
            ("ignore", ScopeDowngrade::Ignore),
        ],
    );
    let invalidate_on_status = invalidate_on_status(table.invalidate_on_status, problems);
    let request_timeout = duration(table.request_timeout, "10s", problems);
    let endpoint = TokenEndpointConfig {
        location: location?,
        revoke_url,
        client_id: client_id?,
        client_auth: client_auth?,
        scope,
        audience: list(table.audience),
        resource,
        extra_params,
        on_scope_downgrade,
        request_timeout,
        default_lifetime: duration(table.default_lifetime, "300s", problems),
        max_lifetime: duration(table.max_lifetime, "24h", problems),
    };
    Some(CredentialConfig {
        name,
        endpoint,
        policy,
        connect,
        replay_on_401: flag(table.replay_on_401, true),
        invalidate_on_status,
    })
}

fn connect(table: &mut CredentialTable, problems: &mut Problems) -> ConnectConfig {
    let settings = ConnectSettings {
        connect_timeout: table.connect_timeout.take(),
        default_timeout: "2s",
        ca_file: table.ca_file.take(),
        client_cert_file: table.client_cert_file.take(),
        client_key_file: table.client_key_file.take(),
        server_name: None,
        proxy_url: table.proxy_url.take(),
        no_proxy: table.no_proxy.take(),
        dns_refresh: None,
        // One look-up an hour is nothing to save.
        default_dns_refresh: "0s",
        versions: HttpVersions::Http1,
    };
    let url = table.token_url.as_ref().or(table.issuer.as_ref());
    let url = url.and_then(|url| url.value.parse().ok());
    settings.checked(url.as_ref(), problems)
}

/// A certificate proves who we are only where there is one.
fn check_certificate(
    client_auth: Option<&ClientAuth>,
    connect: &ConnectConfig,
    place: &str,
    problems: &mut Problems,
) {
    if let Some(client_auth) = client_auth
        && client_auth.demands_client_certificate()
        && connect.tls.client_identity.is_none()
    {
        let message = format!("missing `client_cert_file` and `client_key_file` in [{place}]");
        let problem = Problem::new(message);
        problems.push(problem.hint("this client_auth is proved by a client certificate"));
    }
}

/// How the addresses of an authorization server may be reached.
#[derive(Clone, Copy)]
struct Reach<'a> {
    connect: &'a ConnectConfig,
    allow_insecure: bool,
}

impl Reach<'_> {
    /// Tells who could read what is sent to `url`, unless that is allowed.
    fn check(
        self,
        setting: &Setting<String>,
        url: &Url,
        uri: &Uri,
        risk: &str,
        problems: &mut Problems,
    ) {
        let by_proxy = is_read_by_a_proxy(self.connect, uri);
        if self.allow_insecure || (is_confidential(url) && !by_proxy) {
            return;
        }
        let (message, how) = if by_proxy {
            (format!("through a proxy, {risk}"), "use https or no_proxy")
        } else {
            (risk.to_owned(), "use https")
        };
        problems.push(Problem::at(&setting.origin, message).hint(format!(
            "{how}, or set allow_insecure_token_url = true if you know better"
        )));
    }
}

fn location(
    token_url: Text,
    issuer: Text,
    reach: Reach<'_>,
    place: &str,
    problems: &mut Problems,
) -> Option<Location> {
    match (token_url, issuer) {
        (Some(_), Some(issuer)) => {
            let problem = Problem::at(&issuer.origin, "issuer together with token_url");
            problems.push(problem.hint(
                "keep one of the two; the metadata of the issuer says where its token endpoint is",
            ));
            None
        }
        (Some(url), None) => endpoint_url(&url, "token", reach, problems).map(Location::Url),
        (None, Some(issuer)) => discovered(&issuer, reach, problems).map(Location::Issuer),
        (None, None) => {
            problems.push(missing("token_url", place, "BEARERD_TOKEN_URL"));
            None
        }
    }
}

/// The URL of the `kind` endpoint.
fn endpoint_url(
    setting: &Setting<String>,
    kind: &str,
    reach: Reach<'_>,
    problems: &mut Problems,
) -> Option<Uri> {
    let url = checked_url(setting, problems)?;
    let uri = as_uri(setting, problems)?;
    let risk = format!("the {kind} endpoint would get the client secret unencrypted");
    reach.check(setting, &url, &uri, &risk, problems);
    Some(uri)
}

fn discovered(
    setting: &Setting<String>,
    reach: Reach<'_>,
    problems: &mut Problems,
) -> Option<Issuer> {
    let url = checked_url(setting, problems)?;
    let uri = as_uri(setting, problems)?;
    let risk = "metadata without TLS can be forged, and leads the client secret anywhere";
    reach.check(setting, &url, &uri, risk, problems);
    let issuer = Issuer::new(&setting.value, reach.allow_insecure);
    if issuer.is_none() {
        let message = "not an issuer identifier: it must be a URL without query (RFC 8414 §2)";
        problems.push(Problem::at(&setting.origin, message));
    }
    issuer
}

fn revoke_on_shutdown(setting: Flag, is_possible: bool, problems: &mut Problems) -> bool {
    let Some(setting) = setting.filter(|setting| setting.value) else {
        return false;
    };
    if !is_possible {
        let message = "revoke_on_shutdown without a revocation endpoint (RFC 7009)";
        problems.push(Problem::at(&setting.origin, message).hint(
            "set revoke_url, or issuer instead of token_url if its metadata has a revocation_endpoint",
        ));
    }
    true
}

/// Statuses of the upstream that say something about the token; 401 unless others are named.
fn invalidate_on_status(setting: Numbers, problems: &mut Problems) -> Vec<StatusCode> {
    let Some(setting) = setting else {
        return vec![StatusCode::UNAUTHORIZED];
    };
    let mut statuses = Vec::new();
    for number in setting.value {
        let status = u16::try_from(number).ok().map(StatusCode::from_u16);
        match status {
            Some(Ok(status)) if status.is_client_error() => statuses.push(status),
            _ => {
                let message = format!("{number} is not a status from 400 to 499");
                problems.push(Problem::at(&setting.origin, message));
            }
        }
    }
    statuses
}

fn client_id(inline: Text, file: Text, place: &str, problems: &mut Problems) -> Option<ClientId> {
    match (inline, file) {
        (Some(inline), Some(_)) => {
            problems.push(Problem::at(
                &inline.origin,
                "client_id together with client_id_file",
            ));
            None
        }
        (Some(inline), None) if inline.value.is_empty() => {
            problems.push(Problem::at(&inline.origin, "client_id is empty"));
            None
        }
        (Some(inline), None) => Some(ClientId::Inline(inline.value)),
        (None, Some(file)) => {
            let source = SecretSource::File(file.value.into());
            read(&source, &file.origin, problems)?;
            Some(ClientId::File(source))
        }
        (None, None) => {
            problems.push(missing("client_id", place, "BEARERD_CLIENT_ID"));
            None
        }
    }
}

/// `scope-token`s (RFC 6749 §3.3).
pub(super) fn scope(text: &str) -> Result<String, String> {
    let is_token = |token: &str| {
        token
            .bytes()
            .all(|b| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e))
    };
    let tokens: Vec<&str> = text.split(' ').filter(|token| !token.is_empty()).collect();
    if tokens.is_empty() {
        return Err("scope is empty; leave it out to ask for the server's default".to_owned());
    }
    match tokens.iter().find(|token| !is_token(token)) {
        Some(token) => Err(format!(
            "{token:?} is not a scope; scopes are separated by spaces"
        )),
        None => Ok(tokens.join(" ")),
    }
}

fn resources(setting: List, problems: &mut Problems) -> Vec<String> {
    let Some(setting) = setting else {
        return Vec::new();
    };
    let resources = setting.value.into_vec();
    for resource in &resources {
        let is_absolute = Url::parse(resource).is_ok_and(|url| url.fragment().is_none());
        if !is_absolute {
            let message =
                format!("{resource:?} is not an absolute URI without fragment (RFC 8707 §2)");
            problems.push(Problem::at(&setting.origin, message));
        }
    }
    resources
}

/// Parameters that have a setting of their own, or are not the configuration's to choose.
const RESERVED_PARAMS: [&str; 8] = [
    "grant_type",
    "client_id",
    "client_secret",
    "client_assertion",
    "client_assertion_type",
    "scope",
    "audience",
    "resource",
];

fn extra_params(setting: Map, problems: &mut Problems) -> Vec<(String, String)> {
    let Some(setting) = setting else {
        return Vec::new();
    };
    for name in setting
        .value
        .keys()
        .filter(|name| RESERVED_PARAMS.contains(&name.as_str()))
    {
        let message = format!("extra_params may not hold {name}");
        problems.push(Problem::at(&setting.origin, message).hint("use the setting of its own"));
    }
    setting.value.into_iter().collect()
}
