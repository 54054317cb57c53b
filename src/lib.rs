#![forbid(unsafe_code)]

pub mod backoff;
pub mod metrics;
pub mod net;
pub mod oauth;
pub mod proxy;
pub mod secret;
