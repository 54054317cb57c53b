//! Configurations that are almost right.

use proptest::bool::weighted;
use proptest::collection::vec;
use proptest::prelude::*;

use super::{almost, any_bytes, cases, invariants, word};

/// Lines of the tables, and how they are meant; a canary stands where somebody could put a secret.
const SETTINGS: &[&str] = &[
    "[proxy]",
    "[admin]",
    "[runtime]",
    "[log]",
    "[upstream.payments]",
    "[upstream.\"a b\"]",
    "[credential.payments]",
    "[upstream.payments.set_headers]",
    "[[route]]",
    "[credential",
    "listen = \"127.0.0.1:8080\"",
    "listen = [\"[::1]:1\", \"unix:/run/x\"]",
    "listen = \"0.0.0.0:1\"",
    "allow_remote_clients = true",
    "allowed_hosts = [\"a\", 1]",
    "require_header = \"X-Sidecar: 1\"",
    "http2 = true",
    "header_timeout = \"15s\"",
    "header_timeout = \"99999999999999y\"",
    "drain_delay = \"1h\"",
    "max_header_bytes = \"8EiB\"",
    "max_connections = 0",
    "max_connections = 9223372036854775807",
    "max_connections = -1",
    "workers = 257",
    "level = \"inof\"",
    "url = \"https://u:c4n4ry@api.example/\"",
    "url = \"ftp://api.example\"",
    "url = \"https://api.example/?q#f\"",
    "url = \"https://\u{e9}.example/\"",
    "http = \"3\"",
    "ca_file = \"SECRET_FILE\"",
    "ca_file = \"/nonexistent\"",
    "client_cert_file = \"SECRET_FILE\"\nclient_key_file = \"SECRET_FILE\"",
    "client_key_file = \"-----BEGIN PRIVATE KEY-----\\nc4n4ry\"\nclient_cert_file = \"x\"",
    "server_name = \"a b\"",
    "no_proxy = \"http://u:c4n4ry@proxy.example\"\nproxy_url = \"http://proxy.example\"",
    "proxy_url = \"http://u:c4n4ry@proxy.example:3128\"",
    "proxy_url = \"https://proxy.example\"\nno_proxy = [\"a b\"]",
    "dns_refresh = \"0s\"",
    "set_headers = { Authorization = \"c4n4ry\" }",
    "set_headers = { X = \"\\n\" }",
    "remove_headers = \"host\"",
    "token_url = \"http://as.example/\"",
    "token_url = \"https://u:c4n4ry@as.example/\"",
    "client_id = \"\"",
    "client_id_file = \"SECRET_FILE\"",
    "client_secret = \"c4n4ry\"",
    "client_secret = { value = \"c4n4ry\" }",
    "client_secret = \"c4n4ry",
    "client_secret_env = \"c4n4ry\"",
    "client_secret_env = [\"c4n4ry\"]",
    "password = c4n4ry",
    "api-key = 'c4n4ry'",
    "client_secret_file = [\"SECRET_FILE\", \"/nonexistent\"]",
    "client_secret_file = []",
    "client_auth = \"private_key_jwt\"",
    "client_auth = \"client_assertion_file\"",
    "client_auth = \"client_secret_post\"",
    "private_key_file = \"SECRET_FILE\"",
    "client_assertion_file = \"SECRET_FILE\"",
    "client_assertion = \"c4n4ry\"",
    "signing_algorithm = \"RS512\"",
    "issuer = \"https://u:c4n4ry@as.example/\"",
    "issuer = \"https://as.example/?q\"",
    "revoke_url = \"http://as.example/\"",
    "revoke_on_shutdown = true",
    "invalidate_on_status = [401, 500]",
    "on_scope_downgrade = \"fial\"",
    "scope = \"\\u0000\"",
    "extra_params = { client_secret = \"c4n4ry\" }",
    "extra_params = { password = \"c4n4ry\", x = 1 }",
    "refresh_at = nan",
    "refresh_at = 1.5",
    "expiry_margin = \"\"",
    "path = \"/pay/..\"",
    "path = \"/pay\"",
    "methods = [\"get\"]",
    "upgrade = \"h2c\"",
    "strip_prefix = true",
    "a.b = 1",
    "\u{feff}",
    "# \u{e9}",
    "x = \"\"\"",
    "'",
    "=",
    "]",
];

fn document() -> impl Strategy<Value = String> {
    let upstream = "[upstream.payments]\nurl = \"https://api.example/v1\"\n";
    let credential = "[credential.payments]\ntoken_url = \"https://as.example/\"\nclient_id = \"shop\"\n\
                      client_secret_file = \"SECRET_FILE\"\n";
    let lines = || vec(word(SETTINGS, "[a-z_]{1,8} = [ -~]{0,8}"), 0..3);
    (lines(), weighted(0.8), lines(), weighted(0.8), lines()).prop_map(
        move |(before, has_upstream, between, has_credential, after)| {
            let part = |lines: Vec<String>| lines.join("\n") + "\n";
            let upstream = if has_upstream { upstream } else { "" };
            let credential = if has_credential { credential } else { "" };
            let parts = [
                &part(before),
                upstream,
                &part(between),
                credential,
                &part(after),
            ];
            parts.concat()
        },
    )
}

proptest! {
    #![proptest_config(cases(1024))]

    /// C-71, F-19: a configuration is taken or its mistakes are told, with their places and without any secret.
    #[test]
    fn configurations_are_taken_or_their_mistakes_are_told(text in prop_oneof![9 => almost(document()), 1 => any_bytes()]) {
        invariants::configuration(&text.0);
    }
}
