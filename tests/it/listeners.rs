//! Where the sidecar listens: several ports, Unix sockets with their files, and sockets of a service manager.

use std::fs;
use std::io::{BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use crate::support::client::request;
use crate::support::wire::{Framing, read_body, read_head};
use crate::support::{AuthorizationServer, Client, Process, Setup, Upstream, eventually};

/// The status line of a GET over a Unix socket, and the body, which is `ok` when it came from the upstream.
fn get(path: &Path) -> (String, String) {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(&request("GET /", &[], "")).unwrap();
    let mut wire = BufReader::new(stream);
    let head = read_head(&mut wire).unwrap().expect("an answer");
    let body = read_body(&mut wire, head.framing().unwrap_or(Framing::Length(0)));
    (head.line, String::from_utf8(body.data).unwrap())
}

fn ok() -> (String, String) {
    ("HTTP/1.1 200 OK".to_owned(), "ok".to_owned())
}

/// D-07: only those may connect who may open the file; it goes when the sidecar goes.
#[test]
fn a_unix_socket_has_a_mode_and_an_end() {
    for (setting, mode) in [("", 0o660), ("unix_socket_mode = \"0600\"", 0o600)] {
        let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
        let setup = Setup::between(&upstream, &auth).proxy(setting);
        let path = setup.path("proxy.sock");
        let listen = format!("[\"127.0.0.1:0\", \"unix:{}\"]", path.display());
        let sidecar = setup.listening_on(&listen).start();
        assert_eq!(get(&path), ok());
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode);
        sidecar.stop();
        assert!(!path.exists());
    }
}

#[test]
fn it_listens_on_several_addresses() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let setup = Setup::between(&upstream, &auth);
    let (one, two) = (setup.path("one"), setup.path("two"));
    let listen = format!(
        "[\"127.0.0.1:0\", \"unix:{}\", \"unix:{}\"]",
        one.display(),
        two.display()
    );
    let sidecar = setup.listening_on(&listen).start();
    assert_eq!(sidecar.get("/").ok(), "ok");
    assert_eq!(get(&one), ok());
    assert_eq!(get(&two), ok());
}

/// E-36: the file that a killed process left behind is in nobody's way.
#[test]
fn a_stale_socket_is_replaced() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let setup = Setup::between(&upstream, &auth);
    let path = setup.path("proxy.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "closing it leaves the file");
    let listen = format!("[\"127.0.0.1:0\", \"unix:{}\"]", path.display());
    let _sidecar = setup.listening_on(&listen).start();
    assert_eq!(get(&path), ok());
}

/// D-10: nothing is taken away from another process, and no file that is no socket is removed.
#[test]
fn what_is_in_use_is_not_replaced() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let setup = Setup::between(&upstream, &auth);
    let (taken, file) = (setup.path("taken"), setup.path("file"));
    let _listener = UnixListener::bind(&taken).unwrap();
    fs::write(&file, "precious").unwrap();
    let config = setup.config_file().display().to_string();
    for (path, message) in [(&taken, "in use"), (&file, "no socket")] {
        let listen = format!("unix:{}", path.display());
        let ended = Process::run(&["--config", &config, "--listen", &listen], &[]);
        assert_eq!(ended.code, 74, "{}", ended.stderr);
        assert!(ended.stderr.contains(message), "{}", ended.stderr);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    UnixStream::connect(&taken).expect("it listens on");
}

/// D-10, E-30: a service manager keeps the port; what one instance does not take waits for the next.
#[test]
fn passed_sockets_are_used_and_handed_on() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let setup = Setup::between(&upstream, &auth);
    let config = setup.config_file().display().to_string();
    let arguments = ["--config", config.as_str()];
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();

    let first = Process::activated(&arguments, socket.try_clone().unwrap(), "web");
    let ports = first.ports();
    assert_eq!(ports.proxy, address, "it is told");
    ports.wait_until_ready();
    assert_eq!(ports.get("/").ok(), "ok");
    first.signal("TERM");
    assert_eq!(first.ended().code, 0);

    let mut waiting = Client::connect(address);
    waiting.send(request("GET /", &[], ""));
    let second = Process::activated(&arguments, socket, "web");
    assert_eq!(waiting.receive().ok(), "ok");
    drop(second);
}

#[test]
fn a_passed_socket_called_admin_is_for_operators() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let setup = Setup::between(&upstream, &auth);
    let config = setup.config_file().display().to_string();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let process = Process::activated(&["--config", &config], socket, "admin");
    let ports = process.ports();
    assert_eq!(ports.admin, address);
    assert_ne!(ports.proxy, address);
    ports.wait_until_ready();
}

/// D-01: also when somebody else opened it.
#[test]
fn a_passed_socket_for_everybody_must_be_meant() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let setup = Setup::between(&upstream, &auth);
    let config = setup.config_file().display().to_string();
    let socket = TcpListener::bind("0.0.0.0:0").unwrap();
    let ended = Process::activated(&["--config", &config], socket, "web").ended();
    assert_eq!(ended.code, 78, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("allow_remote_clients"),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_passed_unix_socket_is_used_too() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let setup = Setup::between(&upstream, &auth);
    let config = setup.config_file().display().to_string();
    let path = setup.path("passed.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let process = Process::activated(&["--config", &config], socket, "web");
    let told = format!("proxy  unix:{} -> ", path.display());
    eventually("the start-up lines", || {
        process.stderr().contains(&told).then_some(())
    });
    assert_eq!(get(&path), ok());
    process.signal("TERM");
    assert_eq!(process.ended().code, 0);
    assert!(path.exists(), "it is not ours to remove");
}
