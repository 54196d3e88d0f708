//! A lab with a datapath on node-a, for tests with real packets.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test binary uses a part; a failed step fails the test"
)]

pub mod kube_proxy;
pub mod programs;

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::Duration,
};

use kubenet_core::{
    model::{IpFamily, Protocol},
    route::{
        Backend, BackendState, Frontend, FrontendKind, Masquerade, Revision, Route, RouteTable,
        ServicePortName, Target, WhenEmpty,
    },
};
use kubenet_iptables::{IptablesBuilder, IptablesDatapath, Variant};
use kubenet_testkit::{
    conformance,
    lab::{Lab, LabConfig, LabError, Node, Place, Server},
};

pub const SECOND: Duration = Duration::from_secs(1);
pub const SHORT: Duration = Duration::from_millis(300);
pub const VARIANTS: [Variant; 2] = [Variant::Nft, Variant::Legacy];
pub const PORT: u16 = 8080;
pub const NODE_PORT: u16 = 30080;

pub struct World {
    pub lab: Lab,
    pub variant: Variant,
    _servers: Vec<Server>,
}

/// Two pods on node-a, one on node-b, with servers in each. `None`, with a printed reason, without root.
pub fn world(variant: Variant) -> Option<World> {
    let config = LabConfig::new().pod("a1", Node::A).pod("a2", Node::A).pod("b1", Node::B);
    match Lab::new(config) {
        Ok(lab) => {
            let servers = ["a1", "a2", "b1"].map(|pod| lab.serve(pod, PORT).unwrap());
            Some(World { lab, variant, _servers: servers.into() })
        }
        Err(LabError::Unsupported(why)) => {
            conformance::skip(why);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

impl World {
    pub fn path(&self) -> PathBuf {
        self.lab.node(Node::A).netns().path().to_owned()
    }

    pub fn builder(&self) -> IptablesBuilder {
        IptablesDatapath::builder().variant(self.variant).network_namespace(self.path())
    }

    pub fn start(&self) -> IptablesDatapath {
        self.builder().build().unwrap()
    }

    pub fn address(&self, place: impl Into<Place>, family: IpFamily) -> IpAddr {
        self.lab.address(&place.into(), family).unwrap()
    }

    pub fn backend(&self, pod: &str, family: IpFamily) -> Backend {
        Backend {
            address: self.address(pod, family),
            port: port(PORT),
            local: pod.starts_with('a'),
            state: BackendState::Ready,
            weight: NonZeroU16::MIN,
        }
    }

    pub fn table(&self, revision: u64, routes: Vec<Route>) -> Arc<RouteTable> {
        let node = self.lab.node_info(Node::A).unwrap().routing();
        Arc::new(RouteTable::new(Revision(revision), Arc::new(node), routes.into_iter().map(Arc::new)))
    }

    /// A cluster IP in both families and protocols, and a node port, to these pods.
    pub fn service(&self, pods: &[&str]) -> Vec<Route> {
        let mut routes = Vec::new();
        for &family in self.lab.families() {
            let mut backends: Vec<_> = pods.iter().map(|pod| self.backend(pod, family)).collect();
            backends.sort_unstable();
            let target = Target { backends: backends.into(), when_empty: WhenEmpty::Reject };
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let cluster_ip = Frontend::ip(cluster_ip(family).ip(), port(80), protocol);
                let not_pods = Masquerade { pods: false, node: true, outside: true };
                routes.push(Route::new(
                    cluster_ip,
                    FrontendKind::ClusterIp,
                    name(),
                    target.clone(),
                    not_pods,
                ));
                let node_port = Frontend::node_port(family, port(NODE_PORT), protocol);
                let always = Masquerade::ALWAYS;
                routes.push(Route::new(node_port, FrontendKind::NodePort, name(), target.clone(), always));
            }
        }
        routes
    }

    /// A table that takes several transactions on the nf_tables variant: the Service, and many others, of which
    /// so many have one backend, one has a thousand, and the rest several. A hundred have node ports.
    pub fn large(&self, revision: u64, pods: &[&str], single: usize) -> Arc<RouteTable> {
        let many = (0..1_100_usize).flat_map(|i| {
            let [high, low] = u16::try_from(i).unwrap().to_be_bytes();
            let frontend = Frontend::ip([10, 97, high, low].into(), port(80), Protocol::Tcp);
            let name = ServicePortName { service: format!("s{i}").into(), ..name() };
            let backend = |n| Backend::new([10, 245, high, low].into(), port(n), false);
            let ports = if i < single { 1..2 } else { 1..4 };
            let ports = if i == 1_099 { 1..1_001 } else { ports };
            let target = Target { backends: ports.map(backend).collect(), when_empty: WhenEmpty::Drop };
            let mut route = Route::new(frontend, FrontendKind::ClusterIp, name, target, Masquerade::NEVER);
            let cluster_ip = route.clone();
            route.frontend = Frontend::node_port(IpFamily::V4, port(31_000 + u16::from(low)), Protocol::Tcp);
            route.kind = FrontendKind::NodePort;
            [Some(cluster_ip), (i < 100).then_some(route)].into_iter().flatten()
        });
        self.table(revision, self.service(pods).into_iter().chain(many).collect())
    }

    /// Runs a program on node-a; its output.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let node = self.lab.node(Node::A).netns();
        let output = node.run(|| Command::new(program).args(arguments).output()).unwrap().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn word(&self) -> &'static str {
        match self.variant {
            Variant::Legacy => "legacy",
            _ => "nft",
        }
    }

    /// All rules of node-a, without counters.
    pub fn rules(&self) -> String {
        let save = |base: &str| self.run(&format!("{base}-{}-save", self.word()), &[]);
        let text = save("iptables") + &save("ip6tables");
        let plain = |line: &str| line.split(" [").next().unwrap_or_default().to_owned() + "\n";
        text.lines()
            .filter(|l| !l.starts_with('#'))
            .map(|l| if l.starts_with(':') { plain(l) } else { l.to_owned() + "\n" })
            .collect()
    }

    pub fn iptables(&self, arguments: &[&str]) -> String {
        let wait = if self.variant == Variant::Legacy { &["-w", "5"][..] } else { &[] };
        self.run(&format!("iptables-{}", self.word()), &[wait, arguments].concat())
    }

    /// Who answers a pod, and from whom the request seems to come.
    pub fn ask(&self, from: impl Into<Place>, to: SocketAddr) -> (String, IpAddr) {
        let answer = self.lab.http_get(from, to, SECOND).unwrap();
        (answer.backend, answer.peer.ip())
    }
}

pub fn port(n: u16) -> NonZeroU16 {
    NonZeroU16::new(n).unwrap()
}

pub fn name() -> ServicePortName {
    ServicePortName { namespace: "demo".into(), service: "web".into(), port: "http".into() }
}

pub fn cluster_ip(family: IpFamily) -> SocketAddr {
    match family {
        IpFamily::V4 => "10.96.0.10:80".parse().unwrap(),
        IpFamily::V6 => "[fd00:96::10]:80".parse().unwrap(),
    }
}
