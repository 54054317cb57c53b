//! What holds whatever comes in: the invariants that `tests/fuzz` searches with a fuzzer, driven with bytes of any kind
//! and with bytes that are almost right. `tests/fuzz/README.md` tells how to search for longer.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(unreachable_pub, reason = "in a test binary nothing is reachable")]

use std::fmt;
use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

#[path = "../fuzz/invariants/mod.rs"]
mod invariants;

// From the application.
mod fields;
mod requests;
mod targets;

// From the authorization server.
mod token_endpoint;

// From whoever sets it up.
mod configuration;

/// So many cases, and no file for those that fail: what is found becomes a seed.
fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

type Invariant = fn(&[u8]);

/// F-03: what was written down once, and what was ever found.
#[test]
fn every_seed_keeps_the_invariants() {
    let targets: [(&str, Invariant); 6] = [
        ("configuration", invariants::configuration),
        ("hop", invariants::hop),
        ("path", invariants::path),
        ("request_head", invariants::request_head),
        ("retry_after", invariants::retry_after),
        ("token_response", invariants::token_response),
    ];
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds");
    let mut folders: Vec<_> = fs::read_dir(&seeds).unwrap().map(|f| f.unwrap()).collect();
    folders.sort_by_key(fs::DirEntry::file_name);
    let names: Vec<_> = folders.iter().map(fs::DirEntry::file_name).collect();
    assert_eq!(names, targets.map(|(name, _)| name));
    for (name, keeps) in targets {
        for seed in fs::read_dir(seeds.join(name)).unwrap() {
            let seed = seed.unwrap().path();
            println!("{}", seed.display());
            keeps(&fs::read(&seed).unwrap());
        }
    }
}

/// Bytes that a failing test shows as text.
#[derive(Clone)]
struct Bytes(Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

fn any_bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..64).prop_map(Bytes)
}

/// Bytes that are almost `bytes`: some are replaced, put in, taken away, or come twice.
fn almost(text: impl Strategy<Value = String>) -> impl Strategy<Value = Bytes> {
    let odd = select(b"\0\t\n\r \"#%,-./0:;=\\_\x7f\x80\xff{}".to_vec());
    let change = (any::<Index>(), 0..4_usize, 1..8_usize, odd);
    (text, vec(change, 0..4)).prop_map(|(text, changes)| {
        let mut bytes = text.into_bytes();
        for (index, change, length, byte) in changes {
            if bytes.is_empty() {
                break;
            }
            let at = index.index(bytes.len());
            let end = bytes.len().min(at + length);
            match change {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => drop(bytes.drain(at..end)),
                _ => bytes.extend_from_within(at..end),
            }
        }
        Bytes(bytes)
    })
}

/// One of these words, or text like them.
fn word(
    words: &'static [&'static str],
    like: &'static str,
) -> impl Strategy<Value = String> + use<> {
    prop_oneof![
        7 => select(words).prop_map(str::to_owned),
        1 => like.prop_map(|text| text),
    ]
}
