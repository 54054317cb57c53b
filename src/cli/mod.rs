//! The commands.

/// Prints a line. A reader that went away, as `head` does, is no failure of ours.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

mod arguments;
mod certificate;
mod check;
mod doctor;
mod manual;
mod probe;

use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::app::{App, Inherited, Notifier, Reload, RunError, Stop};
use crate::config::{Config, ConfigError, Inputs};
use crate::net::socket::{ListenAddress, ListeningSocket};
use crate::runtime;
use crate::telemetry::Telemetry;
use arguments::{Arguments, Command};
use check::{check, token};
use probe::{health, quit, wait, with_admin};

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

/// Runs the command that the arguments of this process name.
pub fn main() -> ExitCode {
    runtime::keep_memory_private();
    let (command, inputs) = Arguments::parse().parts();
    let exit = match command {
        Command::Run => with_config(&inputs, |config| run(config, &inputs)),
        Command::Check { online } => with_config(&inputs, |config| check(&config, online)),
        Command::Token { show, format } => {
            with_config(&inputs, |config| token(&config, show, format))
        }
        Command::PrintConfig => print_config(&inputs),
        Command::Health { probe } => with_admin(&inputs, move |admin| health(admin, probe)),
        Command::Wait { timeout } => with_admin(&inputs, move |admin| wait(admin, timeout)),
        Command::Quit => with_admin(&inputs, quit),
        Command::Demo {
            once,
            expires_in,
            fail_after,
        } => demo(once, expires_in, fail_after),
        Command::Completions { shell } => {
            let mut arguments = Arguments::command();
            print(|out| clap_complete::generate(shell, &mut arguments, "bearerd", out))
        }
        Command::Man => print(|out| out.extend(manual::page(Arguments::command()))),
        Command::Version => {
            say!("bearerd {}", env!("CARGO_PKG_VERSION"));
            Exit::Clean
        }
    };
    exit.into()
}

/// Prints what `write` has to say. A reader that went away is no failure of ours.
fn print(write: impl FnOnce(&mut Vec<u8>)) -> Exit {
    use std::io::Write as _;
    let mut text = Vec::new();
    write(&mut text);
    let _ = std::io::stdout().write_all(&text);
    Exit::Clean
}

fn with_config(inputs: &Inputs, command: impl FnOnce(Config) -> Exit) -> Exit {
    match Config::load(inputs) {
        Ok(config) => command(config),
        Err(error) => refused(&error),
    }
}

fn print_config(inputs: &Inputs) -> Exit {
    match Config::effective(inputs) {
        Ok(text) => {
            say!(
                "# bearerd {}: the configuration in effect, and where each value comes from.\n\
                 # What may be a secret is shown as ***.\n\n{}",
                env!("CARGO_PKG_VERSION"),
                text.trim_end()
            );
            Exit::Clean
        }
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
    let inherited = inherited(inputs.service_manager().socket_names());
    runtime::raise_file_limit();
    let log = config.log;
    let bound = inherited.and_then(|inherited| App::bind_rest(config, inherited));
    let app = match bound {
        Ok(app) => app,
        Err(error) => return failed(&error),
    };
    // All of what it needs it has; still before there is another thread.
    let sockets = app.addresses().proxy.iter();
    let confinement = runtime::confine(sockets.filter_map(ListenAddress::directory));
    let telemetry = Telemetry::start(log);
    let app = app.logging(telemetry.control()).confined(confinement);
    block_on(async {
        let (stops, hangups) = match signals() {
            Ok(signals) => signals,
            Err(error) => {
                eprintln!("bearerd: cannot listen for signals: {error}");
                return Exit::Failure;
            }
        };
        let notifier = Notifier::new(inputs.service_manager());
        #[cfg(feature = "otel")]
        let app = app.tracing(inputs.otel().clone());
        let inputs = inputs.clone();
        let app = app.reloading(Reload { inputs, hangups });
        let app = app.notifying(notifier);
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
