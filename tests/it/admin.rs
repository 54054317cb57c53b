//! What operators and the orchestrator see.

use crate::support::client::request;
use crate::support::{AuthorizationServer, Client, Setup, Sidecar, Upstream, wait_until};

/// The lines of `/metrics` that are series.
fn series(sidecar: &Sidecar) -> Vec<String> {
    let metrics = sidecar.admin("/metrics").ok();
    metrics
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_three_probes_ask_three_questions() {
    let (upstream, auth) = (Upstream::down(), AuthorizationServer::hanging());
    let sidecar = Setup::between(&upstream, &auth).start_unready();
    let probe = |path| {
        let answer = sidecar.admin(path);
        (answer.status(), answer.text())
    };
    let live = (200, "ok\n".to_owned());
    assert_eq!(probe("/livez"), live);
    let pending = "[-] token payments: first request under way\n";
    assert_eq!(probe("/readyz"), (503, format!("{pending}readyz failed\n")));
    assert_eq!(
        probe("/startupz"),
        (503, format!("{pending}startupz failed\n"))
    );
    let verbose = format!("[+] serving\n{pending}readyz failed\n");
    assert_eq!(probe("/readyz?verbose"), (503, verbose));

    auth.refuses("invalid_client");
    wait_until("the refusal", || {
        probe("/readyz")
            .1
            .contains("invalid_client, attempt 1, next in")
    });
    assert_eq!(
        probe("/livez"),
        live,
        "it never depends on the authorization server"
    );
    auth.issues_to("corrected");
    sidecar.setup.write_secret("corrected");
    sidecar.wait_until_ready();
    assert_eq!(
        probe("/startupz"),
        (200, "ok\n".to_owned()),
        "it never depends on the upstream"
    );
    let (status, verbose) = probe("/readyz?verbose");
    assert_eq!(status, 200);
    assert!(
        verbose.starts_with("[+] serving\n[+] token payments: expires in "),
        "{verbose}"
    );
    assert!(verbose.ends_with("\nreadyz ok\n"), "{verbose}");
    assert!(
        probe("/startupz?verbose")
            .1
            .contains("[+] first token payments\n")
    );
    assert_eq!(
        probe("/livez?verbose").1,
        "[+] control thread answers\nlivez ok\n"
    );
}

/// D-11, D-12
#[test]
fn nothing_else_is_there_and_nothing_is_changed() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    for path in [
        "/.env",
        "/actuator/env",
        "/admin",
        "/certs",
        "/config",
        "/config_dump",
        "/debug/pprof",
        "/env",
        "/heap",
        "/livez/",
        "/livez/x",
        "//livez",
        "/x/../livez",
        "/LIVEZ",
        "/print-config",
        "/secret",
        "/shutdown",
        "/stats",
        "/token",
        "/tokens",
    ] {
        assert_eq!(sidecar.admin(path).status(), 404, "{path}");
    }
    for line in ["GET /quitquitquit", "POST /quitquitquit", "POST /quit"] {
        let quit = request(line, &["Content-Length: 0"], "");
        let refusal = Client::connect(sidecar.admin).exchange(quit).status();
        assert!(matches!(refusal, 404 | 405), "{line}: {refusal}");
    }
    for line in ["POST /livez", "DELETE /metrics"] {
        let answer =
            Client::connect(sidecar.admin).exchange(request(line, &["Content-Length: 0"], ""));
        assert_eq!(answer.status(), 405);
        assert_eq!(answer.value("allow").unwrap(), "GET, HEAD");
    }
    assert_eq!(
        sidecar.get("/livez").ok(),
        "ok",
        "the proxy port has no paths of its own"
    );
    assert_eq!(upstream.request().target(), "/livez");
}

#[test]
fn every_enumerated_series_starts_at_zero() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::hanging());
    let sidecar = Setup::between(&upstream, &auth).start_unready();
    let content_type = sidecar.admin("/metrics").value("content-type").unwrap();
    assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8");
    let codes = [
        "bad_request",
        "body_too_large",
        "expectation_failed",
        "forbidden_host",
        "forbidden_origin",
        "forbidden_peer",
        "internal_error",
        "loop_detected",
        "method_not_allowed",
        "missing_header",
        "overloaded",
        "token_unavailable",
        "unsupported_transfer_coding",
        "upstream_connect_timeout",
        "upstream_dns_error",
        "upstream_protocol_error",
        "upstream_reset",
        "upstream_timeout",
        "upstream_tls_error",
        "upstream_unreachable",
    ];
    for code in codes {
        assert_eq!(sidecar.refused(code), 0.0);
    }
    for name in [
        "bearerd_downstream_parse_errors_total",
        "bearerd_log_lines_dropped_total",
        "bearerd_connections_open",
        "bearerd_upstream_connections_open",
        "http_server_active_requests",
        "bearerd_ready",
        "bearerd_request_overhead_seconds_count",
        "bearerd_upstream_401_total{action=\"replayed\"}",
        "bearerd_upstream_401_total{action=\"breaker\"}",
        "bearerd_upstream_retries_total{reason=\"invalid_token\"}",
        "bearerd_secret_reloads_total{outcome=\"refused\"}",
        "bearerd_config_reloads_total{outcome=\"invalid\",trigger=\"file\"}",
        "bearerd_token_breaker_open{token=\"payments\"}",
        "bearerd_token_scope_downgrades_total{token=\"payments\"}",
        "bearerd_upstream_401_total{action=\"pass\"}",
        "bearerd_upstream_401_total{action=\"limit\"}",
        "bearerd_token_available{token=\"payments\"}",
        "bearerd_token_same_total{token=\"payments\"}",
        "bearerd_token_consecutive_failures{token=\"payments\"}",
        "bearerd_token_request_duration_seconds_count{token=\"payments\"}",
        "bearerd_token_lookups_total{result=\"missing\",token=\"payments\"}",
        "bearerd_token_requests_total{outcome=\"success\",token=\"payments\",trigger=\"startup\"}",
        "bearerd_token_requests_total{outcome=\"tls_error\",token=\"payments\",trigger=\"upstream_401\"}",
    ] {
        assert_eq!(sidecar.metric(name), 0.0, "{name}");
    }
    let version = env!("CARGO_PKG_VERSION");
    let build = format!("bearerd_build_info{{crypto=\"aws-lc-rs\",version=\"{version}\"}}");
    assert_eq!(sidecar.metric(&build), 1.0);
}

#[test]
fn requests_and_tokens_are_counted() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    assert_eq!(sidecar.get("/a").ok(), "ok");
    assert_eq!(sidecar.get("/b?c").ok(), "ok");
    let method = "http_request_method=\"GET\",http_response_status_code=\"200\"";
    let server = format!("http_server_request_duration_seconds_count{{{method}}}");
    sidecar.wait_for_metric(&server, 2.0);
    let client = format!(
        "http_client_request_duration_seconds_count{{error_type=\"\",{method},server_address=\"{}\"}}",
        upstream.address
    );
    assert_eq!(sidecar.metric(&client), 2.0);
    let requests =
        "bearerd_token_requests_total{outcome=\"success\",token=\"payments\",trigger=\"startup\"}";
    assert_eq!(sidecar.metric(requests), 1.0);
    assert_eq!(sidecar.lookups("fresh"), 2.0);
    assert_eq!(
        sidecar.metric("bearerd_token_available{token=\"payments\"}"),
        1.0
    );
    assert_eq!(sidecar.metric("bearerd_ready"), 1.0);
    let time = |name| {
        sidecar.metric(&format!(
            "bearerd_token_{name}_timestamp_seconds{{token=\"payments\"}}"
        ))
    };
    let lifetime = time("expiry") - time("last_success");
    assert!((3500.0..=3600.0).contains(&lifetime), "{lifetime}");
    assert!((time("last_success")..time("expiry")).contains(&time("next_refresh")));
}

/// D-35: nothing that an application invents becomes a series.
#[test]
fn a_flood_of_inventions_adds_few_series() {
    let auth = AuthorizationServer::new();
    let upstream = Upstream::scripted(|exchange| {
        let status = 200 + exchange.number % 800;
        exchange.send(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n"))
    });
    let sidecar = Sidecar::between(&upstream, &auth);
    let mut client = sidecar.client();
    for number in 0..1000 {
        let host = match number % 3 {
            0 => "localhost".to_owned(),
            1 => format!("127.0.0.1:{}", number + 1),
            _ => format!("h{number}.example"),
        };
        let head = format!("M{number} /{number}?q={number} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert!(client.exchange(head).status() >= 200);
    }
    let series = series(&sidecar);
    assert!(series.len() <= 1100, "{}", series.len());
    let invented = series
        .iter()
        .find(|line| line.contains("M1") || line.contains("example"));
    assert_eq!(invented, None);
}

///
#[test]
fn what_is_unknown_is_counted_as_other() {
    let (sidecar, _upstream, _auth) = Sidecar::before("", |exchange| {
        exchange.send("HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n")
    });
    assert_eq!(sidecar.send(request("FOO /", &[], "")).status(), 999);
    let labels = "http_request_method=\"_OTHER\",http_response_status_code=\"other\"";
    let server = format!("http_server_request_duration_seconds_count{{{labels}}}");
    sidecar.wait_for_metric(&server, 1.0);
}
