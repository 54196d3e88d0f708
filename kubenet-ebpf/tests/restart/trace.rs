//! Kills a process before a certain system call.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc::{self, PTRACE_SYSCALL_INFO_ENTRY},
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    Killed,
    /// By itself: it made no more calls than that.
    Finished(usize),
}

/// Whether a message to netlink is more than a question. Who is gone asks for no change.
fn is_change_of_filters(at: Pid, message: u64) -> bool {
    const RTM_NEWQDISC: u16 = 36;
    const RTM_NEWTFILTER: u16 = 44;
    const RTM_DELTFILTER: u16 = 45;
    // The kind is in the second half of the first word.
    let word = match ptrace::read(at, message as *mut libc::c_void) {
        Err(Errno::ESRCH) => return false,
        word => word.unwrap(),
    };
    let [_, _, _, _, low, high, ..] = word.to_ne_bytes();
    matches!(u16::from_ne_bytes([low, high]), RTM_NEWQDISC | RTM_NEWTFILTER | RTM_DELTFILTER)
}

/// Calls that change something which outlives the process.
fn changes(at: Pid, number: u64, arguments: [u64; 6]) -> bool {
    const UPDATE_ELEM: u64 = 2;
    const DELETE_ELEM: u64 = 3;
    const OBJ_PIN: u64 = 6;
    const LINK_CREATE: u64 = 28;
    const LINK_UPDATE: u64 = 29;
    const LINK_DETACH: u64 = 34;
    const UPDATE_BATCH: u64 = 26;
    const DELETE_BATCH: u64 = 27;
    const COMMANDS: [u64; 8] = [
        UPDATE_ELEM,
        DELETE_ELEM,
        OBJ_PIN,
        LINK_CREATE,
        LINK_UPDATE,
        LINK_DETACH,
        UPDATE_BATCH,
        DELETE_BATCH,
    ];
    match number as libc::c_long {
        libc::SYS_bpf => COMMANDS.contains(&arguments[0]),
        libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2 => true,
        libc::SYS_unlink | libc::SYS_unlinkat | libc::SYS_rmdir => true,
        libc::SYS_mkdir | libc::SYS_mkdirat => true,
        libc::SYS_sendto => is_change_of_filters(at, arguments[1]),
        _ => false,
    }
}

/// Traces a thread of a process, and those that it starts, and kills the process before the call of this number,
/// from 0. `go` lets it begin. `None` where tracing is not allowed.
pub(crate) fn kill_before(
    process: u32,
    thread: i32,
    call: usize,
    all: bool,
    go: impl FnOnce(),
) -> Option<End> {
    let (process, thread) = (Pid::from_raw(process as i32), Pid::from_raw(thread));
    match ptrace::seize(thread, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE) {
        Err(Errno::EPERM | Errno::ENOSYS) => return None,
        seized => seized.unwrap(),
    }
    ptrace::interrupt(thread).unwrap();
    let traced = Traced(process);
    let mut go = Some(go);
    let mut seen = 0;
    loop {
        match next_change(process) {
            WaitStatus::PtraceSyscall(at) => {
                let info = match ptrace::syscall_info(at) {
                    // Another of its threads has just ended the process.
                    Err(Errno::ESRCH) => continue,
                    info => info.unwrap(),
                };
                if info.op == PTRACE_SYSCALL_INFO_ENTRY {
                    // SAFETY: the kernel says that it filled this one.
                    let entry = unsafe { info.u.entry };
                    if all || changes(at, entry.nr, entry.args) {
                        if seen == call {
                            kill(process, Signal::SIGKILL).unwrap();
                            continue;
                        }
                        seen += 1;
                    }
                }
                go_on(at, None);
            }
            WaitStatus::PtraceEvent(at, ..) => {
                go_on(at, None);
                if let Some(go) = go.take() {
                    go();
                }
            }
            WaitStatus::Stopped(at, signal) => go_on(at, Some(signal)),
            WaitStatus::Signaled(at, Signal::SIGKILL, _) if at == process => {
                traced.expect_gone();
                return Some(End::Killed);
            }
            WaitStatus::Exited(at, 0) if at == process => {
                traced.expect_gone();
                return Some(End::Finished(seen));
            }
            end @ (WaitStatus::Exited(at, _) | WaitStatus::Signaled(at, ..)) => {
                assert_ne!(at, process, "it failed: {end:?}");
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A process with threads that are traced. When a test fails here, all of them are killed and waited for: the
/// process itself does not end for whoever waits for it while its tracer has not seen its threads end.
struct Traced(Pid);

impl Traced {
    fn expect_gone(self) {
        std::mem::forget(self);
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            match waitpid(Pid::from_raw(-1), Some(flags)) {
                Ok(WaitStatus::Exited(at, _) | WaitStatus::Signaled(at, ..)) if at == self.0 => return,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}

/// What happens next to what this thread traces or has started. A process that does nothing for a long time is
/// a failure that says where it stands.
fn next_change(process: Pid) -> WaitStatus {
    const PATIENCE: Duration = Duration::from_secs(60);
    let begin = Instant::now();
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD | WaitPidFlag::WNOHANG;
    loop {
        match waitpid(Pid::from_raw(-1), Some(flags)) {
            Err(Errno::EINTR) => {}
            Ok(WaitStatus::StillAlive) => match begin.elapsed() {
                // Nearly always, the next system call is near.
                waited if waited < Duration::from_millis(2) => thread::yield_now(),
                waited if waited < PATIENCE => thread::sleep(Duration::from_micros(200)),
                waited => panic!("nothing happens for {waited:?}:\n{}", whereabouts(process)),
            },
            status => return status.unwrap(),
        }
    }
}

/// What each thread of a process waits for.
fn whereabouts(process: Pid) -> String {
    let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else { return "it is gone".to_owned() };
    let of = |task: fs::DirEntry| {
        let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let status = read("status");
        let status: Vec<&str> =
            status.lines().filter(|l| l.starts_with("State") || l.starts_with("TracerPid")).collect();
        let name = task.file_name();
        format!(
            "{name:?} {} {status:?} in {}\n{}",
            read("comm").trim(),
            read("syscall").trim(),
            read("stack")
        )
    };
    tasks.flatten().map(of).collect()
}

/// It may have been killed meanwhile.
fn go_on(thread: Pid, signal: Option<Signal>) {
    match ptrace::syscall(thread, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(e) => panic!("{e}"),
    }
}

/// The datapath's own thread in a process.
pub(crate) fn worker(process: u32) -> i32 {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let found = tasks.flatten().find(|task| {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        name.trim() == "kubenet-ebpf"
    });
    found.unwrap().file_name().to_str().unwrap().parse().unwrap()
}
