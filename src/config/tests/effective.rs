//! The configuration in effect, printed.

use super::*;

fn printed(text: &str, variables: &[(&str, &str)], scope: Option<&str>) -> (String, String) {
    let file = file(text);
    let flags = Flags {
        config: Some(file.path().to_owned()),
        scope: scope.map(str::to_owned),
        ..Flags::default()
    };
    let variables = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let inputs = Inputs::new(flags, variables);
    let loaded = shown(Config::load(&inputs).unwrap());
    let text = Config::effective(&inputs).unwrap();
    (
        text.replace(&file.path().display().to_string(), "FILE"),
        loaded,
    )
}

/// The values alone.
fn values(text: &str) -> toml::Table {
    text.parse()
        .unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Nothing hidden in it, and something odd in every kind of value.
fn everything(secret: &NamedTempFile) -> String {
    let path = secret.path().display();
    format!(
        r#"
[proxy]
listen = ["127.0.0.1:0", "unix:/run/b\"1.sock"]
allowed_hosts = "pay.internal"
max_body_bytes = "10MiB"
header_timeout = "1m 30s"

[admin]
quit = true

[upstream.b-2]
url = "https://b.example/base"
remove_headers = ["X-A", "X-B"]
proxy_url = "http://proxy.example:3128"
no_proxy = "internal.example"

[upstream.a]
url = "https://a.example"
http = "1.1"

[credential.x]
issuer = "https://auth.example"
client_id = "shop \\ ü"
client_secret_file = ["{path}", "{path}"]
client_auth = "client_secret_post"
audience = "one"
resource = ["https://r.example/1"]
refresh_at = 1.0
invalidate_on_status = [401, 403]
revoke_on_shutdown = true

[[route]]
name = "read"
path = "/r"
methods = ["GET"]
upstream = "a"
scope = "read"

[[route]]
path = "/"
upstream = "b-2"
upgrade = ["websocket"]
response_timeout = "5s"
"#
    )
}

/// So every default that is printed is the one that holds.
#[test]
fn what_is_printed_is_the_same_configuration() {
    let secret = secret();
    for text in [minimal(&secret, "", "", ""), everything(&secret)] {
        let (once, loaded) = printed(&text, &[], None);
        let (twice, loaded_again) = printed(&once, &[], None);
        assert_eq!(loaded_again, loaded);
        assert_eq!(values(&twice), values(&once));
    }
}

#[test]
fn every_key_is_there_with_where_it_comes_from() {
    let secret = secret();
    let variables = [
        ("BEARERD_CLIENT_ID", "other"),
        ("BEARERD_LOG_LEVEL", "debug"),
    ];
    let text = minimal(&secret, "drain_delay = \"1s\"", "", "");
    let (text, _) = printed(&text, &variables, Some("read"));
    let line = |start: &str, from: &str| {
        let found = text.lines().find(|line| line.starts_with(start));
        let found = found.unwrap_or_else(|| panic!("{start} in\n{text}"));
        assert!(found.ends_with(&format!(" # {from}")), "{found}");
    };
    line("drain_delay = \"1s\"", "FILE:2");
    line("client_id = \"other\"", "BEARERD_CLIENT_ID");
    line("level = \"debug\"", "BEARERD_LOG_LEVEL");
    line("scope = \"read\"", "--scope");
    line("drain_timeout = \"25s\"", "default");
    assert!(text.contains("\n# max_body_bytes is not set\n"), "{text}");
    let with_route = everything(&secret);
    let (text, _) = printed(&with_route, &[], None);
    for table in TABLES {
        for key in keys_of(table) {
            let is_there = text.lines().any(|line| {
                line.starts_with(&format!("{key} = ")) || line == format!("# {key} is not set")
            });
            assert!(is_there, "{key} of [{table}] in\n{text}");
        }
    }
}

/// Whatever a user may have hidden there.
#[test]
fn what_may_be_a_secret_is_not_printed() {
    let secret = secret();
    let canary = "canary-7f3a";
    let text = minimal(
        &secret,
        &format!("require_header = \"X-Sidecar: {canary}\""),
        &format!("set_headers = {{ \"X-Key\" = \"{canary}\", \"X-Two\" = \"{canary}\" }}"),
        &format!("extra_params = {{ \"a b\" = \"{canary}\" }}"),
    )
    .replace("/o/token/", &format!("/o/token/?key={canary}"));
    let (once, _) = printed(&text, &[], None);
    assert!(!once.contains(canary), "{once}");
    assert!(once.contains("require_header = \"X-Sidecar: ***\""));
    assert!(once.contains("set_headers = { X-Key = \"***\", X-Two = \"***\" }"));
    assert!(once.contains("extra_params = { \"a b\" = \"***\" }"));
    assert!(once.contains("token_url = \"https://auth.payments.example/o/token/?***\""));
}

#[test]
fn a_configuration_that_cannot_be_used_is_not_printed() {
    let secret = secret();
    let file = file(&minimal(&secret, "header_timeout = \"soon\"", "", ""));
    let flags = Flags {
        config: Some(file.path().to_owned()),
        ..Flags::default()
    };
    let error = Config::effective(&Inputs::new(flags, std::iter::empty())).unwrap_err();
    assert!(error.to_string().contains("is not a duration"));
}
