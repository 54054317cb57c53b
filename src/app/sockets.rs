//! The sockets of a sidecar, bound before anything else begins, so that a conflict of ports shows first.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::RunError;
use crate::config::Config;
use crate::net::socket::{ListenAddress, ListeningSocket};

/// How often, and how far apart, it is tried to bind an address that is in use.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// Where a sidecar listens; port 0 of the configuration is a real port here.
#[derive(Clone, Debug)]
pub struct Addresses {
    pub proxy: Vec<ListenAddress>,
    pub admin: ListenAddress,
}

impl Addresses {
    /// The first TCP address for applications.
    pub fn proxy_tcp(&self) -> Option<SocketAddr> {
        self.proxy.iter().find_map(ListenAddress::tcp)
    }
}

/// Sockets that a service manager opened for this process.
#[derive(Default)]
pub struct Inherited {
    /// Instead of `[proxy] listen`.
    pub proxy: Vec<ListeningSocket>,
    /// Instead of `[admin] listen`.
    pub admin: Option<ListeningSocket>,
}

/// All of them, and where they are.
pub(super) struct Sockets {
    pub(super) proxies: Vec<ListeningSocket>,
    pub(super) admin: ListeningSocket,
    pub(super) addresses: Addresses,
}

impl Sockets {
    /// Binds those that are not `inherited`.
    pub(super) fn bind(config: &Config, inherited: Inherited) -> Result<Self, RunError> {
        let bind = |address: &ListenAddress| {
            bind_patiently(address, config.proxy.unix_socket_mode).map_err(|source| {
                RunError::Bind {
                    address: address.clone(),
                    source,
                }
            })
        };
        let address = |socket: &ListeningSocket| socket.address().map_err(RunError::Inherited);
        let proxies = if inherited.proxy.is_empty() {
            let addresses = config.proxy.listen.iter();
            addresses.map(bind).collect::<Result<Vec<_>, _>>()?
        } else {
            inherited.proxy
        };
        let admin = match inherited.admin {
            Some(socket) => socket,
            None => bind(&ListenAddress::Tcp(config.admin.listen))?,
        };
        let addresses = Addresses {
            proxy: proxies.iter().map(address).collect::<Result<_, _>>()?,
            admin: address(&admin)?,
        };
        let mut tcp = addresses.proxy.iter().filter_map(ListenAddress::tcp);
        let open = tcp.find(|address| !address.ip().is_loopback());
        if let Some(open) = open.filter(|_| !config.proxy.guard.allow_remote_clients) {
            return Err(RunError::NotLoopback(open));
        }
        Ok(Self {
            proxies,
            admin,
            addresses,
        })
    }
}

/// Binds, and where the address is in use, tries for a second. The kernel takes a while to close all that a process had
/// which was killed, and whoever watches over us may start the next one in the same moment.
fn bind_patiently(address: &ListenAddress, mode: u32) -> io::Result<ListeningSocket> {
    for _ in 1..ATTEMPTS {
        match ListeningSocket::bind(address, mode) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => pause(),
            result => return result,
        }
    }
    ListeningSocket::bind(address, mode)
}

#[expect(
    clippy::disallowed_methods,
    reason = "nothing runs yet that could be held up"
)]
fn pause() {
    std::thread::sleep(PAUSE);
}
