//! The wire: sockets in and out, TLS, bodies in motion, and the drain that ends them. Knows nothing of OAuth or of who
//! may send what.

pub mod body;
pub mod channel;
pub mod client;
pub mod connect;
pub mod connection;
pub mod download;
pub mod drain;
mod http2;
pub mod listener;
pub mod outbound_proxy;
pub mod pool;
pub mod progress;
mod resend;
mod resolve;
pub mod send_error;
pub mod socket;
mod stream;
pub mod tls;
pub mod tunnel;
pub mod upload;
mod uptake;
