//! What the script tells the show: plain data, so that a terminal which stands still holds nothing up.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::application::Counts;
use super::issued_tokens::IssuedToken;

/// One thing to be seen.
pub(super) enum Scene {
    Opening(Opening),
    Exchange(Exchange),
    Invitation(Invitation),
    /// From now on the bar is to be seen.
    Traffic,
    /// One line of what happened.
    Event(Event),
    Summary(Summary),
    /// The last words, after the summary.
    Farewell(Event),
}

/// Who is there, and where.
pub(super) struct Opening {
    pub(super) proxy: SocketAddr,
    pub(super) api: SocketAddr,
    pub(super) authorization_server: SocketAddr,
    pub(super) expires_in: Duration,
    pub(super) fail_after: Duration,
    pub(super) notices: Vec<String>,
}

/// What to paste into another terminal while there is time for it.
pub(super) struct Invitation {
    pub(super) proxy: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) token_url: String,
    /// `id:secret` of a client for whoever wants to see the authorization server at work.
    pub(super) visitor: String,
}

/// One request, as it left the application and as it reached the API.
pub(super) struct Exchange {
    pub(super) title: &'static str,
    pub(super) sent: Message,
    pub(super) received: Message,
    pub(super) answer: String,
}

/// The head of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Message {
    pub(super) request_line: String,
    pub(super) header_lines: Vec<(String, String)>,
}

/// What happened, and when.
pub(super) struct Event {
    /// Since the beginning of the show.
    pub(super) at: Duration,
    pub(super) mood: Mood,
    pub(super) text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    Plain,
    Good,
    Bad,
}

/// How it went.
pub(super) struct Summary {
    pub(super) checks: Vec<Check>,
    pub(super) passed: bool,
    /// In one line.
    pub(super) verdict: String,
}

/// One thing the show had to prove.
#[derive(Clone)]
pub(super) struct Check {
    pub(super) passed: bool,
    pub(super) name: &'static str,
    pub(super) detail: String,
}

/// How things stand; published many times a second.
#[derive(Clone)]
pub(super) struct Snapshot {
    pub(super) started: Instant,
    pub(super) token: Option<IssuedToken>,
    pub(super) counts: Counts,
    pub(super) tokens: usize,
    pub(super) renewals: usize,
    pub(super) outage: Option<Outage>,
}

/// The authorization server is down.
#[derive(Clone, Copy)]
pub(super) struct Outage {
    pub(super) since: Instant,
    /// Requests and failures when it began.
    pub(super) requests: u64,
    pub(super) failed: u64,
}

impl Outage {
    /// Such as `down for 4.2 s; 84 requests served, 0 lost`.
    pub(super) fn account(&self, counts: &Counts) -> String {
        let lost = counts.failed - self.failed;
        let served = counts.requests - self.requests - lost;
        format!(
            "down for {:.1} s; {served} requests served, {lost} lost",
            self.since.elapsed().as_secs_f64()
        )
    }
}

/// Enough of a token to tell it from another.
pub(super) fn shortened(token: &str) -> String {
    let start: String = token.chars().take(6).collect();
    format!("{start}…")
}
