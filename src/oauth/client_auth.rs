//! Client authentication: how we prove to the authorization server who we are (RFC 6749 §2.3). One method is configured,
//! never two are sent, none is probed.

use std::path::Path;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::client_assertion::{
    AssertionError, PrivateKey, by_client_secret, check_assertion, expiry,
};
use crate::secret::{Secret, SecretError, SecretSource};

/// A method and where its proof is. Each holds what it needs, and nothing of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// Client secrets, in the order in which they are tried; at least one.
    Secrets(SecretMethod, Vec<SecretSource>),
    /// `private_key_jwt`: an assertion that we sign (RFC 7523 §2.2).
    PrivateKeyJwt(PrivateKey),
    /// `client_assertion_file`, a name of ours: an assertion that the platform signs, and renews by itself, such as a
    /// token of a Kubernetes service account or a SPIFFE JWT-SVID.
    AssertionFile(SecretSource),
    /// `tls_client_auth`: the client certificate of the connection, by its issuer and name (RFC 8705 §2.1).
    TlsClientAuth,
    /// `self_signed_tls_client_auth`: the client certificate itself (RFC 8705 §2.2).
    SelfSignedTlsClientAuth,
}

/// What is done with a client secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretMethod {
    /// `client_secret_basic`: the HTTP Basic scheme.
    Basic(BasicEncoding),
    /// `client_secret_post`: in the request body.
    Post,
    /// `client_secret_jwt`: it is the key of an assertion (HS256).
    Jwt,
}

/// How id and secret are written into the Basic scheme.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BasicEncoding {
    /// Each form-urlencoded first, as RFC 6749 §2.3.1 asks.
    #[default]
    Form,
    /// As they are (RFC 7617), for authorization servers that do not decode.
    Raw,
}

impl ClientAuth {
    /// The name in the configuration, which is the registered one where there is one.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Secrets(SecretMethod::Basic(_), _) => "client_secret_basic",
            Self::Secrets(SecretMethod::Post, _) => "client_secret_post",
            Self::Secrets(SecretMethod::Jwt, _) => "client_secret_jwt",
            Self::PrivateKeyJwt(_) => "private_key_jwt",
            Self::AssertionFile(_) => "client_assertion_file",
            Self::TlsClientAuth => "tls_client_auth",
            Self::SelfSignedTlsClientAuth => "self_signed_tls_client_auth",
        }
    }

    /// Whether the connection proves who we are, so that there must be a client certificate.
    pub fn demands_client_certificate(&self) -> bool {
        matches!(self, Self::TlsClientAuth | Self::SelfSignedTlsClientAuth)
    }

    /// Every file that is read for the proof.
    pub fn files(&self) -> Vec<&Path> {
        let secrets = match self {
            Self::Secrets(_, secrets) => secrets.as_slice(),
            Self::PrivateKeyJwt(key) => std::slice::from_ref(&key.file),
            Self::AssertionFile(file) => std::slice::from_ref(file),
            Self::TlsClientAuth | Self::SelfSignedTlsClientAuth => &[],
        };
        secrets.iter().filter_map(SecretSource::path).collect()
    }

    /// Reads the proofs as they are now, in their order; never none. Of several secrets those that cannot be read are
    /// left out.
    ///
    /// # Errors
    /// When there is none to read.
    pub(super) fn credentials(&self, client_id: &str) -> Result<Vec<Credentials>, SecretError> {
        let with = |proof| Credentials {
            client_id: client_id.to_owned(),
            proof,
        };
        let proof = match self {
            Self::Secrets(method, sources) => {
                let (mut credentials, mut unreadable) = (Vec::new(), None);
                for source in sources {
                    match source.read() {
                        Ok(secret) => credentials.push(with(Proof::Secret(*method, secret))),
                        Err(error) => unreadable = unreadable.or(Some(error)),
                    }
                }
                return match unreadable {
                    Some(error) if credentials.is_empty() => Err(error),
                    _ => Ok(credentials),
                };
            }
            Self::PrivateKeyJwt(key) => Proof::PrivateKey(key.clone(), key.file.read()?),
            Self::AssertionFile(file) => Proof::Assertion(file.clone(), file.read()?),
            Self::TlsClientAuth | Self::SelfSignedTlsClientAuth => Proof::Certificate,
        };
        Ok(vec![with(proof)])
    }
}

/// Who we are and one proof of it, read at one moment.
pub struct Credentials {
    client_id: String,
    proof: Proof,
}

/// What was read. Keys are parsed and assertions checked where they are used: what is read often is only compared.
enum Proof {
    Secret(SecretMethod, Secret),
    PrivateKey(PrivateKey, Secret),
    Assertion(SecretSource, Secret),
    /// Not here, but in the connection.
    Certificate,
}

impl Proof {
    fn secret(&self) -> Option<&Secret> {
        match self {
            Self::Secret(_, secret) | Self::PrivateKey(_, secret) | Self::Assertion(_, secret) => {
                Some(secret)
            }
            Self::Certificate => None,
        }
    }
}

impl Credentials {
    /// Whether id and proof are the same as in `other`. A client certificate is not compared; the connection has it.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.client_id == other.client_id
            && self.proof.secret().map(Secret::expose) == other.proof.secret().map(Secret::expose)
    }

    /// Whether the proof is an assertion that the platform renews by itself: a change of it is no rotation.
    pub fn is_platform_assertion(&self) -> bool {
        matches!(self.proof, Proof::Assertion(..))
    }

    /// When an assertion of the platform ends, by its own words, which nobody has verified; none for everything else.
    pub fn expires_at(&self) -> Option<SystemTime> {
        match &self.proof {
            Proof::Assertion(_, assertion) => expiry(assertion),
            Proof::Secret(..) | Proof::PrivateKey(..) | Proof::Certificate => None,
        }
    }

    /// Where an assertion of the platform comes from.
    pub(super) fn assertion_file(&self) -> Option<&SecretSource> {
        match &self.proof {
            Proof::Assertion(file, _) => Some(file),
            Proof::Secret(..) | Proof::PrivateKey(..) | Proof::Certificate => None,
        }
    }

    /// Adds to `form` what proves who we are, to the server that `audience` names. An assertion of ours is a new one each
    /// time.
    ///
    /// Assertions come with `client_id`, which is optional beside them (RFC 7521 §4.2) and which some servers demand.
    ///
    /// # Errors
    /// When a key or an assertion cannot be used.
    pub(super) fn authenticate(
        &self,
        audience: &str,
        form: &mut Form,
    ) -> Result<(), AssertionError> {
        let client_id = &self.client_id;
        let assertion = match &self.proof {
            Proof::Secret(SecretMethod::Basic(encoding), client_secret) => {
                form.authorization = Some(basic(*encoding, client_id, client_secret));
                return Ok(());
            }
            Proof::Secret(SecretMethod::Post, client_secret) => {
                form.append("client_id", client_id);
                form.append("client_secret", client_secret.expose());
                return Ok(());
            }
            Proof::Certificate => {
                form.append("client_id", client_id);
                return Ok(());
            }
            Proof::Secret(SecretMethod::Jwt, client_secret) => {
                by_client_secret(client_secret, client_id, audience)?
            }
            Proof::PrivateKey(key, pem) => key.assertion(pem, client_id, audience)?,
            Proof::Assertion(file, assertion) => {
                check_assertion(file, assertion)?;
                Zeroizing::new(assertion.expose().to_owned())
            }
        };
        form.append("client_id", client_id);
        form.append("client_assertion_type", ASSERTION_TYPE);
        form.append("client_assertion", &assertion);
        Ok(())
    }
}

/// RFC 7523 §2.2.
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// What a request to the authorization server carries: the form, and an `Authorization` field for some methods.
#[derive(Default)]
pub struct Form {
    text: Zeroizing<String>,
    /// Marked sensitive.
    pub authorization: Option<HeaderValue>,
}

impl Form {
    /// Appends one parameter, form-urlencoded.
    pub fn append(&mut self, name: &str, value: &str) {
        if !self.text.is_empty() {
            self.text.push('&');
        }
        self.text
            .extend(form_urlencoded::byte_serialize(name.as_bytes()));
        self.text.push('=');
        self.text
            .extend(form_urlencoded::byte_serialize(value.as_bytes()));
    }

    /// The form so far.
    pub fn text(&self) -> &str {
        &self.text
    }
}

fn basic(encoding: BasicEncoding, client_id: &str, client_secret: &Secret) -> HeaderValue {
    let mut pair = Zeroizing::new(String::new());
    match encoding {
        BasicEncoding::Form => {
            pair.extend(form_urlencoded::byte_serialize(client_id.as_bytes()));
            pair.push(':');
            pair.extend(form_urlencoded::byte_serialize(
                client_secret.expose().as_bytes(),
            ));
        }
        BasicEncoding::Raw => {
            pair.push_str(client_id);
            pair.push(':');
            pair.push_str(client_secret.expose());
        }
    }
    let value = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
    #[expect(clippy::expect_used, reason = "the base64 alphabet is visible ASCII")]
    let mut value = HeaderValue::from_str(&value).expect("base64 is visible ASCII");
    value.set_sensitive(true);
    value
}

#[cfg(test)]
#[path = "client_auth_tests.rs"]
mod tests;
