//! What holds whatever comes in: one function for each entrance, which takes any bytes and panics when a promise is
//! broken. Fuzz targets and `tests/properties.rs` are two ways to find such bytes.

mod configuration;
mod fields;
mod hop;
mod message;
mod path;
mod request_head;
mod retry_after;
mod sidecar;
mod token_response;

pub use configuration::configuration;
pub use hop::hop;
pub use path::path;
pub use request_head::request_head;
pub use retry_after::retry_after;
pub use token_response::token_response;
