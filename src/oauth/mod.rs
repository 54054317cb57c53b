//! THE LIFE OF A TOKEN.
//!
//! A [`TokenHandle`] is what a request holds: it reads the [`token_cache`], and only when nothing usable is there it
//! waits for the attempt under way. A [`refresher`] is the one writer of its key: a task of its own, so that no caller
//! who goes away cancels a token request.
//!
//! ```text
//!            start                 success: insert, publish
//!   refresher ──▶ [ token request ] ───────────────────────▶ [ holding ] ──┐ at 70–80 % of the lifetime,
//!                    ▲        │ failure: the old token stays                │ or on demand when it is not usable,
//!                    │        ▼ until its own end                           │ or after a 401 of the upstream
//!                    └── [ backing off ] ◀──────────────────────────────────┘
//! ```
//!
//! A token request reads id and secret at that moment ([`token_endpoint`]), and proves who we are by one method
//! ([`client_auth`]).

pub mod access_token;
pub mod client_auth;
pub mod refresher;
pub mod token_cache;
pub mod token_endpoint;

pub use token_cache::{TokenHandle, Unavailable};
