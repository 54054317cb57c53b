//! What the real program gives up at its start, and that it misses nothing of it.

use std::fs;

use crate::support::{AuthorizationServer, Setup, Upstream, eventually};

#[test]
fn no_thread_gains_privileges_and_the_start_says_so() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth).start_process();
    assert_eq!(sidecar.get("/").ok(), "ok");
    let threads = sidecar.process.threads();
    assert!(threads.len() >= 3, "{threads:?}");
    for thread in threads {
        let status = sidecar.process.proc(&format!("task/{thread}/status"));
        assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    }
    let first = eventually("the first line", || {
        sidecar.process.stderr().lines().next().map(str::to_owned)
    });
    assert!(first.contains("workers, no new privileges, "), "{first}");
}

/// A new configuration may name what nobody knew of at the start.
#[test]
fn a_reload_may_read_anywhere() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth).start_process();
    let elsewhere = tempfile::tempdir().unwrap();
    let secret = elsewhere.path().join("client_secret");
    fs::write(&secret, "corrected").unwrap();
    auth.issues_to("corrected");
    let text = fs::read_to_string(sidecar.config_file()).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("client_secret_file"));
    let path = secret.display().to_string();
    let text = text.replace(line.unwrap(), &format!("client_secret_file = {path:?}"));
    let requests = auth.requests().len();
    fs::write(sidecar.config_file(), text).unwrap();
    auth.wait_for_requests(requests + 1);
    eventually("the new configuration", || {
        let log = sidecar.process.stderr();
        log.contains("configuration reloaded").then_some(())
    });
    assert_eq!(sidecar.get("/").ok(), "ok");
}

/// The one thing that it writes to a disk: it takes the file of its socket away.
#[test]
fn the_file_of_a_unix_socket_goes_at_the_end() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let setup = Setup::between(&upstream, &auth);
    let socket = setup.path("proxy.sock");
    let listen = format!("[\"127.0.0.1:0\", \"unix:{}\"]", socket.display());
    let sidecar = setup.listening_on(&listen).start_process();
    assert!(socket.exists());
    sidecar.process.signal("TERM");
    let (code, gone) = sidecar.ended_with(|| !socket.exists());
    assert_eq!((code, gone), (0, true));
}
