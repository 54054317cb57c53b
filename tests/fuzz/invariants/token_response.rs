//! What bearerd makes of the answer of a token endpoint.

use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use bearerd::oauth::access_token::Grant;
use bearerd::oauth::token_endpoint::TokenEndpointConfig;
use bearerd::oauth::token_error::TokenError;
use bearerd::oauth::token_response::{grant, refusal};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::configuration::{CANARY, minimal};

/// An answer, as the body of a 200 and of refusals.
pub fn token_response(answer: &[u8]) {
    let members = serde_json::from_slice::<Members>(answer).ok();
    let granted = grant(endpoint(), &HeaderMap::new(), answer);
    match &granted {
        Ok(grant) => {
            let is_object = answer.trim_ascii_start().starts_with(b"{");
            assert!(is_object, "{}", answer.escape_ascii());
            check_grant(grant);
        }
        Err(error) => check_error(error),
    }
    // Members that are not asked for may hold what this reader refuses, such as a number that is too large.
    if let Some(members) = &members {
        let expected = members.expected();
        let found = granted.as_ref().ok();
        let found = found.map(|grant| (grant.expose(), grant.lifetime));
        let expected = expected
            .as_ref()
            .map(|(token, lifetime)| (token.as_str(), *lifetime));
        assert_eq!(found, expected, "{}", answer.escape_ascii());
    }
    let shown = granted.map_or_else(|error| shown(&error), |grant| format!("{grant:?}"));
    check_secrecy(members.as_ref(), &shown);

    for status in [400, 401, 403, 429, 500] {
        let status = StatusCode::from_u16(status).expect("a status");
        let error = refusal(status, &HeaderMap::new(), answer);
        check_error(&error);
        check_secrecy(members.as_ref(), &self::shown(&error));
    }
}

fn check_grant(grant: &Grant) {
    let token = grant.expose();
    assert!(grant.authorization.is_sensitive());
    assert_eq!(grant.authorization, *format!("Bearer {token}"));
    assert!(!token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()));
    assert!(token.len() <= 16 * 1024);
    let scope = grant.scope.as_deref().unwrap_or_default();
    assert!(is_one_short_line(scope), "{scope:?}");
    assert_eq!(grant.fingerprint.len(), 8);
}

fn check_error(error: &TokenError) {
    for text in [error.to_string(), error.name()] {
        assert!(is_one_short_line(&text), "{text:?}");
    }
    assert_eq!(error.retry_after(), None, "nothing said so");
}

fn is_one_short_line(text: &str) -> bool {
    text.len() <= 1024
        && text
            .bytes()
            .all(|byte| byte == b' ' || byte.is_ascii_graphic())
}

/// Everything of an error that can be shown.
fn shown(error: &TokenError) -> String {
    format!("{error} {error:?} {} {:?}", error.name(), error.hint())
}

/// The token is in nothing that can be shown, unless the answer says it in a place where no token belongs.
fn check_secrecy(members: Option<&Members>, shown: &str) {
    let Some(Members(members)) = members else {
        return;
    };
    let is_told = members.iter().any(|(name, value)| {
        name != "access_token" && value.as_str().is_some_and(|text| text.contains(CANARY))
    });
    assert!(is_told || !shown.contains(CANARY), "{shown:?}");
}

/// The members of a JSON object, none of them lost.
struct Members(Vec<(String, Value)>);

impl Members {
    /// Token and lifetime, if this is a good answer (RFC 6749 §5.1).
    fn expected(&self) -> Option<(String, Option<Duration>)> {
        for name in [
            "access_token",
            "token_type",
            "expires_in",
            "scope",
            "error",
            "error_description",
        ] {
            if self.0.iter().filter(|(member, _)| member == name).count() > 1 {
                return None;
            }
        }
        for name in ["scope", "error_description"] {
            if !matches!(self.value(name), Value::Null | Value::String(_)) {
                return None;
            }
        }
        let token = self.value("access_token").as_str()?;
        let is_bearer = self
            .value("token_type")
            .as_str()?
            .trim()
            .eq_ignore_ascii_case("bearer");
        let can_be_sent = (1..=16 * 1024).contains(&token.len())
            && token.bytes().all(|byte| byte.is_ascii_graphic());
        if !self.value("error").is_null() || !is_bearer || !can_be_sent {
            return None;
        }
        let config = endpoint();
        let seconds = match self.value("expires_in") {
            Value::Null => return Some((token.to_owned(), Some(config.default_lifetime))),
            Value::Number(number) => number.as_f64()?,
            Value::String(text) => text
                .trim()
                .parse()
                .ok()
                .filter(|seconds: &f64| seconds.is_finite())?,
            _ => return None,
        };
        let longest = config.max_lifetime.as_secs_f64();
        // Below a second it is over when it comes.
        let lifetime = (seconds >= 1.0).then(|| Duration::from_secs_f64(seconds.min(longest)));
        Some((token.to_owned(), lifetime))
    }

    fn value(&self, name: &str) -> &Value {
        let member = self.0.iter().find(|(member, _)| member == name);
        member.map_or(&Value::Null, |(_, value)| value)
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AllMembers;
        impl<'de> Visitor<'de> for AllMembers {
            type Value = Members;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(AllMembers)
    }
}

fn endpoint() -> &'static TokenEndpointConfig {
    static ENDPOINT: OnceLock<TokenEndpointConfig> = OnceLock::new();
    ENDPOINT.get_or_init(|| minimal().credentials.swap_remove(0).endpoint)
}
