//! Which requests go where, and what is granted to them.
//!
//! With more than one route a path decides what a request may do, so it must mean one thing only. A path that a server
//! behind us could read in another way than we do is refused, never normalized: what was decided on is what is sent.

use std::time::Duration;

use http::uri::{Authority, PathAndQuery};
use http::{Method, Uri};

use super::error::ProxyError;

/// A route as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// The name in the configuration.
    pub name: String,
    /// Begins with a slash and does not end with one, but for the root, which is empty: segments are compared whole.
    pub path: String,
    /// Empty for all.
    pub methods: Vec<Method>,
    /// Which of the upstreams, from 0.
    pub upstream: usize,
    /// The authority of that upstream.
    pub authority: Authority,
    /// Which of the tokens, from 0.
    pub tokens: usize,
    /// The upstream does not see `path`.
    pub strip_prefix: bool,
    /// Requests may become WebSockets (RFC 6455).
    pub websocket: bool,
    /// Instead of the upstream's.
    pub response_timeout: Option<Duration>,
}

impl RouteConfig {
    /// The route of a sidecar without routes: everything, and no upgrade.
    pub fn everything(authority: Authority) -> Self {
        Self {
            name: "everything".to_owned(),
            path: String::new(),
            methods: Vec::new(),
            upstream: 0,
            authority,
            tokens: 0,
            strip_prefix: false,
            websocket: false,
            response_timeout: None,
        }
    }

    fn covers(&self, method: &Method, path: &[u8]) -> bool {
        let begins = path.strip_prefix(self.path.as_bytes());
        begins.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
            && (self.methods.is_empty() || self.methods.contains(method))
    }

    /// What is sent upstream for `target`: its text, without the prefix if that is stripped.
    pub fn target(&self, target: &Uri) -> Option<PathAndQuery> {
        let whole = target.path_and_query()?;
        if !self.strip_prefix || self.path.is_empty() {
            return Some(whole.clone());
        }
        let rest = whole.as_str().strip_prefix(&self.path)?;
        if rest.starts_with('/') {
            PathAndQuery::try_from(rest).ok()
        } else {
            PathAndQuery::try_from(format!("/{rest}")).ok()
        }
    }
}

/// All routes.
pub struct Routes(Vec<RouteConfig>);

impl Routes {
    /// The longest path comes first, and of equal ones those that name methods.
    pub fn new(mut routes: Vec<RouteConfig>) -> Self {
        routes.sort_by_key(|route| {
            (
                std::cmp::Reverse(route.path.len()),
                route.methods.is_empty(),
            )
        });
        Self(routes)
    }

    /// The route of a request. One whose Host is `named`, the authority of an upstream, goes to that upstream or nowhere.
    ///
    /// # Errors
    /// 404 when there is none; 400 when there are several, and the path could be read in more than one way.
    pub fn choose(
        &self,
        method: &Method,
        path: &str,
        named: Option<&Authority>,
    ) -> Result<&RouteConfig, ProxyError> {
        let find = |path: &[u8]| {
            self.0.iter().find(|route| {
                named.is_none_or(|named| same_authority(named, &route.authority))
                    && route.covers(method, path)
            })
        };
        let chosen = find(path.as_bytes());
        if self.0.len() > 1 {
            demand_one_meaning(path, chosen, find)?;
        }
        chosen.ok_or(ProxyError::NoRoute)
    }
}

fn same_authority(one: &Authority, other: &Authority) -> bool {
    one.host().eq_ignore_ascii_case(other.host()) && one.port_u16() == other.port_u16()
}

/// Servers decode a path once, and careless ones twice. Neither may lead to another segment, or to another route.
fn demand_one_meaning<'a>(
    path: &str,
    chosen: Option<&'a RouteConfig>,
    find: impl Fn(&[u8]) -> Option<&'a RouteConfig>,
) -> Result<(), ProxyError> {
    let Some(once) = decoded(path.as_bytes()) else {
        return Err(ProxyError::ForbiddenPath);
    };
    let slashes = |path: &[u8]| path.iter().filter(|byte| **byte == b'/').count();
    // What is left after decoding once may hold a % that begins nothing.
    let twice = decoded_leniently(&once);
    for reading in [path.as_bytes(), &once, &twice] {
        if !is_plain(reading)
            || slashes(reading) != slashes(path.as_bytes())
            || find(reading) != chosen
        {
            return Err(ProxyError::ForbiddenPath);
        }
    }
    Ok(())
}

/// Whether no segment is one that servers resolve, merge, cut or take apart.
fn is_plain(path: &[u8]) -> bool {
    let is_plain_byte = |byte: &u8| !byte.is_ascii_control() && !matches!(byte, b'\\' | b';');
    let segments = path.strip_prefix(b"/").unwrap_or(path);
    let mut segments = segments.split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        // An empty segment at the end is a slash at the end.
        let is_empty_within = segment.is_empty() && segments.peek().is_some();
        if is_empty_within || matches!(segment, b"." | b"..") {
            return false;
        }
    }
    path.iter().all(is_plain_byte)
}

/// `None` if a % begins no escape (RFC 3986 §2.1).
fn decoded(path: &[u8]) -> Option<Vec<u8>> {
    let lenient = decoded_leniently(path);
    let percents = path.iter().filter(|byte| **byte == b'%').count();
    (path.len() - lenient.len() == 2 * percents).then_some(lenient)
}

fn decoded_leniently(path: &[u8]) -> Vec<u8> {
    let digit = |at: usize| {
        let byte = path.get(at).copied()?;
        char::from(byte).to_digit(16)
    };
    let mut bytes = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(byte) = path.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push(u8::try_from(high * 16 + low).unwrap_or_default());
                at += 3;
            }
            _ => {
                bytes.push(*byte);
                at += 1;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Code;

    fn api() -> Authority {
        Authority::from_static("api.example")
    }

    fn route(name: &str, path: &str) -> RouteConfig {
        RouteConfig {
            name: name.to_owned(),
            path: path.to_owned(),
            ..RouteConfig::everything(api())
        }
    }

    fn routes() -> Routes {
        Routes::new(vec![
            route("all", ""),
            route("pay", "/pay"),
            RouteConfig {
                methods: vec![Method::POST],
                ..route("charge", "/pay")
            },
            route("admin", "/pay/admin"),
        ])
    }

    fn choose(method: &Method, path: &str) -> Result<String, Code> {
        let routes = routes();
        let chosen = routes.choose(method, path, None);
        chosen
            .map(|route| route.name.clone())
            .map_err(|error| error.code())
    }

    #[test]
    fn the_longest_path_wins_then_the_one_that_names_the_method() {
        for (method, path, name) in [
            (Method::GET, "/", "all"),
            (Method::GET, "/payx", "all"),
            (Method::GET, "/pay", "pay"),
            (Method::GET, "/pay/", "pay"),
            (Method::GET, "/pay/7", "pay"),
            (Method::POST, "/pay/7", "charge"),
            (Method::POST, "/pay/admin", "admin"),
            (Method::GET, "/pay/admin/x", "admin"),
            (Method::GET, "/pay/administrator", "pay"),
            (Method::GET, "/PAY/admin", "all"),
        ] {
            assert_eq!(choose(&method, path), Ok(name.to_owned()), "{path}");
        }
        let only = Routes::new(vec![route("pay", "/pay")]);
        let code = |path| {
            let chosen = only.choose(&Method::GET, path, None);
            chosen.err().map(|error| error.code())
        };
        assert_eq!(code("/pay/.."), None, "one route: nothing to get around");
        assert_eq!(code("/"), Some(Code::NoRoute));
    }

    /// D-26: a hosts-file override or a proxy setting of the application says which upstream it means.
    #[test]
    fn a_request_that_names_an_upstream_goes_there_or_nowhere() {
        let other = RouteConfig {
            authority: Authority::from_static("other.example"),
            ..route("other", "/pay/admin")
        };
        let routes = Routes::new(vec![route("pay", "/pay"), other]);
        let choose = |named: Option<&'static str>| {
            let named = named.map(Authority::from_static);
            let chosen = routes.choose(&Method::GET, "/pay/admin", named.as_ref());
            chosen.map(|route| route.name.clone()).map_err(|e| e.code())
        };
        assert_eq!(choose(None).as_deref(), Ok("other"));
        assert_eq!(choose(Some("other.example")).as_deref(), Ok("other"));
        assert_eq!(choose(Some("API.example")).as_deref(), Ok("pay"));
        assert_eq!(choose(Some("third.example")), Err(Code::NoRoute));
    }

    /// D-25
    #[test]
    fn a_path_that_could_mean_something_else_is_refused() {
        for path in [
            "/pay/../admin",
            "/pay/%2e%2e/admin",
            "/pay/.%2e/",
            "/pay%2f..%2fadmin",
            "/pay%2Fadmin",
            "/pay/\\../admin",
            "/pay%5cadmin",
            "//pay",
            "/pay//admin",
            "/pay/./x",
            "/%70ay",
            "/pay/%61dmin",
            "/pay;x/admin",
            "/pay/..;/admin",
            "/pay%3bx",
            "/pay/..;a=b/admin",
            "/pay%00",
            "/pay/%0d%0a",
            "/pay%7f",
            "/pay/%252e%252e/admin",
            "/pay%252fadmin",
            "/%2570ay",
            "/pay/%",
            "/pay/%2",
            "/pay/%zz",
            "/..",
            "/.",
        ] {
            assert_eq!(
                choose(&Method::GET, path),
                Err(Code::ForbiddenPath),
                "{path}"
            );
        }
        for path in [
            "/pay/a%20b",
            "/pay/%C3%A9",
            "/pay/100%25",
            "/pay/a.b/..c/...",
            "/pay/x/",
            "/x%3Fy=1",
        ] {
            assert!(choose(&Method::GET, path).is_ok(), "{path}");
        }
    }

    #[test]
    fn a_prefix_is_stripped_from_the_text() {
        let stripping = RouteConfig {
            strip_prefix: true,
            ..route("pay", "/pay")
        };
        let target = |route: &RouteConfig, target: &str| {
            let uri = target.parse().unwrap();
            route.target(&uri).map(|path| path.as_str().to_owned())
        };
        for (given, sent) in [
            ("/pay/7%2F?x=/pay", "/7%2F?x=/pay"),
            ("/pay", "/"),
            ("/pay/", "/"),
            ("/pay?x=1", "/?x=1"),
        ] {
            assert_eq!(target(&stripping, given).as_deref(), Some(sent));
            assert_eq!(target(&route("pay", "/pay"), given).as_deref(), Some(given));
        }
    }
}
