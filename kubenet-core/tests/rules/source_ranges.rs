//! [R1] to [R3]: who may reach a load balancer's address.

use kubenet_core::{
    datapath::{Capabilities, Feature},
    model::Protocol::Tcp,
    route::FrontendKind::{ClusterIp, ExternalIp, LoadBalancer, NodePort},
};
use kubenet_testkit::memory::MemoryDatapath;
use serde_json::{Value, json};

use crate::{
    manifest::{node, pod},
    world::{Answer, Dropped, Rejected, Setup, World, node_info, to},
};

/// The endpoint is a1.
fn ranges(ranges: Value) -> World {
    World::web(json!({ "loadBalancerSourceRanges": ranges }), [pod("a1")])
}

/// What the client outside meets on the address of each family.
fn by_family(world: &World) -> [Answer; 2] {
    ["192.0.2.1:80", "[2001:db8:2::1]:80"].map(|at| world.packet("outside", at, Tcp))
}

#[test]
fn r1_outside_the_ranges_traffic_to_load_balancer_addresses_is_dropped() {
    let world = ranges(json!(["203.0.113.0/29", "2001:db8::8/125"]));
    for (client, answer) in [("203.0.113.7", to(["a1"])), ("203.0.113.8", Dropped), ("198.18.0.1", Dropped)] {
        assert_eq!(world.packet(client, "192.0.2.1:80", Tcp), answer, "{client}");
    }
    for (client, answer) in [("2001:db8::f", to(["a1"])), ("2001:db8::10", Dropped), ("fd00::1", Dropped)] {
        assert_eq!(world.packet(client, "[2001:db8:2::1]:80", Tcp), answer, "{client}");
    }
    assert_eq!(world.dial("a9", LoadBalancer), Dropped, "pods, too");
}

#[test]
fn r1_other_frontends_are_not_filtered() {
    let world = ranges(json!(["198.18.0.0/15", "2001:db8:ffff::/48"]));
    assert_eq!(world.dial("outside", LoadBalancer), Dropped);
    for kind in [NodePort, ClusterIp, ExternalIp] {
        assert_eq!(world.dial("outside", kind), to(["a1"]), "{kind:?}");
    }
}

#[test]
fn r1_an_empty_list_admits_all() {
    for empty in [json!(null), json!([])] {
        assert_eq!(ranges(empty).dial("outside", LoadBalancer), to(["a1"]));
    }
}

#[test]
fn r1_a_range_of_everything_admits_all_of_its_family() {
    let both = ranges(json!(["0.0.0.0/0", "198.18.0.0/15", "::/0"]));
    assert_eq!(both.dial("outside", LoadBalancer), to(["a1"]));
    let v4 = ranges(json!(["0.0.0.0/0", "2001:db8:ffff::/48"]));
    assert_eq!(by_family(&v4), [to(["a1"]), Dropped]);
}

#[test]
fn r1_a_range_of_everything_asks_no_filter_of_the_datapath() {
    let mut capabilities = Capabilities::full();
    capabilities.features.remove(&Feature::SourceRanges);
    let setup = Setup { memory: MemoryDatapath::with_capabilities(capabilities), ..Setup::default() };
    let everything = json!({ "loadBalancerSourceRanges": ["0.0.0.0/0", "::/0"] });
    assert_eq!(World::web_on(setup, everything, [pod("a1")]).dial("outside", LoadBalancer), to(["a1"]));
}

#[test]
fn r1_ranges_of_the_other_family_only_admit_all() {
    assert_eq!(by_family(&ranges(json!(["2001:db8:ffff::/48"]))), [to(["a1"]), Dropped]);
    assert_eq!(by_family(&ranges(json!(["198.18.0.0/15"]))), [Dropped, to(["a1"])]);
}

#[test]
fn r1_white_space_around_a_range_is_accepted() {
    let world = ranges(json!([" 203.0.113.0/24", "2001:db8::/64\t\n"]));
    assert_eq!((world.dial("outside", LoadBalancer), &world.told[..]), (to(["a1"]), &[][..]));
    assert_eq!(world.dial("a9", LoadBalancer), Dropped);
}

#[test]
fn r1_a_bad_range_is_reported_by_name_and_admits_nobody() {
    let world = ranges(json!(["203.0.113.0/24", "203.0.113.0/33", "2001:db8::/64", "198.18.0.1"]));
    let told = |i: usize, text: &str| {
        let rule = "must be an IPv4 or IPv6 CIDR";
        format!("Service demo/web: spec.loadBalancerSourceRanges[{i}]: \"{text}\" admits nobody: {rule}")
    };
    assert_eq!(world.told, [told(1, "203.0.113.0/33"), told(3, "198.18.0.1")]);
    assert_eq!(world.dial("outside", LoadBalancer), to(["a1"]), "by the good ones");
    assert_eq!(world.packet("198.18.0.1", "192.0.2.1:80", Tcp), Dropped);
}

#[test]
fn r1_where_only_bad_ranges_remain_all_are_dropped() {
    for bad in [json!(["everybody"]), json!([""]), json!([" "]), json!(["10.0.0.0/33", "::/129"])] {
        let world = ranges(bad);
        for client in ["outside", "a9", "node-a"] {
            assert_eq!(world.dial(client, LoadBalancer), Dropped, "{client}");
        }
        assert_eq!(world.dial("outside", NodePort), to(["a1"]));
    }
    let in_v4 = ranges(json!(["everybody", "2001:db8::/64"]));
    assert_eq!(by_family(&in_v4), [Dropped, to(["a1"])], "of one family");
}

#[test]
fn r2_the_node_may_when_a_range_holds_an_address_of_it() {
    let world = ranges(json!(["10.0.0.0/24", "fd00:10::/64"]));
    assert_eq!(world.dial("node-a", LoadBalancer), to(["a1"]));
    assert_eq!(world.dial("a9", LoadBalancer), Dropped, "pods are filtered by their own address");
    let world = ranges(json!(["10.244.1.0/24", "fd00:244:1::/48"]));
    assert_eq!(world.dial("node-a", LoadBalancer), Dropped);
    assert_eq!(world.dial("a9", LoadBalancer), to(["a1"]));
    assert_eq!(world.dial("b9", LoadBalancer), Dropped);
}

#[test]
fn r2_any_address_of_the_node_will_do() {
    let addresses = json!([
        { "type": "InternalIP", "address": "10.0.0.1" },
        { "type": "ExternalIP", "address": "203.0.113.77" },
    ]);
    let node = node_info(node(json!({ "status": { "addresses": addresses } })), |builder| builder);
    let spec = json!({ "loadBalancerSourceRanges": ["203.0.113.77/32"] });
    let world = World::web_on(Setup { node, ..Setup::default() }, spec, [pod("a1")]);
    for client in ["10.0.0.1", "203.0.113.77", "127.0.0.1"] {
        assert_eq!(world.packet(client, "192.0.2.1:80", Tcp), to(["a1"]), "{client}");
    }
    assert_eq!(world.packet("outside", "192.0.2.1:80", Tcp), Dropped);
}

#[test]
fn r3_filtering_comes_before_the_answers_without_endpoints() {
    let mut spec = json!({ "loadBalancerSourceRanges": ["10.244.1.9/32", "fd00:244:1::9/128"] });
    let world = World::web(spec.clone(), []);
    assert_eq!(world.dial("outside", LoadBalancer), Dropped, "and not rejected");
    assert_eq!(world.dial("a9", LoadBalancer), Rejected);
    spec["externalTrafficPolicy"] = "Local".into();
    let world = World::web(spec, [pod("b1")]);
    assert_eq!(world.dial("a8", LoadBalancer), Dropped, "though it would be short-circuited");
    assert_eq!(world.dial("a9", LoadBalancer), to(["b1"]));
}
