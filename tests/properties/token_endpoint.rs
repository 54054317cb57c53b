//! What a token endpoint almost says.

use std::time::{Duration, SystemTime};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::{almost, any_bytes, cases, invariants, word};

fn json() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        any::<f64>().prop_map(|number| format!("{number:e}")),
        any::<i64>().prop_map(|number| number.to_string())
    ];
    prop_oneof![
        3 => select(vec!["\"c4n4ry\"", "\"Bearer\"", "\"bEARER \"", "\"mac\"", "\"invalid_client\"", "\"3600\"", "\" 7.5 \""]).prop_map(str::to_owned),
        2 => select(vec!["null", "true", "{}", "[]", "0", "-1", "3.6e3", "1e308", "99999999999", "\"1e999\"", "\"\"", "[[[[]]]]"]).prop_map(str::to_owned),
        1 => number,
        1 => "[ -~\u{1}\u{e9}]{0,12}".prop_map(|text| serde_json::Value::from(text).to_string()),
    ]
}

fn answer() -> impl Strategy<Value = String> {
    let name = word(
        &[
            "access_token",
            "token_type",
            "expires_in",
            "scope",
            "error",
            "error_description",
            "refresh_token",
        ],
        "[a-z_]{1,6}",
    );
    let members = vec((name, json()), 0..3);
    let good = [
        ("access_token", "\"c4n4ry\""),
        ("token_type", "\"Bearer\""),
        ("expires_in", "3600"),
        ("scope", "\"read\""),
    ];
    let kept = subsequence(good.to_vec(), 2..=4);
    (kept, members).prop_map(|(kept, members)| {
        let kept = kept
            .into_iter()
            .map(|(name, value)| format!("{name:?}:{value}"));
        let members = members
            .iter()
            .map(|(name, value)| format!("{name:?}:{value}"));
        format!("{{{}}}", kept.chain(members).collect::<Vec<_>>().join(","))
    })
}

proptest! {
    #![proptest_config(cases(4096))]

    /// C-21, C-22, C-24, C-27…C-30, C-32…C-37, C-39, C-40: a token is granted when the answer is good and only then, for as
    /// long as it says; and nothing shows it.
    #[test]
    fn token_responses_are_read_strictly(answer in almost(answer())) {
        invariants::token_response(&answer.0);
    }

    /// C-45
    #[test]
    fn retry_after_is_a_number_or_a_date_within_bounds(
        value in prop_oneof![
            almost("[0-9]{0,24}"),
            almost((0..4_000_000_000_u64).prop_map(|seconds| {
                httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
            })),
            almost((0..600_u64).prop_map(|seconds| {
                httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(seconds))
            })),
            any_bytes(),
        ],
    ) {
        invariants::retry_after(&value.0);
    }
}
