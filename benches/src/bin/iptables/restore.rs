//! Runs `iptables-restore` in a network namespace, with a limit.

use std::{
    ffi::OsString,
    fs,
    io::{self, Read, Write},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicI32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use kubenet_benches::{Failure, report::Measure};
use kubenet_iptables::Variant;
use kubenet_testkit::lab::Netns;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};
use tempfile::TempDir;

/// The program that runs, to be ended with this one; 0 when there is none.
static RUNNING: AtomicI32 = AtomicI32::new(0);

/// Directories that go with this process.
static DIRECTORIES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A directory for lock files of our own, so that nobody else's rules make us wait.
#[derive(Debug)]
pub(crate) struct Locks(TempDir);

impl Locks {
    pub(crate) fn new() -> io::Result<Self> {
        end_with_us();
        let directory = tempfile::Builder::new().prefix("kubenet-bench-").tempdir()?;
        directories().push(directory.path().to_owned());
        Ok(Self(directory))
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Locks {
    fn drop(&mut self) {
        directories().retain(|path| path != self.0.path());
    }
}

fn directories() -> MutexGuard<'static, Vec<PathBuf>> {
    DIRECTORIES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One variant's `iptables-restore`.
#[derive(Debug)]
pub(crate) struct Restore {
    program: &'static str,
    lock: PathBuf,
}

impl Restore {
    pub(crate) fn new(variant: Variant, lock: PathBuf) -> Self {
        let program = match variant {
            Variant::Legacy => "iptables-legacy-restore",
            _ => "iptables-nft-restore",
        };
        Self { program, lock }
    }

    /// Applies a transaction. When the limit passes, the program is ended and nothing is applied.
    pub(crate) fn apply(&self, netns: &Netns, text: &str, limit: Duration) -> Result<Measure, Failure> {
        self.run(netns, &["--noflush", "--wait=5"], text, limit)
    }

    /// Checks a transaction without applying it.
    #[cfg(test)]
    pub(crate) fn check(&self, netns: &Netns, text: &str) -> Result<Measure, Failure> {
        self.run(netns, &["--noflush", "--wait=5", "--test"], text, Duration::from_secs(60))
    }

    /// The name of the variant's programs, without what they do.
    #[cfg(test)]
    pub(crate) fn family_program(&self) -> &'static str {
        self.program.trim_end_matches("-restore")
    }

    fn run(&self, netns: &Netns, options: &[&str], text: &str, limit: Duration) -> Result<Measure, Failure> {
        netns.run(|| {
            let mut command = Command::new(self.program);
            command.args(options).env("PATH", search_path()).env("XTABLES_LOCKFILE", &self.lock);
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
            let begin = Instant::now();
            let child = command.spawn().map_err(|error| format!("{}: {error}", self.program))?;
            let ended = feed(child, text, limit)?;
            let took = begin.elapsed();
            match ended {
                Ended::Well => Ok(Measure::Known(took.as_secs_f64())),
                Ended::AtLimit => Ok(Measure::AtLeast(limit.as_secs_f64())),
                Ended::Badly(why) => Err(format!("{}: {why:.600}", self.program).into()),
            }
        })?
    }
}

/// Where the programs are, whatever the caller's `PATH` is.
fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin:/usr/local/sbin");
    path
}

enum Ended {
    Well,
    AtLimit,
    Badly(String),
}

fn feed(mut child: Child, text: &str, limit: Duration) -> io::Result<Ended> {
    let pid = Pid::from_raw(child.id().cast_signed());
    RUNNING.store(pid.as_raw(), Ordering::Release);
    let (done, waits) = mpsc::channel::<()>();
    let (status, said, at_limit) = thread::scope(|scope| {
        let watch = scope.spawn(move || {
            let passed = waits.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
            passed && kill(pid, Signal::SIGKILL).is_ok()
        });
        if let Some(mut stdin) = child.stdin.take() {
            // A program that reads no further says why on stderr.
            let _ = stdin.write_all(text.as_bytes());
        }
        let mut said = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            let _ = stderr.read_to_string(&mut said);
        }
        let status = child.wait();
        RUNNING.store(0, Ordering::Release);
        drop(done);
        (status, said, watch.join().unwrap_or(false))
    });
    Ok(match status? {
        status if status.success() => Ended::Well,
        _ if at_limit => Ended::AtLimit,
        status => Ended::Badly(format!("{status}: {}", said.trim())),
    })
}

/// On SIGINT and SIGTERM the lab removes itself and ends the process; the program that runs and the directories
/// of locks go, too.
fn end_with_us() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else { return };
        let watch = move || {
            for _ in signals.forever() {
                let pid = RUNNING.load(Ordering::Acquire);
                if pid > 0 {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
                for directory in directories().drain(..) {
                    let _ = fs::remove_dir_all(directory);
                }
            }
        };
        // Without the thread the program ends by itself, only later.
        let _ = thread::Builder::new().name("end-with-us".into()).spawn(watch);
    });
}
