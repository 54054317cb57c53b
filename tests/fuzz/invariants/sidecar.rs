//! A sidecar in this process, between an upstream that records and an authorization server that grants one token.

use std::io::{self, Read, Write};
use std::iter;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use bearerd::app::App;
use bearerd::config::{Config, Flags, Inputs};
use bearerd::runtime;
use tokio::sync::mpsc;

use super::message::{self, Body, Framing, Reading, RequestHead};

/// The token that every request must carry.
pub const TOKEN: &str = "t0ken-of-the-sidecar";
/// What it is bought with.
pub const SECRET: &str = "s3cret-of-the-sidecar";
/// The number of a request, as the upstream tells it in its answer.
pub const NUMBER: &str = "x-number";
/// Longer than any machine under load needs.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the application does after its last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Waits until the sidecar closes.
    Waits,
    /// Says that nothing more comes, and reads what does.
    Finishes,
}

/// A request as the upstream got it.
#[derive(Clone, Debug)]
pub struct Forwarded {
    pub number: usize,
    pub head: RequestHead,
    /// None if it broke off.
    pub body: Option<Body>,
}

/// What came of some bytes.
#[derive(Debug)]
pub struct Run {
    /// To the application.
    pub answers: Vec<u8>,
    /// Whether the connection ended with a reset, which may take answers along.
    pub was_reset: bool,
    /// In the order in which they ended.
    pub forwarded: Vec<Forwarded>,
    /// What the upstream could not read in one way.
    pub faults: Vec<String>,
}

/// The sidecar, and all there is around it.
pub struct Sidecar {
    address: SocketAddr,
    upstream: SocketAddr,
    seen: Arc<Seen>,
}

/// The one sidecar of this process, for one user at a time.
pub fn sidecar() -> MutexGuard<'static, Sidecar> {
    static SIDECAR: OnceLock<Mutex<Sidecar>> = OnceLock::new();
    let sidecar = SIDECAR.get_or_init(|| Mutex::new(Sidecar::start()));
    lock(sidecar)
}

impl Sidecar {
    fn start() -> Self {
        let upstream = TcpListener::bind("127.0.0.1:0").expect("a port");
        let authorization_server = TcpListener::bind("127.0.0.1:0").expect("a port");
        let upstream_address = upstream.local_addr().expect("an address");
        let token_address = authorization_server.local_addr().expect("an address");
        let seen = Arc::<Seen>::default();
        let seen_there = seen.clone();
        thread::spawn(move || seen_there.accept(&upstream));
        thread::spawn(move || grant_tokens(&authorization_server));

        let folder = tempfile::tempdir().expect("a folder");
        let secret = folder.path().join("client_secret");
        std::fs::write(&secret, SECRET).expect("a file");
        let file = folder.path().join("bearerd.toml");
        let text = format!(
            r#"
            [proxy]
            listen = "127.0.0.1:0"
            max_header_bytes = "8KiB"
            [admin]
            listen = "127.0.0.1:0"
            [runtime]
            workers = 1
            [upstream.payments]
            url = "http://{upstream_address}"
            idle_timeout = "5ms"
            max_idle_connections = 1
            [credential.payments]
            token_url = "http://{token_address}/token"
            client_id = "shop"
            client_secret_file = {secret:?}
            "#
        );
        std::fs::write(&file, text).expect("a file");
        let flags = Flags {
            config: Some(file),
            ..Flags::default()
        };
        let config = Config::load(&Inputs::new(flags, iter::empty()));
        let app = App::bind(config.unwrap_or_else(|error| panic!("{error}")));
        let app = app.expect("ports of the system's choice");
        let address = app.addresses().proxy_tcp().expect("a TCP listener");
        thread::spawn(move || {
            let (_stop, stops) = mpsc::channel(1);
            let outcome = runtime::control(app.run(stops));
            panic!("the sidecar ended: {outcome:?}");
        });
        let sidecar = Self {
            address,
            upstream: upstream_address,
            seen,
        };
        // Waits for the first token; the folder is not needed after it.
        sidecar.settle();
        sidecar
    }

    /// The authority of the upstream.
    pub fn upstream(&self) -> String {
        self.upstream.to_string()
    }

    /// Sends `bytes` on a connection of their own, and waits until nothing more comes of them.
    pub fn run(&self, bytes: &[u8], end: End) -> Run {
        let (answers, was_reset) = self.send(bytes, end);
        let Log {
            forwarded, faults, ..
        } = self.settle();
        Run {
            answers,
            was_reset,
            forwarded,
            faults,
        }
    }

    /// Everything until the sidecar closes, and whether it did so by a reset.
    fn send(&self, bytes: &[u8], end: End) -> (Vec<u8>, bool) {
        let mut stream = TcpStream::connect(self.address).expect("the sidecar takes connections");
        stream.set_nodelay(true).expect("a socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        // It may refuse the beginning and close before the end.
        let written = stream.write_all(bytes);
        if end == End::Finishes {
            let _ = stream.shutdown(Shutdown::Write);
        }
        let mut answers = Vec::new();
        match stream.read_to_end(&mut answers) {
            Ok(_) => (answers, written.is_err()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => (answers, true),
            Err(error) => panic!("the sidecar neither answers nor closes: {error}"),
        }
    }

    /// Waits until all there was has ended, and takes what the upstream saw of it.
    ///
    /// A request of our own overtakes nothing: its answer tells that the sidecar's one worker has dealt with everything
    /// before it, and a connection of our own that the upstream has accepted everything before it. Then all connections
    /// but the one that the sidecar keeps must end.
    fn settle(&self) -> Log {
        let number = self.ask();
        let probe = TcpStream::connect(self.upstream).expect("the upstream takes connections");
        let probe_address = probe.local_addr().expect("an address");
        drop(probe);
        let log = lock(&self.seen.log);
        let (mut log, timeout) = self
            .seen
            .changed
            .wait_timeout_while(log, PATIENCE, |log| {
                let is_settled = log.accepted.contains(&probe_address) && log.open <= 1;
                !is_settled
            })
            .unwrap_or_else(PoisonError::into_inner);
        assert!(
            !timeout.timed_out(),
            "the sidecar keeps a connection for a request that is over: {log:?}"
        );
        let mut settled = std::mem::take(&mut *log);
        (log.open, log.number) = (settled.open, settled.number);
        let ours = settled
            .forwarded
            .iter()
            .position(|forwarded| forwarded.number == number);
        let ours = settled.forwarded.remove(ours.expect("what was answered"));
        // Whatever the last request left on its connection would be in front of ours.
        assert!(
            ours.head.target == b"/settle" && ours.head.framing == Framing::None,
            "the sidecar sent something else: {ours:?}"
        );
        settled
    }

    /// Sends a request of our own, and returns its number at the upstream.
    fn ask(&self) -> usize {
        let request = "GET /settle HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let (answer, _) = self.send(request.as_bytes(), End::Waits);
        let Reading::Whole(head, _) = message::response_head(&answer) else {
            panic!("no answer: {}", answer.escape_ascii());
        };
        number(&head.fields).unwrap_or_else(|| panic!("no good answer: {}", answer.escape_ascii()))
    }
}

/// The number of the request that an answer of the upstream's is for.
pub fn number(fields: &message::Fields) -> Option<usize> {
    let number = fields.the_one(NUMBER)?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// What the upstream sees.
#[derive(Default)]
struct Seen {
    log: Mutex<Log>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Log {
    forwarded: Vec<Forwarded>,
    faults: Vec<String>,
    accepted: Vec<SocketAddr>,
    /// Connections.
    open: usize,
    /// Of the next request.
    number: usize,
}

impl Seen {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            let (stream, peer) = listener.accept().expect("connections");
            self.update(|log| {
                log.open += 1;
                log.accepted.push(peer);
            });
            let seen = self.clone();
            thread::spawn(move || {
                seen.serve(stream);
                seen.update(|log| log.open -= 1);
            });
        }
    }

    /// Answers requests until there are no more, or one has not exactly one meaning.
    fn serve(&self, mut stream: TcpStream) {
        let mut bytes = Vec::new();
        loop {
            match request(&bytes) {
                Reading::Whole((head, body), length) => {
                    bytes.drain(..length);
                    let method = head.method.clone();
                    let number = self.record(head, Some(body));
                    if stream.write_all(&answer(&method, number)).is_err() {
                        return;
                    }
                    continue;
                }
                Reading::Broken(reason) => {
                    let fault = format!("{reason}: {}", bytes.escape_ascii());
                    self.update(|log| log.faults.push(fault));
                    return;
                }
                Reading::Incomplete => {}
            }
            let mut piece = [0; 4096];
            let read = stream.read(&mut piece).unwrap_or(0);
            bytes.extend_from_slice(&piece[..read]);
            if read == 0 {
                if let Reading::Whole(head, _) = message::request_head(&bytes) {
                    self.record(head, None);
                }
                return;
            }
        }
    }

    fn record(&self, head: RequestHead, body: Option<Body>) -> usize {
        self.update(|log| {
            let number = log.number;
            log.number += 1;
            log.forwarded.push(Forwarded { number, head, body });
            number
        })
    }

    fn update<T>(&self, change: impl FnOnce(&mut Log) -> T) -> T {
        let changed = change(&mut lock(&self.log));
        self.changed.notify_all();
        changed
    }
}

fn request(bytes: &[u8]) -> Reading<(RequestHead, Body)> {
    match message::request_head(bytes) {
        Reading::Whole(head, length) => match message::body(head.framing, &bytes[length..]) {
            Reading::Whole(body, body_length) => Reading::Whole((head, body), length + body_length),
            Reading::Incomplete => Reading::Incomplete,
            Reading::Broken(reason) => Reading::Broken(reason),
        },
        Reading::Incomplete => Reading::Incomplete,
        Reading::Broken(reason) => Reading::Broken(reason),
    }
}

/// The number, as a field and as the body.
fn answer(method: &str, number: usize) -> Vec<u8> {
    let text = number.to_string();
    let body = if method == "HEAD" { "" } else { &text };
    let length = text.len();
    format!("HTTP/1.1 200 OK\r\n{NUMBER}: {text}\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

fn grant_tokens(listener: &TcpListener) {
    let grant = format!(r#"{{"access_token":"{TOKEN}","token_type":"Bearer","expires_in":86400}}"#);
    loop {
        let (mut stream, _) = listener.accept().expect("connections");
        let mut bytes = Vec::new();
        let mut piece = [0; 4096];
        while request(&bytes) == Reading::Incomplete {
            match stream.read(&mut piece) {
                Ok(0) | Err(_) => break,
                Ok(read) => bytes.extend_from_slice(&piece[..read]),
            }
        }
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json";
        let length = grant.len();
        // The sidecar asks again if it did not get it.
        let _ = write!(
            stream,
            "{head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{grant}"
        );
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
