//! The reference datapath: what a packet meets, in plain Rust and nothing but memory.
//!
//! [`route`] is the oracle for every other datapath. [`MemoryDatapath`] adds what a datapath remembers: the
//! table, and the flows that it has translated.
//!
//! ```
//! use std::{num::NonZeroU16, sync::Arc};
//! use futures::executor::block_on;
//! use kubenet_core::{datapath::Datapath, model::*, resolve::resolve};
//! use kubenet_testkit::memory::{Delivery, Flow, MemoryDatapath};
//!
//! let node = NodeInfo::builder("node-a").address("10.0.0.1".parse()?).build()?;
//! let service = Service::builder("demo", "web")
//!     .cluster_ip("10.96.0.10".parse()?)
//!     .port(ServicePort::new("", Protocol::Tcp, 80.try_into()?))
//!     .build()?;
//! let datapath = MemoryDatapath::new();
//! block_on(datapath.replace(Arc::new(resolve(&node, [&service], []))))?;
//! let flow = Flow::new("10.0.0.9:40000".parse()?, "10.96.0.10:80".parse()?, Protocol::Tcp);
//! assert_eq!(datapath.connect(&flow), Delivery::Reject, "no endpoints");
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod oracle;
mod state;
#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use kubenet_core::{
    datapath::{
        ApplyReport, BackendName, Capabilities, Close, Counters, Datapath, DatapathError, DatapathEvent,
        DrainStatus, ErrorKind, EventHub, FailedRoute, Feature,
    },
    model::Protocol,
    route::{NodeRouting, RevisionMismatch, Route, RouteDelta, RouteTable},
};
use parking_lot::Mutex;

pub use self::oracle::{Choice, Flow, Verdict, route};
use self::{oracle::lookup, state::State};

const NAME: &str = "memory";

/// Where one packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// To this backend.
    To(Choice),
    /// The client is told at once.
    Reject,
    /// Silence.
    Drop,
    /// Left to the stack.
    Pass,
}

/// A [`Datapath`] that routes described packets. See the [module](self).
#[derive(Debug)]
pub struct MemoryDatapath {
    capabilities: Capabilities,
    state: Mutex<State>,
    events: EventHub,
}

impl Default for MemoryDatapath {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryDatapath {
    /// Everything that a route can say, masquerading as kube-proxy does.
    pub fn new() -> Self {
        Self::with_capabilities(Capabilities::full())
    }

    /// Models a datapath with these capabilities. [`Capabilities::counters`] and
    /// [`Capabilities::keep_on_close`] are always there.
    pub fn with_capabilities(mut capabilities: Capabilities) -> Self {
        capabilities.counters = true;
        capabilities.keep_on_close = true;
        Self { capabilities, state: Mutex::new(State::new()), events: EventHub::default() }
    }

    /// The same with its choices from another seed.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        self.state.lock().random = seed;
        self
    }

    /// What would happen to a new flow now, whatever is remembered.
    pub fn route(&self, flow: &Flow) -> Verdict {
        self.verdict(&self.state.lock(), flow)
    }

    fn verdict(&self, state: &State, flow: &Flow) -> Verdict {
        if state.draining {
            return Verdict::Pass;
        }
        match route(&state.table, flow, self.capabilities.local_backends_see_client) {
            // Of an unknown port, which is told by the route that is missing.
            Verdict::Reject if !self.refuses_ports(flow) && lookup(&state.table, flow).is_none() => {
                Verdict::Pass
            }
            verdict => verdict,
        }
    }

    /// [N4]. A datapath that serves nothing of a protocol does not look at its packets.
    fn refuses_ports(&self, flow: &Flow) -> bool {
        self.capabilities.has(Feature::RejectUnknownPorts)
            && self.capabilities.protocols.contains(&flow.protocol)
    }

    /// Lets time pass: for session affinity. It passes in no other way.
    pub fn advance(&self, time: Duration) {
        let mut state = self.state.lock();
        state.now = state.now.saturating_add(time);
    }

    /// Takes every route away, as somebody who flushes the kernel's tables would.
    pub fn flush(&self) {
        let mut state = self.state.lock();
        state.table = RouteTable::new(state.table.revision(), Arc::clone(state.table.node()), []);
        state.flushed = true;
    }

    /// The first packet of a TCP or SCTP connection, or a datagram that belongs to no flow: picks a backend and
    /// remembers it.
    pub fn connect(&self, flow: &Flow) -> Delivery {
        let mut state = self.state.lock();
        let choices = match self.verdict(&state, flow) {
            Verdict::Pass => return Delivery::Pass,
            Verdict::Reject => return Delivery::Reject,
            Verdict::Drop => return Delivery::Drop,
            Verdict::Forward(choices) => choices,
        };
        let Some(route) = lookup(&state.table, flow).cloned() else { return Delivery::Pass };
        let choice = state.pick(&route, flow.source.ip(), &choices);
        state.flows.insert(flow.clone(), choice);
        let backend = BackendName {
            service_port: route.service_port.clone(),
            protocol: route.frontend.protocol,
            address: choice.backend.socket_addr(),
        };
        state.counters.routes.entry(route.frontend).or_default().connections += 1;
        state.counters.backends.entry(backend).or_default().connections += 1;
        Delivery::To(choice)
    }

    /// A later packet. TCP and SCTP without a remembered flow are left to the stack; UDP begins a flow.
    pub fn send(&self, flow: &Flow) -> Delivery {
        let known = self.state.lock().flows.get(flow).copied();
        match known {
            Some(choice) => Delivery::To(choice),
            None if flow.protocol == Protocol::Udp => self.connect(flow),
            None => Delivery::Pass,
        }
    }

    /// Forgets a flow that has ended.
    pub fn disconnect(&self, flow: &Flow) {
        self.state.lock().flows.remove(flow);
    }

    fn error(operation: &'static str, kind: ErrorKind, message: impl Into<String>) -> DatapathError {
        DatapathError::new(NAME, operation, kind, message)
    }

    fn open(&self, operation: &'static str) -> Result<parking_lot::MutexGuard<'_, State>, DatapathError> {
        let state = self.state.lock();
        if state.closed {
            let message = "the datapath is closed: make a new one";
            return Err(Self::error(operation, ErrorKind::Unavailable, message));
        }
        Ok(state)
    }

    fn check_node(&self, operation: &'static str, node: &NodeRouting) -> Result<(), DatapathError> {
        self.capabilities.check_node(node).map_err(|why| Self::error(operation, ErrorKind::Unsupported, why))
    }

    /// Why a route cannot be served, if it cannot.
    fn refuse(&self, operation: &'static str, route: &Route) -> Option<FailedRoute> {
        let why = self.capabilities.check(route).err()?;
        Some(FailedRoute {
            frontend: route.frontend,
            service_port: route.service_port.clone(),
            error: Self::error(operation, ErrorKind::Unsupported, why),
        })
    }

    /// Makes a delta effective, and reports it.
    fn commit(
        &self,
        state: &mut State,
        delta: &RouteDelta,
        failed: Vec<FailedRoute>,
        began: Instant,
    ) -> ApplyReport {
        state.step(delta);
        for FailedRoute { frontend, service_port, error } in &failed {
            self.events.emit(&DatapathEvent::RouteFailed {
                frontend: *frontend,
                service_port: service_port.clone(),
                error: error.clone(),
            });
        }
        let mut report = ApplyReport::new(state.table.revision());
        report.upserted = delta.upserts.len();
        report.removed = delta.removals.len();
        report.failed = failed;
        report.took = began.elapsed();
        self.events.emit(&DatapathEvent::Applied { revision: report.revision });
        report
    }
}

#[async_trait]
impl Datapath for MemoryDatapath {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn replace(&self, table: Arc<RouteTable>) -> Result<ApplyReport, DatapathError> {
        const OPERATION: &str = "replace";
        let began = Instant::now();
        let mut state = self.open(OPERATION)?;
        self.check_node(OPERATION, table.node())?;
        let failed: Vec<_> = table.routes().filter_map(|route| self.refuse(OPERATION, route)).collect();
        let unserved: HashSet<_> = failed.iter().map(|failed| failed.frontend).collect();
        let served = table.routes().filter(|route| !unserved.contains(&route.frontend)).cloned();
        let next = RouteTable::new(table.revision(), Arc::clone(table.node()), served);
        let delta = state.table.diff(&next);
        (state.draining, state.flushed) = (false, false);
        Ok(self.commit(&mut state, &delta, failed, began))
    }

    async fn apply(&self, delta: Arc<RouteDelta>) -> Result<ApplyReport, DatapathError> {
        const OPERATION: &str = "apply";
        let began = Instant::now();
        let mut state = self.open(OPERATION)?;
        if delta.base != state.table.revision() {
            let mismatch = RevisionMismatch { base: delta.base, actual: state.table.revision() };
            let message = format!("{mismatch}: call replace");
            return Err(DatapathError::with_source(NAME, OPERATION, ErrorKind::Conflict, message, mismatch));
        }
        if let Some(node) = &delta.node {
            self.check_node(OPERATION, node)?;
        }
        let mut served = RouteDelta::empty(delta.base, delta.revision);
        served.node.clone_from(&delta.node);
        served.removals = delta.removals.iter().filter(|f| state.table.get(f).is_some()).copied().collect();
        let mut failed = Vec::new();
        for route in &delta.upserts {
            let old = state.table.get(&route.frontend);
            match self.refuse(OPERATION, route) {
                None if old == Some(route) => {}
                None => served.upserts.push(Arc::clone(route)),
                Some(refused) => {
                    served.removals.extend(old.map(|old| old.frontend));
                    failed.push(refused);
                }
            }
        }
        Ok(self.commit(&mut state, &served, failed, began))
    }

    async fn read(&self) -> Result<RouteTable, DatapathError> {
        Ok(self.open("read")?.table.clone())
    }

    async fn is_intact(&self) -> Result<bool, DatapathError> {
        Ok(!self.open("is_intact")?.flushed)
    }

    async fn counters(&self) -> Result<Counters, DatapathError> {
        Ok(self.open("counters")?.counters.clone())
    }

    async fn drain(&self) -> Result<DrainStatus, DatapathError> {
        let mut state = self.open("drain")?;
        if !state.draining {
            state.draining = true;
            self.events.emit(&DatapathEvent::Draining);
        }
        Ok(DrainStatus { flows: state.flows.len() as u64 })
    }

    async fn close(&self, how: Close) -> Result<(), DatapathError> {
        let mut state = self.open("close")?;
        if how == Close::Remove {
            *state = State::new();
        }
        state.closed = true;
        self.events.emit(&DatapathEvent::Closed);
        self.events.end();
        Ok(())
    }

    fn events(&self) -> BoxStream<'static, DatapathEvent> {
        self.events.subscribe()
    }
}
