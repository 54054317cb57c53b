//! What happens in the demo, in order, and what it has to prove.

use std::time::Duration;

use http::StatusCode;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Options;
use super::application::{Answer, OutgoingRequest};
use super::scene::{Check, Exchange, Message, Mood, Outage, Scene, Snapshot, Summary};
use super::stage::{End, Renewal, Stage, interruptions, waited_text};

/// From one request to the next, while there is something to prove, and afterwards.
const PAUSE: Duration = Duration::from_millis(50);
const QUIET_PAUSE: Duration = Duration::from_millis(500);
/// How much later than planned something may come on a busy machine.
const SLACK: Duration = Duration::from_secs(20);
/// A token that has spent more than this of its life is near its renewal: an outage that begins then would be over
/// before it is seen.
const LATE_FOR_AN_OUTAGE: f64 = 0.6;
/// Longer than anybody looks on.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

const TOKEN_ADDED: &str = "the token was added";
const OWN_REPLACED: &str = "its own was replaced";
const EXACTLY_ONE: &str = "exactly one Authorization";
const RENEWED: &str = "renewed before the end";
const OUTAGE_SURVIVED: &str = "the outage was survived";
const NOTHING_FAILED: &str = "no request failed";
const DRAINED: &str = "bearerd drained cleanly";

/// The order in which they are read.
const ORDER: [&str; 7] = [
    TOKEN_ADDED,
    OWN_REPLACED,
    EXACTLY_ONE,
    RENEWED,
    OUTAGE_SURVIVED,
    NOTHING_FAILED,
    DRAINED,
];

/// Performs the whole, and says whether it went as promised.
///
/// # Errors
/// When it could not even begin.
pub(super) async fn perform(
    options: Options,
    scenes: mpsc::Sender<Scene>,
    snapshots: watch::Sender<Option<Snapshot>>,
) -> Result<bool, String> {
    let interruptions =
        interruptions().map_err(|error| format!("cannot listen for signals: {error}"))?;
    let mut stage = Stage::set_up(options, scenes, snapshots, interruptions).await?;
    let played = stage.play().await;
    Ok(stage.close(played).await)
}

impl Stage {
    async fn play(&mut self) -> Result<(), End> {
        self.tell(Scene::Opening(self.opening()));
        self.exchanges().await;
        if self.checks.iter().any(|check| !check.passed) {
            return Err(End::Failed);
        }
        if !self.options.once {
            self.tell(Scene::Invitation(self.invitation()));
        }
        self.start_traffic(PAUSE).await;
        self.first_renewal().await?;
        self.outage().await
    }

    fn check(&mut self, name: &'static str, passed: bool, detail: impl Into<String>) {
        let detail = detail.into();
        self.checks.push(Check {
            passed,
            name,
            detail,
        });
    }

    async fn exchanges(&mut self) {
        let host = self.sidecar.proxy;
        let get = OutgoingRequest::get(host, "/payments/");
        let get = self.exchange("A request", get, StatusCode::OK).await;
        let body = r#"{"amount": 1250, "currency": "EUR"}"#;
        let post = OutgoingRequest::post(host, "/payments/", body);
        let post = self
            .exchange("A payment is made", post, StatusCode::CREATED)
            .await;
        let own =
            OutgoingRequest::get(host, "/payments/1").with("authorization", "Bearer my-own-token");
        let title = "The application sends an Authorization of its own";
        let own = self.exchange(title, own, StatusCode::OK).await;
        let added = get.and(post);
        self.check(
            TOKEN_ADDED,
            added.is_ok(),
            added
                .err()
                .unwrap_or_else(|| "the application sent none, the API got one".to_owned()),
        );
        self.check(
            OWN_REPLACED,
            own.is_ok(),
            own.err()
                .unwrap_or_else(|| "what the application sent never reached the API".to_owned()),
        );
    }

    /// Sends one request, shows both sides of bearerd, and says what was not as it should be.
    async fn exchange(
        &self,
        title: &'static str,
        request: OutgoingRequest,
        expected: StatusCode,
    ) -> Result<(), String> {
        let answer = self.application.send(self.sidecar.proxy, &request).await?;
        let received = self.api.received(|received| {
            received
                .values("x-request-id")
                .any(|id| id == answer.request_id)
        });
        let Some(received) = received else {
            return Err(format!(
                "the API got no such request; status {}",
                answer.status
            ));
        };
        let result = if answer.status != expected {
            Err(format!("status {}", answer.status))
        } else if received.values("authorization").count() != 1 {
            Err("not exactly one Authorization".to_owned())
        } else if self.token_of(&received).is_none() {
            Err("a token that was never issued to bearerd".to_owned())
        } else {
            Ok(())
        };
        self.tell(Scene::Exchange(Exchange {
            title,
            sent: sent(&request),
            received: Message {
                request_line: received.request_line.clone(),
                header_lines: received.header_lines,
            },
            answer: answer_text(&answer),
        }));
        result
    }

    async fn first_renewal(&mut self) -> Result<(), End> {
        let limit = self.options.expires_in + SLACK;
        let renewed = self.until(limit, |stage| !stage.renewals.is_empty()).await;
        self.proven(renewed, RENEWED, "there was no renewal")
    }

    /// Notes the check that failed with the wait.
    fn proven(
        &mut self,
        waited: Result<(), End>,
        name: &'static str,
        missed: &str,
    ) -> Result<(), End> {
        if waited == Err(End::Failed) {
            self.check(name, false, missed);
        }
        waited
    }

    async fn outage(&mut self) -> Result<(), End> {
        let begin = Instant::now() + self.options.fail_after;
        let limit = self.options.fail_after + self.options.expires_in + SLACK;
        let ready = |stage: &Self| Instant::now() >= begin && stage.spent() < LATE_FOR_AN_OUTAGE;
        let ready = self.until(limit, ready).await;
        self.proven(ready, OUTAGE_SURVIVED, "there was no time for an outage")?;

        let counts = self.counts();
        if let Err(error) = self.authorization_server.stop().await {
            self.check(
                OUTAGE_SURVIVED,
                false,
                format!("cannot stop the server: {error}"),
            );
            return Err(End::Failed);
        }
        let outage = Outage {
            since: Instant::now(),
            requests: counts.requests,
            failed: counts.failed,
        };
        self.outage = Some(outage);
        self.say(
            Mood::Bad,
            "authorization server stopped; the token held goes on".to_owned(),
        );
        let limit = self.options.expires_in + SLACK;
        let refused = self.until(limit, |stage| stage.refusals > 0).await;
        self.proven(refused, OUTAGE_SURVIVED, "bearerd never tried to renew")?;

        // Back before the token ends: bearerd tries again within a second.
        let before = self.renewals.len();
        if let Err(error) = self.authorization_server.start_again() {
            self.check(
                OUTAGE_SURVIVED,
                false,
                format!("cannot start the server again: {error}"),
            );
            return Err(End::Failed);
        }
        self.outage = None;
        self.outage_time = outage.since.elapsed();
        let account = outage.account(&self.counts());
        self.say(
            Mood::Plain,
            "a renewal failed; bearerd keeps the token and tries again".to_owned(),
        );
        self.say(Mood::Good, format!("authorization server {account}"));
        let renewed = self
            .until(SLACK, |stage| stage.renewals.len() > before)
            .await;
        self.proven(renewed, OUTAGE_SURVIVED, "no renewal after the outage")?;
        let lost = self.counts().failed - outage.failed;
        self.check(OUTAGE_SURVIVED, lost == 0, account);
        Ok(())
    }

    async fn close(mut self, played: Result<(), End>) -> bool {
        if played.is_ok() && !self.options.once {
            self.go_on().await;
        }
        if let Some(traffic) = &mut self.traffic {
            traffic.stop().await;
        }
        self.interruptions.mark_unchanged();
        let ended = self.sidecar.stop(&mut self.interruptions).await;
        let (drained, detail) = match ended {
            Ok(outcome) => (
                outcome.cut == 0,
                format!("{} requests were cut", outcome.cut),
            ),
            Err(error) => (false, error),
        };
        let checks = self.all_checks();
        let held = checks.iter().all(|check| check.passed);
        let complete = match played {
            Ok(()) => true,
            Err(End::Interrupted) => !self.options.once,
            Err(End::Failed) => false,
        };
        let passed = held && drained && complete;
        if played.is_ok() && !self.options.once {
            let mood = if passed { Mood::Good } else { Mood::Bad };
            let counts = self.counts();
            let text = format!(
                "{} requests, {} failed in all; {detail}",
                counts.requests, counts.failed
            );
            self.tell(Scene::Farewell(self.event(mood, text)));
            return passed;
        }
        self.check(DRAINED, drained, detail);
        self.summarize(passed, played == Err(End::Interrupted));
        passed
    }

    /// The show is over, and stays on at a pace that leaves the machine alone.
    async fn go_on(&mut self) {
        let passed = self.all_checks().iter().all(|check| check.passed);
        self.summarize(passed, false);
        if let Some(traffic) = &self.traffic {
            traffic.set_pause(QUIET_PAUSE);
        }
        self.say(
            Mood::Plain,
            "going on with 2 requests a second until Ctrl-C".to_owned(),
        );
        let _ = self.until(FOREVER, |_| false).await;
    }

    /// The checks made on the way, and those on the whole.
    fn all_checks(&self) -> Vec<Check> {
        let mut checks = self.checks.clone();
        let mut check = |name, passed, detail| {
            checks.push(Check {
                passed,
                name,
                detail,
            })
        };
        let requests = self.api.requests();
        let detail = match self.api.most_authorizations() {
            1 => format!("on each of the {requests} requests the API got"),
            most => format!("up to {most} on one request"),
        };
        check(EXACTLY_ONE, self.api.most_authorizations() == 1, detail);
        if let Some(detail) = renewal_text(&self.renewals) {
            let mut undisturbed = self.renewals.iter().filter(|renewal| !renewal.was_held_up);
            let early = undisturbed.all(|renewal| !renewal.left.is_zero() && renewal.waited == 0);
            check(RENEWED, early, detail);
        }
        let counts = self.counts();
        let detail = match counts.last_failure {
            None => format!(
                "{} sent, slowest {} ms",
                counts.requests,
                counts.slowest.as_millis()
            ),
            Some(failure) => format!("{} of {} did: {failure}", counts.failed, counts.requests),
        };
        check(NOTHING_FAILED, counts.failed == 0, detail);
        checks.sort_by_key(|check| ORDER.iter().position(|name| *name == check.name));
        checks
    }

    fn totals(&self) -> String {
        let counts = self.counts();
        format!(
            "{} requests, {} failed; {} tokens, {} renewals; outage {:.1} s",
            counts.requests,
            counts.failed,
            self.tokens(),
            self.renewals.len(),
            self.outage_time.as_secs_f64()
        )
    }

    fn summarize(&self, passed: bool, interrupted: bool) {
        let verdict = match (passed, interrupted) {
            (_, true) => "Interrupted",
            (true, false) => "It held",
            (false, false) => "It did not hold",
        };
        self.tell(Scene::Summary(Summary {
            checks: self.all_checks(),
            passed,
            verdict: format!("{verdict}: {}", self.totals()),
        }));
    }
}

fn sent(request: &OutgoingRequest) -> Message {
    Message {
        request_line: format!("{} {} HTTP/1.1", request.method, request.target),
        header_lines: request
            .header_lines
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect(),
    }
}

fn answer_text(answer: &Answer) -> String {
    let location = answer
        .location
        .as_ref()
        .map(|location| format!(", location: {location}"));
    format!(
        "{} in {:.1} ms{} {}",
        answer.status,
        answer.took.as_secs_f64() * 1000.0,
        location.unwrap_or_default(),
        String::from_utf8_lossy(&answer.body).trim()
    )
}

fn renewal_text(renewals: &[Renewal]) -> Option<String> {
    let least = renewals.iter().map(|renewal| renewal.left).min()?;
    let waited = renewals.iter().map(|renewal| renewal.waited).sum();
    Some(format!(
        "{} times, {:.1} s or more early; {}",
        renewals.len(),
        least.as_secs_f64(),
        waited_text(waited)
    ))
}
