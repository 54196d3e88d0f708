//! One change after the other, and bursts of a thousand, while clients ask without end.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::AtomicBool},
    thread,
    time::{Duration, Instant},
};

use futures::executor::block_on;
use kubenet_core::{
    datapath::Datapath,
    model::{IpFamily, Protocol},
    route::{Frontend, FrontendKind, Masquerade, Route, RouteTable, Target, WhenEmpty},
};
use kubenet_ebpf::EbpfDatapath;
use kubenet_testkit::lab::{Lab, Node};

use super::{
    CLIENTS, start,
    support::{load::*, *},
};

/// Services that change at once.
const BURST: usize = 1000;
/// Which of them clients ask: the first, the last and one in between.
const ASKED: [usize; 3] = [0, 499, BURST - 1];
/// How long changes come one by one, and how long in bursts.
const SPAN: Duration = Duration::from_secs(2);

const SETS: [&[&str]; 4] = [&["here"], &["there"], &["here", "there"], &["client", "there"]];

fn frontend(number: usize) -> SocketAddr {
    let [.., high, low] = (number as u32).to_be_bytes();
    // In the range that clients outside have a way to.
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 4 + high, low)), SERVICE_PORT)
}

/// A table of a thousand Services: each one's set of backends is given by its number.
fn services(lab: &Lab, revision: u64, set: impl Fn(usize) -> usize) -> Arc<RouteTable> {
    let sets = SETS.map(|pods| backends(lab, IpFamily::V4, pods));
    let routes = (0..BURST).map(|number| {
        let to = frontend(number);
        let port = SERVICE_PORT.try_into().unwrap();
        let backends = Arc::clone(&sets[set(number) % sets.len()]);
        Arc::new(Route::new(
            Frontend::ip(to.ip(), port, Protocol::Tcp),
            FrontendKind::ClusterIp,
            service_port(&format!("web-{number}")),
            Target { backends, when_empty: WhenEmpty::Reject },
            Masquerade { pods: false, node: true, outside: true },
        ))
    });
    table(lab, revision, routes)
}

/// Applies what leads from one table to the next, and says how many routes changed and how long it took.
fn apply(datapath: &EbpfDatapath, now: &mut Arc<RouteTable>, next: Arc<RouteTable>) -> (usize, Duration) {
    let update = Arc::new(now.diff(&next));
    let changed = update.upserts.len();
    let begin = Instant::now();
    let report = block_on(datapath.apply(update)).unwrap();
    let took = begin.elapsed();
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    *now = next;
    (changed, took)
}

#[test]
fn one_change_and_a_burst_of_1000_changes_under_load_fail_no_request() {
    let Some((lab, _servers)) = start() else { return };
    change_under_load(&lab, datapath(&lab), "socket hooks and TC");
}

#[test]
fn a_burst_of_1000_changes_under_load_fails_no_request_at_tc_alone() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = builder(&lab).socket_hooks(false).build().unwrap();
    for interface in lab.node(Node::A).pod_interfaces() {
        block_on(datapath.attach_pod(&interface)).unwrap();
    }
    change_under_load(&lab, datapath, "TC");
}

fn change_under_load(lab: &Lab, datapath: EbpfDatapath, hooks: &str) {
    let mut now = services(lab, 1, |_| 0);
    replace(&datapath, &now);
    let mut kept = lab.connect("client", frontend(0), SOON).unwrap();
    kept.ask(SOON).unwrap();

    let stop = AtomicBool::new(false);
    // Without the socket hooks, the node's own processes are not served.
    let clients = CLIENTS.into_iter().filter(|client| hooks != "TC" || *client != "node");
    let asked: Vec<_> = clients.flat_map(|client| ASKED.map(|number| (client, frontend(number)))).collect();
    let (mut single, mut bursts) = (Vec::new(), Vec::new());
    let results = thread::scope(|scope| {
        let end = Stop(&stop);
        let loads: Vec<_> = asked
            .iter()
            .map(|(from, to)| {
                let stop = &stop;
                scope.spawn(move || load(lab, from, *to, stop))
            })
            .collect();
        let (begin, mut revision) = (Instant::now(), 1);
        // Those that clients ask, by turns; the others stay.
        let mut sets = [0; ASKED.len()];
        while begin.elapsed() < SPAN {
            revision += 1;
            sets[single.len() % ASKED.len()] += 1;
            let place = |number| ASKED.iter().position(|asked| *asked == number);
            let next = services(lab, revision, |number| place(number).map_or(0, |place| sets[place]));
            let (changed, took) = apply(&datapath, &mut now, next);
            assert_eq!(changed, 1);
            single.push(took);
            thread::sleep(Duration::from_millis(2));
        }
        while begin.elapsed() < 2 * SPAN {
            revision += 1;
            let next = services(lab, revision, |number| number + revision as usize);
            let (changed, took) = apply(&datapath, &mut now, next);
            // The first one finds a few as they are to be.
            assert!(changed > BURST / 2, "{changed}");
            bursts.push((changed, took));
        }
        drop(end);
        loads.into_iter().map(|load| load.join().unwrap()).collect::<Vec<_>>()
    });
    let answers: u64 = results.iter().map(|(answers, _)| answers).sum();
    single.sort_unstable();
    let mut full: Vec<_> =
        bursts.iter().filter(|(changed, _)| *changed == BURST).map(|(_, took)| *took).collect();
    full.sort_unstable();
    assert!(single.len() > 20 && full.len() > 5, "{} changes, {} bursts", single.len(), full.len());
    println!(
        "{hooks}: {answers} requests answered by {} clients, {} changes in {:?} (median), {} bursts of {BURST} in {:?} \
         (fastest), {:?} (median), {:?} (slowest)",
        results.len(),
        single.len(),
        single[single.len() / 2],
        full.len(),
        full[0],
        full[full.len() / 2],
        full[full.len() - 1],
    );
    let metrics = block_on(datapath.metrics()).unwrap();
    for ((from, to), (answers, failures)) in asked.iter().zip(results) {
        assert!(failures.is_empty(), "{from} to {to}: {failures:?}; {metrics:?}");
        assert!(answers > 20, "{from} to {to}: {answers}");
    }
    assert_eq!(kept.ask(SOON).unwrap().backend, "here", "a connection outlives the changes of its Service");
}
