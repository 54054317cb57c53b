//! A small server on loopback that can be stopped, and started again on its port: what both servers of the demo stand on.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use socket2::Socket;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::net::body::Body;
use crate::net::connection::Connections;
use crate::net::drain::{self, DrainTrigger, Phase};
use crate::net::listener::{self, Refusal};
use crate::net::socket;

/// The largest request body read.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// How long a request body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a stop waits for what is in flight.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// For connections above the limit.
const REFUSAL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// What answers requests: one at a time, whole, without waiting for anything.
pub(super) trait Handler: Send + Sync + 'static {
    fn answer(&self, head: &Parts, body: &[u8]) -> Response<Body>;
}

/// A listening server, or the place of one.
pub(super) struct Server<H> {
    handler: Arc<H>,
    address: SocketAddr,
    state: State,
}

enum State {
    Running {
        trigger: DrainTrigger,
        task: JoinHandle<()>,
    },
    /// The socket is bound and does not listen: connections are refused, and nobody else gets the port.
    Stopped(Socket),
}

impl<H: Handler> Server<H> {
    /// Starts on a free port of 127.0.0.1, on the present runtime.
    pub(super) fn start(handler: Arc<H>) -> io::Result<Self> {
        let socket = socket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let address = socket.local_addr()?;
        Ok(Self {
            state: serve(socket, handler.clone()),
            handler,
            address,
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Finishes what is in flight; from then on connections are refused.
    pub(super) async fn stop(&mut self) -> io::Result<()> {
        if let State::Running { trigger, task } = &mut self.state {
            trigger.advance(Phase::Stopping);
            if timeout(STOP_TIMEOUT, &mut *task).await.is_err() {
                trigger.advance(Phase::Cutting);
                let _ = timeout(STOP_TIMEOUT, task).await;
            }
            self.state = State::Stopped(socket::reserve(self.address)?);
        }
        Ok(())
    }

    /// Listens again on the same port.
    pub(super) fn start_again(&mut self) -> io::Result<()> {
        if let State::Stopped(socket) = &self.state {
            socket::listen(socket)?;
            let socket = socket.try_clone()?.into();
            self.state = serve(socket, self.handler.clone());
        }
        Ok(())
    }
}

fn serve<H: Handler>(socket: TcpListener, handler: Arc<H>) -> State {
    let connections = Connections {
        // Longer than the client keeps an idle connection, so that it never writes into one that ends.
        header_timeout: Duration::from_secs(75),
        unread_timeout: Duration::from_secs(75),
        max_header_bytes: 32 * 1024,
        http2: false,
        slots: Arc::new(Semaphore::new(256)),
        refusal: Refusal::new(Bytes::from_static(REFUSAL)),
        metrics: None,
    };
    let (trigger, watch) = drain::channel();
    let task = tokio::spawn(listener::serve(
        socket.into(),
        connections,
        watch,
        move |request, _| {
            let handler = handler.clone();
            async move { answer(&*handler, request).await }
        },
    ));
    State::Running { trigger, task }
}

async fn answer<H: Handler>(handler: &H, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, MAX_BODY_BYTES).collect();
    match timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => handler.answer(&head, &body.to_bytes()),
        Ok(Err(_)) => detail(StatusCode::PAYLOAD_TOO_LARGE, "The body is too large."),
        Err(_) => detail(StatusCode::REQUEST_TIMEOUT, "The body took too long."),
    }
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct ReceivedRequest {
    /// Such as `GET /payments/ HTTP/1.1`.
    pub request_line: String,
    /// Name and value of each header line, in the order of arrival but for lines of one name, which stand together.
    pub header_lines: Vec<(String, String)>,
}

impl ReceivedRequest {
    pub(super) fn of(head: &Parts) -> Self {
        let line = |(name, value): (&HeaderName, &HeaderValue)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.as_str().to_owned(), value)
        };
        Self {
            request_line: format!("{} {} {:?}", head.method, head.uri, head.version),
            header_lines: head.headers.iter().map(line).collect(),
        }
    }

    /// The values of the lines called `name`, which is in lower case.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let lines = self
            .header_lines
            .iter()
            .filter(move |(known, _)| known == name);
        lines.map(|(_, value)| value.as_str())
    }

    /// The access token it carried.
    pub fn bearer_token(&self) -> Option<&str> {
        let (scheme, token) = self.values("authorization").next()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    }
}

/// An answer with `content` as JSON.
pub(super) fn json(status: StatusCode, content: &impl Serialize) -> Response<Body> {
    let mut text = serde_json::to_vec(content).unwrap_or_default();
    text.push(b'\n');
    let mut response = Response::new(Body::full(text));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

/// An error as Django REST framework words it.
pub(super) fn detail(status: StatusCode, detail: &str) -> Response<Body> {
    json(status, &serde_json::json!({ "detail": detail }))
}

/// The 405 for a resource that knows the methods `allow`.
pub(super) fn not_allowed(allow: &'static str) -> Response<Body> {
    let mut response = detail(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed.");
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

/// What is in `mutex`, even after a panic elsewhere: each use leaves it whole.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Silent;

    impl Handler for Silent {
        fn answer(&self, _: &Parts, _: &[u8]) -> Response<Body> {
            Response::new(Body::empty())
        }
    }

    #[tokio::test]
    async fn a_stopped_server_refuses_connections_and_keeps_its_port() {
        let mut server = Server::start(Arc::new(Silent)).unwrap();
        let address = server.address();
        let connect = || tokio::net::TcpStream::connect(address);
        for _ in 0..3 {
            let open = connect().await.unwrap();
            server.stop().await.unwrap();
            drop(open);
            let refused = connect().await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
            server.start_again().unwrap();
        }
        connect().await.unwrap();
    }
}
