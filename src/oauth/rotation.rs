//! Changed credentials, made before broken: new ones are tried while the old token serves, and if the server does not
//! know them, those that it knew are used on.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::client_auth::Credentials;
use super::token_endpoint::TokenEndpoint;
use super::token_error::TokenError;
use crate::metrics::SecretReload;
use crate::secret::SecretError;

/// Files are read again so often, whether or not anything told of a change.
const POLL_INTERVAL: Duration = Duration::from_secs(10);

/// The credentials of one key over time.
#[derive(Default)]
pub(super) struct Rotation {
    /// What there was at the last attempt, in order; nothing if it could not be read.
    present: Vec<Arc<Credentials>>,
    /// What the last token came for.
    proven: Option<Arc<Credentials>>,
    /// Whether `present` was changed, and the server has not said what it thinks of that.
    pending: bool,
    /// What it said, if it does not know them.
    refusal: Option<Arc<TokenError>>,
}

/// Credentials to try, one after the other while the server does not know them.
pub(super) struct Candidates {
    pub(super) first: Arc<Credentials>,
    pub(super) others: Vec<Arc<Credentials>>,
}

impl Rotation {
    /// What to try: what could be read just now, in its order, and at the end what worked before.
    ///
    /// # Errors
    /// When nothing can be read, and nothing worked before.
    pub(super) fn candidates(
        &mut self,
        read: Result<Vec<Credentials>, SecretError>,
    ) -> Result<Candidates, TokenError> {
        let before = std::mem::take(&mut self.present);
        let known = self.proven.clone();
        let known = known.filter(|known| !known.is_platform_assertion());
        let read = match read {
            Ok(read) => read,
            // Half a rotation: the rest will come.
            Err(error) => {
                let first = known.ok_or_else(|| error.clone())?;
                self.refusal = Some(Arc::new(error.into()));
                return Ok(Candidates {
                    first,
                    others: Vec::new(),
                });
            }
        };
        let is_there = |known: &Credentials| read.iter().any(|read| read.is_same_as(known));
        self.pending |= if before.is_empty() {
            known.as_deref().is_some_and(|known| !is_there(known))
        } else {
            !is_same(&before, &read)
        };
        let gone = known.filter(|known| !is_there(known));
        self.present = read.into_iter().map(Arc::new).collect();
        let mut others = self.present.clone();
        others.extend(gone);
        let first = others.remove(0);
        Ok(Candidates { first, others })
    }

    /// Whether changed credentials wait for a verdict.
    pub(super) fn is_pending(&self) -> bool {
        self.pending
    }

    /// A token came for `credentials`; `refusal` is what was said of those before them in the order. Returns what became of
    /// a change, if that is news.
    pub(super) fn accepted(
        &mut self,
        credentials: Arc<Credentials>,
        refusal: Option<TokenError>,
    ) -> Option<SecretReload> {
        let is_present = self
            .present
            .iter()
            .any(|present| Arc::ptr_eq(present, &credentials));
        let is_first = is_present && refusal.is_none();
        let were_refused = self.refusal.is_some();
        if let Some(refusal) = refusal {
            self.refusal = Some(Arc::new(refusal));
        } else if is_first {
            self.refusal = None;
        }
        self.proven = Some(credentials);
        let was_pending = std::mem::take(&mut self.pending);
        if is_first && were_refused {
            // The server was told of them later than we were.
            return Some(SecretReload::Accepted);
        }
        was_pending.then_some(if is_present {
            SecretReload::Accepted
        } else {
            SecretReload::Refused
        })
    }

    /// The server knows none of them. Returns what became of a change.
    pub(super) fn refused(&mut self) -> Option<SecretReload> {
        std::mem::take(&mut self.pending).then_some(SecretReload::Refused)
    }

    /// After a refusal of all: forgets those that worked before, and says whether they were others than those that are
    /// configured. Then the server may have been told of a change between two requests, and knows the new ones by now.
    pub(super) fn forget_proven(&mut self) -> bool {
        let proven = self.proven.take();
        proven.is_some_and(|proven| {
            !self
                .present
                .iter()
                .any(|present| present.is_same_as(&proven))
        })
    }

    /// Why the credentials that are configured first are not the ones in use.
    pub(super) fn refusal(&self) -> Option<&Arc<TokenError>> {
        self.refusal.as_ref()
    }

    /// What the last token came for.
    pub(super) fn proven(&self) -> Option<&Credentials> {
        self.proven.as_deref()
    }
}

fn is_same(before: &[Arc<Credentials>], now: &[Credentials]) -> bool {
    before.len() == now.len()
        && before
            .iter()
            .zip(now)
            .all(|(one, other)| one.is_same_as(other))
}

/// Resolves when what can be read is not what it was at the last attempt. Never if it is in no file.
pub(super) async fn credentials_changed(
    endpoint: &TokenEndpoint,
    rotation: &Rotation,
    files: &mut watch::Receiver<()>,
) {
    if !endpoint.reads_files() {
        return pending().await;
    }
    let mut told_of_changes = true;
    loop {
        let poll = sleep_until(Instant::now() + POLL_INTERVAL);
        tokio::select! {
            () = poll => {}
            told = files.changed(), if told_of_changes => told_of_changes = told.is_ok(),
        }
        // What cannot be read now is a change that is not complete.
        if let Ok(read) = endpoint.credentials()
            && !is_same(&rotation.present, &read)
            // The platform renews these by itself, long before they end: they are read when they are needed.
            && !(rotation.proven.is_some() && read.iter().all(|credentials| credentials.is_platform_assertion()))
        {
            return;
        }
    }
}
