//! The network namespace of the node.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

use kubenet_core::datapath::{DatapathError, ErrorKind};
use nix::{
    errno::Errno,
    libc,
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use crate::error::caused;

/// Moves the calling thread, and no other, into a network namespace.
pub(crate) fn enter(path: &Path) -> Result<(), DatapathError> {
    let failed = |kind, what: &str, e: io::Error| {
        caused("build", kind, format!("network_namespace: {}: {what}", path.display()), e)
    };
    let file = File::open(path).map_err(|e| {
        failed(ErrorKind::InvalidInput, "cannot be opened: name a file such as /run/netns/NAME", e)
    })?;
    setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|e| match e {
        Errno::EPERM => {
            failed(ErrorKind::Permission, "cannot be entered: CAP_SYS_ADMIN is needed for that", e.into())
        }
        e => failed(ErrorKind::InvalidInput, "is no network namespace", e.into()),
    })
}

/// The number by which BPF programs know the current namespace (kernel 5.14).
pub(crate) fn cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option writes at most `length` bytes, the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    Ok(cookie)
}
