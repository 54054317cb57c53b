//! The status page and its document. `tests/status` looks at the page in a browser.

use serde_json::Value;

use crate::support::client::request;
use crate::support::{
    AuthorizationServer, Client, Response, Setup, Sidecar, Upstream, eventually, wait_until,
};

fn status(sidecar: &Sidecar) -> Value {
    let answer = sidecar.admin("/status");
    assert_eq!(answer.value("content-type").unwrap(), "application/json");
    serde_json::from_str(&answer.ok()).unwrap()
}

#[test]
fn the_status_tells_how_it_is() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let setup = Setup::between(&upstream, &auth).credential("scope = \"read\"");
    let config = setup.config_file().display().to_string();
    let sidecar = setup.start();
    assert_eq!(sidecar.get("/").ok(), "ok");
    let evil = "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n";
    sidecar.send(evil).assert_problem(403, "forbidden_host");
    let requests = "http_server_request_duration_seconds_count{http_request_method=\"GET\",http_response_status_code=\"200\"}";
    sidecar.wait_for_metric(requests, 1.0);

    let status = status(&sidecar);
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        (&status["phase"], &status["ready"]),
        (&"serving".into(), &true.into())
    );
    assert_eq!(status["listen"][0], format!("http://{}", sidecar.proxy));
    assert_eq!(status["admin"], format!("http://{}", sidecar.admin));
    let source = status["config"]["source"].as_str().unwrap();
    assert!(source.starts_with(&config), "{source}");
    assert_eq!(status["config"]["last_is_in_use"], true);
    assert_eq!(status["upstreams"][0]["url"], upstream.url());
    assert_eq!(status["traffic"]["requests"], 2);
    assert_eq!(status["traffic"]["refused"][0]["code"], "forbidden_host");

    let token = &status["tokens"][0];
    assert_eq!(
        (&token["name"], &token["state"]),
        (&"payments".into(), &"holding".into())
    );
    assert_eq!(
        (&token["scope"], &token["endpoint"]),
        (&"read".into(), &auth.url().into())
    );
    assert_eq!(token["attempts"][0]["trigger"], "startup");
    assert_eq!(token["attempts"][0]["fingerprint"], token["fingerprint"]);
    let time = |name: &str| token[name].as_f64().unwrap();
    let now = status["now"].as_f64().unwrap();
    let order = [
        status["started_at"].as_f64().unwrap(),
        time("received_at"),
        now,
        time("next_attempt_at"),
        time("usable_until"),
        time("expires_at"),
    ];
    // The clocks of a token and of a page are read one after the other.
    assert!(
        order.windows(2).all(|pair| pair[0] <= pair[1] + 0.01),
        "{order:?}"
    );
    assert!((3500.0..=3600.0).contains(&(time("expires_at") - now)));
}

#[test]
fn failures_are_told_with_what_to_do() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    auth.refuses("invalid_client");
    let sidecar = Setup::between(&upstream, &auth).start_unready();
    let status = eventually("the refusal", || {
        let status = status(&sidecar);
        (status["tokens"][0]["state"] == "failing").then_some(status)
    });
    assert_eq!(status["ready"], false);
    let token = &status["tokens"][0];
    assert_eq!(
        (&token["usable"], &token["failures"]),
        (&false.into(), &1.into())
    );
    assert_eq!(
        (&token["fingerprint"], &token["expires_at"]),
        (&Value::Null, &Value::Null)
    );
    let attempt = &token["attempts"][0];
    assert_eq!(attempt["error"], "invalid_client");
    assert!(attempt["message"].as_str().unwrap().contains("status 401"));
    assert!(attempt["hint"].as_str().unwrap().contains("client_auth"));
    let next = token["next_attempt_at"].as_f64().unwrap() - status["now"].as_f64().unwrap();
    assert!((20.0..=30.1).contains(&next), "{next}");
}

#[test]
fn a_reload_shows() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth).start_process();
    let status = || -> Value { serde_json::from_str(&sidecar.admin("/status").ok()).unwrap() };
    assert_eq!(status()["log"]["dropped_lines"], 0);
    let good = std::fs::read_to_string(sidecar.config_file()).unwrap();
    std::fs::write(sidecar.config_file(), "[proxy]\nlistne = 1\n").unwrap();
    wait_until("the mistake", || {
        status()["config"]["last_is_in_use"] == false
    });
    let text = good.replace(
        "[credential.payments]",
        "[credential.payments]\nscope = \"read\"",
    );
    std::fs::write(sidecar.config_file(), text).unwrap();
    wait_until("the new one", || status()["tokens"][0]["scope"] == "read");
    assert_eq!(status()["config"]["last_is_in_use"], true);
}

/// The samples are bounded by a unit test; here they are seen to come.
#[test]
fn samples_are_taken() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    assert_eq!(sidecar.get("/").ok(), "ok");
    let history = eventually("a sample", || {
        let history = status(&sidecar)["history"].clone();
        let samples = history["at"].as_array().unwrap().len();
        (samples > 0).then_some(history)
    });
    let columns = history.as_object().unwrap();
    let length = |column: &Value| column.as_array().unwrap().len();
    assert_eq!(columns.len(), 8);
    assert!(
        columns
            .values()
            .all(|column| length(column) == length(&history["at"]))
    );
}

fn ask(sidecar: &Sidecar, path: &str, host: &str, fields: &[&str]) -> Response {
    let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
    let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n");
    Client::connect(sidecar.admin).exchange(head)
}

/// D-02, D-03, D-11
#[test]
fn the_page_is_not_for_the_web_pages_of_others() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let setup = Setup::between(&upstream, &auth).proxy("allowed_hosts = [\"pay.internal\"]");
    let sidecar = setup.start();
    let port = sidecar.admin.port();
    for path in ["/", "/status"] {
        for host in [
            "localhost",
            "10.1.2.3:9090",
            "[::1]:9090",
            "pay.internal:9090",
        ] {
            assert_eq!(
                ask(&sidecar, path, host, &[]).status(),
                200,
                "{path} {host}"
            );
        }
        let rebound = format!("evil.example:{port}");
        assert_eq!(ask(&sidecar, path, &rebound, &[]).status(), 403, "{path}");
        let foreign = ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"];
        assert_eq!(ask(&sidecar, path, "localhost", &foreign).status(), 403);
        let own = ["Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: cors"];
        assert_eq!(ask(&sidecar, path, "localhost", &own).status(), 200);
        let link = ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"];
        assert_eq!(ask(&sidecar, path, "localhost", &link).status(), 200);
    }
    // A scraper or a probe may know it by any name.
    for path in ["/metrics", "/livez", "/readyz"] {
        assert_eq!(
            ask(&sidecar, path, "bearerd.shop.svc:9090", &[]).status(),
            200
        );
    }
}

/// D-11
#[test]
fn the_page_may_run_and_reach_nothing_but_itself() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    let page = sidecar.admin("/");
    let value = |name| page.value(name).unwrap_or_default();
    assert_eq!(value("content-type"), "text/html; charset=utf-8");
    assert_eq!(value("cache-control"), "no-store");
    assert_eq!(value("x-content-type-options"), "nosniff");
    assert_eq!(value("referrer-policy"), "no-referrer");
    assert_eq!(value("cross-origin-resource-policy"), "same-origin");
    let policy = value("content-security-policy");
    for part in [
        "default-src 'none'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    ] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert!(page.ok().starts_with("<!doctype html>"));
    let mut client = Client::connect(sidecar.admin);
    client.send(request("HEAD /", &[], ""));
    assert_eq!(client.receive_head().status(), 200);
}
