//! The real program as a child process.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::authorization_server::{CLIENT_ID, CLIENT_SECRET};
use super::eventually;
use super::sidecar::Ports;

/// A run of `bearerd`. Dropping it kills it.
pub struct Process {
    child: Child,
    stdout: Captured,
    stderr: Captured,
    reader: Arc<AtomicU8>,
    /// A line of its log that holds what no log may hold.
    leak: Arc<OnceLock<String>>,
}

/// What is done with what it logs. There is one reader for each output; it looks after each line.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq)]
enum Reader {
    Reads,
    Holds,
    Leaves,
}

type Captured = Arc<Mutex<String>>;

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Process {
    /// Runs `bearerd` with these arguments, and with no other variables than these.
    pub fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bearerd"));
        command
            .args(arguments)
            .env_clear()
            // Whatever a test is about, its log is searched for secrets, so there is as much of it as there can be.
            .env("BEARERD_LOG_LEVEL", "trace")
            .envs(environment.iter().copied())
            .stdin(Stdio::null());
        Self::spawn(command)
    }

    /// Runs it with no more than so many file descriptors.
    pub fn start_with_files(files: usize, arguments: &[&str]) -> Self {
        let mut command = Command::new("/bin/sh");
        let script = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
        command
            .args(["-c", &script, env!("CARGO_BIN_EXE_bearerd")])
            .args(arguments)
            .env_clear()
            .stdin(Stdio::null());
        Self::spawn(command)
    }

    /// Runs it with this socket as its service manager would pass it, called `name`.
    pub fn activated(arguments: &[&str], socket: impl Into<OwnedFd>, name: &str) -> Self {
        let mut command = Command::new("/bin/sh");
        let script = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\" 3<&0 </dev/null";
        command
            .args(["-c", script, env!("CARGO_BIN_EXE_bearerd")])
            .args(arguments)
            .env_clear()
            .env("LISTEN_FDNAMES", name)
            .stdin(socket.into());
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let reader = Arc::new(AtomicU8::new(Reader::Reads as u8));
        let leak = Arc::<OnceLock<String>>::default();
        let found = leak.clone();
        let search = move |line: &str| {
            if holds_a_secret(line) {
                let _ = found.set(line.to_owned());
            }
        };
        Self {
            stdout: capture(child.stdout.take().unwrap(), Arc::default(), |_| {}),
            stderr: capture(child.stderr.take().unwrap(), reader.clone(), search),
            child,
            reader,
            leak,
        }
    }

    /// Runs a command to its end.
    pub fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Ended {
        Self::start(arguments, environment).ended()
    }

    /// Waits for its end.
    pub fn ended(mut self) -> Ended {
        let status = eventually("the end of the process", || self.child.try_wait().unwrap());
        Ended {
            code: status.code().expect("it ended by itself, not by a signal"),
            stdout: whole(std::mem::take(&mut self.stdout)),
            stderr: whole(std::mem::take(&mut self.stderr)),
        }
    }

    /// Where it listens, by the lines it logs at its start.
    pub fn ports(&self) -> Ports {
        let address = |name: &str| {
            eventually("the start-up lines", || {
                let log = self.stderr();
                let line = log.lines().find(|line| line.contains(name))?;
                let (_, rest) = line.split_once("http://")?;
                let end = rest.find([' ', '"']).unwrap_or(rest.len());
                rest[..end].parse().ok()
            })
        };
        Ports {
            proxy: address("proxy  "),
            admin: address("admin  "),
        }
    }

    /// Whether SIGSTOP has taken hold of all of its threads.
    pub fn is_stopped(&self) -> bool {
        let tasks = format!("/proc/{}/task", self.child.id());
        std::fs::read_dir(tasks).unwrap().all(|task| {
            let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
            let (_, rest) = stat.rsplit_once(") ").unwrap();
            rest.starts_with('T')
        })
    }

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(status.unwrap().success());
    }

    /// Reads no more of its log after the next line, and leaves the pipe open.
    pub fn block_log(&self) {
        self.reader.store(Reader::Holds as u8, Ordering::SeqCst);
    }

    /// Reads on.
    pub fn unblock_log(&self) {
        self.reader.store(Reader::Reads as u8, Ordering::SeqCst);
    }

    /// Closes the pipe of its log after the next line.
    pub fn close_log(&self) {
        self.reader.store(Reader::Leaves as u8, Ordering::SeqCst);
    }

    /// What it has logged so far.
    pub fn stderr(&self) -> String {
        text(&self.stderr)
    }

    /// The ids of its threads.
    pub fn threads(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let names = tasks.map(|task| task.unwrap().file_name().into_string().unwrap());
        names.collect()
    }

    /// A file of `/proc` about it.
    pub fn proc(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).unwrap()
    }

    /// How much memory it has now (`VmRSS`), or has ever had (`VmHWM`), in KiB.
    pub fn memory_kib(&self, which: &str) -> usize {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix(which));
        let value = line.unwrap().trim_start_matches(':').trim_end_matches("kB");
        value.trim().parse().unwrap()
    }

    /// How many file descriptors it has open.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))
            .unwrap()
            .count()
    }

    /// From now on it gets no file descriptor with this number or above.
    pub fn limit_files(&self, limit: usize) {
        let pid = self.child.id().to_string();
        let limit = format!("--nofile={limit}:");
        let mut command = Command::new("prlimit");
        let status = command.args(["--pid", &pid, &limit]).status();
        assert!(status.expect("prlimit, of util-linux").success());
    }

    /// The processor time that it has used, whatever else the machine did.
    pub fn processor_time(&self) -> Duration {
        let stat = self.proc("stat");
        // The name, in parentheses, may hold anything. User and system time are the 14th and 15th field, in hundredths.
        let fields = stat.rsplit_once(") ").unwrap().1.split(' ');
        let ticks: u64 = fields
            .skip(11)
            .take(2)
            .map(|ticks| ticks.parse::<u64>().unwrap())
            .sum();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.unblock_log();
        if let Some(line) = self.leak.get().filter(|_| !thread::panicking()) {
            panic!("C-70: a secret or a token in the log: {line}");
        }
    }
}

/// C-70: the client secret of these tests in any form, or one of their tokens. Every run of the program is searched.
fn holds_a_secret(line: &str) -> bool {
    let basic = STANDARD.encode(format!("{CLIENT_ID}:{CLIENT_SECRET}"));
    let is_token = line
        .match_indices("token-")
        .any(|(at, word)| line[at + word.len()..].starts_with(|c: char| c.is_ascii_digit()));
    is_token || line.contains(CLIENT_SECRET) || line.contains(basic.trim_end_matches('='))
}

fn text(captured: &Captured) -> String {
    captured
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

fn capture(
    stream: impl Read + Send + 'static,
    reader: Arc<AtomicU8>,
    search: impl Fn(&str) + Send + 'static,
) -> Captured {
    let captured = Captured::default();
    let shared = captured.clone();
    thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while stream
            .read_until(b'\n', &mut line)
            .is_ok_and(|read| read > 0)
        {
            let shown = String::from_utf8_lossy(&line);
            search(&shown);
            let mut text = shared.lock().unwrap_or_else(PoisonError::into_inner);
            text.push_str(&shown);
            drop(text);
            line.clear();
            let is = |state: Reader| reader.load(Ordering::SeqCst) == state as u8;
            while is(Reader::Holds) {
                thread::sleep(Duration::from_millis(10));
            }
            if is(Reader::Leaves) {
                return;
            }
        }
    });
    captured
}

/// All there was: the thread that reads gives up its share when the pipe is closed.
fn whole(mut captured: Captured) -> String {
    eventually("the end of the output", || {
        let shared = std::mem::take(&mut captured);
        match Arc::try_unwrap(shared) {
            Ok(text) => Some(text.into_inner().unwrap_or_else(PoisonError::into_inner)),
            Err(shared) => {
                captured = shared;
                None
            }
        }
    })
}
