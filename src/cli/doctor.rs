//! The way to a server, step by step, and what to do about the step that fails.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http::Uri;
use rustls::{AlertDescription, CertificateError, Error as TlsFailure};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout};

use super::Exit;
use super::certificate::last_day;
use crate::net::body::Chain;
use crate::net::client::default_port;
use crate::net::connect::{ConnectConfig, ConnectError, Connector};
use crate::net::outbound_proxy::ProxyFault;

/// Addresses that are tried one by one after no connection came about.
const MAX_ADDRESSES: usize = 8;

/// A server that is looked at.
pub(super) struct Patient<'a> {
    /// What the lines begin with, such as `upstream payments`.
    pub(super) name: String,
    /// The table that says how it is reached, such as `upstream.payments`.
    pub(super) table: String,
    pub(super) url: &'a Uri,
    pub(super) connect: &'a ConnectConfig,
}

impl Patient<'_> {
    /// Looks the name up, connects, and sends nothing. Says what was found.
    pub(super) async fn examine(&self, connector: Connector) -> Exit {
        let (name, url) = (&self.name, self.url);
        let addresses = match self.look_up().await {
            Ok(addresses) => addresses,
            Err(exit) => return exit,
        };
        let started = Instant::now();
        match connector.connect(url).await {
            Ok(stream) => {
                let stream = stream.inner();
                let mut found = Vec::new();
                found.extend(stream.peer().map(|peer| peer.to_string()));
                match stream.tls() {
                    Some(tls) => {
                        let version = tls.protocol_version();
                        let version = version.unwrap_or(rustls::ProtocolVersion::TLSv1_3);
                        found.push(format!("{version:?}"));
                        found.push(match tls.alpn_protocol() {
                            Some(b"h2") => "HTTP/2".to_owned(),
                            _ => "HTTP/1.1".to_owned(),
                        });
                        let chain = tls.peer_certificates().unwrap_or_default();
                        found.push(format!("a chain of {} certificates", chain.len()));
                        let last_day = chain.first().and_then(|own| last_day(own));
                        found.extend(last_day.map(|day| format!("good until {day}")));
                    }
                    None => found.push("without TLS".to_owned()),
                }
                found.push(format!("{} ms", started.elapsed().as_millis()));
                say!("ok    {name}: connected to {url} ({})", found.join(", "));
                Exit::Clean
            }
            Err(error) => {
                say!("fail  {name}: {}", Chain(&error));
                if matches!(error, ConnectError::Tcp(_) | ConnectError::Timeout) {
                    self.try_each(&addresses).await;
                }
                say!("      hint: {}", self.hint(&error));
                Exit::Unavailable
            }
        }
    }

    /// The addresses of what TCP goes to: the server, or the proxy before it.
    async fn look_up(&self) -> Result<Vec<SocketAddr>, Exit> {
        let name = &self.name;
        let host = self.url.host().unwrap_or_default();
        let proxy = self.connect.proxy.as_ref();
        let proxy = proxy.filter(|proxy| proxy.is_for(host));
        let next_hop = proxy.map_or(self.url, |proxy| &proxy.url);
        let what = if proxy.is_some() {
            "outbound proxy "
        } else {
            ""
        };
        let host = next_hop.host().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let port = next_hop.port_u16();
        let port = port.unwrap_or_else(|| next_hop.scheme().map_or(80, default_port));
        let started = Instant::now();
        let looked_up = timeout(self.connect.timeout, lookup_host((bare, port))).await;
        let took = started.elapsed().as_millis();
        let addresses: Vec<SocketAddr> = match looked_up {
            Ok(Ok(addresses)) => addresses.take(MAX_ADDRESSES).collect(),
            Ok(Err(error)) => {
                say!("fail  {name}: DNS: {what}{host}: {error}");
                say!("      hint: {}", self.dns_hint(proxy.is_some()));
                return Err(Exit::Unavailable);
            }
            Err(_) => {
                say!("fail  {name}: DNS: {what}{host}: no answer in {took} ms");
                say!(
                    "      hint: is the name server of /etc/resolv.conf up, and reachable from here?"
                );
                return Err(Exit::Unavailable);
            }
        };
        // An address needs no look-up.
        if bare.parse::<std::net::IpAddr>().is_err() {
            let found: Vec<String> = addresses.iter().map(|a| a.ip().to_string()).collect();
            say!(
                "ok    {name}: DNS: {what}{host} is {} ({took} ms)",
                found.join(", ")
            );
        }
        Ok(addresses)
    }

    fn dns_hint(&self, is_proxy: bool) -> String {
        let table = &self.table;
        match (is_proxy, table.starts_with("upstream")) {
            (true, _) => format!("the host name of [{table}] proxy_url has no address here"),
            (false, true) => format!("the host name of [{table}] url has no address here"),
            (false, false) => "the host name of token_url has no address here".to_owned(),
        }
    }

    /// Which of several addresses do not answer, and how.
    async fn try_each(&self, addresses: &[SocketAddr]) {
        let each = self.connect.timeout.min(Duration::from_secs(2));
        for address in addresses {
            let outcome = match timeout(each, TcpStream::connect(address)).await {
                Ok(Ok(_)) => "connects".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer in {} ms", each.as_millis()),
            };
            say!("      TCP to {address}: {outcome}");
        }
    }

    fn hint(&self, error: &ConnectError) -> String {
        let table = &self.table;
        let who = if table.starts_with("upstream") {
            "the API"
        } else {
            "the authorization server"
        };
        match error {
            ConnectError::Dns(_) => self.dns_hint(false),
            ConnectError::Tcp(_)
            | ConnectError::Http(_)
            | ConnectError::Http2(_)
            | ConnectError::Timeout => {
                format!("is {who} up, and reachable from here?")
            }
            ConnectError::Tls(error) => self.tls_hint(error),
            ConnectError::Proxy(ProxyFault::Refused(_)) => format!(
                "the proxy must allow CONNECT to {who}; it is asked without credentials. no_proxy goes around it"
            ),
            ConnectError::Proxy(_) => {
                format!("is [{table}] proxy_url an HTTP proxy, up, and reachable from here?")
            }
            ConnectError::Exhausted(_) => "raise the limit of open files, ulimit -n".to_owned(),
        }
    }

    fn tls_hint(&self, error: &io::Error) -> String {
        let table = &self.table;
        let failure = error.get_ref().and_then(|e| e.downcast_ref::<TlsFailure>());
        let Some(failure) = failure else {
            return "it closed the connection in the handshake: is there TLS at this port, and does it want a \
                    client certificate (client_cert_file)?"
                .to_owned();
        };
        match failure {
            TlsFailure::InvalidCertificate(certificate) => self.certificate_hint(certificate),
            TlsFailure::InvalidMessage(_) => {
                "what answers there does not speak TLS: is it http instead of https, or another port?"
                    .to_owned()
            }
            TlsFailure::AlertReceived(
                AlertDescription::CertificateRequired
                | AlertDescription::HandshakeFailure
                | AlertDescription::BadCertificate
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied,
            ) => format!(
                "it wants a client certificate, or not this one: set client_cert_file and client_key_file of [{table}]"
            ),
            TlsFailure::AlertReceived(AlertDescription::UnrecognisedName) => format!(
                "it does not know the host by this name: set server_name of [{table}], or another host in the URL"
            ),
            TlsFailure::AlertReceived(
                AlertDescription::NoApplicationProtocol | AlertDescription::ProtocolVersion,
            )
            | TlsFailure::PeerIncompatible(_) => {
                "there is nothing in common with it: bearerd speaks TLS 1.2 and 1.3; does http = \"2\" ask for too much?"
                    .to_owned()
            }
            _ => format!(
                "a private CA needs ca_file of [{table}]; some servers want client_cert_file"
            ),
        }
    }

    fn certificate_hint(&self, error: &CertificateError) -> String {
        let table = &self.table;
        match error {
            CertificateError::UnknownIssuer => format!(
                "nobody who is trusted has signed its certificate: set ca_file of [{table}] to the CA's (PEM), or make \
                 the server send the certificates between its own and the CA's"
            ),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate is over: renew it there; or the clock of this machine is wrong"
                    .to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet: is the clock of this machine right?".to_owned()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                if table.starts_with("upstream") {
                    format!(
                        "its certificate is for another name: use that one in url, or set server_name of [{table}]"
                    )
                } else {
                    "its certificate is for another name: use that one in token_url".to_owned()
                }
            }
            _ => "its certificate cannot be used; the message says why".to_owned(),
        }
    }
}
