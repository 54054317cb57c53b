//! `bearerd demo`: an authorization server, a payments API and bearerd in one process, and a show that proves what
//! bearerd promises. The two servers are of use to tests too.
//!
//! Three threads, so that none holds up another: the terminal on the one that calls [`run`], the servers and the
//! application on a second, bearerd with its workers on its own.

mod application;
pub mod authorization_server;
pub mod issued_tokens;
pub mod payments;
mod scene;
mod script;
mod server;
mod show;
mod side_by_side;
mod sidecar;
mod stage;
mod terminal;

use std::thread;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::runtime;

/// How the show is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// End by itself, when everything was shown.
    pub once: bool,
    /// How long tokens live, in whole seconds: 5 s to 600 s.
    pub expires_in: Duration,
    /// From the first renewal to the failure of the authorization server: 600 s at most.
    pub fail_after: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            once: false,
            expires_in: Duration::from_secs(20),
            fail_after: Duration::from_secs(10),
        }
    }
}

/// Shorter tokens leave no time to see a renewal, longer ones nobody waits for.
const MIN_EXPIRES_IN: Duration = Duration::from_secs(5);
const MAX_WAIT: Duration = Duration::from_secs(600);
/// Scenes that wait for a terminal; later ones are not shown.
const BUFFERED_SCENES: usize = 256;

/// Runs the show, and says whether everything held. What keeps it from beginning goes to the standard error output.
pub fn run(options: Options) -> bool {
    perform(options).unwrap_or_else(|message| {
        eprintln!("bearerd demo: {message}");
        false
    })
}

fn perform(options: Options) -> Result<bool, String> {
    let options = options.checked()?;
    let (scenes, scene_receiver) = mpsc::channel(BUFFERED_SCENES);
    let (snapshots, snapshot_receiver) = watch::channel(None);
    let cannot_start = |error: std::io::Error| format!("cannot start: {error}");
    let script = thread::Builder::new()
        .name("demo-script".to_owned())
        .spawn(move || runtime::control(script::perform(options, scenes, snapshots)))
        .map_err(cannot_start)?;
    runtime::control(show::watch(scene_receiver, snapshot_receiver)).map_err(cannot_start)?;
    match script.join() {
        Ok(result) => result.map_err(cannot_start)?,
        Err(_) => Err("a thread panicked".to_owned()),
    }
}

impl Options {
    fn checked(self) -> Result<Self, String> {
        let text = humantime::format_duration;
        if !(MIN_EXPIRES_IN..=MAX_WAIT).contains(&self.expires_in) {
            return Err(format!(
                "--expires-in {} is not between {} and {}",
                text(self.expires_in),
                text(MIN_EXPIRES_IN),
                text(MAX_WAIT)
            ));
        }
        if self.fail_after > MAX_WAIT {
            return Err(format!(
                "--fail-after {} is more than {}",
                text(self.fail_after),
                text(MAX_WAIT)
            ));
        }
        Ok(Self {
            // `expires_in` is a whole number on the wire.
            expires_in: Duration::from_secs(self.expires_in.as_secs()),
            ..self
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_shown_is_refused() {
        let checked = |expires_in, fail_after| {
            let options = Options {
                once: true,
                expires_in: Duration::from_millis(expires_in),
                fail_after: Duration::from_secs(fail_after),
            };
            options.checked()
        };
        assert!(
            checked(4_999, 0)
                .unwrap_err()
                .contains("--expires-in 4s 999ms is not between 5s and 10m")
        );
        assert!(checked(601_000, 0).is_err());
        assert!(checked(5_000, 601).is_err());
        assert_eq!(
            checked(5_900, 0).unwrap().expires_in,
            Duration::from_secs(5)
        );
    }
}
