//! From host names to addresses: by the system, on tokio's blocking threads, one look-up at a time for each name, and with
//! the last good answer when there is no better one.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::client::legacy::connect::dns::Name;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tower_service::Service;
use tracing::{debug, warn};

/// Names that are remembered. A connector knows one server, and a proxy before it.
const MAX_NAMES: usize = 16;
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 32;
/// Between two look-ups that fail, or that a server brings which cannot be reached; else each request would bring one.
const PAUSE: Duration = Duration::from_secs(1);

/// Finds the addresses of a host; the port is of no meaning.
type LookUp = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// What a connector knows of names. Clones share it.
#[derive(Clone)]
pub(super) struct Resolver {
    look_up: Arc<LookUp>,
    /// How long addresses are used without a look-up.
    refresh: Duration,
    /// How long a look-up may keep a connection waiting for which there are older addresses.
    patience: Duration,
    names: Arc<Mutex<HashMap<Name, Entry>>>,
}

/// What is known of one name.
#[derive(Default)]
struct Entry {
    known: Option<Known>,
    running: Option<Running>,
}

struct Known {
    addresses: Addresses,
    /// The end of the last look-up, whatever it came to.
    looked_up: Instant,
    /// After it a connection looks for newer ones.
    fresh_until: Instant,
}

/// A look-up under way. Whoever wants its result has it from here; it is lost only with the runtime that began it.
#[derive(Clone)]
struct Running {
    since: Instant,
    result: watch::Receiver<Option<Result<Addresses, ResolveError>>>,
}

type Addresses = Arc<[SocketAddr]>;

/// A name without an address.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct ResolveError {
    kind: io::ErrorKind,
    message: String,
}

impl Resolver {
    /// Asks the system. Addresses are used for `refresh`; when a look-up fails, or takes longer than `patience`, those of
    /// the last one are used, however old.
    pub(super) fn new(refresh: Duration, patience: Duration) -> Self {
        Self::with(refresh, patience, |host| {
            Ok((host, 0).to_socket_addrs()?.collect())
        })
    }

    /// Asks `look_up` instead.
    pub(super) fn with(
        refresh: Duration,
        patience: Duration,
        look_up: impl Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            look_up: Arc::new(look_up),
            refresh,
            patience,
            names: Arc::default(),
        }
    }

    /// No connection came about to the addresses of `host`: they may be old, so the next one looks for newer.
    pub(super) fn doubt(&self, host: &str) {
        let mut names = lock(&self.names);
        let known = names
            .iter_mut()
            .find(|(name, _)| name.as_str() == host)
            .and_then(|(_, entry)| entry.known.as_mut());
        if let Some(known) = known {
            known.fresh_until = known.fresh_until.min(known.looked_up + PAUSE);
        }
    }

    async fn resolve(self, name: Name) -> Result<Addresses, ResolveError> {
        let (mut running, older) = {
            let mut names = lock(&self.names);
            if !names.contains_key(&name) {
                make_room(&mut names);
            }
            let entry = names.entry(name.clone()).or_default();
            if let Some(fresh) = entry.fresh() {
                return Ok(fresh);
            }
            let running = match &entry.running {
                Some(running) if running.result.has_changed().is_ok() => running.clone(),
                _ => self.begin(name.clone()),
            };
            entry.running = Some(running.clone());
            let older = entry.known.as_ref().map(|known| known.addresses.clone());
            (running, older)
        };
        let finished = running.result.wait_for(Option::is_some);
        let Some(older) = older else {
            let result = finished.await.map(|result| result.clone());
            return result
                .ok()
                .flatten()
                .unwrap_or_else(|| Err(ResolveError::lost()));
        };
        match timeout_at(running.since + self.patience, finished).await {
            Ok(Ok(result)) => match &*result {
                Some(Ok(addresses)) => Ok(addresses.clone()),
                _ => Ok(older),
            },
            Ok(Err(_)) => Ok(older),
            Err(_) => {
                debug!(host = %name, "the look-up takes long, the last known addresses are used");
                Ok(older)
            }
        }
    }

    /// Starts a look-up that goes on when nobody waits for it any more.
    fn begin(&self, name: Name) -> Running {
        let (sender, result) = watch::channel(None);
        let (look_up, names, refresh) = (self.look_up.clone(), self.names.clone(), self.refresh);
        tokio::task::spawn_blocking(move || {
            let found = look_up(name.as_str())
                .map_err(|error| ResolveError::from(&error))
                .and_then(|mut addresses| {
                    addresses.truncate(MAX_ADDRESSES);
                    let is_found = !addresses.is_empty();
                    is_found
                        .then(|| addresses.into())
                        .ok_or_else(ResolveError::none)
                });
            let is_older_used = lock(&names)
                .get_mut(&name)
                .is_some_and(|entry| entry.finish(&found, refresh));
            if is_older_used && let Err(error) = &found {
                warn!(host = %name, %error, "no new addresses, the last known ones are used");
            }
            sender.send_replace(Some(found));
        });
        Running {
            since: Instant::now(),
            result,
        }
    }
}

fn lock(names: &Mutex<HashMap<Name, Entry>>) -> MutexGuard<'_, HashMap<Name, Entry>> {
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets the name that was looked up longest ago, if there are too many.
fn make_room(names: &mut HashMap<Name, Entry>) {
    if names.len() < MAX_NAMES {
        return;
    }
    let oldest = names
        .iter()
        .min_by_key(|(_, entry)| entry.known.as_ref().map(|known| known.looked_up))
        .map(|(name, _)| name.clone());
    if let Some(oldest) = oldest {
        names.remove(&oldest);
    }
}

impl Entry {
    fn fresh(&self) -> Option<Addresses> {
        let known = self.known.as_ref()?;
        (Instant::now() < known.fresh_until).then(|| known.addresses.clone())
    }

    /// Whether older addresses stand in for those that were not found.
    fn finish(&mut self, found: &Result<Addresses, ResolveError>, refresh: Duration) -> bool {
        self.running = None;
        let now = Instant::now();
        if let Ok(addresses) = found {
            self.known = Some(Known {
                addresses: addresses.clone(),
                looked_up: now,
                fresh_until: now + refresh,
            });
            return false;
        }
        let Some(known) = &mut self.known else {
            return false;
        };
        known.looked_up = now;
        known.fresh_until = now + PAUSE;
        true
    }
}

impl From<&io::Error> for ResolveError {
    fn from(error: &io::Error) -> Self {
        Self {
            kind: error.kind(),
            message: error.to_string(),
        }
    }
}

impl ResolveError {
    fn lost() -> Self {
        Self {
            kind: io::ErrorKind::Interrupted,
            message: "the look-up was given up".to_owned(),
        }
    }

    fn none() -> Self {
        Self {
            kind: io::ErrorKind::NotFound,
            message: "no address".to_owned(),
        }
    }

    /// The same for those outside.
    pub(super) fn to_io(&self) -> io::Error {
        io::Error::new(self.kind, self.message.clone())
    }
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = ResolveError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ResolveError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ResolveError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let resolver = self.clone();
        Box::pin(async move { Ok(resolver.resolve(name).await?.to_vec().into_iter()) })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use tokio::time::advance;

    use super::*;

    const REFRESH: Duration = Duration::from_secs(30);
    const PATIENCE: Duration = Duration::from_millis(750);

    /// What a resolver is told, changeable, and how often it asked.
    #[derive(Clone, Default)]
    struct Names {
        /// The last number of the address; none for a name without one.
        answer: Arc<Mutex<Option<u8>>>,
        asked: Arc<AtomicUsize>,
    }

    impl Names {
        fn resolver(&self, refresh: Duration) -> Resolver {
            let names = self.clone();
            Resolver::with(refresh, PATIENCE, move |_| {
                names.asked.fetch_add(1, Ordering::SeqCst);
                let answer = *names.answer.lock().unwrap();
                let number = answer.ok_or_else(|| io::Error::other("SERVFAIL"))?;
                Ok(vec![SocketAddr::from(([10, 0, 0, number], 0))])
            })
        }

        fn is(&self, answer: Option<u8>) {
            *self.answer.lock().unwrap() = answer;
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }
    }

    async fn address(resolver: &Resolver) -> Result<u8, String> {
        let name = "api.example".parse().unwrap();
        let addresses = resolver.clone().resolve(name).await;
        addresses
            .map(|addresses| match addresses[0] {
                SocketAddr::V4(address) => address.ip().octets()[3],
                SocketAddr::V6(_) => unreachable!(),
            })
            .map_err(|error| error.to_string())
    }

    /// E-25
    #[tokio::test(start_paused = true)]
    async fn addresses_are_used_for_the_refresh_time_and_no_longer() {
        let names = Names::default();
        names.is(Some(1));
        let resolver = names.resolver(REFRESH);
        assert_eq!(address(&resolver).await, Ok(1));
        names.is(Some(2));
        advance(REFRESH - Duration::from_millis(1)).await;
        assert_eq!(address(&resolver.clone()).await, Ok(1), "clones share it");
        assert_eq!(names.asked(), 1);
        advance(Duration::from_millis(1)).await;
        assert_eq!(address(&resolver).await, Ok(2));
        assert_eq!(names.asked(), 2);
    }

    /// E-26
    #[tokio::test(start_paused = true)]
    async fn the_last_good_addresses_outlive_failures() {
        let names = Names::default();
        for refresh in [REFRESH, Duration::ZERO] {
            names.is(None);
            let resolver = names.resolver(refresh);
            assert_eq!(address(&resolver).await, Err("SERVFAIL".to_owned()));
            names.is(Some(1));
            assert_eq!(address(&resolver).await, Ok(1), "a failure is not kept");
            names.is(None);
            advance(refresh).await;
            let asked = names.asked();
            for _ in 0..10 {
                assert_eq!(address(&resolver).await, Ok(1));
            }
            assert_eq!(names.asked(), asked + 1, "not for each connection");
            names.is(Some(2));
            advance(PAUSE).await;
            assert_eq!(address(&resolver).await, Ok(2));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_refresh_time_each_connection_looks_up() {
        let names = Names::default();
        let resolver = names.resolver(Duration::ZERO);
        for number in 1..4 {
            names.is(Some(number));
            assert_eq!(address(&resolver).await, Ok(number));
        }
    }

    /// An address that nothing answers at may be old.
    #[tokio::test(start_paused = true)]
    async fn doubted_addresses_are_looked_up_again_but_not_for_each_request() {
        let names = Names::default();
        names.is(Some(1));
        let resolver = names.resolver(REFRESH);
        assert_eq!(address(&resolver).await, Ok(1));
        names.is(Some(2));
        for _ in 0..3 {
            resolver.doubt("api.example");
            assert_eq!(address(&resolver).await, Ok(1));
        }
        advance(PAUSE).await;
        assert_eq!(address(&resolver).await, Ok(2));
        assert_eq!(names.asked(), 2);
    }

    /// E-26: a name server that says nothing takes one thread, and holds up nobody for whom there is an older address.
    #[tokio::test(start_paused = true)]
    async fn one_look_up_at_a_time() {
        let asked = Arc::new(AtomicUsize::new(0));
        let (answers, receiver) = mpsc::channel::<u8>();
        let (counter, receiver) = (asked.clone(), Mutex::new(receiver));
        let resolver = Resolver::with(REFRESH, PATIENCE, move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
            let number = receiver.lock().unwrap().recv().map_err(io::Error::other)?;
            Ok(vec![SocketAddr::from(([10, 0, 0, number], 0))])
        });
        let ask = || {
            let resolver = resolver.clone();
            tokio::spawn(async move { address(&resolver).await })
        };
        let waiting = [ask(), ask(), ask()];
        answers.send(1).unwrap();
        for asked in waiting {
            assert_eq!(asked.await.unwrap(), Ok(1));
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        advance(REFRESH).await;
        let waiting = [ask(), ask()];
        tokio::task::yield_now().await;
        advance(PATIENCE).await;
        for asked in waiting {
            assert_eq!(asked.await.unwrap(), Ok(1), "the older address");
        }
        // The look-up is known to be slow now, so nobody waits for it any more; time stands still here.
        assert_eq!(address(&resolver).await, Ok(1));
        answers.send(2).unwrap();
        while address(&resolver).await == Ok(1) {
            tokio::task::yield_now().await;
        }
        assert_eq!(address(&resolver).await, Ok(2));
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn few_names_are_remembered() {
        let names = Names::default();
        names.is(Some(1));
        let resolver = names.resolver(REFRESH);
        for number in 0..MAX_NAMES * 2 {
            let name = format!("host-{number}.example").parse().unwrap();
            resolver.clone().resolve(name).await.unwrap();
            advance(Duration::from_millis(1)).await;
        }
        assert_eq!(lock(&resolver.names).len(), MAX_NAMES);
        let newest = format!("host-{}.example", MAX_NAMES * 2 - 1);
        resolver.resolve(newest.parse().unwrap()).await.unwrap();
        assert_eq!(names.asked(), MAX_NAMES * 2);
    }
}
