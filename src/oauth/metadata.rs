//! Authorization server metadata: where the endpoints of an issuer are (RFC 8414, OpenID Connect Discovery 1.0).
//!
//! The document is read before the first token request, and again when it is an hour old or an endpoint seems to have
//! moved. One that cannot be read again changes nothing: the last good one stays. The request for it carries no secret.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Method, StatusCode, Uri};
use serde::Deserialize;
use tokio::time::{Instant, timeout};
use tracing::warn;
use url::Url;

use super::client_auth::ClientAuth;
use super::round_trip::{request, round_trip};
use super::token_error::{TokenError, printable};
use super::token_response::{is_transient, object, refusal};
use crate::net::body::Body;
use crate::net::client::HttpClient;

/// A document older than this is read again before the next token request.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// After an attempt to read it the next one is at least so far off, whatever happens.
const MIN_AGE: Duration = Duration::from_secs(10);
/// The method of a server that names none (RFC 8414 §2).
const DEFAULT_METHOD: &str = "client_secret_basic";

/// An issuer as configured, and where its metadata is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// Compared byte for byte with the one in the document.
    identifier: String,
    /// Whether its endpoints may be `http` beyond loopback.
    allow_insecure: bool,
    /// By RFC 8414 §3.1 and by OpenID Connect Discovery 1.0 §4, in the order in which they are asked.
    documents: [Uri; 2],
}

impl Issuer {
    /// `identifier` is an absolute URL with a host; `None` if it has a query, a fragment, or what no request can carry.
    /// Whether it is confidential is for the caller to see.
    pub fn new(identifier: &str, allow_insecure: bool) -> Option<Self> {
        let uri: Uri = identifier.parse().ok()?;
        if uri.query().is_some() || identifier.contains('#') {
            return None;
        }
        let origin = format!("{}://{}", uri.scheme()?, uri.authority()?);
        let path = uri.path().trim_end_matches('/');
        let documents = [
            format!("{origin}/.well-known/oauth-authorization-server{path}"),
            format!("{origin}{path}/.well-known/openid-configuration"),
        ];
        let [oauth, openid] = documents.map(|url| url.parse().ok());
        Some(Self {
            identifier: identifier.to_owned(),
            allow_insecure,
            documents: [oauth?, openid?],
        })
    }

    /// Whether an endpoint of it may be this `http` one. Only an issuer of this machine has endpoints on this machine: one
    /// out in the world has no business there.
    fn lets_http_pass(&self, url: &Url) -> bool {
        let is_local = self.identifier.starts_with("http:") && is_confidential(url);
        is_local || self.allow_insecure
    }

    /// As configured.
    pub fn identifier(&self) -> &str {
        &self.identifier
    }
}

/// Whether a secret may be sent to `url`: over TLS, or not beyond this machine.
pub fn is_confidential(url: &Url) -> bool {
    let is_loopback = match url.host() {
        Some(url::Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    };
    url.scheme() == "https" || is_loopback
}

/// What is used of the metadata.
#[derive(Debug)]
pub(super) struct Metadata {
    pub(super) token_endpoint: Uri,
    /// None if there is none, or none that a secret may be sent to.
    pub(super) revocation_endpoint: Option<Uri>,
    /// Client authentication methods of the token endpoint.
    methods: Vec<String>,
}

/// Finds the endpoints of one issuer for one way to authenticate.
pub(super) struct Discovery {
    issuer: Issuer,
    client_auth: ClientAuth,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    last_good: Option<Arc<Metadata>>,
    /// When it was last tried to read the document.
    tried_at: Option<Instant>,
    /// An endpoint seems to have moved.
    is_doubted: bool,
}

impl Discovery {
    pub(super) fn new(issuer: Issuer, client_auth: ClientAuth) -> Self {
        Self {
            issuer,
            client_auth,
            found: Mutex::default(),
        }
    }

    /// The metadata, read now if need be. With a last good one, reading takes at most half of `limit`, so that there is
    /// time left for what it is read for; without one the limit is the caller's. Two tokens that are due at one moment
    /// may both read it.
    ///
    /// # Errors
    /// When there is none.
    pub(super) async fn metadata(
        &self,
        client: &HttpClient,
        limit: Duration,
    ) -> Result<Arc<Metadata>, TokenError> {
        let last_good = match self.known() {
            Known::Fresh(metadata) => return Ok(metadata),
            Known::Nothing => {
                let metadata = self.read(client).await?;
                return Ok(self.keep(metadata));
            }
            Known::Old(metadata) => metadata,
        };
        let limit = limit / 2;
        let read = timeout(limit, self.read(client)).await;
        match read.unwrap_or(Err(TokenError::TimedOut(limit))) {
            Ok(metadata) => Ok(self.keep(metadata)),
            Err(error) => {
                warn!(
                    issuer = self.issuer.identifier,
                    %error,
                    hint = error.hint(),
                    "metadata cannot be read again, the last good one stays"
                );
                Ok(last_good)
            }
        }
    }

    /// An endpoint does not answer as one: the document is read again at the next opportunity.
    pub(super) fn doubt(&self) {
        self.lock().is_doubted = true;
    }

    fn known(&self) -> Known {
        let mut found = self.lock();
        let age = found.tried_at.map(|tried_at| tried_at.elapsed());
        let Some(metadata) = found.last_good.clone() else {
            return Known::Nothing;
        };
        let is_old = match age {
            Some(age) => age >= MAX_AGE || (found.is_doubted && age >= MIN_AGE),
            None => true,
        };
        if !is_old {
            return Known::Fresh(metadata);
        }
        // Counts whether it succeeds or not, or is given up.
        found.tried_at = Some(Instant::now());
        found.is_doubted = false;
        Known::Old(metadata)
    }

    fn keep(&self, metadata: Metadata) -> Arc<Metadata> {
        let metadata = Arc::new(metadata);
        let before = {
            let mut found = self.lock();
            found.tried_at = Some(Instant::now());
            found.is_doubted = false;
            found.last_good.replace(metadata.clone())
        };
        if before.is_none_or(|before| before.methods != metadata.methods) {
            self.check_method(&metadata);
        }
        metadata
    }

    /// A server may support more than it says, so this is no error.
    fn check_method(&self, metadata: &Metadata) {
        // That one is a name of ours.
        if matches!(self.client_auth, ClientAuth::AssertionFile(_)) {
            return;
        }
        let method = self.client_auth.name();
        if !metadata.methods.iter().any(|supported| supported == method) {
            warn!(
                issuer = self.issuer.identifier,
                client_auth = method,
                supported = printable(&metadata.methods.join(" ")),
                hint = "set client_auth to a method that it supports",
                "the authorization server does not say that it supports this client authentication"
            );
        }
    }

    /// Asks at both places in their order: for the second only if the first has nothing.
    async fn read(&self, client: &HttpClient) -> Result<Metadata, TokenError> {
        let [oauth, openid] = &self.issuer.documents;
        let found = match self.read_from(oauth, client).await {
            Err(MetadataError::Nothing(_)) => self.read_from(openid, client).await,
            found => found,
        };
        found.map_err(TokenError::Metadata)
    }

    async fn read_from(&self, url: &Uri, client: &HttpClient) -> Result<Metadata, MetadataError> {
        let request = request(Method::GET, url, Body::empty());
        let answer = round_trip(client, request).await;
        let (head, document) = answer.map_err(MetadataError::unread)?;
        if head.status.is_client_error() && !is_transient(head.status) {
            return Err(MetadataError::Nothing(head.status));
        }
        if head.status != StatusCode::OK {
            return Err(MetadataError::unread(refusal(
                head.status,
                &head.headers,
                b"",
            )));
        }
        let document: Document = object(&document).ok_or(MetadataError::Nothing(StatusCode::OK))?;
        self.check(document)
    }

    fn check(&self, document: Document) -> Result<Metadata, MetadataError> {
        if document.issuer != self.issuer.identifier {
            let found = printable(&document.issuer);
            return Err(MetadataError::OtherIssuer { found });
        }
        let aliases = document
            .mtls_endpoint_aliases
            .filter(|_| self.client_auth.demands_client_certificate())
            .unwrap_or_default();
        let token_endpoint = aliases
            .token_endpoint
            .or(document.token_endpoint)
            .ok_or(MetadataError::NoTokenEndpoint)?;
        let revocation_endpoint = aliases.revocation_endpoint.or(document.revocation_endpoint);
        Ok(Metadata {
            token_endpoint: self.endpoint(&token_endpoint)?,
            revocation_endpoint: revocation_endpoint.and_then(|url| self.endpoint(&url).ok()),
            methods: document
                .token_endpoint_auth_methods_supported
                .unwrap_or_else(|| vec![DEFAULT_METHOD.to_owned()]),
        })
    }

    /// What the configuration asks of a URL that it names (RFC 6749 §3.2).
    fn endpoint(&self, url: &str) -> Result<Uri, MetadataError> {
        let fault = match (Url::parse(url), url.parse::<Uri>()) {
            (Ok(parsed), Ok(uri)) if uri.authority().is_some() => {
                let has_user = !parsed.username().is_empty() || parsed.password().is_some();
                let is_http = matches!(parsed.scheme(), "http" | "https");
                if !is_http || has_user || parsed.fragment().is_some() {
                    "is no plain https URL"
                } else if parsed.scheme() != "https" && !self.issuer.lets_http_pass(&parsed) {
                    "is not https"
                } else {
                    return Ok(uri);
                }
            }
            _ => "is not a URL",
        };
        Err(MetadataError::BadTokenEndpoint { fault })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Known {
    Fresh(Arc<Metadata>),
    /// To be read again, by the one who got this.
    Old(Arc<Metadata>),
    Nothing,
}

/// RFC 8414 §2. Members that are not used may be anything.
#[derive(Deserialize)]
struct Document {
    issuer: String,
    token_endpoint: Option<String>,
    revocation_endpoint: Option<String>,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    /// RFC 8705 §5.
    mtls_endpoint_aliases: Option<Aliases>,
}

#[derive(Default, Deserialize)]
struct Aliases {
    token_endpoint: Option<String>,
    revocation_endpoint: Option<String>,
}

/// No metadata, and why.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    #[error("{0}")]
    Unread(Box<TokenError>),
    /// Neither document; the status of the last.
    #[error("there is no such JSON document (status {})", .0.as_u16())]
    Nothing(StatusCode),
    #[error("it is of the issuer {found}")]
    OtherIssuer { found: String },
    #[error("it has no token_endpoint")]
    NoTokenEndpoint,
    #[error("its token_endpoint {fault}")]
    BadTokenEndpoint { fault: &'static str },
}

impl MetadataError {
    fn unread(error: TokenError) -> Self {
        Self::Unread(Box::new(error))
    }

    /// What a person can do about it, where that is known.
    pub(super) fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Unread(error) => match &**error {
                TokenError::Redirect { .. } => {
                    "redirects are not followed; set issuer to the final address, as the server itself spells it"
                }
                error => return error.hint(),
            },
            Self::Nothing(_) => {
                "is issuer the issuer identifier, and not the token endpoint? Without metadata, set token_url instead"
            }
            Self::OtherIssuer { .. } => {
                "issuer must be exactly what the server calls itself, to the last slash (RFC 8414 §3.3)"
            }
            Self::NoTokenEndpoint => "set token_url instead of issuer",
            Self::BadTokenEndpoint { .. } => {
                "the token endpoint would get the client secret; set token_url instead, or \
                 allow_insecure_token_url = true if you know better"
            }
        })
    }
}

#[cfg(test)]
#[path = "metadata_tests.rs"]
mod tests;
