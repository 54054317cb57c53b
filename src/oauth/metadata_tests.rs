//! Discovery, with everything on one connection after the other.

use serde_json::{Value, json};
use tokio::time::sleep;

use super::*;
use crate::metrics::FetchOutcome;
use crate::oauth::access_token::Grant;
use crate::oauth::client_auth::{BasicEncoding, SecretMethod};
use crate::oauth::test_server::{
    Answer, AuthorizationServer, Log, client, config, held_token, secs,
};
use crate::oauth::token_endpoint::{Location, TokenEndpoint, TokenEndpointConfig};
use crate::secret::SecretSource;

const ISSUER: &str = "https://as.example/tenant";
const TOKEN_URL: &str = "https://tokens.example/t?x=y";
const METADATA: &str = "GET /.well-known/oauth-authorization-server/tenant";
const OPENID: &str = "GET /tenant/.well-known/openid-configuration";
const TOKEN: &str = "POST /t?x=y";

fn by_secret() -> (tempfile::NamedTempFile, ClientAuth) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "s3cret").unwrap();
    let secret = SecretSource::File(file.path().into());
    let method = SecretMethod::Basic(BasicEncoding::Form);
    (file, ClientAuth::Secrets(method, vec![secret]))
}

fn document(members: Value) -> Answer {
    Answer::new(200, "content-type: application/json", &members.to_string())
}

fn good() -> Answer {
    document(json!({ "issuer": ISSUER, "token_endpoint": TOKEN_URL, "grant_types_supported": 1 }))
}

fn token() -> Answer {
    Answer::token("t", 3600)
}

/// A token endpoint to be discovered, and a server that gives these answers in their order.
struct Rig {
    endpoint: TokenEndpoint,
    server: AuthorizationServer,
    seen: usize,
    _secret: tempfile::NamedTempFile,
}

impl Rig {
    fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
        let (secret, client_auth) = by_secret();
        Self::with(secret, client_auth, false, answers)
    }

    fn with(
        secret: tempfile::NamedTempFile,
        client_auth: ClientAuth,
        allow_insecure: bool,
        answers: impl IntoIterator<Item = Answer>,
    ) -> Self {
        let issuer = Issuer::new(ISSUER, allow_insecure).unwrap();
        let config = TokenEndpointConfig {
            location: Location::Issuer(issuer),
            client_auth,
            ..config(SecretSource::Env("UNSET".into()))
        };
        let (client, connections) = client();
        let mut answers: Vec<_> = answers.into_iter().collect();
        answers.reverse();
        Self {
            endpoint: TokenEndpoint::new(config, client),
            server: AuthorizationServer::start(connections, move |_| answers.pop().unwrap()),
            seen: 0,
            _secret: secret,
        }
    }

    async fn fetch(&self) -> Result<Grant, TokenError> {
        let credentials = self.endpoint.credentials().unwrap();
        self.endpoint.fetch(&credentials[0]).await
    }

    /// What was asked since the last look: method and target.
    async fn asked(&mut self) -> Vec<String> {
        let mut asked = Vec::new();
        for n in self.seen + 1..=self.server.count() {
            let text = self.server.request(n).await.text;
            let (line, _) = text.split_once(" HTTP/1.1\r\n").unwrap();
            asked.push(line.to_owned());
        }
        self.seen = self.server.count();
        asked
    }
}

#[test]
fn metadata_is_at_two_well_known_addresses() {
    let documents = |identifier| {
        Issuer::new(identifier, false).map(|issuer| issuer.documents.map(|url| url.to_string()))
    };
    for (identifier, oauth, openid) in [
        (
            "https://as.example",
            "https://as.example/.well-known/oauth-authorization-server",
            "https://as.example/.well-known/openid-configuration",
        ),
        (
            "https://as.example:8443/",
            "https://as.example:8443/.well-known/oauth-authorization-server",
            "https://as.example:8443/.well-known/openid-configuration",
        ),
        (
            "https://as.example/a/b/",
            "https://as.example/.well-known/oauth-authorization-server/a/b",
            "https://as.example/a/b/.well-known/openid-configuration",
        ),
    ] {
        assert_eq!(documents(identifier).unwrap(), [oauth, openid]);
    }
    for identifier in [
        "https://as.example?x",
        "https://as.example/#x",
        "/x",
        "as.example",
    ] {
        assert_eq!(documents(identifier), None, "{identifier}");
    }
}

/// C-15, C-70: the request for the metadata carries no secret; the document is read once an hour.
#[tokio::test(start_paused = true)]
async fn the_token_endpoint_is_discovered_and_kept_for_an_hour() {
    let mut rig = Rig::new([good(), token(), token(), good(), token()]);
    assert_eq!(rig.fetch().await.unwrap().authorization, "Bearer t");
    let agent = concat!("user-agent: bearerd/", env!("CARGO_PKG_VERSION"));
    let text = rig.server.request(1).await.text;
    let mut head: Vec<&str> = text.trim_end().lines().collect();
    head.sort_unstable();
    let line = format!("{METADATA} HTTP/1.1");
    assert_eq!(
        head,
        [
            &*line,
            "accept: application/json",
            "host: as.example",
            agent
        ]
    );
    let text = rig.server.request(2).await.text;
    assert!(text.contains("host: tokens.example\r\n") && text.contains("authorization: Basic "));
    assert_eq!(rig.asked().await, [METADATA, TOKEN]);

    sleep(MAX_AGE - secs(1)).await;
    rig.fetch().await.unwrap();
    assert_eq!(rig.asked().await, [TOKEN]);
    sleep(secs(1)).await;
    rig.fetch().await.unwrap();
    assert_eq!(rig.asked().await, [METADATA, TOKEN]);
}

/// C-15
#[tokio::test(start_paused = true)]
async fn what_is_discovered_serves_every_scope() {
    let mut rig = Rig::new([good(), token(), token()]);
    rig.fetch().await.unwrap();
    let narrower = rig.endpoint.for_scope(Some("read".into()));
    let credentials = narrower.credentials().unwrap();
    narrower.fetch(&credentials[0]).await.unwrap();
    assert_eq!(rig.asked().await, [METADATA, TOKEN, TOKEN]);
    let text = rig.server.request(3).await.text;
    assert!(
        text.ends_with("grant_type=client_credentials&scope=read"),
        "{text}"
    );
}

/// C-15
#[tokio::test(start_paused = true)]
async fn openid_connect_discovery_is_asked_where_there_is_nothing() {
    let page = Answer::new(200, "content-type: text/html", "<html>");
    let array = Answer::new(200, "content-type: application/json", "[]");
    for first in [Answer::status(404), Answer::status(403), page, array] {
        let mut rig = Rig::new([first, good(), token()]);
        rig.fetch().await.unwrap();
        assert_eq!(rig.asked().await, [METADATA, OPENID, TOKEN]);
    }
    let mut rig = Rig::new([Answer::status(404), Answer::status(404)]);
    let error = rig.fetch().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "metadata of the authorization server: there is no such JSON document (status 404)"
    );
    assert!(
        error
            .hint()
            .unwrap()
            .contains("is issuer the issuer identifier")
    );
    assert_eq!(error.outcome(), FetchOutcome::HttpError);
    assert!(!error.is_permanent() && !error.refuses_credentials());
    assert_eq!(rig.asked().await, [METADATA, OPENID]);
}

/// C-11, C-15, C-25, C-41
#[tokio::test(start_paused = true)]
async fn metadata_that_cannot_be_read_is_told_and_not_looked_for_elsewhere() {
    let large = format!("{{\"x\":\"{}\"}}", "c4n4ry".repeat(11_000));
    let large = Answer::new(200, "content-type: application/json", &large);
    let coded = Answer::new(200, "content-encoding: gzip", "c4n4ry");
    let redirect = Answer::new(302, "location: https://evil.example/c4n4ry", "");
    let slow = good().after(secs(11));
    for (answer, told, outcome) in [
        (
            large,
            "the answer is larger than 64 KiB",
            FetchOutcome::InvalidResponse,
        ),
        (
            coded,
            "the answer has a content coding that was not asked for",
            FetchOutcome::InvalidResponse,
        ),
        (
            redirect,
            "an unexpected redirect (status 302) to evil.example",
            FetchOutcome::HttpError,
        ),
        (Answer::status(503), "status 503", FetchOutcome::HttpError),
        (
            Answer::retry_after(429, "7"),
            "status 429",
            FetchOutcome::HttpError,
        ),
        (
            slow,
            "no answer from the authorization server within 10 s",
            FetchOutcome::Timeout,
        ),
    ] {
        let rig = Rig::new([answer]);
        let error = rig.fetch().await.unwrap_err();
        let shown = error.to_string();
        let shown = shown.trim_start_matches("metadata of the authorization server: ");
        assert_eq!((shown, error.outcome()), (told, outcome));
        assert!(!format!("{error:?}").contains("c4n4ry"));
        assert!(!error.is_permanent());
        let asked = told.ends_with("429").then_some(secs(7));
        assert_eq!(error.retry_after(), asked);
        assert_eq!(rig.server.count(), 1);
    }
}

/// C-15: the secret goes to nobody whom the issuer does not vouch for (RFC 8414 §3.3, RFC 6749 §3.2).
#[tokio::test(start_paused = true)]
async fn metadata_of_another_issuer_or_without_a_safe_endpoint_is_refused() {
    let of = |issuer: &str, token_endpoint: &str| json!({ "issuer": issuer, "token_endpoint": token_endpoint });
    for (members, told) in [
        (
            of("https://as.example/tenant/", TOKEN_URL),
            "it is of the issuer https://as.example/tenant/",
        ),
        (
            of("https://AS.example/tenant", TOKEN_URL),
            "it is of the issuer https://AS.example/tenant",
        ),
        (of("evil\n\u{e9}", TOKEN_URL), "it is of the issuer evil??"),
        (json!({ "issuer": ISSUER }), "it has no token_endpoint"),
        (
            of(ISSUER, "http://as.example/t"),
            "its token_endpoint is not https",
        ),
        (
            of(ISSUER, "http://127.0.0.1.nip.io/t"),
            "its token_endpoint is not https",
        ),
        (
            of(ISSUER, "http://127.0.0.1/t"),
            "its token_endpoint is not https",
        ),
        (
            of(ISSUER, "ftp://as.example/t"),
            "its token_endpoint is no plain https URL",
        ),
        (
            of(ISSUER, "https://a:c4n4ry@as.example/t"),
            "its token_endpoint is no plain https URL",
        ),
        (
            of(ISSUER, "https://as.example/t#c4n4ry"),
            "its token_endpoint is no plain https URL",
        ),
        (of(ISSUER, "/t"), "its token_endpoint is not a URL"),
        (
            of(ISSUER, "https://as.example/\u{e9} t"),
            "its token_endpoint is not a URL",
        ),
    ] {
        let rig = Rig::new([document(members)]);
        let error = rig.fetch().await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("metadata of the authorization server: {told}")
        );
        assert_eq!(error.outcome(), FetchOutcome::InvalidResponse);
        assert!(error.hint().is_some() && !format!("{error:?}").contains("c4n4ry"));
        assert_eq!(rig.server.count(), 1);
    }
    let (secret, client_auth) = by_secret();
    let answers = [document(of(ISSUER, "http://as.example/t")), token()];
    let rig = Rig::with(secret, client_auth, true, answers);
    rig.fetch().await.unwrap();
}

/// C-09, C-15
#[test]
fn an_issuer_of_this_machine_may_have_endpoints_here_without_tls() {
    let passes = |issuer: &str, url: &str| {
        let issuer = Issuer::new(issuer, false).unwrap();
        issuer.lets_http_pass(&Url::parse(url).unwrap())
    };
    assert!(passes("http://localhost:1", "http://127.0.0.1:2/t"));
    assert!(!passes("http://localhost:1", "http://as.example/t"));
    assert!(!passes("https://as.example", "http://127.0.0.1:2/t"));
}

/// C-15
#[tokio::test(start_paused = true)]
async fn a_failure_to_read_again_keeps_the_last_good_one() {
    let log = Log::start();
    let other = document(json!({ "issuer": "https://evil.example", "token_endpoint": TOKEN_URL }));
    let slow = good().after(secs(100));
    let answers = [
        good(),
        token(),
        other,
        token(),
        token(),
        slow,
        token(),
        good(),
        token(),
    ];
    let mut rig = Rig::new(answers);
    rig.fetch().await.unwrap();
    sleep(MAX_AGE).await;
    assert_eq!(log.take(), "");
    rig.fetch().await.unwrap();
    let line = log.take();
    assert!(
        line.contains("WARN") && line.contains("the last good one stays") && line.contains("evil"),
        "{line}"
    );
    rig.fetch().await.unwrap();
    assert_eq!(rig.asked().await, [METADATA, TOKEN, METADATA, TOKEN, TOKEN]);

    sleep(MAX_AGE).await;
    let started = Instant::now();
    rig.fetch().await.unwrap();
    assert_eq!(started.elapsed().as_secs(), 5, "half of the time there is");
    sleep(MAX_AGE).await;
    rig.fetch().await.unwrap();
    assert_eq!(rig.asked().await, [METADATA, TOKEN, METADATA, TOKEN]);
}

/// C-15
#[tokio::test(start_paused = true)]
async fn an_endpoint_that_seems_to_have_moved_is_looked_for() {
    let moved = || document(json!({ "issuer": ISSUER, "token_endpoint": "https://new.example/n" }));
    let gone = || Answer::status(404);
    let busy = || Answer::status(503);
    let answers = [good(), token(), busy(), gone(), gone(), moved(), token()];
    let mut rig = Rig::new(answers);
    rig.fetch().await.unwrap();
    sleep(MIN_AGE - secs(1)).await;
    rig.fetch().await.unwrap_err();
    rig.fetch().await.unwrap_err();
    rig.fetch().await.unwrap_err();
    assert_eq!(
        rig.asked().await,
        [METADATA, TOKEN, TOKEN, TOKEN, TOKEN],
        "not so soon"
    );
    sleep(secs(1)).await;
    rig.fetch().await.unwrap();
    assert_eq!(rig.asked().await, [METADATA, "POST /n"]);
}

/// C-13, C-15: RFC 8705 §5.
#[tokio::test(start_paused = true)]
async fn endpoints_for_client_certificates_are_for_those_alone() {
    let document = || {
        document(json!({
            "issuer": ISSUER,
            "token_endpoint": TOKEN_URL,
            "mtls_endpoint_aliases": { "token_endpoint": "https://mtls.example/m" },
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "tls_client_auth"],
        }))
    };
    let (secret, by_secret) = by_secret();
    let mut rig = Rig::with(secret, by_secret, false, [document(), token()]);
    rig.fetch().await.unwrap();
    assert_eq!(rig.asked().await, [METADATA, TOKEN]);
    let none = tempfile::NamedTempFile::new().unwrap();
    let mut rig = Rig::with(
        none,
        ClientAuth::TlsClientAuth,
        false,
        [document(), token()],
    );
    rig.fetch().await.unwrap();
    assert_eq!(rig.asked().await, [METADATA, "POST /m"]);
}

/// C-05: a method that the server does not name is used all the same, and told once.
#[tokio::test(start_paused = true)]
async fn a_method_that_the_server_does_not_name_is_told_once() {
    let log = Log::start();
    let naming = |methods: Value| {
        document(json!({
            "issuer": ISSUER,
            "token_endpoint": TOKEN_URL,
            "token_endpoint_auth_methods_supported": methods,
        }))
    };
    let documents = [
        (naming(json!(["private_key_jwt", "x\n"])), true),
        (naming(json!(["private_key_jwt", "x\n"])), false),
        (naming(json!([])), true),
        (naming(json!(null)), false),
        (naming(json!(["client_secret_post"])), true),
    ];
    let told: Vec<_> = documents.iter().map(|(_, told)| *told).collect();
    let answers = documents
        .into_iter()
        .flat_map(|(document, _)| [document, token()]);
    let rig = Rig::new(answers.collect::<Vec<_>>());
    for told in told {
        rig.fetch().await.unwrap();
        let line = log.take();
        assert_eq!(
            line.contains("client_auth=\"client_secret_basic\" supported="),
            told,
            "{line}"
        );
        assert!(line.lines().count() <= 1);
        sleep(MAX_AGE).await;
    }
}

/// RFC 7009 with RFC 8414 §2; a bad address is no reason to do without tokens.
#[tokio::test(start_paused = true)]
async fn the_revocation_endpoint_is_discovered() {
    let naming = |url: Value| {
        document(json!({
            "issuer": ISSUER,
            "token_endpoint": TOKEN_URL,
            "revocation_endpoint": url,
        }))
    };
    let held = held_token();
    let rig = Rig::new([naming(json!("https://as.example/r")), Answer::status(200)]);
    let credentials = rig.endpoint.credentials().unwrap();
    let revoked = rig.endpoint.revoke(&credentials[0], &held, secs(2)).await;
    revoked.unwrap();
    assert!(rig.server.request(2).await.text.starts_with("POST /r "));
    for url in [json!(null), json!("http://as.example/r"), json!("/r")] {
        let rig = Rig::new([naming(url), token()]);
        rig.fetch().await.unwrap();
        let error = rig.endpoint.revoke(&credentials[0], &held, secs(2)).await;
        assert_eq!(
            error.unwrap_err().to_string(),
            "no revocation endpoint is known"
        );
    }
}
