//! THE PATH OF A REQUEST.
//!
//! [`forward`] is the straight line, top to bottom: [`guard`] (who may use the credential, is the target sane) →
//! framing of the body → [`hop`] (what must not cross) → [`upstream`] (target, `Via`) → the token → `Authorization`,
//! LAST → send → [`hop`] for the way back → answer. Nothing of the application's request is passed through: a new
//! request is built, and only end-to-end fields are copied into it. Whatever fails becomes a [`error::ProxyError`],
//! and one place makes of it an answer, a log line and a count.

pub mod error;
pub mod forward;
pub mod guard;
pub mod hop;
pub mod upstream;

pub use forward::{AccessLog, Gateway};
