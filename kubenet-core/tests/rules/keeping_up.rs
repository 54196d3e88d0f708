//! [K0] to [K3]: when the kernel is written.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::executor::block_on;
use kubenet_core::{
    datapath::{Datapath, ErrorKind},
    model::Protocol::Tcp,
    route::{FrontendKind::ClusterIp, NodeRouting, Route, RouteTable, Target, WhenEmpty},
    router::{RouterError, RouterEvent, RouterOptions},
};
use kubenet_testkit::faults::Call;
use serde_json::{Value, json};

use crate::{
    manifest::{named_slices, pod, service, slice_of, slices, web},
    world::{Passed, Rejected, Setup, World, eventually, to},
};

const LONG: Duration = Duration::from_secs(3600);

/// A router that does nothing again by itself, unless these options say otherwise.
fn options(change: impl FnOnce(&mut RouterOptions)) -> Setup {
    let mut options = RouterOptions::default();
    (options.min_interval, options.audit_interval) = (LONG, LONG);
    (options.retry_min, options.retry_max) = (LONG, LONG);
    change(&mut options);
    Setup { options, ..Setup::default() }
}

/// How often the datapath was asked to write.
fn writes(world: &World) -> usize {
    world.faulty.calls(Call::Replace) + world.faulty.calls(Call::Apply)
}

#[test]
fn k0_nothing_is_written_before_services_and_slices_have_both_been_listed() {
    let refused = |world: &World| {
        let audit = block_on(world.router.audit()).map(drop);
        let answers = [block_on(world.router.flush()).map(drop), audit];
        answers.iter().all(|answer| matches!(answer, Err(RouterError::NotSynced)))
    };
    for services_first in [true, false] {
        let mut world = World::unsynced(Setup::default());
        assert!(refused(&world));
        let (one, other) = if services_first {
            (vec![web(json!({}))], slices([pod("a1")]))
        } else {
            (slices([pod("a1")]), vec![web(json!({}))])
        };
        world.list_kind(one);
        assert!(refused(&world), "one kind is missing");
        assert_eq!(Call::ALL.map(|call| world.faulty.calls(call)), [0; 7], "the datapath was left alone");
        world.list_kind(other);
        world.flush();
        assert_eq!(world.dial("a9", ClusterIp), to(["a1"]));
        assert_eq!(writes(&world), 1);
    }
}

#[test]
fn k1_a_burst_is_one_apply() {
    let mut world = World::new(options(|_| {}), []);
    let before = writes(&world);
    world.apply((1..=200).map(|i| service(&format!("s{i}"), &format!("10.96.1.{i}"), json!({}))));
    assert_eq!((writes(&world), world.table().len()), (before + 1, 200));
}

#[test]
fn k1_at_most_one_apply_per_minimum_interval() {
    const INTERVAL: Duration = Duration::from_millis(20);
    let began = Instant::now();
    let mut world = World::new(options(|options| options.min_interval = INTERVAL), [web(json!({}))]);
    let before = writes(&world);
    for turn in 1..=3 {
        world.watch(slices([pod(&format!("a{turn}"))]));
        eventually("it is applied", || writes(&world) == before + turn);
    }
    assert!(began.elapsed() >= 3 * INTERVAL, "three changes, each applied after the one before");
}

#[test]
fn k1_the_first_change_after_quiet_goes_at_once() {
    let mut world = World::unsynced(options(|_| {}));
    world.watch([web(json!({}))].into_iter().chain(slices([pod("a1")])));
    world.router.synced().unwrap();
    eventually("it is applied without being asked", || {
        world.packet("a9", "10.96.0.10:80", Tcp) == to(["a1"])
    });
}

#[test]
fn k1_failures_retry_with_back_off() {
    const FIRST: Duration = Duration::from_millis(4);
    let setup = options(|options| {
        (options.min_interval, options.retry_min, options.retry_max) = (Duration::ZERO, FIRST, FIRST * 16);
    });
    let mut world = World::new(setup, [web(json!({}))].into_iter().chain(slices([pod("a1")])));
    let (began, before) = (Instant::now(), world.faulty.calls(Call::Apply));
    world.faulty.fail_next(Call::Apply, usize::MAX, ErrorKind::Unavailable);
    world.watch(slices([pod("b1")]));
    eventually("it is tried again", || world.faulty.calls(Call::Apply) >= before + 5);
    assert!(began.elapsed() >= FIRST * (1 + 2 + 4 + 8), "each wait is twice the one before");
    assert_eq!(world.dial("a9", ClusterIp), to(["a1"]), "the last good state");
    assert_eq!(world.router.status().last_error.unwrap().kind(), ErrorKind::Unavailable);
    world.faulty.heal();
    eventually("it succeeds", || world.router.status().is_healthy());
    assert_eq!(world.dial("a9", ClusterIp), to(["b1"]));
}

#[test]
fn k1_a_full_audit_runs_by_itself() {
    let setup = options(|options| options.audit_interval = Duration::from_millis(10));
    let world = World::new(setup, [web(json!({}))].into_iter().chain(slices([pod("a1")])));
    vandalise(&world, |routes| routes.clear());
    eventually("it is repaired", || world.packet("a9", "10.96.0.10:80", Tcp) == to(["a1"]));
}

/// All orders of some objects.
fn orders(objects: &[Value]) -> Vec<Vec<Value>> {
    if objects.is_empty() {
        return vec![Vec::new()];
    }
    let with_first = |first: usize| {
        let mut rest = objects.to_vec();
        let first = rest.remove(first);
        orders(&rest).into_iter().map(move |order| [vec![first.clone()], order].concat())
    };
    (0..objects.len()).flat_map(with_first).collect()
}

#[test]
fn k2_order_within_a_burst_never_matters_for_the_end_state() {
    let contested = json!({ "externalIPs": ["198.51.100.1"] });
    let objects = [
        web(json!({})),
        slices([pod("a1")]).remove(0),
        named_slices("web-more", [pod("b1")]).remove(0),
        service("other", "10.96.0.20", contested),
        slice_of("other", &[pod("c1")]),
    ];
    let expected = World::new(Setup::default(), objects.clone()).table();
    let orders = orders(&objects);
    assert_eq!(orders.len(), 120);
    for order in orders {
        let mut world = World::new(Setup::default(), []);
        world.apply(order);
        assert!(world.table().same_routes(&expected));
    }
}

#[test]
fn k2_a_slice_that_arrives_before_its_service_is_kept() {
    let mut world = World::new(Setup::default(), []);
    world.apply(slices([pod("a1")]));
    assert_eq!(world.dial("a9", ClusterIp), Passed);
    world.apply([web(json!({}))]);
    assert_eq!(world.dial("a9", ClusterIp), to(["a1"]));
    world.delete(&web(json!({})));
    world.apply([web(json!({}))]);
    assert_eq!(world.dial("a9", ClusterIp), to(["a1"]), "and when the Service comes again");
}

/// Somebody changes what the kernel has.
fn vandalise(world: &World, change: impl FnOnce(&mut Vec<Arc<Route>>)) {
    let table = world.table();
    let mut routes: Vec<_> = table.routes().cloned().collect();
    change(&mut routes);
    let changed = RouteTable::new(table.revision(), Arc::clone(table.node()), routes);
    block_on(world.memory.replace(Arc::new(changed))).unwrap();
}

/// Asserts that an audit finds this, repairs it and reports it.
fn is_found(world: &mut World, expected: &RouteTable, what: &str) {
    assert!(!world.table().same_routes(expected), "there is something to find");
    let found = block_on(world.router.audit()).unwrap();
    assert!(found.as_ref().is_some_and(|found| found.contains(what)), "{found:?}");
    assert!(world.table().same_routes(expected), "repaired");
    assert_eq!(world.router.status().last_drift, found, "reported");
    let drifts = world.events().into_iter().filter_map(|event| match event {
        RouterEvent::Drift { detail } => Some(detail),
        _ => None,
    });
    assert_eq!(drifts.collect::<Vec<_>>(), found.as_slice(), "told");
    assert_eq!(block_on(world.router.audit()).unwrap(), None, "found once");
}

#[test]
fn k3_an_audit_of_a_kernel_that_nobody_changed_finds_nothing() {
    let world = World::web(json!({}), [pod("a1")]);
    let before = writes(&world);
    assert_eq!(block_on(world.router.audit()).unwrap(), None);
    assert_eq!(writes(&world), before);
}

#[test]
fn k3_a_flush_is_noticed_between_audits() {
    let setup = options(|options| options.canary_interval = Duration::from_millis(10));
    let mut world = World::new(setup, [web(json!({}))].into_iter().chain(slices([pod("a1")])));
    let expected = world.table();
    world.memory.flush();
    eventually("it is repaired", || world.packet("a9", "10.96.0.10:80", Tcp) == to(["a1"]));
    assert!(world.table().same_routes(&expected));
    let drifts = world.events().into_iter().filter(|event| matches!(event, RouterEvent::Drift { .. }));
    assert_eq!(drifts.count(), 1, "told once");
    assert_eq!(world.faulty.calls(Call::Read), 0, "without reading the kernel back");
    let looks = world.faulty.calls(Call::IsIntact);
    let writes = writes(&world);
    eventually("it looks again", || world.faulty.calls(Call::IsIntact) > looks + 2);
    assert_eq!(self::writes(&world), writes, "and leaves alone what is intact");
}

#[test]
fn k3_what_somebody_flushed_is_found_repaired_and_reported() {
    let mut world =
        World::new(Setup::default(), [service("one", "10.96.0.1", json!({})), slice_of("one", &[pod("a1")])]);
    let before = world.table();
    vandalise(&world, |routes| routes.clear());
    assert_eq!(world.packet("a9", "10.96.0.1:80", Tcp), Passed);
    is_found(&mut world, &before, "10.96.0.1:80/TCP (demo/one) is missing or differs");
    assert_eq!(world.packet("a9", "10.96.0.1:80", Tcp), to(["a1"]));
}

#[test]
fn k3_an_entry_that_somebody_deleted_is_found_repaired_and_reported() {
    let mut world = World::web(json!({}), [pod("a1")]);
    let before = world.table();
    vandalise(&world, |routes| routes.retain(|route| route.frontend.to_string() != "192.0.2.1:80/UDP"));
    is_found(&mut world, &before, "192.0.2.1:80/UDP (demo/web:udp) is missing or differs");
}

#[test]
fn k3_an_entry_that_somebody_changed_is_found_repaired_and_reported() {
    let mut world = World::web(json!({}), [pod("a1")]);
    let before = world.table();
    vandalise(&world, |routes| {
        let route = Arc::make_mut(&mut routes[0]);
        route.internal = Target { backends: Arc::from([]), when_empty: WhenEmpty::Reject };
    });
    assert_eq!(world.packet("a9", "10.96.0.10:80", Tcp), Rejected);
    is_found(&mut world, &before, "10.96.0.10:80/TCP (demo/web:tcp) is missing or differs");
}

#[test]
fn k3_an_entry_that_somebody_added_is_found_removed_and_reported() {
    let mut world = World::web(json!({}), [pod("a1")]);
    let before = world.table();
    let foreign = World::new(Setup::default(), [service("foreign", "10.96.0.66", json!({}))]).table();
    vandalise(&world, |routes| routes.extend(foreign.routes().cloned()));
    is_found(&mut world, &before, "10.96.0.66:80/TCP is there but was not programmed");
}

#[test]
fn k3_facts_about_the_node_that_somebody_changed_are_found_repaired_and_reported() {
    let mut world = World::web(json!({}), [pod("a1")]);
    let before = world.table();
    let changed =
        RouteTable::new(before.revision(), Arc::new(NodeRouting::default()), before.routes().cloned());
    block_on(world.memory.replace(Arc::new(changed))).unwrap();
    is_found(&mut world, &before, "facts about the node differ");
}
