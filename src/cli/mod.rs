//! The commands.

/// Prints a line. A reader that went away, as `head` does, is no failure of ours.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

mod check;
mod probe;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::app::{App, Inherited, Reload, RunError, Stop};
use crate::config::{Config, ConfigError, Flags, Inputs};
use crate::net::socket::{ListenAddress, ListeningSocket};
use crate::runtime;
use crate::telemetry::Telemetry;
use check::{TokenFormat, check, token};
use probe::{Probe, health, wait, with_admin};

/// What the exit code says; the numbers are those of sysexits.h where one fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    /// Done; a drained SIGTERM too.
    Clean = 0,
    /// Failed while running, or the drain deadline cut requests.
    Failure = 1,
    /// The authorization server or the upstream cannot be reached.
    Unavailable = 69,
    /// Cannot bind or read.
    Io = 74,
    /// The authorization server refuses the credentials.
    NoPermission = 77,
    /// The configuration is wrong.
    Config = 78,
}

impl Exit {
    /// The first failure of several steps.
    fn or(self, next: Self) -> Self {
        if self == Self::Clean { next } else { self }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[derive(Debug, Parser)]
#[command(
    name = "bearerd",
    version,
    about = "Does OAuth 2.0 for the application beside it: fetches a token with the client credentials\n\
             grant, renews it early, and adds it to every request it forwards to the API.",
    after_help = "Flags override environment variables, those override the file, and that the defaults.\n\
                  The secret comes from a file or from BEARERD_CLIENT_SECRET, never from a flag.\n\
                  Try it with nothing else installed: bearerd demo"
)]
struct Arguments {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args, Debug)]
struct Settings {
    /// Configuration file, TOML [env: BEARERD_CONFIG]
    #[arg(long, global = true, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Where the application calls us [env: BEARERD_LISTEN] [default: 127.0.0.1:8080]
    #[arg(long, global = true, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Health and metrics [env: BEARERD_ADMIN_LISTEN] [default: 127.0.0.1:9090]
    #[arg(long, global = true, value_name = "ADDRESS")]
    admin_listen: Option<String>,
    /// The API that requests go to [env: BEARERD_UPSTREAM_URL]
    #[arg(long, global = true, value_name = "URL")]
    upstream_url: Option<String>,
    /// The token endpoint [env: BEARERD_TOKEN_URL]
    #[arg(long, global = true, value_name = "URL")]
    token_url: Option<String>,
    /// The client identifier [env: BEARERD_CLIENT_ID]
    #[arg(long, global = true, value_name = "ID")]
    client_id: Option<String>,
    /// The file that holds the client secret [env: BEARERD_CLIENT_SECRET_FILE]
    #[arg(long, global = true, value_name = "PATH")]
    client_secret_file: Option<String>,
    /// Scopes to ask for, separated by spaces [env: BEARERD_SCOPE]
    #[arg(long, global = true, value_name = "SCOPE")]
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

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the sidecar (the default)
    Run,
    /// Check the configuration, secret files included
    Check {
        /// Also ask for one token, and connect to the upstream without sending it a request
        #[arg(long)]
        online: bool,
    },
    /// Fetch one token and tell its type, lifetime, scope and fingerprint
    Token {
        /// Print the token itself
        #[arg(long)]
        show: bool,
        /// How to print
        #[arg(long, value_enum, default_value_t = TokenFormat::Text)]
        format: TokenFormat,
    },
    /// Ask the admin port of a running sidecar; exit 0 or 1
    Health {
        #[arg(value_enum)]
        probe: Probe,
    },
    /// Block until a running sidecar is ready; exit 0, or 1 when it takes too long
    Wait {
        /// How long
        #[arg(long, value_parser = humantime::parse_duration, default_value = "30s")]
        timeout: Duration,
    },
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
    /// Print the version
    Version,
}

/// Runs the command that the arguments of this process name.
pub fn main() -> ExitCode {
    runtime::keep_memory_private();
    let arguments = Arguments::parse();
    let inputs = arguments.settings.inputs();
    let exit = match arguments.command.unwrap_or(Command::Run) {
        Command::Run => with_config(&inputs, |config| run(config, &inputs)),
        Command::Check { online } => with_config(&inputs, |config| check(&config, online)),
        Command::Token { show, format } => {
            with_config(&inputs, |config| token(&config, show, format))
        }
        Command::Health { probe } => with_admin(&inputs, move |admin| health(admin, probe)),
        Command::Wait { timeout } => with_admin(&inputs, move |admin| wait(admin, timeout)),
        Command::Demo {
            once,
            expires_in,
            fail_after,
        } => demo(once, expires_in, fail_after),
        Command::Version => {
            say!("bearerd {}", env!("CARGO_PKG_VERSION"));
            Exit::Clean
        }
    };
    exit.into()
}

fn with_config(inputs: &Inputs, command: impl FnOnce(Config) -> Exit) -> Exit {
    match Config::load(inputs) {
        Ok(config) => command(config),
        Err(error) => refused(&error),
    }
}

fn refused(error: &ConfigError) -> Exit {
    eprint!("bearerd: the configuration cannot be used\n\n{error}");
    if error.unreadable {
        Exit::Io
    } else {
        Exit::Config
    }
}

/// Runs `future` on a runtime of its own.
fn block_on(future: impl Future<Output = Exit>) -> Exit {
    runtime::control(future).unwrap_or_else(|error| {
        eprintln!("bearerd: cannot start: {error}");
        Exit::Failure
    })
}

fn run(config: Config, inputs: &Inputs) -> Exit {
    // Before there is another thread: it changes the environment.
    let inherited = inherited(inputs.socket_names());
    runtime::raise_file_limit();
    let telemetry = Telemetry::start(config.log);
    let bound = inherited
        .and_then(|inherited| App::bind_rest(config, inherited, Some(telemetry.dropped_lines())));
    let app = match bound {
        Ok(app) => app,
        Err(error) => return failed(&error),
    };
    block_on(async {
        let (stops, hangups) = match signals() {
            Ok(signals) => signals,
            Err(error) => {
                eprintln!("bearerd: cannot listen for signals: {error}");
                return Exit::Failure;
            }
        };
        let inputs = inputs.clone();
        let app = app.reloading(Reload { inputs, hangups });
        match app.run(stops).await {
            Ok(outcome) if outcome.cut == 0 => Exit::Clean,
            Ok(_) => Exit::Failure,
            Err(error) => failed(&error),
        }
    })
}

/// The sockets of the service manager: the one called `admin` is for operators, all others for applications.
fn inherited(names: &[String]) -> Result<Inherited, RunError> {
    let mut inherited = Inherited::default();
    let sockets = ListeningSocket::inherited().map_err(RunError::Inherited)?;
    for (index, socket) in sockets.into_iter().enumerate() {
        if names.get(index).is_some_and(|name| name == "admin") {
            inherited.admin = Some(socket);
        } else {
            inherited.proxy.push(socket);
        }
    }
    Ok(inherited)
}

fn failed(error: &RunError) -> Exit {
    eprintln!("bearerd: {error}");
    match error {
        RunError::Bind { address, source } => {
            if source.kind() == std::io::ErrorKind::AddrInUse {
                match address {
                    ListenAddress::Tcp(address) => eprintln!(
                        "  hint: something else listens there; see `ss -ltnp sport = :{}`",
                        address.port()
                    ),
                    ListenAddress::Unix(path) => eprintln!(
                        "  hint: something else listens there; see `ss -lxp src {}`",
                        path.display()
                    ),
                }
            }
            Exit::Io
        }
        RunError::Inherited(_) => Exit::Io,
        RunError::NotLoopback(_) => {
            eprintln!(
                "  hint: whoever reaches it uses your credential; if that is meant, set allow_remote_clients"
            );
            Exit::Config
        }
        RunError::Tls(_) => Exit::Config,
        RunError::Worker(_) | RunError::WorkerEnded | RunError::RefresherEnded => Exit::Failure,
    }
}

/// SIGTERM and SIGINT as wishes to end, SIGHUP as the wish to reload.
fn signals() -> std::io::Result<(mpsc::Receiver<Stop>, mpsc::Receiver<()>)> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (stopper, stops) = mpsc::channel(2);
    let (reloader, hangups) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let stop = tokio::select! {
                _ = terminate.recv() => Stop::Delayed,
                _ = interrupt.recv() => Stop::AtOnce,
                _ = hangup.recv() => {
                    // One that nobody has looked at yet stands for this one too.
                    let _ = reloader.try_send(());
                    continue;
                }
            };
            if stopper.send(stop).await.is_err() {
                return;
            }
        }
    });
    Ok((stops, hangups))
}

fn demo(once: bool, expires_in: Duration, fail_after: Duration) -> Exit {
    let options = crate::demo::Options {
        once,
        expires_in,
        fail_after,
    };
    if crate::demo::run(options) {
        Exit::Clean
    } else {
        Exit::Failure
    }
}
