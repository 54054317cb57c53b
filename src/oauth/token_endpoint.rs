//! The token endpoint: one request of the client credentials grant (RFC 6749 §4.4); and the endpoint that revokes what
//! came of it (RFC 7009).

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use tokio::time::timeout;
use tracing::warn;

use super::access_token::{AccessToken, Grant};
use super::client_auth::{ClientAuth, Credentials, Form};
use super::metadata::{Discovery, Issuer};
use super::round_trip::{request, round_trip};
use super::token_error::TokenError;
use super::token_response::{grant, refusal};
use crate::net::body::Body;
use crate::net::client::HttpClient;
use crate::secret::{SecretError, SecretSource};

/// An assertion of the platform that is good for less than this is warned of: something no longer renews it.
const ASSERTION_MARGIN: Duration = Duration::from_secs(60);

/// Where the client identifier comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientId {
    /// The configuration.
    Inline(String),
    /// A file, read at each token request, together with the secret.
    File(SecretSource),
}

/// Where the token endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// Here: `https`, or `http` where the configuration allows it; no user information, no fragment.
    Url(Uri),
    /// Where the metadata of this issuer says.
    Issuer(Issuer),
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => url.fmt(f),
            Self::Issuer(issuer) => write!(f, "the token endpoint of {}", issuer.identifier()),
        }
    }
}

/// What to do when less scope is granted than was asked for (RFC 6749 §5.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScopeDowngrade {
    /// Use the token, and say what it lacks.
    #[default]
    Warn,
    /// Do not use the token.
    Fail,
    /// Use the token.
    Ignore,
}

/// What every token request of one key says.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEndpointConfig {
    pub location: Location,
    /// Where tokens are revoked; otherwise where the metadata says. The same rules as for the token endpoint.
    pub revoke_url: Option<Uri>,
    pub client_id: ClientId,
    pub client_auth: ClientAuth,
    /// Space-delimited (RFC 6749 §3.3).
    pub scope: Option<String>,
    pub audience: Vec<String>,
    /// Absolute URIs (RFC 8707 §2).
    pub resource: Vec<String>,
    pub extra_params: Vec<(String, String)>,
    pub on_scope_downgrade: ScopeDowngrade,
    /// The whole exchange: connect, request, the last byte of the answer; discovery too, if it is due.
    pub request_timeout: Duration,
    /// The lifetime of a token that comes without `expires_in`.
    pub default_lifetime: Duration,
    /// The longest lifetime believed.
    pub max_lifetime: Duration,
}

impl TokenEndpointConfig {
    /// Every file that is read at each token request.
    pub fn files(&self) -> Vec<&Path> {
        let client_id = match &self.client_id {
            ClientId::File(file) => file.path(),
            ClientId::Inline(_) => None,
        };
        let mut files = self.client_auth.files();
        files.extend(client_id);
        files
    }
}

/// Asks for tokens, and revokes them.
pub struct TokenEndpoint {
    config: TokenEndpointConfig,
    shared: Arc<Shared>,
}

/// What endpoints of one credential have in common, whatever scope they ask for.
struct Shared {
    client: HttpClient,
    place: Place,
    /// The end of the assertion that was warned of last.
    warned_of: Mutex<Option<SystemTime>>,
    #[cfg(test)]
    script: Option<Script>,
}

/// What stands in for an authorization server where ten thousand are asked: no connection, no HTTP.
#[cfg(test)]
pub(super) type Script = Box<
    dyn Fn() -> std::pin::Pin<Box<dyn Future<Output = Result<Grant, TokenError>> + Send>>
        + Send
        + Sync,
>;

enum Place {
    Known(Uri),
    Discovered(Box<Discovery>),
}

impl TokenEndpoint {
    /// `client` needs no pool: a token request happens about once an hour, and after a failure a new connection may
    /// reach a better node.
    pub fn new(config: TokenEndpointConfig, client: HttpClient) -> Self {
        let place = match &config.location {
            Location::Url(url) => Place::Known(url.clone()),
            Location::Issuer(issuer) => {
                let discovery = Discovery::new(issuer.clone(), config.client_auth.clone());
                Place::Discovered(Box::new(discovery))
            }
        };
        Self {
            config,
            shared: Arc::new(Shared {
                client,
                place,
                warned_of: Mutex::default(),
                #[cfg(test)]
                script: None,
            }),
        }
    }

    /// One that answers as it is told.
    #[cfg(test)]
    pub(super) fn scripted(
        config: TokenEndpointConfig,
        client: HttpClient,
        script: Script,
    ) -> Self {
        let mut endpoint = Self::new(config, client);
        if let Some(shared) = Arc::get_mut(&mut endpoint.shared) {
            shared.script = Some(script);
        }
        endpoint
    }

    /// The same endpoint for another scope. Both share the client and what was discovered.
    pub fn for_scope(&self, scope: Option<String>) -> Self {
        Self {
            config: TokenEndpointConfig {
                scope,
                ..self.config.clone()
            },
            shared: self.shared.clone(),
        }
    }

    /// Whether what proves who we are can change while the process runs.
    pub fn reads_files(&self) -> bool {
        !self.config.files().is_empty()
    }

    /// Reads id and proof as they are now: what may be tried, in this order, and never nothing. There is more than one
    /// only for a list of secrets; of those, the ones that cannot be read are left out.
    ///
    /// # Errors
    /// When the id or every proof cannot be read.
    pub fn credentials(&self) -> Result<Vec<Credentials>, SecretError> {
        let client_id = match &self.config.client_id {
            ClientId::Inline(client_id) => client_id.clone(),
            ClientId::File(file) => file.read()?.expose().to_owned(),
        };
        self.config.client_auth.credentials(&client_id)
    }

    /// Sends one token request, after a look at the metadata if that is due. Redirects are not followed, nothing is sent
    /// twice.
    ///
    /// # Errors
    /// Everything that is not a usable token; within `request_timeout`.
    pub async fn fetch(&self, credentials: &Credentials) -> Result<Grant, TokenError> {
        let limit = self.config.request_timeout;
        timeout(limit, self.ask_for_token(credentials))
            .await
            .unwrap_or(Err(TokenError::TimedOut(limit)))
    }

    /// Revokes `token` (RFC 7009 §2.1). A server that does not know it says that all is well.
    ///
    /// # Errors
    /// When the token may be good still; within `limit`.
    pub async fn revoke(
        &self,
        credentials: &Credentials,
        token: &AccessToken,
        limit: Duration,
    ) -> Result<(), TokenError> {
        timeout(limit, self.send_revocation(credentials, token, limit))
            .await
            .unwrap_or(Err(TokenError::TimedOut(limit)))
    }

    /// Where tokens are asked for: as configured, or as the metadata say, which are read if that is due.
    ///
    /// # Errors
    /// When there are no metadata that can be used; within `request_timeout`.
    pub async fn url(&self) -> Result<Uri, TokenError> {
        let Shared { client, place, .. } = &*self.shared;
        match place {
            Place::Known(url) => Ok(url.clone()),
            Place::Discovered(discovery) => {
                let limit = self.config.request_timeout;
                let metadata = discovery.metadata(client, limit).await?;
                Ok(metadata.token_endpoint.clone())
            }
        }
    }

    async fn ask_for_token(&self, credentials: &Credentials) -> Result<Grant, TokenError> {
        #[cfg(test)]
        if let Some(script) = &self.shared.script {
            return script().await;
        }
        let url = self.url().await?;
        let answer = self.post(&url, self.token_form(credentials)?).await;
        if let (Err(error), Place::Discovered(discovery)) = (&answer, &self.shared.place)
            && error.suggests_a_move()
        {
            discovery.doubt();
        }
        let (headers, body) = answer?;
        grant(&self.config, &headers, &body)
    }

    async fn send_revocation(
        &self,
        credentials: &Credentials,
        token: &AccessToken,
        limit: Duration,
    ) -> Result<(), TokenError> {
        let Shared { client, place, .. } = &*self.shared;
        let url = match (&self.config.revoke_url, place) {
            (Some(url), _) => Some(url.clone()),
            (None, Place::Known(_)) => None,
            (None, Place::Discovered(discovery)) => {
                let metadata = discovery.metadata(client, limit).await?;
                metadata.revocation_endpoint.clone()
            }
        };
        let url = url.ok_or(TokenError::NoRevocationEndpoint)?;
        let mut form = Form::default();
        let authorization = token.authorization();
        let token = authorization.to_str().unwrap_or_default();
        form.append("token", token.strip_prefix("Bearer ").unwrap_or(token));
        form.append("token_type_hint", "access_token");
        self.authenticate(credentials, &mut form)?;
        self.post(&url, form).await.map(|_| ())
    }

    fn token_form(&self, credentials: &Credentials) -> Result<Form, TokenError> {
        let config = &self.config;
        let mut form = Form::default();
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
        self.authenticate(credentials, &mut form)?;
        Ok(form)
    }

    /// An assertion is for the issuer where that is known: it is the name of this server alone, while the URL of a token
    /// endpoint is whatever a configuration says, which is how one server gets assertions meant for another (the reason
    /// for RFC 7523's successor). Without an issuer it is for the token endpoint (RFC 7523 §3), and so it is at the
    /// revocation endpoint.
    fn authenticate(&self, credentials: &Credentials, form: &mut Form) -> Result<(), TokenError> {
        self.warn_of_expiry(credentials);
        let audience = match &self.config.location {
            Location::Url(url) => url.to_string(),
            Location::Issuer(issuer) => issuer.identifier().to_owned(),
        };
        Ok(credentials.authenticate(&audience, form)?)
    }

    /// Once for each assertion.
    fn warn_of_expiry(&self, credentials: &Credentials) {
        let expiry = credentials.expires_at();
        let (Some(file), Some(expires_at)) = (credentials.assertion_file(), expiry) else {
            return;
        };
        if expires_at > SystemTime::now() + ASSERTION_MARGIN {
            return;
        }
        let warned_of = {
            let warned_of = self.shared.warned_of.lock();
            let mut warned_of = warned_of.unwrap_or_else(PoisonError::into_inner);
            warned_of.replace(expires_at)
        };
        if warned_of != expiry {
            warn!(
                assertion = %file,
                expires_at = httpdate::fmt_http_date(expires_at),
                hint = "the platform should have renewed it; is the volume still projected into this container?",
                "the client assertion is over, or will be within a minute"
            );
        }
    }

    /// The answer, if it is a 200.
    async fn post(&self, url: &Uri, form: Form) -> Result<(HeaderMap, Bytes), TokenError> {
        let body = Body::full(Bytes::copy_from_slice(form.text().as_bytes()));
        let mut request = request(Method::POST, url, body);
        let headers = request.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        );
        if let Some(authorization) = form.authorization {
            headers.insert(header::AUTHORIZATION, authorization);
        }
        let (head, answer) = round_trip(&self.shared.client, request).await?;
        if head.status == StatusCode::OK {
            Ok((head.headers, answer))
        } else {
            Err(refusal(head.status, &head.headers, &answer))
        }
    }
}

#[cfg(test)]
#[path = "token_endpoint_tests.rs"]
mod tests;
