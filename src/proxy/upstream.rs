//! One upstream: the address that requests go to and no other, and what is said to it and of it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Uri, Version};

use super::error::ProxyError;
use crate::metrics::{Metrics, UpstreamMetrics};
use crate::net::client::{Origin, default_port};
use crate::net::connect::{ConnectConfig, Connector};
use crate::net::pool::PoolConfig;
use crate::net::tls::TlsError;

/// An upstream as configured.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamConfig {
    /// The name in the configuration.
    pub name: String,
    /// `http` or `https`, an authority without user information, and a base path; no query, no fragment.
    pub url: Uri,
    pub connect: ConnectConfig,
    /// From the last bytes of the request to the response head.
    pub response_timeout: Duration,
    /// Between two pieces of a body, either way.
    pub idle_timeout: Duration,
    pub pool: PoolConfig,
    /// Fields that replace whatever the application sent under their names.
    pub set_headers: Vec<(HeaderName, HeaderValue)>,
    /// Fields that do not reach the upstream.
    pub remove_headers: Vec<HeaderName>,
    /// Whether `Location` and `Content-Location` of the upstream's origin become the sidecar's.
    pub rewrite_location: bool,
}

impl UpstreamConfig {
    /// Every file that is read to connect to it.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.connect.files()
    }
}

/// Where requests go.
pub struct Upstream {
    config: UpstreamConfig,
    origin: Origin,
    /// Without a slash at its end, so that it can be put in front of any path.
    base_path: String,
    metrics: UpstreamMetrics,
}

/// Our pseudonym in `Via` (RFC 9110 §7.6.3).
const PSEUDONYM: &str = "bearerd";

impl Upstream {
    /// The upstream of `config`. A URL without scheme or authority, which the configuration refuses, leads nowhere.
    pub fn new(config: UpstreamConfig, metrics: &Metrics) -> Self {
        let scheme = config.url.scheme().cloned().unwrap_or(Scheme::HTTPS);
        let authority = config.url.authority().cloned();
        let authority = authority.unwrap_or_else(|| Authority::from_static("invalid."));
        Self {
            base_path: config.url.path().trim_end_matches('/').to_owned(),
            metrics: metrics.upstream(authority.as_str()),
            origin: Origin::new(scheme, authority),
            config,
        }
    }

    /// Where its connections lead.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// As configured.
    pub fn config(&self) -> &UpstreamConfig {
        &self.config
    }

    /// Host and port, as they stand in the configuration.
    pub fn authority(&self) -> &Authority {
        self.origin.authority()
    }

    /// What connects to this upstream. Each worker builds a client of its own on a clone.
    ///
    /// # Errors
    /// When a file for TLS cannot be used.
    pub fn connector(
        config: &UpstreamConfig,
        metrics: Option<Arc<Metrics>>,
    ) -> Result<Connector, TlsError> {
        Connector::new(&config.connect, metrics)
    }

    /// What a request for `target` asks the upstream for: the base path, and the target's text as it came.
    ///
    /// # Errors
    /// When base path and target together are no valid path.
    pub fn target(&self, target: PathAndQuery) -> Result<Uri, http::Error> {
        let path = if self.base_path.is_empty() {
            target
        } else {
            PathAndQuery::from_maybe_shared(format!("{}{target}", self.base_path))?
        };
        Ok(path.into())
    }

    /// Applies the configured header rules, and appends `Via` with the `version` that the request came in.
    ///
    /// # Errors
    /// When our own `Via` is there already.
    pub fn prepare(&self, headers: &mut HeaderMap, version: Version) -> Result<(), ProxyError> {
        if headers.get_all(header::VIA).iter().any(has_passed_here) {
            return Err(ProxyError::LoopDetected);
        }
        for name in &self.config.remove_headers {
            headers.remove(name);
        }
        for (name, value) in &self.config.set_headers {
            headers.insert(name, value.clone());
        }
        let via = if version == Version::HTTP_2 {
            "2.0 bearerd"
        } else {
            "1.1 bearerd"
        };
        headers.append(header::VIA, HeaderValue::from_static(via));
        Ok(())
    }

    /// Whether it may speak HTTP/2: always, never, or as its TLS session decides.
    pub fn may_speak_http2(&self) -> bool {
        let versions = self.config.connect.tls.versions;
        versions.may_be_http2(self.origin.scheme())
    }

    /// What is counted of it.
    pub fn metrics(&self) -> &UpstreamMetrics {
        &self.metrics
    }

    /// Makes addresses of the upstream's origin in `Location` and `Content-Location` lead through the sidecar, which
    /// the application called as `host` and below `prefix`. Addresses elsewhere stay as they are; nothing is ever
    /// followed.
    pub fn rewrite_location(
        &self,
        headers: &mut HeaderMap,
        host: Option<&HeaderValue>,
        prefix: &str,
    ) {
        if !self.config.rewrite_location {
            return;
        }
        for name in [header::LOCATION, header::CONTENT_LOCATION] {
            let rewritten = headers
                .get(&name)
                .and_then(|value| self.downstream_location(value, host, prefix));
            if let Some(value) = rewritten {
                headers.insert(name, value);
            }
        }
    }

    fn downstream_location(
        &self,
        value: &HeaderValue,
        host: Option<&HeaderValue>,
        prefix: &str,
    ) -> Option<HeaderValue> {
        let location = value.to_str().ok()?;
        let (origin, rest) = match location.split_once("://") {
            Some((scheme, rest)) => {
                let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                let (authority, rest) = rest.split_at(end);
                if !self.is_own_origin(scheme, authority) {
                    return None;
                }
                (format!("http://{}", host?.to_str().ok()?), rest)
            }
            // An absolute path; `//` would begin an authority.
            None if location.starts_with('/') && !location.starts_with("//") => {
                (String::new(), location)
            }
            None => return None,
        };
        let path = rest.strip_prefix(self.base_path.as_str())?;
        let path = match path.chars().next() {
            Some('/') => path.to_owned(),
            None | Some('?' | '#') => format!("/{path}"),
            // The base path ended in the middle of a segment.
            Some(_) => return None,
        };
        let location = format!("{origin}{prefix}{path}");
        // Without the base path, what was a path could begin an authority.
        if location.starts_with("//") {
            return None;
        }
        HeaderValue::from_str(&location).ok()
    }

    fn is_own_origin(&self, scheme: &str, authority: &str) -> bool {
        let Ok(authority) = Authority::try_from(authority) else {
            return false;
        };
        let (own_scheme, own) = (self.origin.scheme(), self.origin.authority());
        let port = |authority: &Authority| {
            let given = authority.port_u16();
            given.unwrap_or_else(|| default_port(own_scheme))
        };
        scheme.eq_ignore_ascii_case(own_scheme.as_str())
            && authority.host().eq_ignore_ascii_case(own.host())
            && port(&authority) == port(own)
    }
}

fn has_passed_here(via: &HeaderValue) -> bool {
    String::from_utf8_lossy(via.as_bytes())
        .split(',')
        .any(|hop| hop.split_whitespace().nth(1) == Some(PSEUDONYM))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::tls::HttpVersions;

    fn upstream(url: &'static str) -> Upstream {
        let config = UpstreamConfig {
            name: "payments".into(),
            url: Uri::from_static(url),
            connect: ConnectConfig::new(Duration::from_secs(3), HttpVersions::Auto),
            response_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(60),
            pool: PoolConfig {
                idle_timeout: Duration::from_secs(30),
                max_idle: 64,
            },
            set_headers: vec![(
                HeaderName::from_static("x-team"),
                HeaderValue::from_static("shop"),
            )],
            remove_headers: vec![header::COOKIE],
            rewrite_location: true,
        };
        Upstream::new(config, &Metrics::new())
    }

    #[test]
    fn targets_are_joined_by_text() {
        let joined = |url, target: &str| {
            let target = upstream(url).target(target.parse().unwrap());
            target.unwrap().to_string()
        };
        assert_eq!(
            joined("https://api.example", "/a%2Fb?x=%0d&y=a+b?z"),
            "/a%2Fb?x=%0d&y=a+b?z"
        );
        assert_eq!(
            joined("https://api.example/v1/", "/payments/"),
            "/v1/payments/"
        );
        for (url, sent) in [
            ("https://api.example", "//evil.example/x"),
            ("https://api.example/v1", "/v1//evil.example/x"),
        ] {
            assert_eq!(joined(url, "//evil.example/x"), sent);
        }
    }

    ///
    #[test]
    fn via_is_appended_and_ends_loops() {
        let upstream = upstream("https://api.example");
        let mut headers = HeaderMap::new();
        headers.append(
            header::VIA,
            HeaderValue::from_static("1.0 fred, 1.1 not-bearerd (bearerd)"),
        );
        headers.append(header::COOKIE, HeaderValue::from_static("a=1"));
        headers.append("x-team", HeaderValue::from_static("other"));
        upstream.prepare(&mut headers, Version::HTTP_11).unwrap();
        let via: Vec<_> = headers.get_all(header::VIA).iter().collect();
        assert_eq!(via, ["1.0 fred, 1.1 not-bearerd (bearerd)", "1.1 bearerd"]);
        assert!(!headers.contains_key(header::COOKIE));
        assert_eq!(headers["x-team"], "shop");
        assert!(matches!(
            upstream.prepare(&mut headers, Version::HTTP_11),
            Err(ProxyError::LoopDetected)
        ));
    }

    /// D-27, D-28
    #[test]
    fn locations_of_the_upstream_lead_through_the_sidecar() {
        let rewritten = |url, location: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::LOCATION, HeaderValue::from_static(location));
            upstream(url).rewrite_location(
                &mut headers,
                Some(&HeaderValue::from_static("127.0.0.1:8080")),
                "",
            );
            headers[header::LOCATION].to_str().unwrap().to_owned()
        };
        let plain = "https://api.example";
        assert_eq!(
            rewritten(plain, "https://api.example/p/3?a#b"),
            "http://127.0.0.1:8080/p/3?a#b"
        );
        assert_eq!(
            rewritten(plain, "https://API.example:443"),
            "http://127.0.0.1:8080/"
        );
        assert_eq!(rewritten(plain, "/p/3"), "/p/3");
        let based = "https://api.example/v1";
        assert_eq!(
            rewritten(based, "https://api.example/v1/p/3"),
            "http://127.0.0.1:8080/p/3"
        );
        assert_eq!(rewritten(based, "/v1/p/3"), "/p/3");
        assert_eq!(rewritten(based, "/v1"), "/");
        assert_eq!(rewritten(based, "/v1//evil.example/"), "/v1//evil.example/");
        for elsewhere in [
            "https://evil.example/",
            "http://api.example/",
            "https://api.example:8443/",
            "https://api.example.evil/",
            "https://api.example@evil.example/",
            "//api.example/",
            "p/3",
            "mailto:a@b",
        ] {
            assert_eq!(rewritten(plain, elsewhere), elsewhere);
        }
        assert_eq!(
            rewritten(based, "https://api.example/v10/p"),
            "https://api.example/v10/p"
        );
        assert_eq!(
            rewritten(based, "https://api.example/other"),
            "https://api.example/other"
        );
    }
}
