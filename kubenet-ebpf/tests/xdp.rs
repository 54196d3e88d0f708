//! The XDP program at the external interface, with real packets.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use aya::Ebpf;
use futures::{FutureExt, StreamExt, executor::block_on, stream::BoxStream};
use kubenet_core::{
    datapath::{Close, Datapath, DatapathEvent, DatapathExt, ErrorKind},
    model::IpFamily,
    route::RouteTable,
};
use kubenet_ebpf::{EbpfBuilder, EbpfDatapath, Hook, XdpMode, probe};
use kubenet_testkit::lab::{Lab, LabConfig, Node, Place, Server};
use support::{bpffs::Bpffs, links, load::place, offload::*, *};

const V4: IpFamily = IpFamily::V4;

/// A backend here and one there; the bridge takes what XDP sends.
fn start() -> Option<(Lab, (Vec<Server>, Ebpf))> {
    let lab = lab(LabConfig::new().pod("client", Node::A).pod("here", Node::A).pod("there", Node::B))?;
    if let Some(why) = probe().unwrap().missing.get(&Hook::Xdp) {
        skip(why);
        return None;
    }
    let bridge = let_xdp_send(&lab);
    let servers = ["client", "here", "there"].map(|pod| lab.serve(pod, PORT).unwrap());
    Some((lab, (servers.into(), bridge)))
}

fn start_datapath(lab: &Lab, more: impl FnOnce(EbpfBuilder) -> EbpfBuilder) -> EbpfDatapath {
    let datapath = more(builder(lab).xdp(XdpMode::Native)).build().unwrap();
    for interface in lab.node(Node::A).pod_interfaces() {
        block_on(datapath.attach_pod(&interface)).unwrap();
    }
    datapath
}

fn node_port(lab: &Lab, pods: &[&str]) -> Arc<RouteTable> {
    let families = lab.families().iter();
    table(lab, 1, families.flat_map(|&family| on_node_port(lab, family, NODE_PORT, pods)))
}

/// A client outside is served over TCP, also in bulk, and UDP. Who the backend saw.
fn served(lab: &Lab, family: IpFamily, backend: &str) -> IpAddr {
    let to = node(lab, family, NODE_PORT);
    let case = format!("{family}, {backend}");
    let answer = lab.http_get(Place::Outside, to, SOON).unwrap_or_else(|e| panic!("{case}, TCP: {e}"));
    assert_eq!(answer.backend, backend, "{case}");
    let mut bulk = lab.connect(Place::Outside, to, SOON).unwrap();
    for length in [1, 1400, 1500, 15_000, 15_000, 15_000, 15_000, 15_000] {
        let answer = bulk.ask_at_length(length, SOON).unwrap_or_else(|e| panic!("{case}, {length}: {e}"));
        assert_eq!(answer.backend, backend, "{case}");
    }
    let udp = lab.udp_flow(Place::Outside, to).unwrap();
    for _ in 0..5 {
        let udp = udp.ask(SOON).unwrap_or_else(|e| panic!("{case}, UDP: {e}"));
        assert_eq!((udp.backend.as_str(), udp.peer.ip()), (backend, answer.peer.ip()), "{case}");
    }
    answer.peer.ip()
}

fn drift(events: &mut BoxStream<'static, DatapathEvent>) -> Vec<String> {
    let mut found = Vec::new();
    while let Some(Some(event)) = events.next().now_or_never() {
        if let DatapathEvent::Drift { detail } = event {
            found.push(detail);
        }
    }
    found
}

#[test]
fn xdp_alone_serves_backends_here_and_elsewhere() {
    let Some((lab, _peers)) = start() else { return };
    complete_checksums(&lab);
    // No TC program is at the external interface: those of pods are, which answers need.
    let datapath = start_datapath(&lab, |builder| builder.external_tc(false));
    replace(&datapath, &node_port(&lab, &["here"]));
    assert!(xdp_program(&lab, "eth0").is_some());
    assert!(
        attached(&lab).iter().all(|program| !program.starts_with("kubenet_") || !program.contains("at eth0")),
        "{:?}",
        attached(&lab)
    );
    for &family in lab.families() {
        // XDP asks for no neighbour.
        let there = lab.address(&place("there"), family).unwrap();
        lab.http_get(Place::Node(Node::A), SocketAddr::new(there, PORT), SOON).unwrap();
        replace(&datapath, &node_port(&lab, &["here"]));
        assert_eq!(served(&lab, family, "here"), lab.address(&Place::Outside, family).unwrap());
        replace(&datapath, &node_port(&lab, &["there"]));
        assert_eq!(served(&lab, family, "there"), lab.address(&place("node"), family).unwrap());
    }
    block_on(datapath.close(Close::Remove)).unwrap();
    assert_eq!(xdp_program(&lab, "eth0"), None);
}

/// Senders on veth leave checksums to be completed, which XDP passes to TC.
#[test]
fn with_tc_behind_it_everything_is_served_whatever_checksums_are_like() {
    let Some((lab, _peers)) = start() else { return };
    let datapath = start_datapath(&lab, |builder| builder);
    for complete in [false, true] {
        if complete {
            complete_checksums(&lab);
        }
        for &family in lab.families() {
            replace(&datapath, &node_port(&lab, &["here"]));
            assert_eq!(served(&lab, family, "here"), lab.address(&Place::Outside, family).unwrap());
            replace(&datapath, &node_port(&lab, &["there"]));
            assert_eq!(served(&lab, family, "there"), lab.address(&place("node"), family).unwrap());
        }
    }
    assert!(xdp_program(&lab, "eth0").is_some());
    assert_eq!(attached(&lab).len(), 7);
}

#[test]
fn virtual_devices_have_tc_alone_unless_asked() {
    let Some((lab, _peers)) = start() else { return };
    for mode in [XdpMode::Auto, XdpMode::Off] {
        let datapath = start_datapath(&lab, |builder| builder.xdp(mode));
        let table = node_port(&lab, &["there"]);
        replace(&datapath, &table);
        assert_eq!(xdp_program(&lab, "eth0"), None);
        assert!(block_on(datapath.drift(&table)).unwrap().is_none());
        served(&lab, V4, "there");
    }
}

#[test]
fn a_program_of_somebody_else_stays_and_tc_serves() {
    let Some((lab, _peers)) = start() else { return };
    let others = attach_other(lab.node(Node::A).netns(), "eth0");
    let theirs = xdp_program(&lab, "eth0").unwrap();
    let datapath = start_datapath(&lab, |builder| builder);
    let mut events = datapath.events();
    let table = node_port(&lab, &["there"]);
    for round in 0..2 {
        replace(&datapath, &table);
        let said = drift(&mut events);
        let names = |text: &String| text.contains("interface eth0") && text.contains("another XDP program");
        assert_eq!(said.iter().filter(|text| names(text)).count(), usize::from(round == 0), "{said:?}");
        assert!(block_on(datapath.drift(&table)).unwrap().is_none(), "it was told already");
    }
    assert_eq!(xdp_program(&lab, "eth0"), Some(theirs));
    served(&lab, V4, "there");

    drop(others);
    // A child that another test is just starting may still have its link open.
    for _ in 0..100 {
        if xdp_program(&lab, "eth0").is_none() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    replace(&datapath, &table);
    assert!(xdp_program(&lab, "eth0").is_some_and(|ours| ours != theirs));
    assert_eq!(drift(&mut events), Vec::<String>::new());
    served(&lab, V4, "there");

    let error = builder(&lab).xdp(XdpMode::Native).external_tc(false).build().unwrap();
    let error = block_on(error.replace(table)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("another XDP program"), "{error}");
}

#[test]
fn a_device_that_cannot_have_it_is_named_with_the_remedy() {
    let Some((lab, _peers)) = start() else { return };
    ip(&lab, "link add other0 type bridge");
    let datapath = start_datapath(&lab, |builder| builder.external_interface("other0"));
    let mut events = datapath.events();
    let table = node_port(&lab, &["there"]);
    replace(&datapath, &table);
    let said = drift(&mut events);
    let names = |text: &String| {
        text.contains("interface other0") && text.contains("no native XDP") && text.contains("XdpMode::Off")
    };
    assert!(said.len() == 1 && said.iter().all(names), "{said:?}");
    assert!(xdp_program(&lab, "eth0").is_some());

    assert!(block_on(datapath.drift(&table)).unwrap().is_none());
    served(&lab, V4, "there");
}

#[test]
fn one_that_somebody_detached_is_attached_again() {
    let Some((lab, _peers)) = start() else { return };
    let datapath = start_datapath(&lab, |builder| builder);
    let table = node_port(&lab, &["there"]);
    replace(&datapath, &table);
    let ours = xdp_program(&lab, "eth0").unwrap();
    assert_eq!(links::detach(|link| link.program == ours), 1);
    assert_eq!(xdp_program(&lab, "eth0"), None);
    assert!(block_on(datapath.drift(&table)).unwrap().is_some());
    let mut events = datapath.events();
    replace(&datapath, &table);
    assert!(drift(&mut events).iter().any(|text| text.contains("eth0") && text.contains("kubenet_xdp")));
    assert_eq!(xdp_program(&lab, "eth0"), Some(ours));
    assert!(block_on(datapath.drift(&table)).unwrap().is_none());
    served(&lab, V4, "there");
    drop(datapath);
    assert_eq!(xdp_program(&lab, "eth0"), None);
}

#[test]
fn one_that_is_pinned_stays_and_is_taken_over() {
    let Some((lab, _peers)) = start() else { return };
    let bpffs = Bpffs::mount();
    let pins = bpffs.pin_dir();
    let table = node_port(&lab, &["there"]);
    let datapath = start_datapath(&lab, |builder| builder.pin_dir(&pins));
    replace(&datapath, &table);
    let first = xdp_program(&lab, "eth0").unwrap();
    let mut open = lab.connect(Place::Outside, node(&lab, V4, NODE_PORT), SOON).unwrap();
    open.ask(SOON).unwrap();
    drop(datapath);
    assert_eq!(xdp_program(&lab, "eth0"), Some(first), "it serves on");
    served(&lab, V4, "there");

    let datapath = start_datapath(&lab, |builder| builder.pin_dir(&pins));
    let mut events = datapath.events();
    replace(&datapath, &table);
    assert_eq!(drift(&mut events), Vec::<String>::new());
    let second = xdp_program(&lab, "eth0").unwrap();
    assert_ne!(second, first, "the new one is in the old one's place");
    assert_eq!(links::count(|link| link.program == second), 1);
    open.ask(SOON).unwrap();
    served(&lab, V4, "there");
    drop(datapath);

    // The next one does not want it.
    let datapath = start_datapath(&lab, |builder| builder.pin_dir(&pins).xdp(XdpMode::Off));
    replace(&datapath, &table);
    assert_eq!(xdp_program(&lab, "eth0"), None);
    assert!(block_on(datapath.drift(&table)).unwrap().is_none());
    open.ask(SOON).unwrap();
    served(&lab, V4, "there");
    drop(datapath);

    let datapath = start_datapath(&lab, |builder| builder.pin_dir(&pins));
    replace(&datapath, &table);
    assert!(xdp_program(&lab, "eth0").is_some());
    block_on(datapath.close(Close::Remove)).unwrap();
    assert_eq!(xdp_program(&lab, "eth0"), None);
    assert_eq!(bpffs.tree(), Vec::<std::path::PathBuf>::new());
}
