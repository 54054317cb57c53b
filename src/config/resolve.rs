//! From tables to [`Config`]: every value parsed once, every default in one place, every mistake collected.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use http::{HeaderName, HeaderValue};

use super::credential::credential;
use super::error::{Origin, Problem};
use super::route::routes;
use super::setting::{
    Problems, choice, choice_or, count, duration, duration_or_zero, flag, list, parsed, size,
};
use super::tables::{AdminTable, List, LogTable, Number, OneOrMany, ProxyTable, Setting, Tables};
use super::upstream::{upstream, warning};
use super::{AdminConfig, Config, LogConfig, LogFormat, ProxyConfig, Sources, TokenConfig};
use crate::net::socket::ListenAddress;
use crate::oauth::CredentialConfig;
use crate::proxy::AccessLog;
use crate::proxy::guard::GuardConfig;
use crate::proxy::route::RouteConfig;
use crate::proxy::upstream::UpstreamConfig;

/// `None` only when there is no upstream or no credential at all; `problems` says so then.
pub(super) fn config(
    tables: Tables,
    sources: Sources,
    mut warnings: Vec<String>,
    problems: &mut Problems,
) -> Option<Config> {
    let proxy = proxy(tables.proxy, problems);
    let admin = admin(tables.admin, problems);
    let workers = workers(tables.runtime.workers, problems);
    let log = log(tables.log, problems);
    let upstreams: Vec<_> = named(
        tables.upstream,
        "upstream",
        "BEARERD_UPSTREAM_URL",
        problems,
    )
    .into_iter()
    .filter_map(|(name, table)| upstream(name, table, problems))
    .collect();
    let credentials: Vec<_> = named(
        tables.credential,
        "credential",
        "BEARERD_TOKEN_URL",
        problems,
    )
    .into_iter()
    .filter_map(|(name, table)| credential(name, table, problems))
    .collect();
    if upstreams.is_empty() || credentials.is_empty() {
        return None;
    }
    let (routes, tokens) = routes(tables.route, &upstreams, &credentials, problems);
    warnings.extend(upstreams.iter().filter_map(warning));
    warnings.extend(unused(&upstreams, &credentials, &routes, &tokens));
    Some(Config {
        proxy,
        admin,
        workers,
        log,
        upstreams,
        credentials,
        routes,
        tokens,
        sources,
        warnings,
    })
}

/// The tables by their names, of which there must be one.
fn named<T>(
    tables: BTreeMap<String, T>,
    kind: &str,
    variable: &str,
    problems: &mut Problems,
) -> BTreeMap<String, T> {
    if tables.is_empty() {
        problems.push(Problem::new(format!("there is no {kind}")).hint(format!(
            "set {variable}, or write a table [{kind}.NAME] into a file named by --config"
        )));
    }
    for name in tables.keys() {
        let is_plain = name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        if !is_plain || !(1..=64).contains(&name.len()) {
            let message =
                format!("the name in [{kind}.{name:?}] is not 1 to 64 letters, digits, - and _");
            problems.push(Problem::new(message));
        }
    }
    tables
}

/// Tables that no route names.
fn unused(
    upstreams: &[UpstreamConfig],
    credentials: &[CredentialConfig],
    routes: &[RouteConfig],
    tokens: &[TokenConfig],
) -> Vec<String> {
    let upstreams = upstreams
        .iter()
        .enumerate()
        .filter_map(|(index, upstream)| {
            let is_used = routes.iter().any(|route| route.upstream == index);
            (!is_used).then(|| format!("no route leads to [upstream.{}]", upstream.name))
        });
    let credentials = credentials
        .iter()
        .enumerate()
        .filter_map(|(index, credential)| {
            let is_used = tokens.iter().any(|token| token.credential == index);
            (!is_used).then(|| format!("no route uses [credential.{}]", credential.name))
        });
    upstreams.chain(credentials).collect()
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
        unix_socket_mode: parsed(table.unix_socket_mode, problems, mode).unwrap_or(0o660),
        guard,
        http2: flag(table.http2, false),
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

fn listen(
    setting: List,
    allow_remote_clients: bool,
    problems: &mut Problems,
) -> Vec<ListenAddress> {
    let setting = setting.unwrap_or_else(|| Setting {
        value: OneOrMany::One("127.0.0.1:8080".to_owned()),
        origin: Origin::File(0..0),
    });
    let mut addresses = Vec::new();
    for text in setting.value.into_vec() {
        match listen_address(&text) {
            Ok(ListenAddress::Tcp(address))
                if !allow_remote_clients && !address.ip().is_loopback() =>
            {
                problems.push(
                    Problem::at(
                        &setting.origin,
                        format!("{address} is not a loopback address"),
                    )
                    .hint(
                        "whoever reaches this port uses your credential; if that is meant, set \
                             allow_remote_clients (BEARERD_ALLOW_REMOTE_CLIENTS=true)",
                    ),
                );
            }
            Ok(address) => addresses.push(address),
            Err(message) => problems.push(Problem::at(&setting.origin, message)),
        }
    }
    if addresses.is_empty() && problems.is_empty() {
        problems.push(Problem::at(&setting.origin, "no address to listen on"));
    }
    addresses
}

fn listen_address(text: &str) -> Result<ListenAddress, String> {
    match text.strip_prefix("unix:") {
        Some(path) if path.starts_with('/') => Ok(ListenAddress::Unix(path.into())),
        Some(_) => Err(format!(
            "{text:?} does not name an absolute path, such as unix:/run/bearerd/proxy.sock"
        )),
        None => address(text).map(ListenAddress::Tcp),
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is not an address and port, such as 127.0.0.1:8080 or [::1]:8080")
    })
}

fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(format!(
            "{text:?} is not a file mode in octal, such as \"0660\""
        )),
    }
}

pub(super) fn admin(table: AdminTable, problems: &mut Problems) -> AdminConfig {
    let default = AdminConfig::default();
    AdminConfig {
        listen: parsed(table.listen, problems, address).unwrap_or(default.listen),
        quit: flag(table.quit, default.quit),
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

fn require_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let parsed = text.split_once(':').and_then(|(name, value)| {
        let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
        let value = HeaderValue::from_str(value.trim()).ok()?;
        Some((name, value))
    });
    parsed.ok_or_else(|| "not a header and its value, such as \"X-Sidecar: 1\"".to_owned())
}
