//! The rules of this code base that a compiler does not know: who may import whom, what may stand where, and how long
//! things may be. Each failure says the rule.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};

/// Each part of `src/` and its floor. A part may use its own folder and lower floors, never a neighbour.
const FLOORS: [(&str, u8); 16] = [
    ("main", 5),
    ("cli", 5),
    ("app", 5),
    ("runtime", 5),
    ("telemetry", 5),
    ("demo", 5),
    ("config", 4),
    ("reload", 4),
    ("admin", 4),
    ("proxy", 3),
    ("oauth", 2),
    ("net", 1),
    ("secret", 0),
    ("backoff", 0),
    ("metrics", 0),
    ("trace", 0),
];

/// Floor 5 composes; its parts know each other.
const TOP: u8 = 5;

/// What stands in a few places only, and why.
const ONLY_HERE: [(&str, &[&str], &str); 10] = [
    (
        "tokio::runtime",
        &["src/runtime.rs"],
        "the choice of threads is made in one file",
    ),
    (
        "moka::",
        &["src/oauth/token_cache.rs"],
        "tokens stand in one cache",
    ),
    (
        "prometheus::",
        &["src/metrics/"],
        "metric names and labels are defined in one folder",
    ),
    (
        "tokio_rustls::",
        &["src/net/tls.rs", "src/net/channel.rs"],
        "TLS is set up in one place",
    ),
    (
        "tokio::spawn",
        &[
            "src/net/channel.rs",
            "src/net/http2.rs",
            "src/net/listener.rs",
            "src/net/pool.rs",
            "src/net/upload.rs",
            "src/oauth/refresher.rs",
            "src/app/",
            "src/cli/mod.rs",
            "src/demo/",
        ],
        "a task needs somebody who ends it",
    ),
    (
        "SystemTime::now",
        &["src/oauth/", "src/metrics/", "src/trace/", "src/demo/"],
        "the wall clock jumps; only the life of a token asks for it, and metrics and spans tell it",
    ),
    (
        "std::fs",
        &[
            "src/config/",
            "src/secret.rs",
            "src/net/tls.rs",
            "src/net/socket.rs",
            "src/reload.rs",
            "src/demo/",
        ],
        "the data path touches no files",
    ),
    (
        "std::env::",
        &["src/config/", "src/secret.rs", "src/demo/"],
        "the environment is configuration",
    ),
    (
        "StatusCode::BAD_GATEWAY",
        &["src/proxy/problem.rs"],
        "the status of our answers is decided in one match",
    ),
    (
        "client_secret.expose()",
        &["src/oauth/client_auth.rs", "src/oauth/client_assertion.rs"],
        "a secret is exposed where it goes onto the wire",
    ),
];

const MAX_LINES: usize = 400;
/// Tests are tables and stories, read one at a time.
const MAX_TEST_LINES: usize = 600;
const CATCH_ALL_NAMES: [&str; 6] = [
    "utils.rs",
    "util.rs",
    "common.rs",
    "types.rs",
    "helpers.rs",
    "misc.rs",
];

struct Source {
    path: String,
    /// Without the tests at its end.
    code: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    let mut folders = vec![root.join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("\n#[cfg(test)]\n").next().unwrap().to_owned();
                let path = path.strip_prefix(root).unwrap().display().to_string();
                sources.push(Source { path, code });
            }
        }
    }
    assert!(sources.len() > 30, "the sources were found");
    sources
}

fn is_test(path: &str) -> bool {
    path.ends_with("tests.rs") || path.contains("/test_")
}

fn part(path: &str) -> &str {
    let name = path.strip_prefix("src/").unwrap();
    name.split(['/', '.']).next().unwrap()
}

fn floor(part: &str) -> u8 {
    let known = FLOORS.iter().find(|(name, _)| *name == part);
    known
        .unwrap_or_else(|| panic!("src/{part} has no floor in tests/tidy.rs"))
        .1
}

/// The parts that a line of code names through the crate's root.
fn imports(code: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    for line in code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
    {
        for (at, _) in line.match_indices("crate::") {
            let rest = &line[at + "crate::".len()..];
            let end = rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            parts.push(&rest[..end]);
        }
    }
    parts
}

#[test]
fn floors_are_acyclic() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| !is_test(&source.path)) {
        let own = part(&source.path);
        if own == "lib" {
            continue;
        }
        for imported in imports(&source.code) {
            let allowed = imported == own || floor(own) == TOP || floor(imported) < floor(own);
            if !allowed {
                broken.push(format!(
                    "{}: {own} (floor {}) must not know {imported} (floor {})",
                    source.path,
                    floor(own),
                    floor(imported)
                ));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn some_things_stand_in_one_place() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| !is_test(&source.path)) {
        for (what, places, reason) in ONLY_HERE {
            let used = source
                .code
                .lines()
                .any(|line| !line.trim_start().starts_with("//") && line.contains(what));
            if used && !places.iter().any(|place| source.path.starts_with(place)) {
                broken.push(format!(
                    "{}: {what} belongs in {places:?}: {reason}",
                    source.path
                ));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn files_are_short_and_named_for_what_they_hold() {
    let mut broken = Vec::new();
    for source in sources() {
        let lines = source.code.lines().count();
        let max = if is_test(&source.path) {
            MAX_TEST_LINES
        } else {
            MAX_LINES
        };
        if lines > max {
            broken.push(format!(
                "{}: {lines} lines, more than {max}; it holds two things",
                source.path
            ));
        }
        if CATCH_ALL_NAMES
            .iter()
            .any(|name| source.path.ends_with(&format!("/{name}")))
        {
            broken.push(format!(
                "{}: a name for everything is a name for nothing",
                source.path
            ));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// The map in `src/lib.rs` names every part.
#[test]
fn the_map_is_complete() {
    let map = include_str!("../src/lib.rs");
    for (part, _) in FLOORS {
        assert!(
            map.contains(&format!("`{part}`")),
            "src/lib.rs says nothing of {part}"
        );
    }
}

/// H-29: versions of which a proxy needs the mends, and which nothing may lower again.
const NEEDED: [(&str, [u32; 3]); 4] = [
    ("hyper", [1, 12, 0]),
    ("hyper-util", [0, 1, 21]),
    ("h2", [0, 4, 18]),
    ("httparse", [1, 10, 0]),
];

/// H-29
#[test]
fn what_stands_on_the_wire_is_new_enough() {
    let lock = include_str!("../Cargo.lock");
    for (name, needed) in NEEDED {
        let mut versions = lock
            .split("[[package]]")
            .filter(|package| package.contains(&format!("\nname = \"{name}\"\n")))
            .map(|package| {
                let (_, rest) = package.split_once("\nversion = \"").unwrap();
                let (version, _) = rest.split_once('"').unwrap();
                let parts: Vec<u32> = version
                    .split('.')
                    .map(|part| part.parse().unwrap())
                    .collect();
                [parts[0], parts[1], parts[2]]
            })
            .peekable();
        assert!(versions.peek().is_some(), "{name} is not in Cargo.lock");
        assert!(
            versions.all(|version| version >= needed),
            "{name} below {needed:?}"
        );
    }
}
