//! The part that touches the kernel. All of it runs on the datapath's own thread.

mod addresses;
mod attach;
mod clock;
mod connected;
mod detector;
mod device;
mod events;
mod flows;
mod follow;
mod inspect;
mod link;
mod maps;
mod mmap;
mod netlink;
mod netns;
mod node;
mod object;
#[cfg(test)]
mod oldest;
mod peers;
mod probe;
mod repair;
mod start;
mod sys;
mod tables;
mod traffic;
mod unpin;

use std::{sync::Arc, time::Instant};

use kubenet_core::{
    datapath::{
        ApplyReport, Capabilities, Counters, DatapathError, DatapathEvent, DrainStatus, ErrorKind, EventHub,
    },
    model::IpFamily,
    route::{Frontend, NodeRouting, Revision, Route, RouteDelta, RouteTable},
};
use nix::libc;

use self::{
    attach::{Attachments, Programs},
    events::Reporter,
    maps::Maps,
};
pub(crate) use self::{
    inspect::{Follower, Inspection},
    probe::{cuts_udp_sockets, probe},
    start::open_pins,
    unpin::remove_pins,
};
use crate::{
    MapSizes, Metric, Metrics,
    decode::Snapshot,
    error::error,
    layout::CONFIG_DRAINING,
    program::{Outcome, program},
    rest::Now,
    settle,
    state::{Leftovers, State},
};

/// A loaded object and what was done with it.
pub(crate) struct Engine {
    // First of all: detaches before programs and maps are closed.
    attachments: Attachments,
    /// Where flows are to be reported.
    reporter: Option<Reporter>,
    programs: Programs,
    maps: Maps,
    state: State,
    /// What another process left, until the first table.
    adopted: Option<Adopted>,
    undecided: follow::Undecided,
    /// Whether packets go straight into pods' namespaces.
    redirect_peer: bool,
    sizes: MapSizes,
    capabilities: Capabilities,
    events: EventHub,
    started: Instant,
}

struct Adopted {
    /// The maps as they were found.
    snapshot: Snapshot,
    leftovers: Leftovers,
}

impl Engine {
    /// [`Datapath::replace`](kubenet_core::datapath::Datapath::replace).
    pub(crate) fn replace(&mut self, table: &RouteTable) -> Result<ApplyReport, DatapathError> {
        const OPERATION: &str = "replace";
        let begin = Instant::now();
        self.maps.operation = OPERATION;
        self.check_node(OPERATION, table.node())?;
        self.write_node(table.node())?;
        self.hold_until_attached();
        let (outcome, may_cut) = match self.adopted.take() {
            None => {
                self.repair()?;
                let work = self.state.diff(table);
                let may_cut = follow::may_cut(&self.state, &work.0, &work.1);
                self.add_addresses(&work.0);
                (self.program(OPERATION, work), may_cut)
            }
            Some(adopted) => (self.settle(OPERATION, table, adopted)?, true),
        };
        self.state.revision = table.revision();
        self.maps.set_xdp_devices(self.attachments.xdp_devices())?;
        self.write_pod_peers()?;
        self.attachments.ensure(&mut self.programs, OPERATION)?;
        self.set_draining(false);
        self.sync_addresses();
        self.cut_sockets(may_cut);
        self.watch_pins();
        Ok(self.report(outcome, begin))
    }

    /// [`Datapath::apply`](kubenet_core::datapath::Datapath::apply).
    pub(crate) fn apply(&mut self, delta: &RouteDelta) -> Result<ApplyReport, DatapathError> {
        const OPERATION: &str = "apply";
        let begin = Instant::now();
        self.maps.operation = OPERATION;
        if self.adopted.is_some() {
            let message = "the kernel holds what another process left: a whole table must come first";
            return Err(error(OPERATION, ErrorKind::Conflict, message));
        }
        if delta.base != self.state.revision {
            let message =
                format!("the delta starts from {}, the kernel is at {}", delta.base, self.state.revision);
            return Err(error(OPERATION, ErrorKind::Conflict, message));
        }
        if let Some(node) = &delta.node {
            self.check_node(OPERATION, node)?;
            self.write_node(node)?;
        }
        self.hold_until_attached();
        let state = &self.state;
        let upserts: Vec<Arc<Route>> =
            delta.upserts.iter().filter(|route| !state.has(route)).map(Arc::clone).collect();
        let removals: Vec<Frontend> =
            delta.removals.iter().filter(|f| state.get(f).is_some()).copied().collect();
        let may_cut = follow::may_cut(state, &upserts, &removals);
        let left = self.addresses_to_leave(&upserts, &removals);
        self.add_addresses(&upserts);
        let outcome = self.program(OPERATION, (upserts, removals));
        self.leave_addresses(left);
        if may_cut {
            self.cut_sockets(true);
        }
        self.state.revision = delta.revision;
        // Later, only `replace` looks at every interface: the cost of a change is that of what changes.
        if !self.attachments.is_active() {
            self.maps.set_xdp_devices(self.attachments.xdp_devices())?;
            self.write_pod_peers()?;
            self.attachments.ensure(&mut self.programs, OPERATION)?;
            self.set_draining(false);
        }
        Ok(self.report(outcome, begin))
    }

    fn check_node(&self, operation: &'static str, node: &NodeRouting) -> Result<(), DatapathError> {
        self.capabilities.check_node(node).map_err(|why| error(operation, ErrorKind::Unsupported, why))
    }

    /// [`Datapath::is_intact`](kubenet_core::datapath::Datapath::is_intact): whether packets meet the programs where
    /// they are to.
    pub(crate) fn is_intact(&mut self) -> bool {
        self.maps.operation = "is_intact";
        self.watch_pins();
        self.cut_forgotten();
        let amiss = self.attachments.amiss();
        if !amiss.is_empty() {
            tracing::warn!("programs are not where they are to be: {}", amiss.join(", "));
        }
        amiss.is_empty()
    }

    /// [`Datapath::read`](kubenet_core::datapath::Datapath::read). Where a program does not hang any more,
    /// packets pass the maps by: no route is in effect, and an audit finds that all are missing.
    pub(crate) fn read(&mut self) -> Result<RouteTable, DatapathError> {
        if self.is_intact() {
            self.maps.operation = "read";
            let routes = self.maps.snapshot()?.routes(&self.maps);
            return Ok(RouteTable::new(self.state.revision, node::read(&self.maps)?, routes));
        }
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

    /// [`Datapath::counters`](kubenet_core::datapath::Datapath::counters).
    pub(crate) fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        for programmed in self.state.routes() {
            counters.routes.insert(programmed.route.frontend, self.maps.traffic.numbers(programmed.id));
        }
        for family in IpFamily::ALL {
            for (id, name) in self.state.backend_names(family) {
                *counters.backends.entry(name).or_default() += self.maps.backend_traffic(family, id);
            }
        }
        counters
    }

    /// Somebody listens to the events: from now on the programs report flows, where that is wanted.
    pub(crate) fn listen(&mut self) {
        let Some(reporter) = &mut self.reporter else { return };
        if let Err(error) = reporter.listen(&self.maps, &self.events) {
            tracing::warn!(%error, "events of flows cannot be read: they are not reported");
        }
    }

    /// Attaches the programs to a pod's interface.
    pub(crate) fn attach_pod(&mut self, name: &str) -> Result<(), DatapathError> {
        self.maps.operation = "attach_pod";
        self.announce_interface(name)?;
        self.announce_peer(name)?;
        let attached = self.attachments.attach_pod(&mut self.programs, name);
        if attached.is_err()
            && let Err(error) = self.write_pod_interfaces().and_then(|()| self.write_pod_peers())
        {
            tracing::warn!(%error, name, "an interface without programs stays known as a pod's");
        }
        self.watch_pins();
        attached
    }

    /// Detaches them.
    pub(crate) fn detach_pod(&mut self, name: &str) -> Result<(), DatapathError> {
        self.maps.operation = "detach_pod";
        let detached = self.attachments.detach_pod(name);
        detached.and(self.write_pod_interfaces()).and(self.write_pod_peers())
    }

    /// Removes every trace, and returns what failed.
    pub(crate) fn remove(mut self) -> Vec<String> {
        self.attachments.remove()
    }

    /// Pins again what somebody unpinned: it would end with this process.
    pub(crate) fn restore_pins(&mut self) -> Result<(), DatapathError> {
        let restored = self.attachments.restore_pins(&self.programs)?;
        if !restored.is_empty() {
            let paths: Vec<String> = restored.iter().map(|path| path.display().to_string()).collect();
            let detail = format!("somebody removed what was pinned: put right: {}", paths.join(", "));
            self.events.emit(&DatapathEvent::Drift { detail });
        }
        Ok(())
    }

    fn watch_pins(&mut self) {
        if let Err(error) = self.restore_pins() {
            let detail = format!(
                "what this process forwards would end with it, as it is not pinned: {}",
                error.message()
            );
            self.events.emit(&DatapathEvent::Drift { detail });
        }
    }

    /// Whether what is attached outlives this process.
    pub(crate) fn is_pinned(&self) -> bool {
        self.attachments.is_pinned()
    }

    fn now(&self) -> Now {
        self.started.elapsed()
    }

    fn write_node(&mut self, node: &Arc<NodeRouting>) -> Result<(), DatapathError> {
        node::write(&mut self.maps, node, &self.sizes)?;
        self.state.node = Arc::clone(node);
        self.write_pod_interfaces()
    }

    fn program(&mut self, operation: &'static str, work: (Vec<Arc<Route>>, Vec<Frontend>)) -> Outcome {
        let now = self.now();
        program(&mut self.state, &self.maps, &self.capabilities, operation, work, now)
    }

    /// The first table after adoption: writes what differs, and only then removes what nobody needs.
    fn settle(
        &mut self,
        operation: &'static str,
        table: &RouteTable,
        adopted: Adopted,
    ) -> Result<Outcome, DatapathError> {
        let work = self.state.diff(table);
        let Adopted { snapshot, leftovers } = &adopted;
        let result = settle::before(&self.state, &self.maps, leftovers, snapshot).and_then(|()| {
            let outcome = self.program(operation, work);
            let removed = settle::after(&self.state, &self.maps, leftovers, snapshot)?;
            tracing::info!(
                upserted = outcome.upserted,
                removed = outcome.removed,
                left_over = removed,
                "adopted"
            );
            Ok(outcome)
        });
        match result {
            Ok(outcome) => {
                let now = self.now();
                adopted.leftovers.release(&mut self.state, now);
                Ok(outcome)
            }
            Err(error) => {
                // The next table tries again.
                self.adopted = Some(adopted);
                Err(error)
            }
        }
    }

    /// Programs are attached one after the other. Were the first to take a flow at once, its answer would come by
    /// an interface without a program: nobody would translate it, and it would be lost.
    fn hold_until_attached(&mut self) {
        if !self.attachments.is_active() {
            self.set_draining(true);
        }
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
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Err(error) = self.restore_pins() {
            tracing::warn!(%error, "what is not pinned ends now");
        }
    }
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
