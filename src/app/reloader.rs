//! Reads the configuration again when it is told to or a file has changed, and puts it to use if all of it is good.
//! Whatever goes wrong, what was there before serves on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use super::notifier::Notifier;
use super::plan::{Plan, Planner};
use super::serving::Serving;
use crate::config::{Config, Inputs};
use crate::metrics::{Metrics, ReloadOutcome, ReloadTrigger};
use crate::reload::{FileWatch, Fingerprint};

/// How long a new credential may take to bring its first token.
const FIRST_TOKEN_TIMEOUT: Duration = Duration::from_secs(15);
/// When a configuration that could not be put to use is tried again: what was wrong may not have been in any file.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// What makes the configuration be read again.
pub struct Reload {
    /// What it is made of.
    pub inputs: Inputs,
    /// SIGHUP. A second one before the first was looked at is the same wish.
    pub hangups: mpsc::Receiver<()>,
}

/// Reloads.
pub(super) struct Reloader {
    pub(super) planner: Planner,
    pub(super) serving: Arc<Serving>,
    pub(super) current: Arc<ArcSwap<Plan>>,
    pub(super) metrics: Arc<Metrics>,
    /// Told when files may have changed: those who use secrets read them.
    pub(super) files: watch::Sender<()>,
    pub(super) notifier: Arc<Notifier>,
    /// None for a sidecar that is not to change.
    pub(super) reload: Option<Reload>,
}

/// What stands in files.
#[derive(PartialEq)]
struct Look {
    config: Fingerprint,
    built_from: Fingerprint,
}

/// A configuration that was not put to use.
struct Failed {
    outcome: ReloadOutcome,
    reason: String,
}

impl Reloader {
    /// Runs until it is dropped.
    pub(super) async fn run(mut self) {
        let mut watch = FileWatch::new(self.watched().iter().map(PathBuf::as_path));
        let mut config_in_use = self.look().config;
        let mut failed: Option<(Look, String)> = None;
        let mut retry_at = None;
        loop {
            let trigger = tokio::select! {
                () = watch.changed() => ReloadTrigger::File,
                () = hung_up(&mut self.reload) => ReloadTrigger::Signal,
                () = until(retry_at) => ReloadTrigger::File,
            };
            self.files.send_replace(());
            let look = self.look();
            let is_in_use =
                look.config == config_in_use && look.built_from == self.current.load().contents;
            let has_failed = failed.as_ref().is_some_and(|(seen, _)| *seen == look);
            let is_due = retry_at.is_some_and(|at| at <= Instant::now());
            if trigger == ReloadTrigger::File && !is_due && (is_in_use || has_failed) {
                continue;
            }
            self.notifier.reloading();
            let put_to_use = self.put_to_use().await;
            self.notifier.ready(match &put_to_use {
                Ok(()) => "serving by a new configuration",
                Err(_) => "serving; the configuration read last is not in use, the log says why",
            });
            match put_to_use {
                Ok(()) => {
                    info!(trigger = trigger.as_str(), "configuration reloaded");
                    self.metrics.reloaded(trigger, ReloadOutcome::Success);
                    config_in_use = look.config;
                    (failed, retry_at) = (None, None);
                }
                Err(Failed { outcome, reason }) => {
                    // Once for each reason, however often it is tried.
                    if failed.as_ref().is_none_or(|(_, known)| *known != reason) {
                        error!(
                            trigger = trigger.as_str(),
                            reason, "configuration not reloaded, the one before serves on"
                        );
                    }
                    self.metrics.reloaded(trigger, outcome);
                    failed = Some((look, reason));
                    retry_at = Some(Instant::now() + RETRY_INTERVAL);
                }
            }
            watch.follow(self.watched().iter().map(PathBuf::as_path));
        }
    }

    async fn put_to_use(&self) -> Result<(), Failed> {
        let invalid = |reason: String| Failed {
            outcome: ReloadOutcome::Invalid,
            reason,
        };
        let before = self.current.load_full();
        let config = match &self.reload {
            Some(reload) => {
                Config::load(&reload.inputs).map_err(|error| invalid(error.to_string()))?
            }
            None => before.config.clone(),
        };
        let plan = self.planner.plan(config, Some(&before));
        let plan = plan.map_err(|error| invalid(error.to_string()))?;
        // Made before broken: a credential that is new in it brings a token first. Where nothing serves, nothing breaks.
        if before.serves().await {
            let tokens = plan.wait_for_tokens(FIRST_TOKEN_TIMEOUT).await;
            tokens.map_err(|reason| Failed {
                outcome: ReloadOutcome::NoToken,
                reason,
            })?;
        }
        for warning in &plan.config.warnings {
            warn!("{warning}");
        }
        for key in before.config.changed_for_restart(&plan.config) {
            warn!(key, "a change of this setting needs a restart");
        }
        self.serving.serve(&plan);
        self.current.store(Arc::new(plan));
        Ok(())
    }

    fn look(&self) -> Look {
        Look {
            config: Fingerprint::of(self.config_file().as_deref()),
            built_from: Fingerprint::of(self.current.load().built_from()),
        }
    }

    fn config_file(&self) -> Option<PathBuf> {
        self.reload.as_ref()?.inputs.file()
    }

    fn watched(&self) -> Vec<PathBuf> {
        let plan = self.current.load();
        let files = plan.files().map(Path::to_owned);
        files.chain(self.config_file()).collect()
    }
}

async fn hung_up(reload: &mut Option<Reload>) {
    let hangup = match reload {
        Some(reload) => reload.hangups.recv().await,
        None => None,
    };
    if hangup.is_none() {
        std::future::pending().await
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
