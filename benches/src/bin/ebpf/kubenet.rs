//! A datapath, and what can be found out about its programs and maps through the kernel.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use aya::{
    maps::MapInfo,
    programs::{ProgramFd, ProgramInfo, loaded_programs},
};
use futures::executor::block_on;
use kubenet_benches::Failure;
use kubenet_core::{
    datapath::{ApplyReport, Datapath},
    route::{RouteDelta, RouteTable},
};
use kubenet_ebpf::{EbpfBuilder, EbpfDatapath, MapSizes, Metric};
use kubenet_testkit::lab::{Lab, Node};

/// Names of programs as the kernel keeps them: 15 characters.
pub(crate) const FROM_POD: &str = "kubenet_from_po";
pub(crate) const FROM_EXTERNAL: &str = "kubenet_from_ex";
pub(crate) const XDP: &str = "kubenet_xdp";

/// A datapath on node-a of a lab.
pub(crate) struct Kubenet {
    datapath: EbpfDatapath,
    /// Size of one of its maps, which no other datapath of this machine has: how we know it again.
    mark: u32,
}

impl Kubenet {
    /// Loads it. Nothing is attached before the first table.
    pub(crate) fn start(
        lab: &Lab,
        mut sizes: MapSizes,
        more: impl FnOnce(EbpfBuilder) -> EbpfBuilder,
    ) -> Result<Self, Failure> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mark = 1_000_000 + 64 * (std::process::id() % (1 << 22)) + NEXT.fetch_add(1, Ordering::Relaxed);
        sizes.source_ranges = mark.min(1 << 26);
        let node = lab.node(Node::A);
        let builder = EbpfDatapath::builder()
            .network_namespace(node.netns().path())
            .external_interface(node.external_interface())
            .map_sizes(sizes);
        Ok(Self { datapath: more(builder).build()?, mark })
    }

    /// Programs all of a table.
    pub(crate) fn replace(&self, table: Arc<RouteTable>) -> Result<Duration, Failure> {
        let begin = Instant::now();
        let report = block_on(self.datapath.replace(table))?;
        let took = begin.elapsed();
        check(&report)?;
        Ok(took)
    }

    /// Applies a change.
    pub(crate) fn apply(&self, delta: RouteDelta) -> Result<Duration, Failure> {
        let delta = Arc::new(delta);
        let begin = Instant::now();
        let report = block_on(self.datapath.apply(delta))?;
        let took = begin.elapsed();
        check(&report)?;
        Ok(took)
    }

    /// Known flows that were translated, and new ones, since the start.
    pub(crate) fn counted(&self) -> Result<[u64; 2], Failure> {
        let metrics = block_on(self.datapath.metrics())?;
        Ok([Metric::Forwarded, Metric::NewFlow].map(|metric| metrics.get(&metric).copied().unwrap_or(0)))
    }

    /// One of its programs, by the kernel's name for it.
    pub(crate) fn program(&self, name: &str) -> Result<ProgramFd, Failure> {
        Ok(self.loaded(name)?.fd()?)
    }

    /// What the kernel says of it.
    pub(crate) fn loaded(&self, name: &str) -> Result<ProgramInfo, Failure> {
        let found = self.programs()?.into_iter().find(|program| program.name() == name.as_bytes());
        found.ok_or_else(|| format!("no program {name} of this datapath is loaded").into())
    }

    /// Bytes that maps hold in the kernel: those that the programs use, and all others that this process has open.
    pub(crate) fn memory(&self) -> Result<u64, Failure> {
        let mut open = Vec::new();
        for program in self.programs()? {
            for id in program.map_ids()?.unwrap_or_default() {
                open.push(MapInfo::from_id(id)?.fd()?);
            }
        }
        let mut maps = BTreeMap::new();
        for file in fs::read_dir("/proc/self/fdinfo")?.flatten() {
            // The directory's own is closed by now.
            maps.extend(fs::read_to_string(file.path()).ok().as_deref().and_then(memlock));
        }
        if maps.is_empty() {
            return Err("the kernel does not tell the memory of maps".into());
        }
        drop(open);
        Ok(maps.into_values().sum())
    }

    fn programs(&self) -> Result<Vec<ProgramInfo>, Failure> {
        let mut ours = Vec::new();
        for program in loaded_programs() {
            // Others come and go.
            let Ok(program) = program else { continue };
            if !program.name().starts_with(b"kubenet_") {
                continue;
            }
            let maps = program.map_ids().ok().flatten().unwrap_or_default();
            let marked = |map: MapInfo| map.name() == b"source_ranges4" && map.max_entries() == self.mark;
            if maps.into_iter().filter_map(|id| MapInfo::from_id(id).ok()).any(marked) {
                ours.push(program);
            }
        }
        Ok(ours)
    }
}

/// Number and memory of a map, from what the kernel says of its open file.
fn memlock(fdinfo: &str) -> Option<(u32, u64)> {
    let field = |name: &str| Some(fdinfo.lines().find_map(|line| line.strip_prefix(name))?.trim());
    Some((field("map_id:")?.parse().ok()?, field("memlock:")?.parse().ok()?))
}

fn check(report: &ApplyReport) -> Result<(), Failure> {
    match report.failed.first() {
        None => Ok(()),
        Some(first) => {
            let count = report.failed.len();
            Err(format!("{count} routes could not be served, the first for: {}", first.error).into())
        }
    }
}
