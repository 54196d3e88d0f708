//! What the node is protected from, and what must pass all the same: [N2], [N3]. Needs root.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step fails the test")]

mod common;

use std::{
    io::Read,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Instant,
};

use common::*;
use etherparse::TcpHeader;
use futures::executor::block_on;
use kubenet_core::{
    datapath::{Close, Datapath},
    model::IpFamily::V4,
};
use kubenet_testkit::lab::{Node, Place};
use socket2::{Domain, Protocol, Socket, Type};

fn raw(world: &World, place: &str) -> Socket {
    let netns = world.lab.netns(&place.into()).unwrap();
    netns.socket(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap()
}

fn v4(world: &World, place: &str) -> Ipv4Addr {
    match world.address(place, V4) {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{address}"),
    }
}

/// Whether an answer to a connection that nobody asked for gets from a1 through node-a to b1. It is INVALID to
/// node-a, and TCP of b1 would answer it with a reset.
fn an_answer_out_of_nowhere_passes(world: &World, port: u16) -> bool {
    let (from, to) = (raw(world, "a1"), raw(world, "b1"));
    let (source, destination) = (v4(world, "a1"), v4(world, "b1"));
    let mut header = TcpHeader::new(port, 40_000, 1, 65_000);
    (header.syn, header.ack, header.acknowledgment_number) = (true, true, 7);
    header.checksum = header.calc_checksum_ipv4_raw(source.octets(), destination.octets(), &[]).unwrap();
    let mut packet = Vec::new();
    header.write(&mut packet).unwrap();
    from.send_to(&packet, &SocketAddr::from((destination, 0)).into()).unwrap();
    to.set_read_timeout(Some(SHORT)).unwrap();
    let began = Instant::now();
    let mut buffer = [0; 256];
    while began.elapsed() < SHORT {
        match (&to).read(&mut buffer) {
            Ok(length) if length >= 40 && buffer[20..22] == port.to_be_bytes() => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
    false
}

#[test]
fn n2_invalid_packets_are_not_forwarded_unless_asked_for() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        assert!(an_answer_out_of_nowhere_passes(&world, 4001), "without rules");
        let datapath = world.start();
        block_on(datapath.replace(world.table(1, world.service(&["b1"])))).unwrap();
        assert!(!an_answer_out_of_nowhere_passes(&world, 4002), "{variant:?}");
        assert_eq!(world.ask("a1", cluster_ip(V4)).0, "b1");
        block_on(datapath.drain()).unwrap();
        assert!(an_answer_out_of_nowhere_passes(&world, 4003), "a successor's packets may look so");
        block_on(datapath.close(Close::Remove)).unwrap();
        let liberal = world.builder().accept_invalid(true).build().unwrap();
        block_on(liberal.replace(world.table(1, world.service(&["b1"])))).unwrap();
        assert!(an_answer_out_of_nowhere_passes(&world, 4004), "{variant:?}, liberal");
        block_on(liberal.close(Close::Remove)).unwrap();
    }
}

#[test]
fn n3_service_traffic_passes_a_forward_policy_of_drop() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        world.iptables(&["-P", "FORWARD", "DROP"]);
        let datapath = world.start();
        block_on(datapath.replace(world.table(1, world.service(&["b1"])))).unwrap();
        let node = world.address(Node::A, V4);
        assert_eq!(world.ask(Place::Outside, (node, NODE_PORT).into()), ("b1".into(), node));
        block_on(datapath.replace(world.table(2, world.service(&["a1"])))).unwrap();
        assert_eq!(world.ask("a1", cluster_ip(V4)), ("a1".into(), node), "hairpin");
        block_on(datapath.close(Close::Remove)).unwrap();
    }
}
