//! Removal of labs: on drop, on signals, and of those whose process died.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

use super::{LabError, cgroup, ip};

pub(super) const PREFIX: &str = "kubenet-";
const NETNS_DIR: &str = "/run/netns";
/// Marks of labs that outlive their process on purpose.
const KEPT_DIR: &str = "/run/kubenet-lab";

/// Namespaces of the live labs of this process, by lab.
static LIVE: Mutex<BTreeMap<String, BTreeSet<String>>> = Mutex::new(BTreeMap::new());

/// A new id, unique among all live processes: `<pid in hex>n<counter>`.
pub(super) fn new_id() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    format!("{:x}n{}", process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// The namespaces of one lab. Every name is noted here before it is created. Drop removes them all.
#[derive(Debug)]
pub(super) struct Registration {
    id: String,
}

impl Registration {
    pub(super) fn new(id: &str) -> Self {
        watch_signals();
        LIVE.lock().insert(id.to_owned(), BTreeSet::new());
        Self { id: id.to_owned() }
    }

    /// Creates namespaces that will be removed with the lab.
    pub(super) fn create(&self, names: &[String]) -> Result<(), LabError> {
        // The lock is held until they exist, so that a signal finds all of them.
        let mut live = LIVE.lock();
        live.entry(self.id.clone()).or_default().extend(names.iter().cloned());
        let lines: String = names.iter().map(|name| format!("netns add {name}\n")).collect();
        ip::batch(None, &lines)
    }

    pub(super) fn remove(&self, name: &str) {
        let mut live = LIVE.lock();
        if let Some(names) = live.get_mut(&self.id) {
            names.remove(name);
        }
        remove_namespaces([name]);
    }

    /// From now on neither drop, signals nor later labs remove it.
    pub(super) fn keep(&self) -> Result<(), LabError> {
        let mark = kept_mark(&self.id);
        fs::create_dir_all(KEPT_DIR)
            .and_then(|()| fs::write(&mark, ""))
            .map_err(LabError::io(format!("mark the lab as kept in {}", mark.display())))?;
        LIVE.lock().remove(&self.id);
        Ok(())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let names = LIVE.lock().remove(&self.id);
        remove_namespaces(names.iter().flatten().map(String::as_str));
    }
}

/// Removes labs whose process is gone, except the kept ones.
pub(super) fn remove_stale() {
    let names = namespaces().into_iter().filter(|(id, _)| !owner_alive(id) && !kept_mark(id).exists());
    remove_namespaces(names.map(|(_, name)| name).collect::<Vec<_>>().iter().map(String::as_str));
}

/// Removes labs that [`Lab::keep`](super::Lab::keep) left behind and whose process is gone.
pub fn remove_kept_labs() {
    let Ok(marks) = fs::read_dir(KEPT_DIR) else { return };
    for mark in marks.flatten() {
        if mark.file_name().to_str().is_some_and(|id| !owner_alive(id)) {
            let _ = fs::remove_file(mark.path());
        }
    }
    let _ = fs::remove_dir(KEPT_DIR);
    remove_stale();
}

pub(super) fn kept_mark(id: &str) -> PathBuf {
    Path::new(KEPT_DIR).join(id)
}

/// All labs' namespaces on this machine, with the id of the lab.
fn namespaces() -> Vec<(String, String)> {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|name| {
            let (id, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
            owner(id)?;
            Some((id.to_owned(), name))
        })
        .collect()
}

/// The process that made the lab of this id; `None` when it is no lab's id.
fn owner(id: &str) -> Option<u32> {
    let (pid, counter) = id.split_once('n')?;
    counter.parse::<u32>().ok()?;
    u32::from_str_radix(pid, 16).ok()
}

fn owner_alive(id: &str) -> bool {
    owner(id).is_none_or(|pid| Path::new("/proc").join(pid.to_string()).exists())
}

fn remove_namespaces<'a>(names: impl IntoIterator<Item = &'a str>) {
    let lines: String = names
        .into_iter()
        .filter(|name| Path::new(NETNS_DIR).join(name).exists())
        .map(|name| format!("netns del {name}\n"))
        .collect();
    if lines.is_empty() {
        return;
    }
    if ip::batch(None, &lines).is_ok() {
        return;
    }
    // A batch stops at its first failure, such as a namespace that another process removed meanwhile.
    for line in lines.lines() {
        let name = line.trim_start_matches("netns del ");
        if let Err(error) = ip::batch(None, line)
            && Path::new(NETNS_DIR).join(name).exists()
        {
            eprintln!("kubenet lab: {name} is left behind: {error}");
        }
    }
}

/// On SIGINT and SIGTERM all labs of this process are removed, then it exits with 128 + signal.
fn watch_signals() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else { return };
        let watch = move || {
            if let Some(signal) = signals.forever().next() {
                // Held to the end: whoever fails because its lab is gone waits for the exit when it drops the lab,
                // and cannot end the process with a status of its own first.
                let mut live = LIVE.try_lock_for(Duration::from_secs(2));
                if let Some(live) = &mut live {
                    let names: Vec<_> = std::mem::take(&mut **live).into_values().flatten().collect();
                    remove_namespaces(names.iter().map(String::as_str));
                }
                cgroup::abandon();
                process::exit(128 + signal);
            }
        };
        // Without the thread the next start removes what a signal leaves behind.
        let _ = thread::Builder::new().name("lab-signals".into()).spawn(watch);
    });
}
