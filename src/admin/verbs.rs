//! What the admin port changes: by POST alone, for peers of this machine alone, and not for web pages of other origins.
//! GET would let anything that fetches URLs end the process; a page can send a POST anywhere, but not without its Origin.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::request::Parts;
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::info;

use super::log::{LogControl, LogLevel};
use super::text;
use crate::net::body::Body;
use crate::net::socket::{ListenAddress, Peer};
use crate::oauth::TokenHandle;
use crate::proxy::error::ProxyError;
use crate::proxy::guard::{Guard, GuardConfig};

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Quit,
    RefreshTokens,
    SetLogLevel,
}

impl Verb {
    /// The one of this path.
    pub(super) fn of(path: &str) -> Option<Self> {
        match path {
            "/quitquitquit" => Some(Self::Quit),
            "/token/refresh" => Some(Self::RefreshTokens),
            "/log-level" => Some(Self::SetLogLevel),
            _ => None,
        }
    }
}

/// Does what is asked for.
pub struct Verbs {
    guard: Guard,
    tokens: Arc<ArcSwap<Vec<TokenHandle>>>,
    quits: Option<mpsc::Sender<()>>,
    log: Option<LogControl>,
}

/// The longest body that is read: a level and its name.
const MAX_BODY_BYTES: usize = 256;
/// How long it may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

impl Verbs {
    /// On a port that listens at `listen`. `quits` is told of a wish to end; without it there can be none. `log` is where
    /// there is one to change.
    pub fn new(
        listen: &ListenAddress,
        tokens: Arc<ArcSwap<Vec<TokenHandle>>>,
        quits: Option<mpsc::Sender<()>>,
        log: Option<LogControl>,
    ) -> Self {
        let own = listen.tcp().map(|address| match address.ip() {
            std::net::IpAddr::V4(ip) => ip.to_string(),
            std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        });
        let config = GuardConfig {
            allowed_hosts: own.into_iter().collect(),
            ..GuardConfig::default()
        };
        Self {
            guard: Guard::new(config, Vec::new()),
            tokens,
            quits,
            log,
        }
    }

    /// Answers a POST.
    pub(super) async fn answer(
        &self,
        verb: Verb,
        head: &Parts,
        body: Incoming,
        peer: Peer,
    ) -> Response<Body> {
        if let Err(error) = self.guard.check(head, peer) {
            let status = match error {
                ProxyError::Forbidden(_) => StatusCode::FORBIDDEN,
                _ => StatusCode::BAD_REQUEST,
            };
            return text(status, format!("{error}\n"));
        }
        match verb {
            Verb::Quit => self.quit(peer),
            Verb::RefreshTokens => self.refresh_tokens(head.uri.query(), peer),
            Verb::SetLogLevel => self.set_log_level(head, body, peer).await,
        }
    }

    fn quit(&self, peer: Peer) -> Response<Body> {
        let Some(quits) = &self.quits else {
            let off = "quit is off; [admin] quit = true switches it on\n";
            return text(StatusCode::NOT_FOUND, off.to_owned());
        };
        // One that nobody has looked at yet stands for this one too, and so does a drain under way.
        let _ = quits.try_send(());
        info!(%peer, "asked to quit");
        text(StatusCode::ACCEPTED, "draining\n".to_owned())
    }

    /// All of them, or the one that the query names.
    fn refresh_tokens(&self, query: Option<&str>, peer: Peer) -> Response<Body> {
        let wanted = parameter(query.unwrap_or_default(), "token");
        let tokens = self.tokens.load_full();
        let is_wanted = |token: &&TokenHandle| match &wanted {
            Some(wanted) => token.name() == wanted,
            None => true,
        };
        let names: Vec<&str> = tokens
            .iter()
            .filter(is_wanted)
            .map(|token| {
                token.renew();
                token.name()
            })
            .collect();
        if names.is_empty() {
            let known: Vec<&str> = tokens.iter().map(TokenHandle::name).collect();
            let message = format!("there is no such token; there are {}\n", known.join(", "));
            return text(StatusCode::NOT_FOUND, message);
        }
        info!(%peer, tokens = names.join(", "), "asked to renew");
        let message = format!("renewing {}\n", names.join(", "));
        text(StatusCode::ACCEPTED, message)
    }

    async fn set_log_level(&self, head: &Parts, body: Incoming, peer: Peer) -> Response<Body> {
        let Some(log) = &self.log else {
            let none = "this process has no log of its own to change\n";
            return text(StatusCode::NOT_FOUND, none.to_owned());
        };
        let wanted = match parameter(head.uri.query().unwrap_or_default(), "level") {
            Some(level) => level,
            None => match read(body).await {
                Some(body) => parameter(body.trim(), "level").unwrap_or(body),
                None => String::new(),
            },
        };
        let level: LogLevel = match wanted.trim().parse() {
            Ok(level) => level,
            Err(levels) => {
                let present = log.level().map(|level| level.to_string());
                let message = format!(
                    "send level=LEVEL in the query or the body: {levels}; it is {} now\n",
                    present.as_deref().unwrap_or("off")
                );
                return text(StatusCode::BAD_REQUEST, message);
            }
        };
        if !log.set_level(level) {
            let ended = "the log has ended\n";
            return text(StatusCode::SERVICE_UNAVAILABLE, ended.to_owned());
        }
        // Told at a level that is seen whatever the new one is, but for the most quiet of all.
        tracing::warn!(%peer, %level, "log level changed");
        text(StatusCode::OK, format!("level {level}\n"))
    }
}

/// The value of `name` in a query or a form.
fn parameter(text: &str, name: &str) -> Option<String> {
    url::form_urlencoded::parse(text.as_bytes())
        .find(|(known, _)| known == name)
        .map(|(_, value)| value.into_owned())
}

async fn read(body: Incoming) -> Option<String> {
    let body = Limited::new(body, MAX_BODY_BYTES).collect();
    let body = timeout(BODY_TIMEOUT, body).await.ok()?.ok()?.to_bytes();
    String::from_utf8(body.into()).ok()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn is_allowed(listen: &str, peer: &str, host: &str) -> bool {
        let listen = ListenAddress::Tcp(listen.parse().unwrap());
        let verbs = Verbs::new(&listen, Arc::default(), None, None);
        let request = Request::post("/token/refresh").header("host", host);
        let (head, ()) = request.body(()).unwrap().into_parts();
        let peer = Peer::Tcp(peer.parse().unwrap());
        verbs.guard.check(&head, peer).is_ok()
    }

    /// D-11, D-12: wherever the port listens.
    #[test]
    fn only_peers_of_this_machine_change_anything() {
        assert!(is_allowed("0.0.0.0:9090", "127.0.0.1:5", "localhost:9090"));
        assert!(is_allowed(
            "127.0.0.2:9090",
            "127.0.0.1:5",
            "127.0.0.2:9090"
        ));
        assert!(is_allowed("[::]:9090", "[::1]:5", "[::1]:9090"));
        assert!(!is_allowed("0.0.0.0:9090", "192.0.2.7:5", "localhost:9090"));
        assert!(!is_allowed("[::]:9090", "[2001:db8::7]:5", "[::1]:9090"));
        assert!(!is_allowed(
            "0.0.0.0:9090",
            "127.0.0.1:5",
            "bearerd.example:9090"
        ));
    }
}
