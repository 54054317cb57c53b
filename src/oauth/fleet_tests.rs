//! Many refreshers at once, and one refresher through many bad days. Time is paused, chance is seeded: each run is the same.
//! The table in the documentation of the refresher is printed by
//! `cargo test --lib fleet -- --nocapture`.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use http::{HeaderValue, StatusCode};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::*;
use crate::metrics::Metrics;
use crate::net::client::HttpClient;
use crate::oauth::test_server::{POLICY, TICK, client, config, secs};
use crate::oauth::token_endpoint::Script;
use crate::secret::SecretSource;
use crate::trace::Tracer;

/// How far a fleet is looked at.
const HOUR: u64 = 3600;

/// An authorization server that a whole fleet asks.
struct Server {
    /// It answers from here to there in seconds, and is unreachable otherwise.
    away: std::ops::Range<u64>,
    /// Answers a second; what is more gets a 503.
    capacity: usize,
    began: Instant,
    /// Requests in each second.
    seconds: Mutex<BTreeMap<u64, usize>>,
    issued: AtomicU64,
}

impl Server {
    fn new(away: std::ops::Range<u64>, capacity: usize) -> Arc<Self> {
        Arc::new(Self {
            away,
            capacity,
            began: Instant::now(),
            seconds: Mutex::default(),
            issued: AtomicU64::new(0),
        })
    }

    async fn answer(&self) -> Result<Grant, TokenError> {
        let second = self.began.elapsed().as_secs();
        let in_this_second = {
            let mut seconds = self.seconds.lock().unwrap();
            let count = seconds.entry(second).or_default();
            *count += 1;
            *count
        };
        if self.away.contains(&second) {
            return Err(TokenError::BrokenOff);
        }
        sleep(Duration::from_millis(20 + fastrand::u64(..80))).await;
        if in_this_second > self.capacity {
            return Err(unavailable(None));
        }
        let number = self.issued.fetch_add(1, Ordering::Relaxed);
        Ok(grant(number, Some(secs(HOUR))))
    }

    /// The most requests in one second, and all of them.
    fn peak_and_total(&self) -> (usize, usize) {
        let seconds = self.seconds.lock().unwrap();
        let peak = seconds.values().max().copied().unwrap_or_default();
        (peak, seconds.values().sum())
    }
}

fn unavailable(retry_after: Option<Duration>) -> TokenError {
    TokenError::Status {
        status: StatusCode::SERVICE_UNAVAILABLE,
        retry_after,
    }
}

fn grant(number: u64, lifetime: Option<Duration>) -> Grant {
    Grant {
        authorization: HeaderValue::try_from(format!("Bearer {number}")).unwrap(),
        fingerprint: String::new(),
        scope: None,
        missing_scope: None,
        lifetime,
        server_date: None,
    }
}

/// What refreshers of a test share: ten thousand registries and clients would be most of the work.
struct Ground {
    cache: TokenCache,
    metrics: TokenMetrics,
    client: HttpClient,
    files: watch::Receiver<()>,
}

impl Ground {
    fn new() -> Self {
        Self {
            cache: TokenCache::new(),
            metrics: Metrics::new().token("fleet"),
            client: client().0,
            files: watch::channel(()).1,
        }
    }

    fn refresher(&self, edition: u64, policy: RefreshPolicy, script: Script) -> TokenHandle {
        let key = TokenKey {
            label: "fleet".into(),
            credential: "fleet".into(),
            edition,
            scope: None,
            audience: Vec::new(),
            resource: Vec::new(),
            extra_params: Vec::new(),
        };
        // The secret is in no file, so nothing is read again.
        let config = config(SecretSource::Env("PATH".into()));
        let endpoint = TokenEndpoint::scripted(config, self.client.clone(), script);
        let signals = Signals {
            files: self.files.clone(),
            ended: mpsc::channel(1).0,
        };
        let metrics = self.metrics.clone();
        let (cache, tracer) = (self.cache.clone(), Tracer::default());
        Refresher::spawn(key, endpoint, policy, cache, metrics, signals, tracer)
    }
}

/// What became of a fleet in an hour and a quarter.
struct Fleet {
    peak: usize,
    total: usize,
    /// When the last sidecar had its first token, in seconds from the start.
    all_served_after: u64,
    /// Sidecars that were without a usable token after they had one.
    interrupted: usize,
}

async fn fleet(sidecars: u64, seed: u64, away: std::ops::Range<u64>, capacity: usize) -> Fleet {
    fastrand::seed(seed);
    let (ground, server) = (Ground::new(), Server::new(away, capacity));
    let began = Instant::now();
    let end = began + secs(HOUR + HOUR / 4);
    let mut watchers = JoinSet::new();
    for number in 0..sidecars {
        let server = server.clone();
        let script: Script = Box::new(move || {
            let server = server.clone();
            Box::pin(async move { server.answer().await })
        });
        let mut handle = ground.refresher(number, POLICY, script);
        watchers.spawn(async move {
            while handle.held().await.is_none() && handle.changed().await {}
            let served_after = began.elapsed().as_secs();
            // At every change, and just before each: whether there was a break.
            let mut interrupted = false;
            while let Ok(true) = tokio::time::timeout_at(end, handle.changed()).await {
                interrupted |= handle.held().await.is_none();
            }
            (served_after, interrupted | handle.held().await.is_none())
        });
    }
    let outcomes = watchers.join_all().await;
    let (peak, total) = server.peak_and_total();
    Fleet {
        peak,
        total,
        all_served_after: outcomes.iter().map(|(after, _)| *after).max().unwrap(),
        interrupted: outcomes.iter().filter(|(_, broke)| *broke).count(),
    }
}

/// C-56: ten thousand sidecars that start at one moment, in an hour and a quarter of their life. No more requests come in one
/// second than `peak`, and no more in all than `each` for each.
async fn ten_thousand(
    what: &str,
    away: std::ops::Range<u64>,
    capacity: usize,
    peak: usize,
    each: usize,
) {
    const SIDECARS: u64 = 10_000;
    let fleet = fleet(SIDECARS, 1, away, capacity).await;
    let Fleet {
        total,
        all_served_after,
        interrupted,
        ..
    } = fleet;
    println!(
        "| {what} | {} | {total} | {all_served_after} s | {interrupted} |",
        fleet.peak
    );
    assert!(fleet.peak <= peak, "{}", fleet.peak);
    assert!(total < each * 10_000, "{total}");
    assert_eq!(interrupted, 0);
    assert!(all_served_after <= 60, "{all_served_after}");
}

#[tokio::test(start_paused = true)]
async fn a_fleet_starts_at_once() {
    ten_thousand("all start at once", 0..0, usize::MAX, 10_000, 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_fleet_starts_while_its_server_is_away() {
    ten_thousand(
        "it is away for the first half minute",
        0..30,
        usize::MAX,
        25_000,
        12,
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_fleet_starts_before_a_slow_server() {
    ten_thousand(
        "it answers 500 a second, and 503 beyond",
        0..0,
        500,
        25_000,
        7,
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_fleet_renews_while_its_server_is_away() {
    ten_thousand(
        "it is away for five minutes as all renew",
        2550..2850,
        usize::MAX,
        10_000,
        12,
    )
    .await;
}

/// What the server of one sidecar has done.
#[derive(Default)]
struct Ledger {
    asked_at: Vec<Instant>,
    /// Token, when it was asked for, when it came, and how long it lives.
    issued: Vec<(u64, Instant, Instant, Duration)>,
}

/// A day of an authorization server, good or bad.
fn bad_day(ledger: Arc<Mutex<Ledger>>) -> Script {
    Box::new(move || {
        let ledger = ledger.clone();
        Box::pin(async move {
            let asked = Instant::now();
            ledger.lock().unwrap().asked_at.push(asked);
            sleep(Duration::from_millis(fastrand::u64(1..=3000))).await;
            let lifetime = match fastrand::u32(..12) {
                0 => return Err(TokenError::BrokenOff),
                1 => return Err(unavailable(Some(secs(fastrand::u64(1..=300))))),
                2 => return Err(TokenError::Malformed("an empty access_token")),
                3 => {
                    return Err(TokenError::Status {
                        status: StatusCode::UNAUTHORIZED,
                        retry_after: None,
                    });
                }
                4 => None,
                5 => Some(Duration::from_millis(fastrand::u64(1000..10_000))),
                6 | 7 => Some(secs(fastrand::u64(10..120))),
                _ => Some(secs(fastrand::u64(120..7200))),
            };
            let mut ledger = ledger.lock().unwrap();
            let number = ledger.issued.len() as u64;
            // Used once, within the time for that.
            let life = lifetime.unwrap_or(secs(5));
            ledger.issued.push((number, asked, Instant::now(), life));
            Ok(grant(number, lifetime))
        })
    })
}

/// One sidecar through two hours of such days, with requests and refusals at any moment.
async fn two_hours(ground: &Ground, seed: u64) {
    fastrand::seed(seed);
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let policy = RefreshPolicy {
        renew_unused: fastrand::bool(),
        ..POLICY
    };
    let handle = ground.refresher(seed, policy, bad_day(ledger.clone()));
    let began = Instant::now();
    let mut requests = JoinSet::new();
    for _ in 0..40 {
        let (handle, ledger) = (handle.clone(), ledger.clone());
        let at = began + Duration::from_millis(fastrand::u64(..7_200_000));
        let refused = fastrand::u32(..8) == 0;
        requests.spawn(async move {
            tokio::time::sleep_until(at).await;
            let result = handle.token().await;
            let now = Instant::now();
            let waited = now - at;
            assert!(waited <= POLICY.wait_timeout + TICK, "lost for {waited:?}");
            let issued = ledger.lock().unwrap().issued.clone();
            match result {
                Ok(token) => {
                    let value = token.authorization();
                    let number: u64 = value.to_str().unwrap()[7..].parse().unwrap();
                    let (_, asked, _, life) = issued[number as usize];
                    assert!(now < asked + life, "{number} is over");
                    if refused {
                        handle.reject(&token).await;
                    }
                }
                Err(_) => {
                    // None that came before was good for longer: nobody is refused what is there.
                    let good = issued.iter().find(|(_, asked, came, life)| {
                        *came + TICK < now
                            && now + TICK < *asked + life.mul_f64(0.89)
                            && life.as_secs() > 10
                    });
                    let newest = issued.last().map(|newest| newest.0);
                    let newest = good.filter(|good| Some(good.0) == newest);
                    let aside = handle.held().await.is_none();
                    assert!(newest.is_none() || aside, "{newest:?} was there");
                }
            }
        });
    }
    requests.join_all().await;
    let ledger = ledger.lock().unwrap();
    let gaps = ledger.asked_at.windows(2).map(|pair| pair[1] - pair[0]);
    let shortest = gaps.min().unwrap_or(secs(1));
    assert!(shortest >= Duration::from_millis(100), "{shortest:?}");
    // A bad day is at most a renewal a second while tokens live that long, and a backoff otherwise.
    let asked = ledger.asked_at.len();
    assert!(asked < 3000, "{asked} token requests in two hours");
}

async fn many_bad_days(seeds: std::ops::Range<u64>) {
    let ground = Ground::new();
    for seed in seeds {
        two_hours(&ground, seed).await;
    }
}

/// C-68: never an expired token, never a storm, never a waiter lost; a thousand times.
#[tokio::test(start_paused = true)]
async fn a_thousand_sidecars_through_bad_days_first_half() {
    many_bad_days(0..500).await;
}

#[tokio::test(start_paused = true)]
async fn a_thousand_sidecars_through_bad_days_second_half() {
    many_bad_days(500..1000).await;
}
