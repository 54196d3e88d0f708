//! What is pinned outlives its process, and the next one goes on from there.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod child;
mod clock;
mod inspect;
mod killed;
mod life;
mod peers;
mod pins;
mod refuse;
#[path = "../support/mod.rs"]
mod support;
mod trace;

use std::{path::Path, sync::atomic::AtomicBool};

use futures::executor::block_on;
use kubenet_core::model::IpFamily;
use kubenet_ebpf::{AttachMode, EbpfDatapath, probe};
use kubenet_testkit::lab::{Lab, LabConfig, Node, Server};
use support::{bpffs::Bpffs, load::*, *};

const V4: IpFamily = IpFamily::V4;
const CLIENTS: [&str; 3] = ["client", "node", "outside"];

/// A client here, a backend here and one there, and somewhere to pin.
fn start() -> Option<(Lab, Vec<Server>, Bpffs)> {
    let config = LabConfig::new().pod("client", Node::A).pod("here", Node::A).pod("there", Node::B);
    let lab = lab(config)?;
    let servers = ["client", "here", "there"].map(|pod| lab.serve(pod, PORT).unwrap());
    Some((lab, servers.into(), Bpffs::mount()))
}

/// How programs hang, as far as this kernel has it.
fn modes() -> Vec<AttachMode> {
    if probe().unwrap().tcx { vec![AttachMode::Tcx, AttachMode::Clsact] } else { vec![AttachMode::Clsact] }
}

/// A datapath that pins, as a CNI starts it.
fn pinned(lab: &Lab, pins: &Path, mode: AttachMode) -> EbpfDatapath {
    let datapath = builder(lab).pin_dir(pins).attach_mode(mode).build().unwrap();
    for interface in lab.node(Node::A).pod_interfaces() {
        block_on(datapath.attach_pod(&interface)).unwrap();
    }
    datapath
}

/// Where each client asks.
fn target(lab: &Lab, client: &str) -> std::net::SocketAddr {
    if client == "outside" { node(lab, V4, NODE_PORT) } else { service(V4, 1) }
}

/// A Service on a cluster IP and on a node port.
fn routes(lab: &Lab, pods: &[&str]) -> Vec<std::sync::Arc<kubenet_core::route::Route>> {
    let mut routes = on_cluster_ip(lab, V4, 1, pods);
    routes.extend(on_node_port(lab, V4, NODE_PORT, pods));
    routes
}

/// Every client asks without end while the work is done, and nobody notices it.
fn under_load(lab: &Lab, what: &str, work: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    let results: Vec<_> = std::thread::scope(|scope| {
        let end = Stop(&stop);
        let loads = CLIENTS.map(|client| {
            let stop = &stop;
            scope.spawn(move || load(lab, client, target(lab, client), stop))
        });
        work();
        drop(end);
        loads.into_iter().map(|load| load.join().unwrap()).collect()
    });
    for (client, (answers, failures)) in CLIENTS.iter().zip(results) {
        eprintln!("{what}, {client}: {answers} answers, {} failures", failures.len());
        assert!(answers > 50, "{what}, {client}: {answers}");
        assert!(failures.is_empty(), "{what}, {client}: {failures:?}");
    }
}
