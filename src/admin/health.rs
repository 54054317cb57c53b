//! Three questions that are not the same: does the process answer (live), has it begun (started), will it serve (ready).
//! None of them asks the upstream; live asks nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use crate::net::drain::{DrainWatch, Phase};
use crate::oauth::TokenHandle;
use crate::oauth::standing::Standing;

/// What the probes ask about.
pub struct Health {
    tokens: Arc<ArcSwap<Vec<TokenHandle>>>,
    drain: DrainWatch,
    has_started: AtomicBool,
}

impl Health {
    /// The listeners are bound before there is a `Health`, so nothing of them can be pending. `tokens` are those in use.
    pub fn new(tokens: Arc<ArcSwap<Vec<TokenHandle>>>, drain: DrainWatch) -> Self {
        Self {
            tokens,
            drain,
            has_started: AtomicBool::new(false),
        }
    }

    /// Brings the gauges up to date that no event moves.
    pub async fn refresh_metrics(&self) {
        for token in self.tokens.load_full().iter() {
            token.refresh_metrics().await;
        }
    }

    /// Answering is the whole proof. A probe that asked the authorization server would restart every pod with it.
    pub fn live() -> Report {
        Report(vec![Check::passed("control thread answers")])
    }

    /// Whether the first token of every kind was obtained; never false again.
    pub async fn started(&self) -> Report {
        let mut checks = vec![Check::passed("listeners bound")];
        let has_started = self.has_started.load(Ordering::Relaxed);
        for token in self.tokens.load_full().iter() {
            checks.push(if has_started || token.has_come() {
                Check::passed(&format!("first token {}", token.name()))
            } else {
                token_check(token).await
            });
        }
        let report = Report(checks);
        if report.passes() {
            self.has_started.store(true, Ordering::Relaxed);
        }
        report
    }

    /// Whether requests will be served: a usable token for everything in use, and no drain.
    pub async fn ready(&self) -> Report {
        let mut checks = vec![match self.drain.phase() {
            Phase::Serving => Check::passed("serving"),
            Phase::Draining | Phase::Stopping | Phase::Cutting => {
                Check::failed("draining".to_owned())
            }
        }];
        for token in self.tokens.load_full().iter() {
            checks.push(token_check(token).await);
        }
        Report(checks)
    }
}

async fn token_check(token: &TokenHandle) -> Check {
    let name = token.name();
    let standing = token.standing();
    if let Some(held) = token.held().await {
        let left = held
            .expires_at()
            .monotonic
            .saturating_duration_since(Instant::now());
        let mut line = format!("token {name}: expires in {}", rounded(left));
        match &standing {
            Standing::Failing { error, .. } => {
                line += &format!(", renewal fails: {}", error.name())
            }
            Standing::Holding {
                refused: Some(error),
                ..
            } => {
                line += &format!(
                    ", for credentials before the present ones: {}",
                    error.name()
                )
            }
            _ => {}
        }
        if token.breaker_is_open() {
            line += ", refused by the upstream";
        }
        return Check::passed(&line);
    }
    Check::failed(match standing {
        Standing::New => format!("token {name}: first request under way"),
        Standing::Holding { .. } => format!("token {name}: being renewed"),
        Standing::Unused => {
            return Check::passed(&format!("token {name}: not in use, asked for on demand"));
        }
        Standing::Failing {
            error,
            failures,
            retry_at,
        } => {
            let next = rounded(retry_at.saturating_duration_since(Instant::now()));
            format!(
                "token {name}: {}, attempt {failures}, next in {next}",
                error.name()
            )
        }
        Standing::Ended => format!("token {name}: given up"),
    })
}

/// A duration as a person wants to read it: whole seconds.
pub fn rounded(time: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(time.as_secs_f64().round() as u64))
}

/// The answer to one probe.
pub struct Report(Vec<Check>);

struct Check {
    passes: bool,
    line: String,
}

impl Check {
    fn passed(line: &str) -> Self {
        Self {
            passes: true,
            line: line.to_owned(),
        }
    }

    fn failed(line: String) -> Self {
        Self {
            passes: false,
            line,
        }
    }
}

impl Report {
    /// Whether all checks pass.
    pub fn passes(&self) -> bool {
        self.0.iter().all(|check| check.passes)
    }

    /// `ok`, or the checks that fail; with `verbose` all of them.
    pub fn text(&self, name: &str, verbose: bool) -> String {
        let passes = self.passes();
        if passes && !verbose {
            return "ok\n".to_owned();
        }
        let mut text = String::new();
        for check in self.0.iter().filter(|check| verbose || !check.passes) {
            let mark = if check.passes { '+' } else { '-' };
            text.push_str(&format!("[{mark}] {}\n", check.line));
        }
        text.push_str(&format!(
            "{name} {}\n",
            if passes { "ok" } else { "failed" }
        ));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_what_fails_and_on_request_all() {
        let report = Report(vec![
            Check::passed("serving"),
            Check::failed("token payments: invalid_client, attempt 3, next in 4s".to_owned()),
        ]);
        assert!(!report.passes());
        assert_eq!(
            report.text("readyz", false),
            "[-] token payments: invalid_client, attempt 3, next in 4s\nreadyz failed\n"
        );
        assert!(
            report
                .text("readyz", true)
                .starts_with("[+] serving\n[-] token")
        );
        assert_eq!(Health::live().text("livez", false), "ok\n");
    }
}
