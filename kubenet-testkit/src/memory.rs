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

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
    time::Instant,
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use kubenet_core::{
    datapath::{
        ApplyReport, Capabilities, Close, Counters, Datapath, DatapathError, DatapathEvent, DrainStatus,
        ErrorKind, EventHub, FailedRoute,
    },
    model::{IpFamily, Protocol},
    route::{Backend, Revision, Route, RouteDelta, RouteTable, WhenEmpty},
};
use parking_lot::Mutex;

const NAME: &str = "memory";

/// Who sends to whom, before any translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// The client.
    pub source: SocketAddr,
    /// What it dials.
    pub destination: SocketAddr,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl Flow {
    /// A flow.
    pub const fn new(source: SocketAddr, destination: SocketAddr, protocol: Protocol) -> Self {
        Self { source, destination, protocol }
    }
}

/// A backend that may be picked for a flow, and whom it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Choice {
    /// The backend.
    pub backend: Backend,
    /// Whether the client's address is replaced by the node's.
    pub masquerade: bool,
    /// The address that the backend sees.
    pub sees: IpAddr,
}

/// What happens to a new flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// One of these is picked. Never empty.
    Forward(Vec<Choice>),
    /// The client is told at once.
    Reject,
    /// Silence.
    Drop,
    /// Not a Service: left to the stack.
    Pass,
}

/// The oracle: what a table says about a new flow.
///
/// `local_backends_see_client` is the capability of that name, which changes who is masqueraded.
pub fn route(table: &RouteTable, flow: &Flow, local_backends_see_client: bool) -> Verdict {
    let client = flow.source.ip();
    let Some(route) = lookup(table, flow) else { return Verdict::Pass };
    let origin = table.node().origin(client);
    let target = route.target(origin);
    if target.backends.is_empty() {
        return match target.when_empty {
            WhenEmpty::Reject => Verdict::Reject,
            WhenEmpty::Drop => Verdict::Drop,
        };
    }
    let node = table.node().primary_address(IpFamily::of(client));
    let choice = |&backend: &Backend| {
        let hairpin = backend.address == client;
        let spared = backend.local && local_backends_see_client;
        let masquerade = hairpin || (route.masquerade.applies_to(origin) && !spared);
        let sees = node.filter(|_| masquerade).unwrap_or(client);
        Choice { backend, masquerade, sees }
    };
    Verdict::Forward(target.backends.iter().map(choice).collect())
}

fn lookup<'a>(table: &'a RouteTable, flow: &Flow) -> Option<&'a Arc<Route>> {
    let port = NonZeroU16::new(flow.destination.port())?;
    table.lookup(flow.destination.ip(), port, flow.protocol)
}

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

#[derive(Debug)]
struct State {
    table: RouteTable,
    /// Flows that were translated, TCP until they end, UDP while their backend may be picked.
    flows: HashMap<Flow, Choice>,
    counters: Counters,
    draining: bool,
    closed: bool,
    random: u64,
}

impl Default for MemoryDatapath {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryDatapath {
    /// TCP and UDP, both families, masquerading as kube-proxy does.
    pub fn new() -> Self {
        let mut capabilities = Capabilities::basic();
        capabilities.counters = true;
        capabilities.keep_on_close = true;
        Self::with_capabilities(capabilities)
    }

    /// Models a datapath with these capabilities. [`Capabilities::counters`] and
    /// [`Capabilities::keep_on_close`] are always there.
    pub fn with_capabilities(mut capabilities: Capabilities) -> Self {
        capabilities.counters = true;
        capabilities.keep_on_close = true;
        let state = State {
            table: RouteTable::default(),
            flows: HashMap::new(),
            counters: Counters::default(),
            draining: false,
            closed: false,
            random: 1,
        };
        Self { capabilities, state: Mutex::new(state), events: EventHub::default() }
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
        route(&state.table, flow, self.capabilities.local_backends_see_client)
    }

    /// The first packet of a TCP connection, or a datagram that belongs to no flow: picks a backend and
    /// remembers it.
    pub fn connect(&self, flow: &Flow) -> Delivery {
        let mut state = self.state.lock();
        match self.verdict(&state, flow) {
            Verdict::Pass => Delivery::Pass,
            Verdict::Reject => Delivery::Reject,
            Verdict::Drop => Delivery::Drop,
            Verdict::Forward(choices) => {
                let choice = choices[state.pick(choices.len())];
                state.flows.insert(*flow, choice);
                if let Some(frontend) = lookup(&state.table, flow).map(|route| route.frontend) {
                    state.counters.routes.entry(frontend).or_default().connections += 1;
                }
                Delivery::To(choice)
            }
        }
    }

    /// A later packet. TCP without a remembered flow is left to the stack; UDP begins a flow.
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

    /// What of the routes cannot be served, by name.
    fn refused<'a>(
        &self,
        operation: &'static str,
        routes: impl IntoIterator<Item = &'a Arc<Route>>,
    ) -> Vec<FailedRoute> {
        let refuse = |route: &Arc<Route>| {
            let why = self.capabilities.check(route).err()?;
            Some(FailedRoute {
                frontend: route.frontend,
                service_port: route.service_port.clone(),
                error: Self::error(operation, ErrorKind::Unsupported, why),
            })
        };
        routes.into_iter().filter_map(refuse).collect()
    }

    /// Makes a table effective, minus what cannot be served.
    fn commit(
        &self,
        state: &mut State,
        next: &RouteTable,
        failed: Vec<FailedRoute>,
        began: Instant,
    ) -> ApplyReport {
        let bad = |route: &Route| failed.iter().any(|f| f.frontend == route.frontend);
        let served = next.routes().filter(|route| !bad(route)).cloned();
        let next = RouteTable::new(next.revision(), Arc::clone(next.node()), served);
        let delta = state.table.diff(&next);
        state.table = next;
        let see_client = self.capabilities.local_backends_see_client;
        let table = &state.table;
        // [L2]: a datagram never goes where its Service would not send a new one.
        state.flows.retain(|flow, kept| {
            flow.protocol != Protocol::Udp
                || matches!(route(table, flow, see_client), Verdict::Forward(choices)
                    if choices.iter().any(|c| c.backend.socket_addr() == kept.backend.socket_addr()))
        });
        for frontend in &delta.removals {
            state.counters.routes.remove(frontend);
        }
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

impl State {
    /// A number below `n`, from SplitMix64.
    fn pick(&mut self, n: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        ((u128::from(z) * n as u128) >> 64) as usize
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
        let began = Instant::now();
        let mut state = self.open("replace")?;
        state.draining = false;
        let failed = self.refused("replace", table.routes());
        Ok(self.commit(&mut state, &table, failed, began))
    }

    async fn apply(&self, delta: Arc<RouteDelta>) -> Result<ApplyReport, DatapathError> {
        let began = Instant::now();
        let mut state = self.open("apply")?;
        let mut next = state.table.clone();
        next.apply(&delta).map_err(|mismatch| {
            let message = format!("{mismatch}: call replace");
            DatapathError::with_source(NAME, "apply", ErrorKind::Conflict, message, mismatch)
        })?;
        let failed = self.refused("apply", &delta.upserts);
        Ok(self.commit(&mut state, &next, failed, began))
    }

    async fn read(&self) -> Result<RouteTable, DatapathError> {
        Ok(self.open("read")?.table.clone())
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
        state.closed = true;
        if how == Close::Remove {
            state.table = RouteTable::new(Revision::default(), Arc::clone(state.table.node()), []);
            state.flows.clear();
            state.counters = Counters::default();
        }
        self.events.emit(&DatapathEvent::Closed);
        self.events.end();
        Ok(())
    }

    fn events(&self) -> BoxStream<'static, DatapathEvent> {
        self.events.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use kubenet_core::{
        model::{Endpoint, EndpointPort, EndpointSlice, NodeInfo, Service, ServicePort, ServiceType},
        resolve::resolve,
    };

    use super::*;

    const CLIENT: &str = "10.244.1.9:40000";
    const SERVICE: &str = "10.96.0.10:80";

    /// A Service on cluster IP and node port with these endpoints, the first of them here.
    fn table(endpoints: &[&str]) -> Arc<RouteTable> {
        let node = NodeInfo::builder("node-a")
            .address("10.89.0.1".parse().unwrap())
            .cluster_cidr("10.244.0.0/16".parse().unwrap())
            .build()
            .unwrap();
        let number = |n: u16| n.try_into().unwrap();
        let service = Service::builder("demo", "web")
            .service_type(ServiceType::NodePort)
            .cluster_ip("10.96.0.10".parse().unwrap())
            .port(ServicePort::new("t", Protocol::Tcp, number(80)).with_node_port(number(30080)))
            .port(ServicePort::new("u", Protocol::Udp, number(80)))
            .build()
            .unwrap();
        let nodes = std::iter::once("node-a").chain(std::iter::repeat("node-b"));
        let slice = EndpointSlice::builder("demo", "web-1", "web", IpFamily::V4)
            .port(EndpointPort::new("t", Protocol::Tcp, number(8080)))
            .port(EndpointPort::new("u", Protocol::Udp, number(8080)))
            .endpoints(endpoints.iter().zip(nodes).map(|(a, n)| Endpoint::new(a.parse().unwrap()).on_node(n)))
            .build()
            .unwrap();
        Arc::new(resolve(&node, [&service], [&slice]))
    }

    fn flow(from: &str, to: &str, protocol: Protocol) -> Flow {
        Flow::new(from.parse().unwrap(), to.parse().unwrap(), protocol)
    }

    /// Backend and whom it sees, for each that may be picked.
    fn choices(table: &RouteTable, from: &str, to: &str, see_client: bool) -> Vec<(String, String)> {
        match route(table, &flow(from, to, Protocol::Tcp), see_client) {
            Verdict::Forward(choices) => {
                choices.iter().map(|c| (c.backend.address.to_string(), c.sees.to_string())).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn who_is_picked_and_whom_it_sees() {
        let table = table(&["10.244.1.2", "10.244.2.2"]);
        let pair = |a: &str, b: &str| vec![("10.244.1.2".into(), a.into()), ("10.244.2.2".into(), b.into())];
        let (client, node, outside) = ("10.244.1.9", "10.89.0.1", "10.89.0.100");
        assert_eq!(choices(&table, CLIENT, SERVICE, false), pair(client, client));
        assert_eq!(choices(&table, "10.244.1.2:1", SERVICE, true), pair(node, "10.244.1.2"), "hairpin");
        assert_eq!(choices(&table, "10.89.0.100:1", SERVICE, false), pair(node, node));
        assert_eq!(choices(&table, "10.89.0.100:1", "10.89.0.1:30080", true), pair(outside, node));
        let elsewhere = flow(CLIENT, "10.89.0.2:30080", Protocol::Tcp);
        assert_eq!(route(&table, &elsewhere, false), Verdict::Pass, "not this node's address");
    }

    #[test]
    fn tcp_stays_and_udp_chooses_again_when_the_backend_goes() {
        let datapath = MemoryDatapath::new();
        let first = table(&["10.244.1.2"]);
        block_on(datapath.replace(Arc::clone(&first))).unwrap();
        let flows = [Protocol::Tcp, Protocol::Udp].map(|protocol| flow(CLIENT, SERVICE, protocol));
        let backend = |delivery| match delivery {
            Delivery::To(choice) => choice.backend.address.to_string(),
            other => format!("{other:?}"),
        };
        assert_eq!(flows.map(|f| backend(datapath.connect(&f))), ["10.244.1.2", "10.244.1.2"]);
        block_on(datapath.apply(Arc::new(first.diff(&table(&["10.244.2.2"])))))
            .unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(flows.map(|f| backend(datapath.send(&f))), ["10.244.1.2", "10.244.2.2"]);
        assert_eq!(block_on(datapath.drain()).unwrap().flows, 2);
        datapath.disconnect(&flows[0]);
        assert_eq!(flows.map(|f| backend(datapath.send(&f))), ["Pass", "10.244.2.2"], "unknown TCP passes");
    }

    #[test]
    fn the_same_seed_chooses_the_same() {
        let picks = |seed| {
            let datapath = MemoryDatapath::new().seed(seed);
            block_on(datapath.replace(table(&["10.244.1.2", "10.244.2.2"]))).unwrap();
            let flow = flow(CLIENT, SERVICE, Protocol::Tcp);
            (0..32).map(|_| datapath.connect(&flow)).collect::<Vec<_>>()
        };
        assert_eq!(picks(7), picks(7));
        assert_ne!(picks(7), picks(8));
    }
}
