//! Which route a target takes, and what becomes of its text.

use std::collections::BTreeSet;

use bearerd::proxy::route::{RouteConfig, Routes};
use http::uri::Authority;
use http::{Method, Uri};

/// A target, as it stands in a request line.
pub fn path(target: &[u8]) {
    // What is no target, hyper refuses before anything of ours sees it.
    let Ok(target) = Uri::try_from(target) else {
        return;
    };
    if target.authority().is_some() || !target.path().starts_with('/') {
        return;
    }
    for method in [Method::GET, Method::POST] {
        for routes in [with_a_route_for_all(), without()] {
            check(&routes, &method, &target);
        }
        // Nothing to get around: every text passes.
        let only = Routes::new(vec![everything()]);
        let chosen = only.choose(&method, target.path(), None).expect("a route");
        check_text(chosen, &target);
    }
}

fn everything() -> RouteConfig {
    RouteConfig::everything(Authority::from_static("api.example"))
}

fn with_a_route_for_all() -> Vec<RouteConfig> {
    [vec![everything()], without()].concat()
}

fn without() -> Vec<RouteConfig> {
    let route = |path: &str| RouteConfig {
        name: path.to_owned(),
        path: path.to_owned(),
        ..everything()
    };
    let charge = RouteConfig {
        name: "charge".to_owned(),
        methods: vec![Method::POST],
        ..route("/pay")
    };
    let files = RouteConfig {
        strip_prefix: true,
        ..route("/files/v1.0")
    };
    vec![route("/pay"), route("/pay/admin"), charge, files]
}

/// D-25: whatever is accepted leads to the same route, however a server behind us reads it.
fn check(routes: &[RouteConfig], method: &Method, target: &Uri) {
    let choice = Routes::new(routes.to_vec());
    let Ok(chosen) = choice.choose(method, target.path(), None) else {
        return;
    };
    for reading in readings(target.path().as_bytes()) {
        let found = find(routes, method, &reading);
        assert_eq!(
            found,
            Some(chosen.name.as_str()),
            "{method} {target}, read as {}",
            reading.escape_ascii()
        );
    }
    // No decoding makes another segment.
    let slashes = |path: &[u8]| path.iter().filter(|byte| **byte == b'/').count();
    let given = target.path().as_bytes();
    for reading in [decoded(given), decoded(&decoded(given))] {
        assert_eq!(slashes(&reading), slashes(given), "{target}");
    }
    check_text(chosen, target);
}

/// What was decided on is what is sent, but for a prefix that is stripped.
fn check_text(chosen: &RouteConfig, target: &Uri) {
    let given = target.path_and_query().expect("an origin-form").as_str();
    let sent = chosen.target(target).expect("a target");
    let prefix = if chosen.strip_prefix {
        &chosen.path
    } else {
        ""
    };
    let rest = given.strip_prefix(prefix).expect("its own prefix");
    let expected = if rest.starts_with('/') {
        rest.to_owned()
    } else {
        format!("/{rest}")
    };
    assert_eq!(sent.as_str(), expected);
}

/// The name of the longest route whose segments a path begins with, those that name the method first.
fn find<'a>(routes: &'a [RouteConfig], method: &Method, path: &[u8]) -> Option<&'a str> {
    let segments = |path: &[u8]| -> Vec<Vec<u8>> {
        let segments = path.split(|byte| *byte == b'/');
        segments.map(<[u8]>::to_vec).collect()
    };
    let path = segments(path);
    let covering = routes.iter().filter(|route| {
        path.starts_with(&segments(route.path.as_bytes()))
            && (route.methods.is_empty() || route.methods.contains(method))
    });
    let longest = covering.max_by_key(|route| (route.path.len(), !route.methods.is_empty()));
    longest.map(|route| route.name.as_str())
}

type Reader = fn(&[u8]) -> Vec<u8>;

/// What servers do to a path before they compare it, carelessly or by their rules.
const READERS: [Reader; 6] = [
    decoded,
    without_dot_segments,
    with_merged_slashes,
    with_backslashes_as_slashes,
    without_parameters,
    cut_at_nul,
];
/// More than two decodings no server does.
const DECODINGS: usize = 2;

/// Every path that four of them in a row can make of `path`, itself among them.
fn readings(path: &[u8]) -> BTreeSet<Vec<u8>> {
    let mut readings = BTreeSet::from([(path.to_vec(), 0)]);
    for _ in 0..4 {
        let more: Vec<_> = readings
            .iter()
            .flat_map(|(path, decodings)| {
                // Decoding comes first.
                let readers = READERS.iter().enumerate();
                readers.map(move |(at, read)| (read(path), decodings + usize::from(at == 0)))
            })
            .filter(|(_, decodings)| *decodings <= DECODINGS)
            .collect();
        readings.extend(more);
    }
    readings.into_iter().map(|(path, _)| path).collect()
}

/// Percent-decoded once; what is no escape stays (RFC 3986 §2.1).
fn decoded(path: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((byte, after)) = rest.split_first() {
        let escaped = match rest {
            [b'%', digits @ ..] => digits.get(..2).and_then(|digits| {
                let is_escape = digits.iter().all(u8::is_ascii_hexdigit);
                let digits = std::str::from_utf8(digits).ok().filter(|_| is_escape)?;
                u8::from_str_radix(digits, 16).ok()
            }),
            _ => None,
        };
        match escaped {
            Some(byte) => (bytes.push(byte), rest = &after[2..]),
            None => (bytes.push(*byte), rest = after),
        };
    }
    bytes
}

/// RFC 3986 §5.2.4.
fn without_dot_segments(path: &[u8]) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = Vec::new();
    let segments: Vec<&[u8]> = path.split(|byte| *byte == b'/').skip(1).collect();
    for (number, segment) in segments.iter().enumerate() {
        let is_last = number + 1 == segments.len();
        match *segment {
            b".." => {
                kept.pop();
                if is_last {
                    kept.push(b"");
                }
            }
            b"." if is_last => kept.push(b""),
            b"." => {}
            segment => kept.push(segment),
        }
    }
    [b"/", &kept.join(&b'/')[..]].concat()
}

fn with_merged_slashes(path: &[u8]) -> Vec<u8> {
    let mut merged = path.to_vec();
    merged.dedup_by(|one, other| (*one, *other) == (b'/', b'/'));
    merged
}

fn with_backslashes_as_slashes(path: &[u8]) -> Vec<u8> {
    let slash = |byte: &u8| if *byte == b'\\' { b'/' } else { *byte };
    path.iter().map(slash).collect()
}

/// Without what follows a semicolon in each segment, as servlet containers read it.
fn without_parameters(path: &[u8]) -> Vec<u8> {
    let segments = path.split(|byte| *byte == b'/');
    let bare = segments.map(|segment| segment.split(|byte| *byte == b';').next());
    bare.map(Option::unwrap_or_default)
        .collect::<Vec<_>>()
        .join(&b'/')
}

fn cut_at_nul(path: &[u8]) -> Vec<u8> {
    let cut = path.split(|byte| *byte == 0).next();
    cut.unwrap_or_default().to_vec()
}
