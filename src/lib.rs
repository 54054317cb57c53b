#![forbid(unsafe_code)]

pub mod admin;
pub mod app;
pub mod backoff;
pub mod cli;
pub mod config;
pub mod metrics;
pub mod net;
pub mod oauth;
pub mod proxy;
pub mod runtime;
pub mod secret;
pub mod telemetry;
