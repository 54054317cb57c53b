//! The canary: whatever happens, at the highest log level, no form of the secret or of a token is anywhere to be seen.

use std::fs;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use url::form_urlencoded::byte_serialize;

use crate::support::authorization_server::json;
use crate::support::client::request;
use crate::support::h2_upstream::H2Upstream;
use crate::support::sidecar::Running;
use crate::support::upstream::OK;
use crate::support::{AuthorizationServer, Process, Setup, Upstream, wait_until};

/// Unlike anything else, and changed by every encoding.
const SECRET: &str = "canary+secret/7f3a%=&Q";
const TOKEN: &str = "canary-token.Zx91+/==~";
/// What an application sent, and what a server echoes, is not ours to show either.
const FOREIGN: &str = "canary-foreign-55d0";

/// Everything there was to see of one run.
struct Seen(String);

impl Seen {
    fn new() -> Self {
        Self(String::new())
    }

    fn add(&mut self, text: &str) {
        self.0.push_str(text);
        self.0.push('\n');
    }

    /// What the admin port and the system tell of a running program, and then all that it has written.
    fn add_all_of(&mut self, sidecar: Running) {
        for path in [
            "/metrics",
            "/status",
            "/",
            "/readyz?verbose",
            "/startupz?verbose",
            "/livez?verbose",
            "/nonsense",
        ] {
            self.add(&sidecar.admin(path).text());
        }
        self.add(&sidecar.process.proc("cmdline"));
        sidecar.process.signal("INT");
        let ended = sidecar.process.ended();
        self.add(&ended.stdout);
        assert!(
            ended.stderr.len() > 1000,
            "it was logged at TRACE: {}",
            ended.stderr
        );
        self.add(&ended.stderr);
    }

    fn holds_no_canary(&self) {
        for canary in [SECRET, TOKEN, FOREIGN] {
            let basic = format!("shop:{canary}");
            let form: String = byte_serialize(canary.as_bytes()).collect();
            let form_basic = format!("shop:{form}");
            for form in [
                canary.to_owned(),
                form,
                STANDARD.encode(canary),
                URL_SAFE_NO_PAD.encode(canary),
                STANDARD.encode(basic),
                STANDARD.encode(form_basic),
            ] {
                if let Some(at) = self.0.find(&form) {
                    let line = self.0[..at].rfind('\n').map_or(0, |newline| newline + 1);
                    let end = self.0[at..].find('\n').map_or(self.0.len(), |end| at + end);
                    panic!("{form} is in: {}", &self.0[line..end]);
                }
            }
        }
    }
}

fn start(upstream: &Upstream, auth: &AuthorizationServer) -> Running {
    start_at_trace(Setup::between(upstream, auth))
}

fn start_at_trace(setup: Setup) -> Running {
    let setup = setup
        .proxy("access_log = \"all\"")
        .credential("wait_timeout = \"100ms\"");
    setup.write_secret(SECRET);
    setup.start_process_with(&[("BEARERD_LOG_LEVEL", "trace")])
}

/// Success, a refused token, and what the application itself sends.
#[test]
fn nothing_is_shown_while_requests_are_served() {
    let auth = AuthorizationServer::new();
    auth.issues(TOKEN, 3600.0);
    let upstream = Upstream::scripted(|exchange| {
        assert_eq!(
            exchange.head.value("authorization").unwrap(),
            format!("Bearer {TOKEN}")
        );
        exchange.body();
        match exchange.head.line.split(' ').nth(1).unwrap() {
            "/401" => exchange.send(
                "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer error=\"invalid_token\"\r\n\
                 Content-Length: 0\r\n\r\n",
            ),
            "/reset" => exchange.reset(),
            "/garbage" => exchange.send("garbage\r\n\r\n"),
            _ => exchange.send(OK),
        }
    });
    let sidecar = start(&upstream, &auth);
    sidecar.wait_until_ready();
    let mut seen = Seen::new();
    let query = format!("GET /?card={FOREIGN}");
    let authorization = format!("Authorization: Bearer {FOREIGN}");
    let cookie = format!("Cookie: session={FOREIGN}");
    let fields = [authorization.as_str(), &cookie, "Content-Length: 19"];
    assert_eq!(sidecar.send(request(&query, &fields, FOREIGN)).ok(), "ok");
    for path in ["/401", "/reset", "/garbage"] {
        seen.add(&sidecar.get(path).text());
    }
    let evil = sidecar.send(request(
        "GET /",
        &["Origin: https://evil.example", &authorization],
        "",
    ));
    seen.add(&evil.text());
    let not_http =
        format!("GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization : {FOREIGN}\r\n\r\n");
    let mut client = sidecar.client();
    client.send(not_http);
    assert!(client.is_refused());
    seen.add_all_of(sidecar);
    seen.holds_no_canary();
}

/// H-27: the HTTP/2 library logs its frames at this level.
#[test]
fn nothing_is_shown_over_http2() {
    let (upstream, auth) = (H2Upstream::echo(), AuthorizationServer::new());
    auth.issues(TOKEN, 3600.0);
    let setup = Setup::new(&upstream.url(), &auth).trusting(&upstream.authority);
    let sidecar = start_at_trace(setup);
    sidecar.wait_until_ready();
    let cookie = format!("Cookie: session={FOREIGN}");
    let post = request("POST /", &[&cookie, "Content-Length: 19"], FOREIGN);
    assert_eq!(sidecar.send(post).ok(), FOREIGN);
    assert_eq!(
        upstream.request().values("authorization"),
        [format!("Bearer {TOKEN}")]
    );
    let mut seen = Seen::new();
    seen.add_all_of(sidecar);
    seen.holds_no_canary();
}

/// Everything that an authorization server can do wrong with a secret or a token in its hands.
#[test]
fn nothing_is_shown_while_tokens_cannot_be_had() {
    let upstream = Upstream::ok();
    let token_in = |member: &str| {
        json(
            "200 OK",
            &format!("{{\"token_type\":\"Bearer\",\"expires_in\":60,{member}}}"),
        )
    };
    let answers = [
        json("401 Unauthorized", &format!("{{\"error\":\"invalid_client\",\"error_uri\":\"{SECRET}\"}}")),
        json("400 Bad Request", &format!("{{\"error\":\"invalid_scope\",\"hint\":\"{TOKEN}\"}}")),
        json("500 Internal Server Error", SECRET),
        json("200 OK", &format!("<html>{SECRET} {TOKEN}</html>")),
        token_in(&format!("\"access_token\":\"{TOKEN}\\n\"")),
        token_in(&format!("\"access_token\":\" {TOKEN}\"")),
        token_in(&format!("\"access_token\":[\"{TOKEN}\"]")),
        token_in(&format!("\"access_token\":\"{TOKEN}\",\"access_token\":\"{TOKEN}\"")),
        token_in(&format!("\"access_token\":\"{}\"", TOKEN.repeat(1000))),
        json("200 OK", &format!("{{\"access_token\":\"{TOKEN}\",\"token_type\":\"mac\"}}")),
        json("200 OK", &format!("{{\"access_token\":\"{TOKEN}\",\"token_type\":\"Bearer\"")),
        format!("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/?{TOKEN}\r\nContent-Length: 0\r\n\r\n").into(),
        format!("HTTP/1.1 200 OK\r\nX-Token : {TOKEN}\r\n\r\n").into(),
        format!("{TOKEN}\r\n\r\n").into(),
    ];
    let mut seen = Seen::new();
    for answer in answers {
        let auth = AuthorizationServer::answering(answer);
        let sidecar = start(&upstream, &auth);
        wait_until("a failure", || {
            sidecar.process.stderr().contains("no token")
        });
        let refused = sidecar.get("/");
        refused.assert_problem(503, "token_unavailable");
        seen.add(&refused.text());
        seen.add_all_of(sidecar);
    }
    assert_eq!(upstream.connections(), 0);
    seen.holds_no_canary();
}

/// A secret where it does not belong: in the file, in a URL, as the name of its own variable.
#[test]
fn nothing_is_shown_of_a_configuration_that_is_refused() {
    let mut seen = Seen::new();
    for line in [
        format!("client_secret = \"{SECRET}\""),
        format!("client_secret_env = \"{SECRET}\""),
        format!("client_secret_env = [\"{SECRET}\"]"),
        format!("token_url = \"https://shop:{FOREIGN}@auth.example/\""),
        format!("extra_params = {{ client_secret = \"{SECRET}\" }}"),
        format!("extra_params = {{ password = {{ x = \"{SECRET}\" }} }}"),
        format!("password = \"{SECRET}\""),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), format!("[credential.payments]\n{line}\n")).unwrap();
        let ended = Process::run(
            &["check", "--config", &file.path().display().to_string()],
            &[],
        );
        assert_eq!(ended.code, 78, "{line}: {}", ended.stderr);
        assert!(
            ended.stderr.contains("client_secret") || ended.stderr.contains(":2:"),
            "{}",
            ended.stderr
        );
        seen.add(&(ended.stdout + &ended.stderr));
    }
    seen.holds_no_canary();
}

/// The commands that ask for a token, with the secret in the environment.
#[test]
fn nothing_is_shown_by_the_commands() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let (upstream_url, token_url) = (upstream.url(), auth.url());
    let environment = [
        ("BEARERD_UPSTREAM_URL", upstream_url.as_str()),
        ("BEARERD_TOKEN_URL", &token_url),
        ("BEARERD_CLIENT_ID", "shop"),
        ("BEARERD_CLIENT_SECRET", SECRET),
        ("BEARERD_LOG_LEVEL", "trace"),
    ];
    let mut seen = Seen::new();
    for (error, code) in [(None, 0), (Some("invalid_client"), 77)] {
        match error {
            None => auth.issues(TOKEN, 3600.0),
            Some(error) => auth.refuses(error),
        }
        for command in [
            &["token"][..],
            &["token", "--format", "json"],
            &["token", "--format", "header"],
            &["check", "--online"],
        ] {
            let ended = Process::run(command, &environment);
            assert_eq!(ended.code, code, "{command:?} {}", ended.stderr);
            seen.add(&(ended.stdout + &ended.stderr));
        }
    }
    for flag in [
        vec!["--client-secret", SECRET],
        vec![&format!("--client-secret={SECRET}")],
    ] {
        let ended = Process::run(&flag, &[]);
        assert_eq!(ended.code, 2);
        seen.add(&(ended.stdout + &ended.stderr));
    }
    seen.holds_no_canary();
    let shown = auth.requests()[0].head.value("authorization").unwrap();
    let form: String = byte_serialize(SECRET.as_bytes()).collect();
    assert_eq!(
        shown,
        format!("Basic {}", STANDARD.encode(format!("shop:{form}")))
    );
}

/// C-12, C-77: what the environment of a debugging person says of proxies and TLS keys is nothing to us.
#[test]
fn the_environment_diverts_nothing() {
    let (proxy, auth) = (Upstream::ok(), AuthorizationServer::new());
    let upstream = Upstream::scripted_tls(|exchange| exchange.send(OK));
    let folder = tempfile::tempdir().unwrap();
    let key_log = folder.path().join("keys");
    let mut environment = vec![("SSLKEYLOGFILE", key_log.to_str().unwrap())];
    let proxy_url = proxy.url();
    for name in [
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
    ] {
        environment.push((name, &proxy_url));
    }
    let sidecar = Setup::between(&upstream, &auth).start_process_with(&environment);
    sidecar.wait_until_ready();
    assert_eq!(sidecar.get("/").ok(), "ok");
    assert_eq!(proxy.connections(), 0);
    assert!(!key_log.exists());
}

/// The scan itself finds what it looks for.
#[test]
#[should_panic(expected = "is in: ")]
fn the_scan_finds_an_encoded_secret() {
    let mut seen = Seen::new();
    seen.add("harmless");
    seen.add(&format!(
        "authorization: Basic {}",
        STANDARD.encode(format!("shop:{SECRET}"))
    ));
    seen.holds_no_canary();
}
