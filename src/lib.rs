//! bearerd: a reverse proxy that runs next to an application and does OAuth 2.0 for it.
//!
//! ```text
//!   application ──HTTP──▶ bearerd ──HTTP(S), Authorization: Bearer …──▶ payments API (the upstream)
//!                            │
//!                            └──client credentials──▶ authorization server (the token endpoint)
//! ```
//!
//! This page is the map: the floors, the life of a request, the life of a token, and what always holds. To learn the
//! code, read in this order: [`proxy::forward`], then [`oauth`] with [`oauth::token_cache`] and [`oauth::refresher`],
//! then [`app`].
//!
//! # Floors
//!
//! A file uses its own folder and lower floors, never a neighbour; `tests/tidy.rs` checks it.
//!
//! | floor | parts | what they do |
//! |---|---|---|
//! | 5 | `main` `cli` `app` `runtime` `telemetry` `demo` | commands; build, run and drain the parts; threads; log; the show |
//! | 4 | `config` `reload` `admin` | file < environment < flags; files that change; the window for operators: health, metrics, status, and what they may change |
//! | 3 | `proxy` | **the path of a request** |
//! | 2 | `oauth` | **the life of a token**; knows nothing of requests |
//! | 1 | `net` | **the wire**: listener, client, TLS, bodies, drain; knows nothing of OAuth |
//! | 0 | `secret` `backoff` `metrics` `trace` | what everything stands on |
//!
//! # The life of a request
//!
//! [`net::listener`] accepts, under a limit of connections and a deadline for the head. [`proxy::Gateway::handle`]
//! answers, whatever happens; inside it `forward` is one straight line: [`proxy::guard`] (who may use the credential) →
//! [`proxy::route`] (where it goes, with which token) → framing of the body → [`proxy::hop`] (what must not cross) →
//! [`proxy::upstream`] (target, `Via`) → the token, of [`oauth::TokenHandle`], normally without a wait →
//! [`proxy::outgoing`] (`Authorization`, last; [`net::pool`]) → [`proxy::replay`], if the upstream refuses the token →
//! [`proxy::hop`] back. Bodies stream both ways ([`net::body`]). [`net::connection`] speaks HTTP/1.1, HTTP/2 where that is
//! switched on, and after a [`proxy::upgrade`] passes bytes on ([`net::tunnel`]). Every failure is a
//! [`proxy::error::ProxyError`], and one place makes of it a problem document, a log line and a count.
//!
//! # The life of a token
//!
//! One [`oauth::refresher`] for each key is its one writer: it asks the [`oauth::token_endpoint`], which reads the secret
//! at that moment, inserts the token into the [`oauth::token_cache`], sleeps until 70 to 80 % of its lifetime, and asks
//! again; after a failure it backs off, and the old token serves to its own end. Requests only read. One that finds
//! nothing usable waits, within bounds, for the attempt under way; when it goes away, nothing is cancelled. A token that
//! the upstream refuses is renewed once for all who say so; a secret that has changed is tried while the old token serves.
//!
//! # The life of a configuration
//!
//! [`config`] reads and checks it, [`app`] makes a plan of it and serves by that. [`reload`] sees when a file has changed;
//! then, and at SIGHUP, it is read again, and if all of it is good and what is new in it has brought a token, the new plan
//! takes over between two requests. What is the same in both, connections and tokens, goes on.
//!
//! # Threads
//!
//! One control thread (refreshers, admin port, signals) and N workers, each a single-threaded tokio runtime with its own
//! connection pool, all accepting on the same sockets ([`runtime`]). What workers share is immutable, atomic, or the
//! token cache.
//!
//! # What always holds
//!
//! 1. A request reaches the upstream with exactly one `Authorization`, ours, or not at all; never with a token that is
//!    expired by the monotonic or by the wall clock.
//! 2. What may have reached the upstream is never sent again. Only what was never written is, what an HTTP/2 server says
//!    it has not looked at, and once what a 401 refused for its token, where that cannot pay twice.
//! 3. Secrets and tokens are in no log line, metric, error, `Debug` text or command line; they go to the configured
//!    hosts and to no other: redirects are not followed, proxies of the environment are not read.
//! 4. A body that broke off never looks complete, in either direction.
//! 5. Every await on the network has a deadline, every queue and buffer a bound. No lock is held across an await.
//! 6. A failure keeps the last good state: the old token until its end, the old secret, the old configuration.
//! 7. Our answers are unmistakable: `application/problem+json` with `Proxy-Status`; the upstream's pass untouched.
//!
//! Deliberately absent: middleware layers, traits with one implementation, global state, `unsafe`. There is one feature
//! flag, `otel`, and [`trace`] hides it from the path of a request and the life of a token.

#![forbid(unsafe_code)]

// In reading order.
pub mod proxy;

pub mod oauth;

pub mod net;

pub mod app;

pub mod runtime;

pub mod config;

pub mod reload;

pub mod admin;

pub mod cli;

pub mod demo;

pub mod telemetry;

pub mod secret;

pub mod backoff;

pub mod metrics;

pub mod trace;
