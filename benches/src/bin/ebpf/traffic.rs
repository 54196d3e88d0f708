//! Connections through network namespaces: direct routing, the eBPF datapath, and the iptables datapath.
//!
//! One thread does the work of both ends, so that no scheduler is measured. Direct routing is in a lab of its
//! own; the socket hooks see its sockets, too, and leave them at once. So is a second datapath, which puts packets
//! straight into pods.

use std::{
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Instant,
};

use futures::executor::block_on;
use kubenet_benches::{
    Failure,
    connects::Dialer,
    frontend, machine,
    report::{Measure, Ratio, Record, Report},
    stats::Samples,
};
use kubenet_core::{datapath::Datapath, model::IpFamily};
use kubenet_ebpf::MapSizes;
use kubenet_iptables::{IptablesDatapath, Variant};
use kubenet_testkit::lab::{Lab, LabConfig, Netns, Node};

use crate::{kubenet::Kubenet, routes};

const PORT: u16 = 8080;
const IN_A_ROUND: usize = 50;
const BYTES: usize = 32 << 20;

/// A way from a client to a server.
struct Way {
    dialer: Dialer,
    to: SocketAddr,
    connect: Samples,
    request: Samples,
    short: Samples,
    bytes: Samples,
}

impl Way {
    fn new(dialer: Dialer, to: SocketAddr) -> Self {
        let none = Samples::default;
        Self { dialer, to, connect: none(), request: none(), short: none(), bytes: none() }
    }

    fn samples(&self, what: &str) -> &Samples {
        match what {
            "connect" => &self.connect,
            "rr" => &self.request,
            _ => &self.short,
        }
    }

    fn round(&mut self) -> Result<(), Failure> {
        self.connect.extend(self.dialer.connect(self.to, IN_A_ROUND)?.latency);
        self.request.extend(self.dialer.request_response(self.to, IN_A_ROUND * 4)?);
        self.short.extend(self.dialer.connect_request_response(self.to, IN_A_ROUND)?);
        self.bytes.push_seconds(self.dialer.throughput(self.to, BYTES)?);
        Ok(())
    }
}

fn lab() -> Result<Lab, Failure> {
    let pods = [("a1", Node::A), ("a2", Node::A), ("b1", Node::B), ("b2", Node::B)];
    Ok(Lab::new(pods.iter().fold(LabConfig::new(), |c, (name, node)| c.pod(*name, *node)))?)
}

pub(crate) fn run(report: &mut Report, quick: bool) -> Result<(), Failure> {
    let (rounds, many) = if quick { (5, 1_000) } else { (20, 1_000_000) };
    let (here, plain, near) = (lab()?, lab()?, lab()?);
    let mut sizes = MapSizes::default();
    let room = many + 4_096;
    (sizes.services, sizes.slots, sizes.backends4) = (room, room, room);
    let kubenet = Kubenet::start(&here, sizes, |mut builder| {
        for interface in here.node(Node::A).pod_interfaces() {
            builder = builder.pod_interface(interface);
        }
        match here.cgroup() {
            Ok(cgroup) => builder.cgroup(cgroup),
            Err(_) => builder,
        }
    })?;
    let straight = Kubenet::start(&near, MapSizes::default(), |builder| {
        let pods = near.node(Node::A).pod_interfaces();
        pods.into_iter().fold(builder.redirect_peer(true), |builder, pod| builder.pod_interface(pod))
    })?;
    straight.replace(routes::table_to(Node::A, 1, SocketAddr::from((near.pod("a2")?.v4(), PORT)))?)?;
    let iptables = IptablesDatapath::builder()
        .variant(Variant::Nft)
        .families([IpFamily::V4])
        .network_namespace(here.node(Node::B).netns().path())
        .build()?;
    let backend = SocketAddr::from((here.pod("b2")?.v4(), PORT));
    block_on(iptables.replace(routes::table_to(Node::B, 1, backend)?))?;

    let backend = SocketAddr::from((here.pod("a2")?.v4(), PORT));
    for services in [1, many] {
        eprintln!("connections with {services} Services");
        kubenet.replace(routes::table_to(Node::A, services, backend)?)?;
        let service = frontend(0);
        let pod = Dialer::new(&here, "a1", "a2", PORT)?;
        let node = pod.from(&here, Node::A)?;
        let direct = Dialer::new(&plain, "a1", "a2", PORT)?;
        let direct_node = direct.from(&plain, Node::A)?;
        let classic = Dialer::new(&here, "b1", "b2", PORT)?;
        let classic_node = classic.from(&here, Node::B)?;
        let (at, at_node) = (direct.server()?, direct_node.server()?);
        let mut ways = vec![
            Way::new(pod, service),
            Way::new(direct, at),
            Way::new(classic, service),
            Way::new(node, service),
            Way::new(direct_node, at_node),
            Way::new(classic_node, service),
        ];
        if services == 1 {
            ways.push(Way::new(Dialer::new(&near, "a1", "a2", PORT)?, service));
        }
        for _ in 0..rounds {
            ways.iter_mut().try_for_each(Way::round)?;
        }
        let suffix = if services == 1 { String::new() } else { format!("_{services}") };
        let [pod, direct, classic, node, direct_node, classic_node, straight @ ..] = &ways[..] else {
            return Err("a way is missing".into());
        };
        record(report, "tc", &suffix, pod, direct, classic);
        for straight in straight {
            record(report, "tc_peer", &suffix, straight, direct, classic);
        }
        record(report, "socket", &suffix, node, direct_node, classic_node);
        sockets(report, &here, &plain, backend, &suffix, rounds)?;
    }
    Ok(())
}

fn record(report: &mut Report, hook: &str, suffix: &str, ours: &Way, direct: &Way, classic: &Way) {
    for what in ["connect", "rr", "crr"] {
        let us = |way: &Way| Measure::from(way.samples(what).median()).times(1e6);
        let bench = format!("{hook}_{what}{suffix}");
        let add = |report: &mut Report, bench: String, baseline: &Way, is: &str| {
            let record = Record::new(bench, 0.0, "µs").with_value(us(ours));
            report.add(record.against(us(baseline), is, Ratio::Cost));
        };
        add(report, bench.clone(), direct, "direct routing, median");
        if suffix.is_empty() {
            add(report, format!("{bench}_vs_iptables"), classic, "the iptables datapath, nf_tables, median");
        }
    }
    // Of throughput, more is better.
    let gb = |way: &Way| Measure::from(way.bytes.median()).times(1e-9);
    let bench = format!("{hook}_throughput{suffix}");
    let record = |bench: String, baseline: &Way, is: &str| {
        Record::new(bench, 0.0, "GB/s").with_value(gb(ours)).against(gb(baseline), is, Ratio::Share)
    };
    report.add(record(bench.clone(), direct, "direct routing"));
    if suffix.is_empty() {
        report.add(record(format!("{bench}_vs_iptables"), classic, "the iptables datapath, nf_tables"));
    }
}

/// What connect() costs where no packet is sent: with UDP it is the hook alone.
fn sockets(
    report: &mut Report,
    here: &Lab,
    plain: &Lab,
    backend: SocketAddr,
    suffix: &str,
    rounds: usize,
) -> Result<(), Failure> {
    let (mut ours, mut direct) = (Samples::default(), Samples::default());
    for _ in 0..rounds * 4 {
        ours.push_seconds(udp_connect(here.node(Node::A).netns(), frontend(0), backend)?);
        direct.push_seconds(udp_connect(plain.node(Node::A).netns(), backend, backend)?);
    }
    let ns = |samples: &Samples| Measure::from(samples.median()).times(1e9);
    let record = Record::new(format!("socket_connect_udp{suffix}"), 0.0, "ns").with_value(ns(&ours));
    report.add(record.against(ns(&direct), "a plain connect() to the backend", Ratio::Cost));
    Ok(())
}

/// Seconds of one of many connect() of a UDP socket. It must know what was dialled, and the kernel the backend.
fn udp_connect(netns: &Netns, to: SocketAddr, backend: SocketAddr) -> Result<f64, Failure> {
    const TIMES: u32 = 2_000;
    netns.run(|| {
        machine::pin();
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        let begin = Instant::now();
        for _ in 0..TIMES {
            socket.connect(to)?;
        }
        let took = begin.elapsed().as_secs_f64();
        if socket.peer_addr()? != to {
            return Err("the socket has another peer than was dialled".into());
        }
        let IpAddr::V4(address) = backend.ip() else { return Err("the backend is not of IPv4".into()) };
        // As the kernel prints it: the address in the byte order of the machine.
        let peer = format!("{:08X}:{:04X}", u32::from_ne_bytes(address.octets()), backend.port());
        if !fs::read_to_string("/proc/thread-self/net/udp")?.contains(&peer) {
            return Err("no socket is connected to the backend".into());
        }
        Ok(took / f64::from(TIMES))
    })?
}
