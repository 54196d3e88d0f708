//! One cgroup per process for all its labs, so that hooks on it see the clients and nothing else of the
//! machine.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use parking_lot::Mutex;

const PREFIX: &str = "kubenet-";

struct Shared {
    users: usize,
    path: PathBuf,
    /// Where this process was before.
    home: PathBuf,
    /// A mount of our own, when the machine had none.
    mounted: Option<PathBuf>,
}

static SHARED: Mutex<Option<Shared>> = Mutex::new(None);

/// A lab's share in the process's cgroup.
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Joins the cgroup of this process, and makes it for the first lab.
    pub(super) fn join() -> io::Result<Self> {
        let mut shared = SHARED.lock();
        if let Some(shared) = shared.as_mut() {
            shared.path.parent().into_iter().for_each(remove_stale);
            shared.users += 1;
            return Ok(Self { path: shared.path.clone() });
        }
        let (root, mounted) = match find_mount()? {
            Some(root) => (root, None),
            None => {
                let own = std::env::temp_dir().join(format!("{PREFIX}{}-cgroup2", process::id()));
                fs::create_dir_all(&own)?;
                mount(Some("none"), &own, Some("cgroup2"), MsFlags::empty(), None::<&str>)?;
                (own.clone(), Some(own))
            }
        };
        remove_stale(&root);
        let home = root.join(outside_of_labs(&current()?));
        let path = root.join(format!("{PREFIX}{}", process::id()));
        match fs::create_dir(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        if let Err(e) = move_into(&path) {
            let _ = fs::remove_dir(&path);
            return Err(e);
        }
        *shared = Some(Shared { users: 1, path: path.clone(), home, mounted });
        Ok(Self { path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let mut shared = SHARED.lock();
        let last = match shared.as_mut() {
            Some(shared) => {
                shared.users -= 1;
                shared.users == 0
            }
            None => false,
        };
        if last && let Some(shared) = shared.take() {
            dissolve(&shared);
        }
    }
}

/// Removes the cgroup whoever uses it: the process ends on a signal.
pub(super) fn abandon() {
    // The lock may be held by the very code that the signal interrupts on another thread; do not wait long.
    if let Some(mut shared) = SHARED.try_lock_for(std::time::Duration::from_secs(1))
        && let Some(shared) = shared.take()
    {
        dissolve(&shared);
    }
}

/// Moves this process back and removes the cgroup. What fails is left to [`remove_stale`].
fn dissolve(shared: &Shared) {
    // Where this process came from may be gone by now; the root never is.
    if move_into(&shared.home).is_err()
        && let Some(root) = shared.path.parent()
    {
        let _ = move_into(root);
    }
    for _ in 0..50 {
        match fs::remove_dir(&shared.path) {
            // Threads that just ended are counted for a moment.
            Err(e) if e.raw_os_error() == Some(nix::libc::EBUSY) => {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            _ => break,
        }
    }
    if let Some(own) = &shared.mounted {
        let _ = umount2(own, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(own);
    }
}

fn move_into(cgroup: &Path) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), process::id().to_string())
}

fn find_mount() -> io::Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let path = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
    }))
}

/// The cgroup v2 of this process, as a path below the mount.
fn current() -> io::Result<String> {
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    let ours = groups.lines().find_map(|line| line.strip_prefix("0::"));
    ours.map(str::to_owned).ok_or_else(|| io::Error::other("this process is in no cgroup of version 2"))
}

/// The same without the cgroups of labs: a child is born in that of its parent's lab, which will be gone.
fn outside_of_labs(path: &str) -> PathBuf {
    path.split('/').take_while(|part| !part.starts_with(PREFIX)).collect()
}

/// Removes cgroups of processes that are gone.
fn remove_stale(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.strip_prefix(PREFIX)).and_then(|pid| pid.parse::<u32>().ok());
        if let Some(pid) = pid
            && !Path::new("/proc").join(pid.to_string()).exists()
        {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_is_never_in_another_lab() {
        for (path, home) in [("/", ""), ("/kubenet-7", ""), ("/a/b", "a/b"), ("/a/kubenet-7/c", "a")] {
            assert_eq!(outside_of_labs(path), Path::new(home), "{path}");
        }
    }
}
