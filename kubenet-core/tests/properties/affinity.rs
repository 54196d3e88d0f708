//! Whatever happens, clients stay with their backends as [A1] to [A3] say, and flows as [L1] to [L3] do.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::executor::block_on;
use kubenet_core::{
    cluster::Cluster,
    datapath::Datapath,
    model::{
        Affinity, Endpoint, EndpointPort, EndpointSlice, IpFamily, NodeInfo, Protocol, Service, ServicePort,
    },
    resolve::resolve,
    route::{Route, ServicePortName},
};
use kubenet_testkit::memory::{Choice, Delivery, Flow, MemoryDatapath, Verdict};
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
};

use crate::{
    cases, fixed,
    routing::{Pick, any_pick},
    sample,
    world::{Tweak, World, any_small_tweak, any_tweak, any_world, percent},
};

/// What happens.
#[derive(Clone, Debug)]
enum Event {
    /// Somebody dials something.
    Connect(Index, Index),
    /// A flow from before goes on.
    Send(Index),
    /// A flow ends.
    Disconnect(Index),
    /// So many seconds pass.
    Advance(u64),
    /// The cluster changes; the datapath follows by delta, or is given the table.
    Change(Tweak, bool),
}

fn any_event() -> impl Strategy<Value = Event> {
    let index = any::<Index>;
    let tweak = prop_oneof![1 => any_tweak(), 5 => any_small_tweak()];
    prop_oneof![
        8 => (index(), index()).prop_map(|(to, from)| Event::Connect(to, from)),
        3 => index().prop_map(Event::Send),
        1 => index().prop_map(Event::Disconnect),
        2 => select(&[1, 9, 11, 99, 101, 10_799, 20_000][..]).prop_map(Event::Advance),
        3 => (tweak, any::<bool>()).prop_map(|(tweak, by_delta)| Event::Change(tweak, by_delta)),
    ]
}

/// Most of its Services keep their clients.
fn any_sticky_world() -> impl Strategy<Value = World> {
    let timeouts = vec((percent(80), select(&[10, 100, 10_800][..])), 8);
    (any_world(), timeouts).prop_map(|(mut world, timeouts)| {
        for (service, (sticks, timeout)) in world.services.values_mut().zip(timeouts) {
            service.affinity = sticks.then_some(timeout);
            // What consistent hashing leaves to choose is another matter.
            service.maglev = false;
        }
        world
    })
}

/// A client of a Service port.
struct Client {
    backend: SocketAddr,
    /// When it last began a flow.
    last: u64,
    /// Whether the backend was gone for a while, or the affinity was: the rules do not say what that means.
    interrupted: bool,
}

/// What the rules remember.
struct Memory {
    datapath: MemoryDatapath,
    cluster: Cluster,
    now: u64,
    clients: HashMap<(ServicePortName, IpAddr), Client>,
    /// Flows that were begun, and their backends; none where it is gone.
    flows: Vec<(Flow, Option<Choice>)>,
    seen: BTreeMap<&'static str, usize>,
}

fn same(a: &Choice, b: &Choice) -> bool {
    a.backend.socket_addr() == b.backend.socket_addr()
}

impl Memory {
    fn new(world: &World) -> Self {
        let mut cluster = Cluster::new(world.node.build());
        cluster.change(world.snapshot());
        cluster.take_delta();
        let datapath = MemoryDatapath::new();
        block_on(datapath.replace(Arc::clone(cluster.table()))).unwrap();
        Self { datapath, cluster, now: 0, clients: HashMap::new(), flows: Vec::new(), seen: BTreeMap::new() }
    }

    fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    fn route(&self, flow: &Flow) -> Option<Arc<Route>> {
        let port = flow.destination.port().try_into().ok()?;
        self.cluster.table().lookup(flow.destination.ip(), port, flow.protocol).cloned()
    }

    fn connect(&mut self, flow: &Flow) -> Result<(), TestCaseError> {
        let (verdict, delivery) = (self.datapath.route(flow), self.datapath.connect(flow));
        self.begun(flow, &verdict, delivery)
    }

    /// A flow begins: holds what becomes of it against the rules, and remembers it.
    fn begun(&mut self, flow: &Flow, verdict: &Verdict, delivery: Delivery) -> Result<(), TestCaseError> {
        self.flows.retain(|(known, _)| known != flow);
        let choice = match (verdict, delivery) {
            (Verdict::Forward(choices), Delivery::To(choice)) => {
                prop_assert!(choices.contains(&choice), "{choice:?} is none of {choices:?}");
                choice
            }
            (Verdict::Reject, Delivery::Reject)
            | (Verdict::Drop, Delivery::Drop)
            | (Verdict::Pass, Delivery::Pass) => return Ok(()),
            (verdict, delivery) => return Err(TestCaseError::fail(format!("{delivery:?} for {verdict:?}"))),
        };
        self.flows.push((flow.clone(), Some(choice)));
        let (Some(route), Verdict::Forward(choices)) = (self.route(flow), verdict) else { return Ok(()) };
        let key = (route.service_port.clone(), flow.source.ip());
        let Some(affinity) = route.affinity else {
            self.clients.remove(&key);
            return Ok(());
        };
        let backend = choice.backend.socket_addr();
        if let Some(client) = self.clients.get(&key) {
            let applies = choices.iter().any(|choice| choice.backend.socket_addr() == client.backend);
            // The very second of the timeout may go either way.
            let in_time = self.now - client.last < u64::from(affinity.timeout_seconds());
            let what = match (in_time, applies) {
                (false, _) => "A1 too late",
                (_, false) if client.interrupted => "A2 gone",
                (_, false) => "A2 not in the applicable set",
                _ if client.interrupted => "nothing is said of one that goes and comes back",
                _ => {
                    prop_assert_eq!(backend, client.backend, "[A1]: {:?} of {:?}", flow, route);
                    if choices.len() > 1 { "A1 stays, where it had a choice" } else { "A1 stays" }
                }
            };
            self.saw(what);
        }
        self.clients.insert(key, Client { backend, last: self.now, interrupted: false });
        Ok(())
    }

    /// A later packet of a flow that was begun.
    fn send(&mut self, flow: &Flow, kept: Option<Choice>) -> Result<(), TestCaseError> {
        let (verdict, delivery) = (self.datapath.route(flow), self.datapath.send(flow));
        let Some(kept) = kept else {
            self.saw("L2 UDP chooses again");
            return self.begun(flow, &verdict, delivery);
        };
        let stays = matches!(delivery, Delivery::To(to) if same(&to, &kept));
        prop_assert!(stays, "{flow:?} moved to {delivery:?}");
        self.saw(if flow.protocol == Protocol::Udp { "L3 UDP stays" } else { "L1 a connection stays" });
        Ok(())
    }

    fn change(&mut self, by_delta: bool) {
        let Some(delta) = self.cluster.take_delta() else { return };
        if by_delta {
            block_on(self.datapath.apply(Arc::new(delta))).unwrap();
        } else {
            block_on(self.datapath.replace(Arc::clone(self.cluster.table()))).unwrap();
        }
        let table = Arc::clone(self.cluster.table());
        for ((service_port, _), client) in &mut self.clients {
            let mut its = table.routes().filter(|route| route.service_port == *service_port);
            let is_there = |route: &Route| route.backends().any(|b| b.socket_addr() == client.backend);
            client.interrupted |= !its.any(|route| route.affinity.is_some() && is_there(route));
        }
        // [L1], [L3]: connections go on. [L2]: a datagram goes where it would be sent now, and nowhere else; its
        // flow is cut when its backend goes, and not mended by its return.
        for (flow, kept) in self.flows.iter_mut().filter(|(flow, _)| flow.protocol == Protocol::Udp) {
            let Verdict::Forward(choices) = self.datapath.route(flow) else {
                *kept = None;
                continue;
            };
            *kept = kept.filter(|kept| choices.iter().any(|choice| same(choice, kept)));
        }
    }

    fn happens(&mut self, world: &mut World, picks: &[Pick], event: &Event) -> Result<(), TestCaseError> {
        let nth = |index: &Index| picks[index.index(picks.len())].clone();
        match event {
            Event::Connect(to, from) => self.connect(&nth(to).dialled_by(&nth(from)).flow(world))?,
            Event::Send(index) if !self.flows.is_empty() => {
                let (flow, kept) = self.flows[index.index(self.flows.len())].clone();
                self.send(&flow, kept)?;
            }
            Event::Disconnect(index) if !self.flows.is_empty() => {
                let (flow, _) = self.flows.swap_remove(index.index(self.flows.len()));
                self.datapath.disconnect(&flow);
                if flow.protocol != Protocol::Udp {
                    prop_assert_eq!(self.datapath.send(&flow), Delivery::Pass, "nobody knows it any more");
                }
            }
            Event::Advance(seconds) => {
                self.now += seconds;
                self.datapath.advance(Duration::from_secs(*seconds));
            }
            Event::Change(tweak, by_delta) => {
                if let Some(change) = world.tweak(tweak) {
                    self.cluster.change(change);
                    self.change(*by_delta);
                }
            }
            Event::Send(_) | Event::Disconnect(_) => {}
        }
        Ok(())
    }
}

type Story = (World, Vec<Pick>, Vec<Event>);

/// Few picks, so that clients come again.
fn any_story() -> impl Strategy<Value = Story> {
    (any_sticky_world(), vec(any_pick(), 1..4), vec(any_event(), 1..120))
}

fn tell((mut world, picks, events): Story) -> Result<BTreeMap<&'static str, usize>, TestCaseError> {
    let mut memory = Memory::new(&world);
    for event in &events {
        memory.happens(&mut world, &picks, event)?;
    }
    Ok(memory.seen)
}

proptest! {
    #![proptest_config(cases(384))]

    #[test]
    fn a1_a2_a3_clients_stay_with_their_backends(story in any_story()) {
        tell(story)?;
    }
}

#[test]
fn every_rule_of_affinity_and_of_flows_is_met() {
    let (mut runner, strategy) = (fixed(), any_story());
    let mut counts = BTreeMap::<_, usize>::new();
    for _ in 0..500 {
        for (what, count) in tell(sample(&strategy, &mut runner)).unwrap() {
            *counts.entry(what).or_default() += count;
        }
    }
    counts.remove("nothing is said of one that goes and comes back");
    assert_eq!(counts.len(), 8, "{counts:#?}");
    assert!(counts.values().all(|count| *count >= 4), "{counts:#?}");
}

/// How many of 64 clients have another backend than before, where four are ready.
fn moved(timeout: u32, later_timeout: u32, wait: u64, port: [u16; 2]) -> usize {
    let number = |n: u16| n.try_into().unwrap();
    let table = |timeout| {
        let service = Service::builder("demo", "web")
            .cluster_ip([10, 96, 0, 1].into())
            .port(ServicePort::new("a", Protocol::Tcp, number(80)))
            .port(ServicePort::new("b", Protocol::Tcp, number(81)))
            .affinity(Affinity::new(timeout).unwrap())
            .build()
            .unwrap();
        let slice = EndpointSlice::builder("demo", "web-1", "web", IpFamily::V4)
            .port(EndpointPort::new("a", Protocol::Tcp, number(8080)))
            .port(EndpointPort::new("b", Protocol::Tcp, number(8080)))
            .endpoints((1..5).map(|n| Endpoint::new([10, 244, 1, n].into())))
            .build()
            .unwrap();
        let node = NodeInfo::builder("node-a").build().unwrap();
        Arc::new(resolve(&node, [&service], [&slice]))
    };
    let datapath = MemoryDatapath::new();
    let dial = |client: u8, port| {
        let source = SocketAddr::new([172, 16, 0, client].into(), 40_000);
        datapath.connect(&Flow::new(source, SocketAddr::new([10, 96, 0, 1].into(), port), Protocol::Tcp))
    };
    block_on(datapath.replace(table(timeout))).unwrap();
    let first: Vec<_> = (0..64).map(|client| dial(client, port[0])).collect();
    datapath.advance(Duration::from_secs(wait));
    block_on(datapath.replace(table(later_timeout))).unwrap();
    (0..64).filter(|client| dial(*client, port[1]) != first[usize::from(*client)]).count()
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn a1_a3_the_timeout_of_now_ends_the_affinity(timeouts in [1..=86_400u32, 1..=86_400u32], wait in 0..90_000u64) {
        let [timeout, later] = timeouts;
        let count = moved(timeout, later, wait, [80, 80]);
        if wait < later.into() {
            prop_assert_eq!(count, 0);
        } else if wait > later.into() {
            prop_assert!(count > 24, "of 64 clients that choose again, {} moved", count);
        }
    }

    #[test]
    fn a1_the_ports_of_a_service_choose_each_for_itself(timeout in 10..=86_400u32) {
        prop_assert!(moved(timeout, timeout, 1, [80, 81]) > 24);
    }
}
