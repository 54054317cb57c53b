//! The connections of one worker to one origin. HTTP/1.1 connections wait here between two requests; of HTTP/2 there is
//! one for all.
//!
//! A request that finds none waits for the first that becomes free, or that an attempt to connect brings. Each has an
//! attempt of its own, unless one may do for all: where the server speaks HTTP/2, or nobody knows yet. An attempt is a task,
//! so that a request that goes away cancels none.

mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::header::UPGRADE;
use http::{Request, Response};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use super::body::Body;
use super::client::{Connection, Http1, Origin};
use super::connect::{ConnectError, Connector};
use super::download::{Download, Lease};
use super::send_error::SendError;
use state::{Age, HandOver, Idle, Reserved, State, Waiting};

/// How connections are kept between requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// A connection idle for this long is closed. Keep it below what the server waits.
    pub idle_timeout: Duration,
    /// Idle connections kept; 0 keeps none, and each request has a connection of its own.
    pub max_idle: usize,
}

/// Sends requests to one origin. Each worker thread has its own.
pub struct Pool {
    connector: Connector,
    /// For requests that HTTP/2 has no form for.
    http1_connector: Connector,
    origin: Origin,
    config: PoolConfig,
    state: Mutex<State>,
}

impl Pool {
    /// An empty one. Its connections run on the tokio runtime that sends the first request.
    pub fn new(connector: Connector, origin: Origin, config: PoolConfig) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                is_http1: !connector.versions().may_be_http2(origin.scheme()),
                ..State::default()
            }),
            http1_connector: connector.http1_only(),
            connector,
            origin,
            config,
        })
    }

    /// Sends `request`, whose URI is a path, and waits for the response head; the deadline is the caller's. One with
    /// `Upgrade` goes over HTTP/1.1. What could not be written because the connection had been closed meanwhile goes over
    /// another.
    ///
    /// # Errors
    /// When there is no response head. The request may have reached the server unless the error says otherwise.
    pub fn send(
        self: &Arc<Self>,
        mut request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Download>, SendError>> {
        // HTTP/2 has no form for it.
        let upgrades = request.headers().contains_key(UPGRADE);
        // An async fn would have room for its argument twice.
        async move {
            loop {
                let (mut connection, age) = self.connection(upgrades).await?;
                match connection.send(&self.origin, request).await {
                    Ok(response) => return Ok(response.map(|body| self.lease(connection, body))),
                    Err(unanswered) => match unanswered.unsent {
                        Some(unsent) if age == Age::Used => request = unsent,
                        _ => return Err(unanswered.error),
                    },
                }
            }
        }
    }

    fn lease(self: &Arc<Self>, connection: Connection, body: Download) -> Download {
        match connection {
            Connection::Http1(connection) if self.config.max_idle > 0 => {
                body.leased(Lease::new(connection, self.clone()))
            }
            _ => body,
        }
    }

    async fn connection(
        self: &Arc<Self>,
        must_be_http1: bool,
    ) -> Result<(Connection, Age), SendError> {
        if let Some(connection) = self.state().take(must_be_http1) {
            return Ok((connection, Age::Used));
        }
        if must_be_http1 || self.config.max_idle == 0 {
            // Boxed, so that the many requests that wait for none have no room for it.
            let connection = Box::pin(self.open(must_be_http1)).await;
            let connection = connection.map_err(|error| SendError::connect(Arc::new(error)))?;
            return Ok((connection, Age::New));
        }
        match self.wait().await {
            Ok(Ok(Reserved::Http2(connection))) => Ok((Connection::Http2(connection), Age::New)),
            Ok(Ok(Reserved::Http1(lease, age))) => {
                let connection = lease.take().ok_or_else(given_up)?;
                Ok((Connection::Http1(connection), age))
            }
            Ok(Err(error)) => Err(SendError::connect(error)),
            Err(_) => Err(given_up()),
        }
    }

    async fn open(&self, must_be_http1: bool) -> Result<Connection, ConnectError> {
        let connector = if must_be_http1 {
            &self.http1_connector
        } else {
            &self.connector
        };
        Connection::open(connector, &self.origin).await
    }

    fn wait(self: &Arc<Self>) -> oneshot::Receiver<HandOver> {
        let (hand_over, wait) = oneshot::channel();
        let mut state = self.state();
        state.count += 1;
        let number = state.count;
        state.waiting.push_back(Waiting {
            number,
            connects: false,
            hand_over,
        });
        self.connect(&mut state);
        wait
    }

    /// Begins an attempt for each who waits, or one for all.
    fn connect(self: &Arc<Self>, state: &mut State) {
        let unconnected = |waiting: &&mut Waiting| !waiting.connects;
        for waiting in state.waiting.iter_mut().filter(unconnected) {
            if !state.is_http1 && state.attempts > 0 {
                return;
            }
            state.attempts += 1;
            waiting.connects = true;
            tokio::spawn(self.clone().attempt(waiting.number, state.count));
        }
    }

    /// Connects for the request of that `number`, and for others that wait. A failure is told to none that came after the
    /// `last`: the attempt began before them.
    async fn attempt(self: Arc<Self>, number: u64, last: u64) {
        let result = self.open(false).await;
        let mut state = self.state();
        state.attempts -= 1;
        match result {
            Ok(Connection::Http2(connection)) => {
                state.is_http1 = false;
                state.share(connection);
                self.sweep(&mut state);
            }
            Ok(Connection::Http1(connection)) => {
                state.is_http1 = true;
                let lease = Lease::new(connection, self.clone());
                if let Some(unwanted) = state.hand_over(lease, Age::New, Some(number)) {
                    self.settle(unwanted);
                }
            }
            Err(error) => state.fail(&Arc::new(error), number, last),
        }
        self.connect(&mut state);
    }

    /// Takes a connection whose response has ended, or was given up.
    pub(super) fn put_back(self: &Arc<Self>, connection: Http1) {
        if connection.sender.is_ready() {
            self.keep(connection);
        } else if !connection.sender.is_closed() {
            self.settle(connection);
        }
    }

    /// Waits until a connection is ready for a request, or turns out not to be of use any more.
    fn settle(self: &Arc<Self>, mut connection: Http1) {
        let pool = self.clone();
        let settles = async move {
            let ready = timeout(pool.config.idle_timeout, connection.sender.ready());
            if matches!(ready.await, Ok(Ok(()))) {
                pool.keep(connection);
            }
        };
        tokio::spawn(settles);
    }

    /// Gives a connection that is ready to the first who waits for one, or keeps it.
    fn keep(self: &Arc<Self>, connection: Http1) {
        let mut state = self.state();
        let lease = Lease::new(connection, self.clone());
        if let Some(connection) = state.hand_over(lease, Age::Used, None)
            && state.idle.len() < self.config.max_idle
        {
            let since = Instant::now();
            state.idle.push_back(Idle { connection, since });
            self.sweep(&mut state);
        }
    }

    /// Sees to it that what is idle for too long is closed.
    fn sweep(self: &Arc<Self>, state: &mut State) {
        if state.is_swept {
            return;
        }
        state.is_swept = true;
        let (pool, idle_timeout) = (Arc::downgrade(self), self.config.idle_timeout);
        tokio::spawn(async move {
            let mut next = Instant::now() + idle_timeout;
            loop {
                sleep_until(next).await;
                let Some(pool) = pool.upgrade() else { return };
                next = pool.state().close_idle(idle_timeout);
            }
        });
    }

    /// Held for a few steps; each worker has its own.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The attempt ended without a word: the process does too.
fn given_up() -> SendError {
    let error = ConnectError::Tcp("the attempt to connect was given up".into());
    SendError::connect(Arc::new(error))
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
