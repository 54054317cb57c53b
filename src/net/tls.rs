//! TLS towards upstreams and authorization servers: rustls with aws-lc-rs, TLS 1.2 and 1.3, certificates always verified.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, pem};
use rustls::{ClientConfig, RootCertStore};

/// Which application protocols are offered by ALPN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HttpVersions {
    /// HTTP/2 and HTTP/1.1; the server chooses. Without TLS: HTTP/1.1.
    #[default]
    Auto,
    /// HTTP/1.1 alone.
    Http1,
    /// HTTP/2 alone; without TLS with prior knowledge (RFC 9113 §3.3).
    Http2,
}

impl HttpVersions {
    fn alpn(self) -> Vec<Vec<u8>> {
        match self {
            Self::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Self::Http1 => vec![b"http/1.1".to_vec()],
            Self::Http2 => vec![b"h2".to_vec()],
        }
    }
}

/// How a server proves who it is, and which HTTP is spoken with it.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    versions: HttpVersions,
}

impl ClientTls {
    /// Trusts the certificates in `ca_file` (PEM) and no others, or without one the roots of the web PKI built in.
    ///
    /// # Errors
    /// When the file cannot be read, or holds no certificate that could sign another.
    pub fn load(ca_file: Option<&Path>, versions: HttpVersions) -> Result<Self, TlsError> {
        let roots = match ca_file {
            None => RootCertStore {
                roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
            },
            Some(path) => read_roots(path).map_err(|fault| TlsError {
                path: path.to_owned(),
                fault,
            })?,
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        #[expect(
            clippy::expect_used,
            reason = "the provider of this very crate supports the default versions"
        )]
        let mut config = builder
            .expect("aws-lc-rs supports TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = versions.alpn();
        Ok(Self {
            config: Arc::new(config),
            versions,
        })
    }

    pub(super) fn connector(&self) -> tokio_rustls::TlsConnector {
        self.config.clone().into()
    }

    pub(super) fn versions(&self) -> HttpVersions {
        self.versions
    }

    /// The same trust, and HTTP/2 is not offered.
    pub(super) fn http1_only(&self) -> Self {
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = HttpVersions::Http1.alpn();
        Self {
            config: Arc::new(config),
            versions: HttpVersions::Http1,
        }
    }
}

fn read_roots(path: &Path) -> Result<RootCertStore, TlsFault> {
    let pem = fs::read(path).map_err(|error| TlsFault::Read(error.kind()))?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, pem::Error>>()
        .map_err(|_| TlsFault::NotPem)?;
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates);
    if added == 0 {
        return Err(TlsFault::NoCertificate);
    }
    Ok(roots)
}

/// A file for TLS that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError {
    path: PathBuf,
    fault: TlsFault,
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.fault)
    }
}

impl std::error::Error for TlsError {}

/// What is wrong with a file for TLS.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
enum TlsFault {
    #[error("cannot be read ({0})")]
    Read(io::ErrorKind),
    #[error("is not PEM")]
    NotPem,
    #[error("holds no usable CA certificate")]
    NoCertificate,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_ca_is_told() {
        let error = |content: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), content).unwrap();
            let loaded = ClientTls::load(Some(file.path()), HttpVersions::Auto);
            loaded.err().map(|error| error.fault)
        };
        assert_eq!(error("hello"), Some(TlsFault::NoCertificate));
        assert_eq!(
            error("-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n"),
            Some(TlsFault::NotPem)
        );
        let missing = ClientTls::load(Some(Path::new("/nonexistent")), HttpVersions::Auto);
        assert!(
            missing
                .err()
                .unwrap()
                .to_string()
                .starts_with("/nonexistent: cannot be read")
        );
    }
}
