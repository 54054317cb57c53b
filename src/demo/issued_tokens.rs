//! The tokens of an authorization server, as its resource servers see them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::server::locked;

/// Characters of a token, letters and digits.
const TOKEN_LENGTH: usize = 30;
/// Tokens remembered; the oldest are forgotten, which makes them invalid.
const MAX_TOKENS: usize = 10_000;

/// One token and what is known of it.
#[derive(Clone, Debug)]
pub struct IssuedToken {
    pub token: String,
    pub client_id: String,
    /// As granted, separated by spaces.
    pub scope: String,
    pub issued_at: Instant,
    pub expires_at: Instant,
}

impl IssuedToken {
    /// Whether `scope`, one word, is among those granted.
    pub fn allows(&self, scope: &str) -> bool {
        self.scope.split(' ').any(|granted| granted == scope)
    }
}

/// The tokens of one authorization server. Clones share them.
#[derive(Clone, Default)]
pub struct IssuedTokens(Arc<Mutex<VecDeque<IssuedToken>>>);

impl IssuedTokens {
    /// What is known of `token`, whether it has expired or not.
    pub fn find(&self, token: &str) -> Option<IssuedToken> {
        let tokens = locked(&self.0);
        tokens
            .iter()
            .rev()
            .find(|held| held.token == token)
            .cloned()
    }

    /// How many were issued to `client_id`.
    pub fn count(&self, client_id: &str) -> usize {
        let tokens = locked(&self.0);
        tokens
            .iter()
            .filter(|held| held.client_id == client_id)
            .count()
    }

    pub(super) fn issue(&self, client_id: &str, scope: String, lifetime: Duration) -> IssuedToken {
        let issued_at = Instant::now();
        let issued = IssuedToken {
            token: std::iter::repeat_with(fastrand::alphanumeric)
                .take(TOKEN_LENGTH)
                .collect(),
            client_id: client_id.to_owned(),
            scope,
            issued_at,
            expires_at: issued_at + lifetime,
        };
        let mut tokens = locked(&self.0);
        if tokens.len() >= MAX_TOKENS {
            tokens.pop_front();
        }
        tokens.push_back(issued.clone());
        issued
    }
}
