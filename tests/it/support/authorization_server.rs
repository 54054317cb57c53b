//! An authorization server that answers as it is told, and counts and records what it is asked.

use std::io;
use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::certificates::Authority;
use super::server::{Exchange, Request, Script, Server};
use super::{PATIENCE, wait_until};

/// The client that the sidecar is, unless a test says otherwise.
pub const CLIENT_ID: &str = "shop";
pub const CLIENT_SECRET: &str = "s3cret";

/// What it does with a token request.
#[derive(Clone)]
enum Conduct {
    /// Answers so.
    Answer(Vec<u8>),
    /// Gives `token-1`, `token-2`, … of this lifetime, in seconds.
    Issue(f64),
    /// The same, to whoever has this secret.
    IssueTo(String, f64),
    /// Says nothing until its conduct changes.
    Hang,
    /// Whatever else.
    Script(Arc<Script>),
}

type Shared = Arc<(Mutex<Conduct>, Condvar)>;

/// The server.
pub struct AuthorizationServer {
    server: Server,
    tls: Option<Authority>,
    conduct: Shared,
}

impl AuthorizationServer {
    /// One that issues `token-1`, `token-2`, … of an hour.
    pub fn new() -> Self {
        Self::with(Conduct::Issue(3600.0))
    }

    /// One that issues them of `seconds`.
    pub fn issuing_for(seconds: f64) -> Self {
        Self::with(Conduct::Issue(seconds))
    }

    /// One that says nothing, until it is told to.
    pub fn hanging() -> Self {
        Self::with(Conduct::Hang)
    }

    /// One that does whatever `script` does.
    pub fn scripted(
        script: impl Fn(&mut Exchange<'_>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::with(Conduct::Script(Arc::new(script)))
    }

    /// The same for clients for whom `authority` vouches, as it vouches for the server.
    pub fn scripted_for_clients_of(
        authority: Authority,
        script: impl Fn(&mut Exchange<'_>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let auth = Self::scripted(script);
        auth.set_tls(authority.server_for(&authority, "127.0.0.1", &["http/1.1"]));
        Self {
            tls: Some(authority),
            ..auth
        }
    }

    /// One that answers with these bytes.
    pub fn answering(answer: impl AsRef<[u8]>) -> Self {
        Self::with(Conduct::Answer(answer.as_ref().to_vec()))
    }

    /// One behind TLS, with a certificate of an authority of its own, that issues `token-1`, `token-2`, … of an hour.
    pub fn tls() -> Self {
        let authority = Authority::new();
        let auth = Self::with(Conduct::Issue(3600.0));
        auth.set_tls(authority.server("127.0.0.1", &["http/1.1"]));
        Self {
            tls: Some(authority),
            ..auth
        }
    }

    fn with(conduct: Conduct) -> Self {
        let conduct: Shared = Arc::new((Mutex::new(conduct), Condvar::new()));
        let shared = conduct.clone();
        let server = Server::start(None, move |exchange| {
            exchange.body();
            answer(&shared, exchange)
        });
        Self {
            server,
            tls: None,
            conduct,
        }
    }

    fn conduct(&self, conduct: Conduct) {
        *self
            .conduct
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = conduct;
        self.conduct.1.notify_all();
    }

    /// From now on gives this token, for `seconds`.
    pub fn issues(&self, token: &str, seconds: f64) {
        self.conduct(Conduct::Answer(grant(token, seconds)));
    }

    /// From now on gives `token-1`, `token-2`, … for `seconds`, by the number of the request.
    pub fn issues_for(&self, seconds: f64) {
        self.conduct(Conduct::Issue(seconds));
    }

    /// From now on gives tokens of an hour to whoever has `secret`, and refuses others with `invalid_client`.
    pub fn issues_to(&self, secret: &str) {
        self.conduct(Conduct::IssueTo(secret.to_owned(), 3600.0));
    }

    /// From now on refuses with this error code.
    pub fn refuses(&self, error: &str) {
        self.answers(refusal(error));
    }

    /// From now on answers with these bytes.
    pub fn answers(&self, answer: impl AsRef<[u8]>) {
        self.conduct(Conduct::Answer(answer.as_ref().to_vec()));
    }

    /// Refuses connections from now on.
    pub fn stop(&mut self) {
        self.server.stop();
    }

    /// Accepts them again.
    pub fn restart(&mut self) {
        self.server.restart();
    }

    /// The token endpoint.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}/o/token/", self.address)
    }

    /// Who vouches for it.
    pub fn authority(&self) -> Option<&Authority> {
        self.tls.as_ref()
    }

    /// The one token request there has been.
    pub fn request(&self) -> Request {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "token requests: {requests:#?}");
        requests.remove(0)
    }

    /// Waits until `number` token requests have begun.
    pub fn wait_for_requests(&self, number: usize) {
        wait_until("token requests", || self.requests().len() >= number);
    }
}

impl Deref for AuthorizationServer {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

fn answer(shared: &Shared, exchange: &mut Exchange<'_>) -> io::Result<()> {
    let conduct = {
        let present = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (present, _) = shared
            .1
            .wait_timeout_while(present, PATIENCE, |conduct| {
                matches!(conduct, Conduct::Hang)
            })
            .unwrap_or_else(PoisonError::into_inner);
        present.clone()
    };
    let next_token = format!("token-{}", exchange.number + 1);
    match conduct {
        Conduct::Answer(answer) => exchange.send(answer),
        Conduct::Issue(seconds) => exchange.send(grant(&next_token, seconds)),
        Conduct::IssueTo(secret, seconds) => {
            let expected = format!("Basic {}", STANDARD.encode(format!("{CLIENT_ID}:{secret}")));
            if exchange.head.value("authorization") == Some(expected) {
                exchange.send(grant(&next_token, seconds))
            } else {
                exchange.send(refusal("invalid_client"))
            }
        }
        Conduct::Hang => exchange.close(),
        Conduct::Script(script) => script(exchange),
    }
}

/// A whole answer with this status and body.
pub fn json(status: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// A whole answer that grants `token`.
pub fn grant(token: &str, seconds: f64) -> Vec<u8> {
    json(
        "200 OK",
        &format!(r#"{{"access_token":"{token}","token_type":"Bearer","expires_in":{seconds}}}"#),
    )
}

fn refusal(error: &str) -> Vec<u8> {
    let status = if error == "invalid_client" {
        "401 Unauthorized"
    } else {
        "400 Bad Request"
    };
    json(status, &format!(r#"{{"error":"{error}"}}"#))
}
