//! `check --online`: each step told apart, and a hint that names the fix.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, SystemTime};

use crate::support::certificates::Authority;
use crate::support::process::Ended;
use crate::support::{AuthorizationServer, Process, Setup, Upstream};

fn check(setup: &Setup) -> Ended {
    let config = setup.config_file().display().to_string();
    Process::run(&["--config", &config, "check", "--online"], &[])
}

/// Its lines, in this order, with others between them.
fn says(ended: &Ended, code: i32, parts: &[&str]) {
    let mut rest = ended.stdout.as_str();
    for part in parts {
        let found = rest.split_once(part);
        let Some((_, after)) = found else {
            panic!("no {part:?} in\n{}", ended.stdout)
        };
        rest = after;
    }
    assert_eq!(ended.code, code, "{}", ended.stdout);
}

/// Answers a token request with this head and body.
fn answer(status: &str, fields: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\n{fields}content-length: {length}\r\n\r\n{body}").into_bytes()
}

const TOKEN: &str = r#"{"access_token":"t","token_type":"Bearer","expires_in":3600}"#;

#[test]
fn the_way_to_both_is_told_step_by_step() {
    let (upstream, auth) = (
        Upstream::scripted_tls(|_| Ok(())),
        AuthorizationServer::tls(),
    );
    let ended = check(&Setup::between(&upstream, &auth));
    let connected = format!("ok    token payments: connected to {}", auth.url());
    says(
        &ended,
        0,
        &[
            "ok    configuration: ",
            &connected,
            "TLSv1_3, HTTP/1.1, a chain of ",
            " certificates, good until ",
            "ok    token payments: lifetime 1h, scope as asked, fingerprint ",
            "ok    upstream payments: connected to ",
        ],
    );
    let named = Setup::between(&upstream, &auth).credential_instead(&format!(
        "token_url = \"https://localhost:{}/o/token/\"\nclient_secret_env = \"PATH\"",
        auth.address.port()
    ));
    let config = named.config_file().display().to_string();
    let environment = [("PATH", "s3cret")];
    let ended = Process::run(&["--config", &config, "check", "--online"], &environment);
    says(&ended, 69, &["ok    token payments: DNS: localhost is "]);
}

/// A web server that gets a TLS handshake, and says so in plain HTTP.
fn plain_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream
            .write_all(&answer("400 Bad Request", "", ""))
            .unwrap();
        let _ = stream.read(&mut [0; 4096]);
    });
    address
}

#[test]
fn each_step_that_fails_is_told_apart() {
    let (tls, plain) = (Upstream::scripted_tls(|_| Ok(())), plain_server());
    let (auth, down) = (AuthorizationServer::new(), Upstream::down());
    let stranger = Authority::new();
    let of = |url: &str| Setup::new(url, &auth);
    let cases = [
        (
            of("https://nonexistent.invalid"),
            "fail  upstream payments: DNS: nonexistent.invalid: ",
            "hint: the host name of [upstream.payments] url has no address here",
        ),
        (
            of(&down.url()),
            "fail  upstream payments: TCP",
            "hint: is the API up, and reachable from here?",
        ),
        (
            of(&tls.url()),
            "fail  upstream payments: TLS: invalid peer certificate: UnknownIssuer",
            "hint: nobody who is trusted has signed its certificate: set ca_file of [upstream.payments]",
        ),
        (
            of(&tls.url()).trusting(&stranger),
            "fail  upstream payments: TLS: invalid peer certificate",
            "set ca_file of [upstream.payments]",
        ),
        (
            Setup::between(&tls, &auth).upstream("server_name = \"other.example\""),
            "fail  upstream payments: TLS: invalid peer certificate: certificate not valid for name",
            "hint: its certificate is for another name",
        ),
        (
            of(&format!("https://{plain}")),
            "fail  upstream payments: TLS",
            "hint: what answers there does not speak TLS",
        ),
    ];
    for (setup, failure, hint) in cases {
        says(&check(&setup), 69, &["ok    token payments", failure, hint]);
    }
    says(
        &check(&of(&down.url())),
        69,
        &[&format!("TCP to {}: Connection refused", down.address)],
    );
}

#[test]
fn an_authorization_server_without_its_ca_is_told_by_its_own_table() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::tls());
    let setup = Setup::between(&upstream, &auth);
    let secret = setup.secret_file().display().to_string();
    let url = auth.url();
    let setup = setup.credential_instead(&format!(
        "token_url = {url:?}\nclient_secret_file = {secret:?}"
    ));
    says(
        &check(&setup),
        69,
        &[
            "fail  token payments: TLS: invalid peer certificate: UnknownIssuer",
            "set ca_file of [credential.payments]",
            "ok    upstream payments",
        ],
    );
    assert!(auth.requests().is_empty());
}

/// C-11
#[test]
fn a_missing_slash_or_tls_is_explained() {
    let upstream = Upstream::ok();
    let cases = [
        (
            answer("301 Moved Permanently", "location: /o/token/\r\n", ""),
            "an unexpected redirect (status 301) to the same address with a slash at its end",
            "hint: add the slash at the end of token_url",
        ),
        (
            answer("404 Not Found", "", ""),
            "status 404",
            "does not end in a slash; for django-oauth-toolkit it must",
        ),
        (
            answer("308 X", "location: https://127.0.0.1/o/token\r\n", ""),
            "to https at the same host",
            "hint: use https in token_url",
        ),
        (
            answer("302 Found", "location: https://login.example/\r\n", ""),
            "to login.example",
            "hint: token requests do not follow redirects",
        ),
    ];
    for (answer, failure, hint) in cases {
        let auth = AuthorizationServer::answering(answer);
        let setup = Setup::between(&upstream, &auth);
        let secret = setup.secret_file().display().to_string();
        let url = auth.url();
        let url = url.trim_end_matches('/');
        let setup = setup.credential_instead(&format!(
            "token_url = {url:?}\nclient_secret_file = {secret:?}"
        ));
        says(
            &check(&setup),
            69,
            &["fail  token payments: ", failure, hint],
        );
    }
}

#[test]
fn what_is_odd_about_a_token_is_a_warning() {
    let upstream = Upstream::ok();
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    let late = format!("date: {}\r\n", httpdate::fmt_http_date(hour_ago));
    let auth = AuthorizationServer::answering(answer("200 OK", &late, TOKEN));
    says(
        &check(&Setup::between(&upstream, &auth)),
        0,
        &["warn  token payments: its clock is 36", " s behind ours"],
    );
    let now = format!("date: {}\r\n", httpdate::fmt_http_date(SystemTime::now()));
    let short = TOKEN
        .replace("3600", "20")
        .replace("}", r#","scope":"read"}"#);
    let auth = AuthorizationServer::answering(answer("200 OK", &now, &short));
    let setup = Setup::between(&upstream, &auth).credential("scope = \"read write\"");
    says(
        &check(&setup),
        0,
        &[
            "ok    token payments: lifetime 20s, scope read",
            "warn  token payments: asked for and not granted: write",
            "hint: asked for \"read write\"",
            "warn  token payments: tokens live for less than a minute",
            "ok    token payments: its clock is ours",
        ],
    );
}
