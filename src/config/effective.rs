//! The configuration in effect as a file: every key with its value, and where that comes from.
//!
//! A secret is in none of them, only where it is. What a user chose the name of, and so may be one, is shown as `***`: the
//! values of `set_headers`, `extra_params` and `require_header`, and the query of a URL.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use super::error::Origin;
use super::tables::{
    AdminTable, CredentialTable, LogTable, OneOrMany, ProxyTable, RouteTable, RuntimeTable,
    Setting, Tables, UpstreamTable,
};

/// The column of the comments, unless a value is longer.
const COMMENT_COLUMN: usize = 44;
const MASK: &str = "***";

/// `tables` as text, for a configuration that is good. `workers` is how many threads it comes to.
pub(super) fn text(tables: &Tables, file: Option<&(PathBuf, String)>, workers: usize) -> String {
    let mut page = Page {
        text: String::new(),
        file,
    };
    page.proxy(&tables.proxy);
    page.admin(&tables.admin);
    page.runtime(&tables.runtime, workers);
    page.log(&tables.log);
    for (name, table) in &tables.upstream {
        page.upstream(name, table);
    }
    for (name, table) in &tables.credential {
        page.credential(name, table);
    }
    if tables.route.is_empty() {
        page.text += "\n# no [[route]]: every path goes to the upstream\n";
    }
    for table in &tables.route {
        page.route(table);
    }
    page.text
}

struct Page<'a> {
    text: String,
    file: Option<&'a (PathBuf, String)>,
}

impl Page<'_> {
    fn proxy(&mut self, table: &ProxyTable) {
        self.text += "[proxy]\n";
        self.or("listen", &table.listen, "\"127.0.0.1:8080\"");
        self.or("unix_socket_mode", &table.unix_socket_mode, "\"0660\"");
        self.or("allow_remote_clients", &table.allow_remote_clients, "false");
        self.or("allowed_hosts", &table.allowed_hosts, "[]");
        self.or("allowed_origins", &table.allowed_origins, "[]");
        let require_header = table.require_header.as_ref().map(|setting| Setting {
            value: masked_field(&setting.value),
            origin: setting.origin.clone(),
        });
        self.if_set("require_header", &require_header);
        self.or("http2", &table.http2, "false");
        self.or("header_timeout", &table.header_timeout, "\"15s\"");
        self.or("max_connections", &table.max_connections, "4096");
        self.or("max_in_flight", &table.max_in_flight, "1024");
        self.or("max_header_bytes", &table.max_header_bytes, "\"32KiB\"");
        self.if_set("max_body_bytes", &table.max_body_bytes);
        self.or("drain_delay", &table.drain_delay, "\"5s\"");
        self.or("drain_timeout", &table.drain_timeout, "\"25s\"");
        self.or("access_log", &table.access_log, "\"errors\"");
    }

    fn admin(&mut self, table: &AdminTable) {
        self.text += "\n[admin]\n";
        self.or("listen", &table.listen, "\"127.0.0.1:9090\"");
        self.or("quit", &table.quit, "false");
    }

    fn runtime(&mut self, table: &RuntimeTable, workers: usize) {
        let _ = writeln!(
            self.text,
            "\n[runtime]\n# 0 is automatic; threads here: {workers}"
        );
        self.or("workers", &table.workers, "0");
    }

    fn log(&mut self, table: &LogTable) {
        self.text += "\n[log]\n";
        self.or("level", &table.level, "\"info\"");
        self.or("format", &table.format, "\"auto\"");
    }

    fn upstream(&mut self, name: &str, table: &UpstreamTable) {
        let _ = writeln!(self.text, "\n[upstream.{}]", key(name));
        self.url("url", &table.url);
        self.or("connect_timeout", &table.connect_timeout, "\"3s\"");
        self.or("response_timeout", &table.response_timeout, "\"60s\"");
        self.or("idle_timeout", &table.idle_timeout, "\"60s\"");
        self.or("pool_idle_timeout", &table.pool_idle_timeout, "\"30s\"");
        self.or("max_idle_connections", &table.max_idle_connections, "64");
        self.or("http", &table.http, "\"auto\"");
        self.if_set("ca_file", &table.ca_file);
        self.if_set("client_cert_file", &table.client_cert_file);
        self.if_set("client_key_file", &table.client_key_file);
        self.if_set("server_name", &table.server_name);
        self.url("proxy_url", &table.proxy_url);
        self.if_set("no_proxy", &table.no_proxy);
        self.or("dns_refresh", &table.dns_refresh, "\"30s\"");
        self.or("set_headers", &table.set_headers, "{}");
        self.or("remove_headers", &table.remove_headers, "[]");
        self.or("rewrite_location", &table.rewrite_location, "true");
    }

    fn credential(&mut self, name: &str, table: &CredentialTable) {
        let _ = writeln!(self.text, "\n[credential.{}]", key(name));
        self.url("token_url", &table.token_url);
        self.url("issuer", &table.issuer);
        self.if_set("client_id", &table.client_id);
        self.if_set("client_id_file", &table.client_id_file);
        self.client_auth(table);
        self.if_set("scope", &table.scope);
        self.or("audience", &table.audience, "[]");
        self.or("resource", &table.resource, "[]");
        self.or("extra_params", &table.extra_params, "{}");
        self.or("on_scope_downgrade", &table.on_scope_downgrade, "\"warn\"");
        self.or("replay_on_401", &table.replay_on_401, "true");
        self.or("invalidate_on_status", &table.invalidate_on_status, "[401]");
        self.url("revoke_url", &table.revoke_url);
        self.or("revoke_on_shutdown", &table.revoke_on_shutdown, "false");
        self.or("refresh_at", &table.refresh_at, "0.8");
        self.or("refresh_jitter", &table.refresh_jitter, "0.1");
        self.or("expiry_margin", &table.expiry_margin, "\"30s\"");
        self.or("default_lifetime", &table.default_lifetime, "\"300s\"");
        self.or("max_lifetime", &table.max_lifetime, "\"24h\"");
        self.or("wait_timeout", &table.wait_timeout, "\"5s\"");
        self.or("max_waiting", &table.max_waiting, "1024");
        self.or("connect_timeout", &table.connect_timeout, "\"2s\"");
        self.or("request_timeout", &table.request_timeout, "\"10s\"");
        self.if_set("ca_file", &table.ca_file);
        self.if_set("client_cert_file", &table.client_cert_file);
        self.if_set("client_key_file", &table.client_key_file);
        self.url("proxy_url", &table.proxy_url);
        self.if_set("no_proxy", &table.no_proxy);
        let allow_insecure = &table.allow_insecure_token_url;
        self.or("allow_insecure_token_url", allow_insecure, "false");
    }

    fn client_auth(&mut self, table: &CredentialTable) {
        const BASIC: &str = "client_secret_basic";
        self.or("client_auth", &table.client_auth, &quoted(BASIC));
        self.if_set("client_secret_file", &table.client_secret_file);
        self.if_set("client_secret_env", &table.client_secret_env);
        let method = table.client_auth.as_ref();
        if method.is_none_or(|method| method.value == BASIC) {
            self.or("basic_encoding", &table.basic_encoding, "\"form\"");
        } else {
            // A setting of another method is a mistake.
            self.if_set("basic_encoding", &table.basic_encoding);
        }
        self.if_set("private_key_file", &table.private_key_file);
        self.if_set("key_id", &table.key_id);
        self.if_set("signing_algorithm", &table.signing_algorithm);
        self.if_set("client_assertion_file", &table.client_assertion_file);
    }

    fn route(&mut self, table: &RouteTable) {
        self.text += "\n[[route]]\n";
        self.if_set("name", &table.name);
        self.if_set("path", &table.path);
        self.if_set("methods", &table.methods);
        self.if_set("upstream", &table.upstream);
        self.if_set("credential", &table.credential);
        self.if_set("scope", &table.scope);
        self.or("strip_prefix", &table.strip_prefix, "false");
        self.or("upgrade", &table.upgrade, "[]");
        self.if_set("response_timeout", &table.response_timeout);
    }

    /// A key that has a default, as it would be written.
    fn or<T: Shown>(&mut self, key: &str, setting: &Option<Setting<T>>, default: &str) {
        match setting {
            Some(setting) => self.set(key, &setting.value.shown(), &setting.origin),
            None => self.line(&format!("{key} = {default}"), "default"),
        }
    }

    /// A key that has none.
    fn if_set<T: Shown>(&mut self, key: &str, setting: &Option<Setting<T>>) {
        match setting {
            Some(setting) => self.set(key, &setting.value.shown(), &setting.origin),
            None => {
                let _ = writeln!(self.text, "# {key} is not set");
            }
        }
    }

    fn url(&mut self, key: &str, setting: &Option<Setting<String>>) {
        let masked = setting.as_ref().map(|setting| Setting {
            value: masked_query(&setting.value),
            origin: setting.origin.clone(),
        });
        self.if_set(key, &masked);
    }

    fn set(&mut self, key: &str, value: &str, origin: &Origin) {
        let from = match (origin, self.file) {
            (Origin::Env(name), _) => (*name).to_owned(),
            (Origin::Flag(name), _) => (*name).to_owned(),
            (Origin::File(span), Some((path, text))) => {
                let line = text[..span.start].matches('\n').count() + 1;
                format!("{}:{line}", path.display())
            }
            (Origin::File(_), None) => "default".to_owned(),
        };
        self.line(&format!("{key} = {value}"), &from);
    }

    fn line(&mut self, setting: &str, from: &str) {
        // A path may hold anything, and a comment ends with its line.
        let from = from.replace(char::is_control, "?");
        let _ = writeln!(self.text, "{setting:COMMENT_COLUMN$} # {from}");
    }
}

/// A value as TOML has it.
trait Shown {
    fn shown(&self) -> String;
}

impl Shown for String {
    fn shown(&self) -> String {
        quoted(self)
    }
}

impl Shown for bool {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for u64 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for f64 {
    fn shown(&self) -> String {
        format!("{self:?}")
    }
}

impl<T: Shown> Shown for Vec<T> {
    fn shown(&self) -> String {
        let values: Vec<String> = self.iter().map(Shown::shown).collect();
        format!("[{}]", values.join(", "))
    }
}

impl Shown for OneOrMany {
    fn shown(&self) -> String {
        match self {
            Self::One(value) => value.shown(),
            Self::Many(values) => values.shown(),
        }
    }
}

/// Without the values.
impl Shown for BTreeMap<String, String> {
    fn shown(&self) -> String {
        let entries = self
            .keys()
            .map(|name| format!("{} = \"{MASK}\"", key(name)));
        let entries: Vec<String> = entries.collect();
        if entries.is_empty() {
            "{}".to_owned()
        } else {
            format!("{{ {} }}", entries.join(", "))
        }
    }
}

/// A basic string: what JSON escapes, and how, TOML reads; DEL it wants escaped too.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text)
        .to_string()
        .replace('\u{7f}', "\\u007f")
}

fn key(name: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if !name.is_empty() && name.bytes().all(is_bare) {
        name.to_owned()
    } else {
        quoted(name)
    }
}

fn masked_query(url: &str) -> String {
    match url.split_once('?') {
        Some((place, _)) => format!("{place}?{MASK}"),
        None => url.to_owned(),
    }
}

/// A header and its value, without the value.
fn masked_field(field: &str) -> String {
    let name = field.split(':').next().unwrap_or_default();
    format!("{name}: {MASK}")
}
