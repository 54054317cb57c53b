//! The only place that makes a tokio runtime. One control thread (refreshers, admin, signals) and N data-plane workers,
//! each single-threaded: a slow authorization server or a stuck scraper cannot touch a request, and a worker shares
//! neither pool nor wake-ups with another. What the system lets the process have stands here too.

mod confinement;

use std::future::Future;
use std::io;
use std::thread;

#[cfg(target_os = "linux")]
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

pub use confinement::{Confinement, confine};

/// Runs `future` on the present thread, which becomes the control thread, until it is done.
///
/// # Errors
/// When the system gives no resources for a runtime.
pub fn control<F: Future>(future: F) -> io::Result<F::Output> {
    let runtime = single_threaded()?;
    let output = runtime.block_on(future);
    // Dropping it would wait for name look-ups that may hang.
    runtime.shutdown_background();
    Ok(output)
}

/// Runs the future that `start` makes on a thread of its own. The receiver yields when it is done; it fails if the
/// thread panicked.
///
/// # Errors
/// When the system gives no thread.
pub fn worker<S, F>(index: usize, start: S) -> io::Result<oneshot::Receiver<io::Result<()>>>
where
    S: FnOnce() -> F + Send + 'static,
    F: Future<Output = ()>,
{
    let (done, receiver) = oneshot::channel();
    thread::Builder::new()
        .name(format!("bearerd-{index}"))
        .spawn(move || {
            let result = control(async { start().await });
            let _ = done.send(result);
        })?;
    Ok(receiver)
}

/// How many files and sockets this process may have open, as far as that is bounded.
pub fn file_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Raises that number as far as the system allows without privileges. Soft limits are low for the sake of programs that
/// use select(2), which this one does not.
pub fn raise_file_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        let raised = Rlimit {
            current: maximum,
            maximum,
        };
        // Without it the caps are lower, and the log says so.
        let _ = setrlimit(Resource::Nofile, raised);
    }
}

/// Keeps the memory of this process to itself, for there are secrets in it: no core file when it crashes, and on Linux no
/// other process of the same user looks into it. To be called first. Best effort: where the system does not know it, the
/// process is as safe as any other.
pub fn keep_memory_private() {
    let no_core = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = setrlimit(Resource::Core, no_core);
    #[cfg(target_os = "linux")]
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

fn single_threaded() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
