//! HTTP proxies on the way out, to the upstream and to the authorization server, each with one of its own.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::support::client::request;
use crate::support::h2_upstream::H2Upstream;
use crate::support::upstream::OK;
use crate::support::websocket::{self, SWITCH, assert_echo, echo, handshake};
use crate::support::{AuthorizationServer, ForwardProxy, Process, Setup, Upstream, wait_until};

fn contains(bytes: &[u8], part: &str) -> bool {
    let part = part.as_bytes();
    bytes.windows(part.len()).any(|window| window == part)
}

fn tls_upstream() -> Upstream {
    Upstream::scripted_tls(|exchange| {
        exchange.body();
        exchange.send(OK)
    })
}

/// An `https` upstream gets a tunnel, and the proxy sees nothing but where it leads; the authorization server is called
/// directly.
#[test]
fn an_https_upstream_is_reached_through_a_tunnel() {
    let (upstream, auth) = (tls_upstream(), AuthorizationServer::new());
    let proxy = ForwardProxy::open();
    let sidecar = Setup::between(&upstream, &auth)
        .upstream(&proxy.setting())
        .start();
    for _ in 0..3 {
        let post = request("POST /a?b", &["Content-Length: 5"], "hello");
        assert_eq!(sidecar.send(post).ok(), "ok");
    }
    let target = upstream.address;
    assert_eq!(
        proxy.requests()[0].wire(),
        format!("CONNECT {target} HTTP/1.1\nhost: {target}\n\n")
    );
    assert!((1..=3).contains(&proxy.connections()));
    assert_eq!(proxy.connections(), upstream.connections());
    let requests = upstream.requests();
    assert_eq!(requests.len(), 3);
    assert_eq!(requests[0].target(), "/a?b");
    assert_eq!(
        requests[0].head.value("authorization").unwrap(),
        "Bearer token-1"
    );
    let seen = proxy.tunneled();
    assert!(!seen.is_empty());
    for secret in ["Bearer", "token-1", "hello", "/a?b"] {
        assert!(!contains(&seen, secret), "{secret}");
    }
}

/// So does the authorization server through its own, and the secret is not to be seen there.
#[test]
fn an_https_authorization_server_is_reached_through_a_tunnel_of_its_own() {
    let (upstream, auth) = (tls_upstream(), AuthorizationServer::tls());
    let (proxy, other) = (ForwardProxy::open(), ForwardProxy::open());
    let sidecar = Setup::between(&upstream, &auth)
        .credential(&proxy.setting())
        .upstream(&other.setting())
        .start();
    assert_eq!(sidecar.get("/").ok(), "ok");
    let line = |address| [format!("CONNECT {address} HTTP/1.1")];
    assert_eq!(proxy.lines(), line(auth.address));
    assert_eq!(other.lines(), line(upstream.address));
    let secret = auth.request().head.value("authorization").unwrap();
    assert_eq!(secret, format!("Basic {}", STANDARD.encode("shop:s3cret")));
    assert!(!contains(&proxy.tunneled(), &secret));
}

/// HTTP/2 and WebSockets go through a tunnel as they go without.
#[test]
fn http2_and_websockets_go_through_a_tunnel() {
    let (upstream, auth) = (H2Upstream::echo(), AuthorizationServer::new());
    let proxy = ForwardProxy::open();
    let sidecar = Setup::new(&upstream.url(), &auth)
        .trusting(&upstream.authority)
        .upstream(&proxy.setting())
        .start();
    let post = request("POST /", &["Content-Length: 5"], "hello");
    assert_eq!(sidecar.send(post).ok(), "hello");
    assert_eq!(
        upstream.request().values("authorization"),
        ["Bearer token-1"]
    );
    assert_eq!(proxy.connections(), 1);

    let upstream = Upstream::scripted_tls(|exchange| {
        exchange.send(SWITCH)?;
        echo(exchange)
    });
    let proxy = ForwardProxy::open();
    let sidecar = websocket::setup(&upstream, &auth)
        .upstream(&proxy.setting())
        .start();
    let mut client = sidecar.client();
    client.send(handshake(&[], ""));
    assert_eq!(client.receive_head().status(), 101);
    assert_echo(&mut client, "through two tunnels");
    assert_eq!(proxy.connections(), 1);
}

/// RFC 9112 §3.2.2: an `http` upstream is named in each request, and an `http` authorization server too, where the
/// configuration allows it.
#[test]
fn http_servers_are_named_in_requests_to_the_proxy() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let proxy = ForwardProxy::open();
    let sidecar = Setup::new(&format!("{}/v1", upstream.url()), &auth)
        .upstream(&proxy.setting())
        .credential(&proxy.setting())
        .credential("allow_insecure_token_url = true")
        .start();
    let post = request("POST /a?b=%2F", &["Content-Length: 5"], "hello");
    assert_eq!(sidecar.send(post).ok(), "ok");
    assert_eq!(
        proxy.lines(),
        [
            format!("POST {} HTTP/1.1", auth.url()),
            format!("POST {}/v1/a?b=%2F HTTP/1.1", upstream.url()),
        ]
    );
    let seen = &proxy.requests()[1];
    assert_eq!(
        seen.head.value("host").unwrap(),
        upstream.address.to_string()
    );
    assert_eq!(
        seen.head.value("authorization").unwrap(),
        "Bearer token-1",
        "which is why the configuration warns of it"
    );
    assert_eq!(upstream.request().target(), "/v1/a?b=%2F");
}

/// What goes to the upstream is not for the proxy to ask for, nor for the application to say.
#[test]
fn a_proxy_that_wants_credentials_for_a_request_is_refused() {
    let auth = AuthorizationServer::new();
    let proxy = ForwardProxy::answering(
        "HTTP/1.1 407 Proxy Authentication Required\r\nproxy-authenticate: Basic\r\n\
         content-length: 4\r\n\r\nLEAK",
    );
    let sidecar = Setup::new("http://api.example", &auth)
        .upstream(&proxy.setting())
        .start();
    let authorized = request("GET /", &["Proxy-Authorization: Basic x"], "");
    let answer = sidecar.send(authorized);
    answer.assert_problem(502, "upstream_protocol_error");
    assert!(!answer.text().contains("LEAK"));
    let seen = &proxy.requests()[0].head;
    assert_eq!(seen.line, "GET http://api.example/ HTTP/1.1");
    assert_eq!(seen.value("proxy-authorization"), None);
}

/// Every way for a proxy to make no tunnel. The log says which; nothing else goes to the proxy, and nothing goes around
/// it.
#[test]
fn a_proxy_that_makes_no_tunnel_is_told_apart() {
    let (upstream, auth) = (tls_upstream(), AuthorizationServer::new());
    let endless = "HTTP/1.1 200 OK\r\n".to_owned() + &"x: LEAK\r\n".repeat(10_000);
    for (answer, cause) in [
        (
            "HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 4\r\n\r\nLEAK"
                .to_owned(),
            "outbound proxy: refused the tunnel with status 407",
        ),
        (
            "HTTP/1.1 502 Bad Gateway\r\n\r\nLEAK".to_owned(),
            "outbound proxy: refused the tunnel with status 502",
        ),
        (
            "HTTP/1.1 302 Found\r\nlocation: https://LEAK.example/\r\n\r\n".to_owned(),
            "outbound proxy: refused the tunnel with status 302",
        ),
        (
            "SSH-2.0-LEAK\r\n".to_owned(),
            "outbound proxy: did not answer properly",
        ),
        (String::new(), "outbound proxy: did not answer properly"),
        (endless, "outbound proxy: did not answer properly"),
        (
            "HTTP/1.1 200 OK\r\n\r\nLEAK".to_owned(),
            "outbound proxy: sent more than its answer",
        ),
    ] {
        let proxy = ForwardProxy::answering(answer);
        let sidecar = Setup::between(&upstream, &auth)
            .upstream(&proxy.setting())
            .start_process();
        let answer = sidecar.get("/");
        answer.assert_problem(502, "upstream_unreachable");
        wait_until(cause, || sidecar.process.stderr().contains(cause));
        assert!(!(answer.text() + &sidecar.process.stderr()).contains("LEAK"));
        let failed = "bearerd_upstream_connect_duration_seconds_count{outcome=\"connect_error\"}";
        assert_eq!(sidecar.metric(failed), 1.0);
        assert_eq!(proxy.connections(), 1);
    }
    assert_eq!(upstream.connections(), 0);
}

/// A proxy that is not there is not the upstream's fault, and its name not the upstream's.
#[test]
fn a_proxy_that_cannot_be_reached_is_told() {
    let (upstream, auth) = (tls_upstream(), AuthorizationServer::new());
    let down = Upstream::down();
    for (url, cause) in [
        (down.url(), "outbound proxy: cannot be reached: TCP"),
        (
            "http://proxy.invalid:3128".to_owned(),
            "outbound proxy: cannot be reached: DNS",
        ),
    ] {
        let sidecar = Setup::between(&upstream, &auth)
            .upstream(&format!("proxy_url = {url:?}"))
            .start_process();
        sidecar.get("/").assert_problem(502, "upstream_unreachable");
        wait_until(cause, || sidecar.process.stderr().contains(cause));
    }
    assert_eq!(upstream.connections(), 0);
}

/// The connect timeout covers the proxy's answer, and the TLS session through it.
#[test]
fn a_proxy_that_says_nothing_is_a_timeout() {
    let (upstream, auth) = (tls_upstream(), AuthorizationServer::new());
    for answer in [
        "",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
    ] {
        let proxy = ForwardProxy::scripted(move |exchange| {
            exchange.send(answer)?;
            exchange.stall()
        });
        let sidecar = Setup::between(&upstream, &auth)
            .upstream(&proxy.setting())
            .upstream("connect_timeout = \"300ms\"")
            .start();
        let answer = sidecar.get("/");
        answer.assert_problem(504, "upstream_connect_timeout");
    }
}

/// The same for the authorization server: no token, and the reason is there to be read.
#[test]
fn without_a_way_to_the_authorization_server_there_is_no_token() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::tls());
    for (answer, outcome) in [
        (Some("HTTP/1.1 403 Forbidden\r\n\r\nLEAK"), "network_error"),
        (None, "timeout"),
    ] {
        let proxy = ForwardProxy::scripted(move |exchange| match answer {
            Some(answer) => {
                exchange.send(answer)?;
                exchange.close()
            }
            None => exchange.stall(),
        });
        let sidecar = Setup::between(&upstream, &auth)
            .credential(&proxy.setting())
            .credential("connect_timeout = \"300ms\"\nwait_timeout = \"10ms\"")
            .start_unready();
        sidecar.wait_for_metric(
            &format!(
                "bearerd_token_requests_total{{outcome=\"{outcome}\",token=\"payments\",trigger=\"startup\"}}"
            ),
            1.0,
        );
        sidecar.get("/").assert_problem(503, "token_unavailable");
        let secret = STANDARD.encode("shop:s3cret");
        for seen in proxy.requests() {
            assert!(!seen.wire().contains(&secret), "{seen:?}");
        }
    }
    assert_eq!((auth.connections(), upstream.connections()), (0, 0));
}

/// The proxy's word is not enough: the session through the tunnel is with whom it should be.
#[test]
fn a_proxy_that_connects_elsewhere_is_found_out() {
    let (upstream, auth) = (tls_upstream(), AuthorizationServer::new());
    let impostor = tls_upstream();
    let elsewhere = impostor.address;
    let proxy = ForwardProxy::misleading(elsewhere);
    let sidecar = Setup::between(&upstream, &auth)
        .upstream(&proxy.setting())
        .start();
    sidecar.get("/").assert_problem(502, "upstream_tls_error");
    assert_eq!((impostor.connections(), impostor.received()), (1, 0));
    assert_eq!(upstream.connections(), 0);
}

/// `no_proxy` is about the host of the URL.
#[test]
fn no_proxy_goes_around_the_proxy() {
    let (upstream, auth) = (tls_upstream(), AuthorizationServer::new());
    for (rules, proxied) in [
        ("\"*\"", false),
        ("\"127.0.0.0/8\"", false),
        ("[\"api.example\", \"127.0.0.1\"]", false),
        ("[\"localhost\", \"10.0.0.0/8\"]", true),
    ] {
        let proxy = ForwardProxy::open();
        let sidecar = Setup::between(&upstream, &auth)
            .upstream(&format!("{}\nno_proxy = {rules}", proxy.setting()))
            .start();
        assert_eq!(sidecar.get("/").ok(), "ok");
        assert_eq!(proxy.connections(), usize::from(proxied), "{rules}");
    }
}

/// C-12: what the environment says of proxies is not asked, with `proxy_url` or without.
#[test]
fn proxies_of_the_environment_are_not_used() {
    let (upstream, auth) = (tls_upstream(), AuthorizationServer::tls());
    let (named, configured) = (ForwardProxy::open(), ForwardProxy::open());
    let url = named.url();
    let environment: Vec<(&str, &str)> = [
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
    ]
    .map(|name| (name, url.as_str()))
    .into_iter()
    .chain([("NO_PROXY", "*"), ("no_proxy", "*")])
    .collect();
    for (setting, tunnels) in [(String::new(), 0), (configured.setting(), 2)] {
        let sidecar = Setup::between(&upstream, &auth)
            .upstream(&setting)
            .credential(&setting)
            .start_process_with(&environment);
        sidecar.wait_until_ready();
        assert_eq!(sidecar.get("/").ok(), "ok");
        assert_eq!(configured.connections(), tunnels);
    }
    assert_eq!(named.connections(), 0);
}

/// `check --online` goes the same way, and says what a person can do.
#[test]
fn check_online_goes_through_the_proxy() {
    let (upstream, auth) = (tls_upstream(), AuthorizationServer::new());
    let check = |proxy: &ForwardProxy| {
        let setup = Setup::between(&upstream, &auth).upstream(&proxy.setting());
        let config = setup.config_file().display().to_string();
        Process::run(&["--config", &config, "check", "--online"], &[])
    };
    let proxy = ForwardProxy::open();
    let ended = check(&proxy);
    assert_eq!(ended.code, 0, "{}", ended.stdout);
    assert_eq!(proxy.connections(), 1);
    let refusing = ForwardProxy::answering("HTTP/1.1 407 x\r\n\r\n");
    let ended = check(&refusing);
    assert_eq!(ended.code, 69, "{}", ended.stdout);
    assert!(
        ended.stdout.contains("hint: the proxy must allow CONNECT"),
        "{}",
        ended.stdout
    );
}
