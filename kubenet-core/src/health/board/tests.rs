use std::{sync::Arc, thread};

use super::*;

fn name(name: &str) -> ObjectName {
    ObjectName::new("Service", "demo", name).unwrap()
}

fn port(port: u16) -> NonZeroU16 {
    port.try_into().unwrap()
}

fn health(service: &str, at: u16, local_endpoints: usize) -> ServiceHealth {
    ServiceHealth { service: name(service), port: port(at), local_endpoints }
}

fn status(board: &HealthBoard, at: u16) -> Option<u16> {
    board.service_answer(port(at), Moment::now()).map(|answer| answer.status)
}

#[test]
fn h1_answers_follow_endpoints_and_services() {
    let board = HealthBoard::default();
    assert_eq!(status(&board, 30001), None);
    board.upsert_service(health("web", 30001, 0));
    assert_eq!(status(&board, 30001), Some(503));
    board.upsert_service(health("web", 30001, 2));
    assert_eq!(status(&board, 30001), Some(200));
    board.upsert_service(health("web", 30002, 2));
    assert_eq!(status(&board, 30001), None);
    assert_eq!(status(&board, 30002), Some(200));
    board.remove_service(&name("web"));
    board.remove_service(&name("web"));
    assert_eq!(status(&board, 30002), None);
}

#[test]
fn h1_follows_the_proxy_and_not_the_node() {
    let board = HealthBoard::new(Duration::from_secs(30));
    board.upsert_service(health("web", 30001, 1));
    let now = Moment::now();
    board.set_node(NodeEligibility::Missing);
    assert_eq!(board.healthz(now).status, 503);
    assert_eq!(board.livez(now).status, 200);
    assert_eq!(board.service_answer(port(30001), now).unwrap().status, 200);
    board.set_node(NodeEligibility::Eligible);
    assert_eq!(board.healthz(now).status, 200);
    board.update_queued(IpFamily::V6, now.instant);
    let late = now.after(Duration::from_secs(60));
    assert_eq!(board.service_answer(port(30001), late).unwrap().status, 503);
    assert_eq!(board.livez(late).status, 503);
    board.updated(IpFamily::V6, now.instant, late);
    assert_eq!(board.service_answer(port(30001), late).unwrap().status, 200);
}

#[test]
fn h1_the_first_claim_has_the_port_and_the_next_inherits_it() {
    let board = HealthBoard::default();
    board.upsert_service(health("b", 30001, 1));
    board.upsert_service(health("a", 30001, 0));
    assert_eq!(status(&board, 30001), Some(200));
    assert_eq!(board.ports(), BTreeMap::from([(port(30001), vec![name("b"), name("a")])]));
    // More endpoints are no new claim.
    board.upsert_service(health("b", 30001, 3));
    assert_eq!(board.ports()[&port(30001)][0], name("b"));
    board.remove_service(&name("b"));
    assert_eq!(status(&board, 30001), Some(503));
    assert_eq!(board.ports(), BTreeMap::from([(port(30001), vec![name("a")])]));
}

#[test]
fn h1_the_version_counts_changes_of_ports_alone() {
    let board = HealthBoard::default();
    let mut last = board.ports_version();
    let mut changed = |what: &dyn Fn(&HealthBoard)| {
        what(&board);
        let before = std::mem::replace(&mut last, board.ports_version());
        before != last
    };
    assert!(changed(&|b| b.upsert_service(health("web", 30001, 0))));
    assert!(!changed(&|b| b.upsert_service(health("web", 30001, 5))));
    assert!(!changed(&|b| b.set_node(NodeEligibility::Tainted)));
    assert!(!changed(&|b| b.update_queued(IpFamily::V4, Instant::now())));
    assert!(changed(&|b| b.upsert_service(health("web", 30002, 5))));
    assert!(!changed(&|b| b.remove_service(&name("other"))));
    assert!(!changed(&|b| b.set_services([health("web", 30002, 1)])));
    assert!(changed(&|b| b.set_services([health("web", 30002, 1), health("api", 30003, 1)])));
    assert!(changed(&|b| b.remove_service(&name("web"))));
    assert!(changed(&|b| b.set_services([])));
    assert_eq!(board.ports(), BTreeMap::new());
}

#[test]
fn h1_services_set_at_once_may_exchange_their_ports() {
    let board = HealthBoard::default();
    board.set_services([health("a", 1, 1), health("b", 2, 1), health("c", 3, 1)]);
    board.set_services([health("b", 1, 1), health("a", 2, 1)]);
    let expected = [(port(1), vec![name("b")]), (port(2), vec![name("a")])];
    assert_eq!(board.ports(), BTreeMap::from(expected));
}

#[test]
fn h1_a_waiting_thread_learns_of_a_new_port() {
    let board = Arc::new(HealthBoard::default());
    let seen = board.ports_version();
    assert_eq!(board.wait_for_ports(seen, Some(Duration::ZERO)), seen);
    let waiting = Arc::clone(&board);
    let thread = thread::spawn(move || {
        let version = waiting.wait_for_ports(seen, None);
        assert_ne!(version, seen);
        waiting.ports()
    });
    board.upsert_service(health("web", 30001, 0));
    assert_eq!(thread.join().unwrap().len(), 1);
    // Nothing is lost between reading the version and waiting.
    assert_ne!(board.wait_for_ports(seen, None), seen);
}
