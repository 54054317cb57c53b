//! `[[route]]`.

use http::Method;

use super::error::{Problem, closest};
use super::setting::{Problems, duration, flag, parsed};
use super::tables::{List, RouteTable, Setting};
use crate::net::tls::HttpVersions;
use crate::oauth::CredentialConfig;
use crate::proxy::route::RouteConfig;
use crate::proxy::upstream::UpstreamConfig;

/// Without any table, one route for everything.
pub(super) fn routes(
    tables: Vec<RouteTable>,
    upstream: &UpstreamConfig,
    credential: &CredentialConfig,
    problems: &mut Problems,
) -> Vec<RouteConfig> {
    if tables.is_empty() {
        return vec![RouteConfig::everything()];
    }
    let mut routes: Vec<RouteConfig> = Vec::new();
    for (index, table) in tables.into_iter().enumerate() {
        must_be(
            table.upstream.as_ref(),
            "upstream",
            &upstream.name,
            problems,
        );
        must_be(
            table.credential.as_ref(),
            "credential",
            &credential.name,
            problems,
        );
        let route = route(index, table, upstream, problems);
        if let Some(twin) = routes.iter().find(|other| are_twins(other, &route)) {
            problems.push(Problem::new(format!(
                "the routes {:?} and {:?} cover the same path and methods",
                twin.name, route.name
            )));
        }
        routes.push(route);
    }
    routes
}

fn route(
    index: usize,
    table: RouteTable,
    upstream: &UpstreamConfig,
    problems: &mut Problems,
) -> RouteConfig {
    let name = match table.name {
        Some(name) => name.value,
        None => format!("route {}", index + 1),
    };
    if table.path.is_none() {
        problems.push(Problem::new(format!(
            "missing `path` in the route {name:?}"
        )));
    }
    let upgrade = table.upgrade;
    let websocket = upgrade.as_ref().map(|setting| setting.origin.clone());
    let websocket = websocket.filter(|_| allows_websocket(upgrade, problems));
    if let Some(origin) = &websocket
        && upstream.connect.tls.versions == HttpVersions::Http2
    {
        problems.push(
            Problem::at(
                origin,
                "an upgrade needs HTTP/1.1, and the upstream has http = \"2\"",
            )
            .hint("set http = \"auto\" there; upgrades then take HTTP/1.1, the rest HTTP/2"),
        );
    }
    RouteConfig {
        name,
        path: parsed(table.path, problems, path).unwrap_or_default(),
        methods: methods(table.methods, problems),
        strip_prefix: flag(table.strip_prefix, false),
        websocket: websocket.is_some(),
        response_timeout: table
            .response_timeout
            .map(|timeout| duration(Some(timeout), "0s", problems)),
    }
}

/// A path that needs no decoding, so that it can be compared with what arrives as it is.
fn path(text: &str) -> Result<String, String> {
    let trimmed = text.strip_suffix('/').unwrap_or(text);
    let is_plain = trimmed.split('/').skip(1).all(|segment| {
        !segment.is_empty()
            && segment != "."
            && segment != ".."
            && segment
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&byte))
    });
    if text.starts_with('/') && is_plain {
        Ok(trimmed.to_owned())
    } else {
        Err(format!(
            "{text:?} is not a path of plain segments, such as \"/payments\" or \"/\""
        ))
    }
}

fn methods(setting: List, problems: &mut Problems) -> Vec<Method> {
    let Some(setting) = setting else {
        return Vec::new();
    };
    let mut methods = Vec::new();
    for word in setting.value.into_vec() {
        match Method::from_bytes(word.as_bytes()) {
            Ok(method) if word.bytes().all(|byte| !byte.is_ascii_lowercase()) => {
                methods.push(method);
            }
            _ => {
                let message = format!("{word:?} is not a method, such as \"GET\"");
                problems.push(Problem::at(&setting.origin, message));
            }
        }
    }
    if methods.is_empty() && problems.is_empty() {
        let problem = Problem::at(&setting.origin, "no method");
        problems.push(problem.hint("leave `methods` out to cover all"));
    }
    methods
}

fn allows_websocket(setting: List, problems: &mut Problems) -> bool {
    let Some(setting) = setting else {
        return false;
    };
    let words = setting.value.into_vec();
    for word in &words {
        if word != "websocket" {
            let message =
                format!("{word:?} is no upgrade that can be allowed; there is \"websocket\"");
            problems.push(Problem::at(&setting.origin, message));
        }
    }
    !words.is_empty()
}

fn must_be(setting: Option<&Setting<String>>, kind: &str, only: &str, problems: &mut Problems) {
    let Some(setting) = setting else { return };
    if setting.value != only {
        let problem = Problem::at(
            &setting.origin,
            format!("there is no [{kind}.{}]", setting.value),
        );
        problems.push(match closest(&setting.value, &[only]) {
            Some(close) => problem.hint(format!("did you mean {close:?}?")),
            None => problem.hint(format!("there is [{kind}.{only}]")),
        });
    }
}

/// Whether no request could tell the two apart.
fn are_twins(one: &RouteConfig, other: &RouteConfig) -> bool {
    let share_a_method = one
        .methods
        .iter()
        .any(|method| other.methods.contains(method));
    one.path == other.path
        && (share_a_method || (one.methods.is_empty() && other.methods.is_empty()))
}
