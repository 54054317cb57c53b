//! How tokens are asked for, kept, renewed and replaced.

use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::time::Instant;

use crate::support::authorization_server::{CLIENT_SECRET, grant};
use crate::support::client::request;
use crate::support::upstream::OK;
use crate::support::{AuthorizationServer, Setup, Sidecar, Upstream, wait_until};

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
    assert_eq!(sidecar.lookups("waited"), 50.0);
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
    assert_eq!(upstream.requests().len(), requests);
    assert_eq!(sidecar.lookups("missing"), 0.0);
    assert!(
        sidecar.lookups("waited") <= 1.0,
        "{}",
        sidecar.lookups("waited")
    );
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

/// E-38, C-62: the process stands still for longer than its token lives, as under a debugger or in a paused container.
#[test]
fn a_pause_costs_what_was_in_flight_and_sends_nothing_expired() {
    const LIFETIME: Duration = Duration::from_secs(2);
    let auth = AuthorizationServer::issuing_for(LIFETIME.as_secs_f64());
    let upstream = Upstream::scripted(|exchange| match exchange.head.line.as_str() {
        "GET /held HTTP/1.1" => exchange.stall(),
        _ => exchange.send(OK),
    });
    let held_route = "[[route]]\npath = \"/held\"\nresponse_timeout = \"1s\"";
    let sidecar = Setup::between(&upstream, &auth)
        .tables(&format!("{held_route}\n[[route]]\npath = \"/\""))
        .start_process();
    let mut held = sidecar.client();
    held.send(request("GET /held", &[], ""));
    upstream.wait_for_requests(1);
    sidecar.process.signal("STOP");
    wait_until("the pause of every thread", || sidecar.process.is_stopped());
    let (paused, issued) = (Instant::now(), auth.requests().len());
    let mut next = sidecar.client();
    next.send(request("GET /next", &[], ""));
    wait_until("the end of the token", || paused.elapsed() > LIFETIME);
    let resumed = Instant::now();
    sidecar.process.signal("CONT");
    assert_eq!(next.receive().ok(), "ok");
    held.receive().assert_problem(504, "upstream_timeout");
    let sent = last_token(&upstream);
    let number = sent.strip_prefix("Bearer token-").unwrap().parse::<usize>();
    assert!(
        number.unwrap() > issued,
        "{sent} of {issued} before the pause"
    );
    // Each second may bring another renewal, if the machine is that slow.
    let (asked, seconds) = (auth.requests().len(), resumed.elapsed().as_secs());
    let most = issued as u64 + 2 + seconds;
    assert!(
        asked as u64 <= most,
        "{asked} token requests, {issued} before"
    );
}

/// RFC 7009: the last token is given back, and a server that does not answer holds the end up for 2 s at most.
#[test]
fn the_last_token_is_revoked_at_the_end() {
    let upstream = Upstream::ok();
    let auth = AuthorizationServer::scripted(|exchange| match exchange.head.line.as_str() {
        "POST /revoke HTTP/1.1" => exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        "POST /hang HTTP/1.1" => exchange.stall(),
        _ => exchange.send(grant("token-1", 3600.0)),
    });
    for (path, takes) in [("revoke", 0), ("hang", 2)] {
        let url = auth.url().replace("o/token/", path);
        let sidecar = Setup::between(&upstream, &auth)
            .credential(&format!("revoke_url = {url:?}\nrevoke_on_shutdown = true"))
            .start_process();
        let stopped = Instant::now();
        sidecar.process.signal("INT");
        assert_eq!(sidecar.process.ended().code, 0);
        assert!(stopped.elapsed() >= Duration::from_secs(takes));
        let last = auth.requests().pop().unwrap();
        assert_eq!(last.head.line, format!("POST /{path} HTTP/1.1"));
        let form = String::from_utf8(last.body.data).unwrap();
        assert_eq!(form, "token=token-1&token_type_hint=access_token");
    }
}

/// Without it, a server that does not answer holds up nothing.
#[test]
fn a_token_request_under_way_does_not_hold_up_the_end() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::hanging());
    let sidecar = Setup::between(&upstream, &auth).start_process_unready();
    auth.wait_for_requests(1);
    let stopped = Instant::now();
    sidecar.process.signal("INT");
    assert_eq!(sidecar.process.ended().code, 0);
    assert!(
        stopped.elapsed() < Duration::from_secs(10),
        "its request_timeout"
    );
}
