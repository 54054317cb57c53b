//! What this process gives up once its sockets are there, in case somebody takes it over: new privileges, and with
//! Landlock, to write a file, to run a program, to listen on another port and to signal other processes.
//!
//! To read it does not give up: a configuration that is read again may name files that nobody knew of at the start, as
//! name look-ups may, and what it may read its user and its container decide. Best effort, on any kernel.

use std::fmt;
use std::path::Path;

#[cfg(target_os = "linux")]
use landlock::{
    ABI, AccessFs, AccessNet, RestrictionStatus, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

/// What was given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    /// Whether no program can bring privileges that this process has not.
    no_new_privileges: bool,
    landlock: Landlock,
}

/// How much of it the kernel knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Landlock {
    #[default]
    None,
    Partly,
    Whole,
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.no_new_privileges, self.landlock) {
            (true, Landlock::Whole) => "no new privileges, Landlock",
            (true, Landlock::Partly) => "no new privileges, Landlock in part",
            (true, Landlock::None) => "no new privileges, no Landlock in this kernel",
            (false, _) => "not confined",
        })
    }
}

/// Gives it up, for the present thread and those that it starts. Files are removed only from `directories`: those of
/// Unix sockets, at the end.
#[cfg(target_os = "linux")]
pub fn confine<'a>(directories: impl IntoIterator<Item = &'a Path>) -> Confinement {
    let no_new_privileges = rustix::thread::set_no_new_privs(true).is_ok();
    let status = restrict(directories).map(|status| status.ruleset);
    Confinement {
        no_new_privileges,
        landlock: match status {
            Ok(RulesetStatus::FullyEnforced) => Landlock::Whole,
            Ok(RulesetStatus::PartiallyEnforced) => Landlock::Partly,
            Ok(RulesetStatus::NotEnforced) | Err(_) => Landlock::None,
        },
    }
}

/// Other systems have nothing of it.
#[cfg(not(target_os = "linux"))]
pub fn confine<'a>(_: impl IntoIterator<Item = &'a Path>) -> Confinement {
    Confinement::default()
}

#[cfg(target_os = "linux")]
fn restrict<'a>(
    directories: impl IntoIterator<Item = &'a Path>,
) -> Result<RestrictionStatus, RulesetError> {
    // Linux 6.12; of what an older one does not know, the rest holds.
    let known = ABI::V6;
    Ruleset::default()
        .handle_access(AccessFs::from_write(known) | AccessFs::Execute)?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::Signal)?
        .create()?
        .add_rules(path_beneath_rules(directories, AccessFs::RemoveFile))?
        .restrict_self()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::process::Command;
    use std::{fs, io, thread};

    use super::*;

    fn is_denied<T>(result: io::Result<T>) -> bool {
        matches!(result.map(drop), Err(error) if error.kind() == io::ErrorKind::PermissionDenied)
    }

    /// It holds for the thread that asks for it, so this one can be given up.
    #[test]
    fn nothing_is_written_run_or_listened_on_and_all_can_be_read() {
        let (sockets, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let [socket, file] = [&sockets, &elsewhere].map(|folder| folder.path().join("x"));
        fs::write(&socket, "1").unwrap();
        fs::write(&file, "1").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let confined = thread::spawn(move || {
            let confinement = confine([sockets.path()]);
            assert!(rustix::thread::no_new_privs().unwrap());
            if confinement.landlock == Landlock::None {
                assert!(
                    confinement
                        .to_string()
                        .ends_with("no Landlock in this kernel")
                );
                return;
            }
            assert!(
                confinement
                    .to_string()
                    .starts_with("no new privileges, Landlock")
            );
            assert_eq!(fs::read_to_string(&file).unwrap(), "1");
            assert!(fs::read_dir("/").is_ok());
            assert!(is_denied(fs::write(&file, "2")));
            assert!(is_denied(fs::write(file.with_extension("new"), "2")));
            assert!(is_denied(fs::remove_file(&file)));
            assert!(is_denied(fs::write(&socket, "2")));
            assert!(fs::remove_file(&socket).is_ok(), "a socket's own file");
            assert!(is_denied(Command::new("/bin/true").status()));
            assert!(TcpStream::connect(address).is_ok());
            if confinement.landlock == Landlock::Whole {
                assert!(is_denied(TcpListener::bind("127.0.0.1:0")));
            }
        });
        confined.join().unwrap();
    }
}
