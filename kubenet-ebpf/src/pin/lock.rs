//! One process for each directory of pins.
//!
//! The lock is on the directory itself (`flock`): a BPF file system holds no files to lock, but its directories
//! can be locked. So the lock is where the pins are, seen alike from every container that has the file system
//! mounted; it ends with the process that has it, however that ends; and nothing stays that a later start must
//! judge as stale. A file under `/run` would be another one in each container.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use kubenet_core::datapath::{DatapathError, ErrorKind};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use crate::error::{caused, error};

/// How long a lock is waited for: a process that has just been started by the last owner holds a copy of the
/// lock until it has begun.
const PATIENCE: Duration = Duration::from_millis(500);

/// The lock of a directory, until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    held: Flock<File>,
}

impl Lock {
    pub(super) fn take(path: &Path) -> Result<Self, DatapathError> {
        let begin = Instant::now();
        let failed = |e: io::Error| {
            let message = format!("pin_dir: {}: cannot be locked", path.display());
            caused("build", ErrorKind::Unavailable, message, e)
        };
        loop {
            let directory = File::open(path).map_err(failed)?;
            match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
                Ok(lock) if is_at(&lock, path).map_err(failed)? => return Ok(Self { held: lock }),
                // The last owner has just removed it.
                Ok(_) => match fs::create_dir(path) {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
                    _ => {}
                },
                Err((_, Errno::EAGAIN)) if begin.elapsed() < PATIENCE => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err((_, Errno::EAGAIN)) => {
                    let message = format!(
                        "pin_dir: {}: another datapath uses it: close that one first, or give this one a \
                         directory of its own",
                        path.display()
                    );
                    return Err(error("build", ErrorKind::Unavailable, message));
                }
                Err((_, e)) => return Err(failed(e.into())),
            }
        }
    }

    /// Whether the path still leads to the directory that is locked.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        is_at(&self.held, path).unwrap_or(false)
    }
}

/// Whether the path still leads to this directory.
fn is_at(directory: &File, path: &Path) -> io::Result<bool> {
    let ours = directory.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}
