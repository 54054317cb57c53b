//! What is read from an answer, byte by byte. What happens on the wire is in `token_endpoint_tests.rs`.

use http::HeaderName;
use proptest::prelude::*;

use super::*;
use crate::metrics::FetchOutcome;
use crate::oauth::test_server::{config, secs};
use crate::secret::SecretSource;

/// Stands in every answer, and must not stand in anything that is shown.
const CANARY: &str = "c4n4ry";

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    let fields = fields.iter().map(|(name, value)| {
        let value = HeaderValue::from_str(value).unwrap();
        (HeaderName::from_static(name), value)
    });
    fields.collect()
}

fn grant(content_type: &str, answer: &[u8]) -> Result<Grant, TokenError> {
    let secret = SecretSource::Env("UNSET".into());
    let headers = headers(&[("content-type", content_type)]);
    let result = super::grant(&config(secret), &headers, answer);
    let shown = match &result {
        Ok(grant) => format!("{grant:?}"),
        Err(error) => show(error),
    };
    assert!(!shown.contains(CANARY), "{shown}");
    result
}

/// Everything that logs and status pages can show of an error.
fn show(error: &TokenError) -> String {
    let line = format!("{error} {} {:?}", error.name(), error.hint());
    assert!(!line.contains(char::is_control), "one line: {line:?}");
    format!("{line} {error:?}")
}

/// Reads a good answer, but for one member.
fn with(member: &str, value: &str) -> Result<Grant, TokenError> {
    let members = [
        ("access_token", r#""c4n4ry""#),
        ("token_type", r#""Bearer""#),
        ("expires_in", "3600"),
    ];
    let others = members.into_iter().filter(|(name, _)| *name != member);
    let members = others.chain([(member, value)]);
    let members: Vec<_> = members.map(|(n, v)| format!("{n:?}:{v}")).collect();
    let answer = format!("{{{}}}", members.join(","));
    grant("application/json", answer.as_bytes())
}

fn read(answer: impl AsRef<[u8]>) -> Result<Grant, TokenError> {
    grant("application/json", answer.as_ref())
}

fn good() -> String {
    format!(r#"{{"access_token":"{CANARY}","token_type":"Bearer"}}"#)
}

/// C-20, C-22, C-24, C-37, C-40
#[test]
fn what_is_not_a_json_object_is_an_error_that_may_pass() {
    let good = good();
    let nested = format!(r#"{{"access_token":{}"#, r#"{"c4n4ry":["#.repeat(5_000));
    let answers = [
        "",
        " ",
        "null",
        "\"c4n4ry\"",
        "<html>c4n4ry</html>",
        "access_token=c4n4ry&expires_in=3600&token_type=bearer",
        r#"["c4n4ry","Bearer",3600,null,null,null]"#,
        r#"{"access_token":"c4n4ry""#,
        &good[..good.len() - 1],
        &format!("{good}{good}"),
        &format!("{good} c4n4ry"),
        &format!("\u{feff}{good}"),
        &nested,
    ];
    let not_utf8 = [good.as_bytes(), b"\xff"].concat();
    for answer in answers.map(str::as_bytes).into_iter().chain([&*not_utf8]) {
        let error = read(answer).unwrap_err();
        let text = String::from_utf8_lossy(answer);
        assert!(matches!(error, TokenError::NotJson { .. }), "{text}");
        assert_eq!(error.outcome(), FetchOutcome::InvalidResponse, "{text}");
        assert!(!error.is_permanent(), "{text}");
    }
}

/// C-22
#[test]
fn a_web_page_is_told_by_its_type_and_size() {
    let page = format!("{:5120}", format!("<html>{CANARY}"));
    let error = grant("text/html; charset=utf-8", page.as_bytes()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the answer is not a JSON token response (content-type text/html; charset=utf-8, 5120 bytes)"
    );
    assert!(error.hint().unwrap().contains("web page"));
}

/// C-23, C-37, C-39, C-40, C-46, H-27: what is unknown is left alone.
#[test]
fn a_token_response_is_taken_whatever_stands_around_it() {
    let deep = "[".repeat(10_000) + &"]".repeat(10_000);
    let many: String = (0..5_000).map(|n| format!(r#""k{n}":0,"#)).collect();
    let rest = r#""access_token":"c4n4ry","token_type":"Bearer","error":null,"scope":"read"}"#;
    for answer in [
        format!("{{{rest}"),
        format!("\r\n\t {{{rest}\r\n"),
        format!(r#"{{"refresh_token":"c4n4ry","id_token":null,"x":1,"x":2,{rest}"#),
        format!(r#"{{"deep":{deep},{rest}"#),
        format!("{{{many}{rest}"),
    ] {
        for content_type in ["text/plain", "application/json;charset=UTF-8", ""] {
            let grant = grant(content_type, answer.as_bytes()).unwrap();
            assert_eq!(grant.authorization, "Bearer c4n4ry");
            assert!(grant.authorization.is_sensitive());
            assert_eq!(grant.scope.as_deref(), Some("read"), "C-38");
        }
    }
}

/// `printf c4n4ry | sha256sum | cut -c-8`
#[test]
fn a_fingerprint_is_the_beginning_of_the_sha_256() {
    assert_eq!(read(good()).unwrap().fingerprint, "d3538881");
}

/// C-21: as some servers do.
#[test]
fn an_error_in_a_200_is_that_error() {
    let answer = r#"{"error":"invalid_client","error_description":"no","access_token":"c4n4ry"}"#;
    let error = read(answer).unwrap_err();
    assert_eq!(error.to_string(), "invalid_client (status 200): no");
    assert_eq!(error.outcome(), FetchOutcome::InvalidClient);
    assert!(error.is_permanent());
}

/// C-27…C-30
#[test]
fn lifetimes_come_in_many_shapes() {
    let default = Some(secs(300));
    let longest = Some(secs(86_400));
    let hour = Some(secs(3600));
    for (expires_in, lifetime) in [
        ("3600", hour),
        ("\"3600\"", hour),
        ("\" 3600 \"", hour),
        ("3600.0", hour),
        ("\"3600.0\"", hour),
        ("3.6e3", hour),
        ("1.5", Some(Duration::from_millis(1500))),
        ("0.9", None),
        ("null", default),
        ("0", None),
        ("\"0\"", None),
        ("-0.0", None),
        ("-1", None),
        ("\"-1\"", None),
        ("-9223372036854775808", None),
        ("-1e308", None),
        ("86401", longest),
        ("99999999999", longest),
        ("9223372036854775808", longest),
        ("18446744073709551616", longest),
        ("1e308", longest),
        ("\"1e308\"", longest),
    ] {
        let grant = with("expires_in", expires_in).unwrap();
        assert_eq!(grant.lifetime, lifetime, "{expires_in}");
    }
    assert_eq!(read(good()).unwrap().lifetime, default, "missing");
    for expires_in in [
        "true", "[3600]", "{}", "\"\"", "\"1 h\"", "\"NaN\"", "\"inf\"", "1e309", "NaN",
    ] {
        let error = with("expires_in", expires_in).unwrap_err();
        assert!(matches!(error, TokenError::NotJson { .. }), "{expires_in}");
    }
}

/// C-32, C-33
#[test]
fn only_bearer_tokens_are_taken() {
    for token_type in ["Bearer", "bearer", "BEARER", " Bearer"] {
        let grant = with("token_type", &format!("{token_type:?}")).unwrap();
        assert_eq!(grant.authorization, "Bearer c4n4ry", "{token_type}");
    }
    for token_type in ["null", r#""mac""#, r#""DPoP""#, r#""N_A""#, r#""""#] {
        let error = with("token_type", token_type).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("the answer has "), "{token_type}: {text}");
        assert!(text.contains("token_type") && !error.is_permanent());
    }
}

/// C-34, C-35
#[test]
fn no_token_that_could_end_a_field_reaches_one() {
    for token in ["a", "!~", "a.b-c_d/e+f==", &"a".repeat(16 * 1024)] {
        let grant = with("access_token", &format!("{token:?}")).unwrap();
        assert_eq!(grant.authorization, format!("Bearer {token}"));
    }
    let too_long = format!(r#""c4n4ry{}""#, "a".repeat(16 * 1024 - 5));
    for token in [
        r#""c4n4ry\r\nX-Evil: 1""#,
        r#""c4n4ry\n""#,
        r#""c4n4ry\u0000""#,
        r#""c4n4ry\t""#,
        r#""c4n4ry\u007f""#,
        r#""c4n4ry c4n4ry""#,
        r#"" c4n4ry""#,
        "\"c4n4ry\u{80}\"",
        "\"c4n4ry\u{e9}\"",
        r#""c4n4ry\ud83d\ude00""#,
        &too_long,
        r#""""#,
        "null",
    ] {
        let error = with("access_token", token).unwrap_err();
        assert!(error.to_string().contains("access_token"), "{error}");
        assert!(!error.is_permanent());
    }
    for token in ["5", "{}", r#"["c4n4ry"]"#, "true", r#""c4n4ry\ud800""#] {
        let error = with("access_token", token).unwrap_err();
        assert!(matches!(error, TokenError::NotJson { .. }), "{token}");
    }
    let error = read(r#"{"token_type":"Bearer"}"#).unwrap_err();
    assert_eq!(error.to_string(), "the answer has no access_token");
}

/// C-36: two readers could see two tokens.
#[test]
fn a_known_member_comes_once() {
    for member in [
        r#""access_token":"c4n4ry""#,
        r#""token_type":"Bearer""#,
        r#""expires_in":3600"#,
        r#""scope":"read""#,
        r#""error":null"#,
    ] {
        let twice = format!("{},{member},{member}}}", good().trim_end_matches('}'));
        let error = read(twice).unwrap_err();
        assert!(matches!(error, TokenError::NotJson { .. }), "{member}");
    }
}

fn refused(status: u16, answer: &str) -> TokenError {
    let status = StatusCode::from_u16(status).unwrap();
    let error = refusal(status, &HeaderMap::new(), answer.as_bytes());
    assert!(!show(&error).contains(CANARY));
    error
}

/// C-42
#[test]
fn a_refusal_is_permanent_and_named() {
    use FetchOutcome::{InvalidClient, InvalidScope, OtherOauthError, UnauthorizedClient};
    for (status, code, outcome, permanent) in [
        (401, "invalid_client", InvalidClient, true),
        (400, "invalid_client", InvalidClient, true),
        (400, "unauthorized_client", UnauthorizedClient, true),
        (400, "invalid_scope", InvalidScope, true),
        (400, "unsupported_grant_type", OtherOauthError, true),
        (400, "invalid_request", OtherOauthError, true),
        (400, "slow_down", OtherOauthError, false),
    ] {
        let error = refused(
            status,
            &format!(r#"{{"error":"{code}","c4n4ry":"c4n4ry"}}"#),
        );
        assert_eq!(error.to_string(), format!("{code} (status {status})"));
        assert_eq!(error.name(), code);
        assert_eq!(error.outcome(), outcome, "{code}");
        assert_eq!(error.is_permanent(), permanent, "{code}");
    }
}

/// C-42, C-44, C-47: whatever the body says.
#[test]
fn a_status_without_an_oauth_error_is_classed_by_itself() {
    let transient = [
        201, 204, 206, 400, 404, 408, 415, 425, 429, 500, 502, 503, 504,
    ];
    let permanent = [401, 403];
    for status in transient.into_iter().chain(permanent) {
        for answer in ["", "c4n4ry", &good(), r#"["invalid_client",null]"#] {
            let error = refused(status, answer);
            assert_eq!(error.to_string(), format!("status {status}"));
            assert_eq!(error.name(), "http_error");
            assert_eq!(error.outcome(), FetchOutcome::HttpError);
            assert_eq!(error.is_permanent(), permanent.contains(&status));
        }
    }
    for status in [408, 425, 429, 500, 503] {
        let error = refused(status, r#"{"error":"invalid_client"}"#);
        assert_eq!(error.to_string(), format!("status {status}"));
        assert!(!error.is_permanent());
    }
}

/// C-42
#[test]
fn what_an_error_says_is_cut_and_made_printable() {
    let long = "x".repeat(1000);
    let answer = format!(
        r#"{{"error":"e\u001b[31m","error_description":"a\r\nb\u0000c\u202ed\u00e9 {long}"}}"#
    );
    let error = refused(400, &answer);
    let shown = error.to_string();
    let start = "e?[31m (status 400): a??b?c?d? x";
    assert!(shown.starts_with(start), "{shown}");
    assert_eq!(shown.len(), "e?[31m (status 400): ".len() + 200);
    let code = refused(400, &format!(r#"{{"error":"{long}"}}"#)).name();
    assert_eq!(code, long[..200]);
}

/// C-45
#[test]
fn retry_after_is_seconds_or_a_date_between_1_and_300_s() {
    let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
    for (value, wait) in [
        ("7", Some(7)),
        (" 7 ", Some(7)),
        ("007", Some(7)),
        ("0", Some(1)),
        ("300", Some(300)),
        ("301", Some(300)),
        ("999999", Some(300)),
        ("99999999999999999999999999", Some(300)),
        ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
        ("Sunday, 06-Nov-94 08:50:37 GMT", Some(60)),
        ("Sun Nov  6 08:50:37 1994", Some(60)),
        ("Mon, 07 Nov 1994 08:49:37 GMT", Some(300)),
        ("Sun, 06 Nov 1994 08:49:36 GMT", Some(1)),
        ("", None),
        ("-1", None),
        ("+7", None),
        ("7.5", None),
        ("7s", None),
        ("7, 8", None),
        ("soon", None),
        ("Sun, 06 Nov 1994 08:50:37 CET", None),
    ] {
        let asked = retry_after(&headers(&[("retry-after", value)]), now);
        assert_eq!(asked, wait.map(secs), "{value:?}");
    }
    assert_eq!(retry_after(&HeaderMap::new(), now), None);
    let not_ascii = HeaderValue::from_bytes(b"\xff").unwrap();
    let not_ascii = HeaderMap::from_iter([(header::RETRY_AFTER, not_ascii)]);
    assert_eq!(retry_after(&not_ascii, now), None);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// C-34
    #[test]
    fn every_token_is_sent_as_it_is_or_not_at_all(
        token in prop_oneof![any::<String>(), "[ -~]{0,9}", "[!-~]{1,99}"]
    ) {
        let is_clean = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        let json = serde_json::to_string(&token).unwrap();
        let sent = with("access_token", &json).ok().map(|grant| grant.authorization);
        let expected = is_clean.then(|| HeaderValue::try_from(format!("Bearer {token}")).unwrap());
        prop_assert_eq!(sent, expected);
    }

    /// C-30
    #[test]
    fn no_lifetime_is_longer_than_the_longest(seconds in any::<f64>()) {
        if let Ok(grant) = with("expires_in", &format!("{seconds:e}")) {
            prop_assert!(grant.lifetime <= Some(secs(86_400)));
            prop_assert_eq!(grant.lifetime.is_none(), seconds < 1.0);
        }
    }
}

/// C-38: scopes are a set (RFC 6749 §3.3).
#[test]
fn a_missing_scope_is_one_that_was_asked_for_and_not_granted() {
    for (asked, granted, missing) in [
        (Some("read write"), Some("read write"), None),
        (Some("read write"), Some("write  read"), None),
        (Some("read"), Some("read write admin"), None),
        (Some("read write"), None, None),
        (None, Some("read"), None),
        (None, None, None),
        (Some("read write"), Some("read"), Some("write")),
        (
            Some("a read write"),
            Some("READ write,"),
            Some("a read write"),
        ),
        (Some("read write"), Some(""), Some("read write")),
        (Some("read"), Some("reader"), Some("read")),
    ] {
        let found = missing_scope(asked, granted);
        assert_eq!(found.as_deref(), missing, "{asked:?} {granted:?}");
    }
}

/// C-38
#[test]
fn a_scope_downgrade_is_told_refused_or_ignored() {
    let answer = r#"{"access_token":"c4n4ry","token_type":"bearer","scope":"read"}"#;
    let grant = |on_scope_downgrade| {
        let config = TokenEndpointConfig {
            scope: Some("read write admin".into()),
            on_scope_downgrade,
            ..config(SecretSource::Env("UNSET".into()))
        };
        super::grant(&config, &HeaderMap::new(), answer.as_bytes())
    };
    let warned = grant(ScopeDowngrade::Warn).unwrap();
    assert_eq!(warned.missing_scope.as_deref(), Some("write admin"));
    let ignored = grant(ScopeDowngrade::Ignore).unwrap();
    assert_eq!(ignored.missing_scope, None);
    let error = grant(ScopeDowngrade::Fail).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the token lacks what was asked for: scope write admin"
    );
    assert_eq!(error.outcome(), FetchOutcome::InvalidScope);
    assert!(error.is_permanent() && !error.refuses_credentials());
    assert!(error.hint().unwrap().contains("on_scope_downgrade"));
    assert!(!show(&error).contains(CANARY));
}

/// C-61: the clock of the server, where it says it.
#[test]
fn the_date_of_an_answer_is_read() {
    let grant = |date: &str| {
        let config = config(SecretSource::Env("UNSET".into()));
        super::grant(&config, &headers(&[("date", date)]), good().as_bytes()).unwrap()
    };
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
    assert_eq!(grant("Sun, 06 Nov 1994 08:49:37 GMT").server_date, Some(at));
    assert_eq!(grant("c4n4ry").server_date, None);
    assert_eq!(read(good()).unwrap().server_date, None);
}

/// C-43: which refusals let another secret of a list be tried.
#[test]
fn a_refusal_is_of_the_credentials_or_of_something_else() {
    for (status, answer, expected) in [
        (401, r#"{"error":"invalid_client"}"#, true),
        (400, r#"{"error":"invalid_client"}"#, true),
        (401, r#"{"error":"unauthorized_client"}"#, true),
        (401, "", true),
        (403, "", false),
        (400, r#"{"error":"unauthorized_client"}"#, false),
        (400, r#"{"error":"invalid_scope"}"#, false),
        (503, "", false),
    ] {
        let status = StatusCode::from_u16(status).unwrap();
        let error = refusal(status, &HeaderMap::new(), answer.as_bytes());
        assert_eq!(error.refuses_credentials(), expected, "{status} {answer}");
    }
}
