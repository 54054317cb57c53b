//! Token requests on the wire.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, sleep};

use super::*;
use crate::metrics::FetchOutcome;
use crate::oauth::client_auth::SecretMethod;
use crate::oauth::test_server::{
    Answer, AuthorizationServer, Log, client, config, held_token, read_request, secs,
};

const CANARY: &str = "c4n4ry";

fn secret_file() -> (tempfile::NamedTempFile, SecretSource) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "s3cret").unwrap();
    let source = SecretSource::File(file.path().into());
    (file, source)
}

async fn fetch(config: TokenEndpointConfig, client: HttpClient) -> Result<Grant, TokenError> {
    let endpoint = TokenEndpoint::new(config, client);
    let credentials = endpoint.credentials().unwrap();
    let result = endpoint.fetch(&credentials[0]).await;
    if let Err(error) = &result {
        let shown = format!("{error} {error:?} {} {:?}", error.name(), error.hint());
        assert!(
            !shown.contains(CANARY) && !shown.contains("s3cret"),
            "{shown}"
        );
    }
    result
}

/// One exchange with a server that does `serve` after it has read the request.
async fn exchange<S>(serve: impl AsyncFnOnce(DuplexStream) -> S) -> (Result<Grant, TokenError>, S) {
    let (_file, secret) = secret_file();
    let (client, mut connections) = client();
    tokio::join!(fetch(config(secret), client), async {
        let mut stream = connections.recv().await.unwrap();
        read_request(&mut stream).await;
        serve(stream).await
    })
}

/// The error after an answer of these bytes, and the end of the connection.
async fn error_of(answer: &str) -> TokenError {
    let serve = async |mut stream: DuplexStream| stream.write_all(answer.as_bytes()).await;
    exchange(serve).await.0.unwrap_err()
}

/// C-03, C-06, C-07
#[tokio::test(start_paused = true)]
async fn a_token_request_says_what_is_configured_and_nothing_else() {
    let (_file, secret) = secret_file();
    let config = TokenEndpointConfig {
        client_auth: ClientAuth::Secrets(SecretMethod::Post, vec![secret.clone()]),
        scope: Some("read write".into()),
        audience: vec!["https://a.example".into()],
        resource: vec!["https://r.example/1".into(), "https://r.example/2".into()],
        extra_params: vec![("tenant".into(), "ä&b".into())],
        ..config(secret)
    };
    let (client, connections) = client();
    let server = AuthorizationServer::start(connections, |_| Answer::token("t", 3600));
    fetch(config, client).await.unwrap();
    let seen = server.request(1).await.text;
    let (head, form) = seen.split_once("\r\n\r\n").unwrap();
    let mut head: Vec<&str> = head.lines().collect();
    head.sort_unstable();
    let length = format!("content-length: {}", form.len());
    let agent = concat!("user-agent: bearerd/", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        head,
        [
            "POST /o/token/ HTTP/1.1",
            "accept: application/json",
            &length,
            "content-type: application/x-www-form-urlencoded",
            "host: as.example",
            agent,
        ]
    );
    assert_eq!(
        form,
        "grant_type=client_credentials&scope=read+write&audience=https%3A%2F%2Fa.example\
         &resource=https%3A%2F%2Fr.example%2F1&resource=https%3A%2F%2Fr.example%2F2\
         &tenant=%C3%A4%26b&client_id=sidecar&client_secret=s3cret"
    );
}

/// C-11: the credentials go to the configured address and to no other.
#[tokio::test(start_paused = true)]
async fn a_redirect_is_told_and_not_followed() {
    for (location, told) in [
        (
            "https://u:c4n4ry@evil.example/c4n4ry?c4n4ry",
            "evil.example",
        ),
        ("/o/token", "the same host"),
    ] {
        for status in [301, 302, 303, 307, 308] {
            let (_file, secret) = secret_file();
            let (client, connections) = client();
            let server = AuthorizationServer::start(connections, move |_| {
                Answer::new(status, &format!("location: {location}"), "")
            });
            let error = fetch(config(secret), client).await.unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("an unexpected redirect (status {status}) to {told}")
            );
            assert_eq!(error.outcome(), FetchOutcome::HttpError);
            assert!(!error.is_permanent());
            sleep(secs(60)).await;
            assert_eq!(server.count(), 1);
        }
    }
}

/// C-25: neither is it read to its end, nor is the connection kept.
#[tokio::test(start_paused = true)]
async fn an_endless_answer_is_cut_off() {
    for status in [200, 503] {
        let (result, sent) = exchange(async |mut stream: DuplexStream| {
            let head = format!("HTTP/1.1 {status} -\r\ntransfer-encoding: chunked\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut sent = 0;
            while stream.write_all(b"6\r\nc4n4ry\r\n").await.is_ok() {
                sent += 6;
            }
            sent
        })
        .await;
        let error = result.unwrap_err();
        match status {
            200 => assert!(matches!(error, TokenError::TooLarge)),
            _ => assert_eq!(error.to_string(), "status 503"),
        }
        assert!(sent < 1024 * 1024, "{sent}");
    }
}

/// C-26
#[tokio::test(start_paused = true)]
async fn an_answer_that_drips_has_no_more_time_than_any_other() {
    let started = Instant::now();
    let (result, _) = exchange(async |mut stream: DuplexStream| {
        let head = "HTTP/1.1 200 -\r\ncontent-length: 1000\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        while stream.write_all(b" ").await.is_ok() {
            sleep(secs(1)).await;
        }
    })
    .await;
    let error = result.unwrap_err();
    assert_eq!(
        error.to_string(),
        "no answer from the authorization server within 10 s"
    );
    assert_eq!(error.outcome(), FetchOutcome::Timeout);
    assert!(!error.is_permanent());
    assert!(started.elapsed() < secs(12));
}

/// C-41
#[tokio::test(start_paused = true)]
async fn a_coding_that_was_not_asked_for_is_refused() {
    let fields = "content-encoding: gzip\r\ncontent-length: 6";
    let error = error_of(&format!("HTTP/1.1 200 -\r\n{fields}\r\n\r\nc4n4ry")).await;
    assert!(matches!(error, TokenError::Encoded));
    assert_eq!(error.outcome(), FetchOutcome::InvalidResponse);
}

/// C-42, C-45: the page of a gateway can be compressed, cut off, or without end.
#[tokio::test(start_paused = true)]
async fn a_status_counts_whatever_its_body_is() {
    let fields = "content-encoding: gzip\r\ncontent-length: 99\r\nretry-after: 7";
    let error = error_of(&format!("HTTP/1.1 429 -\r\n{fields}\r\n\r\nc4n4ry")).await;
    assert_eq!(error.retry_after(), Some(secs(7)));
    let error = error_of(&format!("HTTP/1.1 401 -\r\n{fields}\r\n\r\nc4n4ry")).await;
    assert!(error.is_permanent());
}

/// C-44
#[tokio::test(start_paused = true)]
async fn a_broken_connection_may_pass() {
    use FetchOutcome::{InvalidResponse, NetworkError};
    for (answer, outcome) in [
        ("", NetworkError),
        ("HTTP/1.1 200 -\r\nx: c4n4ry", NetworkError),
        (
            "HTTP/1.1 200 -\r\ncontent-length: 99\r\n\r\nc4n4ry",
            NetworkError,
        ),
        (
            "HTTP/1.1 200 -\r\ntransfer-encoding: chunked\r\n\r\nc4n4ry",
            NetworkError,
        ),
        ("c4n4ry SMTP ready\r\n\r\n", InvalidResponse),
        ("HTTP/1.1 200 -\r\nc4n4ry\r\n\r\n", InvalidResponse),
    ] {
        let error = error_of(answer).await;
        assert_eq!(error.outcome(), outcome, "{answer:?}: {error}");
        assert!(!error.is_permanent());
    }
}

/// C-44
#[tokio::test(start_paused = true)]
async fn a_refused_connection_is_told_with_a_hint() {
    let (_file, secret) = secret_file();
    let (client, connections) = client();
    drop(connections);
    let error = fetch(config(secret), client).await.unwrap_err();
    assert!(error.to_string().contains("cannot be reached"), "{error}");
    assert!(error.hint().unwrap().contains("reachable"));
    assert_eq!(error.outcome(), FetchOutcome::NetworkError);
    assert!(!error.is_permanent());
}

/// C-46
#[tokio::test(start_paused = true)]
async fn cookies_and_the_location_of_a_200_are_ignored() {
    let (result, _) = exchange(async |mut stream: DuplexStream| {
        let body = r#"{"access_token":"c4n4ry","token_type":"bearer"}"#;
        let fields = "set-cookie: a=b\r\nlocation: /x\r\ncontent-encoding: identity";
        let length = body.len();
        let text = format!("HTTP/1.1 200 -\r\n{fields}\r\ncontent-length: {length}\r\n\r\n{body}");
        stream.write_all(text.as_bytes()).await.unwrap();
        // Whatever else comes on this connection.
        stream.read_to_end(&mut Vec::new()).await
    })
    .await;
    assert_eq!(result.unwrap().authorization, "Bearer c4n4ry");
}

/// The assertion in a request.
fn assertion(request: &str) -> &str {
    let (_, assertion) = request.rsplit_once("&client_assertion=").unwrap();
    assertion
}

/// C-14: a retry has an assertion of its own.
#[tokio::test(start_paused = true)]
async fn each_request_has_a_new_assertion() {
    let (_file, secret) = secret_file();
    let config = TokenEndpointConfig {
        client_auth: ClientAuth::Secrets(SecretMethod::Jwt, vec![secret.clone()]),
        ..config(secret)
    };
    let (client, connections) = client();
    let server = AuthorizationServer::start(connections, |_| Answer::token("t", 3600));
    let endpoint = TokenEndpoint::new(config, client);
    let credentials = endpoint.credentials().unwrap();
    endpoint.fetch(&credentials[0]).await.unwrap();
    endpoint.fetch(&credentials[0]).await.unwrap();
    let (first, second) = (server.request(1).await.text, server.request(2).await.text);
    assert_ne!(assertion(&first), assertion(&second));
    let claims = |request: &str| {
        use base64::Engine;
        let claims = assertion(request).split('.').nth(1).unwrap();
        let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims);
        serde_json::from_slice::<serde_json::Value>(&claims.unwrap()).unwrap()
    };
    let (first, second) = (claims(&first), claims(&second));
    assert_ne!(first["jti"], second["jti"]);
    assert_eq!(
        first["aud"], "http://as.example/o/token/",
        "C-14: no issuer is known"
    );
}

/// Only its end is shown, and no request is held up by it.
#[tokio::test(start_paused = true)]
async fn an_assertion_that_ends_is_warned_of_once() {
    let log = Log::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    let source = SecretSource::File(file.path().into());
    let config = TokenEndpointConfig {
        client_auth: ClientAuth::AssertionFile(source.clone()),
        ..config(source)
    };
    let (client, connections) = client();
    let server = AuthorizationServer::start(connections, |_| Answer::token("t", 3600));
    let endpoint = TokenEndpoint::new(config, client);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap().as_secs();
    for (n, (exp, warned)) in [
        (now + 600, false),
        (now + 30, true),
        (now + 30, false),
        (now - 600, true),
        (now + 3600, false),
    ]
    .into_iter()
    .enumerate()
    {
        use base64::Engine;
        let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .encode(format!(r#"{{"sub":"c4n4ry","exp":{exp}}}"#));
        let jwt = format!("e30.{claims}.c2ln");
        std::fs::write(file.path(), format!("{jwt}\n")).unwrap();
        let credentials = endpoint.credentials().unwrap();
        endpoint.fetch(&credentials[0]).await.unwrap();
        assert_eq!(assertion(&server.request(n + 1).await.text), jwt);
        let line = log.take();
        let expected = format!("assertion=file {}", file.path().display());
        assert_eq!(line.contains(&expected), warned, "{exp} {line}");
        assert!(!line.contains(&claims));
    }
}

#[tokio::test(start_paused = true)]
async fn an_assertion_file_with_something_else_is_told() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), CANARY).unwrap();
    let source = SecretSource::File(file.path().into());
    let config = TokenEndpointConfig {
        client_auth: ClientAuth::AssertionFile(source.clone()),
        ..config(source)
    };
    let (client, connections) = client();
    drop(connections);
    let error = fetch(config, client).await.unwrap_err();
    assert!(error.to_string().ends_with(": is not a JWT"), "{error}");
    assert_eq!(error.outcome(), FetchOutcome::SecretError);
    assert!(!error.is_permanent() && error.hint().is_some());
}

/// Revokes a token at a server that gives this answer; and what it was asked.
async fn revoke(
    revoke_url: Option<&str>,
    answer: impl Fn() -> Answer + Send + 'static,
) -> (Result<(), TokenError>, Option<String>) {
    let (_file, secret) = secret_file();
    let config = TokenEndpointConfig {
        revoke_url: revoke_url.map(|url| url.parse().unwrap()),
        ..config(secret)
    };
    let (client, connections) = client();
    let server = AuthorizationServer::start(connections, move |_| answer());
    let endpoint = TokenEndpoint::new(config, client);
    let credentials = endpoint.credentials().unwrap();
    let revoked = endpoint
        .revoke(&credentials[0], &held_token(), secs(2))
        .await;
    if let Err(error) = &revoked {
        let shown = format!("{error} {error:?} {:?}", error.hint());
        assert!(!shown.contains(CANARY) && !shown.contains("s3cret"));
    }
    let asked = match server.count() {
        0 => None,
        _ => Some(server.request(1).await.text),
    };
    (revoked, asked)
}

const REVOKE_URL: Option<&str> = Some("http://as.example/o/revoke/");

/// RFC 7009 §2.1; C-04: authenticated as a token request is.
#[tokio::test(start_paused = true)]
async fn a_token_is_revoked() {
    let empty = || Answer::new(200, "x: y", "");
    let (revoked, asked) = revoke(REVOKE_URL, empty).await;
    revoked.unwrap();
    let asked = asked.unwrap();
    assert!(asked.starts_with("POST /o/revoke/ HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains("\r\nauthorization: Basic c2lkZWNhcjpzM2NyZXQ=\r\n"));
    let form = "token=c4n4ry%2B%2F%3D&token_type_hint=access_token";
    assert!(asked.ends_with(&format!("\r\n\r\n{form}")), "{asked}");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_may_be_good_still_is_told() {
    for (answer, told) in [
        (Answer::status(503), "status 503"),
        (
            Answer::refusal(400, "unsupported_token_type"),
            "unsupported_token_type (status 400)",
        ),
        (
            Answer::token("t", 1).after(secs(3)),
            "no answer from the authorization server within 2 s",
        ),
        (
            Answer::new(307, "location: /x", ""),
            "an unexpected redirect (status 307) to the same host",
        ),
    ] {
        let answer = Mutex::new(Some(answer));
        let (revoked, _) = revoke(REVOKE_URL, move || answer.lock().unwrap().take().unwrap()).await;
        assert_eq!(revoked.unwrap_err().to_string(), told);
    }
    let (revoked, asked) = revoke(None, || Answer::status(200)).await;
    assert_eq!(revoked.unwrap_err().hint(), Some("set revoke_url"));
    assert_eq!(asked, None);
}
