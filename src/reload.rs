//! Files that change while the sidecar runs: noticed at once where the system tells of it, and at a slow poll everywhere.
//!
//! It is directories that are watched, not files: Kubernetes changes a mounted secret by moving a link beside it
//! (`..data`), editors write a new file and move it, and a watch on the file itself sees neither. What is told is only
//! that something happened; whether it matters, the content says.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::warn;

/// Content is compared so often, whether or not anything was told.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// Changes come in bursts: a directory made, files written, a link moved. The burst is over when it is quiet for so long.
const SETTLING_TIME: Duration = Duration::from_millis(50);
/// A burst without end does not hold the news up.
const LONGEST_BURST: Duration = Duration::from_secs(1);
/// More of one file is not looked at; none that is named in a configuration is so large.
const MAX_COMPARED_BYTES: u64 = 4 * 1024 * 1024;

/// Sees changes of some files.
pub struct FileWatch {
    directories: BTreeSet<PathBuf>,
    /// None where the system has no more of them; then there is the poll.
    events: Option<Events>,
}

impl FileWatch {
    /// Watches the directories of `files`.
    pub fn new<'a>(files: impl IntoIterator<Item = &'a Path>) -> Self {
        Self::of(directories(files))
    }

    /// Watches the directories of `files` from now on, if they are not those it watches already.
    pub fn follow<'a>(&mut self, files: impl IntoIterator<Item = &'a Path>) {
        let directories = directories(files);
        if directories != self.directories {
            *self = Self::of(directories);
        }
    }

    fn of(directories: BTreeSet<PathBuf>) -> Self {
        let events = match events(&directories) {
            Ok(events) => Some(events),
            Err(error) => {
                warn!(%error, "changed files are noticed within 10 s, not at once");
                None
            }
        };
        Self {
            directories,
            events,
        }
    }

    /// Resolves when something may have changed: after a burst of events, and at every poll.
    pub async fn changed(&mut self) {
        let poll = sleep(POLL_INTERVAL);
        let Some(events) = &mut self.events else {
            return poll.await;
        };
        tokio::select! {
            () = poll => return,
            () = drained(events) => {}
        }
        let end = Instant::now() + LONGEST_BURST;
        loop {
            tokio::select! {
                () = sleep(SETTLING_TIME) => return,
                () = sleep_until(end) => return,
                () = drained(events) => {}
            }
        }
    }
}

fn directories<'a>(files: impl IntoIterator<Item = &'a Path>) -> BTreeSet<PathBuf> {
    let directories = files.into_iter().filter_map(Path::parent);
    let directories = directories.map(|directory| match directory.as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => directory.to_owned(),
    });
    directories.collect()
}

/// inotify(7). To tokio it is a pipe: a descriptor that becomes readable.
type Events = pipe::Receiver;

fn events(directories: &BTreeSet<PathBuf>) -> io::Result<Events> {
    let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    for directory in directories {
        let flags = WatchFlags::CREATE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR;
        // One that is not there is looked at by the poll.
        let _ = inotify::add_watch(&events, directory, flags);
    }
    pipe::Receiver::from_owned_fd_unchecked(events)
}

/// Waits for events, and takes some. What they say does not matter.
async fn drained(events: &mut Events) {
    let mut buffer = [0; 4096];
    if events.read(&mut buffer).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What stands in some files, or that it cannot be read. Different contents have different fingerprints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint(Vec<[u8; 32]>);

impl Fingerprint {
    /// Of these files as they are now. Blocks for the time of reading them.
    pub fn of<'a>(files: impl IntoIterator<Item = &'a Path>) -> Self {
        Self(files.into_iter().map(digest).collect())
    }
}

fn digest(file: &Path) -> [u8; 32] {
    let mut content = Vec::new();
    let read = std::fs::metadata(file).and_then(|metadata| {
        // A pipe would hold up everything.
        if !metadata.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let file = std::fs::File::open(file)?;
        file.take(MAX_COMPARED_BYTES).read_to_end(&mut content)
    });
    let mut digest = [0; 32];
    if read.is_ok() {
        let sha256 = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &content);
        digest.copy_from_slice(sha256.as_ref());
    }
    zeroize::Zeroize::zeroize(&mut content);
    digest
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tokio::time::timeout;

    use super::*;

    /// Far less than the poll, far more than a burst.
    const SOON: Duration = Duration::from_secs(8);

    /// C-66: a new directory, and the link to it moved, twice in a row.
    #[tokio::test]
    async fn a_mounted_secret_that_is_swapped_is_noticed_at_once() {
        let mount = tempfile::tempdir().unwrap();
        let secret = mount.path().join("client_secret");
        let write = |version: &str| {
            let data = mount.path().join(format!("..{version}"));
            fs::create_dir(&data).unwrap();
            fs::write(data.join("client_secret"), version).unwrap();
            symlink(format!("..{version}"), mount.path().join("..data_tmp")).unwrap();
            fs::rename(mount.path().join("..data_tmp"), mount.path().join("..data")).unwrap();
        };
        write("1");
        symlink("..data/client_secret", &secret).unwrap();
        let mut watch = FileWatch::new([secret.as_path()]);
        let first = Fingerprint::of([secret.as_path()]);
        write("2");
        write("3");
        timeout(SOON, watch.changed()).await.expect("at once");
        assert_ne!(Fingerprint::of([secret.as_path()]), first);
        assert_eq!(fs::read_to_string(&secret).unwrap(), "3");
    }

    #[tokio::test]
    async fn a_file_that_is_written_or_replaced_is_noticed_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bearerd.toml");
        let mut watch = FileWatch::new([file.as_path()]);
        fs::write(&file, "1").unwrap();
        timeout(SOON, watch.changed()).await.expect("written");
        fs::write(folder.path().join("new"), "2").unwrap();
        fs::rename(folder.path().join("new"), &file).unwrap();
        timeout(SOON, watch.changed()).await.expect("replaced");
        let other = tempfile::tempdir().unwrap();
        let elsewhere = other.path().join("x");
        watch.follow([elsewhere.as_path()]);
        fs::write(&elsewhere, "1").unwrap();
        timeout(SOON, watch.changed()).await.expect("elsewhere");
    }

    #[tokio::test(start_paused = true)]
    async fn without_any_news_there_is_a_poll() {
        let begun = Instant::now();
        let mut watch = FileWatch::new([Path::new("/nonexistent/x")]);
        watch.changed().await;
        assert!(begun.elapsed() >= POLL_INTERVAL);
    }

    #[test]
    fn a_fingerprint_is_of_the_content() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let of = |path: &Path| Fingerprint::of([path]);
        let empty = of(file.path());
        fs::write(file.path(), "1").unwrap();
        let one = of(file.path());
        assert_ne!(empty, one);
        fs::write(file.path(), "1").unwrap();
        assert_eq!(of(file.path()), one);
        assert_ne!(of(Path::new("/nonexistent")), empty);
        assert_eq!(of(&std::env::temp_dir()), of(Path::new("/nonexistent")));
    }
}
