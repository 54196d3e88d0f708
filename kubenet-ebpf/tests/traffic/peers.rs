//! Packets that go straight into the namespaces of pods.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
};

use futures::executor::block_on;
use kubenet_core::{model::IpFamily, route::Route};
use kubenet_ebpf::EbpfDatapath;
use kubenet_testkit::lab::{Lab, LabConfig, Node};

use super::{
    start,
    support::{load::place, offload::ip, *},
};

/// Packets of a flow in each direction, and how many of others there may be: the neighbours' questions and answers.
const PACKETS: u64 = 200;
const OTHERS: u64 = 20;

fn straight(lab: &Lab, on: bool) -> EbpfDatapath {
    let builder =
        lab.node(Node::A).pod_interfaces().into_iter().fold(builder(lab), |b, pod| b.pod_interface(pod));
    builder.redirect_peer(on).build().unwrap()
}

/// How many packets have left the node by the host's end of a pod's interface: those that pass its egress.
fn sent(lab: &Lab, pod: &str) -> u64 {
    let interface = lab.pod(pod).unwrap().host_interface().to_owned();
    let text = ip(lab, &format!("-s link show dev {interface}"));
    let mut lines = text.lines().skip_while(|line| !line.trim_start().starts_with("TX:")).skip(1);
    lines.next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Asks many times, by TCP and by UDP, from a client to a backend.
fn ask(lab: &Lab, client: &str, to: SocketAddr, backend: &str) {
    let mut connection = lab.connect(place(client), to, SOON).unwrap();
    let flow = lab.udp_flow(place(client), to).unwrap();
    for _ in 0..PACKETS / 2 {
        assert_eq!(connection.ask(SOON).unwrap().backend, backend, "{client}");
        assert_eq!(flow.ask(SOON).unwrap().backend, backend, "{client}, UDP");
    }
}

fn routes(lab: &Lab, family: IpFamily, backend: &str) -> Vec<Arc<Route>> {
    let mut routes = on_cluster_ip(lab, family, 1, &[backend]);
    routes.extend(on_node_port(lab, family, NODE_PORT, &[backend]));
    routes
}

/// How many packets pass the egress of two pods' interfaces while a client asks. The neighbours are known by then.
fn seen(lab: &Lab, client: &str, to: SocketAddr, backend: &str) -> [u64; 2] {
    lab.http_get(place(client), to, SOON).unwrap();
    let count = || ["client", "here"].map(|pod| sent(lab, pod));
    let before = count();
    ask(lab, client, to, backend);
    let after = count();
    [after[0] - before[0], after[1] - before[1]]
}

#[test]
fn packets_straight_into_a_pod_pass_by_the_egress_of_its_interface() {
    let Some((lab, _servers)) = start() else { return };
    for &family in lab.families() {
        let (cluster_ip, node_port) = (service(family, 1), node(&lab, family, NODE_PORT));
        for on in [false, true] {
            let datapath = straight(&lab, on);
            // A pod, a client outside, a pod and its own Service, and a backend elsewhere.
            for (client, to, backend, passed) in [
                ("client", cluster_ip, "here", [true, true]),
                ("outside", node_port, "here", [false, true]),
                ("client", cluster_ip, "client", [true, false]),
                ("client", cluster_ip, "there", [true, false]),
            ] {
                replace(&datapath, &table(&lab, 1, routes(&lab, family, backend)));
                let seen = seen(&lab, client, to, backend);
                let case = format!("{family}, {client} to {backend}, on: {on}");
                for (seen, passed) in seen.into_iter().zip(passed) {
                    let expected = if passed && !on { PACKETS..=u64::MAX } else { 0..=OTHERS };
                    assert!(expected.contains(&seen), "{case}: {seen} packets");
                }
            }
        }
    }
}

#[test]
fn an_interface_that_is_detached_gets_packets_the_usual_way_until_it_is_attached_again() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = straight(&lab, true);
    let (family, to) = (IpFamily::V4, service(IpFamily::V4, 1));
    replace(&datapath, &table(&lab, 1, routes(&lab, family, "here")));
    let interface = lab.pod("here").unwrap().host_interface().to_owned();
    let mut open = lab.connect("client", to, SOON).unwrap();
    for _ in 0..2 {
        assert!(seen(&lab, "client", to, "here")[1] <= OTHERS);
        block_on(datapath.detach_pod(&interface)).unwrap();
        assert!(seen(&lab, "client", to, "here")[1] >= PACKETS);
        open.ask(SOON).unwrap();
        block_on(datapath.attach_pod(&interface)).unwrap();
        assert!(seen(&lab, "client", to, "here")[1] <= OTHERS);
        open.ask(SOON).unwrap();
    }
    // The pod goes, and another comes by the same name.
    drop(open);
    block_on(datapath.detach_pod(&interface)).unwrap();
    lab.remove_pod("here").unwrap();
    lab.add_pod("here", Node::A).unwrap();
    let _server = lab.serve("here", PORT).unwrap();
    block_on(datapath.attach_pod(&interface)).unwrap();
    replace(&datapath, &table(&lab, 2, routes(&lab, family, "here")));
    assert!(seen(&lab, "client", to, "here")[1] <= OTHERS);
}

/// A bridge with the pod behind it is no device that packets could be put through: they would be lost.
#[test]
fn a_pod_behind_a_bridge_is_served_as_ever() {
    let Some((lab, _servers)) = start() else { return };
    let pod = lab.pod("here").unwrap();
    let (port, address) = (pod.host_interface(), pod.v4());
    let text = ip(&lab, &format!("-4 -o addr show dev {port}"));
    let gateway = text.split_whitespace().skip_while(|word| *word != "inet").nth(1).unwrap();
    for arguments in [
        "link add bridge0 type bridge".to_owned(),
        "link set bridge0 up".to_owned(),
        format!("link set {port} master bridge0"),
        format!("addr add {gateway} dev bridge0 scope link"),
        format!("route replace {address}/32 dev bridge0 src {}", lab.node(Node::A).v4()),
    ] {
        ip(&lab, &arguments);
    }
    let client = lab.pod("client").unwrap().host_interface().to_owned();
    let datapath = builder(&lab).pod_interface(client).pod_interface("bridge0").redirect_peer(true).build();
    let datapath = datapath.unwrap();
    replace(&datapath, &table(&lab, 1, routes(&lab, IpFamily::V4, "here")));
    // The port learns the pod's MAC address from its first packet.
    let [to_client, to_backend] = seen(&lab, "client", service(IpFamily::V4, 1), "here");
    assert!(to_client <= OTHERS && to_backend >= PACKETS, "{to_client}, {to_backend}");
}

/// What comes from `from`, in an order that nothing repeats soon.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn large_segments_arrive_as_they_were_sent() {
    const LENGTH: usize = 16 << 20;
    let Some(lab) = lab(LabConfig::new().pod("client", Node::A).pod("here", Node::A)) else { return };
    let datapath = straight(&lab, true);
    let sent = noise(LENGTH);
    for &family in lab.families() {
        replace(&datapath, &table(&lab, 1, routes(&lab, family, "here")));
        let at = SocketAddr::new(lab.address(&place("here"), family).unwrap(), PORT);
        let listener = lab.pod("here").unwrap().netns().run(|| TcpListener::bind(at).unwrap()).unwrap();
        for (client, to) in [("client", service(family, 1)), ("outside", node(&lab, family, NODE_PORT))] {
            let dial = || TcpStream::connect_timeout(&to, SOON).unwrap();
            let mut near = lab.netns(&place(client)).unwrap().run(dial).unwrap();
            let (mut far, _) = listener.accept().unwrap();
            // Both ways at once.
            let mut ends = [near.try_clone().unwrap(), far.try_clone().unwrap()];
            thread::scope(|scope| {
                for end in &mut ends {
                    let sent = &sent;
                    scope.spawn(move || end.write_all(sent).unwrap());
                }
                for end in [&mut near, &mut far] {
                    let mut received = vec![0; LENGTH];
                    end.set_read_timeout(Some(SOON)).unwrap();
                    end.read_exact(&mut received).unwrap_or_else(|e| panic!("{family}, {client}: {e}"));
                    assert!(received == sent, "{family}, {client}: something else arrived");
                }
            });
        }
    }
}
