//! The end, in order: requests first, then tokens.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Stop;
use super::plan::Plan;
use crate::net::drain::{DrainTrigger, Phase};

/// How long the workers have to go after everything was cut.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);

/// Ends the refreshers, all at once: some revoke what they hold.
pub(super) async fn end_tokens(plan: &Plan) {
    let mut ends = JoinSet::new();
    for handle in plan.handles() {
        ends.spawn(async move { handle.end().await });
    }
    ends.join_all().await;
}

/// Ends in order, and returns how many requests were cut.
pub(super) async fn drain<T: 'static>(
    trigger: &DrainTrigger,
    workers: &mut JoinSet<T>,
    stops: &mut mpsc::Receiver<Stop>,
    delay: Duration,
    deadline: Instant,
    in_flight: impl Fn() -> usize,
) -> usize {
    let all_ended = async |workers: &mut JoinSet<T>| while workers.join_next().await.is_some() {};
    trigger.advance(Phase::Draining);
    let second = tokio::select! {
        () = sleep(delay) => false,
        Some(_) = stops.recv() => true,
    };
    trigger.advance(Phase::Stopping);
    if !second {
        tokio::select! {
            () = all_ended(workers) => return 0,
            () = sleep_until(deadline) => {}
            Some(_) = stops.recv() => {}
        }
    }
    let cut = in_flight();
    trigger.advance(Phase::Cutting);
    let _ = timeout(CUT_TIMEOUT, all_ended(workers)).await;
    cut
}
