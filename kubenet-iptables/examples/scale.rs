//! What many Services cost: to program, to change one, and for the first packet of a flow.
//!
//! ```text
//! ip netns add kubenet-scale
//! ip netns exec kubenet-scale cargo run --release -p kubenet-iptables --example scale -- kubenet-scale nft 20000 1
//! ip netns del kubenet-scale
//! ```
//!
//! It programs the network namespace that it is started in, and leaves nothing behind; the machine's own it
//! refuses. For packets it needs a route to the backends, 10.244.0.0/12, there.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step ends the measurement")]

use std::{
    env, fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    num::NonZeroU16,
    os::unix::fs::MetadataExt as _,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::executor::block_on;
use kubenet_core::{
    datapath::{Close, Datapath},
    model::{IpFamily, LocalDetector, Protocol},
    route::{
        Backend, Frontend, FrontendKind, Masquerade, NodeRouting, Revision, Route, RouteTable,
        ServicePortName, Target, WhenEmpty,
    },
};
use kubenet_iptables::{IptablesDatapath, Variant};

/// The address of the `n`th Service, spread as an API server allocates them.
fn service_address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a60_0000 | (n.wrapping_mul(2_654_435_761) >> 12))
}

fn route(n: u32, backends: u32, shift: u32) -> Arc<Route> {
    let port = |n: u16| NonZeroU16::new(n).unwrap();
    let backend = |i: u32| {
        // A tenth of the pods are here.
        let address = Ipv4Addr::from(0x0af4_0000 + (n * backends + i + shift) % 0xf_ffff);
        Backend::new(address.into(), port(8080), (n + i).is_multiple_of(10))
    };
    let backends: Arc<[Backend]> = (0..backends).map(backend).collect();
    let name = ServicePortName {
        namespace: "scale".into(),
        service: format!("service-{n}").into(),
        port: "http".into(),
    };
    let frontend = Frontend::ip(service_address(n).into(), port(80), Protocol::Udp);
    let target = Target { backends, when_empty: WhenEmpty::Reject };
    let not_pods = Masquerade { pods: false, node: true, outside: true };
    Arc::new(Route::new(frontend, FrontendKind::ClusterIp, name, target, not_pods))
}

fn node() -> Arc<NodeRouting> {
    let mut node = NodeRouting::default();
    node.addresses.push(IpAddr::from([192, 0, 2, 1]));
    node.node_port_addresses = node.addresses.clone();
    node.local_detector = LocalDetector::Cidrs(vec!["10.244.0.0/14".parse().unwrap()]);
    Arc::new(node)
}

fn table(revision: u64, services: u32, backends: u32, changed: Option<u32>) -> Arc<RouteTable> {
    let routes = (0..services).map(|n| {
        let is = |changed: u32| changed % services == n;
        route(n, backends, if changed.is_some_and(is) { 7 } else { 0 })
    });
    Arc::new(RouteTable::new(Revision(revision), node(), routes))
}

/// The median time to send the first datagram of a flow.
fn first_packet(to: Ipv4Addr) -> Option<Duration> {
    let mut times = Vec::new();
    for _ in 0..4_000 {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let begun = Instant::now();
        socket.send_to(b"x", SocketAddr::from((to, 80))).ok()?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    Some(times[times.len() / 2])
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let number = |i: usize| arguments.get(i).and_then(|word: &String| word.parse().ok());
    let (Some(name), Some(variant), Some(services), Some(backends)) =
        (arguments.first(), arguments.get(1), number(2), number(3))
    else {
        panic!("usage: scale NAMESPACE nft|legacy SERVICES ENDPOINTS");
    };
    // Never the machine's own: the caller names the namespace that it means to be in.
    let inode = |path: &str| fs::metadata(path).map(|m| m.ino()).unwrap();
    assert!(name.starts_with("kubenet-"), "{name}: not a namespace made for this");
    let named = inode(&format!("/run/netns/{name}"));
    assert_eq!(inode("/proc/self/ns/net"), named, "not started in {name}: use ip netns exec");
    let variant = if variant == "legacy" { Variant::Legacy } else { Variant::Nft };
    let builder = IptablesDatapath::builder().variant(variant).families([IpFamily::V4]);
    let first = table(1, services, backends, None);
    let begun = Instant::now();
    let preview = builder.preview(&first, None).unwrap();
    let (planned, text) = (begun.elapsed(), &preview.texts[&IpFamily::V4]);
    let (chains, rules) = (text.matches("\n:").count(), text.matches("\n-A").count());
    println!("plan: {planned:.1?}, {chains} chains, {rules} rules, {} KiB", text.len() / 1024);
    let datapath = builder.build().unwrap();
    let begun = Instant::now();
    block_on(datapath.replace(Arc::clone(&first))).unwrap();
    println!("replace: {:.1?}", begun.elapsed());
    let mut times = Vec::new();
    let mut current = first;
    for n in 0..12 {
        let next = table(n + 2, services, backends, Some((n as u32).wrapping_mul(7_919)));
        let delta = Arc::new(current.diff(&next));
        let begun = Instant::now();
        block_on(datapath.apply(delta)).unwrap();
        times.push(begun.elapsed());
        current = next;
    }
    times.sort_unstable();
    println!("one change: {:.1?} (at most {:.1?})", times[times.len() / 2], times[times.len() - 1]);
    let ends = [0, services - 1].map(|n| (first_packet(service_address(n)), n));
    for (time, n) in ends {
        println!("first packet to service {n}: {time:.2?}");
    }
    let begun = Instant::now();
    block_on(datapath.replace(current)).unwrap();
    println!("replace by the same: {:.1?}", begun.elapsed());
    let begun = Instant::now();
    block_on(datapath.close(Close::Remove)).unwrap();
    println!("remove: {:.1?}", begun.elapsed());
}
