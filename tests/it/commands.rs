//! The commands of the real program: what they print, and what their exit codes say.

use std::fs;
use std::net::TcpListener;

use serde_json::Value;

use crate::support::process::Ended;
use crate::support::{AuthorizationServer, Process, Setup, Upstream, eventually, wait_until};

/// Runs `bearerd --config … arguments`.
fn run(setup: &Setup, arguments: &[&str]) -> Ended {
    let config = setup.config_file().display().to_string();
    Process::run(&[&["--config", &config], arguments].concat(), &[])
}

/// Runs a command with a configuration file of this text.
fn run_with_text(text: &str, arguments: &[&str]) -> Ended {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    let config = file.path().display().to_string();
    Process::run(&[&["--config", &config], arguments].concat(), &[])
}

#[test]
fn five_variables_are_a_configuration() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), "s3cret\n").unwrap();
    let process = Process::start(
        &[],
        &[
            ("BEARERD_UPSTREAM_URL", &upstream.url()),
            ("BEARERD_TOKEN_URL", &auth.url()),
            ("BEARERD_CLIENT_ID", "shop"),
            (
                "BEARERD_CLIENT_SECRET_FILE",
                &secret.path().display().to_string(),
            ),
            ("BEARERD_SCOPE", "read write"),
            ("BEARERD_LISTEN", "127.0.0.1:0"),
            ("BEARERD_ADMIN_LISTEN", "127.0.0.1:0"),
        ],
    );
    let ports = process.ports();
    ports.wait_until_ready();
    assert_eq!(ports.get("/").ok(), "ok");
    assert!(auth.request().body.data.ends_with(b"&scope=read+write"));
    process.signal("TERM");
    assert_eq!(process.ended().code, 0);
}

#[test]
fn a_start_says_in_six_lines_what_it_does() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let setup = Setup::between(&upstream, &auth).credential("scope = \"read\"");
    let config = setup.config_file().display().to_string();
    let environment = [
        ("BEARERD_LOG_FORMAT", "text"),
        ("BEARERD_LOG_LEVEL", "info"),
    ];
    let sidecar = setup.start_process_with(&environment);
    let log = eventually("six lines", || {
        Some(sidecar.process.stderr()).filter(|log| log.contains("ready  "))
    });
    let version = env!("CARGO_PKG_VERSION");
    let starts = [
        format!("bearerd {version} ("),
        format!("config {config} + 2 variables + 0 flags"),
        format!("proxy  http://{} -> {}", sidecar.proxy, upstream.url()),
        format!("admin  http://{} (", sidecar.admin),
        format!(
            "token  payments: client_credentials at {} as client_id \"shop\", scope \"read\"",
            auth.url()
        ),
        "ready  first token obtained in ".to_owned(),
    ];
    let mut lines = log.lines();
    for start in starts {
        let line = lines.next().unwrap_or_default();
        assert!(line.contains(&format!(" INFO {start}")), "{start}\n{log}");
    }
    assert!(
        log.contains(" for payments, expires in ") && log.contains(", next renewal in 4"),
        "{log}"
    );
}

#[test]
fn a_port_in_use_is_74() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--listen", "--admin-listen"] {
        let ended = run(&Setup::between(&upstream, &auth), &[flag, &address]);
        assert_eq!(ended.code, 74);
        assert!(
            ended
                .stderr
                .contains(&format!("cannot listen on {address}")),
            "{}",
            ended.stderr
        );
        assert!(ended.stderr.contains("hint: something else listens there"));
    }
}

/// C-72
#[test]
fn wrong_usage_is_2_and_there_is_no_flag_for_a_secret() {
    for arguments in [
        &["--client-secret", "x"][..],
        &["nonsense"],
        &["health", "well"],
    ] {
        let ended = Process::run(arguments, &[]);
        assert_eq!(ended.code, 2, "{arguments:?}");
        assert!(ended.stderr.contains("try '--help'"), "{}", ended.stderr);
    }
}

/// C-09, C-10, D-01
#[test]
fn a_configuration_that_cannot_be_used_is_78_and_says_where() {
    let ended = Process::run(&["check"], &[]);
    assert_eq!(ended.code, 78);
    assert!(
        ended.stderr.contains("there is no upstream"),
        "{}",
        ended.stderr
    );
    assert!(
        ended.stderr.contains("there is no credential"),
        "all mistakes at once"
    );

    let ended = run_with_text("[proxy]\nlistne = \"127.0.0.1:0\"\n", &["check"]);
    assert_eq!(ended.code, 78);
    assert!(
        ended.stderr.contains(":2:1: unknown key `listne`"),
        "{}",
        ended.stderr
    );
    assert!(
        ended.stderr.contains("did you mean `listen`?"),
        "{}",
        ended.stderr
    );

    for (text, message) in [
        (
            "[proxy]\nlisten = \"0.0.0.0:8080\"",
            "0.0.0.0:8080 is not a loopback address",
        ),
        (
            "[credential.a]\ntoken_url = \"http://a.example/\"",
            "client secret unencrypted",
        ),
        (
            "[credential.a]\ntoken_url = \"https://u:p@a.example/\"",
            "must not contain user information",
        ),
        (
            "[upstream.a]\nurl = \"https://a.example/#x\"",
            "must not have a fragment",
        ),
    ] {
        let ended = run_with_text(text, &["run"]);
        assert_eq!(ended.code, 78);
        assert!(ended.stderr.contains(message), "{}", ended.stderr);
    }
}

/// C-67
#[test]
fn a_secret_that_cannot_be_read_is_78() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let setup = Setup::between(&upstream, &auth);
    setup.write_secret("\n");
    let ended = run(&setup, &["check"]);
    assert_eq!(ended.code, 78);
    assert!(ended.stderr.contains("is empty"), "{}", ended.stderr);
    fs::remove_file(setup.secret_file()).unwrap();
    let ended = run(&setup, &["run"]);
    assert_eq!(ended.code, 78);
    assert!(ended.stderr.contains("does not exist"), "{}", ended.stderr);
}

#[test]
fn a_configuration_file_that_cannot_be_read_is_74() {
    let ended = Process::run(&["check", "--config", "/nonexistent/bearerd.toml"], &[]);
    assert_eq!(ended.code, 74);
    assert!(
        ended
            .stderr
            .contains("/nonexistent/bearerd.toml: cannot be read"),
        "{}",
        ended.stderr
    );
}

#[test]
fn check_asks_nobody_and_check_online_asks_both() {
    let (upstream, auth) = (
        Upstream::scripted_tls(|_| Ok(())),
        AuthorizationServer::new(),
    );
    let setup = Setup::between(&upstream, &auth);
    let ended = run(&setup, &["check"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(
        ended.stdout.starts_with("ok    configuration: "),
        "{}",
        ended.stdout
    );
    assert_eq!((auth.connections(), upstream.connections()), (0, 0));

    let ended = run(&setup, &["check", "--online"]);
    assert_eq!(ended.code, 0, "{}", ended.stdout);
    assert!(
        ended.stdout.contains("ok    token payments: lifetime 1h"),
        "{}",
        ended.stdout
    );
    assert!(
        ended.stdout.contains("ok    upstream payments: connected"),
        "{}",
        ended.stdout
    );
    assert!(
        ended.stdout.contains("TLSv1_3, HTTP/1.1"),
        "{}",
        ended.stdout
    );
    assert!(!ended.stdout.contains("token-1"));
    assert_eq!(auth.requests().len(), 1);
    assert!(
        upstream.requests().is_empty(),
        "no request is invented for a payments API"
    );
}

#[test]
fn what_cannot_be_reached_is_69_and_refused_credentials_are_77() {
    let (upstream, mut auth) = (Upstream::down(), AuthorizationServer::new());
    let setup = Setup::between(&upstream, &auth);
    let ended = run(&setup, &["check", "--online"]);
    assert_eq!(ended.code, 69);
    assert!(
        ended.stdout.contains("ok    token payments"),
        "{}",
        ended.stdout
    );
    assert!(
        ended.stdout.contains("fail  upstream payments"),
        "{}",
        ended.stdout
    );

    auth.refuses("invalid_client");
    for command in [&["check", "--online"][..], &["token"]] {
        let ended = run(&setup, command);
        assert_eq!(ended.code, 77, "{command:?}");
        let said = ended.stdout + &ended.stderr;
        assert!(said.contains("invalid_client"), "{said}");
        assert!(
            said.contains("hint: the server does not know the client by this"),
            "{said}"
        );
    }

    auth.stop();
    for command in [&["check", "--online"][..], &["token"]] {
        assert_eq!(run(&setup, command).code, 69, "{command:?}");
    }
}

#[test]
fn token_tells_of_a_token_and_shows_it_only_when_asked() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    auth.issues("t0ken", 90.0);
    let setup = Setup::between(&upstream, &auth);
    let printed = |arguments: &[&str]| {
        let ended = run(&setup, &[&["token"], arguments].concat());
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
        ended.stdout
    };
    let text = "type         Bearer\nlifetime     1m 30s\nscope        (as asked)\nfingerprint  b46c0967\n";
    assert_eq!(printed(&[]), text);
    assert_eq!(printed(&["--show"]), format!("{text}token        t0ken\n"));
    assert_eq!(
        printed(&["--format", "header"]),
        "Authorization: Bearer ***\n"
    );
    assert_eq!(
        printed(&["--format", "header", "--show"]),
        "Authorization: Bearer t0ken\n"
    );
    let json: Value = serde_json::from_str(&printed(&["--format", "json"])).unwrap();
    assert_eq!(json["expires_in"], 90);
    assert_eq!(json["access_token"], Value::Null);
    let json: Value = serde_json::from_str(&printed(&["--format", "json", "--show"])).unwrap();
    assert_eq!(json["access_token"], "t0ken");
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn print_config_says_where_each_value_comes_from_and_no_secret() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let setup = Setup::between(&upstream, &auth).proxy("max_in_flight = 7");
    let config = setup.config_file().display().to_string();
    let arguments = ["print-config", "--config", &config, "--scope", "read"];
    let secret = ("BEARERD_CLIENT_SECRET", "canary-7f3a");
    let ended = Process::run(&arguments, &[secret]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    let line = |start: &str| {
        let lines = ended.stdout.lines();
        let (value, from) = lines
            .filter_map(|line| line.split_once(" # "))
            .find(|(value, _)| value.starts_with(start))
            .unwrap_or_else(|| panic!("{start} in\n{}", ended.stdout));
        (value.trim_end().to_owned(), from.to_owned())
    };
    let is = |start, value: &str, from: &str| {
        assert_eq!(line(start), (value.to_owned(), from.to_owned()));
    };
    is("max_in_flight", "max_in_flight = 7", &format!("{config}:3"));
    is("scope", "scope = \"read\"", "--scope");
    is("drain_delay", "drain_delay = \"5s\"", "default");
    let env = "client_secret_env = \"BEARERD_CLIENT_SECRET\"";
    is("client_secret_env", env, "BEARERD_CLIENT_SECRET");
    assert!(!ended.stdout.contains("canary"));
    assert_eq!((auth.connections(), upstream.connections()), (0, 0));

    // What it prints is a configuration.
    let again = run_with_text(&ended.stdout, &["check"]);
    assert_eq!(again.code, 78, "but for the variable that is gone");
    assert!(
        again.stderr.contains("BEARERD_CLIENT_SECRET"),
        "{}",
        again.stderr
    );
    let wrong = run_with_text("[proxy]\nlistne = 1\n", &["print-config"]);
    assert_eq!((wrong.code, wrong.stdout.as_str()), (78, ""));
}

#[test]
fn health_and_wait_ask_a_running_sidecar() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::hanging());
    let sidecar = Setup::between(&upstream, &auth).start_process_unready();
    let admin = sidecar.admin.to_string();
    let ask =
        |arguments: &[&str]| Process::run(&[arguments, &["--admin-listen", &admin]].concat(), &[]);
    assert_eq!(ask(&["health", "live"]).code, 0);
    assert_eq!(ask(&["health", "startup"]).code, 1);
    let unready = ask(&["health", "ready"]);
    assert_eq!(unready.code, 1);
    assert!(
        unready
            .stdout
            .contains("[-] token payments: first request under way"),
        "{}",
        unready.stdout
    );
    let waited = ask(&["wait", "--timeout", "300ms"]);
    assert_eq!(waited.code, 1);
    assert!(
        waited.stderr.contains("not ready within 300ms"),
        "{}",
        waited.stderr
    );

    let waiting = Process::start(&["wait", "--admin-listen", &admin], &[]);
    auth.issues_for(3600.0);
    assert_eq!(waiting.ended().code, 0);
    assert_eq!(ask(&["health", "ready"]).code, 0);
    assert_eq!(ask(&["health", "startup"]).code, 0);
}

#[test]
fn health_of_nobody_is_1() {
    let nobody = Upstream::down();
    let ended = Process::run(
        &[
            "health",
            "live",
            "--admin-listen",
            &nobody.address.to_string(),
        ],
        &[],
    );
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("no answer from"), "{}", ended.stderr);
}

#[test]
fn version_and_help_are_0() {
    let version = format!("bearerd {}\n", env!("CARGO_PKG_VERSION"));
    for arguments in ["version", "--version"] {
        let ended = Process::run(&[arguments], &[]);
        assert_eq!((ended.code, ended.stdout), (0, version.clone()));
    }
    let help = Process::run(&["--help"], &[]);
    assert_eq!(help.code, 0);
    assert!(
        help.stdout.contains("[env: BEARERD_UPSTREAM_URL]"),
        "{}",
        help.stdout
    );
}

#[test]
fn shells_and_man_get_what_they_read() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = Process::run(&["completions", shell], &[]);
        assert_eq!((script.code, script.stderr.as_str()), (0, ""), "{shell}");
        assert!(script.stdout.contains("print-config"), "{shell}");
        assert!(script.stdout.contains("client-secret-file"), "{shell}");
    }
    assert_eq!(Process::run(&["completions", "csh"], &[]).code, 2);
    let page = Process::run(&["man"], &[]);
    assert_eq!((page.code, page.stderr.as_str()), (0, ""));
    for part in [
        ".TH bearerd 1",
        ".SH COMMANDS",
        "\\fBprint\\-config\\fR",
        ".SH ENVIRONMENT",
        "BEARERD_CLIENT_SECRET",
        ".SH SIGNALS",
        ".SH \"EXIT STATUS\"",
    ] {
        assert!(page.stdout.contains(part), "{part} in\n{}", page.stdout);
    }
}

/// E-35: a terminal that goes away is no reason to drop requests.
#[test]
fn sighup_does_not_end_it() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth).start_process();
    sidecar.process.signal("HUP");
    wait_until("a line about it", || {
        sidecar.process.stderr().contains("configuration reloaded")
    });
    assert_eq!(sidecar.get("/").ok(), "ok");
}

/// E-37: `bearerd … | head` is nobody's mistake.
#[test]
fn a_reader_that_went_away_is_no_failure() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut version = std::process::Command::new(env!("CARGO_BIN_EXE_bearerd"));
    let status = version.arg("version").stdout(writer).status().unwrap();
    assert_eq!(status.code(), Some(0));
}

/// C-73: no core file, and nobody else of the same user may look into its memory: such a process belongs to root in /proc.
#[test]
#[cfg(target_os = "linux")]
fn its_memory_is_private() {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::process::CommandExt;

    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth).start_process();
    let limits = sidecar.process.proc("limits");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let words: Vec<&str> = core.unwrap().split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{limits}");

    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bearerd"));
    command.args(["wait", "--timeout", "60s"]);
    command
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let nobody = 65534;
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        command.uid(nobody).gid(nobody);
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            println!("half of it is skipped: another user may not run the program ({error})");
            return;
        }
    };
    wait_until("a process of root's", || {
        let owner = fs::metadata(format!("/proc/{}/environ", child.id()));
        owner.is_ok_and(|owner| owner.uid() == 0)
    });
    child.kill().unwrap();
    child.wait().unwrap();
}
