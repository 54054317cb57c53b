//! The settings about connecting, which `[upstream.NAME]` and `[credential.NAME]` share.

use std::path::{Path, PathBuf};

use http::Uri;
use http::uri::Scheme;
use rustls::pki_types::ServerName;

use super::error::Problem;
use super::setting::{Problems, as_uri, checked_url, duration, duration_or_zero, parsed};
use super::tables::{List, Setting, Text};
use crate::net::connect::ConnectConfig;
use crate::net::outbound_proxy::{NoProxy, OutboundProxy};
use crate::net::tls::{ClientIdentity, HttpVersions, TlsConfig};

/// As they are written.
pub(super) struct ConnectSettings {
    pub(super) connect_timeout: Text,
    pub(super) default_timeout: &'static str,
    pub(super) ca_file: Text,
    pub(super) client_cert_file: Text,
    pub(super) client_key_file: Text,
    pub(super) server_name: Text,
    pub(super) proxy_url: Text,
    pub(super) no_proxy: List,
    pub(super) dns_refresh: Text,
    pub(super) default_dns_refresh: &'static str,
    pub(super) versions: HttpVersions,
}

impl ConnectSettings {
    /// For a server at `url`, if that is known. The files are read once, to prove that they can be.
    pub(super) fn checked(self, url: Option<&Uri>, problems: &mut Problems) -> ConnectConfig {
        if url.is_some_and(|url| url.scheme() == Some(&Scheme::HTTP)) {
            for (key, setting) in [
                ("client_cert_file", &self.client_cert_file),
                ("server_name", &self.server_name),
            ] {
                if let Some(setting) = setting {
                    let message = format!("{key} is of no use without TLS");
                    let problem = Problem::at(&setting.origin, message);
                    problems.push(problem.hint("use https, or leave it out"));
                }
            }
        }
        let config = ConnectConfig {
            timeout: duration(self.connect_timeout, self.default_timeout, problems),
            tls: TlsConfig {
                ca_file: ca_file(self.ca_file, problems),
                client_identity: identity(self.client_cert_file, self.client_key_file, problems),
                server_name: parsed(self.server_name, problems, server_name),
                versions: self.versions,
            },
            proxy: proxy(self.proxy_url, self.no_proxy, problems),
            dns_refresh: duration_or_zero(self.dns_refresh, self.default_dns_refresh, problems),
        };
        if self.versions == HttpVersions::Http2
            && url.is_some_and(|url| is_read_by_a_proxy(&config, url))
        {
            // A proxy that reads requests speaks HTTP/1.1 (RFC 9112 §3.2.2); a tunnel carries whatever comes.
            let problem = Problem::new("HTTP/2 without TLS does not go through a proxy");
            problems.push(problem.hint("use an https URL, http = \"1.1\", or no_proxy"));
        }
        config
    }
}

/// Whether requests to `url` pass a proxy that can read them, tokens and secrets too.
pub(super) fn is_read_by_a_proxy(config: &ConnectConfig, url: &Uri) -> bool {
    url.scheme() == Some(&Scheme::HTTP)
        && config
            .proxy
            .as_ref()
            .is_some_and(|proxy| proxy.is_for(url.host().unwrap_or_default()))
}

fn ca_file(setting: Text, problems: &mut Problems) -> Option<PathBuf> {
    let setting = setting?;
    let ca_file = Some(PathBuf::from(&setting.value));
    let tls = TlsConfig {
        ca_file: ca_file.clone(),
        ..TlsConfig::default()
    };
    check_files(&tls, &[&setting], problems);
    ca_file
}

fn identity(cert: Text, key: Text, problems: &mut Problems) -> Option<ClientIdentity> {
    let (cert, key) = match (cert, key) {
        (None, None) => return None,
        (Some(cert), Some(key)) => (cert, key),
        (Some(cert), None) => {
            let problem = Problem::at(&cert.origin, "client_cert_file without client_key_file");
            problems.push(problem.hint("name the file with its private key; it can be the same"));
            return None;
        }
        (None, Some(key)) => {
            let problem = Problem::at(&key.origin, "client_key_file without client_cert_file");
            problems.push(problem.hint("name the file with its certificate; it can be the same"));
            return None;
        }
    };
    if let Some(pem) = [&cert, &key]
        .into_iter()
        .find(|setting| setting.value.contains("-----BEGIN"))
    {
        // Not shown: it may be the key.
        let problem = Problem::at(&pem.origin, "PEM where the path of a file belongs");
        problems.push(problem.hint("write it into a file, and name that"));
        return None;
    }
    let identity = Some(ClientIdentity {
        cert_file: PathBuf::from(&cert.value),
        key_file: PathBuf::from(&key.value),
    });
    let tls = TlsConfig {
        client_identity: identity.clone(),
        ..TlsConfig::default()
    };
    check_files(&tls, &[&cert, &key], problems);
    identity
}

/// Tells what is wrong with a file at the setting that names it.
fn check_files(tls: &TlsConfig, settings: &[&Setting<String>], problems: &mut Problems) {
    let Err(error) = tls.check() else { return };
    let named = |setting: &&&Setting<String>| error.path() == Path::new(&setting.value);
    let setting = settings.iter().find(named).unwrap_or(&settings[0]);
    let problem = Problem::at(&setting.origin, error.to_string());
    problems.push(match error.hint() {
        Some(hint) => problem.hint(hint),
        None => problem,
    });
}

fn server_name(text: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(text.to_owned())
        .map_err(|_| format!("{text:?} is neither a DNS name nor an IP address"))
}

fn proxy(url: Text, no_proxy: List, problems: &mut Problems) -> Option<OutboundProxy> {
    let Some(setting) = url else {
        if let Some(no_proxy) = no_proxy {
            let problem = Problem::at(&no_proxy.origin, "no_proxy without proxy_url");
            problems.push(problem.hint("proxies named by the environment are not used anyway"));
        }
        return None;
    };
    let no_proxy = rules(no_proxy, problems);
    let url = checked_url(&setting, problems)?;
    if url.scheme() != "http" {
        let problem = Problem::at(&setting.origin, "a proxy is spoken to without TLS");
        problems.push(problem.hint(
            "use http://HOST:PORT; requests to https servers go through it in a tunnel, encrypted to the server",
        ));
        return None;
    }
    if url.path() != "/" || url.query().is_some() {
        problems.push(Problem::at(
            &setting.origin,
            "a proxy is a host and a port, without a path",
        ));
        return None;
    }
    let url = as_uri(&setting, problems)?;
    Some(OutboundProxy { url, no_proxy })
}

fn rules(setting: List, problems: &mut Problems) -> Vec<NoProxy> {
    let Some(setting) = setting else {
        return Vec::new();
    };
    let mut rules = Vec::new();
    for text in setting.value.into_vec() {
        match text.parse() {
            Ok(rule) => rules.push(rule),
            Err(error) => {
                // What stands before an @ may be a password.
                let shown = text.rsplit('@').next().unwrap_or_default();
                let problem = Problem::at(&setting.origin, format!("{shown:?} {error}"));
                problems.push(if text.contains(',') {
                    problem.hint("several are a list, such as [\"a.example\", \"10.0.0.0/8\"]")
                } else if text.contains(':') {
                    problem.hint("without scheme and port")
                } else {
                    problem
                });
            }
        }
    }
    rules
}
