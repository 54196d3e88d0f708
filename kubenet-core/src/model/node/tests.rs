use super::*;

fn node(addresses: &[&str]) -> NodeInfoBuilder {
    addresses.iter().fold(NodeInfo::builder("node-a"), |b, a| b.address(a.parse().unwrap()))
}

fn texts(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

#[test]
fn a_node_has_a_name() {
    assert_eq!(NodeInfo::builder("").build().unwrap_err().to_string(), "Node : metadata.name: must be set");
    assert!(NodeInfo::builder("Node-A").build().is_err());
    assert!(NodeInfo::builder("ip-10-0-0-1.example.org").build().is_ok());
}

#[test]
fn addresses_are_unicast_and_unique() {
    for address in ["0.0.0.0", "::", "224.0.0.1", "127.0.0.1", "::1", "255.255.255.255"] {
        let error = node(&["10.0.0.1", address]).build().unwrap_err();
        assert_eq!(error.field, "status.addresses[1]", "{address}");
    }
    let error = node(&["10.0.0.1", "::ffff:10.0.0.1"]).build().unwrap_err();
    assert_eq!(error.to_string(), "Node node-a: status.addresses[1]: \"10.0.0.1\": is listed twice");
}

#[test]
fn f4_node_ports_answer_on_the_chosen_addresses() {
    let addresses = ["10.0.0.2", "fd00::2", "10.0.0.1", "192.0.2.1"];
    let chosen = |choice: NodePortAddresses| {
        let routing = node(&addresses).node_port_addresses(choice).build().unwrap().routing();
        texts(&routing.node_port_addresses)
    };
    assert_eq!(chosen(NodePortAddresses::All), ["10.0.0.1", "10.0.0.2", "192.0.2.1", "fd00::2"]);
    assert_eq!(chosen(NodePortAddresses::Primary), ["10.0.0.2", "fd00::2"]);
    let cidrs = |cidrs: &[&str]| NodePortAddresses::Cidrs(cidrs.iter().map(|c| c.parse().unwrap()).collect());
    assert_eq!(chosen(cidrs(&["10.0.0.0/24", "fd00::/64"])), ["10.0.0.1", "10.0.0.2", "fd00::2"]);
    assert_eq!(chosen(cidrs(&["198.51.100.0/24"])), [""; 0]);
}

#[test]
fn s3_a_pod_is_known_by_the_ranges_of_the_cluster() {
    let routing = node(&["10.0.0.1"]).build().unwrap().routing();
    assert_eq!(routing.local_detector, LocalDetector::None);
    assert!(!routing.local_detector.is_pod([10, 244, 1, 1].into(), None));
    let routing =
        node(&["10.0.0.1"]).cluster_cidr("10.244.3.4/16".parse().unwrap()).build().unwrap().routing();
    assert_eq!(routing.local_detector.cidrs(), ["10.244.0.0/16".parse::<IpNet>().unwrap()]);
    assert!(routing.local_detector.is_pod([10, 244, 1, 1].into(), None));
    assert!(!routing.local_detector.is_pod([10, 245, 1, 1].into(), None));
}
