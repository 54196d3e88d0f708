use futures::executor::block_on;
use kubenet_core::{
    model::{Endpoint, EndpointPort, EndpointSlice, IpFamily, NodeInfo, Service, ServicePort, ServiceType},
    resolve::resolve,
};

use super::*;

const CLIENT: &str = "10.244.1.9:40000";
const SERVICE: &str = "10.96.0.10:80";

/// A Service on cluster IP and node port with these endpoints, the first of them here.
fn table(endpoints: &[&str]) -> Arc<RouteTable> {
    let node = NodeInfo::builder("node-a")
        .address("10.89.0.1".parse().unwrap())
        .cluster_cidr("10.244.0.0/16".parse().unwrap())
        .build()
        .unwrap();
    let number = |n: u16| n.try_into().unwrap();
    let service = Service::builder("demo", "web")
        .service_type(ServiceType::NodePort)
        .cluster_ip("10.96.0.10".parse().unwrap())
        .port(ServicePort::new("t", Protocol::Tcp, number(80)).with_node_port(number(30080)))
        .port(ServicePort::new("u", Protocol::Udp, number(80)))
        .build()
        .unwrap();
    let nodes = std::iter::once("node-a").chain(std::iter::repeat("node-b"));
    let slice = EndpointSlice::builder("demo", "web-1", "web", IpFamily::V4)
        .port(EndpointPort::new("t", Protocol::Tcp, number(8080)))
        .port(EndpointPort::new("u", Protocol::Udp, number(8080)))
        .endpoints(endpoints.iter().zip(nodes).map(|(a, n)| Endpoint::new(a.parse().unwrap()).on_node(n)))
        .build()
        .unwrap();
    Arc::new(resolve(&node, [&service], [&slice]))
}

fn flow(from: &str, to: &str, protocol: Protocol) -> Flow {
    Flow::new(from.parse().unwrap(), to.parse().unwrap(), protocol)
}

/// Backend and whom it sees, for each that may be picked.
fn choices(table: &RouteTable, from: &str, to: &str, see_client: bool) -> Vec<(String, String)> {
    match route(table, &flow(from, to, Protocol::Tcp), see_client) {
        Verdict::Forward(choices) => {
            choices.iter().map(|c| (c.backend.address.to_string(), c.sees.to_string())).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_is_picked_and_whom_it_sees() {
    let table = table(&["10.244.1.2", "10.244.2.2"]);
    let pair = |a: &str, b: &str| vec![("10.244.1.2".into(), a.into()), ("10.244.2.2".into(), b.into())];
    let (client, node, outside) = ("10.244.1.9", "10.89.0.1", "10.89.0.100");
    assert_eq!(choices(&table, CLIENT, SERVICE, false), pair(client, client));
    assert_eq!(choices(&table, "10.244.1.2:1", SERVICE, true), pair(node, "10.244.1.2"), "hairpin");
    assert_eq!(choices(&table, "10.89.0.100:1", SERVICE, false), pair(node, node));
    assert_eq!(choices(&table, "10.89.0.100:1", "10.89.0.1:30080", true), pair(outside, node));
    let elsewhere = flow(CLIENT, "10.89.0.2:30080", Protocol::Tcp);
    assert_eq!(route(&table, &elsewhere, false), Verdict::Pass, "not this node's address");
}

#[test]
fn tcp_stays_and_udp_chooses_again_when_the_backend_goes() {
    let datapath = MemoryDatapath::new();
    let first = table(&["10.244.1.2"]);
    block_on(datapath.replace(Arc::clone(&first))).unwrap();
    let flows = [Protocol::Tcp, Protocol::Udp].map(|protocol| flow(CLIENT, SERVICE, protocol));
    let backend = |delivery| match delivery {
        Delivery::To(choice) => choice.backend.address.to_string(),
        other => format!("{other:?}"),
    };
    assert_eq!(flows.clone().map(|f| backend(datapath.connect(&f))), ["10.244.1.2", "10.244.1.2"]);
    block_on(datapath.apply(Arc::new(first.diff(&table(&["10.244.2.2"]))))).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(flows.clone().map(|f| backend(datapath.send(&f))), ["10.244.1.2", "10.244.2.2"]);
    assert_eq!(block_on(datapath.drain()).unwrap().flows, 2);
    datapath.disconnect(&flows[0]);
    assert_eq!(
        flows.clone().map(|f| backend(datapath.send(&f))),
        ["Pass", "10.244.2.2"],
        "unknown TCP passes"
    );
}

#[test]
fn the_same_seed_chooses_the_same() {
    let picks = |seed| {
        let datapath = MemoryDatapath::new().seed(seed);
        block_on(datapath.replace(table(&["10.244.1.2", "10.244.2.2"]))).unwrap();
        let flow = flow(CLIENT, SERVICE, Protocol::Tcp);
        (0..32).map(|_| datapath.connect(&flow)).collect::<Vec<_>>()
    };
    assert_eq!(picks(7), picks(7));
    assert_ne!(picks(7), picks(8));
}

#[test]
fn n4_unknown_ports_of_a_cluster_ip_are_refused_for_the_protocols_that_are_served() {
    let unknown = |protocol| flow(CLIENT, "10.96.0.10:81", protocol);
    let mut capabilities = Capabilities::full();
    let verdicts = |capabilities: &Capabilities| {
        let datapath = MemoryDatapath::with_capabilities(capabilities.clone());
        block_on(datapath.replace(table(&["10.244.1.2"]))).unwrap();
        Protocol::ALL.map(|protocol| (protocol, datapath.route(&unknown(protocol))))
    };
    assert!(verdicts(&capabilities).iter().all(|(_, verdict)| *verdict == Verdict::Reject));
    capabilities.protocols.remove(&Protocol::Sctp);
    for (protocol, verdict) in verdicts(&capabilities) {
        let expected = if protocol == Protocol::Sctp { Verdict::Pass } else { Verdict::Reject };
        assert_eq!(verdict, expected, "{protocol}");
    }
    capabilities.features.remove(&Feature::RejectUnknownPorts);
    assert!(verdicts(&capabilities).iter().all(|(_, verdict)| *verdict == Verdict::Pass));
}
