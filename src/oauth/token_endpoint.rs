//! The token endpoint: one request of the client credentials grant (RFC 6749 §4.4).

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Collected, LengthLimitError, Limited};
use tokio::time::timeout;

use super::access_token::Grant;
use super::client_auth::{BasicEncoding, ClientAuth, TokenRequest};
use super::token_error::TokenError;
use super::token_response::{grant, redirect_host, refusal};
use crate::net::body::Body;
use crate::net::client::HttpClient;
use crate::secret::{Secret, SecretError, SecretSource};

/// The largest answer read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Where the client identifier comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientId {
    /// The configuration.
    Inline(String),
    /// A file, read at each token request, together with the secret.
    File(SecretSource),
}

/// What every token request of one key says.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEndpointConfig {
    /// `https`, or `http` where the configuration allows it; no user information, no fragment.
    pub url: Uri,
    pub client_id: ClientId,
    pub client_secret: SecretSource,
    pub client_auth: ClientAuth,
    pub basic_encoding: BasicEncoding,
    /// Space-delimited (RFC 6749 §3.3).
    pub scope: Option<String>,
    pub audience: Vec<String>,
    /// Absolute URIs (RFC 8707 §2).
    pub resource: Vec<String>,
    pub extra_params: Vec<(String, String)>,
    /// The whole exchange: connect, request, the last byte of the answer.
    pub request_timeout: Duration,
    /// The lifetime of a token that comes without `expires_in`.
    pub default_lifetime: Duration,
    /// The longest lifetime believed.
    pub max_lifetime: Duration,
}

impl TokenEndpointConfig {
    /// Every file that is read at each token request.
    pub fn files(&self) -> impl Iterator<Item = &std::path::Path> {
        let id = match &self.client_id {
            ClientId::File(SecretSource::File(path)) => Some(path.as_path()),
            _ => None,
        };
        let secret = match &self.client_secret {
            SecretSource::File(path) => Some(path.as_path()),
            SecretSource::Env(_) => None,
        };
        id.into_iter().chain(secret)
    }
}

/// Asks for tokens.
pub struct TokenEndpoint {
    config: TokenEndpointConfig,
    client: HttpClient,
}

impl TokenEndpoint {
    /// `client` needs no pool: a token request happens about once an hour, and after a failure a new connection may
    /// reach a better node.
    pub fn new(config: TokenEndpointConfig, client: HttpClient) -> Self {
        Self { config, client }
    }

    /// Reads id and secret as they are now.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn credentials(&self) -> Result<Vec<Credentials>, SecretError> {
        let client_id = match &self.config.client_id {
            ClientId::Inline(client_id) => client_id.clone(),
            ClientId::File(file) => file.read()?.expose().to_owned(),
        };
        Ok(vec![Credentials {
            client_id,
            client_secret: self.config.client_secret.read()?,
        }])
    }

    pub fn for_scope(mut self, scope: Option<String>) -> Self {
        self.config.scope = scope;
        self
    }

    pub fn reads_files(&self) -> bool {
        true
    }

    pub fn revokes_on_shutdown(&self) -> bool {
        false
    }

    pub async fn revoke(&self, _: &Credentials, _: &HeaderValue) -> Result<(), TokenError> {
        Ok(())
    }

    /// Sends one token request. Redirects are not followed, nothing is sent twice.
    ///
    /// # Errors
    /// Everything that is not a usable token; within `request_timeout`.
    pub async fn fetch(&self, credentials: &Credentials) -> Result<Grant, TokenError> {
        timeout(self.config.request_timeout, self.exchange(credentials))
            .await
            .unwrap_or(Err(TokenError::TimedOut(self.config.request_timeout)))
    }

    async fn exchange(&self, credentials: &Credentials) -> Result<Grant, TokenError> {
        let response = self
            .client
            .send(self.request(credentials))
            .await
            .map_err(TokenError::Send)?;
        let (head, body) = response.into_parts();
        if head.status.is_redirection() {
            return Err(TokenError::Redirect {
                status: head.status,
                host: redirect_host(&head.headers),
            });
        }
        let answer = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
        if head.status != StatusCode::OK {
            // The status tells the class, whatever can be read of the body.
            let answer = answer.map(Collected::to_bytes).unwrap_or_default();
            return Err(refusal(head.status, &head.headers, &answer));
        }
        let answer = match answer {
            Ok(answer) => answer.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => return Err(TokenError::TooLarge),
            Err(_) => return Err(TokenError::BrokenOff),
        };
        let encoding = head.headers.get(header::CONTENT_ENCODING);
        if encoding.is_some_and(|encoding| encoding != "identity") {
            return Err(TokenError::Encoded);
        }
        grant(&self.config, &head.headers, &answer)
    }

    fn request(&self, credentials: &Credentials) -> Request<Body> {
        let config = &self.config;
        let mut form = TokenRequest::default();
        form.append("grant_type", "client_credentials");
        if let Some(scope) = &config.scope {
            form.append("scope", scope);
        }
        for audience in &config.audience {
            form.append("audience", audience);
        }
        for resource in &config.resource {
            form.append("resource", resource);
        }
        for (name, value) in &config.extra_params {
            form.append(name, value);
        }
        config.client_auth.authenticate(
            config.basic_encoding,
            &credentials.client_id,
            &credentials.client_secret,
            &mut form,
        );
        let mut request = Request::new(Body::full(Bytes::copy_from_slice(form.form().as_bytes())));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = config.url.clone();
        let headers = request.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        );
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("bearerd/", env!("CARGO_PKG_VERSION"))),
        );
        if let Some(authorization) = form.authorization {
            headers.insert(header::AUTHORIZATION, authorization);
        }
        request
    }
}

/// Id and secret, read as one pair.
pub struct Credentials {
    client_id: String,
    client_secret: Secret,
}

impl Credentials {
    pub fn is_platform_assertion(&self) -> bool {
        false
    }

    /// Whether both are the same as in `other`.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.client_id == other.client_id
            && self.client_secret.expose() == other.client_secret.expose()
    }
}

#[cfg(test)]
#[path = "token_endpoint_tests.rs"]
mod tests;
