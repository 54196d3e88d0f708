//! Pods told by the interface that their packets come in through ([S3], [S5], [E5]).

use std::{net::IpAddr, sync::Arc};

use futures::executor::block_on;
use kubenet_core::{
    datapath::Datapath,
    model::{IpFamily, LocalDetector},
    route::{Route, RouteTable, WhenEmpty},
};
use kubenet_testkit::lab::Lab;

use super::{
    start,
    support::{load::place, *},
};

fn detecting(table: &Arc<RouteTable>, detector: LocalDetector) -> Arc<RouteTable> {
    let mut node = (**table.node()).clone();
    node.local_detector = detector;
    Arc::new(RouteTable::new(table.revision(), Arc::new(node), table.routes().cloned()))
}

fn sees(lab: &Lab, from: &str, family: IpFamily) -> IpAddr {
    let answer = lab.http_get(place(from), service(family, 1), SOON);
    answer.unwrap_or_else(|e| panic!("{from}, {family}: {e}")).peer.ip()
}

#[test]
fn s3_a_pods_flow_is_told_by_its_interface() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = datapath(&lab);
    let interface = |pod: &str| lab.pod(pod).unwrap().host_interface().to_owned();
    // The lab has no bridge: a pod's own interface is as good a name.
    let by_prefix = LocalDetector::InterfacePrefix(interface("client")[..2].to_owned());
    let of_one_pod = LocalDetector::Bridge(interface("client"));
    let of_nobody = LocalDetector::Bridge("nobody".to_owned());
    for &family in lab.families() {
        let own = |place_of: &str| lab.address(&place(place_of), family).unwrap();
        let plain = table(&lab, 1, on_cluster_ip(&lab, family, 1, &["there"]));
        for (detector, pods) in
            [(&by_prefix, &["client", "here"][..]), (&of_one_pod, &["client"]), (&of_nobody, &[])]
        {
            let wanted = detecting(&plain, detector.clone());
            replace(&datapath, &wanted);
            assert_eq!(block_on(datapath.read()).unwrap(), *wanted);
            for client in ["client", "here", "outside", "node"] {
                let is_itself = pods.contains(&client) || client == "node";
                let expected = own(if is_itself { client } else { "node" });
                assert_eq!(sees(&lab, client, family), expected, "{client} by {detector:?}");
            }
        }
        // Back to addresses, by a delta.
        let delta = detecting(&plain, of_nobody.clone()).diff(&plain);
        block_on(datapath.apply(Arc::new(delta))).unwrap();
        assert_eq!(sees(&lab, "here", family), own("here"));
    }
}

#[test]
fn s3_an_interface_that_comes_later_is_a_pods_at_once() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = builder(&lab).build().unwrap();
    let family = IpFamily::V4;
    let interface = lab.pod("client").unwrap().host_interface().to_owned();
    let detector = LocalDetector::InterfacePrefix(interface[..2].to_owned());
    replace(&datapath, &detecting(&table(&lab, 1, on_cluster_ip(&lab, family, 1, &["there"])), detector));
    for _ in 0..2 {
        block_on(datapath.attach_pod(&interface)).unwrap();
        assert_eq!(sees(&lab, "client", family), lab.address(&place("client"), family).unwrap());
        block_on(datapath.detach_pod(&interface)).unwrap();
    }
}

#[test]
fn e5_a_pod_told_by_its_interface_gets_the_internal_backends() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = datapath(&lab);
    let interface = lab.pod("client").unwrap().host_interface().to_owned();
    for &family in lab.families() {
        let mut routes = on_node_port(&lab, family, NODE_PORT, &["there"]);
        for route in &mut routes {
            let mut changed = Route::clone(route);
            changed.external.backends = [].into();
            changed.external.when_empty = WhenEmpty::Reject;
            *route = Arc::new(changed);
        }
        replace(&datapath, &detecting(&table(&lab, 1, routes), LocalDetector::Bridge(interface.clone())));
        let at = node(&lab, family, NODE_PORT);
        for inside in ["client", "node"] {
            assert_eq!(lab.http_get(place(inside), at, SOON).unwrap().backend, "there", "{inside}");
        }
        for other in ["here", "outside"] {
            assert!(lab.http_get(place(other), at, SOON).unwrap_err().is_refused(), "{other}");
        }
    }
}
