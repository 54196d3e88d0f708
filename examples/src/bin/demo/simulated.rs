//! The same cluster without a kernel: described packets, routed by the in-memory datapath.

use std::{
    collections::HashMap,
    error::Error,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use kubenet_core::{
    datapath::{Datapath, DatapathError},
    kubernetes::Manifests,
    model::{IpFamily, NodeInfo, Protocol},
};
use kubenet_testkit::memory::{Delivery, Flow, MemoryDatapath};
use parking_lot::RwLock;

use crate::{
    args::Kind,
    stage::{HERE, Stage},
    world::{Answer, Connection, From, World},
};

/// Answers where the lab would.
pub(crate) struct SimulatedWorld {
    node: NodeInfo,
    /// Names of the pods, by address.
    pods: HashMap<IpAddr, String>,
    /// Every datapath of the scenario, the oldest first. A packet that one leaves alone, because it drains or
    /// does not know the flow, meets the next, as programs on a hook do. When the older one drains, the newer
    /// one has been programmed.
    datapaths: Arc<RwLock<Vec<Arc<MemoryDatapath>>>>,
    next_port: AtomicU16,
    next_kept_port: AtomicU16,
}

/// Source ports: of requests, and of connections that stay open.
const PORTS: Range<u16> = 1_024..60_000;
const KEPT_PORTS: Range<u16> = 60_000..65_535;

impl SimulatedWorld {
    pub(crate) fn new(stage: &Stage) -> Result<Self, Box<dyn Error>> {
        let node = HERE.info(&IpFamily::ALL)?;
        let named = stage.pods.iter().flat_map(|pod| pod.addresses.iter().map(|a| (*a, pod.name.clone())));
        Ok(Self {
            node,
            pods: named.collect(),
            datapaths: Arc::default(),
            next_port: AtomicU16::new(0),
            next_kept_port: AtomicU16::new(0),
        })
    }

    fn flow(&self, from: From, protocol: Protocol, to: SocketAddr, ports: &Range<u16>) -> Flow {
        let v4 = to.is_ipv4();
        let source: IpAddr = match from {
            From::Pod if v4 => Ipv4Addr::new(10, 244, 1, 250).into(),
            From::Pod => Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 0xfa).into(),
            From::Node => {
                let family = if v4 { IpFamily::V4 } else { IpFamily::V6 };
                self.node_address(family).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
            }
            From::Outside if v4 => Ipv4Addr::new(10, 89, 0, 100).into(),
            From::Outside => Ipv6Addr::new(0xfd00, 0x89, 0, 0, 0, 0, 0, 0x100).into(),
        };
        let next = if *ports == PORTS { &self.next_port } else { &self.next_kept_port };
        let port = ports.start + next.fetch_add(1, Ordering::Relaxed) % (ports.end - ports.start);
        Flow::new(SocketAddr::new(source, port), to, protocol)
    }

    /// Where the first packet of a flow goes.
    fn deliver(&self, flow: &Flow) -> Delivery {
        first_taker(&self.datapaths, |datapath| datapath.connect(flow))
    }

    fn name(&self, delivery: &Delivery, flow: &Flow) -> Result<String, String> {
        named(&self.pods, delivery, flow)
    }
}

fn first_taker(
    datapaths: &RwLock<Vec<Arc<MemoryDatapath>>>,
    offer: impl Fn(&MemoryDatapath) -> Delivery,
) -> Delivery {
    let datapaths = datapaths.read();
    let mut answers = datapaths.iter().map(|datapath| offer(datapath));
    answers.find(|answer| *answer != Delivery::Pass).unwrap_or(Delivery::Pass)
}

fn named(pods: &HashMap<IpAddr, String>, delivery: &Delivery, flow: &Flow) -> Result<String, String> {
    match delivery {
        Delivery::To(choice) => {
            let address = choice.backend.address;
            Ok(pods.get(&address).cloned().unwrap_or_else(|| address.to_string()))
        }
        other => Err(format!("{} to {}: {other:?}", flow.source, flow.destination)),
    }
}

impl World for SimulatedWorld {
    fn is_simulated(&self) -> bool {
        true
    }

    fn node(&self) -> NodeInfo {
        self.node.clone()
    }

    fn datapath(&self, _kind: Kind) -> Result<Arc<dyn Datapath>, DatapathError> {
        let datapath = Arc::new(MemoryDatapath::new());
        self.datapaths.write().push(Arc::clone(&datapath));
        Ok(datapath)
    }

    fn request(&self, from: From, protocol: Protocol, to: SocketAddr) -> Result<Answer, String> {
        let flow = self.flow(from, protocol, to, &PORTS);
        let begin = Instant::now();
        let delivery = self.deliver(&flow);
        let connect = begin.elapsed();
        let backend = self.name(&delivery, &flow)?;
        for datapath in &*self.datapaths.read() {
            datapath.disconnect(&flow);
        }
        Ok(Answer { backend, connect })
    }

    fn connect(&self, from: From, to: SocketAddr) -> Result<Box<dyn Connection>, String> {
        let flow = self.flow(from, Protocol::Tcp, to, &KEPT_PORTS);
        let backend = self.name(&self.deliver(&flow), &flow)?;
        let (pods, datapaths) = (self.pods.clone(), Arc::clone(&self.datapaths));
        Ok(Box::new(SimulatedConnection { flow, backend, pods, datapaths }))
    }

    fn is_refused(&self, from: From, protocol: Protocol, to: SocketAddr) -> Result<(), String> {
        let flow = self.flow(from, protocol, to, &PORTS);
        match self.deliver(&flow) {
            Delivery::Reject => Ok(()),
            other => Err(format!("{from:?} to {to}: {other:?} instead of refused")),
        }
    }

    fn keep(&self, _manifests: &Manifests, _kind: Option<Kind>) -> Result<(), Box<dyn Error>> {
        println!("Nothing to keep: the run was simulated.");
        Ok(())
    }
}

struct SimulatedConnection {
    flow: Flow,
    backend: String,
    pods: HashMap<IpAddr, String>,
    datapaths: Arc<RwLock<Vec<Arc<MemoryDatapath>>>>,
}

impl Connection for SimulatedConnection {
    fn ask(&mut self) -> Result<Answer, String> {
        let delivery = first_taker(&self.datapaths, |datapath| datapath.send(&self.flow));
        let backend = named(&self.pods, &delivery, &self.flow)?;
        if backend != self.backend {
            return Err(format!("moved from {} to {backend}", self.backend));
        }
        Ok(Answer { backend, connect: Duration::ZERO })
    }
}
