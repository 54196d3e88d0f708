use ipnet::IpNet;
use kubenet_core::model::{LocalDetector, NodeInfo, NodePortAddresses};
use proptest::{prelude::*, sample::select};

use super::{OUR_NODE, address, percent};

/// What is known of our node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) zone: Option<&'static str>,
    pub(crate) addresses: Vec<&'static str>,
    pub(crate) node_ports: NodePortAddresses,
    pub(crate) detector: LocalDetector,
    pub(crate) masquerade_all: bool,
    pub(crate) localhost_node_ports: bool,
}

impl Node {
    pub(crate) fn build(&self) -> NodeInfo {
        let mut builder = NodeInfo::builder(OUR_NODE)
            .node_port_addresses(self.node_ports.clone())
            .local_detector(self.detector.clone())
            .masquerade_all(self.masquerade_all)
            .localhost_node_ports(self.localhost_node_ports);
        if let Some(zone) = self.zone {
            builder = builder.zone(zone);
        }
        for text in &self.addresses {
            builder = builder.address(address(text));
        }
        builder.build().unwrap()
    }
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

pub(crate) fn any_node() -> impl Strategy<Value = Node> {
    let addresses = select(vec![
        vec!["10.0.0.1"],
        vec!["10.0.0.1", "192.0.2.1"],
        vec!["192.0.2.1", "fd00:1::1", "10.0.0.1"],
        vec!["fd00:1::1", "10.0.0.1", "fd00:1::2"],
    ]);
    let cidrs = |texts: &[&str]| NodePortAddresses::Cidrs(nets(texts));
    let node_ports = prop_oneof![
        4 => Just(NodePortAddresses::All),
        2 => Just(NodePortAddresses::Primary),
        3 => select(vec![
            cidrs(&["10.0.0.0/24", "fd00:1::1/128"]),
            cidrs(&["192.0.2.0/24", "127.0.0.1/32"]),
            cidrs(&["127.0.0.0/8", "fd00:1::/64"]),
            cidrs(&["0.0.0.0/0"]),
            cidrs(&["203.0.113.0/24"]),
        ]),
    ];
    let detector = select(vec![
        LocalDetector::None,
        LocalDetector::Cidrs(nets(&["10.244.0.0/16", "fd00:244::/32"])),
        LocalDetector::Cidrs(nets(&["10.244.0.0/16"])),
        LocalDetector::Cidrs(nets(&["10.244.1.0/24", "fd00:244:1::/48"])),
        LocalDetector::Bridge("cni0".into()),
        LocalDetector::InterfacePrefix("veth".into()),
    ]);
    let zone = select(vec![None, Some("east"), Some("east"), Some("west")]);
    (zone, addresses, node_ports, detector, percent(15), percent(50)).prop_map(
        |(zone, addresses, node_ports, detector, masquerade_all, localhost_node_ports)| Node {
            zone,
            addresses,
            node_ports,
            detector,
            masquerade_all,
            localhost_node_ports,
        },
    )
}
