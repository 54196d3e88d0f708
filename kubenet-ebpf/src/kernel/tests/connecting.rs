//! UDP sockets that are being connected while their backend goes.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
};

use kubenet_testkit::lab::{Lab, LabConfig, Node};

use super::*;
use crate::{kernel::connected, layout::SocketFlow};

const PORT: u16 = 53;
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// A datapath whose socket programs are this test.
struct World {
    engine: Engine,
    now: RouteTable,
    backend: SocketAddr,
}

impl World {
    /// On a thread of its own: it enters the node's network namespace.
    fn new(lab: &Lab) -> Self {
        let builder = EbpfBuilder::default().network_namespace(lab.node(Node::A).netns().path());
        let mut capabilities = Capabilities::basic();
        capabilities.node_udp_follows = true;
        let engine = Engine::start(builder, None, capabilities, EventHub::default()).unwrap();
        let backend = SocketAddr::new(lab.pod("backend").unwrap().v4().into(), PORT);
        let mut world = Self { engine, now: table(0, []), backend };
        world.update(true);
        world
    }

    fn frontend() -> Frontend {
        Frontend::ip(SERVICE.into(), PORT.try_into().unwrap(), Protocol::Udp)
    }

    fn update(&mut self, with_backend: bool) {
        let backend = Backend::new(self.backend.ip(), PORT.try_into().unwrap(), true);
        let route = Route::new(
            Self::frontend(),
            FrontendKind::ClusterIp,
            ServicePortName { namespace: "demo".into(), service: "dns".into(), port: "".into() },
            Target {
                backends: with_backend.then_some(backend).into_iter().collect(),
                when_empty: WhenEmpty::Reject,
            },
            Masquerade { pods: false, node: true, outside: true },
        );
        let next = table(self.now.revision().0 + 1, [Arc::new(route)]);
        if self.now.is_empty() {
            self.engine.replace(&next).unwrap();
        } else {
            self.engine.apply(&self.now.diff(&next)).unwrap();
        }
        self.now = next;
    }

    /// A socket that was just given the backend, and is connected to something else yet.
    fn given(&mut self) -> UdpSocket {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let before = SocketAddr::new(self.backend.ip(), socket.local_addr().unwrap().port());
        socket.connect(before).unwrap();
        let listed = connected::list().unwrap();
        let cookie = listed.iter().find(|socket| socket.peer == before).unwrap().cookie();
        let IpAddr::V4(backend) = self.backend.ip() else { panic!("it has IPv4") };
        let flow = SocketFlow {
            addr: backend.to_ipv6_mapped().into(),
            frontend: SERVICE.to_ipv6_mapped().into(),
            port: PORT.into(),
            frontend_port: PORT.into(),
            service: self.engine.state.get(&Self::frontend()).unwrap().id,
        };
        self.engine.maps.socket_flows.insert(cookie, flow, 0).unwrap();
        socket
    }
}

fn cut(socket: &UdpSocket) -> bool {
    let error = socket.take_error().unwrap();
    assert!(error.iter().all(|e| e.kind() == io::ErrorKind::ConnectionAborted), "{error:?}");
    error.is_some()
}

#[test]
fn a_socket_that_is_being_connected_when_its_backend_goes_is_cut() {
    let Some(lab) = lab(LabConfig::new().pod("backend", Node::A)) else { return };
    let test = || {
        let mut world = World::new(&lab);
        for late in [false, true] {
            let [socket, elsewhere] = [world.given(), world.given()];
            let peer = elsewhere.peer_addr().unwrap();
            world.update(false);
            if late {
                world.engine.cut_late();
            }
            socket.connect(world.backend).unwrap();
            if late {
                assert!(!cut(&socket), "nothing tells of it yet");
                assert!(world.engine.is_intact());
            } else {
                world.engine.cut_late();
            }
            assert!(cut(&socket), "late: {late}");
            assert!(!cut(&elsewhere));
            assert_eq!(elsewhere.peer_addr().unwrap(), peer, "it never was the Service's");

            world.update(true);
            let socket = world.given();
            socket.connect(world.backend).unwrap();
            world.engine.cut_late();
            assert!(world.engine.is_intact() && !cut(&socket), "it may stay");
        }
    };
    std::thread::scope(|scope| scope.spawn(test).join().unwrap());
}
