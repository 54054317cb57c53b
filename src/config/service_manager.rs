//! What a service manager such as systemd tells this process by variables.

use std::time::Duration;

/// The variables of sd_listen_fds_with_names(3), sd_notify(3) and sd_watchdog_enabled(3).
#[derive(Clone, Debug, Default)]
pub struct ServiceManager {
    socket_names: Vec<String>,
    notify_socket: Option<String>,
    watchdog: Option<Duration>,
    watchdog_process: Option<u32>,
}

impl ServiceManager {
    /// Takes a variable, if it is one of them.
    pub(super) fn take(&mut self, name: &str, value: &str) {
        match name {
            "LISTEN_FDNAMES" => {
                self.socket_names = value.split(':').map(str::to_owned).collect();
            }
            "NOTIFY_SOCKET" if !value.is_empty() => self.notify_socket = Some(value.to_owned()),
            "WATCHDOG_USEC" => self.watchdog = value.parse().ok().map(Duration::from_micros),
            "WATCHDOG_PID" => self.watchdog_process = value.parse().ok(),
            _ => {}
        }
    }

    /// What the sockets that it passes are called, in their order.
    pub fn socket_names(&self) -> &[String] {
        &self.socket_names
    }

    /// Where it wants to hear of us: a path, or `@` and the name of an abstract socket.
    pub fn notify_socket(&self) -> Option<&str> {
        self.notify_socket.as_deref()
    }

    /// How long the process of this id may be silent; none if nobody waits.
    pub fn watchdog(&self, process: u32) -> Option<Duration> {
        let is_meant = self.watchdog_process.is_none_or(|meant| meant == process);
        self.watchdog.filter(|time| is_meant && !time.is_zero())
    }
}
