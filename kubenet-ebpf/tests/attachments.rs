//! What others do to the attachments is found by an audit, and put right.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    os::unix::fs::MetadataExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::programs::{SchedClassifier, TcAttachType};
use futures::{FutureExt, StreamExt, executor::block_on, stream::BoxStream};
use kubenet_core::{
    datapath::{Close, Datapath, DatapathEvent, DatapathExt, ErrorKind},
    model::IpFamily,
    route::RouteTable,
};
use kubenet_ebpf::{EbpfDatapath, probe};
use kubenet_testkit::lab::{Lab, LabConfig, Node, Place, Server};
use support::{links, *};

const V4: IpFamily = IpFamily::V4;

/// Labs of one process share a cgroup, in which a test is to find its own programs only.
static ONE_BY_ONE: Mutex<()> = Mutex::new(());

/// A lab where the kernel can tell what is attached.
fn start() -> Option<(Lab, [Server; 2], MutexGuard<'static, ()>)> {
    let turn = ONE_BY_ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let lab = lab(LabConfig::new().pod("client", Node::A).pod("here", Node::A).pod("there", Node::B))?;
    if !probe().unwrap().tcx {
        skip("the kernel cannot say what is attached: it has no TCX");
        return None;
    }
    let servers = ["here", "there"].map(|pod| lab.serve(pod, PORT).unwrap());
    Some((lab, servers, turn))
}

fn routes(lab: &Lab) -> Arc<RouteTable> {
    let mut routes = on_cluster_ip(lab, V4, 1, &["there"]);
    routes.extend(on_node_port(lab, V4, NODE_PORT, &["there"]));
    table(lab, 1, routes)
}

fn interface(lab: &Lab, pod: &str) -> String {
    lab.node(Node::A).pod_interfaces().into_iter().find(|i| i.contains(pod)).unwrap()
}

/// Ids of the programs at an interface of node-a.
fn programs(lab: &Lab, interface: &str, direction: TcAttachType) -> Vec<u32> {
    let list = || SchedClassifier::query_tcx(interface, direction).unwrap().1;
    lab.node(Node::A).netns().run(list).unwrap().iter().map(|p| p.id()).collect()
}

/// Detaches what hangs there, as `bpftool link detach` does.
fn detach(lab: &Lab, interface: &str, direction: TcAttachType) {
    let ours = programs(lab, interface, direction);
    assert_eq!(ours.len(), 1);
    let index = lab.node(Node::A).netns().run(|| nix::net::if_::if_nametoindex(interface).unwrap()).unwrap();
    let detached = links::detach(|link| ours.contains(&link.program) && link.interface == index);
    assert!(detached >= 1);
    assert!(programs(lab, interface, direction).is_empty());
}

fn everybody_is_served(lab: &Lab) {
    for (client, to) in [
        (Place::Pod("client".into()), service(V4, 1)),
        (Place::Node(Node::A), service(V4, 1)),
        (Place::Outside, node(lab, V4, NODE_PORT)),
    ] {
        let answer = lab.http_get(client.clone(), to, SOON).unwrap_or_else(|e| panic!("{client:?}: {e}"));
        assert_eq!(answer.backend, "there");
    }
}

fn drift(events: &mut BoxStream<'static, DatapathEvent>) -> Vec<String> {
    let mut found = Vec::new();
    while let Some(Some(event)) = events.next().now_or_never() {
        if let DatapathEvent::Drift { detail } = event {
            found.push(detail);
        }
    }
    found
}

/// An audit finds what was done, a replacement repairs it, and says so.
fn found_and_repaired(lab: &Lab, datapath: &EbpfDatapath, table: &Arc<RouteTable>, what: &str) {
    let mut events = datapath.events();
    let found = block_on(datapath.drift(table)).unwrap().unwrap();
    assert_eq!(found.upserts.len(), table.len(), "no packet meets the programs there");
    let report = replace(datapath, table);
    assert_eq!((report.upserted, report.removed), (0, 0), "the maps are right");
    assert!(block_on(datapath.drift(table)).unwrap().is_none());
    let seen = drift(&mut events);
    assert!(what.is_empty() && seen.is_empty() || seen.iter().any(|d| d.contains(what)), "{seen:?}");
    everybody_is_served(lab);
}

#[test]
fn programs_that_somebody_detached_are_attached_again() {
    let Some((lab, _servers, _turn)) = start() else { return };
    let datapath = datapath(&lab);
    let table = routes(&lab);
    replace(&datapath, &table);
    everybody_is_served(&lab);
    let external = lab.node(Node::A).external_interface().to_owned();
    for name in [external, interface(&lab, "client")] {
        for directions in [
            &[TcAttachType::Ingress][..],
            &[TcAttachType::Egress],
            &[TcAttachType::Ingress, TcAttachType::Egress],
        ] {
            for direction in directions {
                detach(&lab, &name, *direction);
            }
            found_and_repaired(&lab, &datapath, &table, &name);
            assert_eq!(attached(&lab).len(), 6);
        }
    }
    block_on(datapath.close(Close::Remove)).unwrap();
    assert_eq!(attached(&lab), Vec::<String>::new());
}

#[test]
fn socket_programs_that_somebody_detached_are_attached_again() {
    let Some((lab, _servers, _turn)) = start() else { return };
    let Ok(cgroup) = lab.cgroup() else { return skip("the lab has no cgroup") };
    let number = fs::metadata(cgroup).unwrap().ino();
    let datapath = datapath(&lab);
    let table = routes(&lab);
    replace(&datapath, &table);
    let all = links::detach(|link| link.cgroup == number);
    assert_eq!(all, 9);
    assert!(lab.http_get(Place::Node(Node::A), service(V4, 1), SOON / 8).is_err(), "nobody translates");
    found_and_repaired(&lab, &datapath, &table, "kubenet_connect4");
    assert_eq!(links::count(|link| link.cgroup == number), 9);
    drop(datapath);
    assert_eq!(links::count(|link| link.cgroup == number), 0);
}

#[test]
fn an_interface_that_was_made_anew_is_attached_to() {
    let Some((lab, _servers, _turn)) = start() else { return };
    let datapath = datapath(&lab);
    let table = routes(&lab);
    replace(&datapath, &table);
    lab.remove_pod("client").unwrap();
    assert!(block_on(datapath.drift(&table)).unwrap().is_none(), "what is gone is nobody's loss");
    lab.add_pod("client", Node::A).unwrap();
    found_and_repaired(&lab, &datapath, &table, "");
}

#[test]
fn a_cgroup_that_goes_fails_no_update_and_is_served_when_it_comes_back() {
    let Some((lab, _servers, _turn)) = start() else { return };
    let Ok(cgroup) = lab.cgroup() else { return skip("the lab has no cgroup") };
    let below = cgroup.join("below");
    fs::create_dir(&below).unwrap();
    let datapath = builder(&lab).cgroup(&below).build().unwrap();
    let table = routes(&lab);
    replace(&datapath, &table);

    fs::remove_dir(&below).unwrap();
    let mut events = datapath.events();
    replace(&datapath, &table);
    assert!(drift(&mut events).iter().any(|d| d.contains("below") && d.contains("cannot be opened")));
    assert!(block_on(datapath.drift(&table)).unwrap().is_none(), "what is gone is nobody's loss");

    fs::create_dir(&below).unwrap();
    assert!(block_on(datapath.drift(&table)).unwrap().is_some());
    replace(&datapath, &table);
    assert!(block_on(datapath.drift(&table)).unwrap().is_none());
    let number = fs::metadata(&below).unwrap().ino();
    assert_eq!(links::count(|link| link.cgroup == number), 9);
    drop(datapath);
    fs::remove_dir(&below).unwrap();
}

#[test]
fn a_privilege_that_is_missing_is_named_before_anything_is_touched() {
    if !nix::unistd::geteuid().is_root() {
        return skip("root is needed to have privileges that can be given up");
    }
    for (missing, name) in links::NEEDED {
        // Privileges are a thread's own.
        let refusals = std::thread::spawn(move || {
            let others =
                links::NEEDED.into_iter().map(|(capability, _)| capability).filter(|c| *c != missing);
            links::keep_only(others);
            [probe().unwrap_err(), EbpfDatapath::builder().build().unwrap_err()]
        });
        for refusal in refusals.join().unwrap() {
            assert_eq!(refusal.kind(), ErrorKind::Permission);
            assert!(refusal.message().contains(name), "{refusal}");
        }
    }
}

#[test]
fn three_privileges_are_enough() {
    let Some((lab, _servers, _turn)) = start() else { return };
    let external = lab.node(Node::A).external_interface().to_owned();
    let table = routes(&lab);
    // The datapath's thread has the privileges of the one that starts it.
    let build = || {
        links::keep_only(links::NEEDED.map(|(capability, _)| capability));
        let mut builder = EbpfDatapath::builder().external_interface(&external);
        if let Ok(cgroup) = lab.cgroup() {
            builder = builder.cgroup(cgroup);
        }
        builder.build().unwrap()
    };
    let datapath = lab.node(Node::A).netns().run(build).unwrap();
    for pod in lab.node(Node::A).pod_interfaces() {
        block_on(datapath.attach_pod(&pod)).unwrap();
    }
    replace(&datapath, &table);
    replace(&datapath, &table);
    assert!(block_on(datapath.drift(&table)).unwrap().is_none());
    assert_eq!(attached(&lab).len(), 6);
    everybody_is_served(&lab);
    detach(&lab, &external, TcAttachType::Ingress);
    found_and_repaired(&lab, &datapath, &table, &external);
    block_on(datapath.close(Close::Remove)).unwrap();
    assert_eq!(attached(&lab), Vec::<String>::new());
}
