//! How long bearerd waits because the authorization server asked for it.

use std::time::{Duration, SystemTime};

use bearerd::oauth::token_response::refusal;
use http::{HeaderMap, HeaderValue, StatusCode, header};

/// The value of a `Retry-After`.
pub fn retry_after(value: &[u8]) {
    let Ok(field) = HeaderValue::from_bytes(value) else {
        return;
    };
    let headers = HeaderMap::from_iter([(header::RETRY_AFTER, field.clone())]);
    let before = SystemTime::now();
    let error = refusal(StatusCode::SERVICE_UNAVAILABLE, &headers, b"");
    let after = SystemTime::now();
    let wait = error.retry_after();

    let text = field.to_str().unwrap_or_default().trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number {
        // A number that no integer holds is a long time all the same.
        let seconds = text.parse().unwrap_or(u64::MAX);
        assert_eq!(wait, Some(within_bounds(Duration::from_secs(seconds))));
    } else if let Ok(date) = httpdate::parse_http_date(text) {
        let left = |now| within_bounds(date.duration_since(now).unwrap_or_default());
        let wait = wait.expect("a date tells when");
        assert!(
            (left(after)..=left(before)).contains(&wait),
            "{wait:?} for {text:?}"
        );
    } else {
        assert_eq!(wait, None, "for {text:?}");
    }
}

fn within_bounds(wait: Duration) -> Duration {
    wait.clamp(Duration::from_secs(1), Duration::from_secs(300))
}
