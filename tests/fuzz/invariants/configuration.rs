//! What bearerd makes of a configuration file.

use std::fs;
use std::iter;
use std::path::Path;

use bearerd::config::{Config, ConfigError, Flags, Inputs, Sources};
use bearerd::oauth::token_endpoint::Location;
use tempfile::TempDir;

/// Stands for a secret that somebody wrote where none belongs.
pub const CANARY: &str = "c4n4ry";
/// In a configuration the path of a file with a secret.
pub const SECRET_FILE: &str = "SECRET_FILE";
const SECRET: &str = "s3cret-of-the-file";

/// The bytes of a file.
pub fn configuration(bytes: &[u8]) {
    let folder = folder();
    let secret_file = folder.path().join("client_secret").display().to_string();
    let text = String::from_utf8_lossy(bytes).replace(SECRET_FILE, &secret_file);
    let is_text = std::str::from_utf8(bytes).is_ok();
    let written = if is_text { text.as_bytes() } else { bytes };
    match load(&folder, written) {
        Ok(config) => {
            assert!(is_text);
            let shown = format!("{config:?}");
            assert!(!shown.contains(SECRET) || text.contains(SECRET), "{shown}");
            check(&config);
            check_effective(&folder, config);
        }
        Err(error) => {
            let shown = error.to_string();
            for shown in [&shown, &format!("{error:?}")] {
                assert!(!shown.contains(SECRET) || text.contains(SECRET), "{shown}");
                assert!(!shown.contains(CANARY) || is_told(&text), "{shown}");
            }
            let file = folder.path().join("bearerd.toml");
            check_error(&shown, &file, &text);
        }
    }
}

/// The smallest configuration there is.
pub fn minimal() -> Config {
    let text = format!(
        r#"
        [upstream.payments]
        url = "https://api.payments.example"
        [credential.payments]
        token_url = "https://auth.payments.example/o/token/"
        client_id = "shop"
        client_secret_file = "{SECRET_FILE}"
        "#
    );
    let folder = folder();
    let secret_file = folder.path().join("client_secret").display().to_string();
    let text = text.replace(SECRET_FILE, &secret_file);
    load(&folder, text.as_bytes()).unwrap_or_else(|error| panic!("{error}"))
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("client_secret"), SECRET).expect("a file");
    folder
}

fn load(folder: &TempDir, text: &[u8]) -> Result<Config, ConfigError> {
    fs::write(folder.path().join("bearerd.toml"), text).expect("a file");
    Config::load(&inputs(folder))
}

fn inputs(folder: &TempDir) -> Inputs {
    let flags = Flags {
        config: Some(folder.path().join("bearerd.toml")),
        ..Flags::default()
    };
    Inputs::new(flags, iter::empty())
}

/// What is printed of it is the same configuration, but for what is hidden.
fn check_effective(folder: &TempDir, config: Config) {
    let printed = Config::effective(&inputs(folder)).unwrap_or_else(|error| panic!("{error}"));
    let again = load(folder, printed.as_bytes());
    let again = again.unwrap_or_else(|error| panic!("{error}\n{printed}"));
    if !printed.contains("***") {
        let [one, other] = [config, again].map(|config| {
            let sources = Sources::default();
            format!("{:#?}", Config { sources, ..config })
        });
        assert_eq!(one, other, "{printed}");
    }
}

/// What the code behind the configuration relies on.
fn check(config: &Config) {
    assert!((1..=256).contains(&config.workers));
    assert!(config.proxy.drain_delay < config.proxy.drain_timeout);
    assert!(!config.proxy.header_timeout.is_zero());
    assert!((8 * 1024..=1024 * 1024).contains(&config.proxy.max_header_bytes));
    let mut urls: Vec<_> = config
        .upstreams
        .iter()
        .map(|upstream| &upstream.url)
        .collect();
    for credential in &config.credentials {
        let endpoint = &credential.endpoint;
        if let Location::Url(url) = &endpoint.location {
            urls.push(url);
        }
        urls.extend(&endpoint.revoke_url);
    }
    for url in urls {
        let scheme = url.scheme_str().unwrap_or_default();
        let authority = url.authority().map_or("", |authority| authority.as_str());
        assert!(matches!(scheme, "http" | "https"), "{url}");
        assert!(!authority.is_empty() && !authority.contains('@'), "{url}");
    }
    for route in &config.routes {
        assert!(route.upstream < config.upstreams.len());
        assert!(config.tokens[route.tokens].credential < config.credentials.len());
    }
}

/// Paragraphs that name places of the file, with a caret under each.
fn check_error(shown: &str, file: &Path, text: &str) {
    assert!(!shown.trim().is_empty());
    let lines: Vec<&str> = shown.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        let rest = line.strip_prefix(&format!("{}:", file.display()));
        let mut place = rest.into_iter().flat_map(|rest| rest.splitn(3, ':'));
        let mut number_at = || place.next()?.parse::<usize>().ok();
        // Without them it is about the file as a whole.
        let (Some(line), Some(column)) = (number_at(), number_at()) else {
            continue;
        };
        let content = text.split('\n').nth(line.wrapping_sub(1));
        let content = content.unwrap_or_else(|| panic!("no line {line}: {shown}"));
        let width = content.chars().count();
        assert!(
            (1..=width + 1).contains(&column),
            "no column {column}: {shown}"
        );
        let is_caret = |line: &str| line.ends_with('^') && line.contains('|');
        assert!(
            lines.iter().skip(number).any(|line| is_caret(line)),
            "no caret: {shown}"
        );
    }
}

/// Whether the canary stands where nobody would take it for a secret.
fn is_told(text: &str) -> bool {
    text.lines().any(|line| {
        let Some((before, after)) = line.split_once(CANARY) else {
            return false;
        };
        let before = before.to_ascii_lowercase();
        let is_value_of = |name: &&str| {
            let after_name = before.split_once(name).map(|(_, rest)| rest);
            after_name.is_some_and(|rest| rest.contains('='))
        };
        let names = [
            "client_secret",
            "client_assertion",
            "password",
            "authorization",
            "api-key",
        ];
        let names_a_secret = names
            .iter()
            .any(is_value_of)
            && !before.contains("client_secret_file")
            && !before.contains("client_assertion_file")
            // A choice among words, and a wrong one is told.
            && !before.trim_start().starts_with("client_auth");
        let is_user_information = before.contains("://") && after.contains('@');
        !names_a_secret && !is_user_information
    })
}
