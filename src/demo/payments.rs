//! A payments API behind access tokens: the resource server of the demo. Its challenges are those of
//! django-oauth-toolkit with Django REST framework; a missing scope is named as RFC 6750 §3.1 has it.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::issued_tokens::IssuedTokens;
pub use super::server::ReceivedRequest;
use super::server::{Handler, Server, detail, json, locked, not_allowed};
use crate::net::body::Body;

/// Requests and payments remembered; the oldest are forgotten.
const MAX_REMEMBERED: usize = 256;
/// Payments on the one page that `GET /payments/` shows, the newest first.
const PAGE: usize = 3;

/// A payments API on a port of its own: `GET` and `POST /payments/`, `GET /payments/{id}`, `GET /admin/report`.
pub struct PaymentsApi {
    server: Server<Payments>,
    payments: Arc<Payments>,
}

impl PaymentsApi {
    /// Starts on a free port of 127.0.0.1, on the present runtime, and believes the tokens in `tokens`.
    ///
    /// # Errors
    /// When the system gives no port.
    pub fn start(tokens: IssuedTokens) -> io::Result<Self> {
        let payments = Arc::new(Payments::new(tokens));
        Ok(Self {
            server: Server::start(payments.clone())?,
            payments,
        })
    }

    /// Where it listens, or will again.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Ends. Until it starts again, connections are refused.
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

    /// Requests so far, whatever became of them.
    pub fn requests(&self) -> u64 {
        self.payments.requests.load(Ordering::Relaxed)
    }

    /// The most `Authorization` lines that any request carried.
    pub fn most_authorizations(&self) -> usize {
        self.payments.most_authorizations.load(Ordering::Relaxed)
    }

    /// The newest request, among the last 256, that `wanted` says yes to.
    pub fn received(
        &self,
        mut wanted: impl FnMut(&ReceivedRequest) -> bool,
    ) -> Option<ReceivedRequest> {
        let received = locked(&self.payments.received);
        received
            .iter()
            .rev()
            .find(|request| wanted(request))
            .cloned()
    }
}

#[derive(Clone, Debug, Serialize)]
struct Payment {
    id: u64,
    amount: u64,
    currency: String,
}

struct Payments {
    tokens: IssuedTokens,
    requests: AtomicU64,
    most_authorizations: AtomicUsize,
    received: Mutex<VecDeque<ReceivedRequest>>,
    payments: Mutex<VecDeque<Payment>>,
}

impl Handler for Payments {
    fn answer(&self, head: &Parts, body: &[u8]) -> Response<Body> {
        self.remember(head);
        let answer = match head.uri.path() {
            "/payments/" => self.payments(head, body),
            "/admin/report" => self.report(head),
            path => match path.strip_prefix("/payments/") {
                Some(id) => self.payment(head, id),
                None => Ok(detail(StatusCode::NOT_FOUND, "Not found.")),
            },
        };
        answer.unwrap_or_else(Denial::into_response)
    }
}

impl Payments {
    fn new(tokens: IssuedTokens) -> Self {
        let api = Self {
            tokens,
            requests: AtomicU64::new(0),
            most_authorizations: AtomicUsize::new(0),
            received: Mutex::default(),
            payments: Mutex::default(),
        };
        for (amount, currency) in [(1999, "EUR"), (450, "USD")] {
            api.create(amount, currency.to_owned());
        }
        api
    }

    fn remember(&self, head: &Parts) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let authorizations = head.headers.get_all(header::AUTHORIZATION).iter().count();
        self.most_authorizations
            .fetch_max(authorizations, Ordering::Relaxed);
        push(&self.received, ReceivedRequest::of(head));
    }

    fn payments(&self, head: &Parts, body: &[u8]) -> Result<Response<Body>, Denial> {
        if head.method == Method::POST {
            self.authorize(&head.headers, "write")?;
            return Ok(self.post(body));
        }
        self.authorize(&head.headers, "read")?;
        if !is_read(head) {
            return Ok(not_allowed("GET, HEAD, POST"));
        }
        let payments = locked(&self.payments);
        let newest: Vec<&Payment> = payments.iter().rev().take(PAGE).collect();
        let page = serde_json::json!({
            "count": payments.back().map_or(0, |newest| newest.id),
            "results": newest,
        });
        Ok(json(StatusCode::OK, &page))
    }

    fn payment(&self, head: &Parts, id: &str) -> Result<Response<Body>, Denial> {
        self.authorize(&head.headers, "read")?;
        if !is_read(head) {
            return Ok(not_allowed("GET, HEAD"));
        }
        let payments = locked(&self.payments);
        let payment = payments.iter().find(|payment| payment.id.to_string() == id);
        Ok(payment.map_or_else(
            || detail(StatusCode::NOT_FOUND, "Not found."),
            |payment| json(StatusCode::OK, payment),
        ))
    }

    fn report(&self, head: &Parts) -> Result<Response<Body>, Denial> {
        self.authorize(&head.headers, "admin")?;
        if !is_read(head) {
            return Ok(not_allowed("GET, HEAD"));
        }
        let payments = locked(&self.payments).back().map_or(0, |newest| newest.id);
        let report = serde_json::json!({
            "payments": payments,
            "requests": self.requests.load(Ordering::Relaxed),
        });
        Ok(json(StatusCode::OK, &report))
    }

    fn post(&self, body: &[u8]) -> Response<Body> {
        #[derive(Deserialize)]
        struct Order {
            /// In the smallest unit of the currency.
            amount: u64,
            currency: String,
        }
        let order: Order = match serde_json::from_slice(body) {
            Ok(order) => order,
            Err(error) => {
                return detail(
                    StatusCode::BAD_REQUEST,
                    &format!("JSON parse error - {error}"),
                );
            }
        };
        let payment = self.create(order.amount, order.currency);
        let mut response = json(StatusCode::CREATED, &payment);
        if let Ok(location) = HeaderValue::from_str(&format!("/payments/{}", payment.id)) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }

    fn create(&self, amount: u64, currency: String) -> Payment {
        let mut payments = locked(&self.payments);
        let payment = Payment {
            id: payments.back().map_or(0, |newest| newest.id) + 1,
            amount,
            currency,
        };
        if payments.len() >= MAX_REMEMBERED {
            payments.pop_front();
        }
        payments.push_back(payment.clone());
        payment
    }

    /// Lets a request pass that carries one good token with `scope`.
    fn authorize(&self, headers: &HeaderMap, scope: &'static str) -> Result<(), Denial> {
        let mut lines = headers.get_all(header::AUTHORIZATION).iter();
        let line = lines.next().and_then(|line| line.to_str().ok());
        let token = line
            .and_then(|line| line.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or(Denial::NoCredentials)?;
        let issued = self.tokens.find(token).ok_or(Denial::Invalid)?;
        if lines.next().is_some() {
            return Err(Denial::Invalid);
        }
        if Instant::now() >= issued.expires_at {
            return Err(Denial::Expired);
        }
        if issued.allows(scope) {
            Ok(())
        } else {
            Err(Denial::InsufficientScope(scope))
        }
    }
}

fn is_read(head: &Parts) -> bool {
    matches!(head.method, Method::GET | Method::HEAD)
}

fn push<T>(queue: &Mutex<VecDeque<T>>, item: T) {
    let mut queue = locked(queue);
    if queue.len() >= MAX_REMEMBERED {
        queue.pop_front();
    }
    queue.push_back(item);
}

/// Why a request is not served, with the challenge of RFC 6750 §3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Denial {
    /// None, so nothing is said of an error.
    NoCredentials,
    Invalid,
    Expired,
    InsufficientScope(&'static str),
}

impl Denial {
    fn into_response(self) -> Response<Body> {
        let invalid = |description: &str| {
            format!(
                "Bearer realm=\"api\",error=\"invalid_token\",error_description=\"{description}\""
            )
        };
        let challenge = match self {
            Self::NoCredentials => "Bearer realm=\"api\"".to_owned(),
            Self::Invalid => invalid("The access token is invalid."),
            Self::Expired => invalid("The access token has expired."),
            Self::InsufficientScope(scope) => {
                format!("Bearer realm=\"api\",error=\"insufficient_scope\",scope=\"{scope}\"")
            }
        };
        let mut response = match self {
            Self::NoCredentials | Self::Invalid | Self::Expired => detail(
                StatusCode::UNAUTHORIZED,
                "Authentication credentials were not provided.",
            ),
            Self::InsufficientScope(_) => detail(
                StatusCode::FORBIDDEN,
                "You do not have permission to perform this action.",
            ),
        };
        if let Ok(challenge) = HeaderValue::from_str(&challenge) {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn api() -> (Payments, IssuedTokens) {
        let tokens = IssuedTokens::default();
        (Payments::new(tokens.clone()), tokens)
    }

    fn request(method: &str, target: &str, token: Option<&str>) -> Parts {
        let mut request = http::Request::builder().method(method).uri(target);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        request.body(()).unwrap().into_parts().0
    }

    fn challenge(response: &Response<Body>) -> &str {
        response.headers()["www-authenticate"].to_str().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_must_be_there_known_and_alive() {
        let (api, tokens) = api();
        let get = |token: Option<&str>| api.answer(&request("GET", "/payments/", token), b"");
        let none = get(None);
        assert_eq!(
            (none.status().as_u16(), challenge(&none)),
            (401, "Bearer realm=\"api\"")
        );
        let unknown = get(Some("x"));
        assert_eq!(unknown.status(), 401);
        assert!(challenge(&unknown).contains("error=\"invalid_token\",error_description=\"The"));
        let issued = tokens.issue("shop", "read".into(), Duration::from_secs(5));
        assert_eq!(get(Some(&issued.token)).status(), 200);
        let mut twice = request("GET", "/payments/", Some(&issued.token));
        twice
            .headers
            .append(header::AUTHORIZATION, HeaderValue::from_static("Bearer x"));
        assert_eq!(api.answer(&twice, b"").status(), 401);
        assert_eq!(api.most_authorizations.load(Ordering::Relaxed), 2);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(challenge(&get(Some(&issued.token))).contains("The access token has expired."));
    }

    #[tokio::test]
    async fn a_scope_that_is_missing_is_named() {
        let (api, tokens) = api();
        let issued = tokens.issue("shop", "read".into(), Duration::from_secs(5));
        let answer =
            |method, target| api.answer(&request(method, target, Some(&issued.token)), b"");
        let denied = answer("POST", "/payments/");
        assert_eq!(denied.status(), 403);
        assert!(challenge(&denied).contains("error=\"insufficient_scope\",scope=\"write\""));
        assert_eq!(answer("GET", "/admin/report").status(), 403);
        assert_eq!(answer("GET", "/payments/1").status(), 200);
        assert_eq!(answer("GET", "/payments/99").status(), 404);
        assert_eq!(answer("GET", "/payments").status(), 404);
        assert_eq!(answer("DELETE", "/payments/").status(), 405);
    }

    #[tokio::test]
    async fn a_payment_is_created_and_the_request_remembered() {
        let (api, tokens) = api();
        let issued = tokens.issue("shop", "write admin".into(), Duration::from_secs(5));
        let post =
            |body: &[u8]| api.answer(&request("POST", "/payments/", Some(&issued.token)), body);
        let created = post(br#"{"amount": 1250, "currency": "EUR"}"#);
        assert_eq!(created.status(), 201);
        assert_eq!(created.headers()["location"], "/payments/3");
        assert_eq!(post(b"{}").status(), 400);
        let report = api.answer(&request("GET", "/admin/report", Some(&issued.token)), b"");
        assert_eq!(report.status(), 200);
        let received = locked(&api.received).front().cloned().unwrap();
        assert_eq!(received.request_line, "POST /payments/ HTTP/1.1");
        assert_eq!(received.bearer_token(), Some(issued.token.as_str()));
    }
}
