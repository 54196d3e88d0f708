//! Whom sockets of the node believe to talk to: the name that they dialled ([L2]).

use std::{
    io,
    mem::size_of,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
};

use futures::executor::block_on;
use kubenet_core::model::IpFamily;
use kubenet_ebpf::{MapSizes, Metric};
use kubenet_testkit::lab::{Lab, Node};
use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket},
};

use super::{start, support::*};

/// A TCP socket of node-a: of the family of the address that it will dial, or of IPv6 if that is mapped.
fn tcp(lab: &Lab, to: SocketAddr) -> TcpStream {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let open = || socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
    let fd: OwnedFd = lab.node(Node::A).netns().run(open).unwrap().unwrap();
    fd.into()
}

fn dial(stream: &TcpStream, to: SocketAddr) {
    connect(stream.as_raw_fd(), &SockaddrStorage::from(to)).unwrap_or_else(|e| panic!("{to}: {e}"));
}

/// Ends the connection. The socket may dial again.
fn hang_up(stream: &TcpStream) {
    let nobody = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    // SAFETY: the kernel reads so many bytes of a struct that lives longer than the call.
    let result = unsafe {
        libc::connect(stream.as_raw_fd(), &raw const nobody, size_of::<libc::sockaddr>() as libc::socklen_t)
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

fn canonical(address: io::Result<SocketAddr>) -> SocketAddr {
    let address = address.unwrap();
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn mapped(address: SocketAddr) -> Option<SocketAddr> {
    match address.ip() {
        IpAddr::V4(ip) => Some(SocketAddr::new(ip.to_ipv6_mapped().into(), address.port())),
        IpAddr::V6(_) => None,
    }
}

#[test]
fn tcp_sockets_of_the_node_know_whom_they_dialled() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = datapath(&lab);
    for &family in lab.families() {
        let mut routes = on_cluster_ip(&lab, family, 1, &["there"]);
        routes.extend(on_cluster_ip(&lab, family, 2, &["there"]));
        routes.extend(on_node_port(&lab, family, NODE_PORT, &["there"]));
        replace(&datapath, &table(&lab, 1, routes));
        let backend = backends(&lab, family, &["there"])[0].socket_addr();
        let names = [service(family, 1), service(family, 2), node(&lab, family, NODE_PORT), backend];
        let mut open = Vec::new();
        for name in names {
            for to in [Some(name), mapped(name)].into_iter().flatten() {
                let stream = tcp(&lab, to);
                dial(&stream, to);
                open.push((stream, name));
            }
        }
        for (stream, name) in &open {
            assert_eq!(canonical(stream.peer_addr()), *name, "{family}");
        }
        // The same socket by one name after the other, each with the same backend.
        let stream = tcp(&lab, backend);
        for name in names.into_iter().chain([backend]) {
            dial(&stream, name);
            assert_eq!(canonical(stream.peer_addr()), name);
            hang_up(&stream);
        }
        for (stream, name) in &open {
            assert_eq!(canonical(stream.peer_addr()), *name, "{family}: what others dialled changes nothing");
        }
    }
}

#[test]
fn a_name_that_was_pushed_out_is_that_of_the_backend() {
    let Some((lab, _servers)) = start() else { return };
    let mut sizes = MapSizes::default();
    sizes.sockets = 1;
    let datapath = builder(&lab).map_sizes(sizes).build().unwrap();
    for &family in lab.families() {
        let names = [1, 2].map(|last| service(family, last));
        let routes = [1, 2].into_iter().flat_map(|last| on_cluster_ip(&lab, family, last, &["there"]));
        replace(&datapath, &table(&lab, 1, routes.collect::<Vec<_>>()));
        let backend = backends(&lab, family, &["there"])[0].socket_addr();
        let [first, second] = names.map(|name| {
            let stream = tcp(&lab, name);
            dial(&stream, name);
            stream
        });
        assert_eq!(first.peer_addr().unwrap(), backend, "{family}: never somebody else's name");
        assert_eq!(second.peer_addr().unwrap(), names[1], "{family}");
    }
}

#[test]
fn a_udp_socket_that_dials_nobody_keeps_its_backend_and_every_name() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = datapath(&lab);
    for &family in lab.families() {
        let routes =
            [1, 2].into_iter().flat_map(|last| on_cluster_ip(&lab, family, last, &["here", "there"]));
        replace(&datapath, &table(&lab, 1, routes.collect::<Vec<_>>()));
        let any: IpAddr = match family {
            IpFamily::V4 => [0; 4].into(),
            IpFamily::V6 => [0; 16].into(),
        };
        let socket = lab.node(Node::A).netns().run(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let before = block_on(datapath.metrics()).unwrap();
        let mut who = [None, None];
        for round in 0..4 {
            for last in [1, 2, 2, 1] {
                let name = service(family, last);
                let mut buffer = [0; 512];
                socket.send_to(b"?", name).unwrap();
                let (length, from) = socket.recv_from(&mut buffer).unwrap();
                assert_eq!(from, name, "{family}, round {round}");
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                let backend = text.split(' ').next().unwrap_or_default().to_owned();
                let known = who[usize::from(last) - 1].get_or_insert(backend.clone());
                assert_eq!(*known, backend, "{family}, round {round}: a flow stays");
            }
        }
        let after = block_on(datapath.metrics()).unwrap();
        let grew = |metric| after[&metric] - before[&metric];
        assert_eq!((grew(Metric::NewFlow), grew(Metric::Forwarded)), (2, 14), "{family}");
    }
}
