//! Several upstreams, credentials and scopes: each request goes where its route says, with the token that it needs and no
//! other.

use crate::support::client::request;
use crate::support::upstream::OK;
use crate::support::{AuthorizationServer, Setup, Upstream, wait_until};

/// An authorization server whose tokens are named for the scope that was asked for.
fn by_scope() -> AuthorizationServer {
    AuthorizationServer::scripted(|exchange| {
        let form = String::from_utf8(exchange.body().data).unwrap();
        let scope = form.split('&').find_map(|part| part.strip_prefix("scope="));
        let scope = scope.unwrap_or("none").replace('+', "-");
        exchange.send(crate::support::authorization_server::grant(&scope, 3600.0))
    })
}

fn authorization(upstream: &Upstream) -> Vec<String> {
    let requests = upstream.requests();
    let values = requests
        .iter()
        .map(|r| r.head.value("authorization").unwrap());
    values.collect()
}

/// An application asks only for what a call needs, and each token is fetched once.
#[test]
fn a_route_narrows_the_scope() {
    let (upstream, auth) = (Upstream::ok(), by_scope());
    let sidecar = Setup::between(&upstream, &auth)
        .credential("scope = \"read write admin\"")
        .tables(
            r#"
            [[route]]
            path = "/"
            methods = ["GET"]
            scope = "read"
            [[route]]
            path = "/"
            scope = "read write"
            [[route]]
            path = "/admin"
            "#,
        )
        .start();
    let post = request("POST /", &["Content-Length: 0"], "");
    for _ in 0..3 {
        assert_eq!(sidecar.get("/").ok(), "ok");
        assert_eq!(sidecar.send(&post).ok(), "ok");
        assert_eq!(sidecar.get("/admin/report").ok(), "ok");
    }
    let turn = [
        "Bearer read",
        "Bearer read-write",
        "Bearer read-write-admin",
    ];
    assert_eq!(authorization(&upstream), [turn, turn, turn].concat());
    assert_eq!(auth.requests().len(), 3, "one for each scope");
    let ready = sidecar.admin("/readyz?verbose").text();
    for token in ["payments:read", "payments:read write", "payments"] {
        assert!(
            ready.contains(&format!("[+] token {token}: expires in")),
            "{ready}"
        );
    }
    let available = "bearerd_token_available{token=\"payments:read write\"}";
    assert_eq!(sidecar.metric(available), 1.0);
}

/// Each route has its upstream and its credential; a failure of one is no failure of another.
#[test]
fn routes_go_to_their_upstreams_with_their_credentials() {
    let (payments, reports) = (Upstream::ok(), Upstream::answering(OK));
    let auth = AuthorizationServer::new();
    auth.issues("for-payments", 3600.0);
    let mut other = AuthorizationServer::new();
    other.issues("for-reports", 3600.0);
    let setup = Setup::between(&payments, &auth);
    let secret_file = setup.secret_file().display().to_string();
    let sidecar = setup
        .tables(&format!(
            r#"
            [upstream.reports]
            url = "{}/v2"
            [credential.reports]
            token_url = "{}"
            client_id = "reporter"
            client_secret_file = "{secret_file}"
            wait_timeout = "100ms"
            [[route]]
            path = "/"
            upstream = "payments"
            credential = "payments"
            [[route]]
            path = "/reports"
            upstream = "reports"
            credential = "reports"
            strip_prefix = true
            "#,
            reports.url(),
            other.url()
        ))
        .start();
    assert_eq!(sidecar.get("/pay").ok(), "ok");
    assert_eq!(sidecar.get("/reports/x").ok(), "ok");
    assert_eq!(authorization(&payments), ["Bearer for-payments"]);
    assert_eq!(authorization(&reports), ["Bearer for-reports"]);
    assert_eq!(reports.request().target(), "/v2/x");
    // D-26: the Host names an upstream, and the route leads to another.
    let host = format!("Host: {}", reports.address);
    let mixed = sidecar.send(format!("GET /pay HTTP/1.1\r\n{host}\r\n\r\n"));
    mixed.assert_problem(404, "no_route");
    let own = sidecar.send(format!("GET /reports/y HTTP/1.1\r\n{host}\r\n\r\n"));
    assert_eq!(own.ok(), "ok");
    other.stop();
    assert_eq!(
        sidecar.get("/reports/x").ok(),
        "ok",
        "while its token lives"
    );
}

/// A credential whose server is down holds up nobody but its own routes.
#[test]
fn a_credential_without_a_token_is_the_trouble_of_its_routes_alone() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let setup = Setup::between(&upstream, &auth);
    let secret_file = setup.secret_file().display().to_string();
    let sidecar = setup
        .tables(&format!(
            r#"
            [credential.other]
            token_url = "http://127.0.0.1:1/"
            client_id = "other"
            client_secret_file = "{secret_file}"
            wait_timeout = "100ms"
            [[route]]
            path = "/"
            credential = "payments"
            [[route]]
            path = "/other"
            credential = "other"
            "#
        ))
        .start_unready();
    wait_until("a token for the one", || sidecar.get("/").status() == 200);
    sidecar
        .get("/other")
        .assert_problem(503, "token_unavailable");
    let ready = sidecar.admin("/readyz?verbose");
    assert_eq!(ready.status(), 503, "not all of it serves");
    assert!(
        ready.text().contains("[-] token other: network_error"),
        "{}",
        ready.text()
    );
    assert!(ready.text().contains("[+] token payments: expires in"));
    assert_eq!(sidecar.get("/").ok(), "ok");
}
