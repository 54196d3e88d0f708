//! Whether a directory can hold pins.

use std::{fs, io, path::Path};

use kubenet_core::datapath::{DatapathError, ErrorKind};
use nix::sys::{
    statfs::{BPF_FS_MAGIC, statfs},
    statvfs::{FsFlags, statvfs},
};

use crate::error::{caused, error};

/// Says what is wrong with the directory and what helps. Makes the last part of the path where it is missing.
pub(super) fn check(path: &Path) -> Result<(), DatapathError> {
    let here = path.display();
    let Some(parent) = path.parent().filter(|_| path.is_absolute()) else {
        let message = format!("pin_dir: {here}: must be an absolute path with a parent");
        return Err(error("build", ErrorKind::InvalidInput, message));
    };
    if path.file_name().is_none_or(|name| name.to_string_lossy().contains('.')) {
        let message =
            format!("pin_dir: {here}: its name must not have dots, which a BPF file system reserves");
        return Err(error("build", ErrorKind::InvalidInput, message));
    }
    // Where it would be made.
    let place = if path.exists() { path } else { parent };
    let remedy = format!(
        "mount one with `mount -t bpf bpf {}`, or choose a directory of one that is mounted, or do without pins",
        parent.display()
    );
    let kind = statfs(place).map_err(|e| {
        let message = format!("pin_dir: {}: cannot be read: {remedy}", place.display());
        caused("build", ErrorKind::Unavailable, message, io::Error::from(e))
    })?;
    if kind.filesystem_type() != BPF_FS_MAGIC {
        let message = format!("pin_dir: {}: is not on a BPF file system: {remedy}", place.display());
        return Err(error("build", ErrorKind::Unavailable, message));
    }
    let read_only = statvfs(place).is_ok_and(|found| found.flags().contains(FsFlags::ST_RDONLY));
    if read_only {
        let message = format!(
            "pin_dir: {}: is mounted read-only: mount it read-write (in a container, not `ro`), or do without pins",
            place.display()
        );
        return Err(error("build", ErrorKind::Unavailable, message));
    }
    match fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            let kind = match e.kind() {
                io::ErrorKind::PermissionDenied => ErrorKind::Permission,
                _ => ErrorKind::Unavailable,
            };
            Err(caused("build", kind, format!("pin_dir: {here}: cannot be made"), e))
        }
        _ => Ok(()),
    }
}
