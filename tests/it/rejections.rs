//! What follows when the upstream does not accept a token: one renewal for all who learn of it, and for each request a second
//! chance where that cannot pay twice.

use std::io;
use std::thread;

use crate::support::authorization_server::grant;
use crate::support::client::request;
use crate::support::server::Exchange;
use crate::support::upstream::OK;
use crate::support::{AuthorizationServer, Setup, Sidecar, Upstream};

const INVALID_TOKEN: &str = "HTTP/1.1 401 Unauthorized\r\n\
    WWW-Authenticate: Bearer realm=\"api\", error=\"invalid_token\"\r\nContent-Length: 3\r\n\r\nbad";
const NO_CHALLENGE: &str = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 3\r\n\r\nbad";

/// An upstream that accepts every token but the first, and refuses that with `refusal`.
fn refusing_the_first(refusal: &'static str) -> Upstream {
    Upstream::scripted(move |exchange| {
        exchange.body();
        answer(exchange, refusal)
    })
}

fn answer(exchange: &mut Exchange<'_>, refusal: &str) -> io::Result<()> {
    if exchange.head.value("authorization").unwrap() == "Bearer token-1" {
        exchange.send(refusal)
    } else {
        exchange.send(OK)
    }
}

fn action(sidecar: &Sidecar, action: &str) -> f64 {
    sidecar.metric(&format!(
        "bearerd_upstream_401_total{{action=\"{action}\"}}"
    ))
}

/// C-57, C-64: a revoked token is replaced, and the request that found out is answered as if nothing had happened.
#[test]
fn a_request_is_sent_again_with_a_new_token() {
    for post in [
        request("GET /", &[], ""),
        request("DELETE /x", &[], ""),
        request("POST /", &["Content-Length: 5"], "hello"),
        request(
            "POST /",
            &["Transfer-Encoding: chunked"],
            "5\r\nhello\r\n0\r\n\r\n",
        ),
    ] {
        let (upstream, auth) = (
            refusing_the_first(INVALID_TOKEN),
            AuthorizationServer::new(),
        );
        let sidecar = Sidecar::between(&upstream, &auth);
        assert_eq!(sidecar.send(&post).ok(), "ok");
        let requests = upstream.requests();
        let [first, second] = &requests[..] else {
            panic!("two requests: {requests:#?}");
        };
        let second = second.wire().replace("token-2", "token-1");
        assert_eq!(first.wire(), second, "the same but for the token");
        assert_eq!(auth.requests().len(), 2);
        assert_eq!(action(&sidecar, "replayed"), 1.0);
        let retries = "bearerd_upstream_retries_total{reason=\"invalid_token\"}";
        assert_eq!(sidecar.metric(retries), 1.0);
        assert_eq!(sidecar.send(&post).ok(), "ok", "and from now on");
        assert_eq!(upstream.requests().len(), 3);
    }
}

/// C-57: only what cannot pay twice is sent twice. Whatever happens to it, the token is renewed.
#[test]
fn a_request_that_might_have_been_carried_out_is_not_sent_again() {
    let post = |fields: &[&str]| request("POST /", fields, "hello");
    let with_key = ["Content-Length: 5", "Idempotency-Key: 1"];
    let large = "x".repeat(64 * 1024 + 1);
    let long = request("POST /", &["Content-Length: 65537"], &large);
    for (refusal, settings, sent, status, expected) in [
        (
            NO_CHALLENGE,
            "",
            post(&["Content-Length: 5"]),
            401,
            "skipped_unsafe",
        ),
        (NO_CHALLENGE, "", post(&with_key), 200, "replayed"),
        (NO_CHALLENGE, "", request("GET /", &[], ""), 200, "replayed"),
        (
            NO_CHALLENGE,
            "",
            request("PUT /", &["Content-Length: 5"], "hello"),
            401,
            "skipped_unsafe",
        ),
        (INVALID_TOKEN, "", long, 401, "skipped_body"),
        (
            INVALID_TOKEN,
            "replay_on_401 = false",
            request("GET /", &[], ""),
            401,
            "skipped_off",
        ),
    ] {
        let (upstream, auth) = (refusing_the_first(refusal), AuthorizationServer::new());
        let setup = Setup::between(&upstream, &auth).credential(settings);
        let sidecar = setup.start();
        let answer = sidecar.send(&sent);
        assert_eq!(answer.status(), status, "{expected}: {answer:?}");
        if status == 401 {
            assert_eq!(answer.text(), "bad", "it passes as it is");
        }
        assert_eq!(action(&sidecar, expected), 1.0, "{expected}");
        auth.wait_for_requests(2);
        assert_eq!(sidecar.get("/").ok(), "ok");
        let requests = if status == 401 { 2 } else { 3 };
        assert_eq!(upstream.requests().len(), requests, "{expected}");
    }
}

/// A-081, C-57: a refusal before the upload has ended leaves nothing whole to send again.
#[test]
fn a_refusal_in_the_middle_of_an_upload_passes() {
    let upstream = Upstream::scripted(|exchange| {
        answer(exchange, INVALID_TOKEN)?;
        exchange.body_is_read();
        Ok(())
    });
    let auth = AuthorizationServer::new();
    let sidecar = Sidecar::between(&upstream, &auth);
    let mut client = sidecar.client();
    client.send(request("POST /", &["Content-Length: 10"], "hello"));
    assert_eq!(client.receive().status(), 401);
    assert_eq!(action(&sidecar, "skipped_body"), 1.0);
    assert_eq!(upstream.requests().len(), 1);
}

/// C-57: statuses that mean the same where the configuration says so; the answer passes, for RFC 6750 says nothing of them.
#[test]
fn other_statuses_can_refuse_a_token() {
    let refusal = "HTTP/1.1 419 Expired\r\nContent-Length: 3\r\n\r\nbad";
    let (upstream, auth) = (refusing_the_first(refusal), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth)
        .credential("invalidate_on_status = [401, 419]")
        .start();
    assert_eq!(sidecar.get("/").status(), 419);
    auth.wait_for_requests(2);
    assert_eq!(sidecar.get("/").ok(), "ok");
    let other = Setup::between(&upstream, &auth)
        .credential("invalidate_on_status = []")
        .start();
    assert_eq!(other.get("/").ok(), "ok", "token-3");
}

/// C-59
#[test]
fn many_401s_for_one_token_make_one_renewal() {
    let (upstream, auth) = (
        refusing_the_first(INVALID_TOKEN),
        AuthorizationServer::new(),
    );
    let sidecar = Sidecar::between(&upstream, &auth);
    let clients = 500;
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| assert_eq!(sidecar.get("/").ok(), "ok"));
        }
    });
    assert_eq!(auth.requests().len(), 2);
}

/// C-58: what is refused for another reason than its age is not asked for again and again.
#[test]
fn an_upstream_that_accepts_nothing_causes_no_storm() {
    let auth = AuthorizationServer::new();
    let upstream = Upstream::answering(INVALID_TOKEN);
    let sidecar = Sidecar::between(&upstream, &auth);
    let mut client = sidecar.client();
    for _ in 0..100 {
        assert_eq!(client.exchange(request("GET /", &[], "")).text(), "bad");
    }
    assert_eq!(auth.requests().len(), 2, "one renewal, then the breaker");
    assert_eq!(upstream.requests().len(), 101, "one was sent again");
    assert_eq!(action(&sidecar, "breaker"), 99.0);
    let open = "bearerd_token_breaker_open{token=\"payments\"}";
    assert_eq!(sidecar.metric(open), 1.0);
    let ready = sidecar.admin("/readyz?verbose");
    assert_eq!(ready.status(), 200, "the upstream is asked by nobody");
    assert!(ready.text().contains("refused by the upstream"));
}

/// An authorization server with a cache of its own gives the refused token again: nothing is won by sending it again.
#[test]
fn the_same_token_again_is_not_sent_again() {
    let auth = AuthorizationServer::new();
    auth.issues("token-1", 3600.0);
    let upstream = refusing_the_first(INVALID_TOKEN);
    let sidecar = Sidecar::between(&upstream, &auth);
    assert_eq!(sidecar.get("/").status(), 401);
    assert_eq!(action(&sidecar, "same_token"), 1.0);
    assert_eq!(upstream.requests().len(), 1);
    assert_eq!(auth.requests().len(), 2);
}

/// The 401 passes when there is nothing better in time.
#[test]
fn a_renewal_that_fails_passes_the_401() {
    let auth = AuthorizationServer::scripted(|exchange| match exchange.number {
        0 => exchange.send(grant("token-1", 3600.0)),
        _ => exchange.send("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"),
    });
    let upstream = refusing_the_first(INVALID_TOKEN);
    let sidecar = Sidecar::between(&upstream, &auth);
    let answer = sidecar.get("/");
    assert_eq!((answer.status(), answer.text().as_str()), (401, "bad"));
    let same = action(&sidecar, "same_token") + action(&sidecar, "no_token");
    assert_eq!(same, 1.0);
    assert_eq!(upstream.requests().len(), 1);
}
