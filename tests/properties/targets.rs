//! Targets that lead around a route, or almost.

use std::time::Duration;

use bearerd::proxy::route::{RouteConfig, Routes};
use http::Method;
use http::uri::Authority;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use tokio::time::Instant;

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

/// The shortest of many times: what else the machine does can only add to it.
fn time_to_choose(routes: &Routes, path: &str) -> Duration {
    let times = (0..30).map(|_| {
        let begun = Instant::now();
        let _ = std::hint::black_box(routes.choose(&Method::GET, path, None));
        begun.elapsed()
    });
    times.min().expect("some")
}

/// D-66: a path of sixteen times the length takes sixteen times as long, and not the square of that.
#[test]
fn long_paths_are_read_in_linear_time() {
    let length = 1024;
    let route = |path: String| RouteConfig {
        name: path.clone(),
        path,
        ..RouteConfig::everything(Authority::from_static("api.example"))
    };
    let routes = Routes::new(vec![
        RouteConfig::everything(Authority::from_static("api.example")),
        route("/a".to_owned()),
        route("/a".repeat(length)),
        route("/a".repeat(length) + "a"),
    ]);
    for piece in [
        "/a", "/", "/%61", "%61", "%25", "%2525", "%", "/.", "/..", ";", "a",
    ] {
        let path = |length: usize| format!("/{}", piece.repeat(length / piece.len()));
        let short = time_to_choose(&routes, &path(length));
        let long = time_to_choose(&routes, &path(16 * length));
        println!("{piece:6} {short:?} {long:?}");
        assert!(long < 64 * short, "{piece}: {short:?} and {long:?}");
    }
}
