//! An authorization server with one token endpoint and one grant, client credentials. What it answers was compared with
//! django-oauth-toolkit 3.4, down to the headers. It is stricter in one place, as RFC 6749 §5.2 asks: a request without
//! `grant_type`, or whose body is no form, is an `invalid_request`, not an `unsupported_grant_type`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use serde::Serialize;
use url::form_urlencoded;

use super::issued_tokens::{IssuedToken, IssuedTokens};
use super::server::{Handler, Server, detail, json, not_allowed};
use crate::net::body::Body;

/// The token endpoint. The slash at its end is part of the route.
const TOKEN_ENDPOINT: &str = "/o/token/";

/// A client that is registered (RFC 6749 §2).
#[derive(Clone, Debug)]
pub struct Client {
    pub client_id: String,
    pub client_secret: String,
    /// What it may ask for, separated by spaces; all of it is granted when it asks for nothing.
    pub scope: String,
}

/// An authorization server on a port of its own.
pub struct AuthorizationServer {
    server: Server<TokenEndpoint>,
    endpoint: Arc<TokenEndpoint>,
}

impl AuthorizationServer {
    /// Starts on a free port of 127.0.0.1, on the present runtime. Its tokens live for `expires_in`, in whole seconds.
    ///
    /// # Errors
    /// When the system gives no port.
    pub fn start(clients: Vec<Client>, expires_in: Duration) -> io::Result<Self> {
        let endpoint = Arc::new(TokenEndpoint {
            clients,
            expires_in: expires_in.as_secs(),
            requests: AtomicU64::new(0),
            tokens: IssuedTokens::default(),
        });
        Ok(Self {
            server: Server::start(endpoint.clone())?,
            endpoint,
        })
    }

    /// Where it listens, or will again.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// The URL of the token endpoint.
    pub fn token_url(&self) -> String {
        format!("http://{}{TOKEN_ENDPOINT}", self.address())
    }

    /// Ends. Until it starts again, connections are refused; tokens issued stay valid.
    ///
    /// # Errors
    /// When the system does not let us keep the port.
    pub async fn stop(&mut self) -> io::Result<()> {
        self.server.stop().await
    }

    /// Starts again on the same port, after a [`stop`](Self::stop).
    ///
    /// # Errors
    /// When the system does not let us listen.
    pub fn start_again(&mut self) -> io::Result<()> {
        self.server.start_again()
    }

    /// Requests to the token endpoint so far, whatever became of them.
    pub fn requests(&self) -> u64 {
        self.endpoint.requests.load(Ordering::Relaxed)
    }

    /// The tokens issued; what a resource server asks about a token.
    pub fn tokens(&self) -> IssuedTokens {
        self.endpoint.tokens.clone()
    }
}

struct TokenEndpoint {
    clients: Vec<Client>,
    expires_in: u64,
    requests: AtomicU64,
    tokens: IssuedTokens,
}

impl Handler for TokenEndpoint {
    fn answer(&self, head: &Parts, body: &[u8]) -> Response<Body> {
        if head.uri.path() != TOKEN_ENDPOINT {
            return detail(StatusCode::NOT_FOUND, "Not found.");
        }
        if head.method != Method::POST {
            return not_allowed("POST, OPTIONS");
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut response = match self.grant(head, body) {
            Ok(issued) => json(
                StatusCode::OK,
                &AccessTokenResponse::of(&issued, self.expires_in),
            ),
            Err(error) => error.into_response(),
        };
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
        response
    }
}

impl TokenEndpoint {
    fn grant(&self, head: &Parts, body: &[u8]) -> Result<IssuedToken, TokenError> {
        if head.uri.query().is_some() || !is_form(&head.headers) {
            return Err(TokenError::InvalidRequest);
        }
        let form = Form::parse(body);
        match form.get("grant_type") {
            None => return Err(TokenError::InvalidRequest),
            Some("client_credentials") => {}
            Some(_) => return Err(TokenError::UnsupportedGrantType),
        }
        let client = self
            .authenticate(&head.headers, &form)
            .ok_or(TokenError::InvalidClient)?;
        let scope = match form.get("scope") {
            None => client.scope.clone(),
            Some(asked) => granted(asked, &client.scope).ok_or(TokenError::InvalidScope)?,
        };
        let lifetime = Duration::from_secs(self.expires_in);
        Ok(self.tokens.issue(&client.client_id, scope, lifetime))
    }

    /// HTTP Basic, and where that names no client the body (RFC 6749 §2.3.1).
    fn authenticate(&self, headers: &HeaderMap, form: &Form) -> Option<&Client> {
        let registered = |client_id: &str, client_secret: &str| {
            self.clients.iter().find(|client| {
                client.client_id == client_id && client.client_secret == client_secret
            })
        };
        let basic = basic(headers).and_then(|(id, secret)| registered(&id, &secret));
        basic.or_else(|| registered(form.get("client_id")?, form.get("client_secret")?))
    }
}

/// What was asked, if it is something and all of it may be had.
fn granted(asked: &str, allowed: &str) -> Option<String> {
    let mut asked: Vec<&str> = asked.split(' ').filter(|scope| !scope.is_empty()).collect();
    asked.dedup();
    let all_allowed = asked
        .iter()
        .all(|scope| allowed.split(' ').any(|one| one == *scope));
    (!asked.is_empty() && all_allowed).then(|| asked.join(" "))
}

fn is_form(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|media_type| {
            media_type
                .trim()
                .eq_ignore_ascii_case("application/x-www-form-urlencoded")
        })
}

/// Id and secret of the Basic scheme, each form-urldecoded after base64 (RFC 6749 §2.3.1).
fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, pair) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = String::from_utf8(STANDARD.decode(pair.trim()).ok()?).ok()?;
    let (client_id, client_secret) = pair.split_once(':')?;
    Some((urldecoded(client_id)?, urldecoded(client_secret)?))
}

fn urldecoded(text: &str) -> Option<String> {
    // Read as the value of one pair: whoever did not encode may have an ampersand in it.
    let pair = format!("={}", text.replace('&', "%26"));
    let decoded = form_urlencoded::parse(pair.as_bytes()).next();
    decoded.map(|(_, value)| value.into_owned())
}

/// The parameters of a token request.
struct Form(Vec<(String, String)>);

impl Form {
    fn parse(body: &[u8]) -> Self {
        Self(form_urlencoded::parse(body).into_owned().collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// RFC 6749 §5.1.
#[derive(Serialize)]
struct AccessTokenResponse<'a> {
    access_token: &'a str,
    expires_in: u64,
    token_type: &'static str,
    scope: &'a str,
}

impl<'a> AccessTokenResponse<'a> {
    fn of(issued: &'a IssuedToken, expires_in: u64) -> Self {
        Self {
            access_token: &issued.token,
            expires_in,
            token_type: "Bearer",
            scope: &issued.scope,
        }
    }
}

/// RFC 6749 §5.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenError {
    InvalidRequest,
    InvalidClient,
    InvalidScope,
    UnsupportedGrantType,
}

impl TokenError {
    fn into_response(self) -> Response<Body> {
        let (status, code) = match self {
            Self::InvalidRequest => (StatusCode::BAD_REQUEST, "invalid_request"),
            Self::InvalidClient => (StatusCode::UNAUTHORIZED, "invalid_client"),
            Self::InvalidScope => (StatusCode::BAD_REQUEST, "invalid_scope"),
            Self::UnsupportedGrantType => (StatusCode::BAD_REQUEST, "unsupported_grant_type"),
        };
        let mut response = json(status, &serde_json::json!({ "error": code }));
        if self == Self::InvalidClient {
            response.headers_mut().insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer error=\"invalid_client\""),
            );
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> TokenEndpoint {
        let client = |client_id: &str, client_secret: &str, scope: &str| Client {
            client_id: client_id.into(),
            client_secret: client_secret.into(),
            scope: scope.into(),
        };
        TokenEndpoint {
            clients: vec![
                client("shop", "z/t+H:X%=&", "read write admin"),
                client("guest", "g", "read"),
            ],
            expires_in: 20,
            requests: AtomicU64::new(0),
            tokens: IssuedTokens::default(),
        }
    }

    fn head(target: &str, content_type: &str, authorization: Option<&str>) -> Parts {
        let mut request = http::Request::post(target).header(header::CONTENT_TYPE, content_type);
        if let Some(pair) = authorization {
            let value = format!("Basic {}", STANDARD.encode(pair));
            request = request.header(header::AUTHORIZATION, value);
        }
        request.body(()).unwrap().into_parts().0
    }

    const FORM: &str = "application/x-www-form-urlencoded";
    const ENCODED: &str = "shop:z%2Ft%2BH%3AX%25%3D%26";
    const GRANT: &str = "grant_type=client_credentials";

    fn granted_scope(authorization: Option<&str>, body: &str) -> Result<String, TokenError> {
        let head = head(TOKEN_ENDPOINT, FORM, authorization);
        let issued = endpoint().grant(&head, body.as_bytes())?;
        Ok(issued.scope)
    }

    #[test]
    fn a_client_is_known_by_basic_or_by_the_body() {
        assert_eq!(
            granted_scope(Some(ENCODED), GRANT).unwrap(),
            "read write admin"
        );
        assert_eq!(granted_scope(Some("guest:g"), GRANT).unwrap(), "read");
        let body = format!("{GRANT}&client_id=shop&client_secret=z/t%2BH%3AX%25%3D%26&scope=write");
        assert_eq!(granted_scope(None, &body).unwrap(), "write");
        let refused = Err(TokenError::InvalidClient);
        assert_eq!(granted_scope(Some("guest:no"), GRANT), refused);
        assert_eq!(granted_scope(None, GRANT), refused);
    }

    #[test]
    fn what_is_asked_must_be_allowed() {
        let scope = |scope: &str| granted_scope(Some("guest:g"), &format!("{GRANT}&scope={scope}"));
        assert_eq!(scope("read").unwrap(), "read");
        for refused in ["read+write", "other", ""] {
            assert_eq!(scope(refused), Err(TokenError::InvalidScope));
        }
    }

    #[test]
    fn a_request_that_is_none_is_refused() {
        let refused = |target, content_type, body: &str| {
            let head = head(target, content_type, Some("guest:g"));
            endpoint().grant(&head, body.as_bytes()).unwrap_err()
        };
        assert_eq!(
            refused(TOKEN_ENDPOINT, FORM, "scope=read"),
            TokenError::InvalidRequest
        );
        assert_eq!(
            refused("/o/token/?a=b", FORM, GRANT),
            TokenError::InvalidRequest
        );
        assert_eq!(
            refused(TOKEN_ENDPOINT, "application/json", "{}"),
            TokenError::InvalidRequest
        );
        let other = "grant_type=password";
        assert_eq!(
            refused(TOKEN_ENDPOINT, FORM, other),
            TokenError::UnsupportedGrantType
        );
    }

    #[test]
    fn tokens_are_fresh_and_remembered() {
        let endpoint = endpoint();
        let issue = || {
            let head = head(TOKEN_ENDPOINT, FORM, Some("guest:g"));
            endpoint.grant(&head, GRANT.as_bytes()).unwrap()
        };
        let (first, second) = (issue(), issue());
        assert_ne!(first.token, second.token);
        assert!(first.token.len() == 30 && first.token.bytes().all(|b| b.is_ascii_alphanumeric()));
        assert!(endpoint.tokens.find(&first.token).unwrap().allows("read"));
        assert_eq!(endpoint.tokens.count("guest"), 2);
    }

    #[test]
    fn the_slash_is_part_of_the_route_and_errors_have_their_status() {
        let answer = |target, authorization| {
            endpoint().answer(&head(target, FORM, authorization), GRANT.as_bytes())
        };
        assert_eq!(answer("/o/token", Some("guest:g")).status(), 404);
        assert_eq!(answer(TOKEN_ENDPOINT, Some("guest:g")).status(), 200);
        let refused = answer(TOKEN_ENDPOINT, None);
        assert_eq!(refused.status(), 401);
        assert_eq!(
            refused.headers()["www-authenticate"],
            "Bearer error=\"invalid_client\""
        );
        assert_eq!(refused.headers()["cache-control"], "no-store");
    }
}
