//! Who may use the credential, and whether the request's target is sane. The application has no password for us, so
//! this is the whole defence of an open port against web pages (DNS rebinding, CSRF), neighbours and mistakes.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::Authority;
use http::{Method, Version};

use super::error::{BadRequest, Forbidden, ProxyError};
use crate::net::socket::Peer;

/// What is asked of a request before it gets a credential.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GuardConfig {
    /// Peers need not be on this machine.
    pub allow_remote_clients: bool,
    /// Besides loopback names and the upstreams' authorities: host, or host and port, in lower case.
    pub allowed_hosts: Vec<String>,
    /// Origins of web pages, such as `http://localhost:3000`, in lower case.
    pub allowed_origins: Vec<String>,
    /// A field that every request must carry.
    pub require_header: Option<(HeaderName, HeaderValue)>,
}

/// Checks requests.
pub struct Guard {
    config: GuardConfig,
    upstreams: Vec<Named>,
}

/// The authority of an upstream, and what it consists of.
struct Named {
    authority: Authority,
    name: String,
    port: Option<u16>,
}

/// A valid `Host` or authority without user information, and what it consists of: taking one apart costs more than all
/// that is asked of it.
#[derive(Clone, Copy)]
struct Host<'a> {
    text: &'a str,
    name: &'a str,
    port: Option<u16>,
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

impl Guard {
    /// `upstreams` are the authorities of the configured upstreams: a hosts-file override that points one at us keeps
    /// working.
    pub fn new(config: GuardConfig, upstreams: Vec<Authority>) -> Self {
        let upstreams = upstreams.into_iter().map(|authority| Named {
            name: authority.host().to_owned(),
            port: authority.port_u16(),
            authority,
        });
        Self {
            config,
            upstreams: upstreams.collect(),
        }
    }

    /// Lets the request pass, or says why not. Returns the authority of an upstream, if it is what the request is for.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self, head: &Parts, peer: Peer) -> Result<Option<&Authority>, ProxyError> {
        if !self.config.allow_remote_clients && !peer.is_local() {
            return Err(ProxyError::Forbidden(Forbidden::Peer));
        }
        if matches!(head.method, Method::CONNECT | Method::TRACE) || head.method.as_str() == "TRACK"
        {
            return Err(ProxyError::MethodNotAllowed);
        }
        let host = host(head).ok_or(ProxyError::BadRequest(BadRequest::Host))?;
        self.check_target(head, host)?;
        let named = self.upstream(host);
        if named.is_none() && !self.is_allowed_host(host) {
            return Err(ProxyError::Forbidden(Forbidden::Host));
        }
        self.check_origin(&head.headers, host)?;
        if let Some((name, value)) = &self.config.require_header
            && head.headers.get(name) != Some(value)
        {
            return Err(ProxyError::Forbidden(Forbidden::Header));
        }
        Ok(named)
    }

    fn upstream(&self, host: Host<'_>) -> Option<&Authority> {
        let mut upstreams = self.upstreams.iter();
        upstreams
            .find(|known| known.port == host.port && known.name.eq_ignore_ascii_case(host.name))
            .map(|known| &known.authority)
    }

    /// Origin-form, or absolute-form for the upstream itself (RFC 9112 §3.2): that is what an application sends which
    /// knows us only as its HTTP proxy.
    fn check_target(&self, head: &Parts, host: Host<'_>) -> Result<(), ProxyError> {
        let bad_target = Err(ProxyError::BadRequest(BadRequest::Target));
        if head.version == Version::HTTP_2 {
            // Scheme and authority are fields of their own there; the authority is the Host.
            return if head.uri.path().starts_with('/') {
                Ok(())
            } else {
                bad_target
            };
        }
        match (head.uri.scheme(), head.uri.authority()) {
            (None, None) if head.uri.path().starts_with('/') => Ok(()),
            (Some(scheme), Some(authority)) if scheme.as_str() == "http" => {
                match Host::parse(authority.as_str().as_bytes()) {
                    Some(target) if self.upstream(target).is_some() && target.is(host) => Ok(()),
                    _ => bad_target,
                }
            }
            _ => bad_target,
        }
    }

    fn is_allowed_host(&self, host: Host<'_>) -> bool {
        is_loopback_name(host.name)
            || self.config.allowed_hosts.iter().any(|allowed| {
                allowed.eq_ignore_ascii_case(host.name) || allowed.eq_ignore_ascii_case(host.text)
            })
    }

    /// A browser says where a request comes from; anything else says nothing, and passes.
    fn check_origin(&self, headers: &HeaderMap, host: Host<'_>) -> Result<(), ProxyError> {
        let forbidden = Err(ProxyError::Forbidden(Forbidden::Origin));
        let mut listed = false;
        for origin in headers.get_all(header::ORIGIN) {
            let Ok(origin) = origin.to_str() else {
                return forbidden;
            };
            let is_listed = self
                .config
                .allowed_origins
                .iter()
                .any(|allowed| allowed.eq_ignore_ascii_case(origin));
            let is_own = origin
                .strip_prefix("http://")
                .is_some_and(|authority| authority.eq_ignore_ascii_case(host.text));
            if !is_listed && !is_own {
                return forbidden;
            }
            listed |= is_listed;
        }
        let foreign_fetch = headers
            .get_all(SEC_FETCH_SITE)
            .iter()
            .any(|site| !matches!(site.as_bytes(), b"none" | b"same-origin"));
        if foreign_fetch && !listed {
            return forbidden;
        }
        Ok(())
    }
}

/// The one valid Host (RFC 9110 §7.2). HTTP/1.0 knows none, but without it nothing tells a web page's request. In HTTP/2
/// it is `:authority`, and a Host beside it says the same or is a trap (RFC 9113 §8.3.1).
fn host(head: &Parts) -> Option<Host<'_>> {
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (None, _) => None,
        (Some(host), None) => Some(Host::parse(host.as_bytes())?),
        (Some(_), Some(_)) => return None,
    };
    if head.version < Version::HTTP_2 {
        return host;
    }
    let authority = match head.uri.authority() {
        None => return host,
        Some(authority) => Host::parse(authority.as_str().as_bytes())?,
    };
    host.is_none_or(|host| host.is(authority))
        .then_some(authority)
}

impl<'a> Host<'a> {
    fn parse(value: &'a [u8]) -> Option<Self> {
        // The syntax of RFC 3986 §3.2; what is left of it is taken apart by us.
        Authority::try_from(value).ok()?;
        let is_other = |byte: &u8| matches!(byte, b'@' | b',' | b'/' | b'\\');
        if value.iter().any(is_other) {
            return None;
        }
        let text = str::from_utf8(value).ok()?;
        let (name, port) = match value.iter().rposition(|byte| *byte == b':') {
            // A colon within brackets belongs to an IPv6 address.
            Some(colon) if !text.ends_with(']') => {
                let port = text[colon + 1..].parse().ok().filter(|port| *port > 0)?;
                (&text[..colon], Some(port))
            }
            _ => (text, None),
        };
        (!name.is_empty()).then_some(Self { text, name, port })
    }

    fn is(self, other: Self) -> bool {
        self.name.eq_ignore_ascii_case(other.name) && self.port == other.port
    }
}

fn is_loopback_name(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host == "127.0.0.1" || host == "[::1]"
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::metrics::Code;

    fn check_with(
        config: GuardConfig,
        peer: &str,
        target: &str,
        fields: &[(&str, &str)],
    ) -> Option<Code> {
        let upstream = Authority::from_static("api.payments.example");
        let guard = Guard::new(config, vec![upstream]);
        let mut request = Request::builder().uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        guard
            .check(&head, Peer::Tcp(peer.parse().unwrap()))
            .err()
            .map(|error| error.code())
    }

    fn check(target: &str, fields: &[(&str, &str)]) -> Option<Code> {
        check_with(GuardConfig::default(), "127.0.0.1:5", target, fields)
    }

    /// D-02
    #[test]
    fn only_own_names_are_answered_for() {
        for host in [
            "localhost",
            "LocalHost:8080",
            "127.0.0.1:8080",
            "[::1]:8080",
            "api.payments.example",
        ] {
            assert_eq!(check("/", &[("host", host)]), None, "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.nip.io",
            "localhost.",
            "[::ffff:127.0.0.1]",
            "0.0.0.0",
            "api.payments.example:8443",
        ] {
            assert_eq!(
                check("/", &[("host", host)]),
                Some(Code::ForbiddenHost),
                "{host}"
            );
        }
        let config = GuardConfig {
            allowed_hosts: vec!["sidecar.internal".into()],
            ..GuardConfig::default()
        };
        let allowed = [("host", "Sidecar.internal:8080")];
        assert_eq!(check_with(config, "127.0.0.1:5", "/", &allowed), None);
    }

    /// A-001…A-004
    #[test]
    fn exactly_one_valid_host_is_needed() {
        assert_eq!(check("/", &[]), Some(Code::BadRequest));
        let twice = [("host", "localhost"), ("host", "localhost")];
        assert_eq!(check("/", &twice), Some(Code::BadRequest));
        for host in [
            "",
            "u@localhost",
            "localhost/x",
            "localhost,b",
            "localhost:99999",
            "localhost:0",
            "localhost:",
            "[::1",
        ] {
            assert_eq!(
                check("/", &[("host", host)]),
                Some(Code::BadRequest),
                "{host:?}"
            );
        }
    }

    /// A-110…A-115
    #[test]
    fn targets_name_a_path_or_the_upstream() {
        let upstream = [("host", "api.payments.example")];
        assert_eq!(check("http://api.payments.example/x", &upstream), None);
        assert_eq!(
            check("//evil.example/x", &[("host", "localhost")]),
            None,
            "A-117"
        );
        for target in [
            "http://other.example/x",
            "https://api.payments.example/x",
            "http://u:p@api.payments.example/x",
            "*",
            "api.payments.example:80",
        ] {
            assert_eq!(check(target, &upstream), Some(Code::BadRequest), "{target}");
        }
        let mismatch = check("http://api.payments.example/x", &[("host", "localhost")]);
        assert_eq!(mismatch, Some(Code::BadRequest), "A-111");
    }

    /// D-03, D-05, D-06
    #[test]
    fn web_pages_of_other_origins_are_refused() {
        let with = |name: &'static str, value: &'static str| {
            check("/", &[("host", "localhost:8080"), (name, value)])
        };
        assert_eq!(with("origin", "http://localhost:8080"), None);
        assert_eq!(with("sec-fetch-site", "same-origin"), None);
        assert_eq!(with("sec-fetch-site", "none"), None);
        for origin in [
            "https://evil.example",
            "null",
            "http://localhost:3000",
            "https://localhost:8080",
        ] {
            assert_eq!(
                with("origin", origin),
                Some(Code::ForbiddenOrigin),
                "{origin}"
            );
        }
        for site in ["cross-site", "same-site", "nonsense"] {
            assert_eq!(
                with("sec-fetch-site", site),
                Some(Code::ForbiddenOrigin),
                "{site}"
            );
        }
        let config = GuardConfig {
            allowed_origins: vec!["http://localhost:3000".into()],
            ..GuardConfig::default()
        };
        let listed = [
            ("host", "localhost:8080"),
            ("origin", "http://localhost:3000"),
            ("sec-fetch-site", "same-site"),
        ];
        assert_eq!(check_with(config, "127.0.0.1:5", "/", &listed), None);
    }

    /// D-04, D-08
    #[test]
    fn header_and_peer_are_checked() {
        let config = GuardConfig {
            require_header: Some((
                HeaderName::from_static("x-sidecar"),
                HeaderValue::from_static("1"),
            )),
            ..GuardConfig::default()
        };
        let without = [("host", "localhost")];
        let with = [("host", "localhost"), ("X-Sidecar", "1")];
        let wrong = [("host", "localhost"), ("X-Sidecar", "2")];
        let check_header = |fields: &[_]| check_with(config.clone(), "127.0.0.1:5", "/", fields);
        assert_eq!(check_header(&without), Some(Code::MissingHeader));
        assert_eq!(check_header(&wrong), Some(Code::MissingHeader));
        assert_eq!(check_header(&with), None);

        let remote = |config| check_with(config, "192.0.2.7:5", "/", &without);
        assert_eq!(remote(GuardConfig::default()), Some(Code::ForbiddenPeer));
        let open = GuardConfig {
            allow_remote_clients: true,
            ..GuardConfig::default()
        };
        assert_eq!(remote(open), None);
    }
}
