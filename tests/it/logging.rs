//! The log of the real program: what it says of requests, and that nothing waits for it.

use serde_json::Value;

use crate::support::client::request;
use crate::support::sidecar::Running;
use crate::support::{AuthorizationServer, Setup, Upstream, wait_until};

const DROPPED: &str = "bearerd_log_lines_dropped_total";

fn start(setup: Setup, level: &str, format: &str) -> Running {
    let environment = [("BEARERD_LOG_LEVEL", level), ("BEARERD_LOG_FORMAT", format)];
    let sidecar = setup
        .proxy("access_log = \"all\"")
        .start_process_with(&environment);
    sidecar.wait_until_ready();
    sidecar
}

/// The lines of the access log, which are JSON.
fn access_lines(sidecar: &Running) -> Vec<Value> {
    let log = sidecar.process.stderr();
    let lines = log.lines().map(|line| {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    });
    lines.filter(|line| line["target"] == "access").collect()
}

/// A-026, H-17: hyper answers by itself, so nothing else would tell of it.
#[test]
fn what_is_not_http_leaves_a_line() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = start(Setup::between(&upstream, &auth), "info", "json");
    for (number, malformed) in [
        request("GET /", &["X : 1"], ""),
        request("GET /", &["no colon"], ""),
        request("GET /", &["Transfer-Encoding: gzip, identity"], ""),
        request("GET /", &vec!["X: 1"; 101], ""),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = sidecar.client();
        client.send(malformed);
        assert!(client.is_refused());
        wait_until("a line", || access_lines(&sidecar).len() == number + 1);
        let line = access_lines(&sidecar).pop().unwrap();
        assert_eq!(line["message"], "not HTTP");
        assert!(
            line["client.address"]
                .as_str()
                .unwrap()
                .starts_with("127.0.0.1:")
        );
        let counted = (number + 1) as f64;
        assert_eq!(
            sidecar.metric("bearerd_downstream_parse_errors_total"),
            counted
        );
    }
}

/// D-36: a line is a line, and shows what it says.
#[test]
fn what_an_application_sends_cannot_forge_a_line() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    for format in ["json", "text"] {
        let sidecar = start(Setup::between(&upstream, &auth), "info", format);
        let long = format!("/{}", "x".repeat(8000));
        for path in [
            "/%0d%0a%1b[31m",
            "/\"}{\"",
            "/\\n\\u001b[31m",
            "/\u{85}line",
            "/\u{9b}31m",
            "/\u{202e}tfel-ot-thgir",
            "/\u{2028}line",
            "/\u{2066}isolate",
            long.as_str(),
        ] {
            let agent = format!("User-Agent: {}", "\u{9b}\u{202e}");
            let answer = sidecar.send(request(&format!("GET {path}"), &[&agent], ""));
            assert!(matches!(answer.status(), 200 | 400), "{path:?}");
        }
        let last = sidecar.send(request("GET /last", &[], ""));
        assert_eq!(last.ok(), "ok");
        wait_until("the last line", || {
            sidecar.process.stderr().contains("/last")
        });
        let log = sidecar.process.stderr();
        for line in log.lines() {
            let odd = line.chars().find(|c| {
                c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            });
            assert_eq!(odd, None, "{line:?}");
            assert!(line.len() < 2048, "{} bytes: {line}", line.len());
        }
        assert!(log.contains("/%C2%85line"), "{log}");
        if format == "json" {
            let paths = access_lines(&sidecar);
            assert!(
                paths
                    .iter()
                    .any(|line| line["url.path"] == "/%0d%0a%1b[31m")
            );
        }
    }
}

/// E-46: whoever reads the log has stopped, and its pipe is full.
#[test]
fn no_request_waits_for_the_log() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = start(Setup::between(&upstream, &auth), "trace", "json");
    sidecar.process.block_log();
    let mut client = sidecar.client();
    let requests = request("GET /", &[], "").repeat(100);
    let mut sent = 0;
    while sidecar.metric(DROPPED) == 0.0 {
        client.send(&requests);
        for _ in 0..100 {
            assert_eq!(client.receive().ok(), "ok");
        }
        sent += 100;
        assert!(
            sent < 50_000,
            "each leaves a line, and so many are not kept"
        );
    }
    assert_eq!(sidecar.admin("/livez").status(), 200);
    assert_eq!(sidecar.get("/").ok(), "ok");
    sidecar.process.unblock_log();
    wait_until("the log goes on", || {
        assert_eq!(sidecar.get("/").ok(), "ok");
        sidecar.get("/after").ok();
        sidecar.process.stderr().contains("/after")
    });
}

/// E-37: whoever reads the log has gone away.
#[test]
fn a_log_that_nobody_reads_any_more_ends_nothing() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = start(Setup::between(&upstream, &auth), "info", "json");
    sidecar.process.close_log();
    let mut client = sidecar.client();
    for _ in 0..100 {
        assert_eq!(client.exchange(request("GET /", &[], "")).ok(), "ok");
    }
    drop(client);
    sidecar.process.signal("TERM");
    let ended = sidecar.process.ended();
    assert_eq!(ended.code, 0);
    assert!(!ended.stderr.contains("nothing was lost"), "it was read");
}
