use std::io::Write;

use tempfile::NamedTempFile;

use super::*;
use crate::oauth::client_auth::{BasicEncoding, ClientAuth, SecretMethod};
use crate::oauth::token_endpoint::ClientId;
use crate::secret::SecretSource;

#[path = "credential_tests.rs"]
mod credential;

const EXAMPLE: &str = include_str!("../../config.example.toml");

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::with_suffix(".toml").unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn secret() -> NamedTempFile {
    file("s3cret\n")
}

/// A complete configuration, with `lines` after the keys of each table that can have more.
fn minimal(secret: &NamedTempFile, proxy: &str, upstream: &str, credential: &str) -> String {
    format!(
        "[proxy]\n{proxy}\n[upstream.payments]\nurl = \"https://api.payments.example\"\n{upstream}\n\
         [credential.payments]\ntoken_url = \"https://auth.payments.example/o/token/\"\n\
         client_id = \"shop-backend\"\nclient_secret_file = \"{}\"\n{credential}\n",
        secret.path().display()
    )
}

fn load_with(text: &str, flags: Flags, variables: &[(&str, &str)]) -> Result<Config, String> {
    let file = file(text);
    let flags = Flags {
        config: Some(file.path().to_owned()),
        ..flags
    };
    load_inputs(flags, variables)
        .map_err(|error| error.replace(&file.path().display().to_string(), "FILE"))
}

fn load_inputs(flags: Flags, variables: &[(&str, &str)]) -> Result<Config, String> {
    let variables = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::load(&Inputs::new(flags, variables)).map_err(|error| error.to_string())
}

fn load(text: &str) -> Result<Config, String> {
    load_with(text, Flags::default(), &[])
}

/// The error of a configuration that is complete but for the lines given.
fn error(proxy: &str, upstream: &str, credential: &str) -> String {
    let secret = secret();
    load(&minimal(&secret, proxy, upstream, credential)).unwrap_err()
}

/// Debug shows every value, so two configurations with the same text are the same.
fn shown(config: Config) -> String {
    let config = Config {
        sources: Sources::default(),
        ..config
    };
    format!("{config:#?}")
}

#[test]
fn the_example_shows_the_defaults() {
    let secret = secret();
    let path = secret.path().display().to_string();
    let example = EXAMPLE.replace("/run/secrets/bearerd/client_secret", &path);
    let uncommented: String = example
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with([' ', '#']) => format!("{setting}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    assert_ne!(example, uncommented);
    let defaults = shown(load(&minimal(&secret, "", "", "")).unwrap());
    assert_eq!(shown(load(&example).unwrap()), defaults, "as it is");
    assert_eq!(
        shown(load(&uncommented).unwrap()),
        defaults,
        "with every default uncommented"
    );
}

/// serde tells the keys of a table when it meets one that is not among them.
fn keys_of(table: &str) -> Vec<String> {
    let error = toml::from_str::<Tables>(&format!("[{table}]\nno_such_key = 1\n")).unwrap_err();
    let known = error.message().split_once("expected ").unwrap().1;
    known
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// One of each kind.
const TABLES: [&str; 7] = [
    "proxy",
    "admin",
    "runtime",
    "log",
    "upstream.x",
    "credential.x",
    "[route]",
];

#[test]
fn the_example_and_the_readme_name_every_key() {
    let readme = include_str!("../../README.md");
    for table in TABLES {
        for key in keys_of(table) {
            let documented = EXAMPLE.lines().any(|line| {
                line.trim_start_matches(['#', ' '])
                    .starts_with(&format!("{key} = "))
            });
            assert!(documented, "config.example.toml lacks {key} of [{table}]");
            assert!(
                readme.contains(&format!("`{key}`")),
                "README.md lacks {key} of [{table}]"
            );
        }
    }
}

#[test]
fn five_variables_are_enough() {
    let secret = secret();
    let config = load_inputs(
        Flags::default(),
        &[
            ("BEARERD_UPSTREAM_URL", "https://api.payments.example/v1"),
            (
                "BEARERD_TOKEN_URL",
                "https://auth.payments.example/o/token/",
            ),
            ("BEARERD_CLIENT_ID", "shop-backend"),
            (
                "BEARERD_CLIENT_SECRET_FILE",
                secret.path().to_str().unwrap(),
            ),
            ("BEARERD_SCOPE", "read  write"),
        ],
    )
    .unwrap();
    assert_eq!(config.upstreams[0].name, "default");
    assert_eq!(config.upstreams[0].url, "https://api.payments.example/v1");
    assert_eq!(config.credentials[0].name, "default");
    assert_eq!(
        config.credentials[0].endpoint.scope.as_deref(),
        Some("read write")
    );
    assert_eq!(
        config.sources.to_string(),
        "no file + 5 variables + 0 flags"
    );
    assert!(config.warnings.is_empty());
}

#[test]
fn flags_override_variables_and_those_the_file() {
    let secret = secret();
    let text = minimal(&secret, "listen = \"127.0.0.1:1\"", "", "scope = \"file\"");
    let variables = [
        ("BEARERD_LISTEN", "127.0.0.1:2"),
        ("BEARERD_SCOPE", "env"),
        ("BEARERD_CLIENT_AUTH", "client_secret_post"),
        ("BEARERD_LOG_LEVEL", "debug"),
        ("BEARERD_CLIENT_ID", ""),
    ];
    let flags = Flags {
        listen: Some("127.0.0.1:3".into()),
        ..Flags::default()
    };
    let config = load_with(&text, flags, &variables).unwrap();
    assert_eq!(
        config.proxy.listen,
        [ListenAddress::Tcp("127.0.0.1:3".parse().unwrap())]
    );
    assert_eq!(config.credentials[0].endpoint.scope.as_deref(), Some("env"));
    assert_eq!(
        config.credentials[0].endpoint.client_auth.name(),
        "client_secret_post"
    );
    assert_eq!(config.log.level, tracing::Level::DEBUG);
    assert_eq!(
        config.credentials[0].endpoint.client_id,
        ClientId::Inline("shop-backend".into()),
        "a variable set to nothing is not set"
    );
    assert_eq!(config.credentials[0].name, "payments");
}

#[test]
fn a_variable_for_the_secret_replaces_the_one_of_the_file_and_is_never_copied() {
    let secret = secret();
    let text = minimal(&secret, "", "", "");
    let inputs = Inputs::new(
        Flags::default(),
        [("BEARERD_CLIENT_SECRET".to_owned(), "canary-4711".to_owned())].into_iter(),
    );
    assert!(!format!("{inputs:?}").contains("canary"));
    // The process has no such variable, and says so; which is what shows where it looked.
    let error = load_with(
        &text,
        Flags::default(),
        &[("BEARERD_CLIENT_SECRET", "canary-4711")],
    )
    .unwrap_err();
    assert!(error.starts_with(
        "BEARERD_CLIENT_SECRET: secret variable BEARERD_CLIENT_SECRET: does not exist"
    ));
    assert!(!error.contains("canary"));
    let both = [
        ("BEARERD_CLIENT_SECRET", "x"),
        (
            "BEARERD_CLIENT_SECRET_FILE",
            secret.path().to_str().unwrap(),
        ),
    ];
    let error = load_with(&text, Flags::default(), &both).unwrap_err();
    assert!(
        error.contains("BEARERD_CLIENT_SECRET_FILE: set together with BEARERD_CLIENT_SECRET"),
        "{error}"
    );
}

/// The variables that Kubernetes makes of a Service called bearerd are nobody's mistake.
#[test]
fn unknown_variables_are_told_but_not_those_of_service_links() {
    let secret = secret();
    let variables = [
        ("BEARERD_UPSTREM_URL", "x"),
        ("BEARERD_PORT", "tcp://10.0.0.1:80"),
        ("BEARERD_PORT_80_TCP", "x"),
        ("BEARERD_SERVICE_HOST", "x"),
        ("OTHER", "x"),
    ];
    let config = load_with(&minimal(&secret, "", "", ""), Flags::default(), &variables).unwrap();
    assert_eq!(
        config.warnings,
        ["unknown variable BEARERD_UPSTREM_URL is ignored; did you mean BEARERD_UPSTREAM_URL?"]
    );
}

/// C-76: certificates are verified, and nothing turns that off.
#[test]
fn there_is_no_switch_against_certificates() {
    for key in [
        "insecure_skip_verify",
        "danger_accept_invalid_certs",
        "verify",
    ] {
        let error = error("", &format!("{key} = true"), "");
        assert!(error.contains(&format!("unknown key `{key}`")), "{error}");
    }
}

#[test]
fn an_unknown_key_gets_a_caret_and_a_suggestion() {
    let error = load("[upstream.payments]\nurll = \"https://api.payments.example\"\n").unwrap_err();
    assert_eq!(
        error,
        "FILE:2:1: unknown key `urll`\n  |\n2 | urll = \"https://api.payments.example\"\n  | ^^^^\n  \
         hint: did you mean `url`?\n"
    );
    let error = load("[proxy]\nxyz = 1\n").unwrap_err();
    assert!(
        error.contains("hint: known here: listen, unix_socket_mode"),
        "{error}"
    );
    let error = load("[proxy]\nheader_timeout = 15\n").unwrap_err();
    assert!(
        error.contains("FILE:2:18: wrong type, expected a string"),
        "{error}"
    );
    assert!(
        error.contains("hint: durations and sizes are strings"),
        "{error}"
    );
}

#[test]
fn all_mistakes_are_told_at_once() {
    let error = load(
        "[proxy]\nlisten = \"0.0.0.0:8080\"\nheader_timeout = \"12\"\n\
         [upstream.payments]\nurl = \"ftp://api.payments.example\"\nhttp = \"3\"\n\
         [credential.payments]\ntoken_url = \"http://auth.payments.example/\"\nrefresh_at = 1.5\n",
    )
    .unwrap_err();
    for part in [
        "FILE:2:10: 0.0.0.0:8080 is not a loopback address",
        "FILE:3:18: \"12\" is not a duration",
        "FILE:5:7: unknown scheme \"ftp\"",
        "FILE:6:8: \"3\" is none of auto, 1.1, 2",
        "FILE:8:13: the token endpoint would get the client secret unencrypted",
        "FILE:9:14: must be from 0.0 to 1.0",
        "missing `client_id` in [credential.payments]",
        "missing `client_secret_file` in [credential.payments]",
    ] {
        assert!(error.contains(part), "{part:?} is not in\n{error}");
    }
}

#[test]
fn what_is_refused_at_start() {
    for (url, told) in [
        ("https://api.example/#x", "must not have a fragment"),
        ("https://api.example/?a=b", "has no query"),
        ("/relative", "not a URL"),
        ("https://", "not a URL"),
    ] {
        let secret = secret();
        let text = minimal(&secret, "", "", "").replace("https://api.payments.example", url);
        let error = load(&text).unwrap_err();
        assert!(error.contains(told), "{url}: {error}");
    }
    let both = error("", "", "client_secret_env = \"X\"");
    assert!(
        both.contains("client_secret_file together with client_secret_env"),
        "{both}"
    );
    let both = error("", "", "client_id_file = \"/x\"");
    assert!(
        both.contains("client_id together with client_id_file"),
        "{both}"
    );
    let reserved = error(
        "",
        "set_headers = { authorization = \"x\" }",
        "extra_params = { scope = \"x\" }",
    );
    assert!(
        reserved.contains("authorization is not yours to change"),
        "{reserved}"
    );
    assert!(
        reserved.contains("extra_params may not hold scope"),
        "{reserved}"
    );
    let relative = error("drain_delay = \"30s\"", "", "resource = \"not-absolute\"");
    assert!(
        relative.contains("drain_delay is not shorter than drain_timeout"),
        "{relative}"
    );
    assert!(relative.contains("is not an absolute URI"), "{relative}");
    let missing = error("", "ca_file = \"/nonexistent.pem\"", "");
    assert!(
        missing.contains("/nonexistent.pem: cannot be read"),
        "{missing}"
    );
    let scope = error("", "", "scope = \"re\\\"ad\"");
    assert!(scope.contains("is not a scope"), "{scope}");
}

#[test]
fn loopback_token_urls_may_be_plain_and_others_when_asked_for() {
    let with = |url: &str, more: &str| {
        let secret = secret();
        load(&minimal(&secret, "", "", more).replace("https://auth.payments.example/o/token/", url))
            .map(|_| ())
    };
    for url in [
        "http://127.0.0.1:8000/o/token/",
        "http://localhost/",
        "http://[::1]:1/",
    ] {
        assert_eq!(with(url, ""), Ok(()), "{url}");
    }
    assert!(with("http://auth.internal/", "").is_err());
    assert!(with("http://127.0.0.1.nip.io/", "").is_err());
    assert_eq!(
        with("http://auth.internal/", "allow_insecure_token_url = true"),
        Ok(())
    );
}

#[test]
fn a_listener_for_others_must_be_meant() {
    let secret = secret();
    let text = minimal(&secret, "listen = [\"127.0.0.1:0\", \"0.0.0.0:0\"]", "", "");
    assert!(load(&text).is_err());
    let allowed = [("BEARERD_ALLOW_REMOTE_CLIENTS", "true")];
    let config = load_with(&text, Flags::default(), &allowed).unwrap();
    assert_eq!(config.proxy.listen.len(), 2);
}

/// C-70: whoever writes a secret into the file, or into a URL, does not find it in a log.
#[test]
fn no_message_shows_what_may_be_a_secret() {
    let canary = "canary-4711";
    for text in [
        format!("[credential.payments]\nclient_secret = \"{canary}\"\n"),
        format!("[credential.payments]\nclient_secret = \"{canary}\n"),
        format!("[credential.payments]\nclient_secret_env = \"{canary}\"\n"),
        format!("[credential.payments]\npassword = \"{canary}\"\n"),
        format!("[credential.payments]\nprivate_key = \"{canary}\"\n"),
        format!("[credential.payments]\nclient_assertion = \"{canary}\"\n"),
        format!("[credential.payments]\nkey_id = [\"{canary}\"]\n"),
        format!("[credential.payments]\nmax_waiting = \"{canary}\"\n[x]\n"),
        format!("[upstream.payments]\nurl = \"https://user:{canary}@api.example\"\n"),
        format!("[credential.payments]\ntoken_url = \"https://user:{canary}@auth.example\"\n"),
        format!("[credential.payments]\nclient_secret: \"{canary}\"\n"),
        format!("[credential.payments]\nclient_secret \"{canary}\"\n"),
        format!("[credential.payments]\n[https://user:{canary}@auth.example\n"),
        format!("[credential.payments]\nclient_secret: \"{canary}\" scope = \"x\"\n"),
        format!("[credential.payments]\nclient_secret_file = \"x\" client_secret = \"{canary}\"\n"),
        format!(
            "[credential.payments]\ntoken_url = https://auth.example client_secret = {canary}\"\n"
        ),
        format!("[upstream.payments.set_headers]\nX = \"x\" Authorization = \"{canary}\"\n"),
        format!("[upstream.payments]\nset_headers = [{{ Authorization = \"{canary}\" }}]\n"),
        format!("[upstream.payments]\nset_headers = Authorization = \"{canary}\"\n"),
    ] {
        let error = load(&text).unwrap_err();
        let line = text.lines().nth(1).unwrap();
        if line.starts_with("max_waiting") {
            // The line itself is shown, serde's message with its value is not.
            assert!(error.contains("wrong type, expected u64"), "{error}");
        } else {
            assert!(!error.contains(canary), "{error}");
        }
    }
}

#[test]
fn listeners_may_be_unix_sockets() {
    let secret = secret();
    let proxy = |lines: &str| load(&minimal(&secret, lines, "", "")).map(|config| config.proxy);
    let config = proxy(
        "listen = [\"unix:/run/a b.sock\", \"[::1]:3\"]\nunix_socket_mode = \"0600\"\nhttp2 = true\n",
    );
    let config = config.unwrap();
    assert_eq!(
        config.listen,
        [
            ListenAddress::Unix("/run/a b.sock".into()),
            ListenAddress::Tcp("[::1]:3".parse().unwrap()),
        ]
    );
    assert_eq!(config.unix_socket_mode, 0o600);
    assert!(config.http2);
    assert_eq!(proxy("").unwrap().unix_socket_mode, 0o660);
    for (lines, expected) in [
        ("listen = \"unix:run/x.sock\"\n", "absolute path"),
        ("unix_socket_mode = \"0990\"\n", "not a file mode"),
        ("unix_socket_mode = \"07777\"\n", "not a file mode"),
    ] {
        let error = proxy(lines).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn secrets_are_proven_readable_at_start() {
    let empty = file("\n");
    let text = |path: &str| {
        let secret = secret();
        minimal(&secret, "", "", "").replace(secret.path().to_str().unwrap(), path)
    };
    let error = load(&text(empty.path().to_str().unwrap())).unwrap_err();
    assert!(error.contains("is empty"), "{error}");
    let error = load(&text("/nonexistent/secret")).unwrap_err();
    assert!(
        error.contains("secret file /nonexistent/secret: does not exist"),
        "{error}"
    );
    let secret = secret();
    let config = load(&minimal(&secret, "", "", "")).unwrap();
    assert_eq!(
        config.credentials[0].endpoint.client_auth,
        ClientAuth::Secrets(
            SecretMethod::Basic(BasicEncoding::Form),
            vec![SecretSource::File(secret.path().into())]
        )
    );
}

#[test]
fn nothing_at_all_says_how_to_begin() {
    let error = load_inputs(Flags::default(), &[]).unwrap_err();
    assert!(
        error.contains("there is no upstream\n  hint: set BEARERD_UPSTREAM_URL"),
        "{error}"
    );
}

mod connect;
mod effective;
mod routes;
