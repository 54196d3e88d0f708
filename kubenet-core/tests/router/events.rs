//! What the router tells, and when.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, executor::block_on, stream::BoxStream};
use kubenet_core::{
    cluster::Change,
    datapath::{Close, Datapath, ErrorKind},
    route::RouteTable,
    router::{RouterEvent, ServiceRouter},
};
use kubenet_testkit::{faults::Call, memory::MemoryDatapath};
use parking_lot::Mutex;

use super::{BadRoute, Subject, eventually, fast, node, service, serving, slice, start};

type Events = BoxStream<'static, RouterEvent>;

/// The names of all events up to one of this name, and that one.
fn until(events: &mut Events, wanted: &str) -> (Vec<String>, RouterEvent) {
    let mut seen = Vec::new();
    loop {
        let event = block_on(events.next()).unwrap();
        let name: String = format!("{event:?}").chars().take_while(char::is_ascii_alphabetic).collect();
        let found = name == wanted;
        seen.push(name);
        if found {
            return (seen, event);
        }
    }
}

/// The next update: changes covered, upserted, removed, full, waited.
fn next_applied(events: &mut Events) -> (u64, usize, usize, bool, Duration) {
    match until(events, "Applied").1 {
        RouterEvent::Applied { changes, upserted, removed, full, waited, .. } => {
            (changes, upserted, removed, full, waited)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_update_tells_how_many_of_all_changes_it_covers() {
    let (router, _subject) = start();
    let mut events = router.events();
    router.submit_all([service("a", "10.96.0.1").into(), slice("a", "10.244.1.2").into()]).unwrap();
    router.submit(service("b", "10.96.0.2")).unwrap();
    router.synced().unwrap();
    let (changes, upserted, removed, full, _) = next_applied(&mut events);
    assert_eq!((changes, upserted, removed, full), (3, 2, 0, true));
    router.submit(Change::RemoveService(service("a", "10.96.0.1").name().clone())).unwrap();
    let (changes, upserted, removed, full, _) = next_applied(&mut events);
    assert_eq!((changes, upserted, removed, full), (4, 0, 1, false));
}

#[test]
fn a_change_that_means_nothing_is_covered_all_the_same() {
    let (router, subject) = serving();
    let mut events = router.events();
    let calls = subject.faulty.calls(Call::Apply);
    router.submit(service("a", "10.96.0.1")).unwrap();
    let (changes, upserted, removed, full, _) = next_applied(&mut events);
    assert_eq!((changes, upserted, removed, full), (2, 0, 0, false));
    assert_eq!(subject.faulty.calls(Call::Apply), calls, "the datapath was left alone");
}

#[test]
fn an_update_tells_how_long_its_oldest_change_waited() {
    let (router, subject) = serving();
    let mut events = router.events();
    let stall = subject.faulty.stall(Call::Apply);
    let began = Instant::now();
    router.submit(service("b", "10.96.0.2")).unwrap();
    eventually("the call is held", || subject.faulty.calls(Call::Apply) == 1);
    let held = began.elapsed();
    stall.release();
    let (.., waited) = next_applied(&mut events);
    assert!(waited >= held, "{waited:?} < {held:?}");
    block_on(router.audit()).unwrap();
    let vandal = RouteTable::new(router.status().applied, Arc::default(), []);
    block_on(subject.memory.replace(Arc::new(vandal))).unwrap();
    block_on(router.audit()).unwrap();
    assert!(matches!(until(&mut events, "Drift").1, RouterEvent::Drift { .. }));
    let (_, _, _, full, waited) = next_applied(&mut events);
    assert!(full && waited.is_zero(), "a repair covers no change that waited");
}

#[test]
fn a_failed_update_is_told_and_the_retry_covers_its_changes() {
    let (router, subject) = serving();
    let mut events = router.events();
    subject.faulty.fail_next(Call::Apply, 2, ErrorKind::Unavailable);
    router.submit(service("b", "10.96.0.2")).unwrap();
    let (seen, applied) = until(&mut events, "Applied");
    assert_eq!(seen, ["Failed", "Failed", "Applied"]);
    assert!(matches!(applied, RouterEvent::Applied { changes: 2, upserted: 1, .. }), "{applied:?}");
}

#[test]
fn a_route_that_fails_is_told_once_and_so_is_its_recovery() {
    let memory = MemoryDatapath::new();
    let datapath = Arc::new(BadRoute { memory, service: "bad", times: Mutex::new(3) });
    let router = ServiceRouter::start_with(node(), datapath, fast()).unwrap();
    router.synced().unwrap();
    block_on(router.flush()).unwrap();
    let mut events = router.events();
    router.submit(service("bad", "10.96.0.2")).unwrap();
    let (mut seen, recovered) = until(&mut events, "RouteRecovered");
    assert!(
        matches!(&recovered, RouterEvent::RouteRecovered { service_port, .. }
            if service_port.to_string() == "demo/bad"),
        "{recovered:?}"
    );
    seen.retain(|name| name != "Applied");
    assert_eq!(seen, ["RouteFailed", "RouteRecovered"], "three attempts failed");
}

#[test]
fn a_failed_route_that_is_no_longer_wanted_is_told_as_recovered() {
    let memory = MemoryDatapath::new();
    let datapath = Arc::new(BadRoute { memory, service: "bad", times: Mutex::new(usize::MAX) });
    let router = ServiceRouter::start_with(node(), datapath, fast()).unwrap();
    router.synced().unwrap();
    block_on(router.flush()).unwrap();
    let mut events = router.events();
    let bad = service("bad", "10.96.0.2");
    let name = bad.name().clone();
    router.submit(bad).unwrap();
    until(&mut events, "RouteFailed");
    router.submit(Change::RemoveService(name)).unwrap();
    until(&mut events, "RouteRecovered");
    assert!(router.status().failed.is_empty());
}

#[test]
fn f5_a_conflict_is_told_when_it_begins_and_when_it_ends() {
    let (router, _subject) = serving();
    let mut events = router.events();
    router.submit(service("b", "10.96.0.1")).unwrap();
    let (_, begun) = until(&mut events, "Conflict");
    let RouterEvent::Conflict(begun) = begun else { panic!("{begun:?}") };
    assert_eq!((&*begun.winner.service, &*begun.loser.service), ("a", "b"));
    router.submit(service("c", "10.96.0.3")).unwrap();
    block_on(router.flush()).unwrap();
    router.submit(Change::RemoveService(service("b", "10.96.0.1").name().clone())).unwrap();
    let (seen, ended) = until(&mut events, "ConflictEnded");
    assert!(!seen.contains(&"Conflict".to_owned()), "{seen:?}");
    assert!(matches!(ended, RouterEvent::ConflictEnded(ended) if ended == begun));
}

#[test]
fn a_reader_that_is_too_slow_is_told_how_many_events_it_lost() {
    let (router, _subject) = serving();
    let events = router.events();
    let count = 1500;
    let rivals = (0..count).map(|i| service(&format!("rival-{i}"), "10.96.0.1").into());
    router.submit_all(rivals.collect::<Vec<Change>>()).unwrap();
    block_on(router.flush()).unwrap();
    drop(router);
    let told = block_on(events.collect::<Vec<_>>());
    let (missed, rest) = told.split_first().unwrap();
    let RouterEvent::Missed { count: missed } = *missed else { panic!("{missed:?}") };
    assert!(rest.iter().all(|event| !matches!(event, RouterEvent::Missed { .. })), "it is told once");
    // The update is an event beside the conflicts.
    assert!(missed as usize + rest.len() > count, "{missed} and {}", rest.len());
}

#[test]
fn a_swap_and_the_end_are_told() {
    let (router, _old) = serving();
    let mut events = router.events();
    block_on(router.swap(Subject::new().datapath(), Duration::ZERO)).unwrap();
    let (seen, swapped) = until(&mut events, "Swapped");
    assert_eq!(seen, ["Applied", "Swapped"]);
    assert!(matches!(swapped, RouterEvent::Swapped { draining_flows: Some(0), .. }), "{swapped:?}");
    block_on(router.close(Close::Remove)).unwrap();
    assert_eq!(until(&mut events, "Closed").0, ["Closed"]);
    assert!(block_on(events.next()).is_none());
}

#[test]
fn events_end_with_the_router() {
    let (router, _subject) = serving();
    let mut events = router.events();
    drop(router);
    assert!(block_on(events.next()).is_none());
}
