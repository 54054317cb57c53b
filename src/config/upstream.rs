//! `[upstream.NAME]`.

use http::{HeaderName, HeaderValue, header};

use super::connect::{ConnectSettings, is_read_by_a_proxy};
use super::error::Problem;
use super::setting::{
    Problems, as_uri, checked_url, choice, count_or_zero, duration, flag, missing,
};
use super::tables::{List, Map, UpstreamTable};
use crate::net::pool::PoolConfig;
use crate::net::tls::HttpVersions;
use crate::proxy::upstream::UpstreamConfig;

pub(super) fn upstream(
    name: String,
    table: UpstreamTable,
    problems: &mut Problems,
) -> Option<UpstreamConfig> {
    let Some(url) = table.url else {
        problems.push(missing(
            "url",
            &format!("upstream.{name}"),
            "BEARERD_UPSTREAM_URL",
        ));
        return None;
    };
    let url = checked_url(&url, problems).and_then(|parsed| {
        if parsed.query().is_some() {
            problems.push(Problem::at(&url.origin, "an upstream URL has no query"));
        }
        as_uri(&url, problems)
    });
    let versions = choice(
        table.http,
        problems,
        &[
            ("auto", HttpVersions::Auto),
            ("1.1", HttpVersions::Http1),
            ("2", HttpVersions::Http2),
        ],
    );
    let connect = ConnectSettings {
        connect_timeout: table.connect_timeout,
        default_timeout: "3s",
        ca_file: table.ca_file,
        client_cert_file: table.client_cert_file,
        client_key_file: table.client_key_file,
        server_name: table.server_name,
        proxy_url: table.proxy_url,
        no_proxy: table.no_proxy,
        dns_refresh: table.dns_refresh,
        default_dns_refresh: "30s",
        versions,
    };
    let connect = connect.checked(url.as_ref(), problems);
    let config = UpstreamConfig {
        name,
        url: url?,
        connect,
        response_timeout: duration(table.response_timeout, "60s", problems),
        idle_timeout: duration(table.idle_timeout, "60s", problems),
        pool: PoolConfig {
            idle_timeout: duration(table.pool_idle_timeout, "30s", problems),
            max_idle: count_or_zero(table.max_idle_connections, 64),
        },
        set_headers: set_headers(table.set_headers, problems),
        remove_headers: remove_headers(table.remove_headers, problems),
        rewrite_location: flag(table.rewrite_location, true),
    };
    Some(config)
}

/// What is odd about it but does not stop us.
pub(super) fn warning(config: &UpstreamConfig) -> Option<String> {
    is_read_by_a_proxy(&config.connect, &config.url).then(|| {
        format!(
            "upstream {}: the proxy can read every request and its token, because the url is not https",
            config.name
        )
    })
}

fn set_headers(setting: Map, problems: &mut Problems) -> Vec<(HeaderName, HeaderValue)> {
    let Some(setting) = setting else {
        return Vec::new();
    };
    let mut fields = Vec::new();
    for (name, value) in &setting.value {
        match (field_name(name), HeaderValue::from_str(value)) {
            (Ok(name), Ok(value)) => fields.push((name, value)),
            (Err(message), _) => problems.push(Problem::at(&setting.origin, message)),
            (_, Err(_)) => {
                let message = format!("the value of {name} cannot stand in a header");
                problems.push(Problem::at(&setting.origin, message));
            }
        }
    }
    fields
}

fn remove_headers(setting: List, problems: &mut Problems) -> Vec<HeaderName> {
    let Some(setting) = setting else {
        return Vec::new();
    };
    let mut fields = Vec::new();
    for name in setting.value.into_vec() {
        match field_name(&name) {
            Ok(name) => fields.push(name),
            Err(message) => problems.push(Problem::at(&setting.origin, message)),
        }
    }
    fields
}

/// Fields whose value is decided by what a proxy is.
fn is_reserved_field(name: &HeaderName) -> bool {
    const RESERVED: [HeaderName; 9] = [
        header::AUTHORIZATION,
        header::PROXY_AUTHORIZATION,
        header::HOST,
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::TE,
        header::VIA,
    ];
    RESERVED.contains(name)
}

fn field_name(name: &str) -> Result<HeaderName, String> {
    match HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) if is_reserved_field(&name) => Err(format!("{name} is not yours to change here")),
        Ok(name) => Ok(name),
        Err(_) => Err(format!("{name:?} is not a header name")),
    }
}
