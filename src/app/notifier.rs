//! Tells the service manager how things stand (sd_notify(3)): ready, reloading, stopping, and that the control thread is
//! alive. Best effort: nothing depends on whether anybody listens.

use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use crate::config::ServiceManager;

/// One that tells nobody by default.
#[derive(Default)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As the variables of the service manager say.
    pub fn new(service_manager: &ServiceManager) -> Self {
        let Some(address) = service_manager.notify_socket() else {
            return Self::default();
        };
        match connect(address) {
            Ok(socket) => Self {
                socket: Some(socket),
                watchdog: service_manager.watchdog(std::process::id()),
            },
            Err(error) => {
                warn!(address, %error, "the service manager does not hear of this process");
                Self::default()
            }
        }
    }

    /// It serves.
    pub(super) fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// It reads its configuration again, and is ready when it says so again.
    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        self.send(&format!(
            "RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS=reading the configuration again"
        ));
    }

    /// It drains.
    pub(super) fn stopping(&self, requests: usize) {
        self.send(&format!(
            "STOPPING=1\nSTATUS=draining, {requests} requests in flight"
        ));
    }

    /// Says for as long as it runs that this thread does, twice in the time that it may be silent. For ever, if nobody
    /// waits for that.
    pub(super) async fn keep_alive(&self) {
        let Some(limit) = self.watchdog else {
            return std::future::pending().await;
        };
        let mut ticks = interval(limit / 2);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.send("WATCHDOG=1");
        }
    }

    fn send(&self, message: &str) {
        if let Some(socket) = &self.socket {
            // A service manager that does not read holds nobody up.
            let _ = socket.send(message.as_bytes());
        }
    }
}

fn connect(address: &str) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    match address.strip_prefix('@') {
        None => socket.connect(address)?,
        Some(name) => socket.connect_addr(&abstract_address(name)?)?,
    }
    Ok(socket)
}

#[cfg(target_os = "linux")]
fn abstract_address(name: &str) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt as _;
    SocketAddr::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_: &str) -> io::Result<SocketAddr> {
    Err(io::ErrorKind::Unsupported.into())
}
