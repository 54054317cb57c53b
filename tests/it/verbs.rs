//! What operators change while it runs: POST to the admin port.

use tokio::time::Instant;

use crate::support::client::request;
use crate::support::process::Ended;
use crate::support::{
    AuthorizationServer, Client, Process, Response, Setup, Sidecar, Upstream, wait_until,
};

fn post(admin: std::net::SocketAddr, path: &str, fields: &[&str], body: &str) -> Response {
    let length = format!("Content-Length: {}", body.len());
    let fields = [&[length.as_str()], fields].concat();
    Client::connect(admin).exchange(request(&format!("POST {path}"), &fields, body))
}

fn manual(sidecar: &Sidecar, outcome: &str) -> f64 {
    sidecar.metric(&format!(
        "bearerd_token_requests_total{{outcome=\"{outcome}\",token=\"payments\",trigger=\"manual\"}}"
    ))
}

/// D-12
#[test]
fn verbs_are_posted_by_this_machine_and_not_by_web_pages() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let setup = Setup::between(&upstream, &auth).tables("quit = true");
    let sidecar = setup.start();
    let port = sidecar.admin.port();
    for path in ["/quitquitquit", "/token/refresh", "/log-level?level=debug"] {
        for method in ["GET", "HEAD", "PUT", "OPTIONS"] {
            let line = format!("{method} {path}");
            let mut client = Client::connect(sidecar.admin);
            client.send(request(&line, &["Content-Length: 0"], ""));
            let refusal = client.receive_head();
            assert_eq!(refusal.status(), 405, "{line}");
            assert_eq!(refusal.value("allow").unwrap(), "POST", "{line}");
        }
        for field in [
            "Origin: https://evil.example",
            "Origin: null",
            "Sec-Fetch-Site: cross-site",
            "Sec-Fetch-Site: same-site",
        ] {
            let refusal = post(sidecar.admin, path, &[field], "");
            assert_eq!(refusal.status(), 403, "{path} {field}");
        }
        let rebound = format!(
            "POST {path} HTTP/1.1\r\nHost: evil.example:{port}\r\nContent-Length: 0\r\n\r\n"
        );
        let refusal = Client::connect(sidecar.admin).exchange(rebound);
        assert_eq!(refusal.status(), 403, "{path}: DNS rebinding");
    }
    assert_eq!(sidecar.get("/").ok(), "ok", "nothing of it had an effect");
    assert_eq!(manual(&sidecar, "success"), 0.0);
}

/// D-12
#[test]
fn quit_is_off_unless_it_is_switched_on() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    let refusal = post(sidecar.admin, "/quitquitquit", &[], "");
    assert_eq!(refusal.status(), 404);
    assert!(refusal.text().contains("[admin] quit = true"));
    let ended = quit(&sidecar.admin.to_string());
    assert_eq!(ended.code, 1);
    assert!(
        ended.stderr.contains("quit is off") && ended.stderr.contains("(404)"),
        "{}",
        ended.stderr
    );
    assert_eq!(sidecar.get("/").ok(), "ok");
}

fn quit(admin: &str) -> Ended {
    Process::run(&["quit", "--admin-listen", admin], &[])
}

#[test]
fn quit_drains_like_sigterm() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let setup = Setup::between(&upstream, &auth)
        .proxy("drain_delay = \"2s\"")
        .tables("quit = true");
    let sidecar = setup.start_process();
    let admin = sidecar.admin.to_string();
    let mut client = sidecar.client();
    assert_eq!(client.exchange(request("GET /", &[], "")).ok(), "ok");
    let ended = quit(&admin);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "draining\n"));
    // Asked again, it does what it does already: a second signal would cut what is in flight.
    quit(&admin);
    let answer = client.exchange(request("GET /", &[], ""));
    assert_eq!(answer.ok(), "ok", "it serves on for the drain delay");
    assert_eq!(answer.value("connection").unwrap(), "close");
    let ended = sidecar.ended();
    assert_eq!(ended.code, 0);
    assert!(ended.stderr.contains("asked to quit"), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("stopped, nothing was lost"),
        "{}",
        ended.stderr
    );
    let nobody = quit(&admin);
    assert_eq!(nobody.code, 1);
    assert!(
        nobody.stderr.contains("no answer from"),
        "{}",
        nobody.stderr
    );
}

#[test]
fn tokens_are_renewed_on_request_at_most_once_a_second() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    let answer = post(sidecar.admin, "/token/refresh", &[], "");
    assert_eq!(
        (answer.status(), answer.text().as_str()),
        (202, "renewing payments\n")
    );
    auth.wait_for_requests(2);
    wait_until("the renewal", || manual(&sidecar, "success") == 1.0);
    let begun = Instant::now();
    for _ in 0..20 {
        let answer = post(sidecar.admin, "/token/refresh?token=payments", &[], "");
        assert_eq!(answer.status(), 202);
    }
    auth.wait_for_requests(3);
    let most = 4 + begun.elapsed().as_secs() as usize;
    assert!(auth.requests().len() <= most, "one a second, whoever asks");

    let unknown = post(sidecar.admin, "/token/refresh?token=nonsense", &[], "");
    assert_eq!(unknown.status(), 404);
    assert_eq!(
        unknown.text(),
        "there is no such token; there are payments\n"
    );
}

#[test]
fn a_renewal_on_request_does_not_wait_for_the_backoff() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    auth.refuses("invalid_client");
    let sidecar = Setup::between(&upstream, &auth).start_unready();
    auth.wait_for_requests(1);
    wait_until("the refusal", || {
        sidecar.admin("/readyz").text().contains("invalid_client")
    });
    auth.issues_for(3600.0);
    assert_eq!(post(sidecar.admin, "/token/refresh", &[], "").status(), 202);
    sidecar.wait_until_ready();
    assert_eq!(manual(&sidecar, "success"), 1.0);
}

#[test]
fn the_log_level_changes_while_it_runs() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth).start_process_at_info();
    let is_debug = |log: String| log.contains("\"level\":\"DEBUG\"");
    assert!(!is_debug(sidecar.process.stderr()));
    for (path, body, level) in [
        ("/log-level?level=trace", "", "trace"),
        ("/log-level", "level=warn", "warn"),
        ("/log-level", "debug\n", "debug"),
    ] {
        let answer = post(sidecar.admin, path, &[], body);
        let text = format!("level {level}\n");
        assert_eq!((answer.status(), answer.text()), (200, text));
    }
    wait_until("a line of the new level", || {
        assert_eq!(sidecar.get("/").ok(), "ok");
        is_debug(sidecar.process.stderr())
    });
    let long = "x".repeat(1000);
    for (path, body) in [
        ("/log-level", ""),
        ("/log-level", "loud"),
        ("/log-level?level=3", ""),
        ("/log-level?level=", "debug"),
        ("/log-level", long.as_str()),
    ] {
        let refusal = post(sidecar.admin, path, &[], body);
        assert_eq!(refusal.status(), 400, "{path} {body}");
        assert!(refusal.text().contains("error, warn, info, debug, trace"));
    }
}
