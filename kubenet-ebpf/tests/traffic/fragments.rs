//! Fragments that arrive in another order than they were sent ([L4]).

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    sync::Arc,
};

use kubenet_core::{
    datapath::Datapath,
    model::{IpFamily, Protocol},
    route::{Frontend, FrontendKind, Masquerade, Route},
};
use kubenet_ebpf::{EbpfDatapath, Metric};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};

use futures::executor::block_on;

use super::{start, support::*};

/// Both fragments of a UDP datagram of 1,200 bytes, IPv4.
fn fragments(from: SocketAddr, to: SocketAddr, id: u16) -> [Vec<u8>; 2] {
    const FIRST: usize = 800;
    let (IpAddr::V4(source), IpAddr::V4(target)) = (from.ip(), to.ip()) else { panic!("IPv4 only") };
    let mut datagram = Vec::new();
    datagram.extend(from.port().to_be_bytes());
    datagram.extend(to.port().to_be_bytes());
    datagram.extend(1208u16.to_be_bytes());
    // No checksum.
    datagram.extend([0; 2]);
    datagram.resize(1208, b'?');
    let fragment = |payload: &[u8], offset: usize, more: bool| {
        let mut packet = vec![0x45, 0];
        packet.extend((20 + payload.len() as u16).to_be_bytes());
        packet.extend(id.to_be_bytes());
        packet.extend((offset as u16 / 8 + if more { 0x2000 } else { 0 }).to_be_bytes());
        // The kernel fills in the checksum.
        packet.extend([64, Protocol::Udp.number(), 0, 0]);
        packet.extend(source.octets());
        packet.extend(target.octets());
        packet.extend(payload);
        packet
    };
    [fragment(&datagram[..FIRST], 0, true), fragment(&datagram[FIRST..], FIRST, false)]
}

fn early(datapath: &EbpfDatapath) -> u64 {
    block_on(datapath.metrics()).unwrap()[&Metric::DropFragmentEarly]
}

#[test]
fn a_datagram_whose_fragments_come_in_order_is_answered_and_another_is_dropped_and_counted() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = datapath(&lab);
    let family = IpFamily::V4;
    let port = SERVICE_PORT.try_into().unwrap();
    let external = service(family, 200);
    let route = |address, kind| {
        let mut route = Route::clone(&on_cluster_ip(&lab, family, 1, &["there"])[1]);
        route.frontend = Frontend::ip(address, port, Protocol::Udp);
        route.kind = kind;
        route.on_cluster_ip = kind == FrontendKind::ClusterIp;
        route.masquerade = Masquerade::ALWAYS;
        Arc::new(route)
    };
    let routes = [
        route(cluster_ip(family, 1), FrontendKind::ClusterIp),
        route(external.ip(), FrontendKind::ExternalIp),
    ];
    let now = table(&lab, 1, routes.clone());
    replace(&datapath, &now);
    let client = lab.address(&kubenet_testkit::lab::Place::Outside, family).unwrap();
    let outside = lab.outside().netns();
    let send = |packet: &[u8], to: SocketAddr| {
        let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let raw =
            outside.run(|| socket(AddressFamily::Inet, kind, flags, SockProtocol::Raw)).unwrap().unwrap();
        sendto(raw.as_raw_fd(), packet, &SockaddrStorage::from(to), MsgFlags::empty()).unwrap();
    };
    let own = outside.run(|| std::net::UdpSocket::bind((client, 0))).unwrap().unwrap();
    own.set_read_timeout(Some(SOON)).unwrap();
    let from = own.local_addr().unwrap();
    let mut buffer = [0; 2048];
    for (i, to) in [external, service(family, 1)].into_iter().enumerate() {
        let id = 100 * (i as u16 + 1);
        let before = early(&datapath);
        for fragment in fragments(from, to, id).iter().rev() {
            send(fragment, to);
        }
        for fragment in fragments(from, to, id + 1) {
            send(&fragment, to);
        }
        let length = own.recv(&mut buffer).unwrap();
        assert!(buffer[..length].starts_with(b"there "), "{to}: {:?}", &buffer[..length]);
        assert_eq!(early(&datapath), before + 1, "{to}");
        let _ = own.set_nonblocking(true);
        assert!(own.recv(&mut buffer).is_err(), "{to}: the other one is lost");
        let _ = own.set_nonblocking(false);
    }
    // Where no Service is left, fragments are anybody's again.
    let fewer = table(&lab, 2, [Arc::clone(&routes[0])]);
    block_on(datapath.apply(Arc::new(now.diff(&fewer)))).unwrap();
    let before = early(&datapath);
    send(&fragments(from, external, 300)[1], external);
    send(&fragments(from, service(family, 1), 301)[1], service(family, 1));
    let begin = std::time::Instant::now();
    while early(&datapath) == before && begin.elapsed() < SOON {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(early(&datapath), before + 1);
}
