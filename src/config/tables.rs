//! The configuration as it is written: the tables of the file, with flags and variables laid over them.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::error::Origin;

/// A value and where it was set.
#[derive(Clone, Debug)]
pub(super) struct Setting<T> {
    pub(super) value: T,
    pub(super) origin: Origin,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Setting<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = toml::Spanned::<T>::deserialize(deserializer)?;
        Ok(Self {
            origin: Origin::File(spanned.span()),
            value: spanned.into_inner(),
        })
    }
}

/// A string or a list of strings.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub(super) fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(value) => vec![value],
            Self::Many(values) => values,
        }
    }
}

/// Text that a later step parses, so that all mistakes are told at once.
pub(super) type Text = Option<Setting<String>>;
pub(super) type Flag = Option<Setting<bool>>;
pub(super) type Number = Option<Setting<u64>>;
pub(super) type Numbers = Option<Setting<Vec<u64>>>;
pub(super) type Share = Option<Setting<f64>>;
pub(super) type List = Option<Setting<OneOrMany>>;
pub(super) type Map = Option<Setting<BTreeMap<String, String>>>;

/// The whole document.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Tables {
    pub(super) proxy: ProxyTable,
    pub(super) admin: AdminTable,
    pub(super) runtime: RuntimeTable,
    pub(super) log: LogTable,
    pub(super) upstream: BTreeMap<String, UpstreamTable>,
    pub(super) credential: BTreeMap<String, CredentialTable>,
    pub(super) route: Vec<RouteTable>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ProxyTable {
    pub(super) listen: List,
    pub(super) unix_socket_mode: Text,
    pub(super) allow_remote_clients: Flag,
    pub(super) allowed_hosts: List,
    pub(super) allowed_origins: List,
    pub(super) require_header: Text,
    pub(super) http2: Flag,
    pub(super) header_timeout: Text,
    pub(super) max_connections: Number,
    pub(super) max_in_flight: Number,
    pub(super) max_header_bytes: Text,
    pub(super) max_body_bytes: Text,
    pub(super) drain_delay: Text,
    pub(super) drain_timeout: Text,
    pub(super) access_log: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AdminTable {
    pub(super) listen: Text,
    pub(super) quit: Flag,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RuntimeTable {
    pub(super) workers: Number,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LogTable {
    pub(super) level: Text,
    pub(super) format: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct UpstreamTable {
    pub(super) url: Text,
    pub(super) connect_timeout: Text,
    pub(super) response_timeout: Text,
    pub(super) idle_timeout: Text,
    pub(super) pool_idle_timeout: Text,
    pub(super) max_idle_connections: Number,
    pub(super) http: Text,
    pub(super) ca_file: Text,
    pub(super) client_cert_file: Text,
    pub(super) client_key_file: Text,
    pub(super) server_name: Text,
    pub(super) proxy_url: Text,
    pub(super) no_proxy: List,
    pub(super) dns_refresh: Text,
    pub(super) set_headers: Map,
    pub(super) remove_headers: List,
    pub(super) rewrite_location: Flag,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RouteTable {
    pub(super) name: Text,
    pub(super) path: Text,
    pub(super) methods: List,
    pub(super) upstream: Text,
    pub(super) credential: Text,
    pub(super) scope: Text,
    pub(super) strip_prefix: Flag,
    pub(super) upgrade: List,
    pub(super) response_timeout: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CredentialTable {
    pub(super) token_url: Text,
    pub(super) issuer: Text,
    pub(super) client_id: Text,
    pub(super) client_id_file: Text,
    pub(super) client_secret_file: List,
    pub(super) client_secret_env: Text,
    pub(super) client_auth: Text,
    pub(super) basic_encoding: Text,
    pub(super) private_key_file: Text,
    pub(super) key_id: Text,
    pub(super) signing_algorithm: Text,
    pub(super) client_assertion_file: Text,
    pub(super) scope: Text,
    pub(super) audience: List,
    pub(super) resource: List,
    pub(super) extra_params: Map,
    pub(super) on_scope_downgrade: Text,
    pub(super) replay_on_401: Flag,
    pub(super) invalidate_on_status: Numbers,
    pub(super) revoke_url: Text,
    pub(super) revoke_on_shutdown: Flag,
    pub(super) refresh_at: Share,
    pub(super) refresh_jitter: Share,
    pub(super) expiry_margin: Text,
    pub(super) default_lifetime: Text,
    pub(super) max_lifetime: Text,
    pub(super) wait_timeout: Text,
    pub(super) max_waiting: Number,
    pub(super) connect_timeout: Text,
    pub(super) request_timeout: Text,
    pub(super) ca_file: Text,
    pub(super) client_cert_file: Text,
    pub(super) client_key_file: Text,
    pub(super) proxy_url: Text,
    pub(super) no_proxy: List,
    pub(super) allow_insecure_token_url: Flag,
}
