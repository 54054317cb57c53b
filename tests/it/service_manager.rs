//! What a service manager such as systemd hears of the real program.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::support::sidecar::Running;
use crate::support::{AuthorizationServer, PATIENCE, Setup, Upstream};

/// Hears what is told.
struct Manager(UnixDatagram);

impl Manager {
    fn new(socket: UnixDatagram) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    /// The next message, as lines.
    fn hears(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        let length = self.0.recv(&mut buffer).expect("a message");
        let text = std::str::from_utf8(&buffer[..length]).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// The next message that is not about the watchdog.
    fn hears_of(&self, state: &str) -> Vec<String> {
        loop {
            let lines = self.hears();
            if lines != ["WATCHDOG=1"] {
                assert_eq!(lines[0], state, "{lines:?}");
                return lines;
            }
        }
    }
}

fn monotonic_micros() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    (now.tv_sec * 1_000_000 + now.tv_nsec / 1000) as u64
}

fn start(setup: Setup, variables: &[(&str, &str)]) -> Running {
    let sidecar = setup.start_process_with(variables);
    sidecar.wait_until_ready();
    sidecar
}

#[test]
fn it_hears_of_start_reload_and_stop() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::hanging());
    let setup = Setup::between(&upstream, &auth);
    let path = setup.path("notify");
    let manager = Manager::new(UnixDatagram::bind(&path).unwrap());
    let path = path.display().to_string();
    let sidecar = setup.start_process_with(&[("NOTIFY_SOCKET", &path)]);
    let ready = manager.hears_of("READY=1");
    let status = format!("STATUS=serving on http://{}", sidecar.proxy);
    assert_eq!(ready, ["READY=1", &status], "it listens, token or not");
    auth.issues_for(3600.0);
    sidecar.wait_until_ready();

    let before = monotonic_micros();
    sidecar.process.signal("HUP");
    let reloading = manager.hears_of("RELOADING=1");
    let at = reloading[1].strip_prefix("MONOTONIC_USEC=").unwrap();
    let at: u64 = at.parse().unwrap();
    assert!((before..=monotonic_micros()).contains(&at), "{at}");
    assert_eq!(
        manager.hears_of("READY=1")[1],
        "STATUS=serving by a new configuration"
    );

    std::fs::write(sidecar.config_file(), "nonsense").unwrap();
    manager.hears_of("RELOADING=1");
    assert!(manager.hears_of("READY=1")[1].contains("is not in use"));

    sidecar.process.signal("TERM");
    let stopping = manager.hears_of("STOPPING=1");
    assert_eq!(stopping[1], "STATUS=draining, 0 requests in flight");
    assert_eq!(sidecar.ended().code, 0);
}

#[test]
fn an_abstract_socket_and_a_watchdog() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let name = format!("bearerd-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let manager = Manager::new(UnixDatagram::bind_addr(&address).unwrap());
    let address = format!("@{name}");
    let variables = [
        ("NOTIFY_SOCKET", address.as_str()),
        ("WATCHDOG_USEC", "200000"),
    ];
    let sidecar = start(Setup::between(&upstream, &auth), &variables);
    manager.hears_of("READY=1");
    for _ in 0..5 {
        assert_eq!(manager.hears(), ["WATCHDOG=1"]);
    }
    sidecar.process.signal("TERM");
    manager.hears_of("STOPPING=1");
    assert_eq!(sidecar.ended().code, 0);
}

#[test]
fn a_manager_that_is_not_there_or_means_another_process_is_no_trouble() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let setup = Setup::between(&upstream, &auth);
    let path = setup.path("notify");
    let manager = Manager::new(UnixDatagram::bind(&path).unwrap());
    let path = path.display().to_string();
    let variables = [
        ("NOTIFY_SOCKET", path.as_str()),
        ("WATCHDOG_USEC", "1000"),
        ("WATCHDOG_PID", "1"),
    ];
    let sidecar = start(setup, &variables);
    assert_eq!(manager.hears()[0], "READY=1");
    sidecar.process.signal("TERM");
    assert_eq!(manager.hears()[0], "STOPPING=1", "no word of a watchdog");
    assert_eq!(sidecar.ended().code, 0);

    let setup = Setup::between(&upstream, &auth);
    let sidecar = start(setup, &[("NOTIFY_SOCKET", "/nonexistent/notify")]);
    assert_eq!(sidecar.get("/").ok(), "ok");
    let log = sidecar.process.stderr();
    assert!(log.contains("the service manager does not hear"), "{log}");
}
