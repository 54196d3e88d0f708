//! A network namespace with the devices and routes of a small node, and the programs loaded for it.

use std::{
    env,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::Path,
    thread,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, PerCpuArray, lpm_trie},
    programs::{ProgramError, SchedClassifier, TcAttachType, tc},
};

use nix::sys::signal::{SigSet, SigmaskHow};

use crate::{
    frame::Proto,
    netns::{TAP, VETH, node_namespace},
    nets::{Net, V4, V6},
    tap::Tap,
};

pub use crate::run::{Hook, Outcome};

/// The object under test, unless `KUBENET_BPF_OBJECT` names another, to compare builds.
const OBJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/kubenet.bpf.o");

/// TC's answers.
pub const UNSPEC: i32 = -1;
pub const OK: i32 = 0;
pub const SHOT: i32 = 2;
pub const REDIRECT: i32 = 7;

pub const MASQ_PODS: u32 = 0x01;
pub const MASQ_OUTSIDE: u32 = 0x04;
pub const INTERNAL_DROP: u32 = 0x08;
pub const EXTERNAL_DROP: u32 = 0x10;
pub const MAGLEV: u32 = 0x40;
pub const LISTED: u32 = 0x80;
pub const SOURCE_RANGES: u32 = 0x100;
pub const SOURCE_NODE: u32 = 0x200;

pub const ALIVE: u16 = 0x01;
pub const LOCAL: u16 = 0x02;
pub const TERMINATING: u16 = 0x04;

pub const DRAINING: u32 = 0x01;
pub const SNAT6_SECOND: u32 = 0x02;

/// Counters, by their index in `metrics`.
#[allow(dead_code, reason = "each has its place")]
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Metric {
    Forwarded = 0,
    NewFlow,
    Rejected,
    NoLocalBackend,
    Fragment,
    SnatExhausted,
    ConntrackFull,
    Malformed,
    Route,
    SourceRange,
    FragmentEarly,
    EventOverBudget,
    EventLost,
    EventLostToFollower,
    Spoofed,
}

/// How the programs are loaded, and for which device.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub external: &'static str,
    /// With direct server return.
    pub direct: bool,
    /// XDP has the programs of TC behind it.
    pub external_tc: bool,
    /// Packets go straight into pods.
    pub peer: bool,
    /// Places for flows, and buckets of their index: a small table, so that it fills up.
    pub pairs: u32,
    pub buckets: u32,
    /// What flows are looked for by, if not what the object has.
    pub seed: Option<[u64; 11]>,
}

impl Setup {
    pub const USUAL: Self = Self {
        external: VETH,
        direct: false,
        external_tc: true,
        peer: false,
        pairs: 4096,
        buckets: 2048,
        seed: None,
    };
}

/// Runs a test on a thread of its own in a namespace of its own. Without root it is skipped, in CI it fails.
pub fn on_bench(test: impl FnOnce(&mut Bench) + Send) {
    on_bench_with(Setup::USUAL, test);
}

/// As [`on_bench`], with direct server return.
pub fn on_direct_bench(test: impl FnOnce(&mut Bench) + Send) {
    on_bench_with(Setup { direct: true, ..Setup::USUAL }, test);
}

/// As [`for_each_kind`], with direct server return.
pub fn for_each_kind_directly(test: impl Fn(&mut Bench, Net, Proto) + Send + Sync) {
    on_direct_bench(|bench| each_kind(bench, &Proto::ALL, |bench, net, proto| test(bench, net, proto)));
}

/// Runs a test once for each family and protocol, on one bench.
pub fn for_each_kind(test: impl Fn(&mut Bench, Net, Proto) + Send + Sync) {
    on_bench(|bench| each_kind(bench, &Proto::ALL, |bench, net, proto| test(bench, net, proto)));
}

/// The same without SCTP.
pub fn for_tcp_and_udp(test: impl Fn(&mut Bench, Net, Proto) + Send + Sync) {
    on_bench(|bench| {
        each_kind(bench, &[Proto::Tcp, Proto::Udp], |bench, net, proto| test(bench, net, proto))
    });
}

/// The same with real frames at the external device, where the programs are attached. A TAP device completes no
/// checksums of SCTP.
pub fn for_each_kind_on_tap(test: impl Fn(&mut Bench, &mut Tap, Net, Proto) + Send + Sync) {
    if !Path::new("/dev/net/tun").exists() {
        return skip("there is no /dev/net/tun");
    }
    on_bench_with(Setup { external: TAP, ..Setup::USUAL }, |bench| {
        let mut tap = Tap::open("ext0");
        bench.attach();
        each_kind(bench, &[Proto::Tcp, Proto::Udp], |bench, net, proto| test(bench, &mut tap, net, proto));
    });
}

/// Says why a test is skipped; where nothing may be skipped, that is a failure.
fn skip(why: &str) {
    assert!(env::var_os("CI").is_none_or(|ci| ci != "true"), "skipped in CI: {why}");
    eprintln!("skipped: {why}");
}

/// As [`on_bench`], with another set-up.
pub fn on_bench_with(setup: Setup, test: impl FnOnce(&mut Bench) + Send) {
    if !nix::unistd::geteuid().is_root() {
        return skip("loading BPF programs needs root");
    }
    thread::scope(|scope| {
        if let Err(panic) = scope.spawn(|| test(&mut Bench::new(setup))).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn each_kind(bench: &mut Bench, protocols: &[Proto], mut test: impl FnMut(&mut Bench, Net, Proto)) {
    for net in [V4, V6] {
        for proto in protocols {
            eprintln!("{proto:?} from {}", net.pod);
            bench.clear();
            test(bench, net, *proto);
        }
    }
}

pub struct Bench {
    pub ebpf: Ebpf,
    pub pod0: u32,
    pub ext0: u32,
    pub next_backend: u32,
    next_slot: u32,
    pub next_service: u32,
    /// The id and the timeout of Services to come.
    pub affinity: (u32, u32),
    pub setup: Setup,
}

impl Bench {
    fn new(setup: Setup) -> Self {
        let Setup { pairs, buckets, .. } = setup;
        node_namespace(setup.external);

        let object = env::var("KUBENET_BPF_OBJECT").unwrap_or_else(|_| OBJECT.into());
        let mut loader = EbpfLoader::new();
        for map in ["affinity4", "affinity6", "socket_peers4", "socket_peers6", "fragments4", "fragments6"] {
            loader.map_max_entries(map, 4096);
        }
        let counts = (buckets / 2).div_ceil(crate::table::COUNTS as u32);
        for (map, size) in [
            ("flows4", pairs),
            ("flows6", pairs),
            ("flow_index4", buckets),
            ("flow_index6", buckets),
            ("flow_counts4", counts),
            ("flow_counts6", counts),
        ] {
            loader.map_max_entries(map, size);
        }
        let mask = buckets - 1;
        loader.override_global("flow_pairs", &pairs, true);
        loader.override_global("flow_mask", &mask, true);
        if let Some(seed) = &setup.seed {
            loader.override_global("flow_secret", seed, true);
        }
        let (direct, external_tc) = (u32::from(setup.direct), u32::from(setup.external_tc));
        let peer = u32::from(setup.peer);
        loader.override_global("have_dsr", &direct, true);
        loader.override_global("has_external_tc", &external_tc, true);
        loader.override_global("have_peer", &peer, true);
        let mut ebpf = loader.load_file(object).expect("load the object");
        for name in ["kubenet_from_pod", "kubenet_from_external", "kubenet_to_device"] {
            without_signals(|| program(&mut ebpf, name).load());
        }
        let index = |name| nix::net::if_::if_nametoindex(name).expect("device");
        let (pod0, ext0) = (index("pod0"), index("ext0"));
        Self { ebpf, pod0, ext0, next_backend: 1, next_slot: 0, next_service: 1, affinity: (0, 0), setup }
    }

    /// Attaches the programs to the external device.
    fn attach(&mut self) {
        // Needed before TCX; refused, rightly, when it is there.
        let _ = tc::qdisc_add_clsact("ext0");
        for (name, side) in
            [("kubenet_from_external", TcAttachType::Ingress), ("kubenet_to_device", TcAttachType::Egress)]
        {
            program(&mut self.ebpf, name).attach("ext0", side).expect("attach");
        }
    }

    /// No Services and no flows; the facts about the node as they are in most tests.
    pub fn clear(&mut self) {
        empty::<8, 32>(self.map_mut("services4"));
        empty::<20, 32>(self.map_mut("services6"));
        self.forget_flows();
        empty::<4, 4>(self.map_mut("node_addrs4"));
        empty::<16, 4>(self.map_mut("node_addrs6"));
        for net in [V4, V6] {
            self.node_address(net.node, 0x03);
            self.node_address(net.node_inner, 0x01);
            self.pod_cidr(net.pod, if net.pod.is_ipv4() { 24 } else { 64 });
            self.pod_cidr(net.pod_there, if net.pod.is_ipv4() { 24 } else { 64 });
        }
        empty::<4, 4>(self.map_mut("cluster_ips4"));
        empty::<16, 4>(self.map_mut("cluster_ips6"));
        empty::<4, 4>(self.map_mut("service_addrs4"));
        empty::<16, 4>(self.map_mut("service_addrs6"));
        empty::<4, 4>(self.map_mut("pod_interfaces"));
        empty::<4, 4>(self.map_mut("pod_peers"));
        empty::<20, 4>(self.map_mut("xdp_hops"));
        empty::<8, 16>(self.map_mut("affinity4"));
        empty::<20, 16>(self.map_mut("affinity6"));
        self.affinity = (0, 0);
        self.configure(0, 20000..=29999);
    }

    pub fn map_mut(&mut self, name: &str) -> &mut aya::maps::Map {
        self.ebpf.map_mut(name).expect(name)
    }

    pub fn insert<const K: usize, const V: usize>(&mut self, name: &str, key: &[u8], value: &[u8]) {
        let mut map = HashMap::<_, [u8; K], [u8; V]>::try_from(self.map_mut(name)).expect("hash map");
        let key: [u8; K] = key.try_into().expect("key");
        let value: [u8; V] = value.try_into().expect("value");
        map.insert(key, value, 0).expect("insert");
    }

    fn set<const V: usize>(&mut self, name: &str, index: u32, value: &[u8]) {
        let mut map = Array::<_, [u8; V]>::try_from(self.map_mut(name)).expect("array");
        let value: [u8; V] = value.try_into().expect("value");
        map.set(index, value, 0).expect("set");
    }

    pub fn node_address(&mut self, address: IpAddr, flags: u32) {
        match address {
            IpAddr::V4(a) => self.insert::<4, 4>("node_addrs4", &a.octets(), &flags.to_ne_bytes()),
            IpAddr::V6(a) => self.insert::<16, 4>("node_addrs6", &a.octets(), &flags.to_ne_bytes()),
        }
    }

    fn pod_cidr(&mut self, address: IpAddr, len: u32) {
        match address {
            IpAddr::V4(a) => lpm_trie::LpmTrie::<_, [u8; 4], u32>::try_from(self.map_mut("pod_cidrs4"))
                .expect("trie")
                .insert(&lpm_trie::Key::new(len, a.octets()), 1, 0)
                .expect("insert"),
            IpAddr::V6(a) => lpm_trie::LpmTrie::<_, [u8; 16], u32>::try_from(self.map_mut("pod_cidrs6"))
                .expect("trie")
                .insert(&lpm_trie::Key::new(len, a.octets()), 1, 0)
                .expect("insert"),
        }
    }

    /// Flags, and this instance's ports to masquerade with.
    pub fn configure(&mut self, flags: u32, ports: RangeInclusive<u16>) {
        self.configure_shared(flags, ports, 0..=0);
    }

    /// The same with the ports of all instances.
    pub fn configure_shared(&mut self, flags: u32, own: RangeInclusive<u16>, all: RangeInclusive<u16>) {
        let mut value = octets(V4.node);
        value.extend(flags.to_ne_bytes());
        let mut snat6 = [octets(V6.node), vec![0xff; 16]];
        if flags & SNAT6_SECOND != 0 {
            snat6.reverse();
        }
        value.extend(snat6.concat());
        value.extend(0u64.to_ne_bytes());
        for port in [own.start(), own.end(), all.start(), all.end()] {
            value.extend(port.to_ne_bytes());
        }
        value.extend([0; 16]);
        self.set::<72>("config", 0, &value);
    }

    /// A backend with a fresh id.
    pub fn backend(&mut self, at: SocketAddr, flags: u16) -> u32 {
        let id = self.next_backend;
        self.next_backend += 1;
        self.set_backend(id, at, ALIVE | flags, 1);
        id
    }

    pub fn set_backend(&mut self, id: u32, at: SocketAddr, flags: u16, generation: u32) {
        let mut value = octets(at.ip());
        value.extend(at.port().to_be_bytes());
        value.extend(flags.to_ne_bytes());
        value.extend(generation.to_ne_bytes());
        match at {
            SocketAddr::V4(_) => self.set::<12>("backends4", id, &value),
            SocketAddr::V6(_) => self.set::<24>("backends6", id, &value),
        }
    }

    pub fn range(&mut self, backends: &[u32]) -> u32 {
        let base = self.next_slot;
        for id in backends {
            self.set::<4>("slots", self.next_slot, &id.to_ne_bytes());
            self.next_slot += 1;
        }
        base
    }

    /// Serves a frontend, and says the id of the service. The address of a node port is that of nobody: all zero.
    pub fn serve(
        &mut self,
        frontend: SocketAddr,
        proto: Proto,
        flags: u32,
        internal: &[u32],
        external: &[u32],
    ) -> u32 {
        let mut value = Vec::new();
        for set in [internal, external] {
            value.extend(self.range(set).to_ne_bytes());
            value.extend((set.len() as u32).to_ne_bytes());
        }
        value.extend(self.next_service.to_ne_bytes());
        value.extend(flags.to_ne_bytes());
        value.extend(self.affinity.0.to_ne_bytes());
        value.extend(self.affinity.1.to_ne_bytes());
        self.next_service += 1;
        let key = service_key(frontend, proto);
        match frontend {
            SocketAddr::V4(_) => self.insert::<8, 32>("services4", &key, &value),
            SocketAddr::V6(_) => self.insert::<20, 32>("services6", &key, &value),
        }
        self.next_service - 1
    }

    /// The same with one set for all, and the list of its members behind the slots where the flags say so.
    pub fn serve_listed(&mut self, frontend: SocketAddr, proto: Proto, flags: u32, set: &[u32]) {
        const MAGLEV_SLOTS: usize = 256;
        let picks: Vec<u32> = if flags & MAGLEV == 0 {
            set.to_vec()
        } else {
            set.iter().rev().cycle().take(MAGLEV_SLOTS).copied().collect()
        };
        self.serve(frontend, proto, flags, &picks, &[]);
        if flags & LISTED != 0 {
            // Right behind the set: that for clients outside is empty.
            let count = [set.len() as u32];
            self.range(&[&count, set, &vec![1; set.len()]].concat());
        }
    }

    /// Forgets every flow, and what became of fragments.
    pub fn forget_flows(&mut self) {
        empty::<16, 16>(self.map_mut("fragments4"));
        empty::<40, 40>(self.map_mut("fragments6"));
        self.empty_table();
    }

    /// Changes the backends of a frontend, which stays the same Service's.
    pub fn replace_set(&mut self, frontend: SocketAddr, proto: Proto, backends: &[u32]) {
        self.replace_set_with(0, frontend, proto, backends);
    }

    /// The same with flags.
    pub fn replace_set_with(&mut self, flags: u32, frontend: SocketAddr, proto: Proto, backends: &[u32]) {
        let id = self.next_service;
        self.next_service -= 1;
        self.serve(frontend, proto, flags, backends, backends);
        assert_eq!(self.next_service, id);
    }

    pub fn remove_service(&mut self, frontend: SocketAddr, proto: Proto) {
        let key = service_key(frontend, proto);
        match frontend {
            SocketAddr::V4(_) => {
                let map = self.map_mut("services4");
                let mut map = HashMap::<_, [u8; 8], [u8; 32]>::try_from(map).expect("hash map");
                map.remove(&key.try_into().expect("key")).expect("remove");
            }
            SocketAddr::V6(_) => {
                let map = self.map_mut("services6");
                let mut map = HashMap::<_, [u8; 20], [u8; 32]>::try_from(map).expect("hash map");
                map.remove(&key.try_into().expect("key")).expect("remove");
            }
        }
    }

    pub fn metric(&mut self, metric: Metric) -> u64 {
        let map = PerCpuArray::<_, u64>::try_from(self.map_mut("metrics")).expect("metrics");
        map.get(&(metric as u32), 0).expect("metric").iter().sum()
    }
}

pub fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut SchedClassifier {
    ebpf.program_mut(name).and_then(|program| program.try_into().ok()).expect(name)
}

/// The verifier gives up when a signal is pending, be it only that another test's child has ended.
pub fn without_signals(load: impl FnOnce() -> Result<(), ProgramError>) {
    let old = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK).expect("block signals");
    let loaded = load();
    old.thread_set_mask().expect("let signals come");
    loaded.expect("the verifier accepts the program");
}

fn empty<const K: usize, const V: usize>(map: &mut aya::maps::Map) {
    let mut map = HashMap::<_, [u8; K], [u8; V]>::try_from(map).expect("hash map");
    let keys: Vec<_> = map.keys().map(|key| key.expect("key")).collect();
    for key in keys {
        map.remove(&key).expect("remove");
    }
}

pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn service_key(frontend: SocketAddr, proto: Proto) -> Vec<u8> {
    let mut key = octets(frontend.ip());
    key.extend(frontend.port().to_be_bytes());
    key.extend([proto.number(), 0]);
    key
}
