//! Stopping without losing a request: one value that says how far it is, watched by everything that must end.
//!
//! The value is watched, not its changes, so a clone made late cannot miss it.

use tokio::sync::watch;

/// How far the process is on its way out. Only ever moves forward.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Phase {
    /// Normal life.
    Serving,
    /// Still serving, but every answer asks its connection to close.
    Draining,
    /// No new connections; what is in flight is finished.
    Stopping,
    /// The deadline has passed; what is left is cut.
    Cutting,
}

/// A trigger, and the first of its watches.
pub fn channel() -> (DrainTrigger, DrainWatch) {
    let (sender, receiver) = watch::channel(Phase::Serving);
    (DrainTrigger(sender), DrainWatch(receiver))
}

/// Moves the phase forward. Dropping it cuts everything.
pub struct DrainTrigger(watch::Sender<Phase>);

impl DrainTrigger {
    /// Moves on to `phase`; a phase already passed changes nothing.
    pub fn advance(&self, phase: Phase) {
        self.0.send_if_modified(|present| {
            let forward = phase > *present;
            *present = phase.max(*present);
            forward
        });
    }
}

/// Sees the phase.
#[derive(Clone)]
pub struct DrainWatch(watch::Receiver<Phase>);

impl DrainWatch {
    /// The phase now.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Resolves when `phase` or a later one is reached; at once if it has been.
    pub async fn reached(&mut self, phase: Phase) {
        // An error means that the trigger is gone, which is the end of everything too.
        let _ = self.0.wait_for(|present| *present >= phase).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_late_watch_sees_an_early_phase_and_nothing_goes_back() {
        let (trigger, watch) = channel();
        trigger.advance(Phase::Stopping);
        trigger.advance(Phase::Draining);
        let mut late = watch.clone();
        late.reached(Phase::Stopping).await;
        assert_eq!(watch.phase(), Phase::Stopping);
    }

    #[tokio::test]
    async fn a_dropped_trigger_ends_the_wait() {
        let (trigger, mut watch) = channel();
        drop(trigger);
        watch.reached(Phase::Cutting).await;
    }
}
