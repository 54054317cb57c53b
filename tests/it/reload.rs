//! What changes while it runs: the configuration, secrets and certificates. What is good takes over without a break, and what is
//! not leaves everything as it was.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::support::authorization_server::CLIENT_SECRET;
use crate::support::certificates::Authority;
use crate::support::client::request;
use crate::support::sidecar::Running;
use crate::support::upstream::OK;
use crate::support::{AuthorizationServer, Setup, Upstream, wait_until};

/// The configuration, with `from` replaced by `to`.
fn edit(sidecar: &Running, from: &str, to: &str) {
    let file = sidecar.config_file();
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{from} in\n{text}");
    // As editors do: no moment with half a file.
    let next = file.with_extension("next");
    fs::write(&next, text.replace(from, to)).unwrap();
    fs::rename(next, file).unwrap();
}

fn reloads(sidecar: &Running, outcome: &str) -> f64 {
    ["file", "signal"]
        .iter()
        .map(|trigger| {
            sidecar.metric(&format!(
                "bearerd_config_reloads_total{{outcome=\"{outcome}\",trigger=\"{trigger}\"}}"
            ))
        })
        .sum()
}

fn wait_for_reload(sidecar: &Running, outcome: &str, before: f64) {
    wait_until(&format!("a reload that is {outcome}"), || {
        reloads(sidecar, outcome) > before
    });
}

/// A changed file is noticed without a signal; tokens and connections of what has not changed are kept.
#[test]
fn a_changed_configuration_takes_over() {
    let (first, second) = (Upstream::ok(), Upstream::answering(OK));
    let auth = AuthorizationServer::new();
    let sidecar = Setup::between(&first, &auth).start_process();
    assert_eq!(sidecar.get("/").ok(), "ok");
    edit(&sidecar, &first.url(), &second.url());
    wait_for_reload(&sidecar, "success", 0.0);
    assert_eq!(sidecar.get("/").ok(), "ok");
    assert_eq!((first.requests().len(), second.requests().len()), (1, 1));
    assert_eq!(auth.requests().len(), 1, "the token is kept");
    assert_eq!(sidecar.metric("bearerd_config_last_reload_successful"), 1.0);
}

/// E-34: a mistake is told, and changes nothing.
#[test]
fn a_configuration_that_is_wrong_leaves_the_old_one_in_use() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth).start_process();
    for (number, (from, to)) in [
        (
            "[upstream.payments]",
            "[upstream.payments]\ncolour = \"red\"",
        ),
        ("colour = \"red\"", "ca_file = \"/nonexistent/ca.pem\""),
        ("ca_file = \"/nonexistent/ca.pem\"", "][ no toml"),
    ]
    .into_iter()
    .enumerate()
    {
        edit(&sidecar, from, to);
        wait_for_reload(&sidecar, "invalid", number as f64);
        assert_eq!(sidecar.get("/").ok(), "ok");
        assert_eq!(sidecar.metric("bearerd_config_last_reload_successful"), 0.0);
    }
    let log = sidecar.process.stderr();
    assert!(log.contains("unknown key `colour`"), "{log}");
    assert!(log.contains("/nonexistent/ca.pem: cannot be read"), "{log}");
    edit(&sidecar, "][ no toml", "");
    wait_for_reload(&sidecar, "success", 0.0);
    assert_eq!(sidecar.metric("bearerd_config_last_reload_successful"), 1.0);
    assert_eq!(auth.requests().len(), 1);
}

/// A credential that is new brings a token before it takes over; one that is refused does not.
#[test]
fn a_changed_credential_is_proven_before_it_is_used() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let other = AuthorizationServer::new();
    other.refuses("invalid_client");
    let sidecar = Setup::between(&upstream, &auth).start_process();
    edit(&sidecar, &auth.url(), &other.url());
    wait_for_reload(&sidecar, "no_token", 0.0);
    assert_eq!(sidecar.get("/").ok(), "ok");
    let sent = |upstream: &Upstream| {
        upstream
            .requests()
            .pop()
            .unwrap()
            .head
            .value("authorization")
    };
    assert_eq!(sent(&upstream).unwrap(), "Bearer token-1");
    other.issues("other", 3600.0);
    sidecar.process.signal("HUP");
    wait_for_reload(&sidecar, "success", 0.0);
    assert_eq!(sidecar.get("/").ok(), "ok");
    assert_eq!(sent(&upstream).unwrap(), "Bearer other");
    assert_eq!(sidecar.admin("/readyz").status(), 200);
}

/// What only a start looks at is said to need one, and the rest is put to use.
#[test]
fn a_setting_that_needs_a_restart_says_so() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth).start_process();
    edit(
        &sidecar,
        "[proxy]",
        "[proxy]\nmax_connections = 7\nmax_body_bytes = \"1KiB\"",
    );
    wait_for_reload(&sidecar, "success", 0.0);
    wait_until("a line about it", || {
        let log = sidecar.process.stderr();
        log.contains("needs a restart") && log.contains("proxy.max_connections")
    });
    let large = request("POST /", &["Content-Length: 2000"], "x".repeat(2000));
    sidecar.send(large).assert_problem(413, "body_too_large");
}

/// C-43, C-65, C-66: as Kubernetes does it, twice in a row, under load: no request fails, and the new secret is used at once.
#[test]
fn a_rotated_secret_costs_no_request() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    auth.issues_to(CLIENT_SECRET);
    let setup = Setup::between(&upstream, &auth);
    let mount = setup.path("mount");
    fs::create_dir(&mount).unwrap();
    mount_secret(&mount, "1", CLIENT_SECRET);
    symlink("..data/client_secret", mount.join("client_secret")).unwrap();
    let sidecar = setup
        .secret_at(&mount.join("client_secret"))
        .start_process();
    let load = Load::start(&sidecar, 4);
    mount_secret(&mount, "2", "wr0ng");
    wait_for_metric(&sidecar, "refused", 1.0);
    assert!(
        sidecar
            .admin("/readyz?verbose")
            .text()
            .contains("for credentials before the present ones: invalid_client"),
        "{}",
        sidecar.admin("/readyz?verbose").text()
    );
    auth.issues_to("r0tated");
    mount_secret(&mount, "3", "r0tated too early");
    mount_secret(&mount, "4", "r0tated");
    wait_for_metric(&sidecar, "accepted", 1.0);
    let (requests, failed) = load.stop();
    assert_eq!(failed, 0, "of {requests}");
    assert!(requests > 0);
    assert_eq!(sidecar.admin("/readyz").status(), 200);
}

fn wait_for_metric(sidecar: &Running, outcome: &str, value: f64) {
    let series = format!("bearerd_secret_reloads_total{{outcome=\"{outcome}\"}}");
    wait_until(&series, || sidecar.metric(&series) >= value);
}

/// A new directory with the file, and the link to it moved.
fn mount_secret(mount: &Path, version: &str, secret: &str) {
    let data = mount.join(format!("..{version}"));
    fs::create_dir(&data).unwrap();
    fs::write(data.join("client_secret"), secret).unwrap();
    symlink(format!("..{version}"), mount.join("..data_tmp")).unwrap();
    fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
}

/// C-78: a replaced CA is used for new connections, a broken one changes nothing.
#[test]
fn a_replaced_ca_file_is_used() {
    let (first, second) = (Authority::new(), Authority::new());
    let upstream = Upstream::scripted_tls(|exchange| exchange.send(OK));
    let ca_file = |setup: &Setup| setup.path("ca.pem");
    let auth = AuthorizationServer::new();
    let setup = Setup::new(&upstream.url(), &auth);
    fs::copy(upstream.authority().unwrap().ca_file(), ca_file(&setup)).unwrap();
    let path = ca_file(&setup);
    let line = format!(
        "ca_file = {:?}\nmax_idle_connections = 0",
        path.display().to_string()
    );
    let sidecar = setup.upstream(&line).start_process();
    assert_eq!(sidecar.get("/").ok(), "ok");
    fs::write(&path, "garbage").unwrap();
    wait_for_reload(&sidecar, "invalid", 0.0);
    assert_eq!(sidecar.get("/").ok(), "ok", "the old one is kept");
    fs::copy(first.ca_file(), &path).unwrap();
    wait_for_reload(&sidecar, "success", 0.0);
    sidecar.get("/").assert_problem(502, "upstream_tls_error");
    upstream.set_tls(first.server("127.0.0.1", &["http/1.1"]));
    assert_eq!(sidecar.get("/").ok(), "ok", "the new one is trusted");
    upstream.set_tls(second.server("127.0.0.1", &["http/1.1"]));
    sidecar.get("/").assert_problem(502, "upstream_tls_error");
    assert_eq!(auth.requests().len(), 1, "no token was asked for again");
}

/// Clients that send one request after another.
struct Load {
    stop: std::sync::Arc<AtomicBool>,
    counts: std::sync::Arc<(AtomicUsize, AtomicUsize)>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Load {
    fn start(sidecar: &Running, clients: usize) -> Self {
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let counts = std::sync::Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
        let threads = (0..clients)
            .map(|_| {
                let (stop, counts) = (stop.clone(), counts.clone());
                let mut client = sidecar.client();
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let answer = client.exchange(request("GET /", &[], ""));
                        counts.0.fetch_add(1, Ordering::Relaxed);
                        counts
                            .1
                            .fetch_add(usize::from(answer.status() != 200), Ordering::Relaxed);
                    }
                })
            })
            .collect();
        Self {
            stop,
            counts,
            threads,
        }
    }

    /// How many requests there were, and how many of them failed.
    fn stop(self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("every request is answered");
        }
        (
            self.counts.0.load(Ordering::Relaxed),
            self.counts.1.load(Ordering::Relaxed),
        )
    }
}

/// E-33: SIGHUP ten times a second, every other time with another configuration: no request fails, and nothing is left open.
fn reloads_without_end(time: Duration) {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth)
        .upstream("max_idle_connections = 8")
        .start_process();
    let load = Load::start(&sidecar, 4);
    let open = sidecar.process.open_files();
    let end = Instant::now() + time;
    let mut swapped = false;
    while Instant::now() < end {
        swapped = !swapped;
        let (from, to) = if swapped {
            ("= 8", "= 9")
        } else {
            ("= 9", "= 8")
        };
        edit(&sidecar, from, to);
        sidecar.process.signal("HUP");
        thread::sleep(Duration::from_millis(100));
    }
    let (requests, failed) = load.stop();
    assert_eq!(failed, 0, "of {requests}");
    assert_eq!(auth.requests().len(), 1, "the credential has not changed");
    let reloads = reloads(&sidecar, "success");
    assert!(reloads >= time.as_secs_f64() * 2.0, "{reloads} reloads");
    // Each client's connection, and what two workers keep to the upstream: of the pools before, nothing.
    wait_until("as few files as before", || {
        sidecar.process.open_files() <= open + 20
    });
    println!("{requests} requests, {reloads} reloads");
}

#[test]
fn reloads_under_load_cost_no_request() {
    reloads_without_end(Duration::from_secs(5));
}

/// The same for half a minute: `cargo test --test it half_a_minute -- --ignored --nocapture`.
#[test]
#[ignore = "takes half a minute"]
fn reloads_under_load_for_half_a_minute() {
    reloads_without_end(Duration::from_secs(30));
}
