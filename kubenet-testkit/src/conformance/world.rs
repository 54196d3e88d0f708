//! Where packets of the cases travel: described in memory, or sent in the lab.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use kubenet_core::{
    datapath::{Datapath, DatapathError},
    model::{IpFamily, Protocol},
};
use parking_lot::Mutex;

use super::fixture::{BACKEND_PORT, HERE, PODS, node_of};
use crate::{
    memory::{Delivery, Flow, MemoryDatapath},
    place::{self, Node, POD_INTERFACES, Place},
};

/// What a client got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Got {
    Answer {
        /// Who answered.
        backend: String,
        /// Whom it saw.
        peer: IpAddr,
    },
    /// An error at once.
    Refused,
    /// No answer in time.
    Silence,
    /// An error at once that does not look like a refusal.
    Unreachable,
    /// An established connection ended.
    Cut,
    Error(String),
}

impl fmt::Display for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Got::Answer { backend, peer } => write!(f, "an answer from {backend}, which saw {peer}"),
            Got::Refused => f.write_str("refused"),
            Got::Silence => f.write_str("silence"),
            Got::Unreachable => f.write_str("no way to the address"),
            Got::Cut => f.write_str("a cut connection"),
            Got::Error(error) => f.write_str(error),
        }
    }
}

/// A connection or a UDP socket that lives on.
pub(super) trait Live: Send {
    fn ask(&mut self, timeout: Duration) -> Got;
    /// A question and an answer of this many bytes each.
    fn ask_at_length(&mut self, length: usize, timeout: Duration) -> Got;
}

/// A path that takes less than it seems to, as long as this lives.
pub(super) trait Narrow {}

pub(super) trait World: Sync {
    fn simulated(&self) -> bool;
    fn families(&self) -> &[IpFamily];
    /// What its clients and servers speak.
    fn protocols(&self) -> &[Protocol];
    /// Starts the datapath under test on its node. Nothing else of its kind runs there.
    fn start(&self) -> Result<Arc<dyn Datapath>, DatapathError>;
    fn address(&self, place: &Place, family: IpFamily) -> Result<IpAddr, String>;
    /// One question on a new connection, or in one datagram from a new socket.
    fn ask(&self, from: &Place, to: SocketAddr, protocol: Protocol, timeout: Duration) -> Got;
    /// From a port of the client's own; 0 is any.
    fn open(
        &self,
        from: (&Place, u16),
        to: SocketAddr,
        protocol: Protocol,
        timeout: Duration,
    ) -> Result<Box<dyn Live>, Got>;
    /// Lets the way from a node to a place take no more than `mtu` bytes at once. `None` where packets have no
    /// size.
    fn narrow(&self, node: Node, to: &Place, mtu: u32) -> Result<Option<Box<dyn Narrow>>, String>;
    /// Lets time pass.
    fn wait(&self, time: Duration);
    /// What a closed datapath left in the kernel.
    fn leftovers(&self) -> Vec<String>;
}

/// Comes between the clients of a world and what they get there.
pub(super) trait Between: Sync {
    fn world(&self) -> &dyn World;
    /// [`World::ask`].
    fn ask(&self, from: &Place, to: SocketAddr, protocol: Protocol, timeout: Duration) -> Got;
    /// [`World::open`].
    fn open(
        &self,
        from: (&Place, u16),
        to: SocketAddr,
        protocol: Protocol,
        timeout: Duration,
    ) -> Result<Box<dyn Live>, Got>;
    /// [`World::leftovers`].
    fn leftovers(&self) -> Vec<String> {
        self.world().leftovers()
    }
}

impl<B: Between> World for B {
    fn simulated(&self) -> bool {
        self.world().simulated()
    }

    fn families(&self) -> &[IpFamily] {
        self.world().families()
    }

    fn protocols(&self) -> &[Protocol] {
        self.world().protocols()
    }

    fn start(&self) -> Result<Arc<dyn Datapath>, DatapathError> {
        self.world().start()
    }

    fn address(&self, place: &Place, family: IpFamily) -> Result<IpAddr, String> {
        self.world().address(place, family)
    }

    fn ask(&self, from: &Place, to: SocketAddr, protocol: Protocol, timeout: Duration) -> Got {
        Between::ask(self, from, to, protocol, timeout)
    }

    fn open(
        &self,
        from: (&Place, u16),
        to: SocketAddr,
        protocol: Protocol,
        timeout: Duration,
    ) -> Result<Box<dyn Live>, Got> {
        Between::open(self, from, to, protocol, timeout)
    }

    fn narrow(&self, node: Node, to: &Place, mtu: u32) -> Result<Option<Box<dyn Narrow>>, String> {
        self.world().narrow(node, to, mtu)
    }

    fn wait(&self, time: Duration) {
        self.world().wait(time);
    }

    fn leftovers(&self) -> Vec<String> {
        Between::leftovers(self)
    }
}

/// Packets are described, and a [`MemoryDatapath`] says where they go.
pub(super) struct Simulation<F> {
    start: F,
    running: Mutex<Arc<MemoryDatapath>>,
    addresses: BTreeMap<IpAddr, Place>,
    next_port: AtomicU16,
}

impl<F: Fn() -> MemoryDatapath + Sync> Simulation<F> {
    pub(super) fn new(start: F) -> Self {
        let mut addresses = BTreeMap::new();
        for (&(pod, node), number) in PODS.iter().zip(2..) {
            addresses.insert(node.pod_v4(number).into(), Place::from(pod));
            addresses.insert(node.pod_v6(number).into(), Place::from(pod));
        }
        for node in Node::ALL {
            addresses.insert(node.v4().into(), node.into());
            addresses.insert(node.v6().into(), node.into());
        }
        for family in IpFamily::ALL {
            addresses.insert(place::outside(family), Place::Outside);
        }
        let idle = Arc::new(MemoryDatapath::new());
        Self { start, running: Mutex::new(idle), addresses, next_port: 1024.into() }
    }

    fn answer(&self, delivery: Delivery, to: SocketAddr, peer: SocketAddr) -> Got {
        let (backend, peer) = match delivery {
            Delivery::To(choice) => (choice.backend.socket_addr(), choice.sees),
            Delivery::Reject => return Got::Refused,
            Delivery::Drop => return Got::Silence,
            Delivery::Pass => (to, peer.ip()),
        };
        match self.addresses.get(&backend.ip()) {
            Some(place) if backend.port() == BACKEND_PORT.get() => {
                Got::Answer { backend: place.name().to_owned(), peer }
            }
            // There is a host, and nobody listens.
            Some(_) => Got::Refused,
            None => Got::Silence,
        }
    }

    fn flow(&self, (from, port): (&Place, u16), to: SocketAddr, protocol: Protocol) -> Result<Flow, Got> {
        let source = self.address(from, IpFamily::of(to.ip())).map_err(Got::Error)?;
        let port = if port == 0 { self.next_port.fetch_add(1, Ordering::Relaxed) } else { port };
        let flow = Flow::new(SocketAddr::new(source, port), to, protocol);
        Ok(match from {
            Place::Pod(name) if node_of(from) == Some(HERE) => {
                flow.through(&format!("{POD_INTERFACES}{name}"))
            }
            _ => flow,
        })
    }
}

impl<F: Fn() -> MemoryDatapath + Sync> World for Simulation<F> {
    fn simulated(&self) -> bool {
        true
    }

    fn families(&self) -> &[IpFamily] {
        &IpFamily::ALL
    }

    fn protocols(&self) -> &[Protocol] {
        &Protocol::ALL
    }

    fn start(&self) -> Result<Arc<dyn Datapath>, DatapathError> {
        let datapath = Arc::new((self.start)());
        *self.running.lock() = Arc::clone(&datapath);
        Ok(datapath)
    }

    fn address(&self, place: &Place, family: IpFamily) -> Result<IpAddr, String> {
        let found =
            self.addresses.iter().find(|(address, p)| *p == place && IpFamily::of(**address) == family);
        found.map(|(address, _)| *address).ok_or_else(|| format!("{place} has no {family} address"))
    }

    fn ask(&self, from: &Place, to: SocketAddr, protocol: Protocol, _: Duration) -> Got {
        match self.flow((from, 0), to, protocol) {
            Ok(flow) => {
                let datapath = Arc::clone(&self.running.lock());
                let got = self.answer(datapath.connect(&flow), to, flow.source);
                datapath.disconnect(&flow);
                got
            }
            Err(got) => got,
        }
    }

    fn open(
        &self,
        from: (&Place, u16),
        to: SocketAddr,
        protocol: Protocol,
        _: Duration,
    ) -> Result<Box<dyn Live>, Got> {
        let flow = self.flow(from, to, protocol)?;
        let datapath = Arc::clone(&self.running.lock());
        if protocol != Protocol::Udp {
            let got = self.answer(datapath.connect(&flow), to, flow.source);
            if !matches!(got, Got::Answer { .. }) {
                return Err(got);
            }
        }
        let names = self.addresses.iter().map(|(a, p)| (*a, p.name().to_owned())).collect();
        Ok(Box::new(SimulatedFlow { datapath, flow, names }))
    }

    fn narrow(&self, _: Node, _: &Place, _: u32) -> Result<Option<Box<dyn Narrow>>, String> {
        Ok(None)
    }

    fn wait(&self, time: Duration) {
        self.running.lock().advance(time);
    }

    fn leftovers(&self) -> Vec<String> {
        Vec::new()
    }
}

struct SimulatedFlow {
    datapath: Arc<MemoryDatapath>,
    flow: Flow,
    names: BTreeMap<IpAddr, String>,
}

impl Live for SimulatedFlow {
    fn ask(&mut self, _: Duration) -> Got {
        match self.datapath.send(&self.flow) {
            Delivery::To(choice) => match self.names.get(&choice.backend.address) {
                Some(name) => Got::Answer { backend: name.clone(), peer: choice.sees },
                None => Got::Silence,
            },
            Delivery::Reject => Got::Refused,
            Delivery::Pass if self.flow.protocol != Protocol::Udp => Got::Cut,
            Delivery::Pass | Delivery::Drop => Got::Silence,
        }
    }

    fn ask_at_length(&mut self, _: usize, timeout: Duration) -> Got {
        self.ask(timeout)
    }
}

impl Drop for SimulatedFlow {
    fn drop(&mut self) {
        self.datapath.disconnect(&self.flow);
    }
}
