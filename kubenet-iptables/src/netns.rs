//! Network namespaces, which belong to threads.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path, thread};

use nix::sched::{CloneFlags, setns, unshare};

/// Moves the calling thread, and the programs that it starts, into a network namespace.
pub(crate) fn enter(path: &Path) -> io::Result<()> {
    let file = fs::File::open(path)?;
    Ok(setns(file, CloneFlags::CLONE_NEWNET)?)
}

/// What tells the calling thread's network namespace from others.
pub(crate) fn identity() -> io::Result<(u64, u64)> {
    let metadata = fs::metadata("/proc/thread-self/ns/net")?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Runs `work` in a new, empty network namespace that ends with it.
pub(crate) fn in_a_new_one<R: Send>(work: impl FnOnce() -> R + Send) -> io::Result<R> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("kubenet-probe".into()).spawn_scoped(scope, || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })?;
        thread.join().map_err(|_| io::Error::other("the probe's thread panicked"))?
    })
}

/// Whether the calling thread may change network settings: CAP_NET_ADMIN in its effective set.
pub(crate) fn may_administer() -> bool {
    const CAP_NET_ADMIN: u32 = 12;
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    // Where there is no answer, let the programs say.
    effective.is_none_or(|bits| bits >> CAP_NET_ADMIN & 1 == 1)
}
