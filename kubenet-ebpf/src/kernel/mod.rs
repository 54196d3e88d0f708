//! The part that touches the kernel. All of it runs on the datapath's own thread.

mod attach;
mod bridge;
mod flows;
mod maps;
mod mmap;
mod netns;
mod node;
mod probe;
mod read;
mod sys;

use std::{
    collections::HashSet,
    net::IpAddr,
    ops::RangeInclusive,
    path::PathBuf,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use aya::{Ebpf, EbpfLoader, util::KernelVersion};
use ipnet::IpNet;
use kubenet_core::{
    datapath::{ApplyReport, Capabilities, DatapathError, DatapathEvent, DrainStatus, ErrorKind, EventHub},
    model::IpFamily,
    route::{NodeRouting, Revision, Route, RouteDelta, RouteTable},
};
use nix::libc;

pub(crate) use self::probe::probe;
use self::{attach::Attachments, maps::Maps};
use crate::{
    AttachMode, EbpfBuilder, MapSizes, Metric, Metrics,
    error::{caused, error},
    layout::{self, CONFIG_DRAINING},
    names::encode_name,
    program::{Outcome, Tables, program},
    rest::Now,
    state::{State, cluster_ip, source_ranges},
};

static OBJECT: &[u8] = aya::include_bytes_aligned!("../kubenet.bpf.o");

/// A loaded object and what was done with it.
pub(crate) struct Engine {
    // First of all: detaches before programs and maps are closed.
    attachments: Attachments,
    ebpf: Ebpf,
    maps: Maps,
    state: State,
    sizes: MapSizes,
    capabilities: Capabilities,
    events: EventHub,
    started: Instant,
}

impl Engine {
    /// Enters the namespace, checks the kernel and loads. Nothing is attached.
    pub(crate) fn start(
        builder: EbpfBuilder,
        capabilities: Capabilities,
        events: EventHub,
    ) -> Result<Self, DatapathError> {
        let EbpfBuilder {
            network_namespace,
            external_interfaces,
            pod_interfaces,
            cgroup,
            sizes,
            snat_ports,
            attach_mode,
        } = builder;
        if let Some(path) = &network_namespace {
            netns::enter(path)?;
        }
        let found = probe()?;
        let netns_cookie = netns_cookie(cgroup.as_ref())?;
        let sockets = cgroup.is_some();
        let tcx = match attach_mode {
            AttachMode::Auto => found.tcx,
            AttachMode::Tcx if !found.tcx => {
                let message = format!("attach_mode: kernel {} has no TCX: it came with 6.6", found.kernel);
                return Err(error("build", ErrorKind::Unsupported, message));
            }
            AttachMode::Tcx => true,
            AttachMode::Clsact => false,
        };
        let mut attachments = Attachments::new(external_interfaces, cgroup, tcx, events.clone())?;
        let mut ebpf = load(&sizes, found.connect_refused)?;
        attach::load(&mut ebpf, sockets)?;
        for name in &pod_interfaces {
            attachments.attach_pod(&mut ebpf, name)?;
        }
        let maps = Maps::take(&mut ebpf)?;
        let own = snat_slice(&snat_ports, INSTANCES.fetch_add(1, Ordering::Relaxed));
        maps.set_config(&layout::Config {
            netns_cookie,
            snat_port_min: *own.start(),
            snat_port_max: *own.end(),
            snat_wide_min: *snat_ports.start(),
            snat_wide_max: *snat_ports.end(),
            ..layout::Config::default()
        });
        tracing::debug!(?found, "loaded");
        Ok(Self {
            attachments,
            ebpf,
            maps,
            state: State::new(sizes.clone()),
            sizes,
            capabilities,
            events,
            started: Instant::now(),
        })
    }

    /// [`Datapath::replace`](kubenet_core::datapath::Datapath::replace).
    pub(crate) fn replace(&mut self, table: &RouteTable) -> Result<ApplyReport, DatapathError> {
        const OPERATION: &str = "replace";
        let begin = Instant::now();
        self.maps.operation = OPERATION;
        self.check_node(OPERATION, table.node())?;
        self.write_node(table.node())?;
        self.repair()?;
        let work = self.state.diff(table);
        let outcome = self.program(OPERATION, work);
        self.state.revision = table.revision();
        self.set_draining(false);
        self.attachments.ensure(&mut self.ebpf, OPERATION)?;
        Ok(self.report(outcome, begin))
    }

    /// [`Datapath::apply`](kubenet_core::datapath::Datapath::apply).
    pub(crate) fn apply(&mut self, delta: &RouteDelta) -> Result<ApplyReport, DatapathError> {
        const OPERATION: &str = "apply";
        let begin = Instant::now();
        self.maps.operation = OPERATION;
        if delta.base != self.state.revision {
            let message =
                format!("the delta starts from {}, the kernel is at {}", delta.base, self.state.revision);
            return Err(error(OPERATION, ErrorKind::Conflict, message));
        }
        if let Some(node) = &delta.node {
            self.check_node(OPERATION, node)?;
            self.write_node(node)?;
        }
        let state = &self.state;
        let upserts = delta
            .upserts
            .iter()
            .filter(|route| state.get(&route.frontend).is_none_or(|p| p.route != **route))
            .map(Arc::clone)
            .collect();
        let removals = delta.removals.iter().filter(|f| state.get(f).is_some()).copied().collect();
        let outcome = self.program(OPERATION, (upserts, removals));
        self.state.revision = delta.revision;
        // Later, only `replace` looks at every interface: the cost of a change is that of what changes.
        if !self.attachments.is_active() {
            self.attachments.ensure(&mut self.ebpf, OPERATION)?;
        }
        Ok(self.report(outcome, begin))
    }

    fn check_node(&self, operation: &'static str, node: &NodeRouting) -> Result<(), DatapathError> {
        self.capabilities.check_node(node).map_err(|why| error(operation, ErrorKind::Unsupported, why))
    }

    /// [`Datapath::read`](kubenet_core::datapath::Datapath::read). Where a program does not hang any more,
    /// packets pass the maps by: no route is in effect, and an audit finds that all are missing.
    pub(crate) fn read(&mut self) -> Result<RouteTable, DatapathError> {
        self.maps.operation = "read";
        let missing = self.attachments.missing();
        if missing.is_empty() {
            return read::read(&self.maps, self.state.revision);
        }
        tracing::warn!("no longer attached: {}", missing.join(", "));
        Ok(RouteTable::new(self.state.revision, node::read(&self.maps)?, []))
    }

    /// [`Datapath::drain`](kubenet_core::datapath::Datapath::drain).
    pub(crate) fn drain(&mut self) -> Result<DrainStatus, DatapathError> {
        self.maps.operation = "drain";
        if self.set_draining(true) {
            self.events.emit(&DatapathEvent::Draining);
        }
        Ok(DrainStatus { flows: flows::count(&self.maps)? })
    }

    /// Counts since the start.
    pub(crate) fn metrics(&mut self) -> Result<Metrics, DatapathError> {
        self.maps.operation = "metrics";
        let indexed = (0..).zip(Metric::ALL);
        indexed.map(|(index, metric)| Ok((metric, self.maps.metric(index)?))).collect()
    }

    /// Attaches the programs to a pod's interface.
    pub(crate) fn attach_pod(&mut self, name: &str) -> Result<(), DatapathError> {
        self.attachments.attach_pod(&mut self.ebpf, name)
    }

    /// Detaches them.
    pub(crate) fn detach_pod(&mut self, name: &str) -> Result<(), DatapathError> {
        self.attachments.detach_pod(name)
    }

    /// Removes every trace, and returns what failed.
    pub(crate) fn remove(mut self) -> Vec<String> {
        self.attachments.detach_all()
    }

    fn now(&self) -> Now {
        self.started.elapsed()
    }

    fn write_node(&mut self, node: &Arc<NodeRouting>) -> Result<(), DatapathError> {
        node::write(&mut self.maps, node, &self.sizes)?;
        self.state.node = Arc::clone(node);
        Ok(())
    }

    fn program(
        &mut self,
        operation: &'static str,
        work: (Vec<Arc<Route>>, Vec<kubenet_core::route::Frontend>),
    ) -> Outcome {
        let now = self.now();
        program(&mut self.state, &mut self.maps, &self.capabilities, operation, work, now)
    }

    /// True when the flag was set the other way.
    fn set_draining(&mut self, draining: bool) -> bool {
        let mut config = self.maps.config();
        let before = config.flags;
        if draining {
            config.flags |= CONFIG_DRAINING;
        } else {
            config.flags &= !CONFIG_DRAINING;
        }
        self.maps.set_config(&config);
        config.flags != before
    }

    fn report(&self, outcome: Outcome, begin: Instant) -> ApplyReport {
        let revision: Revision = self.state.revision;
        for failure in &outcome.failed {
            self.events.emit(&DatapathEvent::RouteFailed {
                frontend: failure.frontend,
                service_port: failure.service_port.clone(),
                error: failure.error.clone(),
            });
        }
        self.events.emit(&DatapathEvent::Applied { revision });
        let mut report = ApplyReport::new(revision);
        report.upserted = outcome.upserted;
        report.removed = outcome.removed;
        report.failed = outcome.failed;
        report.took = begin.elapsed();
        report
    }

    /// Puts back what is programmed where somebody else changed the maps. Writes of what is there already
    /// change nothing that a packet can see.
    fn repair(&mut self) -> Result<(), DatapathError> {
        for family in IpFamily::ALL {
            for (handle, backend) in self.state.backends(family).iter() {
                self.maps.write_backend(family, handle, backend);
            }
        }
        let mut strangers = Vec::new();
        let services: std::collections::HashMap<_, _> =
            self.maps.services(&mut strangers)?.into_iter().collect();
        let names = self.maps.names()?;
        for programmed in self.state.routes() {
            let sets = [Some(&programmed.internal), programmed.external.as_ref()];
            for set in sets.into_iter().flatten() {
                self.maps.write_slots(set.range.base, set.words());
            }
        }
        let mut drift = strangers;
        self.repair_sources(&mut drift)?;
        self.repair_cluster_ips(&mut drift)?;
        let mut lost = Vec::new();
        for programmed in self.state.routes() {
            let route = &programmed.route;
            if let Ok(name) = encode_name(route)
                && names.get(&programmed.id) != Some(&name)
            {
                drift.push(format!("the name of {}", route.service_port));
                self.maps.write_name(programmed.id, &name)?;
            }
            let service = programmed.service();
            if services.get(&route.frontend) != Some(&service) {
                drift.push(format!("the entry of {}", route.frontend));
                if self.maps.write_service(&route.frontend, &service).is_err() {
                    lost.push(route.frontend);
                }
            }
        }
        for frontend in services.keys().filter(|f| self.state.get(f).is_none()) {
            drift.push(format!("a foreign entry for {frontend}"));
            self.maps.remove_service(frontend)?;
        }
        // What could not be put back is written from scratch, and reported when that fails.
        for frontend in lost {
            let now = self.now();
            // Its backends and its name are cleaned from the maps with the next change of their ids.
            let _retired = self.state.remove(&frontend, now);
        }
        if !drift.is_empty() {
            let detail = format!("somebody changed the maps: put right: {}", drift.join(", "));
            self.events.emit(&DatapathEvent::Drift { detail });
        }
        Ok(())
    }
}

impl Engine {
    fn repair_cluster_ips(&mut self, drift: &mut Vec<String>) -> Result<(), DatapathError> {
        let wanted: HashSet<IpAddr> = self.state.routes().filter_map(|p| cluster_ip(&p.route)).collect();
        let found = self.maps.cluster_ips()?;
        for ip in wanted.difference(&found) {
            drift.push(format!("the cluster IP {ip}"));
            self.maps.write_cluster_ip(*ip)?;
        }
        for ip in found.difference(&wanted) {
            drift.push(format!("a foreign cluster IP {ip}"));
            self.maps.remove_cluster_ip(*ip)?;
        }
        Ok(())
    }

    /// Ranges first, before an entry that was lost says that they count.
    fn repair_sources(&mut self, drift: &mut Vec<String>) -> Result<(), DatapathError> {
        let wanted: HashSet<(u32, IpNet)> = self
            .state
            .routes()
            .flat_map(|p| source_ranges(&p.route).iter().map(|cidr| (p.id, *cidr)))
            .collect();
        let found: HashSet<(u32, IpNet)> = self.maps.sources()?.into_iter().collect();
        for (id, cidr) in wanted.difference(&found) {
            drift.push(format!("the source range {cidr} of service id {id}"));
            self.maps.write_source(*id, cidr)?;
        }
        for (id, cidr) in found.difference(&wanted) {
            drift.push(format!("a foreign source range {cidr} of service id {id}"));
            self.maps.remove_source(*id, cidr)?;
        }
        Ok(())
    }
}

/// Counts the datapaths of this process, from a number that differs from those of other processes.
static INSTANCES: LazyLock<AtomicU32> = LazyLock::new(|| AtomicU32::new(std::process::id()));

/// The part of the ports that an instance prefers.
fn snat_slice(ports: &RangeInclusive<u16>, instance: u32) -> RangeInclusive<u16> {
    const SLICES: u32 = 16;
    let (first, last) = (u32::from(*ports.start()), u32::from(*ports.end()));
    let (count, slice) = (last + 1 - first, instance % SLICES);
    if count < SLICES {
        return ports.clone();
    }
    let border = |slice: u32| first + slice * count / SLICES;
    // Both lie in the range, so that they are ports.
    border(slice) as u16..=(border(slice + 1) - 1) as u16
}

fn netns_cookie(cgroup: Option<&PathBuf>) -> Result<u64, DatapathError> {
    match (netns::cookie(), cgroup) {
        (Ok(cookie), _) => Ok(cookie),
        (Err(_), None) => Ok(0),
        // Without it the programs would translate for every pod whose processes are below the cgroup.
        (Err(e), Some(_)) => {
            let message = "cgroup: the kernel cannot tell network namespaces apart (SO_NETNS_COOKIE, kernel \
                           5.14): leave the setting out";
            Err(caused("build", ErrorKind::Unsupported, message, e))
        }
    }
}

fn load(sizes: &MapSizes, connect_refused: bool) -> Result<Ebpf, DatapathError> {
    /// Spares the routing look-up the search for a neighbour, which `bpf_redirect_neigh` does anyway.
    const BPF_FIB_LOOKUP_SKIP_NEIGH: u32 = 4;
    let have_set_retval = u32::from(connect_refused);
    let have_coarse_clock = u32::from(probe::has_coarse_clock());
    let has_skip_neigh = KernelVersion::current().is_ok_and(|v| v >= KernelVersion::new(6, 3, 0));
    let fib_flags = if has_skip_neigh { BPF_FIB_LOOKUP_SKIP_NEIGH } else { 0 };
    let mut loader = EbpfLoader::new();
    // The programs need no relocation against the kernel's types.
    loader.btf(None);
    loader.override_global("have_set_retval", &have_set_retval, true);
    loader.override_global("have_coarse_clock", &have_coarse_clock, true);
    loader.override_global("fib_flags", &fib_flags, true);
    let names = sizes.service_names();
    for (map, size) in [
        ("services4", sizes.services),
        ("services6", sizes.services),
        ("service_names", names),
        ("cluster_ips4", names),
        ("cluster_ips6", names),
        ("slots", sizes.slots),
        ("backends4", sizes.backends4),
        ("backends6", sizes.backends6),
        ("conntrack4", sizes.connections),
        ("conntrack6", sizes.connections),
        ("affinity4", sizes.affinities),
        ("affinity6", sizes.affinities),
        ("socket_peers4", sizes.sockets),
        ("socket_peers6", sizes.sockets),
        ("node_addrs4", sizes.node_addresses),
        ("node_addrs6", sizes.node_addresses),
        ("pod_cidrs4", sizes.pod_cidrs),
        ("pod_cidrs6", sizes.pod_cidrs),
        ("loopback_nets", sizes.node_addresses),
        ("source_ranges4", sizes.source_ranges),
        ("source_ranges6", sizes.source_ranges),
    ] {
        loader.map_max_entries(map, size);
    }
    loader.load(OBJECT).map_err(|e| {
        let message = "cannot create the BPF maps: check the memory limits and MapSizes";
        caused("build", ErrorKind::Unavailable, message, e)
    })
}

/// Waits for an RCU grace period: every program that ran when it was called has ended. False where the kernel
/// cannot (`nohz_full`).
fn membarrier() -> bool {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes numbers only.
    unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) == 0 }
}

#[cfg(test)]
mod tests;
