//! One attempt to get a token: a token request for each of the credentials, until the server knows one of them.

use tokio::time::Instant;
use tracing::info;

use super::Refresher;
use crate::metrics::{FetchOutcome, SecretReload, Trigger};
use crate::oauth::access_token::Grant;
use crate::oauth::client_auth::Credentials;
use crate::oauth::token_error::TokenError;

impl Refresher {
    /// Asks with the credentials there are now, and while the server does not know them, with the next ones in their order,
    /// at last with those that it knew before.
    pub(super) async fn attempt(&mut self, trigger: Trigger) -> Result<Grant, TokenError> {
        let read = self.endpoint.credentials();
        let is_unreadable = read.is_err();
        let candidates = self.rotation.candidates(read)?;
        if is_unreadable {
            self.tell_rotation(Some(SecretReload::Unreadable));
        }
        if self.rotation.is_pending() {
            self.failures.forget_backoff();
        }
        let mut credentials = candidates.first;
        let mut others = candidates.others.into_iter();
        // What is said of the first, which is the one that is configured to be preferred.
        let mut refusal = None;
        loop {
            let error = match self.fetch(&credentials, trigger).await {
                Ok(grant) => {
                    let outcome = self.rotation.accepted(credentials, refusal);
                    self.tell_rotation(outcome);
                    return Ok(grant);
                }
                Err(error) if error.refuses_credentials() => refusal.take().unwrap_or(error),
                Err(error) => return Err(error),
            };
            let Some(next) = others.next() else {
                let outcome = self.rotation.refused();
                self.tell_rotation(outcome);
                return Err(error);
            };
            credentials = next;
            refusal = Some(error);
        }
    }

    async fn fetch(
        &self,
        credentials: &Credentials,
        trigger: Trigger,
    ) -> Result<Grant, TokenError> {
        let started = Instant::now();
        let mut span = self.tracer.token_request(&self.key.label, trigger.as_str());
        let result = self.endpoint.fetch(credentials).await;
        let outcome = match &result {
            Ok(_) => FetchOutcome::Success,
            Err(error) => error.outcome(),
        };
        span.outcome(outcome.as_str(), result.is_err());
        self.exchange
            .metrics
            .requested(trigger, outcome, started.elapsed());
        result
    }

    fn tell_rotation(&self, outcome: Option<SecretReload>) {
        if let Some(outcome) = outcome {
            self.exchange.metrics.secret_reloaded(outcome);
            info!(
                token = self.key.label,
                outcome = outcome.as_str(),
                error = self.rotation.refusal().map(tracing::field::display),
                "client credentials changed"
            );
        }
    }
}
