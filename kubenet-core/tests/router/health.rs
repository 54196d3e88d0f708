//! What health checks hear of a router.

use std::time::Duration;

use futures::executor::block_on;
use kubenet_core::{
    cluster::Change,
    datapath::ErrorKind,
    health::Moment,
    model::{Service, ServiceType, TrafficPolicy},
};
use kubenet_testkit::faults::Call;

use super::{service, slice, start};

/// Its health-check node port is 32000.
fn checked() -> Service {
    Service::builder("demo", "lb")
        .service_type(ServiceType::LoadBalancer)
        .external_traffic_policy(TrafficPolicy::Local)
        .health_check_node_port(32000.try_into().unwrap())
        .cluster_ip("10.96.0.9".parse().unwrap())
        .port(service("lb", "10.96.0.9").ports()[0].clone())
        .build()
        .unwrap()
}

/// A slice whose endpoint is on this node.
fn here() -> kubenet_core::model::EndpointSlice {
    let there = slice("lb", "10.244.1.2");
    kubenet_core::model::EndpointSlice::builder("demo", "lb-1", "lb", there.family())
        .port(there.ports()[0].clone())
        .endpoint(there.endpoints()[0].clone().on_node("node-a"))
        .build()
        .unwrap()
}

#[test]
fn h1_the_health_check_of_a_service_follows_its_endpoints_here() {
    let (router, _subject) = start();
    let board = router.health();
    let status = |change: Change| {
        router.submit(change).unwrap();
        block_on(router.flush()).unwrap();
        board.service_answer(32000.try_into().unwrap(), Moment::now()).map(|answer| answer.status)
    };
    router.synced().unwrap();
    assert_eq!(status(checked().into()), Some(503), "no endpoint yet");
    assert_eq!(status(here().into()), Some(200));
    assert_eq!(status(slice("lb", "10.244.1.2").into()), Some(503), "it is elsewhere");
    assert_eq!(status(Change::RemoveService(checked().name().clone())), None);
    assert!(board.ports().is_empty());
}

#[test]
fn h2_an_update_that_waits_longer_than_twice_the_sync_period_is_unhealthy() {
    let (router, subject) = start();
    let board = router.health();
    router.submit(service("a", "10.96.0.1")).unwrap();
    router.synced().unwrap();
    block_on(router.flush()).unwrap();
    assert_eq!(board.livez(Moment::now()).status, 200);
    let later = || Moment::now().after(Duration::from_secs(61));
    assert_eq!(board.livez(later()).status, 200, "nothing waits, however long ago the last update was");

    subject.faulty.fail_next(Call::Apply, usize::MAX, ErrorKind::Unavailable);
    router.submit(service("b", "10.96.0.2")).unwrap();
    assert!(block_on(router.flush()).is_err());
    assert_eq!(board.livez(Moment::now()).status, 200);
    assert_eq!(board.livez(later()).status, 503);
    subject.faulty.heal();
    block_on(router.flush()).unwrap();
    assert_eq!(board.livez(later()).status, 200);
}

#[test]
fn h2_a_change_that_means_nothing_to_packets_is_not_waited_for() {
    let (router, _subject) = start();
    router.synced().unwrap();
    block_on(router.flush()).unwrap();
    router.submit(slice("unknown", "10.244.1.2")).unwrap();
    block_on(router.flush()).unwrap();
    assert_eq!(router.health().livez(Moment::now().after(Duration::from_secs(3600))).status, 200);
}
