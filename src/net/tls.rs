//! TLS towards upstreams and authorization servers: rustls with aws-lc-rs, TLS 1.2 and 1.3, certificates always verified.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::uri::Scheme;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem};
use rustls::{ClientConfig, InconsistentKeys, RootCertStore};
use zeroize::Zeroizing;

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
    /// Whether a server may speak HTTP/2 to us: always, never, or as its TLS session decides.
    pub fn may_be_http2(self, scheme: &Scheme) -> bool {
        match self {
            Self::Http1 => false,
            Self::Http2 => true,
            Self::Auto => *scheme == Scheme::HTTPS,
        }
    }

    fn alpn(self) -> Vec<Vec<u8>> {
        match self {
            Self::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Self::Http1 => vec![b"http/1.1".to_vec()],
            Self::Http2 => vec![b"h2".to_vec()],
        }
    }
}

/// How a server proves who it is, how we prove it to the server, and which HTTP is spoken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// PEM; trusted instead of the roots of the web PKI built in.
    pub ca_file: Option<PathBuf>,
    /// Shown to a server that asks for it.
    pub client_identity: Option<ClientIdentity>,
    /// What is sent as SNI and verified instead of the host of the URL.
    pub server_name: Option<ServerName<'static>>,
    pub versions: HttpVersions,
}

impl TlsConfig {
    /// Reads the files, and says whether they can be used.
    ///
    /// # Errors
    /// The first that cannot.
    pub fn check(&self) -> Result<(), TlsError> {
        ClientTls::load(self).map(drop)
    }
}

/// A certificate of ours and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientIdentity {
    /// PEM: our certificate first, then those between it and the CA.
    pub cert_file: PathBuf,
    /// PEM: one private key, unencrypted, as PKCS#8, PKCS#1 or SEC1.
    pub key_file: PathBuf,
}

/// What was made of a [`TlsConfig`]. Clones share sessions that can be resumed.
#[derive(Clone)]
pub(super) struct ClientTls {
    config: Arc<ClientConfig>,
    versions: HttpVersions,
    server_name: Option<ServerName<'static>>,
}

impl ClientTls {
    /// Reads the files as they are now.
    pub(super) fn load(tls: &TlsConfig) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let roots = match &tls.ca_file {
            None => RootCertStore {
                roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
            },
            Some(path) => read_roots(path).map_err(|fault| fault.of(path))?,
        };
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        #[expect(
            clippy::expect_used,
            reason = "the provider of this very crate supports the default versions"
        )]
        let builder = builder
            .expect("aws-lc-rs supports TLS 1.2 and 1.3")
            .with_root_certificates(roots);
        let mut config = match &tls.client_identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let (certificates, key) = identity.read()?;
                builder
                    .with_client_auth_cert(certificates, key)
                    .map_err(|error| identity.refused(&error))?
            }
        };
        config.alpn_protocols = tls.versions.alpn();
        Ok(Self {
            config: Arc::new(config),
            versions: tls.versions,
            server_name: tls.server_name.clone(),
        })
    }

    pub(super) fn connector(&self) -> tokio_rustls::TlsConnector {
        self.config.clone().into()
    }

    pub(super) fn versions(&self) -> HttpVersions {
        self.versions
    }

    /// What a server at `host` must prove to be: a DNS name, or an address, which may stand in brackets.
    pub(super) fn server_name(&self, host: &str) -> io::Result<ServerName<'static>> {
        if let Some(name) = &self.server_name {
            return Ok(name.clone());
        }
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        ServerName::try_from(bare.unwrap_or(host).to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
    }

    /// The same trust, and HTTP/2 is not offered.
    pub(super) fn http1_only(&self) -> Self {
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = HttpVersions::Http1.alpn();
        Self {
            config: Arc::new(config),
            versions: HttpVersions::Http1,
            server_name: self.server_name.clone(),
        }
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFault> {
    let pem = fs::read(path).map_err(|error| TlsFault::Read(error.kind()))?;
    CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, pem::Error>>()
        .map_err(|_| TlsFault::NotPem)
}

fn read_roots(path: &Path) -> Result<RootCertStore, TlsFault> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(read_certificates(path)?);
    if added == 0 {
        return Err(TlsFault::NoCa);
    }
    Ok(roots)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFault> {
    let pem = fs::read(path).map_err(|error| TlsFault::Read(error.kind()))?;
    let pem = Zeroizing::new(pem);
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| match error {
        pem::Error::NoItemsFound if is_encrypted(&pem) => TlsFault::EncryptedKey,
        pem::Error::NoItemsFound => TlsFault::NoKey,
        _ => TlsFault::NotPem,
    })
}

/// A key that needs a password, which nobody is here to type (RFC 7468 §11, RFC 1421 §4.6.1.1).
fn is_encrypted(pem: &[u8]) -> bool {
    [
        &b"BEGIN ENCRYPTED PRIVATE KEY"[..],
        b"Proc-Type: 4,ENCRYPTED",
    ]
    .iter()
    .any(|mark| pem.windows(mark.len()).any(|part| part == *mark))
}

impl ClientIdentity {
    fn read(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let certificates = match read_certificates(&self.cert_file) {
            Ok(none) if none.is_empty() => Err(TlsFault::NoCertificate),
            result => result,
        };
        let certificates = certificates.map_err(|fault| fault.of(&self.cert_file))?;
        let key = read_key(&self.key_file).map_err(|fault| fault.of(&self.key_file))?;
        Ok((certificates, key))
    }

    fn refused(&self, error: &rustls::Error) -> TlsError {
        match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                TlsFault::OtherKey.of(&self.key_file)
            }
            rustls::Error::InvalidCertificate(_) => TlsFault::NotX509.of(&self.cert_file),
            _ => TlsFault::UnknownKey.of(&self.key_file),
        }
    }
}

/// A file for TLS that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError {
    path: PathBuf,
    fault: TlsFault,
}

impl TlsError {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a person can do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self.fault {
            TlsFault::Read(io::ErrorKind::NotFound) => "put the file there before bearerd starts",
            TlsFault::Read(io::ErrorKind::PermissionDenied) => {
                "let the user that runs bearerd read it; in Kubernetes set fsGroup: 65532"
            }
            TlsFault::NoKey => {
                "a private key begins with BEGIN PRIVATE KEY, BEGIN RSA PRIVATE KEY or BEGIN EC PRIVATE KEY"
            }
            TlsFault::EncryptedKey => {
                "store it without a password (openssl pkey -in FILE -out OTHER), readable by bearerd alone"
            }
            TlsFault::OtherKey => {
                "the first certificate of client_cert_file must be the one of this key; those of the CA come after it"
            }
            TlsFault::UnknownKey => "RSA from 2048 bits, P-256, P-384, P-521 and Ed25519 are known",
            _ => return None,
        })
    }
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
    NoCa,
    #[error("holds no certificate")]
    NoCertificate,
    #[error("holds a certificate that is not X.509")]
    NotX509,
    #[error("holds no private key")]
    NoKey,
    #[error("holds a private key that is encrypted")]
    EncryptedKey,
    #[error("holds a private key of an unknown kind")]
    UnknownKey,
    #[error("is not the key of the certificate")]
    OtherKey,
}

impl TlsFault {
    fn of(self, path: &Path) -> TlsError {
        TlsError {
            path: path.to_owned(),
            fault: self,
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};

    use super::*;

    struct Files {
        folder: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Self {
            Self {
                folder: tempfile::tempdir().unwrap(),
            }
        }

        fn write(&self, name: &str, content: &str) -> PathBuf {
            let path = self.folder.path().join(name);
            fs::write(&path, content).unwrap();
            path
        }
    }

    fn certificate(key: &KeyPair) -> String {
        let params = CertificateParams::new(vec!["shop".to_owned()]).unwrap();
        params.self_signed(key).unwrap().pem()
    }

    fn fault(tls: &TlsConfig) -> Option<TlsFault> {
        ClientTls::load(tls).err().map(|error| error.fault)
    }

    #[test]
    fn a_file_that_is_no_ca_is_told() {
        let files = Files::new();
        let trusting = |ca_file: PathBuf| TlsConfig {
            ca_file: Some(ca_file),
            ..TlsConfig::default()
        };
        let hello = files.write("hello", "hello");
        assert_eq!(fault(&trusting(hello)), Some(TlsFault::NoCa));
        let broken = "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n";
        let broken = files.write("broken", broken);
        assert_eq!(fault(&trusting(broken)), Some(TlsFault::NotPem));
        let missing = ClientTls::load(&trusting("/nonexistent".into()));
        let missing = missing.err().unwrap().to_string();
        assert!(missing.starts_with("/nonexistent: cannot be read"));
    }

    #[test]
    fn certificate_and_key_belong_together() {
        let files = Files::new();
        let (one, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let cert = files.write("cert.pem", &certificate(&one));
        let key = files.write("key.pem", &one.serialize_pem());
        let with = |cert_file: &Path, key_file: &Path| {
            fault(&TlsConfig {
                client_identity: Some(ClientIdentity {
                    cert_file: cert_file.to_owned(),
                    key_file: key_file.to_owned(),
                }),
                ..TlsConfig::default()
            })
        };
        assert_eq!(with(&cert, &key), None);
        let of_other = files.write("other.pem", &other.serialize_pem());
        assert_eq!(with(&cert, &of_other), Some(TlsFault::OtherKey));
        assert_eq!(with(&key, &key), Some(TlsFault::NoCertificate));
        assert_eq!(with(&cert, &cert), Some(TlsFault::NoKey));
        let both = files.write("both.pem", &(certificate(&one) + &one.serialize_pem()));
        assert_eq!(with(&both, &both), None, "one file may hold both");
        let missing = with(&cert, Path::new("/nonexistent"));
        assert_eq!(missing, Some(TlsFault::Read(io::ErrorKind::NotFound)));
        let pem = |label: &str, content: &str| {
            let text = format!("-----BEGIN {label}-----\n{content}\n-----END {label}-----\n");
            files.write("odd.pem", &text)
        };
        let encrypted = pem("ENCRYPTED PRIVATE KEY", "AAAA");
        assert_eq!(with(&cert, &encrypted), Some(TlsFault::EncryptedKey));
        let odd = pem("PRIVATE KEY", "AAAA");
        assert_eq!(with(&cert, &odd), Some(TlsFault::UnknownKey));
        let odd = pem("CERTIFICATE", "AAAA");
        assert_eq!(with(&odd, &key), Some(TlsFault::NotX509));
    }

    /// PKCS#8 is what tools write today; inside of it is what older ones wrote.
    #[test]
    fn keys_may_be_pkcs8_pkcs1_and_sec1() {
        let files = Files::new();
        for (algorithm, label) in [
            (&PKCS_RSA_SHA256, "RSA PRIVATE KEY"),
            (&PKCS_ECDSA_P256_SHA256, "EC PRIVATE KEY"),
        ] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let pkcs8 = key.serialize_der();
            // The last field, an OCTET STRING; each begins with a SEQUENCE and a version.
            let inside = (8..pkcs8.len())
                .find(|&at| {
                    let starts =
                        |rest: &[u8]| matches!(rest, [0x30, 0x82, _, _, 2, ..] | [0x30, _, 2, ..]);
                    starts(&pkcs8[at..])
                })
                .unwrap();
            let older = format!(
                "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
                STANDARD.encode(&pkcs8[inside..])
            );
            let cert_file = files.write("cert.pem", &certificate(&key));
            for pem in [key.serialize_pem(), older] {
                let identity = ClientIdentity {
                    cert_file: cert_file.clone(),
                    key_file: files.write("key.pem", &pem),
                };
                let tls = TlsConfig {
                    client_identity: Some(identity),
                    ..TlsConfig::default()
                };
                assert_eq!(fault(&tls), None, "{label}");
            }
        }
    }

    #[test]
    fn a_server_is_verified_by_the_host_unless_a_name_is_given() {
        let name = |server_name: Option<&'static str>, host: &str| {
            let tls = ClientTls::load(&TlsConfig {
                server_name: server_name.map(|name| ServerName::try_from(name).unwrap()),
                ..TlsConfig::default()
            });
            let name = tls.unwrap().server_name(host);
            name.map(|name| name.to_str().into_owned()).ok()
        };
        assert_eq!(name(None, "api.example").unwrap(), "api.example");
        assert_eq!(name(None, "[::1]").unwrap(), "::1");
        assert_eq!(name(None, "a b"), None);
        assert_eq!(name(Some("x.example"), "10.0.0.1").unwrap(), "x.example");
    }
}
