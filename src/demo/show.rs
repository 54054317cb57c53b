//! What a person sees.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::scene::{
    Event, Exchange, Invitation, Mood, Opening, Scene, Snapshot, Summary, shortened,
};
use super::side_by_side::{LEFT, RIGHT, rows};
use super::terminal::{Paint, Terminal, cut, fit};

/// How often the bar is drawn in place, and how often a line is printed where that cannot be.
const REDRAW: Duration = Duration::from_millis(250);
const REPRINT: Duration = Duration::from_secs(2);
/// Columns of everything.
const WIDTH: usize = 79;
/// The share of its life at which bearerd renews a token.
const RENEWAL: std::ops::Range<f64> = 0.7..0.8;

/// Shows every scene until there are no more, or nobody looks any more.
pub(super) async fn watch(
    mut scenes: mpsc::Receiver<Scene>,
    snapshots: watch::Receiver<Option<Snapshot>>,
) {
    let mut show = Show {
        terminal: Terminal::new(),
        has_traffic: false,
    };
    let mut ticks = interval(if show.terminal.is_interactive {
        REDRAW
    } else {
        REPRINT
    });
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !show.terminal.is_gone {
        tokio::select! {
            biased;
            scene = scenes.recv() => match scene {
                Some(scene) => show.scene(scene),
                None => return,
            },
            _ = ticks.tick(), if show.has_traffic => {
                let snapshot = snapshots.borrow().clone();
                if let Some(snapshot) = snapshot {
                    show.traffic(&snapshot);
                }
            }
        }
    }
}

struct Show {
    terminal: Terminal,
    has_traffic: bool,
}

impl Show {
    fn scene(&mut self, scene: Scene) {
        match scene {
            Scene::Opening(opening) => self.opening(&opening),
            Scene::Exchange(exchange) => self.exchange(&exchange),
            Scene::Invitation(invitation) => self.invitation(&invitation),
            Scene::Traffic => {
                self.heading(
                    "20 requests a second; ▒ is where the token is renewed, before its end",
                );
                self.has_traffic = true;
            }
            Scene::Event(event) => self.event(&event),
            Scene::Summary(summary) => self.summary(&summary),
            Scene::Farewell(event) => {
                self.terminal.block(Vec::new());
                self.has_traffic = false;
                self.event(&event);
            }
        }
    }

    fn heading(&mut self, text: &str) {
        let text = self.terminal.paint(Paint::Title, text);
        self.terminal.line("");
        self.terminal.line(&text);
    }

    fn opening(&mut self, opening: &Opening) {
        self.heading("bearerd: OAuth 2.0 for an application that knows nothing of it");
        let proxy = opening.proxy.to_string();
        let picture = [
            String::new(),
            "  application ──────────▶ bearerd ──────────────────▶ payments API".to_owned(),
            format!(
                "              plain HTTP  {proxy:<16}with token  {}",
                opening.api
            ),
            format!("{:29}│", ""),
            format!("{:29}└─ client credentials ─▶ authorization server", ""),
            format!("{:54}{}", "", opening.authorization_server),
            String::new(),
        ];
        for line in picture {
            self.terminal.line(&line);
        }
        let plan = format!(
            "  Tokens live {} s. The authorization server fails {} s after the first renewal.",
            opening.expires_in.as_secs(),
            opening.fail_after.as_secs()
        );
        let plan = self.terminal.paint(Paint::Faint, &plan);
        self.terminal.line(&plan);
        for notice in &opening.notices {
            let notice = self
                .terminal
                .paint(Paint::Warning, &format!("  note: {notice}"));
            self.terminal.line(&notice);
        }
    }

    /// No comments behind the lines: not every shell takes them when they are typed.
    fn invitation(&mut self, invitation: &Invitation) {
        self.heading("Paste into another terminal");
        let (proxy, admin) = (invitation.proxy, invitation.admin);
        let lines = [
            format!("  curl -i http://{proxy}/payments/"),
            format!("  curl -i http://{proxy}/payments/ -H 'Content-Type: application/json' \\"),
            r#"    -d '{"amount": 1250, "currency": "EUR"}'"#.to_owned(),
            format!("  curl -i http://{proxy}/admin/report"),
            format!("  curl -s 'http://{admin}/readyz?verbose'"),
            format!("  curl -s http://{admin}/metrics"),
            format!(
                "  curl -u {} -d grant_type=client_credentials \\",
                invitation.visitor
            ),
            format!("    {}", invitation.token_url),
        ];
        for line in lines {
            self.terminal.line(&line);
        }
        self.heading("Open in a browser");
        self.terminal.line(&format!("  http://{admin}/"));
    }

    fn exchange(&mut self, exchange: &Exchange) {
        self.heading(exchange.title);
        let left = self
            .terminal
            .paint(Paint::Faint, &fit("the application sent", LEFT + 3));
        let right = self
            .terminal
            .paint(Paint::Faint, "the payments API received");
        self.terminal.line(&format!("    {left}  {right}"));
        for row in rows(&exchange.sent, &exchange.received) {
            let (left_mark, right_mark) = row.marks();
            let mut left = fit(row.left.as_deref().unwrap_or_default(), LEFT);
            let mut right = cut(row.right.as_deref().unwrap_or_default(), RIGHT);
            if left.starts_with("authorization:") {
                left = self.terminal.paint(Paint::Bad, &left);
            }
            if right.starts_with("authorization:") {
                right = self.terminal.paint(Paint::Good, &right);
            }
            self.terminal
                .line(&format!("  {left_mark} {left} │ {right_mark} {right}"));
        }
        let answer = cut(&format!("    answer: {}", exchange.answer), WIDTH);
        self.terminal.line(&answer);
    }

    fn traffic(&mut self, snapshot: &Snapshot) {
        if self.terminal.is_interactive {
            let block = self.block(snapshot);
            self.terminal.block(block);
        } else {
            self.terminal.line(&progress_line(snapshot));
        }
    }

    fn block(&self, snapshot: &Snapshot) -> Vec<String> {
        let paint = |paint, text: &str| self.terminal.paint(paint, text);
        let counts = &snapshot.counts;
        let failed = format!("{} failed", counts.failed);
        let failed = paint(
            if counts.failed == 0 {
                Paint::Good
            } else {
                Paint::Bad
            },
            &failed,
        );
        let server = match &snapshot.outage {
            Some(outage) => paint(Paint::Bad, &outage.account(counts)),
            None => paint(Paint::Good, "up"),
        };
        vec![
            String::new(),
            self.token_line(snapshot),
            format!(
                "  {} requests   {failed}   tokens fetched {}   renewals {}   slowest {} ms",
                counts.requests,
                snapshot.tokens,
                snapshot.renewals,
                counts.slowest.as_millis()
            ),
            format!("  authorization server {server}"),
        ]
    }

    fn token_line(&self, snapshot: &Snapshot) -> String {
        let Some(token) = &snapshot.token else {
            return "  no token yet".to_owned();
        };
        let (spent, left) = life(snapshot);
        let bar: String = bar(spent, 46)
            .into_iter()
            .map(|(part, text)| {
                let colour = match part {
                    Part::Spent => Paint::Faint,
                    Part::Left => Paint::Good,
                    Part::Renewal => Paint::Warning,
                };
                self.terminal.paint(colour, &text)
            })
            .collect();
        format!(
            "  token {} {bar} {:5.1} s left",
            shortened(&token.token),
            left.as_secs_f64()
        )
    }

    fn event(&mut self, event: &Event) {
        let text = format!("  {:5.1} s  {}", event.at.as_secs_f64(), event.text);
        let text = match event.mood {
            Mood::Plain => text,
            Mood::Good => self.terminal.paint(Paint::Good, &text),
            Mood::Bad => self.terminal.paint(Paint::Bad, &text),
        };
        self.terminal.line(&text);
    }

    fn summary(&mut self, summary: &Summary) {
        // Lines above a block of what is over would be read as its headline.
        self.terminal.block(Vec::new());
        self.heading("What was shown");
        for check in &summary.checks {
            let (paint, mark) = if check.passed {
                (Paint::Good, "✓")
            } else {
                (Paint::Bad, "✗")
            };
            let mark = self.terminal.paint(paint, mark);
            let line = format!("  {mark} {} {}", fit(check.name, 27), check.detail);
            self.terminal.line(&line);
        }
        let paint = if summary.passed {
            Paint::Good
        } else {
            Paint::Bad
        };
        let verdict = self
            .terminal
            .paint(paint, &format!("  {}", summary.verdict));
        self.terminal.line("");
        self.terminal.line(&verdict);
    }
}

/// How much of the token's life is spent, 0.0 to 1.0, and what is left.
fn life(snapshot: &Snapshot) -> (f64, Duration) {
    let Some(token) = &snapshot.token else {
        return (1.0, Duration::ZERO);
    };
    let left = token.expires_at.saturating_duration_since(Instant::now());
    let whole = token.expires_at - token.issued_at;
    (1.0 - left.as_secs_f64() / whole.as_secs_f64(), left)
}

fn progress_line(snapshot: &Snapshot) -> String {
    let (spent, left) = life(snapshot);
    let bar: String = bar(spent, 20).into_iter().map(|(_, text)| text).collect();
    format!(
        "  {:5.1} s  {bar} {:5.1} s left  {:5} requests, {} failed  server {}",
        snapshot.started.elapsed().as_secs_f64(),
        left.as_secs_f64(),
        snapshot.counts.requests,
        snapshot.counts.failed,
        if snapshot.outage.is_some() {
            "DOWN"
        } else {
            "up"
        },
    )
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Spent,
    Left,
    Renewal,
}

/// A fuse that burns from the left, in `width` cells.
fn bar(spent: f64, width: usize) -> Vec<(Part, String)> {
    let mut runs: Vec<(Part, String)> = Vec::new();
    for cell in 0..width {
        let share = (cell as f64 + 0.5) / width as f64;
        let (part, symbol) = if share < spent {
            (Part::Spent, '─')
        } else if RENEWAL.contains(&share) {
            (Part::Renewal, '▒')
        } else {
            (Part::Left, '█')
        };
        match runs.last_mut() {
            Some((last, text)) if *last == part => text.push(symbol),
            _ => runs.push((part, symbol.to_string())),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_burns_down_and_marks_the_renewal() {
        let drawn =
            |spent| -> String { bar(spent, 10).into_iter().map(|(_, text)| text).collect() };
        assert_eq!(drawn(0.0), "███████▒██");
        assert_eq!(drawn(0.5), "─────██▒██");
        assert_eq!(drawn(1.0), "──────────");
    }
}
