//! THE PATH OF A REQUEST.
//!
//! [`forward`] is the straight line, top to bottom: [`guard`] (who may use the credential, is the target sane) →
//! [`route`] (where it goes, what it may become) → framing of the body → [`hop`] (what must not cross) → [`upstream`]
//! (target, `Via`) → the token → [`outgoing`] (`Authorization`, LAST; send) → [`replay`] if the token is refused → [`hop`]
//! for the way back → answer, or an [`upgrade`]. Nothing of the application's request is passed through: a new request is
//! built, and only end-to-end fields are copied into it. Whatever fails becomes a [`error::ProxyError`], and one place makes
//! of it an answer, a log line and a count.

mod access_log;
pub mod error;
pub mod forward;
pub mod guard;
pub mod hop;
pub mod outgoing;
mod problem;
pub mod replay;
pub mod route;
pub mod upgrade;
pub mod upstream;

pub use access_log::AccessLog;
pub use forward::Gateway;
pub use problem::connection_refusal;
