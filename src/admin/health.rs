//! Three questions that are not the same: does the process answer (live), has it begun (started), will it serve (ready).
//! None of them asks the upstream; live asks nobody.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::net::drain::{DrainWatch, Phase};
use crate::oauth::TokenHandle;
use crate::oauth::refresher::Standing;

/// What the probes ask about.
pub struct Health {
    tokens: TokenHandle,
    drain: DrainWatch,
    had_token: AtomicBool,
}

impl Health {
    /// The listeners are bound before there is a `Health`, so nothing of them can be pending.
    pub fn new(tokens: TokenHandle, drain: DrainWatch) -> Self {
        Self {
            tokens,
            drain,
            had_token: AtomicBool::new(false),
        }
    }

    /// The tokens asked about.
    pub fn tokens(&self) -> &TokenHandle {
        &self.tokens
    }

    /// Answering is the whole proof. A probe that asked the authorization server would restart every pod with it.
    pub fn live() -> Report {
        Report(vec![Check::passed("control thread answers")])
    }

    /// Whether the first token was obtained; never false again.
    pub async fn started(&self) -> Report {
        let token = self.token_check().await;
        if token.passes {
            self.had_token.store(true, Ordering::Relaxed);
        }
        let token = if self.had_token.load(Ordering::Relaxed) {
            Check::passed(&format!("first token {}", self.tokens.name()))
        } else {
            token
        };
        Report(vec![Check::passed("listeners bound"), token])
    }

    /// Whether requests will be served: a usable token, and no drain.
    pub async fn ready(&self) -> Report {
        let serving = match self.drain.phase() {
            Phase::Serving => Check::passed("serving"),
            Phase::Draining | Phase::Stopping | Phase::Cutting => {
                Check::failed("draining".to_owned())
            }
        };
        Report(vec![serving, self.token_check().await])
    }

    async fn token_check(&self) -> Check {
        let name = self.tokens.name();
        if let Some(token) = self.tokens.held().await {
            let left = token
                .expires_at()
                .monotonic
                .saturating_duration_since(Instant::now());
            return Check::passed(&format!("token {name}: expires in {}", rounded(left)));
        }
        Check::failed(match self.tokens.standing() {
            Standing::New => format!("token {name}: first request under way"),
            Standing::Holding { .. } => format!("token {name}: being renewed"),
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
        })
    }
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
