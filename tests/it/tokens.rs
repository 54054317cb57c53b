//! How tokens are asked for, kept, renewed and replaced.

use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::time::Instant;

use crate::support::authorization_server::{CLIENT_SECRET, json};
use crate::support::client::request;
use crate::support::upstream::OK;
use crate::support::{AuthorizationServer, Setup, Sidecar, Upstream, eventually, wait_until};

/// Asserts that the answer to a GET is the refusal for want of a token, with a time to try again.
fn assert_unavailable(sidecar: &Sidecar) -> String {
    let answer = sidecar.get("/");
    answer.assert_problem(503, "token_unavailable");
    let retry_after: u64 = answer.value("retry-after").unwrap().parse().unwrap();
    assert!((1..=300).contains(&retry_after), "{retry_after}");
    answer.text()
}

/// The token of the last request at the upstream.
fn last_token(upstream: &Upstream) -> String {
    let last = upstream.requests().pop().unwrap();
    last.head.value("authorization").unwrap()
}

/// C-50
#[test]
fn many_requests_at_a_cold_start_make_one_token_request() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::hanging());
    let sidecar = Setup::between(&upstream, &auth)
        .credential("wait_timeout = \"30s\"")
        .start_unready();
    let mut clients: Vec<_> = (0..50).map(|_| sidecar.client()).collect();
    for client in &mut clients {
        client.send(request("GET /", &[], ""));
    }
    sidecar.wait_for_metric("http_server_active_requests", 50.0);
    auth.issues("token", 3600.0);
    for client in &mut clients {
        assert_eq!(client.receive().ok(), "ok");
    }
    assert_eq!(auth.requests().len(), 1);
    assert_eq!(upstream.requests().len(), 50);
    assert_eq!(
        sidecar.metric("bearerd_token_lookups_total{result=\"waited\",token=\"payments\"}"),
        50.0
    );
}

/// C-01, C-04, C-06
#[test]
fn a_token_request_carries_id_and_secret_form_urlencoded_in_basic() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let setup = Setup::between(&upstream, &auth).credential("client_id = \"1PpG/Q 1\"");
    setup.write_secret("z/t+H:X%=\n");
    let sidecar = setup.start();
    let basic = STANDARD.encode("1PpG%2FQ+1:z%2Ft%2BH%3AX%25%3D");
    let expected = format!(
        "POST /o/token/ HTTP/1.1\n\
         accept: application/json\n\
         authorization: Basic {basic}\n\
         content-length: 29\n\
         content-type: application/x-www-form-urlencoded\n\
         host: {}\n\
         user-agent: bearerd/{}\n\n\
         grant_type=client_credentials",
        auth.address,
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(auth.request().wire(), expected);
    drop(sidecar);
}

/// C-03, C-04
#[test]
fn client_secret_post_puts_both_into_the_form_alone() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let setup = Setup::between(&upstream, &auth)
        .credential("client_id = \"1PpG/Q 1\"\nclient_auth = \"client_secret_post\"");
    setup.write_secret("z/t+H:X%=&é");
    let _sidecar = setup.start();
    let request = auth.request();
    assert_eq!(request.head.value("authorization"), None);
    assert_eq!(
        String::from_utf8_lossy(&request.body.data),
        "grant_type=client_credentials&client_id=1PpG%2FQ+1&client_secret=z%2Ft%2BH%3AX%25%3D%26%C3%A9"
    );
}

/// C-07
#[test]
fn scope_audience_resource_and_extra_parameters_are_sent() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let _sidecar = Setup::between(&upstream, &auth)
        .credential(
            "scope = \"read write\"\naudience = \"https://api.example/\"\n\
             resource = [\"https://a.example/x?y\", \"https://b.example\"]\n\
             extra_params = { tenant = \"a&b\" }",
        )
        .start();
    assert_eq!(
        String::from_utf8_lossy(&auth.request().body.data),
        "grant_type=client_credentials&scope=read+write&audience=https%3A%2F%2Fapi.example%2F\
         &resource=https%3A%2F%2Fa.example%2Fx%3Fy&resource=https%3A%2F%2Fb.example&tenant=a%26b"
    );
}

/// C-51, H-06
#[test]
fn a_client_that_goes_away_does_not_cancel_the_token_request() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::hanging());
    let sidecar = Setup::between(&upstream, &auth)
        .credential("wait_timeout = \"30s\"")
        .start_unready();
    let mut client = sidecar.client();
    client.send(request("GET /", &[], ""));
    sidecar.wait_for_metric("http_server_active_requests", 1.0);
    auth.wait_for_requests(1);
    drop(client);
    sidecar.wait_for_metric("http_server_active_requests", 0.0);
    auth.issues("token", 3600.0);
    sidecar.wait_until_ready();
    assert_eq!(sidecar.get("/").ok(), "ok");
    assert_eq!((auth.requests().len(), upstream.requests().len()), (1, 1));
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
    let mut first = sidecar.client();
    first.send(request("GET /", &[], ""));
    sidecar.wait_for_metric("http_server_active_requests", 1.0);
    // The first holds the one place as soon as it is in flight, or a moment later.
    eventually("a refusal at once", || {
        let mut second = sidecar.client();
        second.send(request("GET /", &[], ""));
        second.receive_within(Duration::from_secs(1))
    });
    auth.issues("token", 3600.0);
    assert_eq!(first.receive().ok(), "ok");
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
    sidecar.wait_until_ready();
    assert_eq!(sidecar.get("/").ok(), "ok");
    assert_eq!(auth.requests().len(), 2);
}

/// C-20…C-25, C-32…C-36, C-41, C-44, C-47: whatever comes instead of a token, the process lives, nothing of it is
/// shown, and nothing is forwarded.
#[test]
fn an_answer_that_is_no_token_is_503_and_is_not_shown() {
    let canary = "LEAK";
    let with_token = |token: &str| {
        json(
            "200 OK",
            &format!("{{\"access_token\":{token},\"token_type\":\"Bearer\",\"expires_in\":60}}"),
        )
    };
    let large = format!("\"{}\"", "x".repeat(20_000));
    let answers = [
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec(),
        json("200 OK", "<html>LEAK</html>"),
        json("200 OK", "access_token=LEAK&expires_in=3600"),
        json(
            "200 OK",
            "{\"error\":\"invalid_client\",\"error_uri\":\"LEAK\"}",
        ),
        json(
            "200 OK",
            "{\"access_token\":\"LEAK\",\"token_type\":\"mac\"}",
        ),
        json("200 OK", "{\"access_token\":\"LEAK\"}"),
        json(
            "200 OK",
            "{\"access_token\":\"LEAK\",\"access_token\":\"LEAK2\",\"token_type\":\"Bearer\"}",
        ),
        with_token("\"LEAK\\r\\nX-Evil: 1\""),
        with_token("\"LEAK LEAK\""),
        with_token("\"LEAK\\u0000\""),
        with_token("\"LEAKé\""),
        with_token("\"\""),
        with_token("null"),
        with_token("{\"LEAK\":1}"),
        with_token(&large),
        json(
            "201 Created",
            "{\"access_token\":\"LEAK\",\"token_type\":\"Bearer\"}",
        ),
        json("500 Internal Server Error", "LEAK"),
        json(
            "400 Bad Request",
            "{\"error\":\"invalid_scope\",\"error_uri\":\"LEAK\"}",
        ),
        json("200 OK", &format!("\"{}\"", "LEAK".repeat(30_000))),
        [
            &b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\n"[..],
            b"LEAK",
        ]
        .concat(),
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"access_token\":\"LEAK\"".to_vec(),
        b"LEAK".to_vec(),
    ];
    for answer in answers {
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(120)]).into_owned();
        let (upstream, auth) = (
            Upstream::ok(),
            AuthorizationServer::scripted(move |exchange| {
                exchange.send(&answer)?;
                exchange.close()
            }),
        );
        let sidecar = Setup::between(&upstream, &auth)
            .credential("wait_timeout = \"10ms\"")
            .start_unready();
        wait_until(&shown, || {
            sidecar.metric("bearerd_token_consecutive_failures{token=\"payments\"}") > 0.0
        });
        let seen = assert_unavailable(&sidecar)
            + &sidecar.admin("/readyz?verbose").text()
            + &sidecar.admin("/metrics").text();
        assert!(!seen.contains(canary), "{shown}: {seen}");
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

/// C-31, C-52: renewals are not seen by requests.
#[test]
fn constant_traffic_over_many_short_tokens_sees_no_failure_and_no_wait() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::issuing_for(3.0));
    // Leaves a renewal more than a second, which a machine under load may need.
    let sidecar = Setup::between(&upstream, &auth)
        .credential("refresh_at = 0.6\nexpiry_margin = \"100ms\"")
        .start();
    let mut client = sidecar.client();
    let end = Instant::now() + Duration::from_secs(8);
    let mut requests = 0;
    while Instant::now() < end {
        assert_eq!(client.exchange(request("GET /", &[], "")).ok(), "ok");
        requests += 1;
        thread::sleep(Duration::from_millis(1));
    }
    let lookups = |result| {
        sidecar.metric(&format!(
            "bearerd_token_lookups_total{{result=\"{result}\",token=\"payments\"}}"
        ))
    };
    assert_eq!(upstream.requests().len(), requests);
    assert_eq!(lookups("missing"), 0.0);
    assert!(lookups("waited") <= 1.0, "{}", lookups("waited"));
    // 1.5 to 1.8 s each.
    assert!(
        (3..=7).contains(&auth.requests().len()),
        "{}",
        auth.requests().len()
    );
}

/// C-29: a token that was over when it came is used once, and is no loop.
#[test]
fn a_token_that_was_over_when_it_came_serves_one_request() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::issuing_for(0.0));
    let sidecar = Sidecar::between(&upstream, &auth);
    for number in 1..=3 {
        assert_eq!(sidecar.get("/").ok(), "ok");
        assert_eq!(last_token(&upstream), format!("Bearer token-{number}"));
    }
    assert!(auth.requests().len() <= 4, "{}", auth.requests().len());
}

/// C-57, C-64: a token that the upstream does not accept is replaced, and its answer passes.
#[test]
fn a_rejected_token_is_replaced() {
    let auth = AuthorizationServer::new();
    let upstream = Upstream::scripted(|exchange| {
        exchange.body();
        if exchange.head.value("authorization").unwrap() != "Bearer token-1" {
            return exchange.send(OK);
        }
        exchange.send(
            "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"api\", error=\"invalid_token\"\r\n\
             Content-Length: 3\r\n\r\nbad",
        )
    });
    let sidecar = Sidecar::between(&upstream, &auth);
    let post = request("POST /", &["Content-Length: 5"], "hello");
    let first = sidecar.send(&post);
    if first.status() == 401 {
        assert_eq!(first.text(), "bad");
        assert!(
            first
                .value("www-authenticate")
                .unwrap()
                .contains("invalid_token")
        );
    }
    assert_eq!(sidecar.send(&post).ok(), "ok");
    assert_eq!(last_token(&upstream), "Bearer token-2");
    assert_eq!(auth.requests().len(), 2);
    assert_eq!(
        sidecar.metric("bearerd_upstream_401_total{action=\"renew\"}"),
        1.0
    );
}

/// C-58, C-59: an upstream that accepts nothing makes no storm of token requests.
#[test]
fn rejections_without_end_cause_one_renewal_in_ten_seconds() {
    let auth = AuthorizationServer::new();
    let upstream = Upstream::answering(
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer error=\"invalid_token\"\r\nContent-Length: 0\r\n\r\n",
    );
    let sidecar = Sidecar::between(&upstream, &auth);
    let started = Instant::now();
    let mut client = sidecar.client();
    for _ in 0..100 {
        assert_eq!(client.exchange(request("GET /", &[], "")).status(), 401);
    }
    let renewals = auth.requests().len() - 1;
    let allowed = 1 + started.elapsed().as_secs() / 10;
    assert!((1..=allowed).contains(&(renewals as u64)), "{renewals}");
}

/// C-60
#[test]
fn insufficient_scope_is_no_fault_of_the_token() {
    for status in ["401 Unauthorized", "403 Forbidden"] {
        let auth = AuthorizationServer::new();
        let upstream = Upstream::answering(format!(
            "HTTP/1.1 {status}\r\nWWW-Authenticate: Bearer error=\"insufficient_scope\"\r\nContent-Length: 0\r\n\r\n"
        ));
        let sidecar = Sidecar::between(&upstream, &auth);
        for _ in 0..3 {
            assert_eq!(sidecar.get("/").status().to_string(), status[..3]);
        }
        assert_eq!(last_token(&upstream), "Bearer token-1");
        assert_eq!(auth.requests().len(), 1);
    }
}

/// C-43, C-66: the secret is read at every token request, also through the symbolic link that Kubernetes swaps.
#[test]
fn a_rotated_secret_is_used_at_the_next_renewal() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::issuing_for(1.0));
    let setup = Setup::between(&upstream, &auth);
    let folder = setup.secret_file().parent().unwrap().to_owned();
    std::fs::write(folder.join("old"), CLIENT_SECRET).unwrap();
    std::fs::write(folder.join("new"), "rotated").unwrap();
    std::fs::remove_file(setup.secret_file()).unwrap();
    std::os::unix::fs::symlink("old", setup.secret_file()).unwrap();
    let sidecar = setup.start();
    std::os::unix::fs::symlink("new", folder.join("next")).unwrap();
    std::fs::rename(folder.join("next"), sidecar.setup.secret_file()).unwrap();
    let rotated = format!("Basic {}", STANDARD.encode("shop:rotated"));
    wait_until("a token request with the new secret", || {
        let last = auth.requests().pop().unwrap();
        last.head.value("authorization").unwrap() == rotated
    });
    assert_eq!(sidecar.get("/").ok(), "ok");
}
