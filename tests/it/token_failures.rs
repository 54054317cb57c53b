//! What happens when the authorization server gives no token: the process lives, requests are told, it recovers.

use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::support::authorization_server::json;
use crate::support::client::request;
use crate::support::upstream::OK;
use crate::support::{
    AuthorizationServer, Client, Setup, Sidecar, Upstream, eventually, wait_until,
};

/// Asserts that the answer to a GET is the refusal for want of a token, with a time to try again.
fn assert_unavailable(sidecar: &Sidecar) -> String {
    let answer = sidecar.get("/");
    answer.assert_problem(503, "token_unavailable");
    let retry_after: u64 = answer.value("retry-after").unwrap().parse().unwrap();
    assert!((1..=300).contains(&retry_after), "{retry_after}");
    answer.text()
}

/// E-01, E-05: it starts without the authorization server, and recovers within 10 s of its return.
#[test]
fn an_authorization_server_that_is_down_at_the_start_delays_nothing_but_tokens() {
    let (upstream, mut auth) = (Upstream::ok(), AuthorizationServer::new());
    auth.stop();
    let sidecar = Setup::between(&upstream, &auth)
        .credential("wait_timeout = \"200ms\"")
        .start_unready();
    assert_eq!(sidecar.admin("/livez").status(), 200);
    assert_eq!(sidecar.admin("/readyz").status(), 503);
    assert_unavailable(&sidecar);
    assert_eq!(upstream.connections(), 0);
    auth.restart();
    let returned = Instant::now();
    sidecar.wait_until_ready();
    // 10 s is the longest backoff while there is nothing to serve; the rest is for a machine under load.
    assert!(returned.elapsed() < Duration::from_secs(15));
    assert_eq!(sidecar.get("/").ok(), "ok");
}

/// E-02: a server that says nothing costs a request no more than its own wait.
#[test]
fn requests_wait_for_a_token_no_longer_than_wait_timeout() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::hanging());
    let sidecar = Setup::between(&upstream, &auth)
        .credential("wait_timeout = \"300ms\"")
        .start_unready();
    let asked = Instant::now();
    assert_unavailable(&sidecar);
    assert!(asked.elapsed() >= Duration::from_millis(300));
    assert_eq!(auth.requests().len(), 1);
}

/// D-56 for the waiting: beyond `max_waiting` nobody waits.
#[test]
fn no_more_requests_wait_than_max_waiting() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::hanging());
    let sidecar = Setup::between(&upstream, &auth)
        .credential("wait_timeout = \"1h\"\nmax_waiting = 1")
        .start_unready();
    let mut waiting = [sidecar.client(), sidecar.client()];
    for client in &mut waiting {
        client.send(request("GET /", &[], ""));
    }
    // Either can be the one that gets the place.
    let refused = eventually("a refusal at once", || {
        waiting.iter_mut().position(Client::has_answer)
    });
    waiting[refused]
        .receive()
        .assert_problem(503, "token_unavailable");
    assert!(!waiting[1 - refused].has_answer());
    auth.issues("token", 3600.0);
    assert_eq!(waiting[1 - refused].receive().ok(), "ok");
}

/// C-42, E-08: a refused client is 503, never 401: the application has not done anything wrong.
#[test]
fn a_wrong_secret_is_503_until_the_file_is_corrected() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    auth.issues_to("right");
    let sidecar = Setup::between(&upstream, &auth).start_unready();
    wait_until("a refusal", || {
        sidecar.admin("/readyz").text().contains("invalid_client")
    });
    let answer = sidecar.get("/");
    answer.assert_problem(503, "token_unavailable");
    assert_eq!(
        answer.value("proxy-status").unwrap(),
        "bearerd; error=proxy_configuration_error"
    );
    assert_eq!(
        auth.requests().len(),
        1,
        "C-05: nothing is probed, C-42: the backoff is long"
    );
    sidecar.setup.write_secret("right\n");
    let corrected = Instant::now();
    sidecar.wait_until_ready();
    assert!(
        corrected.elapsed() < Duration::from_secs(20),
        "the backoff was waited for, 30 s"
    );
    assert_eq!(sidecar.get("/").ok(), "ok");
    assert_eq!(auth.requests().len(), 2);
}

/// Statuses and JSON bodies that grant nothing.
const NO_GRANTS: [(&str, &str); 18] = [
    ("200 OK", ""),
    ("200 OK", "<html>LEAK</html>"),
    ("200 OK", "access_token=LEAK&expires_in=3600"),
    ("200 OK", r#"{"error":"invalid_client","error_uri":"LEAK"}"#),
    ("200 OK", r#"{"access_token":"LEAK"}"#),
    ("200 OK", r#"{"access_token":"LEAK","token_type":"mac"}"#),
    (
        "200 OK",
        r#"{"access_token":"LEAK","access_token":"LEAK","token_type":"Bearer"}"#,
    ),
    (
        "200 OK",
        r#"{"access_token":"LEAK\r\nX-Evil: 1","token_type":"Bearer"}"#,
    ),
    (
        "200 OK",
        r#"{"access_token":"LEAK LEAK","token_type":"Bearer"}"#,
    ),
    (
        "200 OK",
        r#"{"access_token":"LEAK\u0000","token_type":"Bearer"}"#,
    ),
    (
        "200 OK",
        r#"{"access_token":"LEAKé","token_type":"Bearer"}"#,
    ),
    ("200 OK", r#"{"access_token":"","token_type":"Bearer"}"#),
    ("200 OK", r#"{"access_token":null,"token_type":"Bearer"}"#),
    (
        "200 OK",
        r#"{"access_token":{"LEAK":1},"token_type":"Bearer"}"#,
    ),
    ("200 OK", r#"{"access_token":"LEAK","token_type":"Bearer""#),
    (
        "201 Created",
        r#"{"access_token":"LEAK","token_type":"Bearer"}"#,
    ),
    (
        "400 Bad Request",
        r#"{"error":"invalid_scope","error_uri":"LEAK"}"#,
    ),
    ("500 Internal Server Error", "LEAK"),
];

/// C-20…C-25, C-32…C-36, C-41, C-44, C-47: whatever comes instead of a token, the process lives, nothing of it is
/// shown, and nothing is forwarded.
#[test]
fn an_answer_that_is_no_token_is_503_and_is_not_shown() {
    let large = format!(
        r#"{{"access_token":"{}","token_type":"Bearer"}}"#,
        "LEAK".repeat(5_000)
    );
    let mut answers = NO_GRANTS.map(|(status, body)| json(status, body)).to_vec();
    answers.push(json("200 OK", &large));
    answers.push(json("200 OK", &"LEAK".repeat(30_000)));
    answers.push(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nLEAK".to_vec(),
    );
    answers.push(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nLEAK".to_vec());
    answers.push(b"LEAK".to_vec());
    for answer in answers {
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(120)]).into_owned();
        let upstream = Upstream::ok();
        let auth = AuthorizationServer::scripted(move |exchange| {
            exchange.send(&answer)?;
            exchange.close()
        });
        let sidecar = Setup::between(&upstream, &auth)
            .credential("wait_timeout = \"10ms\"")
            .start_unready();
        wait_until(&shown, || {
            sidecar.metric("bearerd_token_consecutive_failures{token=\"payments\"}") > 0.0
        });
        let seen = assert_unavailable(&sidecar)
            + &sidecar.admin("/readyz?verbose").text()
            + &sidecar.admin("/metrics").text();
        assert!(!seen.contains("LEAK"), "{shown}: {seen}");
        assert_eq!(upstream.connections(), 0, "{shown}");
    }
}

/// C-26
#[test]
fn an_answer_that_drips_is_cut_at_request_timeout() {
    let upstream = Upstream::ok();
    let auth = AuthorizationServer::scripted(|exchange| {
        exchange.send("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{")?;
        loop {
            thread::sleep(Duration::from_millis(20));
            exchange.send(" ")?;
        }
    });
    let sidecar = Setup::between(&upstream, &auth)
        .credential("request_timeout = \"1s\"\nwait_timeout = \"10ms\"")
        .start_unready();
    let outcome =
        "bearerd_token_requests_total{outcome=\"timeout\",token=\"payments\",trigger=\"startup\"}";
    sidecar.wait_for_metric(outcome, 1.0);
    assert_unavailable(&sidecar);
}

/// C-11: the secret goes to the configured host alone.
#[test]
fn a_redirect_of_the_token_endpoint_is_not_followed() {
    for status in [
        "301 Moved Permanently",
        "302 Found",
        "307 Temporary Redirect",
        "308 Permanent Redirect",
    ] {
        let (upstream, elsewhere) = (Upstream::ok(), AuthorizationServer::new());
        let answer = format!(
            "HTTP/1.1 {status}\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n",
            elsewhere.url()
        );
        let auth = AuthorizationServer::answering(answer);
        let sidecar = Setup::between(&upstream, &auth)
            .credential("wait_timeout = \"10ms\"")
            .start_unready();
        let outcome = "bearerd_token_requests_total{outcome=\"http_error\",token=\"payments\",trigger=\"startup\"}";
        sidecar.wait_for_metric(outcome, 1.0);
        assert_unavailable(&sidecar);
        assert_eq!((elsewhere.connections(), upstream.connections()), (0, 0));
    }
}

/// C-53, C-54: a token serves to its own end, whatever the authorization server does, and no longer.
#[test]
fn an_outage_is_not_seen_before_the_token_ends_and_nothing_expired_is_sent() {
    let upstream = Upstream::scripted(|exchange| exchange.send(OK));
    let mut auth = AuthorizationServer::issuing_for(3.0);
    // Asked for after this moment, so it ends 3 s after it or later.
    let before = Instant::now();
    let sidecar = Setup::between(&upstream, &auth)
        .credential("wait_timeout = \"10ms\"")
        .start();
    auth.stop();
    let after = Instant::now();
    let mut served = Duration::ZERO;
    loop {
        let asked = Instant::now();
        let answer = sidecar.get("/");
        if answer.status() != 200 {
            answer.assert_problem(503, "token_unavailable");
            // Not used in the last tenth of its life.
            assert!(
                before.elapsed() >= Duration::from_millis(2700),
                "given up early"
            );
            break;
        }
        served = asked - after;
        thread::sleep(Duration::from_millis(5));
    }
    assert!(
        served < Duration::from_millis(2700),
        "an expired token was sent"
    );
    let sent = upstream.requests().len();
    for _ in 0..5 {
        assert_unavailable(&sidecar);
    }
    assert_eq!(upstream.requests().len(), sent);
    auth.restart();
    wait_until("recovery", || sidecar.get("/").status() == 200);
}
