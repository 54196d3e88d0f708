//! Real connections through the kernel: from pods, from the node and from outside, to backends here and there.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

#[path = "traffic/burst.rs"]
mod burst;
#[path = "traffic/connected.rs"]
mod connected;
#[path = "traffic/fragments.rs"]
mod fragments;
#[path = "traffic/interfaces.rs"]
mod interfaces;
#[path = "traffic/names.rs"]
mod names;
#[path = "traffic/peers.rs"]
mod peers;
mod support;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use futures::executor::block_on;
use kubenet_core::{
    datapath::Datapath,
    model::IpFamily,
    route::{Frontend, FrontendKind, Route, WhenEmpty},
};
use kubenet_ebpf::{AttachMode, Metric};
use kubenet_testkit::lab::{Lab, LabConfig, Node, Place, RequestError, Server};
use support::{load::*, *};

const CLIENTS: [&str; 3] = ["client", "node", "outside"];

/// A client here, a backend here and one there, all three of them serving.
fn start() -> Option<(Lab, Vec<Server>)> {
    let config = LabConfig::new().pod("client", Node::A).pod("here", Node::A).pod("there", Node::B);
    let lab = lab(config)?;
    let servers = ["client", "here", "there"].map(|pod| lab.serve(pod, PORT).unwrap());
    Some((lab, servers.into()))
}

#[test]
fn every_client_reaches_every_backend_over_tcp_and_udp() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = datapath(&lab);
    for &family in lab.families() {
        for backend in ["here", "there"] {
            let mut routes = on_cluster_ip(&lab, family, 1, &[backend]);
            routes.extend(on_node_port(&lab, family, NODE_PORT, &[backend]));
            replace(&datapath, &table(&lab, 1, routes));
            for (to, kind) in
                [(service(family, 1), "cluster IP"), (node(&lab, family, NODE_PORT), "node port")]
            {
                for client in CLIENTS {
                    let case = format!("{client} to {backend} over {kind}, {family}");
                    let from = place(client);
                    let tcp =
                        lab.http_get(from.clone(), to, SOON).unwrap_or_else(|e| panic!("{case}, TCP: {e}"));
                    assert_eq!(tcp.backend, backend, "{case}");
                    // Who the backend saw.
                    let own = lab.address(&from, family).unwrap();
                    let node = lab.address(&place("node"), family).unwrap();
                    let masquerades = backend == "there" && (client == "outside" || kind == "node port");
                    let expected: IpAddr = if masquerades { node } else { own };
                    let ask =
                        || lab.udp_ask(from.clone(), to, SOON).unwrap_or_else(|e| panic!("{case}, UDP: {e}"));
                    let mut udp = ask();
                    if udp.peer.ip() != expected {
                        // From a port that it used by the other frontend just now, a client is masqueraded, as
                        // nothing else tells the two flows apart. Another port has none of that.
                        udp = ask();
                    }
                    assert_eq!(udp.backend, backend, "{case}");
                    assert_eq!((tcp.peer.ip(), udp.peer.ip()), (expected, expected), "{case}");
                }
            }
        }
    }
}

/// What the socket hooks have translated, the programs at the devices let pass.
#[test]
fn a_flow_is_translated_by_one_hook_only() {
    let Some((lab, _servers)) = start() else { return };
    if lab.cgroup().is_err() {
        return skip("the lab has no cgroup");
    }
    let datapath = datapath(&lab);
    for &family in lab.families() {
        for backend in ["here", "there"] {
            // The backend's own address and port are a frontend, too, of somebody else.
            let mut routes = on_cluster_ip(&lab, family, 1, &[backend]);
            let address = lab.address(&place(backend), family).unwrap();
            routes.extend(on_cluster_ip(&lab, family, 2, &["client"]).into_iter().map(|route| {
                let mut route = Route::clone(&route);
                route.frontend = Frontend::ip(address, PORT.try_into().unwrap(), route.frontend.protocol);
                route.kind = FrontendKind::ExternalIp;
                Arc::new(route)
            }));
            replace(&datapath, &table(&lab, 1, routes));
            let before = block_on(datapath.metrics()).unwrap();
            let answer = lab.http_get(place("node"), service(family, 1), SOON).unwrap();
            assert_eq!(answer.backend, backend, "{family}");
            let after = block_on(datapath.metrics()).unwrap();
            let grew = |metric| after[&metric] - before[&metric];
            assert_eq!((grew(Metric::NewFlow), grew(Metric::Forwarded)), (1, 0), "{family}, {backend}");
        }
    }
}

#[test]
fn a_backend_reaches_itself_through_its_service() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = datapath(&lab);
    for &family in lab.families() {
        replace(&datapath, &table(&lab, 1, on_cluster_ip(&lab, family, 1, &["client"])));
        let answer = lab.http_get("client", service(family, 1), SOON).unwrap();
        assert_eq!(answer.backend, "client");
        assert_eq!(lab.udp_ask("client", service(family, 1), SOON).unwrap().backend, "client");
    }
}

#[test]
fn the_node_is_a_backend_of_its_own() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = datapath(&lab);
    let _server = lab.serve(Place::Node(Node::A), PORT).unwrap();
    for &family in lab.families() {
        let mut routes = on_cluster_ip(&lab, family, 1, &["here"]);
        routes.extend(on_node_port(&lab, family, NODE_PORT, &["here"]));
        let address = lab.address(&place("node"), family).unwrap();
        let on_node = |local| {
            routes.iter().map(move |route| {
                let mut route = Route::clone(route);
                for target in [&mut route.internal, &mut route.external] {
                    target.backends = target
                        .backends
                        .iter()
                        .map(|b| kubenet_core::route::Backend { address, local, ..*b })
                        .collect();
                }
                Arc::new(route)
            })
        };
        // Where its endpoint does not name the node, such as the API server's, it is here all the same.
        for local in [true, false] {
            replace(&datapath, &table(&lab, 1, on_node(local)));
            for to in [service(family, 1), node(&lab, family, NODE_PORT)] {
                for client in CLIENTS {
                    let case = format!("{client} to {to}, local={local}");
                    let tcp = lab.http_get(place(client), to, SOON).unwrap_or_else(|e| panic!("{case}: {e}"));
                    assert_eq!(tcp.backend, "node-a");
                    let udp =
                        lab.udp_ask(place(client), to, SOON).unwrap_or_else(|e| panic!("{case}, UDP: {e}"));
                    assert_eq!(udp.backend, "node-a");
                }
            }
        }
    }
}

#[test]
fn a_service_without_backends_refuses_or_drops() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = datapath(&lab);
    for &family in lab.families() {
        let mut routes = on_cluster_ip(&lab, family, 1, &[]);
        routes.extend(on_node_port(&lab, family, NODE_PORT, &[]));
        routes.extend(on_cluster_ip(&lab, family, 2, &[]).into_iter().map(|route| {
            let mut route = Route::clone(&route);
            route.internal.when_empty = WhenEmpty::Drop;
            route.external.when_empty = WhenEmpty::Drop;
            Arc::new(route)
        }));
        replace(&datapath, &table(&lab, 1, routes));
        for client in CLIENTS {
            for to in [service(family, 1), node(&lab, family, NODE_PORT)] {
                let tcp = lab.http_get(place(client), to, SOON);
                assert!(matches!(tcp, Err(RequestError::Refused)), "{client} to {to}: {tcp:?}");
                let udp = lab.udp_ask(place(client), to, SOON);
                assert!(matches!(udp, Err(RequestError::Refused)), "{client} to {to}, UDP: {udp:?}");
            }
            let short = Duration::from_millis(300);
            let dropped = lab.http_get(place(client), service(family, 2), short);
            assert!(matches!(dropped, Err(RequestError::TimedOut { .. })), "{client}: {dropped:?}");
            let dropped = lab.udp_ask(place(client), service(family, 2), short);
            assert!(matches!(dropped, Err(RequestError::TimedOut { .. })), "{client}, UDP: {dropped:?}");
        }
    }
    let metrics = block_on(datapath.metrics()).unwrap();
    assert!(metrics[&Metric::Rejected] > 0 && metrics[&Metric::DropNoLocalBackend] > 0, "{metrics:?}");
}

#[test]
fn external_policy_local_keeps_the_client_and_the_node() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = datapath(&lab);
    for &family in lab.families() {
        let local = |routes: Vec<Arc<Route>>, pods: &[&str]| -> Vec<Arc<Route>> {
            let external = backends(&lab, family, pods);
            routes
                .into_iter()
                .map(|route| {
                    let mut route = Route::clone(&route);
                    route.external.backends = Arc::clone(&external);
                    route.external.when_empty = WhenEmpty::Drop;
                    route.masquerade.outside = false;
                    Arc::new(route)
                })
                .collect()
        };
        let mut routes = local(on_node_port(&lab, family, NODE_PORT, &["here", "there"]), &["here"]);
        routes.extend(local(on_node_port(&lab, family, NODE_PORT + 1, &["there"]), &[]));
        replace(&datapath, &table(&lab, 1, routes));
        let outside = lab.address(&Place::Outside, family).unwrap();
        for _ in 0..8 {
            let answer = lab.http_get(Place::Outside, node(&lab, family, NODE_PORT), SOON).unwrap();
            assert_eq!((answer.backend.as_str(), answer.peer.ip()), ("here", outside));
        }
        let short = Duration::from_millis(300);
        let nobody = node(&lab, family, NODE_PORT + 1);
        assert!(matches!(lab.http_get(Place::Outside, nobody, short), Err(RequestError::TimedOut { .. })));
        assert_eq!(
            lab.http_get("client", nobody, SOON).unwrap().backend,
            "there",
            "inside, all backends count"
        );
    }
}

#[test]
fn backends_share_the_load() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = datapath(&lab);
    let pods = ["client", "here", "there"];
    replace(&datapath, &table(&lab, 1, on_cluster_ip(&lab, IpFamily::V4, 1, &pods)));
    for client in CLIENTS {
        let mut share: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..150 {
            let answer = lab.http_get(place(client), service(IpFamily::V4, 1), SOON).unwrap();
            *share.entry(answer.backend).or_default() += 1;
        }
        // 50 each; fewer than 20 happens once in ten million.
        assert!(share.len() == 3 && share.values().all(|n| *n >= 20), "{client}: {share:?}");
    }
}

#[test]
fn updates_under_load_lose_no_connection() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = datapath(&lab);
    let family = IpFamily::V4;
    let with = |revision: u64, pods: &[&str]| {
        let mut routes = on_cluster_ip(&lab, family, 1, pods);
        routes.extend(on_node_port(&lab, family, NODE_PORT, pods));
        table(&lab, revision, routes)
    };
    let sets: [&[&str]; 4] = [&["here"], &["there"], &["here", "there"], &["client", "there"]];
    let mut now = with(1, sets[0]);
    replace(&datapath, &now);
    let mut kept = lab.connect("client", service(family, 1), SOON).unwrap();
    kept.ask(SOON).unwrap();

    let stop = AtomicBool::new(false);
    let targets = [
        ("client", service(family, 1)),
        ("node", service(family, 1)),
        ("outside", node(&lab, family, NODE_PORT)),
    ];
    let results = std::thread::scope(|scope| {
        let end = Stop(&stop);
        let loads: Vec<_> = targets
            .map(|(from, to)| {
                scope.spawn({
                    let (lab, stop) = (&lab, &stop);
                    move || load(lab, from, to, stop)
                })
            })
            .into();
        let begin = Instant::now();
        let mut revision = 1;
        while begin.elapsed() < Duration::from_secs(4) {
            revision += 1;
            let next = with(revision, sets[revision as usize % sets.len()]);
            let report = block_on(datapath.apply(Arc::new(now.diff(&next)))).unwrap();
            assert!(report.failed.is_empty(), "{:?}", report.failed);
            now = next;
            std::thread::sleep(Duration::from_millis(2));
        }
        drop(end);
        eprintln!("{revision} updates");
        loads.into_iter().map(|l| l.join().unwrap()).collect::<Vec<_>>()
    });
    for ((from, _), (answers, failures)) in targets.iter().zip(results) {
        eprintln!("{from}: {answers} answers, {} failures", failures.len());
        assert!(answers > 50, "{from}: {answers}");
        assert!(failures.is_empty(), "{from}: {failures:?}");
    }
    assert_eq!(kept.ask(SOON).unwrap().backend, "here", "a connection outlives the changes of its Service");
}

#[test]
fn udp_flows_leave_a_backend_that_is_gone() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = datapath(&lab);
    for &family in lab.families() {
        for (client, to) in [("client", service(family, 1)), ("outside", node(&lab, family, NODE_PORT))] {
            let with = |pods: &[&str]| {
                let mut routes = on_cluster_ip(&lab, family, 1, pods);
                routes.extend(on_node_port(&lab, family, NODE_PORT, pods));
                table(&lab, 1, routes)
            };
            replace(&datapath, &with(&["there"]));
            let flow = lab.udp_flow(place(client), to).unwrap();
            assert_eq!(flow.ask(SOON).unwrap().backend, "there");
            replace(&datapath, &with(&["here", "there"]));
            for _ in 0..5 {
                assert_eq!(flow.ask(SOON).unwrap().backend, "there", "a new backend moves nobody");
            }
            replace(&datapath, &with(&["here"]));
            assert_eq!(flow.ask(SOON).unwrap().backend, "here");
            replace(&datapath, &with(&[]));
            assert!(flow.ask(SOON).is_err());
            replace(&datapath, &with(&["there"]));
            // The error of the last datagram may still be queued.
            let again = flow.ask(SOON).or_else(|_| flow.ask(SOON)).unwrap();
            assert_eq!(again.backend, "there");
        }
    }
}

#[test]
fn a_udp_flow_leaves_a_backend_that_left_this_frontend_only() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = datapath(&lab);
    let family = IpFamily::V4;
    // One Service port with two frontends, so that they share their backends.
    let with = |on_ip: &[&str], on_node: &[&str]| {
        let name = service_port("shared");
        let routes = on_cluster_ip(&lab, family, 1, on_ip)
            .into_iter()
            .chain(on_node_port(&lab, family, NODE_PORT, on_node))
            .map(|route| {
                let mut route = Route::clone(&route);
                route.service_port = name.clone();
                Arc::new(route)
            });
        table(&lab, 1, routes)
    };
    replace(&datapath, &with(&["there"], &["there"]));
    let on_ip = lab.udp_flow("client", service(family, 1)).unwrap();
    let on_node = lab.udp_flow("client", node(&lab, family, NODE_PORT)).unwrap();
    assert_eq!(on_ip.ask(SOON).unwrap().backend, "there");
    assert_eq!(on_node.ask(SOON).unwrap().backend, "there");
    replace(&datapath, &with(&["there"], &["here"]));
    assert_eq!(on_node.ask(SOON).unwrap().backend, "here");
    assert_eq!(on_ip.ask(SOON).unwrap().backend, "there");
    // Where the frontend has its backend still, a flow stays, whichever other one goes.
    replace(&datapath, &with(&["there"], &["here", "there"]));
    replace(&datapath, &with(&["there", "here"], &["here"]));
    replace(&datapath, &with(&["there"], &["here"]));
    for _ in 0..5 {
        assert_eq!(on_node.ask(SOON).unwrap().backend, "here");
        assert_eq!(on_ip.ask(SOON).unwrap().backend, "there");
    }
}

#[test]
fn a_draining_datapath_serves_what_it_has_and_takes_nothing_new() {
    let Some((lab, _servers)) = start() else { return };
    let datapath = datapath(&lab);
    let family = IpFamily::V4;
    let routes = table(&lab, 1, on_cluster_ip(&lab, family, 1, &["there"]));
    replace(&datapath, &routes);
    let mut open = lab.connect("client", service(family, 1), SOON).unwrap();
    open.ask(SOON).unwrap();
    let mut second = lab.connect(Place::Outside, service(family, 1), SOON).unwrap();
    second.ask(SOON).unwrap();
    assert_eq!(block_on(datapath.drain()).unwrap().flows, 2);
    open.ask(SOON).unwrap();
    second.ask(SOON).unwrap();
    let short = Duration::from_millis(300);
    for client in CLIENTS {
        assert!(lab.http_get(place(client), service(family, 1), short).is_err(), "{client}");
    }
    drop(second);
    let begin = Instant::now();
    while block_on(datapath.drain()).unwrap().flows != 1 {
        assert!(begin.elapsed() < SOON, "{:?}", block_on(datapath.drain()));
        std::thread::sleep(Duration::from_millis(10));
    }
    // Told to serve again.
    replace(&datapath, &routes);
    assert_eq!(lab.http_get("client", service(family, 1), SOON).unwrap().backend, "there");
    open.ask(SOON).unwrap();
}

#[test]
fn one_instance_takes_over_from_another_under_load() {
    take_over(AttachMode::Auto);
}

#[test]
fn filters_serve_and_hand_over_as_links_do() {
    take_over(AttachMode::Clsact);
}

fn take_over(mode: AttachMode) {
    let Some((lab, _servers)) = start() else { return };
    let datapath = |lab: &Lab| {
        let datapath = builder(lab).attach_mode(mode).build().unwrap();
        for interface in lab.node(Node::A).pod_interfaces() {
            block_on(datapath.attach_pod(&interface)).unwrap();
        }
        datapath
    };
    let family = IpFamily::V4;
    let routes = || {
        let mut routes = on_cluster_ip(&lab, family, 1, &["here", "there"]);
        routes.extend(on_node_port(&lab, family, NODE_PORT, &["here", "there"]));
        table(&lab, 1, routes)
    };
    let mut old = datapath(&lab);
    replace(&old, &routes());
    let stop = AtomicBool::new(false);
    let targets = [
        ("client", service(family, 1)),
        ("node", service(family, 1)),
        ("outside", node(&lab, family, NODE_PORT)),
    ];
    let results = std::thread::scope(|scope| {
        let end = Stop(&stop);
        let loads: Vec<_> = targets
            .map(|(from, to)| {
                scope.spawn({
                    let (lab, stop) = (&lab, &stop);
                    move || load(lab, from, to, stop)
                })
            })
            .into();
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(300));
            let mut open = lab.connect("client", service(family, 1), SOON).unwrap();
            let before = open.ask(SOON).unwrap();
            let new = datapath(&lab);
            replace(&new, &routes());
            block_on(old.drain()).unwrap();
            assert_eq!(open.ask(SOON).unwrap().backend, before.backend);
            drop(open);
            let begin = Instant::now();
            while block_on(old.drain()).unwrap().flows > 0 && begin.elapsed() < Duration::from_secs(3) {
                std::thread::sleep(Duration::from_millis(20));
            }
            assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", block_on(old.drain()));
            drop(std::mem::replace(&mut old, new));
        }
        drop(end);
        loads.into_iter().map(|l| l.join().unwrap()).collect::<Vec<_>>()
    });
    for ((from, _), (answers, failures)) in targets.iter().zip(results) {
        eprintln!("{from}: {answers} answers, {} failures", failures.len());
        assert!(failures.is_empty(), "{from}: {failures:?}");
    }
}
