//! The library depends on no runtime: the same code runs under each.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use kubenet_core::{
    cluster::Change,
    datapath::{Close, Datapath, DatapathEvent},
    model::{NodeInfo, Protocol, Service, ServicePort},
    router::ServiceRouter,
};
use kubenet_testkit::memory::MemoryDatapath;

async fn scenario() {
    let node = NodeInfo::builder("node-a").address("10.0.0.1".parse().unwrap()).build().unwrap();
    let service = Service::builder("demo", "web")
        .cluster_ip("10.96.0.1".parse().unwrap())
        .port(ServicePort::new("", Protocol::Tcp, 80.try_into().unwrap()))
        .build()
        .unwrap();
    let datapath = Arc::new(MemoryDatapath::new());
    let mut events = datapath.events();
    let router = ServiceRouter::start(node, Arc::clone(&datapath) as _).unwrap();
    router.submit(Change::Snapshot { services: vec![service], slices: Vec::new() }).unwrap();
    assert!(router.flush().await.unwrap().is_healthy());
    assert!(matches!(events.next().await, Some(DatapathEvent::Applied { .. })));
    router.swap(Arc::new(MemoryDatapath::new()), Duration::ZERO).await.unwrap();
    router.close(Close::Remove).await.unwrap();
}

#[test]
fn under_a_plain_block_on() {
    futures::executor::block_on(scenario());
}

#[test]
fn under_tokio() {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(scenario());
}

#[test]
fn under_smol() {
    smol::block_on(scenario());
}
