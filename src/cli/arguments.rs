//! The command line: what there is to type, and what `--help` says of it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::config::{Flags, Inputs};

const PLACES: &str = "Places";
const ONE_OF_EACH: &str = "One API and one credential, instead of a file or over it";
const EXAMPLES: &str = "\
Examples:
  bearerd demo                          see it work, with nothing else installed
  bearerd check --online                try the configuration: DNS, TLS, one token, the API's port
  bearerd --config bearerd.toml         start; the application calls http://127.0.0.1:8080
  bearerd --upstream-url https://api.example --token-url https://auth.example/o/token/ \\
          --client-id shop --client-secret-file secret.txt --scope \"read write\"

Flags override environment variables, those override the file, and that the defaults.
The secret comes from a file or from BEARERD_CLIENT_SECRET, never from a flag.
Exit codes: 0 clean, 1 failure or cut requests, 2 usage, 69 unreachable, 74 cannot bind or read,
            77 the authorization server refuses, 78 configuration.";

/// What is typed after `bearerd`.
#[derive(Debug, Parser)]
#[command(
    name = "bearerd",
    version,
    about = "Does OAuth 2.0 for the application beside it: fetches a token with the client credentials\n\
             grant, renews it early, and adds it to every request it forwards to the API.",
    after_help = EXAMPLES,
    subcommand_help_heading = "Commands",
    max_term_width = 100
)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

impl Arguments {
    /// The command, and what it is to be done with.
    pub(super) fn parts(self) -> (Command, Inputs) {
        let command = self.command.unwrap_or(Command::Run);
        (command, self.settings.inputs())
    }
}

#[derive(Args, Debug)]
struct Settings {
    /// Configuration file, TOML [env: BEARERD_CONFIG]
    #[arg(long, global = true, value_name = "PATH", help_heading = PLACES)]
    config: Option<PathBuf>,
    /// Where the application calls us [env: BEARERD_LISTEN] [default: 127.0.0.1:8080]
    #[arg(long, global = true, value_name = "ADDRESS", help_heading = PLACES)]
    listen: Option<String>,
    /// Health, metrics and status [env: BEARERD_ADMIN_LISTEN] [default: 127.0.0.1:9090]
    #[arg(long, global = true, value_name = "ADDRESS", help_heading = PLACES)]
    admin_listen: Option<String>,
    /// The API that requests go to [env: BEARERD_UPSTREAM_URL]
    #[arg(long, global = true, value_name = "URL", help_heading = ONE_OF_EACH)]
    upstream_url: Option<String>,
    /// The token endpoint, complete to its last slash [env: BEARERD_TOKEN_URL]
    #[arg(long, global = true, value_name = "URL", help_heading = ONE_OF_EACH)]
    token_url: Option<String>,
    /// The client identifier [env: BEARERD_CLIENT_ID]
    #[arg(long, global = true, value_name = "ID", help_heading = ONE_OF_EACH)]
    client_id: Option<String>,
    /// The file that holds the client secret [env: BEARERD_CLIENT_SECRET_FILE]
    #[arg(long, global = true, value_name = "PATH", help_heading = ONE_OF_EACH)]
    client_secret_file: Option<String>,
    /// Scopes to ask for, separated by spaces [env: BEARERD_SCOPE]
    #[arg(long, global = true, value_name = "SCOPE", help_heading = ONE_OF_EACH)]
    scope: Option<String>,
}

impl Settings {
    fn inputs(self) -> Inputs {
        Inputs::of_process(Flags {
            config: self.config,
            listen: self.listen,
            admin_listen: self.admin_listen,
            upstream_url: self.upstream_url,
            token_url: self.token_url,
            client_id: self.client_id,
            client_secret_file: self.client_secret_file,
            scope: self.scope,
        })
    }
}

/// What is to be done. In the order in which a person meets them.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start the sidecar (the default)
    Run,
    /// Show it at work: authorization server, payments API and bearerd in one process
    Demo {
        /// Run the show and exit, 0 if everything held
        #[arg(long)]
        once: bool,
        /// How long the demo's tokens live
        #[arg(long, value_parser = humantime::parse_duration, default_value = "20s")]
        expires_in: Duration,
        /// How long after the first renewal the authorization server fails
        #[arg(long, value_parser = humantime::parse_duration, default_value = "10s")]
        fail_after: Duration,
    },
    /// Check the configuration, secret files included
    Check {
        /// Also ask for one token, and connect to the upstream without sending it a request
        #[arg(long)]
        online: bool,
    },
    /// Print the configuration in effect as TOML, each value with where it comes from
    PrintConfig,
    /// Fetch one token and tell its type, lifetime, scope and fingerprint
    Token {
        /// Print the token itself
        #[arg(long)]
        show: bool,
        /// How to print
        #[arg(long, value_enum, default_value_t = TokenFormat::Text)]
        format: TokenFormat,
    },
    /// Ask a running sidecar how it is; exit 0 or 1
    Health {
        /// Whether the first token has come, requests will be served, or it answers at all
        #[arg(value_enum)]
        probe: Probe,
    },
    /// Block until a running sidecar is ready; exit 0, or 1 when it takes too long
    Wait {
        /// How long
        #[arg(long, value_parser = humantime::parse_duration, default_value = "30s")]
        timeout: Duration,
    },
    /// Ask a running sidecar to stop, as SIGTERM would; it needs [admin] quit = true
    Quit,
    /// Print a script that completes commands and flags in a shell
    Completions {
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the manual page: bearerd man | man -l -
    Man,
    /// Print the version
    Version,
}

/// How a token is printed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum TokenFormat {
    Text,
    Json,
    Header,
}

/// What is asked of a running sidecar.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Probe {
    Startup,
    Ready,
    Live,
}
