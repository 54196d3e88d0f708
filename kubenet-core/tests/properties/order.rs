//! Events in any order end in the same table, and the deltas on the way lead there.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use kubenet_core::{
    cluster::{Change, Cluster, FrontendConflict},
    resolve::resolve,
    route::{Revision, Route, RouteDelta, RouteTable},
};
use proptest::{collection::vec, prelude::*, sample::Index};

use crate::{
    cases, fixed, sample,
    world::{Node, Tweak, World, any_node, any_tweak, any_world, percent},
};

/// What happens to a cluster.
#[derive(Clone, Debug)]
enum Event {
    Tweak(Tweak),
    /// A list of everything, as after a watch that broke and missed some changes.
    Snapshot(Vec<Tweak>),
}

fn any_event() -> impl Strategy<Value = Event> {
    let snapshot = vec(any_tweak(), 0..4).prop_map(Event::Snapshot);
    prop_oneof![16 => any_tweak().prop_map(Event::Tweak), 1 => snapshot]
}

/// Which object a change is about. A snapshot is about all of them.
fn subject(change: &Change) -> String {
    match change {
        Change::Service(service) => format!("service {}", service.name()),
        Change::RemoveService(name) => format!("service {name}"),
        Change::EndpointSlice(slice) => format!("slice {}", slice.name()),
        Change::RemoveEndpointSlice(name) => format!("slice {name}"),
        Change::Node(_) => "node".into(),
        _ => "all".into(),
    }
}

/// Another order, in which the changes of one object follow each other as before, and nothing passes a snapshot.
fn reorder(changes: &[Change], moves: &[Index]) -> Vec<Change> {
    let mut moves = moves.iter().cycle();
    let mut reordered = Vec::new();
    for between in changes.split_inclusive(|change| matches!(change, Change::Snapshot { .. })) {
        let (snapshot, others): (Vec<_>, Vec<_>) =
            between.iter().cloned().partition(|change| matches!(change, Change::Snapshot { .. }));
        let mut subjects: Vec<_> = others.iter().map(subject).collect();
        for i in (1..subjects.len()).rev() {
            let j = moves.next().map_or(0, |index| index.index(i + 1));
            subjects.swap(i, j);
        }
        let mut queues: HashMap<_, VecDeque<_>> = HashMap::new();
        for change in others {
            queues.entry(subject(&change)).or_default().push_back(change);
        }
        let next = |subject: String| queues.get_mut(&subject).and_then(VecDeque::pop_front);
        reordered.extend(subjects.into_iter().filter_map(next));
        reordered.extend(snapshot);
    }
    reordered
}

/// All changes: those that make the world, and those that happen to it, told as they come.
fn told(world: &World, events: &[Event]) -> (World, Vec<Change>) {
    let (services, slices) = world.objects();
    let slices = slices.into_iter().map(Change::EndpointSlice);
    let mut changes: Vec<_> = services.into_iter().map(Change::Service).chain(slices).collect();
    let mut world = world.clone();
    for event in events {
        match event {
            Event::Tweak(tweak) => changes.extend(world.tweak(tweak)),
            Event::Snapshot(missed) => {
                let missed: Vec<_> = missed.iter().filter_map(|tweak| world.tweak(tweak)).collect();
                // Of the node no list tells.
                changes.extend(missed.into_iter().filter(|change| matches!(change, Change::Node(_))));
                changes.push(world.snapshot());
            }
        }
    }
    changes.push(Change::Node(world.node.build()));
    (world, changes)
}

/// Hands changes to a cluster, some of them twice, resolves where `pauses` says so, and collects the deltas.
/// Each of them must be what changed, and no more.
fn feed(
    node: &Node,
    changes: &[Change],
    twice: &[bool],
    pauses: &[bool],
) -> Result<(Cluster, Vec<RouteDelta>), TestCaseError> {
    let mut cluster = Cluster::new(node.build());
    let (mut twice, mut pauses) = (twice.iter().cycle(), pauses.iter().cycle());
    let mut deltas = Vec::new();
    let mut resolve = |cluster: &mut Cluster| {
        let before = RouteTable::clone(cluster.table());
        let Some(delta) = cluster.take_delta() else {
            prop_assert_eq!(&before, &**cluster.table());
            return Ok(());
        };
        let minimal = before.diff(cluster.table());
        let set = |delta: &RouteDelta| {
            (
                delta.upserts.iter().map(|route| format!("{route:?}")).collect::<BTreeSet<_>>(),
                delta.removals.iter().copied().collect::<BTreeSet<_>>(),
                delta.removed_backends.iter().copied().collect::<BTreeSet<_>>(),
                delta.node.clone(),
            )
        };
        prop_assert_eq!(set(&delta), set(&minimal));
        prop_assert_eq!((delta.base, delta.revision), (minimal.base, minimal.revision));
        prop_assert!(!delta.is_empty());
        deltas.push(delta);
        Ok(())
    };
    for change in changes {
        if twice.next() == Some(&true) {
            cluster.change(change.clone());
        }
        cluster.change(change.clone());
        if pauses.next() == Some(&true) {
            resolve(&mut cluster)?;
        }
    }
    resolve(&mut cluster)?;
    prop_assert!(!cluster.is_dirty());
    Ok((cluster, deltas))
}

fn conflicts(cluster: &Cluster) -> BTreeSet<FrontendConflict> {
    cluster.conflicts().into_iter().collect()
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn k2_events_in_any_order_end_in_the_same_table(
        world in any_world(),
        events in vec(any_event(), 0..24),
        first_node in any_node(),
        moves in vec(any::<Index>(), 1..32),
        twice in vec(percent(20), 1..8),
        pauses in vec(percent(30), 1..8),
    ) {
        let (end, changes) = told(&world, &events);
        let (services, slices) = end.objects();
        let scratch = resolve(&end.node.build(), &services, &slices);
        let mut fresh = Cluster::new(end.node.build());
        fresh.change(end.snapshot());
        fresh.take_delta();
        prop_assert!(fresh.table().same_routes(&scratch));
        for changes in [&changes, &reorder(&changes, &moves)] {
            let (cluster, deltas) = feed(&first_node, changes, &twice, &pauses)?;
            prop_assert!(cluster.table().same_routes(&scratch), "{:#?}\nis not\n{scratch:#?}", cluster.table());
            prop_assert_eq!(conflicts(&cluster), conflicts(&fresh));
            prop_assert_eq!(cluster.health(), fresh.health());
            prop_assert_eq!(cluster.service_count(), services.len());

            let mut moved = RouteTable::default();
            for delta in &deltas {
                moved.apply(delta).unwrap();
            }
            prop_assert_eq!(&moved, &**cluster.table(), "one delta after the other");
            let mut at_once = RouteTable::default();
            at_once.apply(&deltas.into_iter().fold(RouteDelta::empty(Revision(0), Revision(0)), RouteDelta::then)).unwrap();
            prop_assert_eq!(&at_once, &**cluster.table(), "all deltas as one");
        }
    }
}

/// How often each of these happened in random histories.
#[test]
fn the_histories_are_of_all_kinds() {
    let (mut runner, strategy) =
        (fixed(), (any_world(), vec(any_event(), 0..24), vec(any::<Index>(), 1..32)));
    let mut counts = BTreeMap::<_, usize>::new();
    for _ in 0..300 {
        let (world, events, moves) = sample(&strategy, &mut runner);
        let (_, changes) = told(&world, &events);
        let (mut owners, mut addresses, mut gone) = (HashMap::new(), HashMap::new(), HashMap::new());
        let mut cluster = Cluster::new(world.node.build());
        for change in &changes {
            cluster.change(change.clone());
            let before = RouteTable::clone(cluster.table());
            let delta = cluster.take_delta().unwrap_or_default();
            let won = |route: &Arc<Route>| {
                before
                    .get(&route.frontend)
                    .is_some_and(|b| b.service_port.service != route.service_port.service)
            };
            let mut happened = |what, it: bool| *counts.entry(what).or_default() += usize::from(it);
            happened("a frontend changes hands", delta.upserts.iter().any(won));
            happened("a frontend goes", !delta.removals.is_empty());
            happened("a change means nothing", delta.is_empty());
            happened("two claim one frontend", !cluster.conflicts().is_empty());
            happened("a health check answers", !cluster.health().is_empty());
            match change {
                Change::EndpointSlice(slice) => {
                    let before = owners.insert(slice.name().clone(), slice.service().clone());
                    happened(
                        "a slice changes its owner",
                        before.is_some_and(|before| before != *slice.service()),
                    );
                }
                Change::Service(service) => {
                    let now = service.cluster_ips().to_vec();
                    let before = addresses.insert(service.name().clone(), now.clone());
                    happened("a Service changes its address", before.is_some_and(|before| before != now));
                    happened("a Service comes again", gone.remove(service.name()).is_some());
                }
                Change::RemoveService(name) => drop(gone.insert(name.clone(), ())),
                Change::Node(_) => happened("the node changes", delta.node.is_some()),
                Change::Snapshot { .. } => happened("a list tells of missed changes", !delta.is_empty()),
                _ => {}
            }
        }
        *counts.entry("another order").or_default() += usize::from(reorder(&changes, &moves) != changes);
    }
    assert!(counts.len() == 11 && counts.values().all(|count| *count >= 10), "{counts:#?}");
}
