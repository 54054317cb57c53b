//! An HTTP proxy on the way out: who goes through it, and tunnels through it by CONNECT (RFC 9110 §9.3.6).

use std::net::IpAddr;
use std::pin::pin;
use std::str::FromStr;

use bytes::Bytes;
use http::header::HOST;
use http::uri::Authority;
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::connect::ConnectError;

/// Bytes of the head of a proxy's answer to CONNECT; hyper takes no less.
const MAX_ANSWER_HEAD: usize = 8 * 1024;

/// A proxy, and who is not to go through it. Requests to `https` servers go through a tunnel, and the proxy sees of them
/// where they go and no more; requests to `http` servers it sees whole, their credentials too. Proxies named by the
/// environment are never used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundProxy {
    /// `http`, host and port.
    pub url: Uri,
    /// Servers that are connected to directly.
    pub no_proxy: Vec<NoProxy>,
}

/// A rule about the host of a URL. Names are compared without case and without a dot at their end, and they are not looked
/// up: a rule about addresses is about URLs that hold an address.
///
/// | text | hosts |
/// |---|---|
/// | `*` | all |
/// | `example.com` | this one, and all names below it |
/// | `.example.com` | all names below it, and not itself |
/// | `10.0.0.1`, `::1`, `[::1]` | this address |
/// | `10.0.0.0/8`, `fd00::/8` | addresses of this network |
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoProxy {
    All,
    /// In lower case.
    Domain(String),
    /// In lower case, with the dot before it.
    Below(String),
    Network {
        address: IpAddr,
        /// Leading bits that must be the same.
        bits: u32,
    },
}

impl OutboundProxy {
    /// Whether a server called `host`, as it stands in its URL, is connected to through this proxy.
    pub fn is_for(&self, host: &str) -> bool {
        !self.no_proxy.iter().any(|rule| rule.covers(host))
    }

    /// Makes of a connection to the proxy one to `target`. To be called under a deadline.
    pub(super) async fn tunnel(
        proxy: TcpStream,
        target: &Authority,
    ) -> Result<TcpStream, ProxyFault> {
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = Uri::from(target.clone());
        let host = HeaderValue::from_str(target.as_str()).map_err(|_| ProxyFault::Target)?;
        request.headers_mut().insert(HOST, host);
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_ANSWER_HEAD)
            .handshake(TokioIo::new(proxy))
            .await
            .map_err(ProxyFault::Answer)?;
        let mut connection = pin!(connection.without_shutdown());
        let mut answer = pin!(sender.send_request(request));
        let mut ended = None;
        let answer = tokio::select! {
            answer = &mut answer => answer,
            result = &mut connection => {
                ended = Some(result);
                answer.await
            }
        };
        let status = answer.map_err(ProxyFault::Answer)?.status();
        if !status.is_success() {
            // Its body is the proxy's own, and is not read.
            return Err(ProxyFault::Refused(status));
        }
        let parts = match ended {
            Some(result) => result,
            None => connection.await,
        };
        let parts = parts.map_err(ProxyFault::Answer)?;
        if !parts.read_buf.is_empty() {
            // A TLS server waits for the client to begin.
            return Err(ProxyFault::Chatter);
        }
        Ok(parts.io.into_inner())
    }
}

/// Why there is no way through a proxy.
#[derive(Debug, thiserror::Error)]
pub enum ProxyFault {
    /// There is no connection to the proxy itself.
    #[error("cannot be reached")]
    Unreachable(#[source] Box<ConnectError>),
    /// It answered, and not with 2xx: 407 when it wants credentials, which we have none of; often 403 for a port or a host
    /// that is not allowed, and 502 or 504 when it did not reach the server itself.
    #[error("refused the tunnel with status {}", .0.as_u16())]
    Refused(StatusCode),
    /// Its answer is not HTTP, too long, or did not come whole.
    #[error("did not answer properly")]
    Answer(#[source] hyper::Error),
    /// Bytes came through the tunnel before we had sent any.
    #[error("sent more than its answer")]
    Chatter,
    /// The target cannot stand in a request.
    #[error("cannot be asked for this server")]
    Target,
}

impl NoProxy {
    fn covers(&self, host: &str) -> bool {
        match self {
            Self::All => true,
            Self::Domain(domain) => {
                let name = canonical(host);
                let rest = name.strip_suffix(domain.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            Self::Below(domain) => {
                let rest = canonical(host);
                let rest = rest.strip_suffix(domain.as_str());
                rest.is_some_and(|rest| !rest.is_empty())
            }
            Self::Network { address, bits } => {
                address_of(host).is_some_and(|host| is_in(host, *address, *bits))
            }
        }
    }
}

impl FromStr for NoProxy {
    type Err = NoProxyError;

    fn from_str(text: &str) -> Result<Self, NoProxyError> {
        if text == "*" {
            return Ok(Self::All);
        }
        if let Some(address) = address_of(text) {
            let bits = width(address);
            return Ok(Self::Network { address, bits });
        }
        if let Some((address, bits)) = text.split_once('/') {
            let address = address_of(address).ok_or(NoProxyError)?;
            let is_number = bits.bytes().all(|byte| byte.is_ascii_digit());
            let bits = bits.parse().ok().filter(|_| is_number);
            let bits = bits.filter(|bits| *bits <= width(address));
            let bits = bits.ok_or(NoProxyError)?;
            return Ok(Self::Network { address, bits });
        }
        let name = canonical(text);
        let is_name = |name: &str| {
            let is_label = |label: &str| {
                let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
                !label.is_empty() && label.bytes().all(is_part)
            };
            // What ends in a number is an address that was mistyped (RFC 3986 §3.2.2).
            let last = name.rsplit('.').next().unwrap_or_default();
            name.split('.').all(is_label) && !last.bytes().all(|byte| byte.is_ascii_digit())
        };
        match name.strip_prefix('.') {
            Some(below) if is_name(below) => Ok(Self::Below(name)),
            None if is_name(&name) => Ok(Self::Domain(name)),
            _ => Err(NoProxyError),
        }
    }
}

/// A text that is no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not a host name, a domain such as .example.com, an IP address, a network such as 10.0.0.0/8, or *"
)]
pub struct NoProxyError;

fn canonical(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

fn address_of(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    bare.unwrap_or(host).parse().ok()
}

fn width(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn is_in(host: IpAddr, network: IpAddr, bits: u32) -> bool {
    let different = match (host, network) {
        (IpAddr::V4(host), IpAddr::V4(network)) => {
            (host.to_bits() ^ network.to_bits()).leading_zeros()
        }
        (IpAddr::V6(host), IpAddr::V6(network)) => {
            (host.to_bits() ^ network.to_bits()).leading_zeros()
        }
        _ => return false,
    };
    different >= bits
}

/// Host and port of an `https` URI, in the form that CONNECT takes; `None` without a host.
pub(super) fn target(uri: &Uri) -> Option<Authority> {
    let authority = uri.authority()?;
    let port = authority.port_u16().unwrap_or(443);
    format!("{}:{port}", authority.host()).parse().ok()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    fn covers(rule: &str, host: &str) -> bool {
        rule.parse::<NoProxy>().unwrap().covers(host)
    }

    #[test]
    fn rules_are_about_names_and_what_is_below_them_or_about_addresses() {
        for (rule, covered, not_covered) in [
            ("*", &["api.example", "10.0.0.1", "[::1]"][..], &[][..]),
            (
                "Example.com",
                &[
                    "example.com",
                    "EXAMPLE.COM.",
                    "api.example.com",
                    "a.b.example.com",
                ],
                &["notexample.com", "example.com.evil", "com", "10.0.0.1"],
            ),
            (
                ".example.com.",
                &["api.example.com", "a.b.example.com"],
                &["example.com", "notexample.com"],
            ),
            ("localhost", &["localhost"], &["127.0.0.1"]),
            (
                "10.0.0.1",
                &["10.0.0.1"],
                &["10.0.0.10", "110.0.0.1", "x.10.0.0.1"],
            ),
            ("[::1]", &["[::1]", "[0:0::1]"], &["[::2]", "127.0.0.1"]),
            (
                "10.1.0.0/15",
                &["10.0.0.1", "10.1.255.255"],
                &["10.2.0.1", "[::ffff:10.0.0.1]", "ten.example"],
            ),
            ("0.0.0.0/0", &["192.0.2.1"], &["[::1]", "api.example"]),
            ("fd00::/8", &["[fd12::1]"], &["[fe80::1]"]),
        ] {
            for host in covered {
                assert!(covers(rule, host), "{rule} {host}");
            }
            for host in not_covered {
                assert!(!covers(rule, host), "{rule} {host}");
            }
        }
        for text in [
            "",
            ".",
            "..",
            "*.example.com",
            "http://x.example",
            "x.example:80",
            "a,b",
            "a b",
            "10.0.0",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/",
            "x.example/8",
            "::1/129",
            "a..b",
            "10.0.0.256",
        ] {
            assert_eq!(text.parse::<NoProxy>(), Err(NoProxyError), "{text}");
        }
    }

    #[test]
    fn a_tunnel_is_asked_for_by_host_and_port() {
        let target = |uri: &str| target(&uri.parse().unwrap()).unwrap().to_string();
        assert_eq!(target("https://api.example/v1"), "api.example:443");
        assert_eq!(target("https://[::1]:8443/"), "[::1]:8443");
    }

    /// What a proxy that answers so comes to.
    async fn tunneled(answer: &'static [u8]) -> (Result<(), ProxyFault>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut request).await.unwrap();
            }
            // The other side may be gone before it has read all.
            let _ = stream.write_all(answer).await;
            String::from_utf8(request).unwrap()
        });
        let stream = TcpStream::connect(address).await.unwrap();
        let target = Authority::from_static("api.example:443");
        let result = OutboundProxy::tunnel(stream, &target).await;
        (result.map(drop), proxy.await.unwrap())
    }

    #[tokio::test]
    async fn any_2xx_opens_the_tunnel_and_nothing_else_does() {
        let (result, request) = tunneled(b"HTTP/1.1 200 Connection established\r\n\r\n").await;
        result.unwrap();
        assert_eq!(
            request,
            "CONNECT api.example:443 HTTP/1.1\r\nhost: api.example:443\r\n\r\n"
        );
        for answer in [
            &b"HTTP/1.0 200 OK\r\nvia: x\r\n\r\n"[..],
            b"HTTP/1.1 204 No Content\r\n\r\n",
            // What a 2xx says of a body is nothing (RFC 9110 §9.3.6).
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        ] {
            let (result, _) = tunneled(answer).await;
            assert!(result.is_ok(), "{result:?} {}", answer.escape_ascii());
        }
        let refused = |status: u16| move |fault: &ProxyFault| matches!(fault, ProxyFault::Refused(s) if s.as_u16() == status);
        let (result, _) = tunneled(b"HTTP/1.1 407 x\r\ncontent-length: 4\r\n\r\nLEAK").await;
        let fault = result.unwrap_err();
        assert!(
            refused(407)(&fault) && !fault.to_string().contains("LEAK"),
            "{fault}"
        );
        let (result, _) = tunneled(b"HTTP/1.1 302 Found\r\nlocation: https://x\r\n\r\n").await;
        assert!(result.is_err_and(|fault| refused(302)(&fault)));
        let (result, _) = tunneled(b"HTTP/1.1 200 OK\r\n\r\nhello").await;
        assert!(matches!(result, Err(ProxyFault::Chatter)), "{result:?}");
        for answer in [
            &b""[..],
            b"HTTP/1.1 20",
            b"SSH-2.0-OpenSSH\r\n",
            b"HTTP/2 200\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nbroken\r\n\r\n",
            &[b'x'; 100_000],
        ] {
            let (result, _) = tunneled(answer).await;
            assert!(matches!(result, Err(ProxyFault::Answer(_))), "{result:?}");
        }
    }

    /// A head that never ends is given up, and not kept whole until then.
    #[tokio::test]
    async fn the_head_of_the_answer_is_bounded() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await;
            while stream.write_all(&[b'x'; 1024]).await.is_ok() {}
        });
        let stream = TcpStream::connect(address).await.unwrap();
        let target = Authority::from_static("api.example:443");
        let result = OutboundProxy::tunnel(stream, &target).await;
        assert!(matches!(result, Err(ProxyFault::Answer(_))), "{result:?}");
        proxy.await.unwrap();
    }
}
