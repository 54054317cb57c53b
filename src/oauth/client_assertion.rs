//! Client assertions: JWTs that prove who we are (RFC 7523 §2.2), signed here or found in a file.
//!
//! What is signed here has a header of three members and claims of six, all of them ours; so they are put together here
//! and signed by aws-lc-rs, without a crate for JWTs, most of which is about reading those of others. Nothing that comes
//! from outside is read as a JWT, but for the `exp` of an assertion in a file, and that only for a warning.

use std::fmt;
use std::time::{Duration, SystemTime};

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256,
    RSA_PSS_SHA256, RsaKeyPair,
};
use aws_lc_rs::{hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::token_response::object;
use crate::secret::{Secret, SecretSource};

/// How long an assertion is good. It is made for one request, and clocks differ.
const LIFETIME: Duration = Duration::from_secs(60);

/// A signature algorithm of JWTs, by its registered name (RFC 7518 §3.1, RFC 8037 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigningAlgorithm {
    /// RSA with PKCS#1 v1.5 padding.
    Rs256,
    /// RSA with PSS padding.
    Ps256,
    /// ECDSA on P-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl SigningAlgorithm {
    /// The registered name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Ps256 => "PS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// Where a private key is, and how it signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrivateKey {
    /// PEM: PKCS#8, PKCS#1 or SEC1, not encrypted. Read at each token request.
    pub file: SecretSource,
    /// The `kid` by which the authorization server finds the public key.
    pub key_id: Option<String>,
    /// Without one, what the key is made for: RS256, ES256 or EdDSA.
    pub algorithm: Option<SigningAlgorithm>,
}

impl PrivateKey {
    /// Whether the key in `pem` can sign as configured.
    ///
    /// # Errors
    /// When it cannot. No error holds anything of the key.
    pub fn check(&self, pem: &Secret) -> Result<(), AssertionError> {
        self.signing_key(pem).map(|_| ())
    }

    /// A new assertion, signed with the key in `pem`.
    pub(super) fn assertion(
        &self,
        pem: &Secret,
        client_id: &str,
        audience: &str,
    ) -> Result<Zeroizing<String>, AssertionError> {
        let key = self.signing_key(pem)?;
        let header = Header {
            alg: key.algorithm.as_str(),
            typ: "JWT",
            kid: self.key_id.as_deref(),
        };
        Claims::new(client_id, audience)
            .and_then(|claims| jwt(&header, &claims, |message| key.sign(message)))
            .map_err(|Unspecified| self.error(AssertionFault::Signature))
    }

    fn signing_key(&self, pem: &Secret) -> Result<SigningKey, AssertionError> {
        SigningKey::parse(pem, self.algorithm).map_err(|fault| self.error(fault))
    }

    fn error(&self, fault: AssertionFault) -> AssertionError {
        AssertionError {
            place: format!("private key {}", self.file),
            fault,
        }
    }
}

/// A new assertion of `client_secret_jwt`, with HS256 (RFC 7518 §3.2).
pub(super) fn by_client_secret(
    client_secret: &Secret,
    client_id: &str,
    audience: &str,
) -> Result<Zeroizing<String>, AssertionError> {
    let header = Header {
        alg: "HS256",
        typ: "JWT",
        kid: None,
    };
    let key = hmac::Key::new(hmac::HMAC_SHA256, client_secret.expose().as_bytes());
    Claims::new(client_id, audience)
        .and_then(|claims| jwt(&header, &claims, |message| Ok(hs256(&key, message))))
        .map_err(|Unspecified| AssertionError {
            place: "client secret".to_owned(),
            fault: AssertionFault::Signature,
        })
}

fn hs256(key: &hmac::Key, message: &[u8]) -> Vec<u8> {
    hmac::sign(key, message).as_ref().to_vec()
}

/// An assertion that a platform puts into a file: three parts in base64url, on one line.
///
/// # Errors
/// When it is anything else.
pub fn check_assertion(file: &SecretSource, assertion: &Secret) -> Result<(), AssertionError> {
    let is_part = |part: &str| {
        let is_base64url = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        !part.is_empty() && part.bytes().all(is_base64url)
    };
    let assertion = assertion.expose();
    if assertion.split('.').count() == 3 && assertion.split('.').all(is_part) {
        return Ok(());
    }
    Err(AssertionError {
        place: format!("client assertion {file}"),
        fault: AssertionFault::NotAJwt,
    })
}

/// The `exp` of an assertion, as it stands there; nobody has verified it.
pub(super) fn expiry(assertion: &Secret) -> Option<SystemTime> {
    #[derive(Deserialize)]
    struct Expiry {
        exp: f64,
    }
    let claims = assertion.expose().split('.').nth(1)?;
    let claims = Zeroizing::new(URL_SAFE_NO_PAD.decode(claims).ok()?);
    let Expiry { exp } = object(&claims)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(exp).ok()?)
}

/// The JOSE header. `typ` is what everybody takes; the media type that the successor of RFC 7523 defines is too new for
/// servers that compare it.
#[derive(Serialize)]
struct Header<'a> {
    alg: &'a str,
    typ: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<&'a str>,
}

/// RFC 7523 §3. No `nbf`: a clock that is ahead of the server's would make it a refusal.
#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    /// One audience, and as a string: a list is what attacks on audiences are made of.
    aud: &'a str,
    jti: String,
    iat: u64,
    exp: u64,
}

impl<'a> Claims<'a> {
    /// Good from now on, for one use.
    fn new(client_id: &'a str, audience: &'a str) -> Result<Self, Unspecified> {
        let mut id = [0; 16];
        rand::fill(&mut id)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default();
        Ok(Self {
            iss: client_id,
            sub: client_id,
            aud: audience,
            jti: URL_SAFE_NO_PAD.encode(id),
            iat: now.as_secs(),
            exp: (now + LIFETIME).as_secs(),
        })
    }
}

/// The compact serialization (RFC 7515 §7.1).
fn jwt(
    header: &Header<'_>,
    claims: &Claims<'_>,
    sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, Unspecified>,
) -> Result<Zeroizing<String>, Unspecified> {
    let header = serde_json::to_vec(header).map_err(|_| Unspecified)?;
    let claims = serde_json::to_vec(claims).map_err(|_| Unspecified)?;
    let mut jwt = Zeroizing::new(String::new());
    URL_SAFE_NO_PAD.encode_string(header, &mut jwt);
    jwt.push('.');
    URL_SAFE_NO_PAD.encode_string(claims, &mut jwt);
    let signature = sign(jwt.as_bytes())?;
    jwt.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut jwt);
    Ok(jwt)
}

/// A key that was read, and how it signs. aws-lc-rs keeps it outside of Rust's memory, and clears it when it is dropped.
struct SigningKey {
    pair: KeyPair,
    algorithm: SigningAlgorithm,
}

enum KeyPair {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl SigningKey {
    fn parse(pem: &Secret, algorithm: Option<SigningAlgorithm>) -> Result<Self, AssertionFault> {
        let der = PrivateKeyDer::from_pem_slice(pem.expose().as_bytes());
        let der = Zeroizing::new(der.map_err(|_| {
            if pem.expose().contains("ENCRYPTED") {
                AssertionFault::Encrypted
            } else {
                AssertionFault::NoPrivateKey
            }
        })?);
        let pair = KeyPair::parse(&der)?;
        let algorithm = match (&pair, algorithm) {
            (KeyPair::Rsa(_), None) => SigningAlgorithm::Rs256,
            (KeyPair::P256(_), None) => SigningAlgorithm::Es256,
            (KeyPair::Ed25519(_), None) => SigningAlgorithm::EdDsa,
            (
                KeyPair::Rsa(_),
                Some(algorithm @ (SigningAlgorithm::Rs256 | SigningAlgorithm::Ps256)),
            )
            | (KeyPair::P256(_), Some(algorithm @ SigningAlgorithm::Es256))
            | (KeyPair::Ed25519(_), Some(algorithm @ SigningAlgorithm::EdDsa)) => algorithm,
            (_, Some(algorithm)) => {
                let key = pair.name();
                return Err(AssertionFault::OtherKey { key, algorithm });
            }
        };
        Ok(Self { pair, algorithm })
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Unspecified> {
        let random = SystemRandom::new();
        match &self.pair {
            KeyPair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                match self.algorithm {
                    SigningAlgorithm::Ps256 => {
                        pair.sign(&RSA_PSS_SHA256, &random, message, &mut signature)?
                    }
                    _ => pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)?,
                }
                Ok(signature)
            }
            // Two numbers of 32 bytes (RFC 7518 §3.4), not ASN.1.
            KeyPair::P256(pair) => Ok(pair.sign(&random, message)?.as_ref().to_vec()),
            KeyPair::Ed25519(pair) => Ok(pair.try_sign(message)?.as_ref().to_vec()),
        }
    }
}

impl KeyPair {
    /// PKCS#8 says which kind of key it holds, and the parsers know it better than we would.
    fn parse(der: &PrivateKeyDer<'_>) -> Result<Self, AssertionFault> {
        let rsa = match der {
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
            PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
            der => return Self::parse_p256(der.secret_der()).ok_or(AssertionFault::Unsupported),
        };
        match rsa {
            Ok(pair) => return Ok(Self::Rsa(pair)),
            Err(rejected) if rejected.to_string() == "TooSmall" => {
                return Err(AssertionFault::TooSmall);
            }
            Err(_) => {}
        }
        let der = der.secret_der();
        Self::parse_p256(der)
            .or_else(|| Ed25519KeyPair::from_pkcs8(der).ok().map(Self::Ed25519))
            .ok_or(AssertionFault::Unsupported)
    }

    fn parse_p256(der: &[u8]) -> Option<Self> {
        let pair = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, der);
        pair.ok().map(Self::P256)
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "an RSA key",
            Self::P256(_) => "a P-256 key",
            Self::Ed25519(_) => "an Ed25519 key",
        }
    }
}

/// A key or an assertion that cannot be used: where it is, and what is wrong with it.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{place}: {fault}")]
pub struct AssertionError {
    place: String,
    fault: AssertionFault,
}

impl AssertionError {
    /// What is wrong.
    pub fn fault(&self) -> AssertionFault {
        self.fault
    }

    /// What a person can do about it.
    pub fn hint(&self) -> &'static str {
        match self.fault {
            AssertionFault::NoPrivateKey => {
                "it must hold -----BEGIN PRIVATE KEY-----; `openssl genpkey` makes such keys"
            }
            AssertionFault::Encrypted => {
                "bearerd asks nobody for a passphrase; decrypt it with `openssl pkey`, and protect the file"
            }
            AssertionFault::TooSmall => "make a new key of 2048 bits or more (RFC 7518 §3.3)",
            AssertionFault::Unsupported => {
                "use an RSA key of 2048 to 8192 bits, a P-256 key or an Ed25519 key"
            }
            AssertionFault::OtherKey { .. } => {
                "signing_algorithm is RS256 or PS256 for RSA, ES256 for P-256, EdDSA for Ed25519; leave it out to \
                 take what fits the key"
            }
            AssertionFault::Signature => "the system gave no random numbers, or the key is broken",
            AssertionFault::NotAJwt => {
                "client_assertion_file must hold one JWT on one line, as the platform writes it"
            }
        }
    }
}

/// What is wrong with a key or an assertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssertionFault {
    NoPrivateKey,
    Encrypted,
    TooSmall,
    Unsupported,
    OtherKey {
        /// With its article.
        key: &'static str,
        algorithm: SigningAlgorithm,
    },
    Signature,
    NotAJwt,
}

impl fmt::Display for AssertionFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPrivateKey => "holds no private key as PEM",
            Self::Encrypted => "is encrypted",
            Self::TooSmall => "is an RSA key of less than 2048 bits",
            Self::Unsupported => "is a key of a kind that cannot be used",
            Self::OtherKey { key, algorithm } => {
                return write!(f, "is {key}, which cannot sign {}", algorithm.as_str());
            }
            Self::Signature => "nothing could be signed with it",
            Self::NotAJwt => "is not a JWT",
        })
    }
}

#[cfg(test)]
#[path = "client_assertion_tests.rs"]
mod tests;
