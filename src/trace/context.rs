//! `traceparent` (W3C Trace Context §3.2).

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

const SAMPLED: u8 = 1;
/// Sampled, and random trace id; other flags mean nothing yet and are not passed on (§3.2.2.5).
const KNOWN_FLAGS: u8 = 3;

/// A span as others name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) trace: u128,
    pub(super) span: u64,
    pub(super) flags: u8,
}

impl Context {
    /// That of the one who asks. None if it is missing, or there are several, or it is not valid.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => Self::parse(value.as_bytes()),
            _ => None,
        }
    }

    fn parse(value: &[u8]) -> Option<Self> {
        let (known, rest) = value.split_at_checked(55)?;
        let dashes = known[2] == b'-' && known[35] == b'-' && known[52] == b'-';
        let version = hex(&known[..2])?;
        // A later version may go on after another dash.
        let is_whole = rest.is_empty() || version > 0 && rest[0] == b'-';
        let context = Self {
            trace: hex(&known[3..35])?,
            span: u64::try_from(hex(&known[36..52])?).ok()?,
            flags: u8::try_from(hex(&known[53..])?).ok()? & KNOWN_FLAGS,
        };
        (dashes && is_whole && version != 0xff && context.trace != 0 && context.span != 0)
            .then_some(context)
    }

    pub(super) fn root() -> Self {
        Self {
            trace: fastrand::u128(1..),
            span: fastrand::u64(1..),
            flags: KNOWN_FLAGS,
        }
    }

    pub(super) fn child(self) -> Self {
        Self {
            span: fastrand::u64(1..),
            ..self
        }
    }

    /// Whether the one who asks keeps the trace.
    pub(super) fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }

    pub(super) fn header(self) -> Option<HeaderValue> {
        let text = format!(
            "00-{:032x}-{:016x}-{:02x}",
            self.trace, self.span, self.flags
        );
        HeaderValue::from_str(&text).ok()
    }
}

/// Lower case only.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_valid_parent_is_one() {
        let valid = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = Context::parse(valid.as_bytes()).unwrap();
        assert!(context.is_sampled());
        assert_eq!(context.header().unwrap(), valid);
        assert_ne!(context.child().span, context.span);
        let later = format!("01{}-more", &valid[2..]);
        assert!(Context::parse(later.as_bytes()).is_some());
        for invalid in [
            "",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "00_0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331_01",
        ] {
            assert_eq!(Context::parse(invalid.as_bytes()), None, "{invalid}");
        }
    }
}
