//! Targets that lead around a route, or almost.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::{almost, cases, invariants, word};

fn target() -> impl Strategy<Value = String> {
    let segment = word(
        &[
            "pay",
            "pay",
            "pay",
            "admin",
            "files",
            "v1.0",
            "x",
            "",
            ".",
            "..",
            "%2e%2e",
            "%2E.",
            ".%2e",
            "%252e%252e",
            "..;",
            "..;a=b",
            ";",
            "pay;x",
            "%3b",
            "p%61y",
            "%70ay",
            "%2570ay",
            "PAY",
            "pay.",
            "%",
            "%2",
            "%zz",
            "%25",
            "%00",
            "%0d%0a",
            "a%20b",
            "\u{e9}",
            "%c3%a9",
        ],
        "[!-~]{0,5}",
    );
    let separator = prop_oneof![
        8 => Just("/"),
        1 => select(vec!["//", "\\", "%2f", "%2F", "%5c", "%252f", "%255c", "/./", "/../"]),
    ];
    let query = word(
        &["", "", "?", "?/pay", "?x=%2f..", "#/pay"],
        "\\?[!-~]{0,5}",
    );
    (vec((separator, segment), 1..5), query).prop_map(|(segments, query)| {
        let segments = segments.into_iter();
        let path: String = segments
            .map(|(separator, segment)| separator.to_owned() + &segment)
            .collect();
        path + &query
    })
}

proptest! {
    #![proptest_config(cases(4096))]

    /// D-25, A-116…A-121: the route that was chosen is the route, however a server behind us reads the path; and
    /// the text that is sent is the text that was given.
    #[test]
    fn an_accepted_path_has_one_meaning(target in almost(target())) {
        invariants::path(&target.0);
    }
}
