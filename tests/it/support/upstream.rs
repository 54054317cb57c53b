//! Upstreams that speak HTTP/1.1, with or without TLS, and answer with exactly the bytes they are told.

use std::io;
use std::ops::Deref;

use super::certificates::Authority;
use super::server::{Exchange, Request, Server};
use super::{eventually, wait_until};

/// `200 OK` with the body `ok`.
pub const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// An upstream.
pub struct Upstream {
    server: Server,
    tls: Option<Authority>,
}

impl Upstream {
    /// Runs `script` for each request.
    pub fn scripted(
        script: impl Fn(&mut Exchange<'_>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self {
            server: Server::start(None, script),
            tls: None,
        }
    }

    /// The same behind TLS, with a certificate of an authority of its own.
    pub fn scripted_tls(
        script: impl Fn(&mut Exchange<'_>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let authority = Authority::new();
        let config = authority.server("127.0.0.1", &["http/1.1"]);
        Self {
            server: Server::start(Some(config), script),
            tls: Some(authority),
        }
    }

    /// Answers every request with `answer`, when it has come whole.
    pub fn answering(answer: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self::scripted(move |exchange| {
            exchange.body();
            exchange.send(&answer)
        })
    }

    /// Answers every request with [`OK`].
    pub fn ok() -> Self {
        Self::answering(OK)
    }

    /// Sends `answer` and closes the connection.
    pub fn answering_once(answer: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self::scripted(move |exchange| {
            exchange.body();
            exchange.send(&answer)?;
            exchange.close()
        })
    }

    /// Refuses connections.
    pub fn down() -> Self {
        Self {
            server: Server::stopped(None, |_| Ok(())),
            tls: None,
        }
    }

    /// Refuses connections from now on, and closes those there are.
    pub fn stop(&mut self) {
        self.server.stop();
    }

    /// Accepts them again.
    pub fn restart(&mut self) {
        self.server.restart();
    }

    /// Its URL, without a path.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Who vouches for it.
    pub fn authority(&self) -> Option<&Authority> {
        self.tls.as_ref()
    }

    /// The one request there has been, once nothing more comes of it.
    pub fn request(&self) -> Request {
        eventually("the end of the one request", || {
            let mut requests = self.requests();
            assert_eq!(requests.len(), 1, "requests: {requests:#?}");
            requests.pop().filter(|request| request.is_over)
        })
    }

    /// Waits until `number` requests have begun.
    pub fn wait_for_requests(&self, number: usize) {
        wait_until("requests at the upstream", || {
            self.requests().len() >= number
        });
    }
}

impl Deref for Upstream {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}
