//! From tables to [`Config`]: every value parsed once, every default in one place, every mistake collected.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use http::{HeaderName, HeaderValue, Uri, header};
use url::Url;

use super::error::{Origin, Problem, closest};
use super::tables::{
    AdminTable, CredentialTable, Flag, List, LogTable, Map, Number, OneOrMany, ProxyTable, Setting,
    Share, Tables, Text, UpstreamTable,
};
use super::{AdminConfig, Config, LogConfig, LogFormat, ProxyConfig, Sources};
use crate::net::client::PoolConfig;
use crate::net::tls::{ClientTls, HttpVersions};
use crate::oauth::CredentialConfig;
use crate::oauth::access_token::LifetimePolicy;
use crate::oauth::client_auth::{BasicEncoding, ClientAuth};
use crate::oauth::refresher::RefreshPolicy;
use crate::oauth::token_endpoint::{ClientId, TokenEndpointConfig};
use crate::proxy::AccessLog;
use crate::proxy::guard::GuardConfig;
use crate::proxy::upstream::UpstreamConfig;
use crate::secret::SecretSource;

type Problems = Vec<Problem>;

/// `None` only when there is no upstream or no credential at all; `problems` says so then.
pub(super) fn config(
    tables: Tables,
    sources: Sources,
    warnings: Vec<String>,
    problems: &mut Problems,
) -> Option<Config> {
    let proxy = proxy(tables.proxy, problems);
    let admin = admin(tables.admin, problems);
    let workers = workers(tables.runtime.workers, problems);
    let log = log(tables.log, problems);
    let upstream = the_one(
        tables.upstream,
        "upstream",
        "BEARERD_UPSTREAM_URL",
        problems,
    )
    .and_then(|(name, table)| upstream(name, table, problems));
    let credential = the_one(
        tables.credential,
        "credential",
        "BEARERD_TOKEN_URL",
        problems,
    )
    .and_then(|(name, table)| credential(name, table, problems));
    Some(Config {
        proxy,
        admin,
        workers,
        log,
        upstream: upstream?,
        credential: credential?,
        sources,
        warnings,
    })
}

fn the_one<T>(
    tables: BTreeMap<String, T>,
    kind: &str,
    variable: &str,
    problems: &mut Problems,
) -> Option<(String, T)> {
    if tables.len() > 1 {
        let message = format!(
            "{} tables [{kind}.NAME]; this version knows exactly one",
            tables.len()
        );
        problems.push(Problem::new(message));
    }
    let Some((name, table)) = tables.into_iter().next() else {
        problems.push(Problem::new(format!("there is no {kind}")).hint(format!(
            "set {variable}, or write a table [{kind}.NAME] into a file named by --config"
        )));
        return None;
    };
    let is_plain = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if !is_plain || !(1..=64).contains(&name.len()) {
        let message =
            format!("the name in [{kind}.{name:?}] is not 1 to 64 letters, digits, - and _");
        problems.push(Problem::new(message));
    }
    Some((name, table))
}

fn proxy(table: ProxyTable, problems: &mut Problems) -> ProxyConfig {
    let guard = GuardConfig {
        allow_remote_clients: flag(table.allow_remote_clients, false),
        allowed_hosts: list(table.allowed_hosts),
        allowed_origins: list(table.allowed_origins),
        require_header: parsed(table.require_header, problems, require_header),
    };
    let max_header_bytes = size(table.max_header_bytes, "32KiB", problems);
    if !(8 * 1024..=1024 * 1024).contains(&max_header_bytes) {
        problems.push(Problem::new("max_header_bytes must be from 8KiB to 1MiB"));
    }
    let config = ProxyConfig {
        listen: listen(table.listen, guard.allow_remote_clients, problems),
        guard,
        header_timeout: duration(table.header_timeout, "15s", problems),
        max_connections: count(table.max_connections, 4096, problems),
        max_in_flight: count(table.max_in_flight, 1024, problems),
        max_header_bytes: usize::try_from(max_header_bytes).unwrap_or(usize::MAX),
        max_body_bytes: table
            .max_body_bytes
            .map(|limit| size(Some(limit), "0", problems)),
        drain_delay: duration_or_zero(table.drain_delay, "5s", problems),
        drain_timeout: duration(table.drain_timeout, "25s", problems),
        access_log: choice(
            table.access_log,
            problems,
            &[
                ("errors", AccessLog::Errors),
                ("all", AccessLog::All),
                ("off", AccessLog::Off),
            ],
        ),
    };
    if config.drain_delay >= config.drain_timeout {
        problems.push(
            Problem::new("drain_delay is not shorter than drain_timeout")
                .hint("drain_timeout counts from the signal, drain_delay included"),
        );
    }
    config
}

fn listen(setting: List, allow_remote_clients: bool, problems: &mut Problems) -> Vec<SocketAddr> {
    let setting = setting.unwrap_or_else(|| Setting {
        value: OneOrMany::One("127.0.0.1:8080".to_owned()),
        origin: Origin::File(0..0),
    });
    let mut addresses = Vec::new();
    for text in setting.value.into_vec() {
        match address(&text) {
            Ok(address) if !allow_remote_clients && !address.ip().is_loopback() => problems.push(
                Problem::at(&setting.origin, format!("{address} is not a loopback address")).hint(
                    "whoever reaches this port uses your credential; if that is meant, set allow_remote_clients \
                     (BEARERD_ALLOW_REMOTE_CLIENTS=true)",
                ),
            ),
            Ok(address) => addresses.push(address),
            Err(message) => problems.push(Problem::at(&setting.origin, message)),
        }
    }
    if addresses.is_empty() && problems.is_empty() {
        problems.push(Problem::at(&setting.origin, "no address to listen on"));
    }
    addresses
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is not an address and port, such as 127.0.0.1:8080 or [::1]:8080")
    })
}

pub(super) fn admin(table: AdminTable, problems: &mut Problems) -> AdminConfig {
    match parsed(table.listen, problems, address) {
        Some(listen) => AdminConfig { listen },
        None => AdminConfig::default(),
    }
}

fn workers(setting: Number, problems: &mut Problems) -> usize {
    match setting {
        Some(setting) if setting.value > 256 => {
            problems.push(Problem::at(&setting.origin, "more than 256 workers"));
            1
        }
        Some(setting) if setting.value > 0 => usize::try_from(setting.value).unwrap_or(1),
        // Follows the CPU quota of a container. More than two seldom pay for a sidecar.
        _ => std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(2),
    }
}

fn log(table: LogTable, problems: &mut Problems) -> LogConfig {
    use tracing::Level;
    LogConfig {
        level: choice_or(
            table.level,
            problems,
            &[
                ("info", Level::INFO),
                ("error", Level::ERROR),
                ("warn", Level::WARN),
                ("debug", Level::DEBUG),
                ("trace", Level::TRACE),
            ],
        ),
        format: choice(
            table.format,
            problems,
            &[
                ("auto", LogFormat::Auto),
                ("text", LogFormat::Text),
                ("json", LogFormat::Json),
            ],
        ),
    }
}

fn upstream(name: String, table: UpstreamTable, problems: &mut Problems) -> Option<UpstreamConfig> {
    let Some(url) = table.url else {
        problems.push(missing(
            "url",
            &format!("upstream.{name}"),
            "BEARERD_UPSTREAM_URL",
        ));
        return None;
    };
    let url = checked_url(&url, problems).and_then(|parsed| {
        if parsed.query().is_some() {
            problems.push(Problem::at(&url.origin, "an upstream URL has no query"));
        }
        as_uri(&url, problems)
    });
    let http = choice(
        table.http,
        problems,
        &[
            ("auto", HttpVersions::Auto),
            ("1.1", HttpVersions::Http1),
            ("2", HttpVersions::Http2),
        ],
    );
    let config = UpstreamConfig {
        name,
        url: url?,
        connect_timeout: duration(table.connect_timeout, "3s", problems),
        response_timeout: duration(table.response_timeout, "60s", problems),
        idle_timeout: duration(table.idle_timeout, "60s", problems),
        pool: PoolConfig {
            idle_timeout: duration(table.pool_idle_timeout, "30s", problems),
            max_idle: count_or_zero(table.max_idle_connections, 64),
        },
        http,
        ca_file: ca_file(table.ca_file, problems),
        set_headers: set_headers(table.set_headers, problems),
        remove_headers: remove_headers(table.remove_headers, problems),
        rewrite_location: flag(table.rewrite_location, true),
    };
    Some(config)
}

fn credential(
    name: String,
    table: CredentialTable,
    problems: &mut Problems,
) -> Option<CredentialConfig> {
    let place = format!("credential.{name}");
    let token_url = match table.token_url {
        Some(url) => token_url(&url, flag(table.allow_insecure_token_url, false), problems),
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
        default_lifetime: duration(table.default_lifetime, "300s", problems),
        max_lifetime: duration(table.max_lifetime, "24h", problems),
    };
    let policy = RefreshPolicy {
        lifetime,
        wait_timeout: duration_or_zero(table.wait_timeout, "5s", problems),
        max_waiting: count_or_zero(table.max_waiting, 1024),
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
    let connect_timeout = duration(table.connect_timeout, "2s", problems);
    let ca_file = ca_file(table.ca_file, problems);
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
        default_lifetime: lifetime.default_lifetime,
        max_lifetime: lifetime.max_lifetime,
    };
    Some(CredentialConfig {
        name,
        endpoint,
        policy,
        connect_timeout,
        ca_file,
    })
}

fn missing(key: &str, table: &str, variable: &str) -> Problem {
    Problem::new(format!("missing `{key}` in [{table}]")).hint(format!("add it, or set {variable}"))
}

/// An absolute `http` or `https` URL with a host, without user information and fragment (RFC 6749 §3.2, RFC 9110
/// §4.2.4).
fn checked_url(setting: &Setting<String>, problems: &mut Problems) -> Option<Url> {
    let mut problem = |message: String| problems.push(Problem::at(&setting.origin, message));
    let url = match Url::parse(&setting.value) {
        Ok(url) => url,
        Err(error) => {
            problem(format!("not a URL: {error}"));
            return None;
        }
    };
    let before = (
        url.username().is_empty() && url.password().is_none(),
        url.fragment().is_none(),
    );
    match before {
        (false, _) => problem("a URL must not contain user information".to_owned()),
        (_, false) => problem("a URL must not have a fragment here".to_owned()),
        (true, true) if !matches!(url.scheme(), "http" | "https") => {
            problem(format!(
                "unknown scheme {:?}, expected http or https",
                url.scheme()
            ));
        }
        (true, true) if url.host_str().is_none_or(str::is_empty) => {
            problem("a URL needs a host".to_owned())
        }
        (true, true) => return Some(url),
    }
    None
}

/// The URL as it was written: the path goes onto the wire byte for byte.
fn as_uri(setting: &Setting<String>, problems: &mut Problems) -> Option<Uri> {
    match setting.value.parse::<Uri>() {
        Ok(uri) if uri.authority().is_some() => Some(uri),
        _ => {
            let message = "not a URL that can be requested";
            problems.push(
                Problem::at(&setting.origin, message).hint("percent-encode what is not ASCII"),
            );
            None
        }
    }
}

fn token_url(
    setting: &Setting<String>,
    allow_insecure: bool,
    problems: &mut Problems,
) -> Option<Uri> {
    let url = checked_url(setting, problems)?;
    if url.scheme() == "http" && !allow_insecure && !is_loopback(&url) {
        problems.push(
            Problem::at(
                &setting.origin,
                "the token endpoint would get the client secret unencrypted",
            )
            .hint("use https, or set allow_insecure_token_url = true if you know better"),
        );
    }
    as_uri(setting, problems)
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
                crate::secret::SecretFault::Forbidden => {
                    "let the user that runs bearerd read it; in Kubernetes set fsGroup: 65532"
                }
                crate::secret::SecretFault::NotAFile => {
                    "name a regular file; a pipe cannot be read at each use"
                }
                _ => "put the secret there before bearerd starts",
            };
            problems.push(Problem::at(origin, error.to_string()).hint(hint));
            None
        }
    }
}

/// `scope-token`s (RFC 6749 §3.3).
fn scope(text: &str) -> Result<String, String> {
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

/// Fields whose value is decided by what a proxy is.
fn is_reserved_field(name: &HeaderName) -> bool {
    const RESERVED: [HeaderName; 9] = [
        header::AUTHORIZATION,
        header::PROXY_AUTHORIZATION,
        header::HOST,
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::TE,
        header::VIA,
    ];
    RESERVED.contains(name)
}

fn set_headers(setting: Map, problems: &mut Problems) -> Vec<(HeaderName, HeaderValue)> {
    let Some(setting) = setting else {
        return Vec::new();
    };
    let mut fields = Vec::new();
    for (name, value) in &setting.value {
        match (field_name(name), HeaderValue::from_str(value)) {
            (Ok(name), Ok(value)) => fields.push((name, value)),
            (Err(message), _) => problems.push(Problem::at(&setting.origin, message)),
            (_, Err(_)) => {
                let message = format!("the value of {name} cannot stand in a header");
                problems.push(Problem::at(&setting.origin, message));
            }
        }
    }
    fields
}

fn remove_headers(setting: List, problems: &mut Problems) -> Vec<HeaderName> {
    let Some(setting) = setting else {
        return Vec::new();
    };
    let mut fields = Vec::new();
    for name in setting.value.into_vec() {
        match field_name(&name) {
            Ok(name) => fields.push(name),
            Err(message) => problems.push(Problem::at(&setting.origin, message)),
        }
    }
    fields
}

fn field_name(name: &str) -> Result<HeaderName, String> {
    match HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) if is_reserved_field(&name) => Err(format!("{name} is not yours to change here")),
        Ok(name) => Ok(name),
        Err(_) => Err(format!("{name:?} is not a header name")),
    }
}

fn require_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let parsed = text.split_once(':').and_then(|(name, value)| {
        let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
        let value = HeaderValue::from_str(value.trim()).ok()?;
        Some((name, value))
    });
    parsed.ok_or_else(|| "not a header and its value, such as \"X-Sidecar: 1\"".to_owned())
}

fn ca_file(setting: Text, problems: &mut Problems) -> Option<PathBuf> {
    let setting = setting?;
    let path = PathBuf::from(&setting.value);
    if let Err(error) = ClientTls::load(Some(&path), HttpVersions::Auto) {
        problems.push(Problem::at(&setting.origin, error.to_string()));
    }
    Some(path)
}

fn parsed<T>(
    setting: Text,
    problems: &mut Problems,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<T> {
    let setting = setting?;
    parse(&setting.value)
        .map_err(|message| problems.push(Problem::at(&setting.origin, message)))
        .ok()
}

fn duration(setting: Text, default: &str, problems: &mut Problems) -> Duration {
    let origin = setting.as_ref().map(|setting| setting.origin.clone());
    let value = duration_or_zero(setting, default, problems);
    if let Some(origin) = origin.filter(|_| value.is_zero()) {
        problems.push(Problem::at(&origin, "must be longer than 0"));
    }
    value
}

/// So long that no deadline overflows when it is added to a clock.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);

fn duration_or_zero(setting: Text, default: &str, problems: &mut Problems) -> Duration {
    let parse = |text: &str| match humantime::parse_duration(text) {
        Ok(duration) if duration > MAX_DURATION => Err("longer than a year".to_owned()),
        Ok(duration) => Ok(duration),
        Err(_) => Err(format!(
            "{text:?} is not a duration, such as \"30s\", \"500ms\" or \"1h 30m\""
        )),
    };
    parsed(setting, problems, parse).unwrap_or_else(|| parse(default).unwrap_or_default())
}

fn size(setting: Text, default: &str, problems: &mut Problems) -> u64 {
    let parse = |text: &str| {
        let size = text.parse::<ByteSize>();
        size.map(|size| size.as_u64())
            .map_err(|_| format!("{text:?} is not a size, such as \"64KiB\" or \"10MiB\""))
    };
    parsed(setting, problems, parse).unwrap_or_else(|| parse(default).unwrap_or_default())
}

fn count(setting: Number, default: usize, problems: &mut Problems) -> usize {
    if let Some(setting) = setting.as_ref().filter(|setting| setting.value == 0) {
        problems.push(Problem::at(&setting.origin, "must be at least 1"));
    }
    count_or_zero(setting, default)
}

/// At most what a semaphore can hold.
fn count_or_zero(setting: Number, default: usize) -> usize {
    setting.map_or(default, |setting| {
        usize::try_from(setting.value)
            .unwrap_or(usize::MAX)
            .min(tokio::sync::Semaphore::MAX_PERMITS)
    })
}

fn share(setting: Share, default: f64, problems: &mut Problems) -> f64 {
    match setting {
        Some(setting) if !(0.0..=1.0).contains(&setting.value) => {
            problems.push(Problem::at(&setting.origin, "must be from 0.0 to 1.0"));
            default
        }
        Some(setting) => setting.value,
        None => default,
    }
}

fn flag(setting: Flag, default: bool) -> bool {
    setting.map_or(default, |setting| setting.value)
}

fn list(setting: List) -> Vec<String> {
    setting
        .map(|setting| setting.value.into_vec())
        .unwrap_or_default()
}

/// One of a few words; without a setting the type's default.
fn choice<T: Copy + Default>(setting: Text, problems: &mut Problems, choices: &[(&str, T)]) -> T {
    match setting {
        Some(_) => choice_or(setting, problems, choices),
        None => T::default(),
    }
}

/// One of a few words; without a setting the first.
fn choice_or<T: Copy>(setting: Text, problems: &mut Problems, choices: &[(&str, T)]) -> T {
    let (_, default) = choices[0];
    let Some(setting) = setting else {
        return default;
    };
    match choices.iter().find(|(word, _)| *word == setting.value) {
        Some((_, choice)) => *choice,
        None => {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            let problem = Problem::at(
                &setting.origin,
                format!("{:?} is none of {}", setting.value, words.join(", ")),
            );
            problems.push(match closest(&setting.value, &words) {
                Some(close) => problem.hint(format!("did you mean {close:?}?")),
                None => problem,
            });
            default
        }
    }
}
