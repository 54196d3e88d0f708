//! Who listens learns of flows and drops, from real packets.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt, Stream, StreamExt, executor::block_on};
use kubenet_core::{
    datapath::{Close, Datapath, DatapathEvent, ErrorKind},
    model::{IpFamily::V4, Protocol},
    route::{Route, WhenEmpty},
};
use kubenet_ebpf::{EbpfDatapath, Inspector, Metric};
use kubenet_testkit::lab::{Lab, LabConfig, Node, Place};
use support::{bpffs::Bpffs, *};

fn start() -> Option<(Lab, Vec<kubenet_testkit::lab::Server>)> {
    let lab = lab(LabConfig::new().pod("client", Node::A).pod("there", Node::B))?;
    let servers = vec![lab.serve("there", PORT).unwrap()];
    Some((lab, servers))
}

fn reporting(lab: &Lab, per_second: u32, pins: Option<&Path>) -> EbpfDatapath {
    let mut builder = builder(lab).flow_events(per_second.try_into().unwrap());
    if let Some(pins) = pins {
        builder = builder.pin_dir(pins);
    }
    let datapath = builder.build().unwrap();
    for interface in lab.node(Node::A).pod_interfaces() {
        block_on(datapath.attach_pod(&interface)).unwrap();
    }
    datapath
}

/// Web 1 has a backend, and web 2 is silent.
fn routes(lab: &Lab) -> Vec<Arc<Route>> {
    let silent = |route: Arc<Route>| {
        let mut route = Route::clone(&route);
        route.internal.when_empty = WhenEmpty::Drop;
        Arc::new(route)
    };
    let mut routes = on_cluster_ip(lab, V4, 1, &["there"]);
    routes.extend(on_cluster_ip(lab, V4, 2, &[]).into_iter().map(silent));
    routes
}

/// Waits for an event that is so.
fn wait<T>(mut next: impl FnMut() -> Option<DatapathEvent>, find: impl Fn(&DatapathEvent) -> Option<T>) -> T {
    let begin = Instant::now();
    while begin.elapsed() < 5 * SOON {
        match next() {
            Some(event) => {
                if let Some(found) = find(&event) {
                    return found;
                }
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    panic!("no such event came");
}

fn poll(stream: &mut (impl Stream<Item = DatapathEvent> + Unpin)) -> Option<DatapathEvent> {
    stream.next().now_or_never().flatten()
}

fn flow(event: &DatapathEvent) -> Option<(Protocol, Option<SocketAddr>, SocketAddr, SocketAddr)> {
    match *event {
        DatapathEvent::FlowStarted { protocol, client, frontend, backend } => {
            Some((protocol, client, frontend, backend))
        }
        _ => None,
    }
}

fn drop_to(port: SocketAddr) -> impl Fn(&DatapathEvent) -> Option<&'static str> {
    move |event| match *event {
        DatapathEvent::PacketDropped { reason, destination, .. } if destination == port => Some(reason),
        _ => None,
    }
}

#[test]
fn flows_and_drops_are_events_for_who_listens() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = reporting(&lab, 1000, None);
    replace(&datapath, &table(&lab, 1, routes(&lab)));
    let backend = SocketAddr::new(lab.pod("there").unwrap().v4().into(), PORT);
    let client = lab.pod("client").unwrap().v4();
    // One listener after the other: the second begins when the first is gone.
    for _ in 0..2 {
        let mut events = datapath.events();
        // It takes a moment to begin.
        block_on(datapath.metrics()).unwrap();
        lab.http_get("client", service(V4, 1), SOON).unwrap();
        let (protocol, from, frontend, to) = wait(|| poll(&mut events), flow);
        assert_eq!((protocol, frontend, to), (Protocol::Tcp, service(V4, 1), backend));
        assert_eq!(from.map(|at| at.ip()), Some(client.into()));
        if lab.cgroup().is_ok() {
            lab.http_get(Place::Node(Node::A), service(V4, 1), SOON).unwrap();
            let (_, from, frontend, to) = wait(|| poll(&mut events), flow);
            assert_eq!((from, frontend, to), (None, service(V4, 1), backend));
        }
        assert!(lab.http_get("client", service(V4, 2), SOON / 8).is_err());
        assert_eq!(wait(|| poll(&mut events), drop_to(service(V4, 2))), "drop_no_local_backend");
        let unknown = SocketAddr::new(service(V4, 1).ip(), 7);
        assert!(lab.http_get("client", unknown, SOON).is_err());
        assert_eq!(wait(|| poll(&mut events), drop_to(unknown)), "rejected");
    }
    block_on(datapath.close(Close::Remove)).unwrap();
}

#[test]
fn events_beyond_the_budget_are_counted_and_told() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = reporting(&lab, 1, None);
    replace(&datapath, &table(&lab, 1, routes(&lab)));
    let mut events = datapath.events();
    block_on(datapath.metrics()).unwrap();
    for _ in 0..20 {
        lab.http_get("client", service(V4, 1), SOON).unwrap();
    }
    let missed = |event: &DatapathEvent| match *event {
        DatapathEvent::Missed { count } => Some(count),
        _ => None,
    };
    assert!(wait(|| poll(&mut events), missed) > 0);
    assert!(block_on(datapath.metrics()).unwrap()[&Metric::EventOverBudget] > 0);
}

#[test]
fn without_the_setting_no_flow_is_an_event() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = datapath(&lab);
    replace(&datapath, &table(&lab, 1, routes(&lab)));
    let mut events = datapath.events();
    block_on(datapath.metrics()).unwrap();
    lab.http_get("client", service(V4, 1), SOON).unwrap();
    std::thread::sleep(SOON / 4);
    while let Some(event) = poll(&mut events) {
        assert!(flow(&event).is_none(), "{event:?}");
    }
}

#[test]
fn one_from_outside_follows_beside_the_process_and_when_it_is_gone() {
    let Some((lab, _servers)) = start() else { return };
    let bpffs = Bpffs::mount();
    let pins = bpffs.pin_dir();
    let datapath = reporting(&lab, 1000, Some(&pins));
    replace(&datapath, &table(&lab, 1, routes(&lab)));
    let mut own = datapath.events();
    block_on(datapath.metrics()).unwrap();
    let inspector = Inspector::open(&pins).unwrap();
    let mut followed = inspector.follow().unwrap();
    let refused = Inspector::open(&pins).unwrap().follow().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(refused.message().contains("somebody follows"), "{refused}");

    lab.http_get("client", service(V4, 1), SOON).unwrap();
    let theirs = wait(|| followed.next(SOON / 100).unwrap(), flow);
    assert_eq!(wait(|| poll(&mut own), flow), theirs, "each has all events");
    drop(own);
    block_on(datapath.close(Close::Keep)).unwrap();
    lab.http_get("client", service(V4, 1), SOON).unwrap();
    wait(|| followed.next(SOON / 100).unwrap(), flow);
    drop(followed);
    // The next one hears what happens from then on.
    lab.http_get("client", service(V4, 1), SOON).unwrap();
    let mut followed = inspector.follow().unwrap();
    assert!(followed.next(SOON / 8).unwrap().is_none());
    lab.http_get("client", service(V4, 1), SOON).unwrap();
    // However long it may take.
    wait(|| followed.next(Duration::MAX).unwrap(), flow);
}
