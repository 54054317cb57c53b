//! Client authentication: how we prove to the authorization server who we are (RFC 6749 §2.3). One method is configured,
//! never two are sent, none is probed.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use url::form_urlencoded;
use zeroize::Zeroizing;

use crate::secret::Secret;

/// The registered names of the methods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// `client_secret_basic`: the HTTP Basic scheme.
    #[default]
    ClientSecretBasic,
    /// `client_secret_post`: in the request body.
    ClientSecretPost,
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

/// What a token request carries: the form, and an `Authorization` field for some methods.
#[derive(Default)]
pub struct TokenRequest {
    form: Zeroizing<String>,
    /// Marked sensitive.
    pub authorization: Option<HeaderValue>,
}

impl TokenRequest {
    /// Appends one parameter, form-urlencoded.
    pub fn append(&mut self, name: &str, value: &str) {
        if !self.form.is_empty() {
            self.form.push('&');
        }
        self.form
            .extend(form_urlencoded::byte_serialize(name.as_bytes()));
        self.form.push('=');
        self.form
            .extend(form_urlencoded::byte_serialize(value.as_bytes()));
    }

    /// The form so far.
    pub fn form(&self) -> &str {
        &self.form
    }
}

impl ClientAuth {
    /// Adds to `request` what proves that we are `client_id`.
    pub fn authenticate(
        self,
        encoding: BasicEncoding,
        client_id: &str,
        client_secret: &Secret,
        request: &mut TokenRequest,
    ) {
        match self {
            Self::ClientSecretBasic => {
                request.authorization = Some(basic(encoding, client_id, client_secret))
            }
            Self::ClientSecretPost => {
                request.append("client_id", client_id);
                request.append("client_secret", client_secret.expose());
            }
        }
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
mod tests {
    use super::*;

    fn authenticate(method: ClientAuth, encoding: BasicEncoding) -> TokenRequest {
        let mut request = TokenRequest::default();
        let secret = Secret::new("z/t+H:X%=".into());
        method.authenticate(encoding, "1PpG/Q 1", &secret, &mut request);
        request
    }

    fn decoded(request: &TokenRequest) -> String {
        let value = request.authorization.as_ref().unwrap();
        assert!(value.is_sensitive());
        let pair = value.to_str().unwrap().strip_prefix("Basic ").unwrap();
        String::from_utf8(STANDARD.decode(pair).unwrap()).unwrap()
    }

    /// C-01, with the vector of AppAuth-Android issue 337.
    #[test]
    fn basic_is_form_urlencoded_first() {
        let request = authenticate(ClientAuth::ClientSecretBasic, BasicEncoding::Form);
        assert_eq!(decoded(&request), "1PpG%2FQ+1:z%2Ft%2BH%3AX%25%3D");
        assert_eq!(request.form(), "", "C-04: one method only");
    }

    /// C-02
    #[test]
    fn basic_raw_is_as_it_is() {
        let request = authenticate(ClientAuth::ClientSecretBasic, BasicEncoding::Raw);
        assert_eq!(decoded(&request), "1PpG/Q 1:z/t+H:X%=");
    }

    /// C-03
    #[test]
    fn post_is_fully_form_urlencoded() {
        let request = authenticate(ClientAuth::ClientSecretPost, BasicEncoding::Form);
        assert_eq!(
            request.form(),
            "client_id=1PpG%2FQ+1&client_secret=z%2Ft%2BH%3AX%25%3D"
        );
        assert!(request.authorization.is_none(), "C-04: one method only");
    }

    /// C-08
    #[test]
    fn what_is_not_ascii_is_utf8_first() {
        let mut request = TokenRequest::default();
        request.append("client_id", "Zoë & Co");
        assert_eq!(request.form(), "client_id=Zo%C3%AB+%26+Co");
    }
}
