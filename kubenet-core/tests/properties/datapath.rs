//! A datapath that was moved along deltas holds what one holds that was given the table, whatever it can
//! serve.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::executor::block_on;
use kubenet_core::{
    cluster::Cluster,
    datapath::{ApplyReport, Capabilities, Datapath, ErrorKind, FailedRoute, Feature},
    model::{IpFamily, Protocol},
    route::{Frontend, FrontendKind, RouteDelta, RouteTable},
};
use kubenet_testkit::{
    load::{Load, LoadOptions},
    memory::{Flow, MemoryDatapath},
};
use proptest::{collection::vec, prelude::*, sample::subsequence};

use crate::{
    cases,
    routing::{Pick, any_pick},
    world::{Tweak, World, any_tweak, any_world, percent},
};

/// Mostly everything; else some of each.
fn any_capabilities() -> impl Strategy<Value = Capabilities> {
    let parts = (
        subsequence(Protocol::ALL.to_vec(), 1..=3),
        subsequence(IpFamily::ALL.to_vec(), 1..=2),
        subsequence(FrontendKind::ALL.to_vec(), 1..=4),
        subsequence(Feature::ALL.to_vec(), 0..=7),
        any::<bool>(),
    );
    let some = parts.prop_map(|(protocols, families, frontends, features, spared)| {
        let mut capabilities = Capabilities::full();
        capabilities.protocols = BTreeSet::from_iter(protocols);
        capabilities.families = BTreeSet::from_iter(families);
        capabilities.frontends = BTreeSet::from_iter(frontends);
        capabilities.features = BTreeSet::from_iter(features);
        capabilities.local_backends_see_client = spared;
        capabilities
    });
    prop_oneof![1 => Just(Capabilities::full()), 3 => some]
}

/// Another cluster, or the same after some changes.
#[derive(Clone, Debug)]
enum Next {
    Other(World),
    Changed(Vec<Tweak>),
}

fn any_next() -> impl Strategy<Value = Next> {
    let changed = vec(any_tweak(), 0..8).prop_map(Next::Changed);
    prop_oneof![1 => any_world().prop_map(Next::Other), 3 => changed]
}

impl Next {
    fn after(&self, world: &World) -> World {
        match self {
            Next::Other(other) => other.clone(),
            Next::Changed(tweaks) => {
                let mut world = world.clone();
                for tweak in tweaks {
                    world.tweak(tweak);
                }
                world
            }
        }
    }
}

fn failed(report: &ApplyReport) -> BTreeSet<Frontend> {
    report.failed.iter().map(|failed: &FailedRoute| failed.frontend).collect()
}

/// What a datapath does with an update: the report, or how it fails.
fn outcome(
    result: Result<ApplyReport, kubenet_core::datapath::DatapathError>,
) -> Result<ApplyReport, ErrorKind> {
    result.map_err(|error| error.kind())
}

fn read(datapath: &MemoryDatapath) -> RouteTable {
    block_on(datapath.read()).unwrap()
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn replace_is_replace_and_apply_of_the_diff(
        world in any_world(),
        next in any_next(),
        capabilities in any_capabilities(),
        picks in vec(any_pick(), 1..40),
    ) {
        let after = next.after(&world);
        let (a, b) = (world.table(1), after.table(2));
        let flows: Vec<Flow> = picks.iter().flat_map(|pick: &Pick| [pick.flow(&world), pick.flow(&after)]).collect();
        // Flows from before the update are known to each of them.
        let start = || {
            let datapath = MemoryDatapath::with_capabilities(capabilities.clone());
            let first = outcome(block_on(datapath.replace(Arc::new(a.clone()))));
            for flow in &flows {
                datapath.connect(flow);
            }
            (datapath, first)
        };
        let ((moved, first), (replaced, _)) = (start(), start());
        let nothing = RouteTable::default();
        let before = if first.is_ok() { &a } else { &nothing };
        prop_assert_eq!(first.err(), capabilities.check_node(a.node()).err().map(|_| ErrorKind::Unsupported));

        let delta = before.diff(&b);
        let by_delta = outcome(block_on(moved.apply(Arc::new(delta.clone()))));
        let by_table = outcome(block_on(replaced.replace(Arc::new(b.clone()))));
        prop_assert_eq!(by_delta.as_ref().err(), by_table.as_ref().err());
        let refused = |route: &&Arc<_>| capabilities.check(route).is_err();
        if let (Ok(by_delta), Ok(by_table)) = (by_delta, by_table) {
            let served = RouteTable::new(b.revision(), b.node().clone(), b.routes().filter(|r| !refused(r)).cloned());
            prop_assert_eq!(&read(&replaced), &served);
            prop_assert_eq!(by_table.revision, b.revision());
            prop_assert_eq!(by_delta.revision, b.revision());
            // Each is asked for what it was given, and says what of that it cannot do.
            let frontends = |routes: &mut dyn Iterator<Item = &Arc<kubenet_core::route::Route>>| -> BTreeSet<_> {
                routes.filter(refused).map(|route| route.frontend).collect()
            };
            prop_assert_eq!(failed(&by_table), frontends(&mut b.routes()));
            prop_assert_eq!(failed(&by_delta), frontends(&mut delta.upserts.iter()));
        } else {
            prop_assert_eq!(capabilities.check_node(b.node()).is_err(), true);
            prop_assert_eq!(read(&replaced).revision(), before.revision());
        }
        prop_assert_eq!(read(&moved), read(&replaced));
        for flow in &flows {
            prop_assert_eq!(moved.route(flow), replaced.route(flow));
            prop_assert_eq!(moved.send(flow), replaced.send(flow), "a flow from before");
        }
        prop_assert_eq!(block_on(moved.counters()).unwrap(), block_on(replaced.counters()).unwrap());
    }

    #[test]
    fn one_step_is_as_good_as_two(
        world in any_world(),
        next in [any_next(), any_next()],
        capabilities in any_capabilities(),
    ) {
        let (b, c) = (next[0].after(&world), next[1].after(&next[0].after(&world)));
        let (a, b, c) = (world.table(1), b.table(2), c.table(3));
        let served = [&a, &b, &c].iter().all(|table| capabilities.check_node(table.node()).is_ok());
        let at = |deltas: Vec<RouteDelta>| {
            let datapath = MemoryDatapath::with_capabilities(capabilities.clone());
            let mut results = vec![outcome(block_on(datapath.replace(Arc::new(a.clone()))))];
            results.extend(deltas.into_iter().map(|delta| outcome(block_on(datapath.apply(Arc::new(delta))))));
            (read(&datapath), results.iter().all(Result::is_ok))
        };
        let (first, second) = (a.diff(&b), b.diff(&c));
        let both = first.clone().then(second.clone());
        prop_assert_eq!(both.touched().len(), both.upserts.len() + both.removals.len(), "each frontend once");
        let (two, one) = (at(vec![first, second]), at(vec![both]));
        prop_assert_eq!(two.1, served);
        if served {
            prop_assert_eq!(two.0, one.0);
        }
    }

    #[test]
    fn a_datapath_that_follows_the_churn_of_a_large_cluster_holds_its_table(
        seed in any::<u64>(),
        pauses in vec(percent(30), 1..8),
        capabilities in any_capabilities(),
    ) {
        let options = LoadOptions { services: 30, endpoints: 4, nodes: 3, seed };
        let mut load = Load::new(options).unwrap();
        let mut cluster = Cluster::new(load.node().clone());
        load.objects().for_each(|change| cluster.change(change));
        let follower = MemoryDatapath::with_capabilities(capabilities.clone());
        let mut pauses = pauses.iter().cycle();
        for _ in 0..100 {
            load.step().into_iter().for_each(|change| cluster.change(change));
            if pauses.next() == Some(&true) && let Some(delta) = cluster.take_delta() {
                block_on(follower.apply(Arc::new(delta))).unwrap();
            }
        }
        if let Some(delta) = cluster.take_delta() {
            block_on(follower.apply(Arc::new(delta))).unwrap();
        }
        let other = MemoryDatapath::with_capabilities(capabilities);
        block_on(other.replace(Arc::clone(cluster.table()))).unwrap();
        prop_assert_eq!(read(&follower), read(&other));
    }
}

/// How often each of these happened in random updates of restricted datapaths.
#[test]
fn the_updates_are_of_all_kinds() {
    let mut counts = BTreeMap::<_, usize>::new();
    let mut runner = crate::fixed();
    let strategy = (any_world(), any_next(), any_capabilities());
    for _ in 0..1_000 {
        let (world, next, capabilities) = crate::sample(&strategy, &mut runner);
        let (a, b) = (world.table(1), next.after(&world).table(2));
        let delta = a.diff(&b);
        let served = |route: &Arc<_>| capabilities.check(route).is_ok();
        let old = |route: &Arc<kubenet_core::route::Route>| a.get(&route.frontend).cloned();
        let node = [a.node(), b.node()].map(|node| capabilities.check_node(node).is_ok());
        for (happened, what) in [
            (delta.is_empty(), "nothing changes"),
            (delta.node.is_some(), "the node changes"),
            (!delta.removals.is_empty(), "a route goes"),
            (delta.upserts.iter().any(|new| old(new).is_none()), "a route comes"),
            (delta.upserts.iter().any(|new| old(new).is_some()), "a route changes"),
            (delta.upserts.iter().any(|new| !served(new)), "a route is refused"),
            (
                delta.upserts.iter().any(|new| !served(new) && old(new).is_some_and(|o| served(&o))),
                "no more served",
            ),
            (
                delta.upserts.iter().any(|new| served(new) && old(new).is_some_and(|o| !served(&o))),
                "served now",
            ),
            (!delta.removed_backends.is_empty(), "a backend goes"),
            (node == [true, false], "the next node is refused"),
            (node == [false, true], "the first node is refused"),
        ] {
            *counts.entry(what).or_default() += usize::from(happened);
        }
    }
    assert!(counts.values().all(|count| *count >= 4), "{counts:#?}");
}
