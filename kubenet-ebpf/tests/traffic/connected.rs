//! Connected UDP sockets of the node's own processes ([L2]).

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};

use kubenet_core::{
    datapath::Datapath,
    model::IpFamily,
    route::{Route, RouteTable, WhenEmpty},
};
use kubenet_ebpf::{EbpfDatapath, Metric};
use kubenet_testkit::lab::{Lab, Node, Place};
use nix::sys::socket::{SockaddrStorage, connect};

use futures::executor::block_on;

use super::{start, support::*};

/// How an application opens its socket.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Plain,
    /// An IPv6 socket that dials an IPv4 address.
    Mapped,
}

/// A UDP socket of node-a that is connected to nothing yet.
fn socket(lab: &Lab, family: IpFamily, kind: Kind) -> UdpSocket {
    let any: SocketAddr = match (family, kind) {
        (IpFamily::V4, Kind::Plain) => "0.0.0.0:0".parse().unwrap(),
        _ => "[::]:0".parse().unwrap(),
    };
    let socket = lab.node(Node::A).netns().run(|| UdpSocket::bind(any)).unwrap().unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

fn dial(socket: &UdpSocket, to: SocketAddr, kind: Kind) -> io::Result<()> {
    let to = match (to.ip(), kind) {
        (IpAddr::V4(address), Kind::Mapped) => SocketAddr::new(address.to_ipv6_mapped().into(), to.port()),
        _ => to,
    };
    Ok(connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?)
}

fn ask(socket: &UdpSocket) -> io::Result<String> {
    let mut buffer = [0; 512];
    // One that was cut is connected to nobody, and says why.
    socket.send(b"?").map_err(|e| socket.take_error().unwrap().unwrap_or(e))?;
    let length = socket.recv(&mut buffer)?;
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

fn kinds(lab: &Lab) -> Vec<(IpFamily, Kind)> {
    let plain = lab.families().iter().map(|family| (*family, Kind::Plain));
    plain.chain([(IpFamily::V4, Kind::Mapped)]).collect()
}

/// From one table to the next, as the router does.
fn update(datapath: &EbpfDatapath, from: &mut Arc<RouteTable>, to: Arc<RouteTable>) {
    let report = block_on(datapath.apply(Arc::new(from.diff(&to)))).unwrap();
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    *from = to;
}

fn aborted(result: &io::Result<String>) -> bool {
    matches!(result, Err(e) if e.kind() == ErrorKind::ConnectionAborted)
}

#[test]
fn connected_udp_sockets_of_the_node_leave_a_backend_that_is_gone() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = datapath(&lab);
    assert!(
        datapath.capabilities().node_udp_follows,
        "this kernel cuts no sockets: {:?}",
        kubenet_ebpf::probe()
    );
    for (family, kind) in kinds(&lab) {
        for to in [service(family, 1), node(&lab, family, NODE_PORT)] {
            let case = format!("{family} {kind:?} to {to}");
            let other = service(family, 2);
            let mut revision = 0;
            let mut with = |backends: &[&str]| {
                revision += 1;
                let mut routes = on_cluster_ip(&lab, family, 1, backends);
                routes.extend(on_node_port(&lab, family, NODE_PORT, backends));
                routes.extend(on_cluster_ip(&lab, family, 2, &["there"]));
                table(&lab, revision, routes)
            };
            let mut now = with(&["there"]);
            replace(&datapath, &now);
            let [through, direct, elsewhere, moved, both] = [(); 5].map(|()| socket(&lab, family, kind));
            let backend = backends(&lab, family, &["there"])[0].socket_addr();
            dial(&through, to, kind).unwrap();
            dial(&direct, backend, kind).unwrap();
            dial(&elsewhere, other, kind).unwrap();
            // It went through the Service once, and dialled the backend by its own name then.
            dial(&moved, to, kind).unwrap();
            assert_eq!(ask(&moved).unwrap(), "there", "{case}");
            dial(&moved, backend, kind).unwrap();
            // It is connected to the backend, and sends to the Service beside that.
            dial(&both, backend, kind).unwrap();
            for socket in [&through, &direct, &elsewhere, &moved, &both] {
                assert_eq!(ask(socket).unwrap(), "there", "{case}");
            }
            let peer = through.peer_addr().unwrap();
            assert_eq!(
                SocketAddr::new(peer.ip().to_canonical(), peer.port()),
                to,
                "{case}: its name is the Service's"
            );
            update(&datapath, &mut now, with(&["here", "there"]));
            assert_eq!(ask(&through).unwrap(), "there", "{case}: a backend more moves no flow");
            let mut open = lab.connect(Place::Node(Node::A), to, SOON).unwrap();
            open.ask(SOON).unwrap();

            update(&datapath, &mut now, with(&["here"]));
            let cut = ask(&through);
            assert!(aborted(&cut), "{case}: {cut:?}");
            dial(&through, to, kind).unwrap();
            assert_eq!(ask(&through).unwrap(), "here", "{case}");
            for socket in [&direct, &elsewhere, &moved, &both] {
                assert_eq!(ask(socket).unwrap(), "there", "{case}: not this Service's");
            }
            open.ask(SOON).unwrap_or_else(|e| panic!("{case}: TCP lives until it ends: {e}"));

            // To none, and from none.
            update(&datapath, &mut now, with(&[]));
            assert!(aborted(&ask(&through)), "{case}");
            assert_eq!(dial(&through, to, kind).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{case}");
            update(&datapath, &mut now, with(&["there"]));
            dial(&through, to, kind).unwrap();
            assert_eq!(ask(&through).unwrap(), "there", "{case}");

            // The frontend itself goes.
            let routes = on_cluster_ip(&lab, family, 2, &["there"]);
            update(&datapath, &mut now, table(&lab, 100, routes));
            assert!(aborted(&ask(&through)), "{case}");
            assert_eq!(ask(&elsewhere).unwrap(), "there", "{case}");
        }
    }
}

/// A backend that goes while sockets are being connected to it takes them along.
#[test]
fn no_socket_that_dials_during_an_update_stays_with_a_backend_that_goes() {
    const ROUNDS: u64 = 200;
    let Some((lab, _servers)) = start() else { return };
    let datapath = datapath(&lab);
    let to = service(IpFamily::V4, 1);
    let with = |revision, backend| table(&lab, revision, on_cluster_ip(&lab, IpFamily::V4, 1, &[backend]));
    let mut now = with(1, "there");
    replace(&datapath, &now);
    let dialers = [(); 4].map(|()| [(); 32].map(|()| socket(&lab, IpFamily::V4, Kind::Plain)));
    let mut cuts = 0;
    for round in 2..ROUNDS {
        let (before, after) = if round % 2 == 0 { ("there", "here") } else { ("here", "there") };
        let start = Barrier::new(dialers.len() + 1);
        thread::scope(|scope| {
            for sockets in &dialers {
                scope.spawn(|| {
                    start.wait();
                    sockets.iter().for_each(|socket| dial(socket, to, Kind::Plain).unwrap());
                });
            }
            start.wait();
            update(&datapath, &mut now, with(round, after));
        });
        // Behind the second look.
        block_on(datapath.metrics()).unwrap();
        for socket in dialers.iter().flatten() {
            match ask(socket) {
                Ok(backend) => assert_eq!(backend, after, "round {round}"),
                cut if aborted(&cut) => cuts += 1,
                Err(e) => panic!("round {round}, from {before} to {after}: {e}"),
            }
        }
    }
    assert!(cuts > 0, "no socket was connected before an update");
}

#[test]
fn another_table_cuts_sockets_as_a_change_does() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = datapath(&lab);
    for (family, kind) in kinds(&lab) {
        let with = |backend| on_cluster_ip(&lab, family, 1, &[backend]);
        replace(&datapath, &table(&lab, 1, with("there")));
        let socket = socket(&lab, family, kind);
        dial(&socket, service(family, 1), kind).unwrap();
        assert_eq!(ask(&socket).unwrap(), "there");
        replace(&datapath, &table(&lab, 2, with("there")));
        assert_eq!(ask(&socket).unwrap(), "there", "nothing changed");
        replace(&datapath, &table(&lab, 3, with("here")));
        assert!(aborted(&ask(&socket)));
    }
}

/// What a socket of the node that was connected before the datapath came sends to a Service leaves as it is; nobody
/// outside would answer.
#[test]
fn sockets_older_than_the_datapath_are_told_to_connect_again() {
    let Some((lab, _servers)) = start() else { return };
    for (family, kind) in kinds(&lab) {
        let to = service(family, 1);
        let socket = socket(&lab, family, kind);
        dial(&socket, to, kind).unwrap();
        let datapath = datapath(&lab);
        replace(&datapath, &table(&lab, 1, on_cluster_ip(&lab, family, 1, &["there"])));
        let refused = ask(&socket);
        assert!(
            matches!(&refused, Err(e) if e.kind() == ErrorKind::ConnectionRefused),
            "{family} {kind:?}: {refused:?}"
        );
        assert_eq!(block_on(datapath.metrics()).unwrap()[&Metric::Rejected], 1);
        dial(&socket, to, kind).unwrap();
        assert_eq!(ask(&socket).unwrap(), "there");
    }
}

#[test]
fn a_socket_that_met_a_dropping_service_is_served_once_it_has_endpoints() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = datapath(&lab);
    for (family, kind) in kinds(&lab) {
        let to = service(family, 1);
        let with = |backends: &[&str]| {
            on_cluster_ip(&lab, family, 1, backends).into_iter().map(|route| {
                let mut route = Route::clone(&route);
                if route.internal.backends.is_empty() {
                    route.internal.when_empty = WhenEmpty::Drop;
                }
                Arc::new(route)
            })
        };
        replace(&datapath, &table(&lab, 1, with(&[])));
        let socket = socket(&lab, family, kind);
        dial(&socket, to, kind).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let silence = ask(&socket);
        assert!(
            matches!(&silence, Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)),
            "{silence:?}"
        );
        replace(&datapath, &table(&lab, 2, with(&["there"])));
        socket.set_read_timeout(Some(SOON)).unwrap();
        let refused = ask(&socket);
        assert!(
            matches!(&refused, Err(e) if e.kind() == ErrorKind::ConnectionRefused),
            "{family} {kind:?}: {refused:?}"
        );
        dial(&socket, to, kind).unwrap();
        assert_eq!(ask(&socket).unwrap(), "there");
    }
}
