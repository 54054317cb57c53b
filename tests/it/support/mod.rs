//! The other side of everything: a client, upstreams, an authorization server and the sidecar itself. They record bytes,
//! listen on port 0, and wait for conditions, never for a time to pass.

pub mod authorization_server;
pub mod certificates;
pub mod client;
pub mod crowd;
pub mod forward_proxy;
pub mod h2_client;
pub mod h2_frame_upstream;
pub mod h2_frames;
pub mod h2_upstream;
pub mod process;
pub mod server;
pub mod sidecar;
pub mod upstream;
pub mod websocket;
pub mod wire;

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

pub use authorization_server::AuthorizationServer;
pub use client::{Client, Response};
pub use crowd::Crowd;
pub use forward_proxy::ForwardProxy;
pub use h2_client::H2Client;
pub use process::Process;
pub use sidecar::{Setup, Sidecar};
pub use upstream::Upstream;

/// Longer than any machine under load needs: only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks `probe` until it yields something.
///
/// # Panics
/// When it yields nothing for [`PATIENCE`].
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(what, || condition().then_some(()));
}

/// Holds threads back until it is opened. Clones are the same gate.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// Lets everybody pass, from now on.
    pub fn open(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    /// Waits for [`open`](Self::open), or for [`PATIENCE`], so that a failing test ends.
    pub fn wait(&self) {
        let open = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.0.1.wait_timeout_while(open, PATIENCE, |open| !*open);
    }
}
