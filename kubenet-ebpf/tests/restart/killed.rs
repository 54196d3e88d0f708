//! A process is killed, anywhere, and nobody notices.

use std::{
    thread,
    time::{Duration, Instant},
};

use futures::executor::block_on;
use kubenet_core::{
    datapath::{Close, Datapath, DatapathExt},
    route::{Route, RouteTable},
};
use kubenet_ebpf::Inspector;
use kubenet_testkit::lab::{Connection, Lab};

use super::{
    child::{Plan, SHARED, before_and_after},
    trace::{End, kill_before, worker},
    *,
};

const KILLS: u64 = 100;

#[test]
fn a_hundred_kills_at_any_moment_lose_no_connection() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    for mode in modes() {
        let plan = Plan::new(&lab, &bpffs.pin_dir(), mode);
        let kills = KILLS / modes().len() as u64;
        let mut process = plan.spawn("churn");
        process.wait_for("ready");
        let mut known: Vec<(&str, Connection)> = CLIENTS
            .map(|client| (client, lab.connect(place(client), target(&lab, client), SOON).unwrap()))
            .into();
        under_load(&lab, &format!("{mode:?}, {kills} kills"), || {
            for kill in 0..kills {
                // From its very beginning to well after its first table.
                thread::sleep(Duration::from_millis((kill * 61) % 500));
                process.kill();
                for (client, connection) in &mut known {
                    connection.ask(SOON).unwrap_or_else(|e| panic!("{client}, kill {kill}: {e}"));
                }
                process = plan.spawn("churn");
            }
            process.wait_for("ready");
            process.kill();
        });
        is_whole(&lab, &plan);
    }
}

/// Nothing leaked, and everything can be removed.
fn is_whole(lab: &Lab, plan: &Plan) {
    let datapath = plan.datapath();
    let table = plan.table(1, plan.web(&["here"]));
    replace(&datapath, &table);
    assert!(block_on(datapath.drift(&table)).unwrap().is_none());
    block_on(datapath.close(Close::Remove)).unwrap();
    assert_eq!(attached(lab), Vec::<String>::new());
}

#[test]
fn killed_between_any_two_calls_of_an_update_each_route_is_the_old_one_or_the_new_one() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    let plan = Plan::new(&lab, &bpffs.pin_dir(), AttachMode::Auto);
    let [before, after] = before_and_after(&plan);
    let first = plan.datapath();
    replace(&first, &before);
    let mut known = lab.connect("client", target(&lab, "client"), SOON).unwrap();
    block_on(first.close(Close::Keep)).unwrap();
    drop(first);
    let mut calls = 0;
    loop {
        let mut process = plan.spawn("update");
        process.wait_for("ready");
        let flow = lab.udp_flow("client", service(V4, SHARED)).unwrap();
        assert_eq!(flow.ask(SOON).unwrap().backend, "there");
        let (id, thread) = (process.id(), worker(process.id()));
        let Some(end) = kill_before(id, thread, calls, true, || process.tell("go")) else {
            return skip("tracing is not allowed here");
        };
        known.ask(SOON).unwrap_or_else(|e| panic!("before call {calls}: {e}"));
        let datapath = plan.datapath();
        each_is_one_of(&block_on(datapath.read()).unwrap(), [&before, &after]);
        serves(&lab, calls);
        replace(&datapath, &after);
        assert!(block_on(datapath.drift(&after)).unwrap().is_none());
        serves(&lab, calls);
        assert_eq!(flow.ask(SOON).unwrap().backend, "here", "before call {calls}");
        replace(&datapath, &before);
        block_on(datapath.close(Close::Keep)).unwrap();
        if let End::Finished(all) = end {
            eprintln!("killed before each of {all} system calls");
            // Names, services, cluster IPs, and the removal of each; the connections that are cut.
            assert!(all >= 8, "{all}");
            break;
        }
        calls += 1;
    }
    is_whole(&lab, &plan);
}

#[test]
fn killed_between_any_two_changes_of_a_start_the_next_one_starts() {
    killed_in_a_start(false);
}

#[test]
fn killed_between_any_two_changes_of_an_adoption_the_next_one_starts() {
    killed_in_a_start(true);
}

/// From nothing, or where somebody serves.
fn killed_in_a_start(adopts: bool) {
    let Some((lab, _servers, bpffs)) = start() else { return };
    for mode in modes() {
        let plan = Plan::new(&lab, &bpffs.pin_dir(), mode);
        let mut calls = 0;
        let begin = Instant::now();
        if adopts {
            let datapath = plan.datapath();
            replace(&datapath, &plan.table(1, plan.web(&["here", "there"])));
            block_on(datapath.close(Close::Keep)).unwrap();
        }
        loop {
            let open = |client| lab.connect(place(client), target(&lab, client), SOON).unwrap();
            let mut known = adopts.then(|| CLIENTS.map(open));
            let mut process = plan.spawn("start");
            let thread = process.wait_for("thread").parse().unwrap();
            let id = process.id();
            let Some(end) = kill_before(id, thread, calls, false, || process.tell("go")) else {
                return skip("tracing is not allowed here");
            };
            for connection in known.iter_mut().flatten() {
                connection.ask(SOON).unwrap_or_else(|e| panic!("{mode:?}, before change {calls}: {e}"));
            }
            // Flows are taken once all programs hang, not by the first of them.
            let takes_flows = || Inspector::open(bpffs.pin_dir()).is_ok_and(|seen| !seen.is_draining());
            if adopts || !attached(&lab).is_empty() && takes_flows() {
                serves(&lab, calls);
            }
            let datapath = plan.datapath();
            let table = plan.table(1, plan.web(&["there"]));
            replace(&datapath, &table);
            assert!(block_on(datapath.drift(&table)).unwrap().is_none());
            serves(&lab, calls);
            if adopts {
                replace(&datapath, &plan.table(1, plan.web(&["here", "there"])));
                block_on(datapath.close(Close::Keep)).unwrap();
            } else {
                block_on(datapath.close(Close::Remove)).unwrap();
                assert_eq!(bpffs.tree(), Vec::<std::path::PathBuf>::new());
                assert_eq!(attached(&lab), Vec::<String>::new());
            }
            if let End::Finished(all) = end {
                eprintln!("{mode:?}, adopts: {adopts}: {all} changes, {:?}", begin.elapsed());
                assert!(all >= 12, "{all}");
                break;
            }
            // Where nobody serves yet, most changes pin maps where nobody looks.
            calls += if adopts { 1 } else { 4 };
        }
        is_whole(&lab, &plan);
    }
}

#[test]
fn killed_between_any_two_changes_of_a_removal_the_next_one_starts() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    for mode in modes() {
        let plan = Plan::new(&lab, &bpffs.pin_dir(), mode);
        let mut calls = 0;
        loop {
            let mut process = plan.spawn("remove");
            process.wait_for("ready");
            let (id, thread) = (process.id(), worker(process.id()));
            let Some(end) = kill_before(id, thread, calls, false, || process.tell("go")) else {
                return skip("tracing is not allowed here");
            };
            let datapath = plan.datapath();
            let table = plan.table(1, plan.web(&["there"]));
            replace(&datapath, &table);
            assert!(block_on(datapath.drift(&table)).unwrap().is_none());
            serves(&lab, calls);
            block_on(datapath.close(Close::Remove)).unwrap();
            assert_eq!(bpffs.tree(), Vec::<std::path::PathBuf>::new());
            assert_eq!(attached(&lab), Vec::<String>::new());
            if let End::Finished(all) = end {
                eprintln!("{mode:?}: {all} changes");
                assert!(all > 30, "{all}");
                break;
            }
            // Most of them remove maps that nobody uses any more.
            calls += 3;
        }
    }
}

fn serves(lab: &Lab, calls: usize) {
    for client in CLIENTS {
        let answer = lab.http_get(place(client), target(lab, client), SOON);
        answer.unwrap_or_else(|e| panic!("{client}, before call {calls}: {e}"));
    }
}

fn each_is_one_of(read: &RouteTable, either: [&RouteTable; 2]) {
    for route in read.routes() {
        let mut route = Route::clone(route);
        if let (None, Some(new)) = either.map(|table| table.get(&route.frontend)).into() {
            // That other ports of a new cluster IP are refused comes last.
            route.on_cluster_ip = new.on_cluster_ip;
        }
        assert!(
            either.iter().any(|table| table.get(&route.frontend).is_some_and(|r| **r == route)),
            "{route:?}"
        );
    }
    for route in either[0].routes().filter(|route| either[1].get(&route.frontend).is_some()) {
        assert!(read.get(&route.frontend).is_some(), "{} is in both", route.frontend);
    }
}
