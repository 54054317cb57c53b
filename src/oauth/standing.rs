//! How things stand with a token: what its refresher publishes after every attempt.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::token_error::TokenError;

/// How things stand after the last attempt.
#[derive(Clone, Debug, Default)]
pub enum Standing {
    /// There has been no attempt yet.
    #[default]
    New,
    /// The last attempt brought a token.
    Holding {
        /// How long the attempt took.
        took: Duration,
        /// When the next one is; none for a token that is only renewed on demand.
        next: Option<Instant>,
        /// Why the credentials that are configured now were refused, if the token came for those before them.
        refused: Option<Arc<TokenError>>,
    },
    /// The token was to be renewed, and nobody had used it: the next attempt is made when somebody wants one.
    Unused,
    /// The last attempts failed.
    Failing {
        /// Why the last one did.
        error: Arc<TokenError>,
        /// How many did, since the last success.
        failures: u32,
        /// When the next one is.
        retry_at: Instant,
    },
    /// There will be no further attempt: nobody holds a handle any more, or the process ends.
    Ended,
}

impl Standing {
    /// When the next attempt is, if the last one failed.
    pub fn retry_at(&self) -> Option<Instant> {
        match self {
            Self::Failing { retry_at, .. } => Some(*retry_at),
            Self::New | Self::Holding { .. } | Self::Unused | Self::Ended => None,
        }
    }

    /// Why the last attempt failed.
    pub fn error(&self) -> Option<&TokenError> {
        match self {
            Self::Failing { error, .. } => Some(error),
            Self::New | Self::Holding { .. } | Self::Unused | Self::Ended => None,
        }
    }

    /// When the next attempt is planned.
    pub fn next_attempt(&self) -> Option<Instant> {
        match self {
            Self::Holding { next, .. } => *next,
            Self::Failing { retry_at, .. } => Some(*retry_at),
            Self::New | Self::Unused | Self::Ended => None,
        }
    }
}
