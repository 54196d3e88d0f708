//! Tables go into the kernel and come back. No traffic.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use std::{net::Ipv4Addr, sync::Arc};

use aya::programs::{SchedClassifier, TcAttachType};
use futures::{FutureExt, StreamExt, executor::block_on};
use kubenet_core::{
    datapath::{Close, Datapath, DatapathEvent, DatapathExt, ErrorKind},
    model::{IpFamily, LocalDetector},
    route::{
        Backend, BackendState, FrontendAddress, NodeRouting, Revision, Route, RouteTable, SourceRanges,
        WhenEmpty,
    },
};
use kubenet_ebpf::{EbpfDatapath, MapSizes, Metric, probe};
use kubenet_testkit::lab::{LabConfig, Node};
use support::*;

fn config() -> LabConfig {
    LabConfig::new().pod("here", Node::A).pod("there", Node::B)
}

#[test]
fn a_table_is_read_back_as_it_was_programmed() {
    let Some(lab) = lab(config()) else { return };
    let datapath = datapath(&lab);
    let mut routes = Vec::new();
    for &family in lab.families() {
        routes.extend(on_cluster_ip(&lab, family, 1, &["here", "there"]));
        routes.extend(on_cluster_ip(&lab, family, 2, &[]));
        routes.extend(on_node_port(&lab, family, NODE_PORT, &["here", "there"]));
    }
    // Sets that differ, an empty one that drops, a backend that terminates.
    let mut odd = Route::clone(&on_node_port(&lab, IpFamily::V4, 30_081, &["here", "there"])[0]);
    odd.external.backends = backends(&lab, IpFamily::V4, &["here"]);
    odd.external.when_empty = WhenEmpty::Drop;
    odd.internal.backends =
        odd.internal.backends.iter().map(|b| Backend { state: BackendState::Terminating, ..*b }).collect();
    odd.service_port.port = "metrics".into();
    routes.push(Arc::new(odd));
    let first = table(&lab, 7, routes.clone());
    assert_eq!(replace(&datapath, &first).upserted, routes.len());

    let read = block_on(datapath.read()).unwrap();
    assert_eq!(read.revision(), Revision(7));
    assert!(read.same_routes(&first), "{:#?}", read.diff(&first));

    // Again: nothing to do.
    let again = replace(&datapath, &first);
    assert_eq!((again.upserted, again.removed), (0, 0));

    let second = table(&lab, 8, routes.into_iter().skip(3));
    let delta = Arc::new(first.diff(&second));
    let report = block_on(datapath.apply(Arc::clone(&delta))).unwrap();
    assert_eq!((report.upserted, report.removed, report.revision), (0, 3, Revision(8)));
    assert!(block_on(datapath.drift(&second)).unwrap().is_none());

    let conflict = block_on(datapath.apply(delta)).unwrap_err();
    assert_eq!(conflict.kind(), ErrorKind::Conflict);
    assert!(block_on(datapath.drift(&second)).unwrap().is_none(), "a conflict changes nothing");
    block_on(datapath.close(Close::Remove)).unwrap();
}

#[test]
fn facts_about_the_node_keep_their_order() {
    let Some(lab) = lab(config()) else { return };
    let datapath = datapath(&lab);
    let mut facts = NodeRouting::default();
    facts.addresses =
        ["10.89.0.1", "fd00:89::1", "192.168.7.7", "10.1.1.1", "fd00::7"].map(|a| a.parse().unwrap()).into();
    facts.node_port_addresses = ["10.1.1.1", "192.168.7.7", "fd00:89::1"].map(|a| a.parse().unwrap()).into();
    facts.local_detector = LocalDetector::Cidrs(
        ["10.244.0.0/16", "fd00:244::/32", "10.0.0.0/9"].map(|c| c.parse().unwrap()).into(),
    );
    let first = Arc::new(RouteTable::new(Revision(1), Arc::new(facts.clone()), []));
    replace(&datapath, &first);
    assert_eq!(block_on(datapath.read()).unwrap().node(), first.node());

    facts.addresses.reverse();
    facts.addresses.truncate(3);
    facts.node_port_addresses.clear();
    facts.local_detector = LocalDetector::None;
    let second = Arc::new(RouteTable::new(Revision(2), Arc::new(facts), []));
    let delta = first.diff(&second);
    block_on(datapath.apply(Arc::new(delta))).unwrap();
    assert_eq!(block_on(datapath.read()).unwrap().node(), second.node());
}

#[test]
fn a_full_map_fails_one_route_by_name_and_serves_the_others() {
    let Some(lab) = lab(config()) else { return };
    let mut sizes = MapSizes::default();
    sizes.services = 3;
    let datapath = builder(&lab).map_sizes(sizes).build().unwrap();
    let routes: Vec<Arc<Route>> =
        [1, 2].into_iter().flat_map(|i| on_cluster_ip(&lab, IpFamily::V4, i, &["here"])).collect();
    let mut events = datapath.events();
    let full = table(&lab, 1, routes.clone());
    let report = block_on(datapath.replace(full)).unwrap();
    assert_eq!((report.upserted, report.failed.len()), (3, 1));
    let failed = &report.failed[0];
    assert_eq!(failed.error.kind(), ErrorKind::Capacity);
    let message = failed.error.to_string();
    assert!(message.contains("services4") && message.contains("MapSizes::services"), "{message}");
    let seen = events.by_ref().take_while(|e| {
        let go_on = !matches!(e, DatapathEvent::RouteFailed { .. });
        async move { go_on }
    });
    block_on(seen.count());

    // Room is made and needed in one step.
    let frontend = failed.frontend;
    let removed = routes.iter().find(|r| r.frontend != frontend).unwrap().frontend;
    let fits = table(&lab, 2, routes.into_iter().filter(|r| r.frontend != removed));
    assert_eq!(replace(&datapath, &fits).upserted, 1);
    assert!(block_on(datapath.drift(&fits)).unwrap().is_none());
}

#[test]
fn each_map_that_gets_full_is_named_with_its_size_and_its_setting() {
    let Some(lab) = lab(config()) else { return };
    type Shrink = fn(&mut MapSizes);
    let cases: [(Shrink, IpFamily, &str, &str, u32); 7] = [
        (|sizes| sizes.services = 1, IpFamily::V4, "services4", "services", 1),
        (|sizes| sizes.services = 1, IpFamily::V6, "services6", "services", 1),
        (|sizes| sizes.slots = 3, IpFamily::V4, "slots", "slots", 3),
        // The first place is nobody's.
        (|sizes| sizes.backends4 = 4, IpFamily::V4, "backends4", "backends4", 3),
        (|sizes| sizes.backends6 = 4, IpFamily::V6, "backends6", "backends6", 3),
        (|sizes| sizes.source_ranges = 1, IpFamily::V4, "source_ranges4", "source_ranges", 1),
        (|sizes| sizes.source_ranges = 1, IpFamily::V6, "source_ranges6", "source_ranges", 1),
    ];
    for (shrink, family, map, setting, size) in cases {
        if !lab.families().contains(&family) {
            continue;
        }
        let mut sizes = MapSizes::default();
        shrink(&mut sizes);
        let datapath = builder(&lab).map_sizes(sizes).build().unwrap();
        let both: Vec<Arc<Route>> = [1, 2]
            .map(|number| {
                let mut route = Route::clone(&on_cluster_ip(&lab, family, number, &["here", "there"])[0]);
                let from = if family == IpFamily::V4 { "192.0.2.0/24" } else { "2001:db8::/32" };
                route.source_ranges =
                    Some(Arc::new(SourceRanges { cidrs: vec![from.parse().unwrap()], node: false }));
                Arc::new(route)
            })
            .into();
        let report = block_on(datapath.replace(table(&lab, 1, both.clone()))).unwrap();
        let [failed] = &report.failed[..] else { panic!("{map}: {:?}", report.failed) };
        assert_eq!((report.upserted, failed.error.kind()), (1, ErrorKind::Capacity), "{map}");
        let message = failed.error.to_string();
        for part in [format!("map {map} is full"), format!("MapSizes::{setting}"), format!(" {size} ")] {
            assert!(message.contains(&part), "no {part:?} in {message}");
        }
        let served = both.into_iter().filter(|route| route.frontend != failed.frontend);
        assert!(block_on(datapath.drift(&table(&lab, 1, served))).unwrap().is_none(), "{map}: one is served");
    }
}

#[test]
fn facts_for_which_there_is_no_room_are_refused_before_anything_changes() {
    let Some(lab) = lab(config()) else { return };
    let mut sizes = MapSizes::default();
    (sizes.node_addresses, sizes.pod_cidrs) = (4, 4);
    let datapath = builder(&lab).map_sizes(sizes).build().unwrap();
    let routes = on_cluster_ip(&lab, IpFamily::V4, 1, &["here"]);
    let before = table(&lab, 1, routes.clone());
    replace(&datapath, &before);
    let mut many_addresses = NodeRouting::clone(before.node());
    many_addresses.addresses = (1..6).map(|last| [10, 89, 7, last].into()).collect();
    let mut many_cidrs = NodeRouting::clone(before.node());
    let cidrs = (1..6).map(|third| format!("10.244.{third}.0/24").parse().unwrap());
    many_cidrs.local_detector = LocalDetector::Cidrs(cidrs.collect());
    let cases = [(many_addresses, "node_addrs4", "node_addresses"), (many_cidrs, "pod_cidrs4", "pod_cidrs")];
    for (facts, map, setting) in cases {
        let after = RouteTable::new(Revision(2), Arc::new(facts), []);
        let error = block_on(datapath.replace(Arc::new(after))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Capacity);
        let message = error.to_string();
        for part in [map, &format!("MapSizes::{setting}"), " 4 "] {
            assert!(message.contains(part), "no {part:?} in {message}");
        }
        let read = block_on(datapath.read()).unwrap();
        assert!(read.same_routes(&before) && read.node() == before.node(), "{map}: as before");
    }
}

#[test]
fn a_map_that_gets_full_amid_many_entries_serves_all_that_fit() {
    const FIT: usize = 1_500;
    let Some(lab) = lab(config()) else { return };
    let mut sizes = MapSizes::default();
    sizes.services = FIT as u32;
    let datapath = builder(&lab).map_sizes(sizes).build().unwrap();
    let model = on_cluster_ip(&lab, IpFamily::V4, 1, &["here", "there"]).remove(0);
    let numbered = |number: u32| {
        let mut route = Route::clone(&model);
        route.frontend.address = FrontendAddress::Ip(Ipv4Addr::from(0x0a60_4000 + number).into());
        route.service_port.service = format!("web-{number}").into();
        Arc::new(route)
    };
    let all: Vec<Arc<Route>> = (0..2_500).map(numbered).collect();
    let report = block_on(datapath.replace(table(&lab, 1, all.clone()))).unwrap();
    assert_eq!((report.upserted, report.failed.len()), (FIT, all.len() - FIT));
    assert!(report.failed.iter().all(|failed| failed.error.kind() == ErrorKind::Capacity));
    let failed: Vec<_> = report.failed.iter().map(|failed| failed.frontend).collect();
    let fit: Vec<_> = all.iter().filter(|route| !failed.contains(&route.frontend)).map(Arc::clone).collect();
    let fit = table(&lab, 1, fit);
    assert!(block_on(datapath.drift(&fit)).unwrap().is_none(), "the others are served");

    // Most of them go together, and make room.
    let last = table(&lab, 2, all[1_400..].iter().map(Arc::clone));
    let report = replace(&datapath, &last);
    assert_eq!(report.removed, fit.routes().filter(|route| last.get(&route.frontend).is_none()).count());
    assert!(block_on(datapath.drift(&last)).unwrap().is_none());
}

#[test]
fn interfaces_come_and_go() {
    let Some(lab) = lab(config()) else { return };
    let datapath = datapath(&lab);
    replace(&datapath, &table(&lab, 1, []));
    let pod = lab.add_pod("late", Node::A).unwrap();
    let name = lab.node(Node::A).pod_interfaces().into_iter().find(|i| i.contains("late")).unwrap();
    drop(pod);
    let mut events = datapath.events();
    let mut next = || events.next().now_or_never().flatten();
    block_on(datapath.attach_pod(&name)).unwrap();
    assert!(matches!(next(), Some(DatapathEvent::Interface { name: n, attached: true }) if n == name));
    block_on(datapath.attach_pod(&name)).unwrap();
    assert!(next().is_none(), "attached once");

    // Made anew under the same name.
    lab.remove_pod("late").unwrap();
    lab.add_pod("late", Node::A).unwrap();
    block_on(datapath.attach_pod(&name)).unwrap();
    assert!(matches!(next(), Some(DatapathEvent::Interface { attached: true, .. })));

    // Gone: the others go on, and nobody can attach to it.
    lab.remove_pod("late").unwrap();
    replace(&datapath, &table(&lab, 2, []));
    assert!(matches!(next(), Some(DatapathEvent::Drift { detail }) if detail.contains(&name)));
    let error = block_on(datapath.attach_pod(&name)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains(&name) && error.message().contains("create it first"), "{error}");
    block_on(datapath.detach_pod(&name)).unwrap();
    block_on(datapath.detach_pod(&name)).unwrap();
    block_on(datapath.detach_pod("never")).unwrap();
    let error = block_on(datapath.attach_pod("no/name")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn not_a_port_but_its_bridge_is_attached() {
    let Some(lab) = lab(config()) else { return };
    let datapath = datapath(&lab);
    let set_up = || {
        for arguments in [
            "link add bridge0 type bridge",
            "link add port0 type veth peer name port1",
            "link set port0 master bridge0",
        ] {
            let ip = std::process::Command::new("ip").args(arguments.split(' ')).output().unwrap();
            assert!(ip.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&ip.stderr));
        }
    };
    lab.node(Node::A).netns().run(set_up).unwrap();
    for round in 0..2 {
        let error = block_on(datapath.attach_pod("port0")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.message(), "port0 is a port of the bridge bridge0: attach the bridge itself");
        block_on(datapath.attach_pod("port1")).unwrap();
        block_on(datapath.attach_pod("bridge0")).unwrap();
        replace(&datapath, &table(&lab, round, []));
    }
}

#[test]
fn a_closed_datapath_leaves_nothing_and_answers_nothing() {
    let Some(lab) = lab(config()) else { return };
    let datapath = datapath(&lab);
    if !probe().unwrap().tcx {
        return skip("the kernel cannot say what is attached: it has no TCX");
    }
    assert_eq!(attached(&lab).len(), 0, "nothing is attached before the first table");
    replace(&datapath, &table(&lab, 1, on_cluster_ip(&lab, IpFamily::V4, 1, &["here"])));
    assert_eq!(attached(&lab).len(), 4, "two at eth0, two at the pod");

    let keep = block_on(datapath.close(Close::Keep)).unwrap_err();
    assert_eq!(keep.kind(), ErrorKind::Unsupported);
    block_on(datapath.read()).unwrap();

    let mut events = datapath.events();
    block_on(datapath.close(Close::Remove)).unwrap();
    assert!(matches!(block_on(events.next()), Some(DatapathEvent::Closed)));
    assert!(block_on(events.next()).is_none());
    assert_eq!(attached(&lab), Vec::<String>::new());
    for result in [
        block_on(datapath.read()).map(drop),
        block_on(datapath.drain()).map(drop),
        block_on(datapath.attach_pod("x")),
        block_on(datapath.close(Close::Remove)),
    ] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Unavailable);
    }
}

#[test]
fn dropping_the_datapath_detaches_it() {
    let Some(lab) = lab(config()) else { return };
    let datapath = datapath(&lab);
    replace(&datapath, &table(&lab, 1, []));
    if !probe().unwrap().tcx {
        return skip("the kernel cannot say what is attached: it has no TCX");
    }
    assert_eq!(attached(&lab).len(), 4);
    drop(datapath);
    assert_eq!(attached(&lab), Vec::<String>::new());
}

#[test]
fn drain_counts_no_flows_where_there_are_none_and_metrics_start_at_zero() {
    let Some(lab) = lab(config()) else { return };
    let datapath = datapath(&lab);
    replace(&datapath, &table(&lab, 1, []));
    let mut events = datapath.events();
    assert_eq!(block_on(datapath.drain()).unwrap().flows, 0);
    assert_eq!(block_on(datapath.drain()).unwrap().flows, 0);
    assert!(matches!(events.next().now_or_never(), Some(Some(DatapathEvent::Draining))));
    assert!(events.next().now_or_never().is_none(), "said once");
    let metrics = block_on(datapath.metrics()).unwrap();
    assert_eq!(metrics.len(), Metric::ALL.len());
    assert_eq!(metrics[&Metric::DropMalformed], 0);
}

#[test]
fn a_setting_that_does_not_fit_the_machine_is_named() {
    let Some(lab) = lab(config()) else { return };
    let kind = |builder: kubenet_ebpf::EbpfBuilder| {
        let error = builder.build().unwrap_err();
        (error.kind(), error.message().to_owned())
    };
    let (k, message) = kind(EbpfDatapath::builder().network_namespace("/nowhere"));
    assert_eq!(k, ErrorKind::InvalidInput);
    assert!(message.starts_with("network_namespace: /nowhere"), "{message}");
    let (k, message) = kind(EbpfDatapath::builder().network_namespace("/proc/self/ns/uts"));
    assert_eq!(k, ErrorKind::InvalidInput, "{message}");
    let (k, message) = kind(builder(&lab).external_interface("eth99"));
    assert_eq!(k, ErrorKind::InvalidInput);
    assert!(message.contains("eth99"), "{message}");
    let (k, message) = kind(builder(&lab).cgroup("/proc"));
    assert_eq!(k, ErrorKind::InvalidInput);
    assert!(message.starts_with("cgroup: /proc: must be"), "{message}");
}

#[test]
fn a_newer_instance_stands_behind_an_older_one_that_drains() {
    let Some(lab) = lab(config()) else { return };
    if !probe().unwrap().tcx {
        return skip("the kernel cannot say what is attached: it has no TCX");
    }
    let ids = || {
        let interface = lab.node(Node::A).external_interface();
        let list = move || SchedClassifier::query_tcx(interface, TcAttachType::Ingress).unwrap().1;
        let programs = lab.node(Node::A).netns().run(list).unwrap();
        programs.iter().map(|p| p.id()).collect::<Vec<u32>>()
    };
    let old = datapath(&lab);
    replace(&old, &table(&lab, 1, []));
    let [first] = ids()[..] else { panic!("{:?}", ids()) };
    let new = datapath(&lab);
    replace(&new, &table(&lab, 1, []));
    let [a, b] = ids()[..] else { panic!("{:?}", ids()) };
    assert!(a == first && b != first);
    drop(old);
    assert_eq!(ids(), [b]);
}
