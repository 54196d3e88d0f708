//! The way from objects to described packets: [`Intake`], [`ServiceRouter`], [`MemoryDatapath`].

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, executor::block_on, stream::BoxStream};
use k8s_openapi::serde::de::DeserializeOwned;
use kubenet_core::{
    datapath::Datapath,
    kubernetes::{Converter, Intake, Taken},
    model::{IpFamily, NodeInfo, NodeInfoBuilder, Protocol},
    route::{FrontendKind, RouteTable},
    router::{RouterEvent, RouterOptions, ServiceRouter},
};
use kubenet_testkit::{
    faults::FaultyDatapath,
    memory::{Choice, Delivery, Flow, MemoryDatapath, Verdict},
};
use serde_json::{Value, json};

use crate::manifest::{address, at, node, pod_at, slices, web};

/// What a packet meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// One of these backends.
    To(Vec<String>),
    /// The client is told at once.
    Rejected,
    /// Silence.
    Dropped,
    /// Nobody's: left to the stack.
    Passed,
}

pub(crate) use Answer::{Dropped, Passed, Rejected};

/// The answer of one of these backends.
pub(crate) fn to<const N: usize>(backends: [&str; N]) -> Answer {
    Answer::To(backends.map(str::to_owned).into())
}

/// What a world begins with.
pub(crate) struct Setup {
    pub(crate) node: NodeInfo,
    pub(crate) converter: Converter,
    pub(crate) memory: MemoryDatapath,
    pub(crate) options: RouterOptions,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            node: node_a(|builder| builder),
            converter: Converter::new(),
            memory: MemoryDatapath::new(),
            options: RouterOptions::default(),
        }
    }
}

/// The node under test, which knows pods by the ranges of the cluster, with changes.
pub(crate) fn node_a(change: impl FnOnce(NodeInfoBuilder) -> NodeInfoBuilder) -> NodeInfo {
    node_info(node(json!({})), change)
}

/// What a Node object says, and the cluster's ranges, with changes.
pub(crate) fn node_info(object: Value, change: impl FnOnce(NodeInfoBuilder) -> NodeInfoBuilder) -> NodeInfo {
    let object: k8s_openapi::api::core::v1::Node = typed(&object);
    let builder = NodeInfo::try_from(&object).unwrap().into_builder();
    let builder = ["10.244.0.0/16", "fd00:244::/32"]
        .iter()
        .fold(builder, |builder, cidr| builder.cluster_cidr(cidr.parse().unwrap()));
    change(builder).build().unwrap()
}

fn typed<T: DeserializeOwned>(object: &Value) -> T {
    serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object}"))
}

/// A node that serves what was declared.
pub(crate) struct World {
    pub(crate) memory: Arc<MemoryDatapath>,
    /// Between the router and `memory`.
    pub(crate) faulty: Arc<FaultyDatapath>,
    pub(crate) router: ServiceRouter,
    node: NodeInfo,
    intake: Intake,
    events: BoxStream<'static, RouterEvent>,
    /// Problems and notices of the last objects.
    pub(crate) told: Vec<String>,
}

impl World {
    /// A node that nothing was declared to.
    pub(crate) fn unsynced(setup: Setup) -> Self {
        let memory = Arc::new(setup.memory);
        let faulty = Arc::new(FaultyDatapath::new(Arc::clone(&memory) as _));
        let datapath: Arc<dyn Datapath> = Arc::clone(&faulty) as _;
        let router = ServiceRouter::start_with(setup.node.clone(), datapath, setup.options).unwrap();
        let (events, intake) = (router.events(), Intake::new(setup.converter));
        Self { memory, faulty, router, node: setup.node, intake, events, told: Vec::new() }
    }

    /// A node where these objects are listed.
    pub(crate) fn new(setup: Setup, objects: impl IntoIterator<Item = Value>) -> Self {
        let mut world = Self::unsynced(setup);
        world.list(objects);
        world
    }

    /// The usual node, where Service `web` has these endpoints.
    pub(crate) fn web(spec: Value, endpoints: impl IntoIterator<Item = Value>) -> Self {
        Self::web_on(Setup::default(), spec, endpoints)
    }

    /// Another node with the same.
    pub(crate) fn web_on(setup: Setup, spec: Value, endpoints: impl IntoIterator<Item = Value>) -> Self {
        Self::new(setup, [web(spec)].into_iter().chain(slices(endpoints)))
    }

    fn take(&mut self, object: &Value) -> Taken {
        match object["kind"].as_str().unwrap() {
            "Service" => self.intake.service(&typed(object)),
            "EndpointSlice" => self.intake.endpoint_slice(&typed(object)),
            other => panic!("a {other}"),
        }
    }

    fn submit(&mut self, taken: Taken) {
        let problems = taken.problems.iter().map(ToString::to_string);
        self.told = problems.chain(taken.notices.iter().map(ToString::to_string)).collect();
        self.router.submit_all(taken.changes).unwrap();
        if self.intake.is_complete() {
            self.router.synced().unwrap();
        }
    }

    /// All objects that exist, of both kinds, reach the kernel.
    pub(crate) fn list(&mut self, objects: impl IntoIterator<Item = Value>) {
        let (services, slices): (Vec<_>, Vec<_>) =
            objects.into_iter().partition(|object| object["kind"] == "Service");
        let mut taken = self.take_list(true, services);
        taken.append(self.take_list(false, slices));
        self.submit(taken);
        self.flush();
    }

    /// All objects that exist of one kind, and nobody waits for the kernel.
    pub(crate) fn list_kind(&mut self, objects: Vec<Value>) {
        let taken = self.take_list(objects[0]["kind"] == "Service", objects);
        self.submit(taken);
    }

    fn take_list(&mut self, services: bool, objects: Vec<Value>) -> Taken {
        if services {
            self.intake.begin_services()
        } else {
            self.intake.begin_endpoint_slices()
        }
        let mut taken = Taken::default();
        for object in objects {
            taken.append(self.take(&object));
        }
        taken.append(if services { self.intake.end_services() } else { self.intake.end_endpoint_slices() });
        taken
    }

    /// A watch delivers objects that are new or changed, and nobody waits for the kernel.
    pub(crate) fn watch(&mut self, objects: impl IntoIterator<Item = Value>) {
        let mut taken = Taken::default();
        for object in objects {
            taken.append(self.take(&object));
        }
        self.submit(taken);
    }

    /// In one burst, objects are deleted, and others are new or changed; it reaches the kernel.
    pub(crate) fn burst(
        &mut self,
        deleted: impl IntoIterator<Item = Value>,
        objects: impl IntoIterator<Item = Value>,
    ) {
        let mut taken = Taken::default();
        for object in deleted {
            let field = |name: &str| object["metadata"][name].as_str().unwrap();
            taken.append(match object["kind"].as_str().unwrap() {
                "Service" => self.intake.service_gone(field("namespace"), field("name")),
                _ => self.intake.endpoint_slice_gone(field("namespace"), field("name")),
            });
        }
        for object in objects {
            taken.append(self.take(&object));
        }
        self.submit(taken);
        self.flush();
    }

    /// Waits until the kernel has everything.
    pub(crate) fn flush(&self) {
        assert!(block_on(self.router.flush()).unwrap().is_healthy());
    }

    /// Objects that are new or changed reach the kernel.
    pub(crate) fn apply(&mut self, objects: impl IntoIterator<Item = Value>) {
        self.burst([], objects);
    }

    /// The deletion of an object reaches the kernel.
    pub(crate) fn delete(&mut self, object: &Value) {
        self.burst([object.clone()], []);
    }

    /// Service `web` has these endpoints from now on.
    pub(crate) fn endpoints(&mut self, endpoints: impl IntoIterator<Item = Value>) {
        self.apply(slices(endpoints));
    }

    /// The node changes.
    pub(crate) fn node(&mut self, node: NodeInfo) {
        self.node = node.clone();
        self.router.submit(node).unwrap();
        self.flush();
    }

    /// What happened in the router since the last question.
    pub(crate) fn events(&mut self) -> Vec<RouterEvent> {
        std::iter::from_fn(|| self.events.next().now_or_never().flatten()).collect()
    }

    /// What the kernel has.
    pub(crate) fn table(&self) -> RouteTable {
        block_on(self.memory.read()).unwrap()
    }

    /// Frontends and whose they are.
    pub(crate) fn frontends(&self) -> Vec<String> {
        self.table().routes().map(|route| format!("{} {}", route.frontend, route.service_port)).collect()
    }

    /// What new flows of a client to Service `web` meet: the same in both families and for every protocol.
    pub(crate) fn dial(&self, client: &str, kind: FrontendKind) -> Answer {
        self.same_everywhere(client, kind, Self::packet)
    }

    /// The same, and whom each backend sees: the client, or the node in its place.
    pub(crate) fn seen(&self, client: &str, kind: FrontendKind) -> Answer {
        self.same_everywhere(client, kind, Self::seen_by_packet)
    }

    fn same_everywhere(
        &self,
        client: &str,
        kind: FrontendKind,
        ask: impl Fn(&Self, &str, &str, Protocol) -> Answer,
    ) -> Answer {
        let mut first = None;
        for family in IpFamily::ALL {
            for protocol in Protocol::ALL {
                let answer = ask(self, client, at(family, kind), protocol);
                let first = first.get_or_insert_with(|| answer.clone());
                assert_eq!(*first, answer, "{client} to {} by {protocol}", at(family, kind));
            }
        }
        first.unwrap()
    }

    /// What one described packet of a new flow meets.
    pub(crate) fn packet(&self, client: &str, destination: &str, protocol: Protocol) -> Answer {
        self.ask(client, destination, protocol, backend)
    }

    /// The same, and whom each backend sees.
    pub(crate) fn seen_by_packet(&self, client: &str, destination: &str, protocol: Protocol) -> Answer {
        self.ask(client, destination, protocol, |choice| {
            let family = IpFamily::of(choice.backend.address);
            let mut addresses = self.node.addresses().iter();
            let node = addresses.find(|address| IpFamily::of(**address) == family);
            let client = flow(client, destination, protocol).source.ip();
            let (who, address) =
                if choice.masquerade { ("node", *node.unwrap()) } else { ("client", client) };
            assert_eq!(choice.sees, address, "{choice:?}");
            format!("{} sees the {who}", backend(choice))
        })
    }

    fn ask(
        &self,
        client: &str,
        destination: &str,
        protocol: Protocol,
        name: impl Fn(&Choice) -> String,
    ) -> Answer {
        match self.memory.route(&flow(client, destination, protocol)) {
            Verdict::Forward(choices) => Answer::To(choices.iter().map(name).collect()),
            Verdict::Reject => Rejected,
            Verdict::Drop => Dropped,
            Verdict::Pass => Passed,
        }
    }

    /// Begins a flow.
    pub(crate) fn connect(&self, flow: &Flow) -> Answer {
        answer(self.memory.connect(flow))
    }

    /// Goes on with a flow.
    pub(crate) fn send(&self, flow: &Flow) -> Answer {
        answer(self.memory.send(flow))
    }
}

fn answer(delivery: Delivery) -> Answer {
    match delivery {
        Delivery::To(choice) => Answer::To(vec![backend(&choice)]),
        Delivery::Reject => Rejected,
        Delivery::Drop => Dropped,
        Delivery::Pass => Passed,
    }
}

/// The pod, and its port where that is not the usual one.
fn backend(choice: &Choice) -> String {
    let pod = pod_at(choice.backend.address);
    match choice.backend.port.get() {
        8080 => pod,
        port => format!("{pod}:{port}"),
    }
}

/// A flow of a client: the name of a place, or an address; `a9@cni0` comes in through that interface.
pub(crate) fn flow(client: &str, destination: &str, protocol: Protocol) -> Flow {
    let destination: SocketAddr = destination.parse().unwrap();
    let (place, interface) = client.split_once('@').map_or((client, None), |(p, i)| (p, Some(i)));
    let named = || address(IpFamily::of(destination.ip()), place).parse().unwrap();
    let source: IpAddr = place.parse().unwrap_or_else(|_| named());
    let flow = Flow::new(SocketAddr::new(source, 40000), destination, protocol);
    match interface {
        Some(interface) => flow.through(interface),
        None => flow,
    }
}

/// Waits for what the router does on its own.
pub(crate) fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}
