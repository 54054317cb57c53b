//! The commands.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::app::{App, RunError, Stop};
use crate::config::{Config, ConfigError, Flags, Inputs};
use crate::net::body::{Body, Chain};
use crate::net::client::{HttpClient, PoolConfig};
use crate::net::connect::{ConnectError, Connector};
use crate::net::tls::{ClientTls, HttpVersions};
use crate::oauth::CredentialConfig;
use crate::oauth::access_token::Grant;
use crate::oauth::token_endpoint::TokenError;
use crate::proxy::upstream::{Upstream, UpstreamConfig};
use crate::runtime;
use crate::telemetry::Telemetry;

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
        /// When the authorization server fails
        #[arg(long, value_parser = humantime::parse_duration, default_value = "10s")]
        fail_after: Duration,
    },
    /// Print the version
    Version,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TokenFormat {
    Text,
    Json,
    Header,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Probe {
    Startup,
    Ready,
    Live,
}

impl Probe {
    fn path(self) -> &'static str {
        match self {
            Self::Startup => "/startupz",
            Self::Ready => "/readyz?verbose",
            Self::Live => "/livez",
        }
    }
}

/// Runs the command that the arguments of this process name.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let inputs = arguments.settings.inputs();
    let exit = match arguments.command.unwrap_or(Command::Run) {
        Command::Run => with_config(&inputs, run),
        Command::Check { online } => with_config(&inputs, |config| check(&config, online)),
        Command::Token { show, format } => {
            with_config(&inputs, |config| token(&config.credential, show, format))
        }
        Command::Health { probe } => with_admin(&inputs, move |admin| health(admin, probe)),
        Command::Wait { timeout } => with_admin(&inputs, move |admin| wait(admin, timeout)),
        Command::Demo {
            once,
            expires_in,
            fail_after,
        } => demo(once, expires_in, fail_after),
        Command::Version => {
            println!("bearerd {}", env!("CARGO_PKG_VERSION"));
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

fn run(config: Config) -> Exit {
    let telemetry = Telemetry::start(config.log);
    let app = match App::bind(config, Some(telemetry.dropped_lines())) {
        Ok(app) => app,
        Err(error) => return failed(&error),
    };
    block_on(async {
        let stops = match signals() {
            Ok(stops) => stops,
            Err(error) => {
                eprintln!("bearerd: cannot listen for signals: {error}");
                return Exit::Failure;
            }
        };
        match app.run(stops).await {
            Ok(outcome) if outcome.cut == 0 => Exit::Clean,
            Ok(_) => Exit::Failure,
            Err(error) => failed(&error),
        }
    })
}

fn failed(error: &RunError) -> Exit {
    eprintln!("bearerd: {error}");
    match error {
        RunError::Bind { address, source } => {
            if source.kind() == std::io::ErrorKind::AddrInUse {
                eprintln!(
                    "  hint: something else listens there; see `ss -ltnp sport = :{}`",
                    address.port()
                );
            }
            Exit::Io
        }
        RunError::Tls(_) => Exit::Config,
        RunError::Worker(_) | RunError::WorkerEnded => Exit::Failure,
    }
}

/// SIGTERM and SIGINT as wishes to end.
fn signals() -> std::io::Result<mpsc::Receiver<Stop>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (sender, stops) = mpsc::channel(2);
    tokio::spawn(async move {
        loop {
            let stop = tokio::select! {
                _ = terminate.recv() => Stop::Delayed,
                _ = interrupt.recv() => Stop::AtOnce,
            };
            if sender.send(stop).await.is_err() {
                return;
            }
        }
    });
    Ok(stops)
}

fn check(config: &Config, online: bool) -> Exit {
    println!("ok    configuration: {}", config.sources);
    for warning in &config.warnings {
        println!("warn  {warning}");
    }
    if !online {
        return Exit::Clean;
    }
    block_on(async {
        let token = check_token(&config.credential).await;
        let upstream = check_upstream(&config.upstream).await;
        if token == Exit::Clean {
            upstream
        } else {
            token
        }
    })
}

async fn check_token(credential: &CredentialConfig) -> Exit {
    let name = &credential.name;
    match fetch(credential).await {
        Ok(grant) => {
            println!(
                "ok    token {name}: lifetime {}, scope {}, fingerprint {}",
                lifetime_text(&grant),
                grant.scope.as_deref().unwrap_or("as asked"),
                grant.fingerprint
            );
            Exit::Clean
        }
        Err(error) => {
            println!("fail  token {name}: {error}");
            if let Some(hint) = error.hint() {
                println!("      hint: {hint}");
            }
            token_exit(&error)
        }
    }
}

/// Connects, and sends nothing: a request to a payments API is not for us to invent.
async fn check_upstream(config: &UpstreamConfig) -> Exit {
    let (name, url) = (&config.name, &config.url);
    let connector = match Upstream::connector(config, None) {
        Ok(connector) => connector,
        Err(error) => {
            println!("fail  upstream {name}: {error}");
            return Exit::Config;
        }
    };
    match connector.connect(url.clone()).await {
        Ok(stream) => {
            let session = match stream.inner().tls() {
                Some(tls) => format!(
                    "{:?}, {}",
                    tls.protocol_version()
                        .unwrap_or(rustls::ProtocolVersion::TLSv1_3),
                    match tls.alpn_protocol() {
                        Some(b"h2") => "HTTP/2",
                        _ => "HTTP/1.1",
                    }
                ),
                None => "without TLS".to_owned(),
            };
            println!("ok    upstream {name}: connected to {url} ({session})");
            Exit::Clean
        }
        Err(error) => {
            println!("fail  upstream {name}: {}", Chain(&error));
            let hint = match error {
                ConnectError::Dns(_) => "the host name of [upstream] url has no address here",
                ConnectError::Tcp(_) | ConnectError::Timeout => {
                    "is the API up, and reachable from here?"
                }
                ConnectError::Tls(_) => "a private CA needs [upstream] ca_file",
            };
            println!("      hint: {hint}");
            Exit::Unavailable
        }
    }
}

async fn fetch(credential: &CredentialConfig) -> Result<Grant, TokenError> {
    let endpoint = credential.token_endpoint()?;
    let credentials = endpoint.credentials()?;
    endpoint.fetch(&credentials).await
}

fn lifetime_text(grant: &Grant) -> String {
    match grant.lifetime {
        Some(lifetime) => humantime::format_duration(lifetime).to_string(),
        None => "0s (over when it came)".to_owned(),
    }
}

fn token_exit(error: &TokenError) -> Exit {
    match error {
        TokenError::Secret(_) | TokenError::Tls(_) => Exit::Config,
        error if error.is_permanent() => Exit::NoPermission,
        _ => Exit::Unavailable,
    }
}

fn token(credential: &CredentialConfig, show: bool, format: TokenFormat) -> Exit {
    block_on(async {
        match fetch(credential).await {
            Ok(grant) => {
                print_token(&grant, show, format);
                Exit::Clean
            }
            Err(error) => {
                eprintln!("bearerd: {error}");
                if let Some(hint) = error.hint() {
                    eprintln!("  hint: {hint}");
                }
                token_exit(&error)
            }
        }
    })
}

fn print_token(grant: &Grant, show: bool, format: TokenFormat) {
    let token = if show { grant.expose() } else { "***" };
    match format {
        TokenFormat::Text => {
            println!("type         Bearer");
            println!("lifetime     {}", lifetime_text(grant));
            println!(
                "scope        {}",
                grant.scope.as_deref().unwrap_or("(as asked)")
            );
            println!("fingerprint  {}", grant.fingerprint);
            if show {
                println!("token        {token}");
            }
        }
        TokenFormat::Json => {
            let mut json = serde_json::json!({
                "token_type": "Bearer",
                "expires_in": grant.lifetime.map_or(0, |lifetime| lifetime.as_secs()),
                "scope": grant.scope,
                "fingerprint": grant.fingerprint,
            });
            if show {
                json["access_token"] = token.into();
            }
            println!("{json}");
        }
        TokenFormat::Header => println!("Authorization: Bearer {token}"),
    }
}

fn with_admin<F: Future<Output = Exit>>(
    inputs: &Inputs,
    command: impl FnOnce(AdminClient) -> F,
) -> Exit {
    match Config::load_admin(inputs) {
        Ok(admin) => block_on(async { command(AdminClient::new(admin.listen)).await }),
        Err(error) => refused(&error),
    }
}

async fn health(admin: AdminClient, probe: Probe) -> Exit {
    match admin.get(probe.path()).await {
        Ok((status, text)) => {
            print!("{text}");
            if status == StatusCode::OK {
                Exit::Clean
            } else {
                Exit::Failure
            }
        }
        Err(message) => {
            eprintln!("bearerd: {message}");
            Exit::Failure
        }
    }
}

async fn wait(admin: AdminClient, limit: Duration) -> Exit {
    const INTERVAL: Duration = Duration::from_millis(100);
    let deadline = Instant::now() + limit;
    loop {
        let last = match admin.get("/readyz").await {
            Ok((StatusCode::OK, _)) => return Exit::Clean,
            Ok((_, text)) => text,
            Err(message) => format!("{message}\n"),
        };
        if Instant::now() + INTERVAL >= deadline {
            eprint!(
                "bearerd: not ready within {}\n{last}",
                humantime::format_duration(limit)
            );
            return Exit::Failure;
        }
        sleep(INTERVAL).await;
    }
}

/// Asks the admin port of a running sidecar.
struct AdminClient {
    address: SocketAddr,
}

impl AdminClient {
    const TIMEOUT: Duration = Duration::from_secs(2);
    const MAX_ANSWER_BYTES: usize = 64 * 1024;

    /// A sidecar that listens everywhere is asked on loopback.
    fn new(listen: SocketAddr) -> Self {
        let ip = match listen.ip() {
            ip if !ip.is_unspecified() => ip,
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        Self {
            address: SocketAddr::new(ip, listen.port()),
        }
    }

    async fn get(&self, path: &str) -> Result<(StatusCode, String), String> {
        let unreachable =
            |cause: String| format!("no answer from http://{}: {cause}", self.address);
        match timeout(Self::TIMEOUT, self.exchange(path)).await {
            Ok(answer) => answer.map_err(unreachable),
            Err(_) => Err(unreachable("timed out".to_owned())),
        }
    }

    async fn exchange(&self, path: &str) -> Result<(StatusCode, String), String> {
        let versions = HttpVersions::Http1;
        let tls = ClientTls::load(None, versions).map_err(|error| error.to_string())?;
        let connector = Connector::new(tls, versions, Self::TIMEOUT, None);
        let pool = PoolConfig {
            idle_timeout: Self::TIMEOUT,
            max_idle: 0,
        };
        let uri: Uri = format!("http://{}{path}", self.address)
            .parse()
            .map_err(|error| format!("{error}"))?;
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = uri;
        let client = HttpClient::new(connector, versions, pool);
        let (head, body) = client
            .send(request)
            .await
            .map_err(|error| error.to_string())?
            .into_parts();
        let body = Limited::new(body, Self::MAX_ANSWER_BYTES);
        let body = body
            .collect()
            .await
            .map_err(|error| error.to_string())?
            .to_bytes();
        Ok((head.status, String::from_utf8_lossy(&body).into_owned()))
    }
}

fn demo(once: bool, expires_in: Duration, fail_after: Duration) -> Exit {
    let _ = (once, expires_in, fail_after);
    Exit::Failure
}
