//! Where maps and links outlive the process: a directory of a BPF file system.
//!
//! ```text
//! <pin_dir>/            locked by the process that uses it
//!     v3/               the maps, in the layout of that version; made whole before it gets this name
//!         services4
//!         …
//!     links/            what hangs where: links are of no version, as a program brings its own maps
//!         pod_17_ingress
//!         cgroup_connect4
//!     filters/          the programs of filters, which the kernel keeps by itself, by their ids
//!         142
//! ```

mod bpffs;
mod lock;
mod shape;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use kubenet_core::datapath::{DatapathError, ErrorKind};

use self::lock::Lock;
pub(crate) use self::shape::{Shape, check as check_maps, shapes};
use crate::{
    error::{caused, error},
    layout::VERSION,
};

const LINKS: &str = "links";
const FILTERS: &str = "filters";
/// Of what is not complete yet. A dot would be nicer, but the file system reserves it.
const NEW: &str = "_new";

/// A directory for pins that is locked.
#[derive(Debug)]
pub(crate) struct Pins {
    path: PathBuf,
    /// Ends with the process, however that ends.
    lock: Lock,
}

impl Pins {
    /// Whether the directory can hold pins. Makes it where it is missing.
    pub(crate) fn check(path: &Path) -> Result<(), DatapathError> {
        bpffs::check(path)
    }

    /// Takes the lock of a directory, and checks what it holds.
    pub(crate) fn open(path: &Path) -> Result<Self, DatapathError> {
        let pins = Self::lock(path)?;
        pins.check_contents()?;
        Ok(pins)
    }

    /// Takes the lock of a directory, whatever it holds.
    pub(crate) fn lock(path: &Path) -> Result<Self, DatapathError> {
        Ok(Self { path: path.to_owned(), lock: Lock::take(path)? })
    }

    /// Whether the directory that is locked still stands at its path.
    pub(crate) fn is_there(&self) -> bool {
        self.lock.is_at(&self.path)
    }

    /// Makes the directory again, which somebody removed, or hid under another file system, and takes its lock.
    pub(crate) fn make_again(&mut self) -> Result<(), DatapathError> {
        Self::check(&self.path)?;
        let lock = Lock::take(&self.path)?;
        if !names(&self.path).map_err(|e| self.failed("read", &self.path, e))?.is_empty() {
            let message = format!(
                "pin_dir: {}: is not the directory that this datapath had, and holds what another one pinned",
                self.path.display()
            );
            return Err(error("build", ErrorKind::Conflict, message));
        }
        self.lock = lock;
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of the maps.
    pub(crate) fn maps(&self) -> PathBuf {
        maps_in(&self.path)
    }

    fn new_maps(&self) -> PathBuf {
        self.path.join(format!("v{VERSION}{NEW}"))
    }

    /// Whether maps of this version are there.
    pub(crate) fn has_maps(&self) -> bool {
        self.maps().is_dir()
    }

    /// An empty directory to pin new maps in.
    pub(crate) fn begin_maps(&self) -> Result<PathBuf, DatapathError> {
        let path = self.new_maps();
        // Of a process that ended before its maps were complete.
        remove_tree(&path).map_err(|e| self.failed("remove", &path, e))?;
        fs::create_dir(&path).map_err(|e| self.failed("make", &path, e))?;
        Ok(path)
    }

    /// All maps are there: from now on they are adopted.
    pub(crate) fn finish_maps(&self) -> Result<(), DatapathError> {
        let (from, to) = (self.new_maps(), self.maps());
        fs::rename(&from, &to).map_err(|e| self.failed("make", &to, e))
    }

    /// New maps are not wanted after all.
    pub(crate) fn abandon_maps(&self) {
        if let Err(error) = remove_tree(&self.new_maps()) {
            tracing::warn!(%error, path = %self.path.display(), "maps that nobody uses stay pinned");
        }
        self.remove_if_empty();
    }

    /// Removes what is pinned, and keeps the directory.
    pub(crate) fn discard(&self) -> io::Result<()> {
        // Links first: no packet must meet a program without maps.
        remove_tree(&self.path.join(LINKS))?;
        remove_tree(&self.path.join(FILTERS))?;
        let (from, to) = (self.maps(), self.new_maps());
        remove_tree(&to)?;
        // Whole or not there at all, wherever this process ends.
        or_missing(fs::rename(from, &to))?;
        remove_tree(&to)
    }

    /// Where a link is pinned.
    pub(crate) fn link(&self, name: &str) -> PathBuf {
        self.path.join(LINKS).join(name)
    }

    /// Where the program of a filter is pinned.
    pub(crate) fn filter(&self, program: u32) -> PathBuf {
        self.path.join(FILTERS).join(program.to_string())
    }

    /// The names of all links. What a process that ended has left half done is done.
    pub(crate) fn links(&self) -> io::Result<Vec<String>> {
        let names = names(&self.path.join(LINKS))?;
        let (new, mut whole): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name.ends_with(NEW));
        for name in new {
            // It hangs already, and takes the place of one that may not any more.
            let finished = name.trim_end_matches(NEW).to_owned();
            fs::rename(self.link(&name), self.link(&finished))?;
            if !whole.contains(&finished) {
                whole.push(finished);
            }
        }
        Ok(whole)
    }

    /// The ids of all programs of filters.
    pub(crate) fn filters(&self) -> io::Result<Vec<u32>> {
        Ok(names(&self.path.join(FILTERS))?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Pins what `pin` pins where it is told, in place of what is there.
    pub(crate) fn put(&self, path: &Path, pin: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        if let Some(parent) = path.parent() {
            make_dir(parent)?;
        }
        let mut new = path.as_os_str().to_owned();
        new.push(NEW);
        let new = PathBuf::from(new);
        remove(&new)?;
        pin(&new)?;
        fs::rename(new, path)
    }

    /// Removes every pin and the directory. Carries on after a failure, and returns all of them.
    pub(crate) fn remove_all(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let mut note = |path: &Path, result: io::Result<()>| {
            if let Err(e) = result {
                failures.push(format!("cannot remove {}: {e}", path.display()));
            }
        };
        note(&self.path, self.discard());
        let others = names(&self.path).unwrap_or_default();
        for path in others.iter().filter(|name| version(name).is_some()).map(|name| self.path.join(name)) {
            note(&path, remove_tree(&path));
        }
        note(&self.path, or_missing(fs::remove_dir(&self.path)));
        failures
    }

    /// Removes the directory if nothing is pinned there.
    fn remove_if_empty(&self) {
        for name in [LINKS, FILTERS] {
            drop(fs::remove_dir(self.path.join(name)));
        }
        drop(fs::remove_dir(&self.path));
    }

    /// Only what this library makes, and no maps of another version.
    fn check_contents(&self) -> Result<(), DatapathError> {
        let here = self.path.display();
        for name in names(&self.path).map_err(|e| self.failed("read", &self.path, e))? {
            match version(&name) {
                Some(VERSION) => {}
                // Never complete, or already gone.
                Some(_) if name.ends_with(NEW) => {}
                Some(other) => {
                    let message = format!(
                        "pin_dir: {here}/{name}: holds maps of layout {other}, and this library has layout \
                         {VERSION}: they still forward; go on with the library that made them, or remove them \
                         with kubenet_ebpf::remove_pins"
                    );
                    return Err(error("build", ErrorKind::Unsupported, message));
                }
                None if name == LINKS || name == FILTERS => {}
                None => {
                    let message =
                        format!("pin_dir: {here}/{name}: is none of ours: choose a directory of its own");
                    return Err(error("build", ErrorKind::InvalidInput, message));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn failed(&self, what: &str, path: &Path, e: io::Error) -> DatapathError {
        let kind = match e.kind() {
            io::ErrorKind::PermissionDenied => ErrorKind::Permission,
            _ => ErrorKind::Unavailable,
        };
        caused("build", kind, format!("pin_dir: cannot {what} {}", path.display()), e)
    }
}

/// The maps of this version in a directory of pins.
pub(crate) fn maps_in(path: &Path) -> PathBuf {
    path.join(format!("v{VERSION}"))
}

/// The version of a directory of maps, whole or not.
fn version(name: &str) -> Option<u32> {
    name.strip_prefix('v')?.trim_end_matches(NEW).parse().ok()
}

/// The names in a directory; none where it is missing.
fn names(path: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn make_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Removes a pin; one that is not there is no error.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    or_missing(fs::remove_file(path))
}

fn remove_tree(path: &Path) -> io::Result<()> {
    or_missing(fs::remove_dir_all(path))
}

fn or_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_maps_says_its_version() {
        assert_eq!(version("v3"), Some(3));
        assert_eq!(version("v12_new"), Some(12));
        assert_eq!(["links", "v", "vx", "3", "v-1"].map(version), [None; 5]);
    }
}
