//! Runs `iptables-restore` in a network namespace, with a limit.

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Once,
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

/// The program that runs, to be ended with this one; 0 when there is none.
static RUNNING: AtomicI32 = AtomicI32::new(0);

/// One variant's `iptables-restore`.
#[derive(Debug)]
pub(crate) struct Restore {
    program: &'static str,
    lock: PathBuf,
}

impl Restore {
    /// The lock is a file of our own, so that nobody else's rules make us wait.
    pub(crate) fn new(variant: Variant, lock: &Path) -> Self {
        end_with_us();
        let program = match variant {
            Variant::Legacy => "iptables-legacy-restore",
            _ => "iptables-nft-restore",
        };
        Self { program, lock: lock.to_owned() }
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

/// On SIGINT and SIGTERM the lab removes itself and ends the process; the program that runs ends, too.
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
            }
        };
        // Without the thread the program ends by itself, only later.
        let _ = thread::Builder::new().name("end-with-us".into()).spawn(watch);
    });
}
