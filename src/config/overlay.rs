//! Environment and flags, laid over the tables of the file.

use std::path::PathBuf;

use super::Sources;
use super::error::{Origin, Problem, closest};
#[cfg(feature = "otel")]
use super::otel::Otel;
use super::service_manager::ServiceManager;
use super::tables::{CredentialTable, OneOrMany, Setting, Tables, Text};

/// The values of the flags that say the one-upstream case without a file.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    pub config: Option<PathBuf>,
    pub listen: Option<String>,
    pub admin_listen: Option<String>,
    pub upstream_url: Option<String>,
    pub token_url: Option<String>,
    pub client_id: Option<String>,
    pub client_secret_file: Option<String>,
    pub scope: Option<String>,
}

/// Everything a configuration is made of, but the file's content.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    flags: Flags,
    variables: Vec<(String, String)>,
    service_manager: ServiceManager,
    #[cfg(feature = "otel")]
    otel: Otel,
}

/// The variables there are. `BEARERD_CLIENT_SECRET` is not here: its value is never looked at, only its presence.
const VARIABLES: [&str; 12] = [
    "BEARERD_CONFIG",
    "BEARERD_LISTEN",
    "BEARERD_ADMIN_LISTEN",
    "BEARERD_UPSTREAM_URL",
    "BEARERD_TOKEN_URL",
    "BEARERD_CLIENT_ID",
    "BEARERD_CLIENT_SECRET_FILE",
    "BEARERD_CLIENT_AUTH",
    "BEARERD_SCOPE",
    "BEARERD_LOG_LEVEL",
    "BEARERD_LOG_FORMAT",
    "BEARERD_ALLOW_REMOTE_CLIENTS",
];
const CLIENT_SECRET: &str = "BEARERD_CLIENT_SECRET";

impl Inputs {
    /// `flags` and those variables of `environment` that are for us.
    pub fn new(flags: Flags, environment: impl Iterator<Item = (String, String)>) -> Self {
        let mut service_manager = ServiceManager::default();
        #[cfg(feature = "otel")]
        let mut otel = Otel::default();
        let variables = environment.inspect(|(name, value)| service_manager.take(name, value));
        #[cfg(feature = "otel")]
        let variables = variables.inspect(|(name, value)| otel.take(name, value));
        let variables = variables
            .filter(|(name, _)| name.starts_with("BEARERD_"))
            .map(|(name, value)| {
                // Not even a copy of the secret is kept.
                let value = if name == CLIENT_SECRET {
                    String::new()
                } else {
                    value
                };
                (name, value)
            })
            .collect();
        Self {
            flags,
            variables,
            service_manager,
            #[cfg(feature = "otel")]
            otel,
        }
    }

    /// Where spans go.
    #[cfg(feature = "otel")]
    pub fn otel(&self) -> &Otel {
        &self.otel
    }

    /// What the service manager tells.
    pub fn service_manager(&self) -> &ServiceManager {
        &self.service_manager
    }

    /// `flags` and the environment of this process. Variables that are not UTF-8 are passed over.
    pub fn of_process(flags: Flags) -> Self {
        let environment = std::env::vars_os();
        Self::new(
            flags,
            environment.filter_map(|(name, value)| {
                Some((name.into_string().ok()?, value.into_string().ok()?))
            }),
        )
    }

    /// The configuration file, if one is named.
    pub fn file(&self) -> Option<PathBuf> {
        let flag = self.flags.config.clone();
        flag.or_else(|| self.variable("BEARERD_CONFIG").map(PathBuf::from))
    }

    /// A variable that is set to nothing counts as not set: that is how templates leave one out.
    fn variable(&self, name: &str) -> Option<&str> {
        self.variables
            .iter()
            .find(|(known, value)| known == name && !value.is_empty())
            .map(|(_, value)| value.as_str())
    }

    fn has_client_secret(&self) -> bool {
        self.variables.iter().any(|(name, _)| name == CLIENT_SECRET)
    }

    /// Variables that look like ours and are not. Those that Kubernetes makes of a Service called bearerd are no
    /// mistake of anybody.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.variables
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| {
                !VARIABLES.contains(name) && *name != CLIENT_SECRET && !is_service_link(name)
            })
            .map(|name| match closest(name, &VARIABLES) {
                Some(close) => format!("unknown variable {name} is ignored; did you mean {close}?"),
                None => format!("unknown variable {name} is ignored"),
            })
            .collect()
    }

    /// Lays variables and flags over `tables`. They speak of the one upstream and the one credential there is, or make
    /// those called `default`.
    pub(super) fn lay_over(&self, tables: &mut Tables, problems: &mut Vec<Problem>) -> Sources {
        let mut layer = Layer {
            inputs: self,
            sources: Sources {
                file: self.file(),
                ..Sources::default()
            },
        };
        let flags = &self.flags;
        if let Some(listen) = layer.pick("BEARERD_LISTEN", "--listen", flags.listen.as_ref()) {
            tables.proxy.listen = Some(Setting {
                value: OneOrMany::One(listen.value),
                origin: listen.origin,
            });
        }
        if let Some(allow) = layer.pick("BEARERD_ALLOW_REMOTE_CLIENTS", "", None) {
            match allow.value.as_str() {
                "true" | "1" => tables.proxy.allow_remote_clients = Some(allow.map(true)),
                "false" | "0" => tables.proxy.allow_remote_clients = Some(allow.map(false)),
                _ => problems.push(Problem::at(&allow.origin, "expected true or false")),
            }
        }
        let admin_listen = layer.pick(
            "BEARERD_ADMIN_LISTEN",
            "--admin-listen",
            flags.admin_listen.as_ref(),
        );
        replace(&mut tables.admin.listen, admin_listen);
        replace(
            &mut tables.log.level,
            layer.pick("BEARERD_LOG_LEVEL", "", None),
        );
        replace(
            &mut tables.log.format,
            layer.pick("BEARERD_LOG_FORMAT", "", None),
        );

        let url = layer.pick(
            "BEARERD_UPSTREAM_URL",
            "--upstream-url",
            flags.upstream_url.as_ref(),
        );
        if let Some(url) = url
            && let Some(upstream) =
                the_only(&mut tables.upstream, &url.origin, "upstream", problems)
        {
            upstream.url = Some(url);
        }
        let credential = self.credential(&mut layer);
        if let Some(origin) = &credential.first
            && let Some(table) = the_only(&mut tables.credential, origin, "credential", problems)
        {
            credential.lay_over(table, problems);
        }
        layer.sources
    }

    fn credential(&self, layer: &mut Layer<'_>) -> CredentialLayer {
        let flags = &self.flags;
        let mut credential = CredentialLayer {
            token_url: layer.pick("BEARERD_TOKEN_URL", "--token-url", flags.token_url.as_ref()),
            client_id: layer.pick("BEARERD_CLIENT_ID", "--client-id", flags.client_id.as_ref()),
            client_secret_file: layer.pick(
                "BEARERD_CLIENT_SECRET_FILE",
                "--client-secret-file",
                flags.client_secret_file.as_ref(),
            ),
            client_auth: layer.pick("BEARERD_CLIENT_AUTH", "", None),
            scope: layer.pick("BEARERD_SCOPE", "--scope", flags.scope.as_ref()),
            client_secret_env: None,
            first: None,
        };
        if self.has_client_secret() {
            layer.sources.variables += 1;
            credential.client_secret_env = Some(Setting {
                value: CLIENT_SECRET.to_owned(),
                origin: Origin::Env(CLIENT_SECRET),
            });
        }
        let settings = [
            &credential.token_url,
            &credential.client_id,
            &credential.client_secret_file,
            &credential.client_secret_env,
            &credential.client_auth,
            &credential.scope,
        ];
        credential.first = settings
            .into_iter()
            .flatten()
            .next()
            .map(|setting| setting.origin.clone());
        credential
    }
}

impl Setting<String> {
    fn map<T>(self, value: T) -> Setting<T> {
        Setting {
            value,
            origin: self.origin,
        }
    }
}

/// Picks values out of flags and variables, and counts them.
struct Layer<'a> {
    inputs: &'a Inputs,
    sources: Sources,
}

impl Layer<'_> {
    fn pick(&mut self, variable: &'static str, flag: &'static str, value: Option<&String>) -> Text {
        if let Some(value) = value {
            self.sources.flags += 1;
            return Some(Setting {
                value: value.clone(),
                origin: Origin::Flag(flag),
            });
        }
        let value = self.inputs.variable(variable)?;
        self.sources.variables += 1;
        Some(Setting {
            value: value.to_owned(),
            origin: Origin::Env(variable),
        })
    }
}

/// What variables and flags say of a credential.
struct CredentialLayer {
    token_url: Text,
    client_id: Text,
    client_secret_file: Text,
    client_secret_env: Text,
    client_auth: Text,
    scope: Text,
    /// Where the first of them was set.
    first: Option<Origin>,
}

impl CredentialLayer {
    fn lay_over(self, table: &mut CredentialTable, problems: &mut Vec<Problem>) {
        if self.token_url.is_some() {
            table.issuer = None;
        }
        replace(&mut table.token_url, self.token_url);
        if self.client_id.is_some() {
            table.client_id_file = None;
        }
        replace(&mut table.client_id, self.client_id);
        // One source of the secret replaces the other of a weaker layer; two of one layer are a mistake.
        match (self.client_secret_file, self.client_secret_env) {
            (None, None) => {}
            (Some(file), Some(env)) if matches!(file.origin, Origin::Env(_)) => {
                let both = format!("set together with {}", env.value);
                problems.push(
                    Problem::at(&file.origin, both)
                        .hint("keep one of the two; a file can be rotated"),
                );
            }
            (Some(file), _) => {
                table.client_secret_file = Some(Setting {
                    value: OneOrMany::One(file.value),
                    origin: file.origin,
                });
                table.client_secret_env = None;
            }
            (None, Some(env)) => {
                table.client_secret_env = Some(env);
                table.client_secret_file = None;
            }
        }
        replace(&mut table.client_auth, self.client_auth);
        replace(&mut table.scope, self.scope);
    }
}

fn replace(setting: &mut Text, stronger: Text) {
    if stronger.is_some() {
        *setting = stronger;
    }
}

/// The one entry of `tables`; if there is none, a new one called `default`.
fn the_only<'a, T: Default>(
    tables: &'a mut std::collections::BTreeMap<String, T>,
    origin: &Origin,
    kind: &str,
    problems: &mut Vec<Problem>,
) -> Option<&'a mut T> {
    if tables.len() > 1 {
        let message = format!(
            "the file holds {} tables [{kind}.NAME]; which is meant?",
            tables.len()
        );
        problems.push(Problem::at(origin, message).hint("set it in the file instead"));
        return None;
    }
    if tables.is_empty() {
        tables.insert("default".to_owned(), T::default());
    }
    tables.values_mut().next()
}

/// What Kubernetes sets for a Service of our name.
fn is_service_link(name: &str) -> bool {
    name == "BEARERD_PORT"
        || name.starts_with("BEARERD_PORT_")
        || name.starts_with("BEARERD_SERVICE_")
}
