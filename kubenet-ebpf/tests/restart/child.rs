//! This test program once more, as a process with a datapath that can be killed.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use futures::executor::block_on;
use kubenet_core::{
    datapath::{Close, Datapath},
    model::{Affinity, Algorithm, LocalDetector, Protocol},
    route::{
        Backend, BackendState, Frontend, FrontendKind, Masquerade, NodeRouting, Revision, Route, RouteTable,
        Target, WhenEmpty,
    },
};
use kubenet_ebpf::{AttachMode, EbpfDatapath, Inspector, MapSizes};
use kubenet_testkit::lab::{Lab, Node};

use super::support::*;

const VARIABLE: &str = "KUBENET_RESTART_CHILD";

/// What a process must know of a lab to run a datapath in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    netns: PathBuf,
    external: String,
    cgroup: Option<PathBuf>,
    pods: Vec<String>,
    pins: PathBuf,
    mode: AttachMode,
    node: NodeRouting,
    backends: BTreeMap<String, Backend>,
}

impl Plan {
    pub(crate) fn new(lab: &Lab, pins: &Path, mode: AttachMode) -> Self {
        let node = lab.node(Node::A);
        let backend = |name: &str| (name.to_owned(), backends(lab, super::V4, &[name])[0]);
        Self {
            netns: node.netns().path().to_owned(),
            external: node.external_interface().to_owned(),
            cgroup: lab.cgroup().ok().map(Path::to_owned),
            pods: node.pod_interfaces(),
            pins: pins.to_owned(),
            mode,
            node: lab.node_info(Node::A).unwrap().routing(),
            backends: ["client", "here", "there"].map(backend).into(),
        }
    }

    pub(crate) fn datapath(&self) -> EbpfDatapath {
        // As small as will do: most of the time of a start goes into memory for maps.
        let mut sizes = MapSizes::default();
        (sizes.services, sizes.slots, sizes.backends4, sizes.backends6) = (256, 1 << 19, 1024, 1024);
        sizes.connections = 16_384;
        (sizes.affinities, sizes.sockets) = (1024, 32_768);
        let mut builder = EbpfDatapath::builder()
            .map_sizes(sizes)
            .network_namespace(&self.netns)
            .external_interface(&self.external)
            .attach_mode(self.mode)
            .pin_dir(&self.pins);
        if let Some(cgroup) = &self.cgroup {
            builder = builder.cgroup(cgroup);
        }
        for pod in &self.pods {
            builder = builder.pod_interface(pod);
        }
        builder.build().unwrap()
    }

    /// Web 1 on its cluster IP and a node port, with these backends.
    pub(crate) fn web(&self, pods: &[&str]) -> Vec<Route> {
        let mut routes = self.service(1, pods);
        let mut on_node = routes[0].clone();
        on_node.frontend = Frontend::node_port(super::V4, NODE_PORT.try_into().unwrap(), Protocol::Tcp);
        on_node.kind = FrontendKind::NodePort;
        on_node.masquerade = Masquerade::ALWAYS;
        routes.push(on_node);
        routes
    }

    /// A Service on a cluster IP, TCP and UDP.
    pub(crate) fn service(&self, last: u8, pods: &[&str]) -> Vec<Route> {
        let mut backends: Vec<Backend> = pods.iter().map(|pod| self.backends[*pod]).collect();
        backends.sort_unstable();
        let target = Target { backends: backends.into(), when_empty: WhenEmpty::Reject };
        let route = |protocol| {
            Route::new(
                Frontend::ip(cluster_ip(super::V4, last), SERVICE_PORT.try_into().unwrap(), protocol),
                FrontendKind::ClusterIp,
                service_port(&format!("web-{last}")),
                target.clone(),
                Masquerade { pods: false, node: true, outside: true },
            )
        };
        [Protocol::Tcp, Protocol::Udp].map(route).into()
    }

    pub(crate) fn table(&self, revision: u64, routes: Vec<Route>) -> Arc<RouteTable> {
        let routes = routes.into_iter().map(Arc::new);
        Arc::new(RouteTable::new(Revision(revision), Arc::new(self.node.clone()), routes))
    }

    /// Tables that differ in many ways, but all serve web 1.
    fn churned(&self, revision: u64) -> Arc<RouteTable> {
        const SETS: [&[&str]; 5] =
            [&["here"], &["there"], &["here", "there"], &["client", "there"], &["client", "here", "there"]];
        // Some number that looks arbitrary and is the same for everybody.
        let mut state = revision.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let mut routes = self.web(SETS[next(5) as usize]);
        for last in 2..12 {
            if next(3) == 0 {
                continue;
            }
            let pods: &[&str] = if next(6) == 0 { &[] } else { SETS[next(5) as usize] };
            for mut route in self.service(last, pods) {
                if next(4) == 0 {
                    route.algorithm = Algorithm::Maglev;
                }
                if next(3) == 0 {
                    route.affinity = Affinity::new(60);
                }
                routes.push(route);
            }
        }
        self.table(revision, routes)
    }

    fn encode(&self) -> String {
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let list =
            |list: &[std::net::IpAddr]| list.iter().map(|a| a.to_string()).collect::<Vec<_>>().join(",");
        let LocalDetector::Cidrs(cidrs) = &self.node.local_detector else { panic!("{:?}", self.node) };
        let cidrs: Vec<String> = cidrs.iter().map(|c| c.to_string()).collect();
        let backend = |(name, b): (&String, &Backend)| format!("{name}={}={}", b.socket_addr(), b.local);
        let backends: Vec<String> = self.backends.iter().map(backend).collect();
        [
            path(&self.netns),
            self.external.clone(),
            self.cgroup.as_deref().map(path).unwrap_or_default(),
            self.pods.join(","),
            path(&self.pins),
            format!("{}", u8::from(self.mode == AttachMode::Clsact)),
            list(&self.node.addresses),
            list(&self.node.node_port_addresses),
            cidrs.join(","),
            backends.join(","),
        ]
        .join(";")
    }

    fn decode(text: &str) -> Self {
        let parts: Vec<&str> = text.split(';').collect();
        let [netns, external, cgroup, pods, pins, mode, addresses, node_ports, cidrs, backends] = parts[..]
        else {
            panic!("{text}")
        };
        let mut node = NodeRouting::default();
        node.addresses = addresses.split(',').map(|a| a.parse().unwrap()).collect();
        node.node_port_addresses = node_ports.split(',').map(|a| a.parse().unwrap()).collect();
        node.local_detector = LocalDetector::Cidrs(cidrs.split(',').map(|c| c.parse().unwrap()).collect());
        let backend = |text: &str| {
            let parts: Vec<&str> = text.split('=').collect();
            let [name, address, local] = parts[..] else { panic!("{text}") };
            let address: SocketAddr = address.parse().unwrap();
            let port = address.port().try_into().unwrap();
            let state = BackendState::Ready;
            (name.to_owned(), Backend { state, ..Backend::new(address.ip(), port, local == "true") })
        };
        Self {
            netns: netns.into(),
            external: external.into(),
            cgroup: (!cgroup.is_empty()).then(|| cgroup.into()),
            pods: pods.split(',').map(str::to_owned).collect(),
            pins: pins.into(),
            mode: match (mode, probe_tcx()) {
                ("0", true) => AttachMode::Tcx,
                _ => AttachMode::Clsact,
            },
            node,
            backends: backends.split(',').map(backend).collect(),
        }
    }

    /// Starts a process that does `what`.
    pub(crate) fn spawn(&self, what: &str) -> Process {
        self.spawn_by(Command::new(std::env::current_exe().unwrap()), what)
    }

    /// The same in a time namespace, where the clock is so many seconds ahead.
    pub(crate) fn spawn_ahead(&self, what: &str, seconds: i64) -> Process {
        let mut command = Command::new("unshare");
        command.args(["--time", &format!("--monotonic={seconds}"), "--fork", "--kill-child"]);
        command.arg(std::env::current_exe().unwrap());
        self.spawn_by(command, what)
    }

    fn spawn_by(&self, mut command: Command, what: &str) -> Process {
        let mut child = command
            .args(["--ignored", "--exact", "child::a_process_that_is_killed", "--nocapture"])
            .env(VARIABLE, format!("{what};{}", self.encode()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Process { child, output }
    }
}

fn probe_tcx() -> bool {
    kubenet_ebpf::probe().unwrap().tcx
}

/// Such a process. It is killed when this is dropped.
pub(crate) struct Process {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Process {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it says this. Returns what follows it.
    pub(crate) fn wait_for(&mut self, word: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "it ended before it said {word:?}");
            if let Some((_, rest)) = line.split_once(word) {
                return rest.trim().to_owned();
            }
        }
    }

    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// As `kill -9` does. Panics if it ended by itself before.
    pub(crate) fn kill(mut self) {
        assert_eq!(self.child.try_wait().unwrap(), None, "it ended by itself");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(word: &str) {
    println!("{word}");
    std::io::stdout().flush().unwrap();
}

fn listen() {
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// Ends without any destructor.
fn end() -> ! {
    // SAFETY: ends the process.
    unsafe { nix::libc::_exit(0) }
}

#[test]
#[ignore = "a part of other tests, as a process of its own"]
fn a_process_that_is_killed() {
    let Ok(variable) = std::env::var(VARIABLE) else { return };
    let (what, plan) = variable.split_once(';').unwrap();
    let plan = Plan::decode(plan);
    match what {
        "churn" => churn(&plan),
        "start" => {
            say(&format!("thread {}", nix::unistd::gettid()));
            listen();
            let datapath = plan.datapath();
            replace(&datapath, &plan.table(1, plan.web(&["here"])));
            say("done");
            end();
        }
        "update" => {
            let datapath = plan.datapath();
            let [before, after] = before_and_after(&plan);
            replace(&datapath, &before);
            say("ready");
            listen();
            block_on(datapath.apply(Arc::new(before.diff(&after)))).unwrap();
            say("done");
            end();
        }
        "remove" => {
            let datapath = plan.datapath();
            replace(&datapath, &plan.table(1, plan.web(&["here"])));
            say("ready");
            listen();
            block_on(datapath.close(Close::Remove)).unwrap();
            say("done");
            end();
        }
        "count" => {
            let datapath = plan.datapath();
            let inspector = Inspector::open(&plan.pins).unwrap();
            let idle = inspector.connections().unwrap().iter().map(|c| c.idle.as_secs()).max();
            replace(&datapath, &plan.table(1, plan.web(&["here"])));
            let flows = block_on(datapath.drain()).unwrap().flows;
            replace(&datapath, &plan.table(1, plan.web(&["here"])));
            say(&format!("flows {flows} {}", idle.unwrap_or(u64::MAX)));
            end();
        }
        other => panic!("{other}"),
    }
}

/// The last byte of the cluster IP of a Service whose UDP flows the update moves.
pub(crate) const SHARED: u8 = 20;

/// An update of everything that there is.
pub(crate) fn before_and_after(plan: &Plan) -> [Arc<RouteTable>; 2] {
    let mut before = plan.web(&["here"]);
    before.extend(plan.service(2, &["here", "there"]));
    before.extend(plan.service(3, &["there"]));
    let mut after = plan.web(&["there"]);
    after.extend(plan.service(2, &["there"]));
    for last in 4..9 {
        after.extend(plan.service(last, &["client", "here"]));
    }
    for route in &mut after[3..] {
        route.affinity = Affinity::new(60);
    }
    // A UDP flow must leave a backend that another frontend of its Service port still has.
    before.extend(shared(plan, ["there", "there"]));
    after.extend(shared(plan, ["here", "there"]));
    [plan.table(1, before), plan.table(2, after)]
}

/// One Service port on two cluster IPs, each with a backend.
fn shared(plan: &Plan, pods: [&str; 2]) -> Vec<Route> {
    let mut routes = plan.service(SHARED, &pods[..1]);
    routes.extend(plan.service(SHARED + 1, &pods[1..]));
    for route in &mut routes {
        route.service_port = service_port("shared");
    }
    routes
}

fn churn(plan: &Plan) {
    let datapath = plan.datapath();
    let seed = u64::from(std::process::id()) << 32;
    let mut now = plan.churned(seed);
    replace(&datapath, &now);
    say("ready");
    for revision in seed + 1.. {
        let next = plan.churned(revision);
        let report = if revision % 16 == 0 {
            block_on(datapath.replace(Arc::clone(&next))).unwrap()
        } else {
            block_on(datapath.apply(Arc::new(now.diff(&next)))).unwrap()
        };
        assert!(report.failed.is_empty(), "{:?}", report.failed);
        now = next;
    }
}
