//! A BPF file system of a test's own.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use aya::{maps::MapInfo, maps::loaded_maps, programs::loaded_programs};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

const PREFIX: &str = "kubenet-bpffs-";

/// Mounted until it is dropped. What is pinned in it goes with it.
pub struct Bpffs(PathBuf);

impl Bpffs {
    pub fn mount() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        remove_stale();
        let name = format!("{PREFIX}{}-{}", process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        Self(path)
    }

    /// Mounts another one in its place, which was unmounted.
    pub fn mount_again(&self) {
        mount(Some("bpf"), &self.0, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A directory for pins, which is not made here.
    pub fn pin_dir(&self) -> PathBuf {
        self.0.join("kubenet-test")
    }

    /// Mounts it again, read-only or not.
    pub fn set_read_only(&self, read_only: bool) {
        let flags = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() } | MsFlags::MS_REMOUNT;
        mount(None::<&str>, &self.0, None::<&str>, flags, None::<&str>).unwrap();
    }

    /// Every directory and pin in it, but for what the kernel itself puts there.
    pub fn tree(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.0.clone()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_none_or(|extension| extension != "debug") {
                    if path.is_dir() {
                        open.push(path.clone());
                    }
                    found.push(path);
                }
            }
        }
        found.sort_unstable();
        found
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.0);
    }
}

/// The directory of maps below one of pins, whatever its version.
pub fn maps_in(pins: &Path) -> PathBuf {
    let paths = fs::read_dir(pins).unwrap().map(|entry| entry.unwrap().path());
    paths.into_iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with('v')).unwrap()
}

/// Of test processes that were killed.
fn remove_stale() {
    for entry in fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            let _ = umount2(&entry.path(), MntFlags::MNT_DETACH);
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Ids of maps and programs that are in the kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Objects {
    pub maps: Vec<u32>,
    pub programs: Vec<u32>,
}

impl Objects {
    /// The maps that are pinned below a directory, and the programs that use them.
    pub fn of(pins: &Path) -> Self {
        let maps: Vec<u32> = fs::read_dir(maps_in(pins))
            .unwrap()
            .map(|entry| MapInfo::from_pin(entry.unwrap().path()).unwrap().id())
            .collect();
        let uses = |program: &aya::programs::ProgramInfo| {
            program.map_ids().ok().flatten().is_some_and(|ids| ids.iter().any(|id| maps.contains(id)))
        };
        // Those of other tests come and go.
        let programs = loaded_programs().flatten().filter(uses).map(|program| program.id()).collect();
        Self { maps, programs }
    }

    /// Those of them that are still there.
    pub fn left(&self) -> Self {
        let maps = loaded_maps().flatten().map(|map| map.id()).filter(|id| self.maps.contains(id)).collect();
        let programs = loaded_programs().flatten().map(|program| program.id());
        Self { maps, programs: programs.filter(|id| self.programs.contains(id)).collect() }
    }
}
