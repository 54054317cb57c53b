//! The sidecar: its configuration, and a run of it in this process.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::iter;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use bearerd::app::{App, Outcome, Stop};
use bearerd::config::{Config, Flags, Inputs};
use bearerd::runtime;
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::authorization_server::{AuthorizationServer, CLIENT_ID, CLIENT_SECRET};
use super::certificates::Authority;
use super::client::{Client, Response, request};
use super::h2_client::H2Client;
use super::process::{Ended, Process};
use super::server::Exchange;
use super::upstream::Upstream;
use super::wait_until;

/// A configuration in the making, with a folder of its own.
pub struct Setup {
    folder: TempDir,
    proxy: String,
    upstream: String,
    credential: String,
    others: String,
}

impl Setup {
    /// Between these two.
    pub fn new(upstream_url: &str, authorization_server: &AuthorizationServer) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let secret_file = folder.path().join("client_secret");
        let setup = Self {
            proxy: "listen = \"127.0.0.1:0\"\n".to_owned(),
            upstream: format!("url = {upstream_url:?}\n"),
            credential: format!(
                "token_url = {:?}\nclient_secret_file = {:?}\n",
                authorization_server.url(),
                secret_file.display().to_string(),
            ),
            others: "[admin]\nlisten = \"127.0.0.1:0\"\n".to_owned(),
            folder,
        };
        setup.write_secret(CLIENT_SECRET);
        match authorization_server.authority() {
            Some(authority) => {
                let ca_file = authority.ca_file().display().to_string();
                setup.credential(&format!("ca_file = {ca_file:?}"))
            }
            None => setup,
        }
    }

    /// Between these two.
    pub fn between(upstream: &Upstream, authorization_server: &AuthorizationServer) -> Self {
        let setup = Self::new(&upstream.url(), authorization_server);
        match upstream.authority() {
            Some(authority) => setup.trusting(authority),
            None => setup,
        }
    }

    /// Listens there instead of on a port of 127.0.0.1: a TOML value.
    pub fn listening_on(mut self, listen: &str) -> Self {
        self.proxy = self
            .proxy
            .replace("listen = \"127.0.0.1:0\"", &format!("listen = {listen}"));
        self
    }

    /// Adds lines to `[proxy]`.
    pub fn proxy(mut self, lines: &str) -> Self {
        let _ = writeln!(self.proxy, "{lines}");
        self
    }

    /// Adds lines to the upstream's table.
    pub fn upstream(mut self, lines: &str) -> Self {
        let _ = writeln!(self.upstream, "{lines}");
        self
    }

    /// Adds lines to the credential's table.
    pub fn credential(mut self, lines: &str) -> Self {
        let _ = writeln!(self.credential, "{lines}");
        self
    }

    /// The credential's table is these lines, and a `client_id` if they have none.
    pub fn credential_instead(mut self, lines: &str) -> Self {
        self.credential = format!("{lines}\n");
        self
    }

    /// Adds tables.
    pub fn tables(mut self, lines: &str) -> Self {
        let _ = writeln!(self.others, "{lines}");
        self
    }

    /// Makes the upstream's certificate trusted.
    pub fn trusting(self, authority: &Authority) -> Self {
        let line = format!("ca_file = {:?}", authority.ca_file().display().to_string());
        self.upstream(&line)
    }

    /// Writes the client secret.
    pub fn write_secret(&self, secret: &str) {
        fs::write(self.secret_file(), secret).unwrap();
    }

    /// Where the client secret is.
    pub fn secret_file(&self) -> PathBuf {
        self.folder.path().join("client_secret")
    }

    /// Has the client secret there, instead of where [`secret_file`](Self::secret_file) says.
    pub fn secret_at(mut self, path: &Path) -> Self {
        let own = self.secret_file().display().to_string();
        self.credential = self.credential.replace(&own, &path.display().to_string());
        self
    }

    /// A path in its folder where nothing is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the configuration, and says where.
    pub fn config_file(&self) -> PathBuf {
        let client_id = if self.credential.contains("client_id") {
            String::new()
        } else {
            format!("client_id = {CLIENT_ID:?}\n")
        };
        let text = format!(
            "[proxy]\n{}\n[upstream.payments]\n{}\n[credential.payments]\n{}{client_id}\n{}",
            self.proxy, self.upstream, self.credential, self.others
        );
        let path = self.folder.path().join("bearerd.toml");
        fs::write(&path, text).unwrap();
        path
    }

    /// Starts it in this process, and waits until it is ready.
    pub fn start(self) -> Sidecar {
        let sidecar = self.start_unready();
        sidecar.wait_until_ready();
        sidecar
    }

    /// Starts it in this process.
    pub fn start_unready(self) -> Sidecar {
        let config = load(&self.config_file());
        let app = App::bind(config).unwrap();
        let ports = Ports {
            proxy: app.addresses().proxy_tcp().expect("a TCP listener"),
            admin: app.addresses().admin.tcp().expect("a TCP listener"),
        };
        let (stops, receiver) = mpsc::channel(2);
        let thread = thread::spawn(move || {
            let outcome = runtime::control(app.run(receiver)).expect("a runtime");
            outcome.expect("the sidecar runs until it is stopped")
        });
        Sidecar {
            ports,
            setup: self,
            stops,
            thread: Some(thread),
        }
    }

    /// Starts the real program, and waits until it is ready.
    pub fn start_process(self) -> Running {
        let running = self.start_process_unready();
        running.wait_until_ready();
        running
    }

    /// The same with no more in its log than by default: each frame of a flood would be a line otherwise.
    pub fn start_process_at_info(self) -> Running {
        let running = self.start_process_with(&[("BEARERD_LOG_LEVEL", "info")]);
        running.wait_until_ready();
        running
    }

    /// Starts the real program, and waits until it listens.
    pub fn start_process_unready(self) -> Running {
        self.start_process_with(&[])
    }

    /// The same with these variables.
    pub fn start_process_with(self, environment: &[(&str, &str)]) -> Running {
        let config = self.config_file().display().to_string();
        self.running(Process::start(&["--config", &config], environment))
    }

    /// The real program with no more than so many file descriptors; waits until it is ready.
    pub fn start_process_with_files(self, files: usize) -> Running {
        let config = self.config_file().display().to_string();
        let running = self.running(Process::start_with_files(files, &["--config", &config]));
        running.wait_until_ready();
        running
    }

    fn running(self, process: Process) -> Running {
        Running {
            ports: process.ports(),
            process,
            setup: self,
        }
    }
}

fn load(path: &Path) -> Config {
    let flags = Flags {
        config: Some(path.to_owned()),
        ..Flags::default()
    };
    Config::load(&Inputs::new(flags, iter::empty())).unwrap_or_else(|error| panic!("{error}"))
}

/// Where a sidecar listens, and what one asks there.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    pub proxy: SocketAddr,
    pub admin: SocketAddr,
}

impl Ports {
    /// A connection of the application.
    pub fn client(&self) -> Client {
        Client::connect(self.proxy)
    }

    /// The same over HTTP/2.
    pub fn h2_client(&self) -> H2Client {
        H2Client::connect(self.proxy)
    }

    /// Sends `request` on a connection of its own.
    pub fn send(&self, request: impl AsRef<[u8]>) -> Response {
        self.client().exchange(request)
    }

    /// A GET on a connection of its own.
    pub fn get(&self, path: &str) -> Response {
        self.send(request(&format!("GET {path}"), &[], ""))
    }

    /// A GET to the admin port.
    pub fn admin(&self, path: &str) -> Response {
        Client::connect(self.admin).exchange(request(&format!("GET {path}"), &[], ""))
    }

    /// The value of one series, by the text of its labels as `/metrics` has it.
    pub fn metric(&self, series: &str) -> f64 {
        let metrics = self.admin("/metrics").ok();
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        let value = line.unwrap_or_else(|| panic!("no series {series} in\n{metrics}"));
        value.parse().unwrap()
    }

    /// How many requests were refused with this code.
    pub fn refused(&self, code: &str) -> f64 {
        self.metric(&format!(
            "bearerd_rejected_requests_total{{reason=\"{code}\"}}"
        ))
    }

    /// How many requests found this when they looked for a token.
    pub fn lookups(&self, result: &str) -> f64 {
        self.metric(&format!(
            "bearerd_token_lookups_total{{result=\"{result}\",token=\"payments\"}}"
        ))
    }

    /// Waits until a series has this value.
    pub fn wait_for_metric(&self, series: &str, value: f64) {
        wait_until(&format!("{series} {value}"), || {
            self.metric(series) == value
        });
    }

    /// Waits until requests will be served.
    pub fn wait_until_ready(&self) {
        wait_until("readiness", || self.admin("/readyz").status() == 200);
    }
}

/// A sidecar in this process. Dropping it cuts whatever it does.
pub struct Sidecar {
    ports: Ports,
    pub setup: Setup,
    stops: mpsc::Sender<Stop>,
    thread: Option<JoinHandle<Outcome>>,
}

impl Sidecar {
    /// Between these two, ready.
    pub fn between(upstream: &Upstream, authorization_server: &AuthorizationServer) -> Self {
        Setup::between(upstream, authorization_server).start()
    }

    /// Before an upstream with these settings that does this with every request.
    pub fn before(
        settings: &str,
        script: impl Fn(&mut Exchange<'_>) -> io::Result<()> + Send + Sync + 'static,
    ) -> (Self, Upstream, AuthorizationServer) {
        let (upstream, auth) = (Upstream::scripted(script), AuthorizationServer::new());
        let sidecar = Setup::between(&upstream, &auth).upstream(settings).start();
        (sidecar, upstream, auth)
    }

    /// Stops it; nothing may be lost.
    pub fn stop(mut self) {
        self.stops.try_send(Stop::AtOnce).expect("it is running");
        let thread = self.thread.take().expect("it is running");
        assert_eq!(thread.join().expect("no panic"), Outcome { cut: 0 });
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        // The second wish cuts what the test left behind.
        let _ = self.stops.try_send(Stop::AtOnce);
        let _ = self.stops.try_send(Stop::AtOnce);
        let ended = thread.join();
        assert!(ended.is_ok() || thread::panicking(), "the sidecar panicked");
    }
}

impl Deref for Sidecar {
    type Target = Ports;

    fn deref(&self) -> &Ports {
        &self.ports
    }
}

/// The real program, running.
pub struct Running {
    ports: Ports,
    pub process: Process,
    setup: Setup,
}

impl Running {
    /// Waits for its end.
    pub fn ended(self) -> Ended {
        self.process.ended()
    }

    /// Waits for its end; its exit code, and what is then true in its folder.
    pub fn ended_with<T>(self, look: impl FnOnce() -> T) -> (i32, T) {
        let code = self.process.ended().code;
        (code, look())
    }

    /// Its configuration.
    pub fn config_file(&self) -> PathBuf {
        self.setup.path("bearerd.toml")
    }
}

impl Deref for Running {
    type Target = Ports;

    fn deref(&self) -> &Ports {
        &self.ports
    }
}
