//! bearerd from outside: what an application, an upstream, an authorization server and an operator see of it. Each test
//! runs its own sidecar between servers of its own, on ports of their own.
//!
//! Ids such as A-047 or E-15 in comments, here and in `src`, name one input or fault each; `tests/catalogue.md` says
//! which, and `tests/catalogue.rs` that each has its test. Two tests with the same id are about the same thing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "the threads of tests and of their servers may block"
)]
#![allow(unreachable_pub, reason = "in a test binary nothing is reachable")]

// The other side of everything.
mod support;

// Rows of the catalogue as tables: what reaches the upstream, and what comes back, byte for byte.
mod table;

// What reaches the upstream, as stories.
mod forwarding;

// WebSockets, where a route allows them.
mod upgrade;

// What becomes of a connection then.
mod tunnels;

// What comes back from it, as stories.
mod answers;

// Requests that the sidecar answers itself, because of what they are.
mod refusals;

// Where the sidecar listens: ports, files, sockets of a service manager.
mod listeners;

// Every limit of the proxy port has an answer.
mod limits;

// Bodies pass as they come, through a bounded amount of memory.
mod streaming;

// Connections: kept, used again, and given up at the right moment.
mod connections;

// What the application is told when the upstream fails, and that nothing is sent twice for it.
mod upstream_failures;

// Whom it believes over TLS, and how it proves who it is.
mod tls;

// Proxies on the way out.
mod outbound_proxy;

// The ledger: thousands of payments through an upstream that fails in every way, and none executed twice.
mod ledger;

// HTTP/2 upstreams that refuse, say goodbye, or are held up.
mod http2_faults;

// More of everything than there is room for.
mod exhaustion;

// What all of it costs in memory.
mod memory;

// How the sidecar proves who it is, and finds out where.
mod client_authentication;

// How tokens are asked for, kept, renewed and replaced.
mod tokens;

// What follows when the upstream does not accept one.
mod rejections;

// What changes while it runs: configuration, secrets, certificates.
mod reload;

// Several upstreams, credentials and scopes.
mod several;

// What happens when the authorization server gives none.
mod token_failures;

// What it gives up at its start.
mod confinement;

// What its service manager hears of it.
mod service_manager;

// How the real program stops.
mod drain;

// The commands of the real program: what they print, and what their exit codes say.
mod commands;

// `check --online`: what it finds, and what it says to do.
mod doctor;

// What operators and the orchestrator see: probes and metrics.
mod admin;

// The page for a person, and the document that it shows.
mod status;

// What operators change there.
mod verbs;

// The log: what it says of requests, and that no request waits for it.
mod logging;

// Spans, in a build that exports them.
#[cfg(feature = "otel")]
mod traces;

// The canary: no form of the secret or of a token is anywhere to be seen.
mod secrecy;

// HTTP/2 from the application: its requests and their answers.
mod http2;

// The same, frame by frame.
mod http2_frames;

// Its limits and deadlines, and what floods come to.
mod http2_limits;

// Many streams on one connection, to its end.
mod http2_streams;

// What comes after a body.
mod http2_trailers;
