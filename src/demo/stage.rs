//! The servers of the demo, bearerd between them, and an eye on all of it.

use std::time::Duration;

use http::StatusCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use super::Options;
use super::application::{Answer, Application, Counts, OutgoingRequest, Traffic};
use super::authorization_server::{AuthorizationServer, Client};
use super::issued_tokens::IssuedToken;
use super::payments::{PaymentsApi, ReceivedRequest};
use super::scene::{Check, Event, Invitation, Mood, Opening, Outage, Scene, Snapshot, shortened};
use super::sidecar::{Settings, Sidecar};

/// The client that bearerd is.
const CLIENT_ID: &str = "shop-backend";
/// The client of whoever looks on, so that their tokens are not taken for those of bearerd.
const VISITOR_ID: &str = "visitor";
/// Of both. It is worth nothing: the servers are on loopback and gone in a minute.
const CLIENT_SECRET: &str = "demo-secret";
/// Between two looks at how things stand.
const TICK: Duration = Duration::from_millis(50);
/// From the start of bearerd to its first token.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the script does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Somebody wants it to end.
    Interrupted,
    /// Something is not as it should be, or did not come in time.
    Failed,
}

/// A token was replaced by the next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Renewal {
    /// What was left of the old one.
    pub(super) left: Duration,
    /// Requests that waited for the new one.
    pub(super) waited: u64,
    /// The authorization server was down when it was due.
    pub(super) was_held_up: bool,
}

/// Everything that runs.
pub(super) struct Stage {
    pub(super) options: Options,
    pub(super) authorization_server: AuthorizationServer,
    pub(super) api: PaymentsApi,
    pub(super) sidecar: Sidecar,
    pub(super) application: Application,
    pub(super) traffic: Option<Traffic>,
    pub(super) renewals: Vec<Renewal>,
    pub(super) outage: Option<Outage>,
    /// How long the last one lasted.
    pub(super) outage_time: Duration,
    /// Token requests that failed since the last success.
    pub(super) refusals: u64,
    pub(super) checks: Vec<Check>,
    started: Instant,
    /// The token that the API saw last.
    in_use: Option<IssuedToken>,
    /// Requests that waited for a token, as bearerd counts them.
    waited: u64,
    scenes: mpsc::Sender<Scene>,
    snapshots: watch::Sender<Option<Snapshot>>,
    /// How often somebody wanted the demo to end.
    pub(super) interruptions: watch::Receiver<u32>,
}

impl Stage {
    /// Starts everything, and waits until bearerd has its first token.
    pub(super) async fn set_up(
        options: Options,
        scenes: mpsc::Sender<Scene>,
        snapshots: watch::Sender<Option<Snapshot>>,
        interruptions: watch::Receiver<u32>,
    ) -> Result<Self, String> {
        let cannot_start = |error: std::io::Error| format!("cannot start a server: {error}");
        let client = |client_id: &str, scope: &str| Client {
            client_id: client_id.to_owned(),
            client_secret: CLIENT_SECRET.to_owned(),
            scope: scope.to_owned(),
        };
        let clients = vec![
            client(CLIENT_ID, "read write admin"),
            client(VISITOR_ID, "read"),
        ];
        let authorization_server =
            AuthorizationServer::start(clients, options.expires_in).map_err(cannot_start)?;
        let api = PaymentsApi::start(authorization_server.tokens()).map_err(cannot_start)?;
        let sidecar = Sidecar::start(Settings {
            upstream_url: format!("http://{}", api.address()),
            token_url: authorization_server.token_url(),
            client_id: CLIENT_ID.to_owned(),
            client_secret: CLIENT_SECRET.to_owned(),
            scope: "read write admin".to_owned(),
        })?;
        let stage = Self {
            options,
            authorization_server,
            api,
            sidecar,
            application: Application::new().map_err(|error| error.to_string())?,
            traffic: None,
            renewals: Vec::new(),
            outage: None,
            outage_time: Duration::ZERO,
            refusals: 0,
            checks: Vec::new(),
            started: Instant::now(),
            in_use: None,
            waited: 0,
            scenes,
            snapshots,
            interruptions,
        };
        stage.wait_until_ready().await?;
        Ok(stage)
    }

    async fn wait_until_ready(&self) -> Result<(), String> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let last = match self.ask_admin("/readyz?verbose").await {
                Ok(answer) if answer.status == StatusCode::OK => return Ok(()),
                Ok(answer) => String::from_utf8_lossy(&answer.body).into_owned(),
                Err(error) => error,
            };
            if Instant::now() > deadline {
                return Err(format!("bearerd does not become ready: {last}"));
            }
            sleep(TICK).await;
        }
    }

    async fn ask_admin(&self, target: &'static str) -> Result<Answer, String> {
        let admin = self.sidecar.admin;
        let request = OutgoingRequest::get(admin, target);
        self.application.send(admin, &request).await
    }

    /// The sum of those series of `family` whose labels hold `label`, as bearerd exports them now.
    pub(super) async fn metric(&self, family: &str, label: &str) -> Option<u64> {
        let answer = self.ask_admin("/metrics").await.ok()?;
        Some(sum(&String::from_utf8_lossy(&answer.body), family, label))
    }

    pub(super) fn opening(&self) -> Opening {
        Opening {
            proxy: self.sidecar.proxy,
            api: self.api.address(),
            authorization_server: self.authorization_server.address(),
            expires_in: self.options.expires_in,
            fail_after: self.options.fail_after,
            notices: self.sidecar.notices.clone(),
        }
    }

    pub(super) fn invitation(&self) -> Invitation {
        Invitation {
            proxy: self.sidecar.proxy,
            admin: self.sidecar.admin,
            token_url: self.authorization_server.token_url(),
            visitor: format!("{VISITOR_ID}:{CLIENT_SECRET}"),
        }
    }

    /// A terminal that stands still loses scenes, and holds nothing up.
    pub(super) fn tell(&self, scene: Scene) {
        let _ = self.scenes.try_send(scene);
    }

    pub(super) fn say(&self, mood: Mood, text: String) {
        self.tell(Scene::Event(self.event(mood, text)));
    }

    pub(super) fn event(&self, mood: Mood, text: String) -> Event {
        Event {
            at: self.started.elapsed(),
            mood,
            text,
        }
    }

    pub(super) fn counts(&self) -> Counts {
        self.traffic
            .as_ref()
            .map(Traffic::counts)
            .unwrap_or_default()
    }

    /// Tokens issued to bearerd.
    pub(super) fn tokens(&self) -> usize {
        self.authorization_server.tokens().count(CLIENT_ID)
    }

    /// The token that `request` carried, if bearerd was given it.
    pub(super) fn token_of(&self, request: &ReceivedRequest) -> Option<IssuedToken> {
        let issued = self
            .authorization_server
            .tokens()
            .find(request.bearer_token()?)?;
        (issued.client_id == CLIENT_ID).then_some(issued)
    }

    /// Begins the traffic, and the count of requests that wait for a token.
    pub(super) async fn start_traffic(&mut self, pause: Duration) {
        self.waited = self.requests_that_waited().await;
        let application = self.application.clone();
        self.traffic = Some(Traffic::start(application, self.sidecar.proxy, pause));
        self.tell(Scene::Traffic);
    }

    async fn requests_that_waited(&self) -> u64 {
        let waited = self
            .metric("bearerd_token_lookups_total", "result=\"waited\"")
            .await;
        waited.unwrap_or(self.waited)
    }

    /// Looks at how things stand until `done`, for `limit` at most.
    pub(super) async fn until(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Result<(), End> {
        let deadline = Instant::now() + limit;
        loop {
            self.observe().await;
            let nobody_looks = self.scenes.is_closed() && !self.options.once;
            if *self.interruptions.borrow() > 0 || nobody_looks {
                return Err(End::Interrupted);
            }
            if done(self) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(End::Failed);
            }
            sleep(TICK).await;
        }
    }

    async fn observe(&mut self) {
        let mut seen = None;
        self.api.received(|request| {
            seen = self.token_of(request);
            seen.is_some()
        });
        if let Some(new) = seen {
            match self.in_use.replace(new.clone()) {
                // A request with the older one may have been overtaken.
                Some(old) if old.issued_at > new.issued_at => self.in_use = Some(old),
                Some(old) if old.token != new.token => self.renewed(&old, &new).await,
                _ => {}
            }
        }
        if self.outage.is_some() {
            let refusals = self.metric("bearerd_token_consecutive_failures", "").await;
            self.refusals = refusals.unwrap_or(self.refusals);
        }
        self.snapshots.send_replace(Some(Snapshot {
            started: self.started,
            token: self.in_use.clone(),
            counts: self.counts(),
            tokens: self.tokens(),
            renewals: self.renewals.len(),
            outage: self.outage,
        }));
    }

    async fn renewed(&mut self, old: &IssuedToken, new: &IssuedToken) {
        let before = self.waited;
        self.waited = self.requests_that_waited().await;
        let renewal = Renewal {
            left: old.expires_at.saturating_duration_since(new.issued_at),
            waited: self.waited - before,
            was_held_up: std::mem::take(&mut self.refusals) > 0,
        };
        self.renewals.push(renewal);
        let mood = if renewal.left.is_zero() {
            Mood::Bad
        } else {
            Mood::Good
        };
        self.say(
            mood,
            format!(
                "renewed {} → {}, {:.1} s before its end, {}",
                shortened(&old.token),
                shortened(&new.token),
                renewal.left.as_secs_f64(),
                waited_text(renewal.waited)
            ),
        );
    }

    /// The share of its life that the present token has spent, 0.0 to 1.0.
    pub(super) fn spent(&self) -> f64 {
        self.in_use.as_ref().map_or(1.0, |token| {
            let whole = token.expires_at - token.issued_at;
            token.issued_at.elapsed().as_secs_f64() / whole.as_secs_f64()
        })
    }
}

/// Counts how often somebody wants the demo to end.
pub(super) fn interruptions() -> std::io::Result<watch::Receiver<u32>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (sender, receiver) = watch::channel(0);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            sender.send_modify(|count| *count += 1);
        }
    });
    Ok(receiver)
}

/// In words.
pub(super) fn waited_text(requests: u64) -> String {
    match requests {
        0 => "no request waited".to_owned(),
        1 => "1 request waited".to_owned(),
        more => format!("{more} requests waited"),
    }
}

fn sum(text: &str, family: &str, label: &str) -> u64 {
    text.lines()
        .filter_map(|line| {
            line.strip_prefix(family)?
                .strip_prefix('{')?
                .split_once("} ")
        })
        .filter(|(labels, _)| labels.contains(label))
        .filter_map(|(_, value)| value.parse::<f64>().ok())
        .sum::<f64>() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_a_family_are_summed() {
        let text = "# TYPE a counter\na{r=\"x\",t=\"1\"} 2\na{r=\"y\",t=\"1\"} 3\na{r=\"x\",t=\"2\"} 4\na_b{r=\"x\"} 9\n";
        assert_eq!(sum(text, "a", "r=\"x\""), 6);
        assert_eq!(sum(text, "a", ""), 9);
    }
}
