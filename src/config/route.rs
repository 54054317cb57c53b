//! `[[route]]`.

use http::Method;
use http::uri::Authority;

use super::TokenConfig;
use super::credential::scope;
use super::error::{Problem, closest};
use super::setting::{Problems, duration, flag, parsed};
use super::tables::{List, RouteTable, Text};
use crate::net::tls::HttpVersions;
use crate::oauth::CredentialConfig;
use crate::proxy::route::RouteConfig;
use crate::proxy::upstream::UpstreamConfig;

/// What routes can name.
struct Names<'a> {
    upstreams: &'a [UpstreamConfig],
    credentials: &'a [CredentialConfig],
}

/// The routes, and the tokens that they name. Without any table there is one route for everything.
pub(super) fn routes(
    tables: Vec<RouteTable>,
    upstreams: &[UpstreamConfig],
    credentials: &[CredentialConfig],
    problems: &mut Problems,
) -> (Vec<RouteConfig>, Vec<TokenConfig>) {
    let names = Names {
        upstreams,
        credentials,
    };
    let mut tokens = Vec::new();
    if tables.is_empty() {
        if upstreams.len() > 1 || credentials.len() > 1 {
            let problem = Problem::new("several upstreams or credentials, and no route");
            problems.push(problem.hint("write [[route]] tables that say which is for what"));
        }
        let mut route = RouteConfig::everything(authority(&upstreams[0]));
        route.tokens = names.token(&mut tokens, 0, None);
        return (vec![route], tokens);
    }
    let mut routes: Vec<RouteConfig> = Vec::new();
    for (index, table) in tables.into_iter().enumerate() {
        let route = route(index, table, &names, &mut tokens, problems);
        if let Some(twin) = routes.iter().find(|other| are_twins(other, &route)) {
            problems.push(Problem::new(format!(
                "the routes {:?} and {:?} cover the same path and methods",
                twin.name, route.name
            )));
        }
        routes.push(route);
    }
    (routes, tokens)
}

impl Names<'_> {
    /// Which token this is, from 0; a new one if no route has named it before.
    fn token(
        &self,
        tokens: &mut Vec<TokenConfig>,
        credential: usize,
        narrowed: Option<String>,
    ) -> usize {
        let config = &self.credentials[credential];
        let own = &config.endpoint.scope;
        let scope = narrowed.or_else(|| own.clone());
        let is_known = |token: &TokenConfig| token.credential == credential && token.scope == scope;
        if let Some(known) = tokens.iter().position(is_known) {
            return known;
        }
        let label = match &scope {
            Some(narrowed) if scope != *own => format!("{}:{narrowed}", config.name),
            _ => config.name.clone(),
        };
        tokens.push(TokenConfig {
            renew_unused: !tokens.iter().any(|token| token.credential == credential),
            credential,
            scope,
            label,
        });
        tokens.len() - 1
    }
}

fn authority(upstream: &UpstreamConfig) -> Authority {
    let authority = upstream.url.authority().cloned();
    authority.unwrap_or_else(|| Authority::from_static("invalid."))
}

fn route(
    index: usize,
    table: RouteTable,
    names: &Names<'_>,
    tokens: &mut Vec<TokenConfig>,
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
    let upstreams: Vec<&str> = names.upstreams.iter().map(|u| u.name.as_str()).collect();
    let credentials: Vec<&str> = names.credentials.iter().map(|c| c.name.as_str()).collect();
    let upstream = one_of(table.upstream, "upstream", &upstreams, &name, problems);
    let credential = one_of(
        table.credential,
        "credential",
        &credentials,
        &name,
        problems,
    );
    let narrowed = narrowed(table.scope, &names.credentials[credential], problems);
    RouteConfig {
        websocket: websocket(table.upgrade, &names.upstreams[upstream], problems),
        authority: authority(&names.upstreams[upstream]),
        upstream,
        tokens: names.token(tokens, credential, narrowed),
        name,
        path: parsed(table.path, problems, path).unwrap_or_default(),
        methods: methods(table.methods, problems),
        strip_prefix: flag(table.strip_prefix, false),
        response_timeout: table
            .response_timeout
            .map(|timeout| duration(Some(timeout), "0s", problems)),
    }
}

/// Which of the names is meant, from 0: the only one if none is said.
fn one_of(
    setting: Text,
    kind: &str,
    names: &[&str],
    route: &str,
    problems: &mut Problems,
) -> usize {
    let Some(setting) = setting else {
        if names.len() > 1 {
            let problem = Problem::new(format!("missing `{kind}` in the route {route:?}"));
            problems.push(problem.hint(format!("there are {}", names.join(", "))));
        }
        return 0;
    };
    if let Some(index) = names.iter().position(|name| *name == setting.value) {
        return index;
    }
    let problem = Problem::at(
        &setting.origin,
        format!("there is no [{kind}.{}]", setting.value),
    );
    problems.push(match (closest(&setting.value, names), names) {
        (Some(close), _) => problem.hint(format!("did you mean {close:?}?")),
        (None, [only]) => problem.hint(format!("there is [{kind}.{only}]")),
        (None, _) => problem.hint(format!("there are {}", names.join(", "))),
    });
    0
}

/// A part of the credential's scope.
fn narrowed(
    setting: Text,
    credential: &CredentialConfig,
    problems: &mut Problems,
) -> Option<String> {
    let origin = setting.as_ref().map(|setting| setting.origin.clone())?;
    let narrowed = parsed(setting, problems, scope)?;
    if let Some(whole) = &credential.endpoint.scope
        && let Some(wider) = narrowed
            .split(' ')
            .find(|token| !whole.split(' ').any(|granted| granted == *token))
    {
        let problem = Problem::at(
            &origin,
            format!("the scope of a route is a part of its credential's, and {wider:?} is none"),
        );
        problems.push(problem.hint(format!(
            "[credential.{}] has scope = {whole:?}; add it there, or leave scope out there",
            credential.name
        )));
    }
    Some(narrowed)
}

fn websocket(setting: List, upstream: &UpstreamConfig, problems: &mut Problems) -> bool {
    let Some(origin) = setting.as_ref().map(|setting| setting.origin.clone()) else {
        return false;
    };
    let is_allowed = allows_websocket(setting, problems);
    if is_allowed && upstream.connect.tls.versions == HttpVersions::Http2 {
        problems.push(
            Problem::at(
                &origin,
                "an upgrade needs HTTP/1.1, and the upstream has http = \"2\"",
            )
            .hint("set http = \"auto\" there; upgrades then take HTTP/1.1, the rest HTTP/2"),
        );
    }
    is_allowed
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

/// Whether no request could tell the two apart.
fn are_twins(one: &RouteConfig, other: &RouteConfig) -> bool {
    let share_a_method = one
        .methods
        .iter()
        .any(|method| other.methods.contains(method));
    one.path == other.path
        && (share_a_method || (one.methods.is_empty() && other.methods.is_empty()))
}
