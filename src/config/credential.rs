//! `[credential.NAME]`.

use http::Uri;
use url::Url;

use super::connect::{ConnectSettings, is_read_by_a_proxy};
use super::error::{Origin, Problem};
use super::setting::{
    Problems, as_uri, checked_url, choice, count_or_zero, duration, duration_or_zero, flag, list,
    missing, parsed, share,
};
use super::tables::{CredentialTable, Flag, List, Map, Setting, Text};
use crate::net::connect::ConnectConfig;
use crate::net::tls::HttpVersions;
use crate::oauth::CredentialConfig;
use crate::oauth::access_token::LifetimePolicy;
use crate::oauth::client_auth::{BasicEncoding, ClientAuth};
use crate::oauth::refresher::RefreshPolicy;
use crate::oauth::token_endpoint::{ClientId, TokenEndpointConfig};
use crate::secret::{SecretFault, SecretSource};

pub(super) fn credential(
    name: String,
    mut table: CredentialTable,
    problems: &mut Problems,
) -> Option<CredentialConfig> {
    let place = format!("credential.{name}");
    let connect = connect(&mut table, problems);
    let token_url = match table.token_url {
        Some(url) => token_url(&url, table.allow_insecure_token_url, &connect, problems),
        None => {
            problems.push(missing("token_url", &place, "BEARERD_TOKEN_URL"));
            None
        }
    };
    let client_id = client_id(table.client_id, table.client_id_file, &place, problems);
    let client_secret = client_secret(
        table.client_secret_file,
        table.client_secret_env,
        &place,
        problems,
    );
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
    };
    let client_auth = choice(
        table.client_auth,
        problems,
        &[
            ("client_secret_basic", ClientAuth::ClientSecretBasic),
            ("client_secret_post", ClientAuth::ClientSecretPost),
        ],
    );
    let basic_encoding = choice(
        table.basic_encoding,
        problems,
        &[("form", BasicEncoding::Form), ("raw", BasicEncoding::Raw)],
    );
    let scope = parsed(table.scope, problems, scope);
    let resource = resources(table.resource, problems);
    let extra_params = extra_params(table.extra_params, problems);
    let request_timeout = duration(table.request_timeout, "10s", problems);
    let endpoint = TokenEndpointConfig {
        url: token_url?,
        client_id: client_id?,
        client_secret: client_secret?,
        client_auth,
        basic_encoding,
        scope,
        audience: list(table.audience),
        resource,
        extra_params,
        request_timeout,
        default_lifetime: duration(table.default_lifetime, "300s", problems),
        max_lifetime: duration(table.max_lifetime, "24h", problems),
    };
    Some(CredentialConfig {
        name,
        endpoint,
        policy,
        connect,
        replay_on_401: true,
        invalidate_on_status: vec![http::StatusCode::UNAUTHORIZED],
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
    let url = table.token_url.as_ref();
    let url = url.and_then(|url| url.value.parse().ok());
    settings.checked(url.as_ref(), problems)
}

fn token_url(
    setting: &Setting<String>,
    allow_insecure: Flag,
    connect: &ConnectConfig,
    problems: &mut Problems,
) -> Option<Uri> {
    let url = checked_url(setting, problems)?;
    let uri = as_uri(setting, problems)?;
    let is_read_by_a_proxy = is_read_by_a_proxy(connect, &uri);
    let stays_here = is_loopback(&url) && !is_read_by_a_proxy;
    if url.scheme() == "http" && !flag(allow_insecure, false) && !stays_here {
        let (who, how) = if is_read_by_a_proxy {
            ("the proxy", "use https or no_proxy")
        } else {
            ("the token endpoint", "use https")
        };
        let message = format!("{who} would get the client secret unencrypted");
        problems.push(Problem::at(&setting.origin, message).hint(format!(
            "{how}, or set allow_insecure_token_url = true if you know better"
        )));
    }
    Some(uri)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
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
        (None, Some(file)) => readable(
            SecretSource::File(file.value.into()),
            &file.origin,
            problems,
        )
        .map(ClientId::File),
        (None, None) => {
            problems.push(missing("client_id", place, "BEARERD_CLIENT_ID"));
            None
        }
    }
}

fn client_secret(
    file: Text,
    env: Text,
    place: &str,
    problems: &mut Problems,
) -> Option<SecretSource> {
    match (file, env) {
        (Some(file), Some(_)) => {
            let message = "client_secret_file together with client_secret_env";
            problems.push(
                Problem::at(&file.origin, message)
                    .hint("keep one of the two; a file can be rotated"),
            );
            None
        }
        (Some(file), None) => readable(
            SecretSource::File(file.value.into()),
            &file.origin,
            problems,
        ),
        (None, Some(env)) if !is_variable_name(&env.value) => {
            // Not shown: it may be the secret itself.
            let message =
                "client_secret_env is not the name of an environment variable (A-Z, 0-9, _)";
            problems.push(Problem::at(&env.origin, message));
            None
        }
        (None, Some(env)) => readable(SecretSource::Env(env.value), &env.origin, problems),
        (None, None) => {
            problems.push(missing(
                "client_secret_file",
                place,
                "BEARERD_CLIENT_SECRET_FILE",
            ));
            None
        }
    }
}

fn is_variable_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

/// A secret that cannot be read now will not be there in a minute either; better told at start than at the first use.
fn readable(
    source: SecretSource,
    origin: &Origin,
    problems: &mut Problems,
) -> Option<SecretSource> {
    match source.read() {
        Ok(_) => Some(source),
        Err(error) => {
            let hint = match error.fault() {
                SecretFault::Forbidden => {
                    "let the user that runs bearerd read it; in Kubernetes set fsGroup: 65532"
                }
                SecretFault::NotAFile => "name a regular file; a pipe cannot be read at each use",
                _ => "put the secret there before bearerd starts",
            };
            problems.push(Problem::at(origin, error.to_string()).hint(hint));
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
