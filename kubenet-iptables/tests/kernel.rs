//! Rules in the kernel, and packets through them. Needs root.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step fails the test")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use common::*;
use futures::{StreamExt, executor::block_on};
use kubenet_core::{
    datapath::{Close, Datapath, DatapathEvent, DatapathExt, ErrorKind},
    model::{IpFamily, Protocol},
    route::{
        Backend, BackendState, Frontend, FrontendKind, Masquerade, Revision, Route, RouteDelta,
        ServicePortName, Target, WhenEmpty,
    },
};
use kubenet_iptables::{IptablesDatapath, Variant};
use kubenet_testkit::lab::{Node, Place};

const V4: IpFamily = IpFamily::V4;

#[test]
fn what_is_programmed_is_read_back_and_rewriting_it_changes_nothing() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let datapath = world.start();
        assert_eq!(datapath.name(), format!("iptables-{}", world.word()));
        let mut routes = world.service(&["a1", "b1"]);
        // Sides that differ, and names that are no names.
        let odd = ServicePortName {
            namespace: "x\" -j ACCEPT\n-A INPUT -j DROP\nCOMMIT".into(),
            service: "é ' \\ %".repeat(60).into(),
            port: "".into(),
        };
        for (n, internal, external) in
            [(1, vec!["a1", "b1"], vec!["a1"]), (2, vec!["b1"], vec![]), (3, vec![], vec![])]
        {
            let target = |pods: Vec<&str>, when_empty| {
                let backends = pods.iter().map(|pod| world.backend(pod, V4)).collect::<Vec<_>>();
                Target { backends: backends.into(), when_empty }
            };
            let frontend = Frontend::node_port(V4, port(31000 + n), Protocol::Tcp);
            let internal = target(internal, WhenEmpty::Reject);
            let masquerade = Masquerade { pods: false, node: true, outside: false };
            let mut route = Route::new(frontend, FrontendKind::NodePort, odd.clone(), internal, masquerade);
            route.external = target(external, WhenEmpty::Drop);
            routes.push(route);
        }
        let table = world.table(41, routes);
        let report = block_on(datapath.replace(Arc::clone(&table))).unwrap();
        assert_eq!((report.revision, report.upserted, report.failed.len()), (Revision(41), table.len(), 0));
        assert_eq!(block_on(datapath.read()).unwrap(), *table);
        let rules = world.rules();
        block_on(datapath.replace(Arc::clone(&table))).unwrap();
        assert_eq!(world.rules(), rules);

        // Another instance, as after a restart, finds and keeps them.
        block_on(datapath.close(Close::Keep)).unwrap();
        assert_eq!(world.rules(), rules);
        let next = world.start();
        assert_eq!(block_on(next.read()).unwrap(), *table);
        block_on(next.replace(Arc::clone(&table))).unwrap();
        assert_eq!(world.rules(), rules);
        block_on(next.close(Close::Remove)).unwrap();
        assert!(!world.rules().contains("KUBE"));
    }
}

#[test]
fn a_stale_state_is_replaced_and_rules_of_others_are_not_touched() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let foreign = [
            ["-t", "nat", "-N", "OTHER"].as_slice(),
            &["-t", "nat", "-A", "PREROUTING", "-j", "OTHER"],
            &["-t", "nat", "-N", "KUBE-KUBELET-CANARY"],
            &["-t", "filter", "-A", "INPUT", "-m", "comment", "--comment", "a \"b\" c", "-j", "ACCEPT"],
        ];
        foreign.iter().for_each(|rule| drop(world.iptables(rule)));
        let before = world.rules();
        // What another program with our names may have left: two jumps, a chain of a Service, a foreign rule.
        for stale in [
            ["-t", "nat", "-N", "KUBE-SERVICES"].as_slice(),
            &["-t", "nat", "-N", "KUBE-SVC-AAAAAAAAAAAAAAAA"],
            &["-t", "nat", "-A", "KUBE-SVC-AAAAAAAAAAAAAAAA", "-j", "LOG"],
            &["-t", "nat", "-A", "KUBE-SERVICES", "-p", "tcp", "-j", "KUBE-SVC-AAAAAAAAAAAAAAAA"],
            &["-t", "nat", "-A", "PREROUTING", "-j", "KUBE-SERVICES"],
            &["-t", "nat", "-A", "PREROUTING", "-j", "KUBE-SERVICES"],
        ] {
            world.iptables(stale);
        }
        let datapath = world.start();
        let table = world.table(1, world.service(&["b1"]));
        block_on(datapath.replace(Arc::clone(&table))).unwrap();
        let rules = world.rules();
        assert!(!rules.contains("AAAAAAAA"));
        let jumps = rules.lines().filter(|l| l.starts_with("-A PREROUTING") && l.ends_with("KUBE-SERVICES"));
        assert_eq!(jumps.count(), world.lab.families().len(), "{rules}");
        assert_eq!(world.ask("a1", cluster_ip(V4)).0, "b1");

        // Somebody flushes a chain or removes a jump: seen, and repaired.
        let to_ports =
            ["-t", "nat", "-d", &world.address(Node::A, V4).to_string(), "-m", "comment", "--comment"];
        let to_ports = [&to_ports[..], &["kubernetes service nodeports", "-j", "KUBE-NODEPORTS"]].concat();
        world.iptables(&[&["-D", "KUBE-SERVICES"][..], &to_ports].concat());
        assert!(block_on(datapath.drift(&table)).unwrap().is_some_and(|d| d.upserts.len() == 2));
        world.iptables(&[&["-A", "KUBE-SERVICES"][..], &to_ports].concat());
        assert_eq!(block_on(datapath.drift(&table)).unwrap(), None);
        world.iptables(&["-t", "nat", "-F", "KUBE-NODEPORTS"]);
        assert!(block_on(datapath.drift(&table)).unwrap().is_some_and(|d| d.upserts.len() == 2));
        world.iptables(&["-t", "nat", "-F", "PREROUTING"]);
        assert!(block_on(datapath.drift(&table)).unwrap().is_some_and(|d| d.upserts.len() == 4));
        block_on(datapath.replace(Arc::clone(&table))).unwrap();
        assert_eq!(block_on(datapath.drift(&table)).unwrap(), None);
        world.iptables(&["-t", "nat", "-A", "PREROUTING", "-j", "OTHER"]);

        block_on(datapath.close(Close::Remove)).unwrap();
        // The built-in chains of a table exist once it was used.
        let left: Vec<_> =
            world.rules().lines().filter(|l| !before.contains(*l)).map(str::to_owned).collect();
        assert!(
            left.iter().all(|l| l.starts_with(['*', ':']) && !l.contains("KUBE") || l == "COMMIT"),
            "{left:?}"
        );
        assert!(before.lines().all(|line| world.rules().contains(line)));
    }
}

#[test]
fn a_kube_proxys_rules_are_taken_over_and_a_chain_that_others_use_is_named() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let svc = "KUBE-SVC-XPGD46QRK7WJZT7O";
        for rule in [
            // kube-proxy leads all of INPUT to this chain; our answers for node ports are in it.
            ["-N", "KUBE-NODEPORTS"].as_slice(),
            &["-N", "KUBE-PROXY-FIREWALL"],
            &[
                "-A",
                "INPUT",
                "-m",
                "comment",
                "--comment",
                "kubernetes health check service ports",
                "-j",
                "KUBE-NODEPORTS",
            ],
            &["-A", "INPUT", "-m", "conntrack", "--ctstate", "NEW", "-j", "KUBE-PROXY-FIREWALL"],
            &["-t", "nat", "-N", svc],
            &["-t", "nat", "-A", svc, "-p", "tcp", "-j", "DNAT", "--to-destination", "192.0.2.1:80"],
            &["-t", "nat", "-N", "OTHER"],
            &["-t", "nat", "-A", "OTHER", "-j", svc],
        ] {
            world.iptables(rule);
        }
        let datapath = world.start();
        let table = world.table(1, world.service(&["b1"]));
        block_on(datapath.replace(Arc::clone(&table))).unwrap();
        assert_eq!(block_on(datapath.drift(&table)).unwrap(), None);
        let rules = world.rules();
        assert!(!rules.contains("health check service ports"));
        assert!(rules.contains("-j KUBE-PROXY-FIREWALL"), "not ours");
        assert!(rules.contains(&format!("-A OTHER -j {svc}")) && !rules.contains("192.0.2.1"), "{rules}");
        let error = block_on(datapath.close(Close::Remove)).unwrap_err();
        assert!(error.message().contains(svc), "{error}");
        world.iptables(&["-t", "nat", "-F", "OTHER"]);
        block_on(datapath.close(Close::Remove)).unwrap();
        assert!(!world.rules().contains("KUBE-S"));
    }
}

#[test]
fn a_backend_that_is_not_known_to_be_here_reaches_its_service() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let datapath = world.start();
        // As endpoints without a node name are.
        let service = |pods: &[&str]| {
            let mut routes = world.service(pods);
            for route in &mut routes {
                let backends = route.internal.backends.iter().map(|b| Backend { local: false, ..*b });
                route.internal.backends = backends.collect();
                route.external = route.internal.clone();
            }
            routes
        };
        block_on(datapath.replace(world.table(1, service(&["a1"])))).unwrap();
        assert_eq!(world.ask("a1", cluster_ip(V4)), ("a1".into(), world.address(Node::A, V4)));
        block_on(datapath.replace(world.table(2, service(&["a1", "a2", "b1"])))).unwrap();
        for pod in ["a1", "a2"] {
            for _ in 0..30 {
                let (backend, peer) = world.ask(pod, cluster_ip(V4));
                assert_eq!((backend != pod, peer), (true, world.address(pod, V4)));
            }
        }
        block_on(datapath.close(Close::Remove)).unwrap();
    }
}

#[test]
fn an_update_of_which_somebody_removed_a_chain_heals_itself() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let datapath = world.start();
        let table = world.table(1, world.service(&["a1", "b1"]));
        block_on(datapath.replace(Arc::clone(&table))).unwrap();
        world.iptables(&["-t", "nat", "-F"]);
        world.iptables(&["-t", "nat", "-X"]);
        let next = world.table(2, world.service(&["b1"]));
        block_on(datapath.apply(Arc::new(table.diff(&next)))).unwrap();
        assert_eq!(block_on(datapath.read()).unwrap(), *next);
        assert_eq!(world.ask("a1", cluster_ip(V4)).0, "b1");
        block_on(datapath.close(Close::Remove)).unwrap();
    }
}

#[test]
fn updates_go_from_revision_to_revision_only() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let datapath = world.start();
        let mut events = datapath.events();
        let empty = Arc::new(RouteDelta::empty(Revision(0), Revision(1)));
        assert_eq!(block_on(datapath.apply(empty)).unwrap_err().kind(), ErrorKind::Conflict);
        let first = world.table(1, world.service(&["b1"]));
        block_on(datapath.replace(Arc::clone(&first))).unwrap();
        let wrong = Arc::new(RouteDelta::empty(Revision(7), Revision(8)));
        assert_eq!(block_on(datapath.apply(wrong)).unwrap_err().kind(), ErrorKind::Conflict);
        let mut sctp = world.service(&["a1"]).remove(0);
        sctp.frontend.protocol = Protocol::Sctp;
        let mut routes = world.service(&["a1"]);
        routes.push(sctp);
        let second = world.table(2, routes);
        let report = block_on(datapath.apply(Arc::new(first.diff(&second)))).unwrap();
        assert_eq!(report.failed.len(), 1);
        assert_eq!(report.failed[0].error.kind(), ErrorKind::Unsupported);
        assert!(report.failed[0].error.message().contains("demo/web:http"), "{}", report.failed[0].error);
        let moved = Arc::new(RouteDelta::empty(Revision(2), Revision(3)));
        block_on(datapath.apply(moved)).unwrap();
        assert_eq!(block_on(datapath.read()).unwrap().revision(), Revision(3));
        assert_eq!(world.ask("a2", cluster_ip(V4)).0, "a1");
        block_on(datapath.close(Close::Remove)).unwrap();
        assert_eq!(block_on(datapath.read()).unwrap_err().kind(), ErrorKind::Unavailable);
        let kinds: Vec<_> = block_on(events.by_ref().collect::<Vec<_>>());
        assert!(matches!(kinds[0], DatapathEvent::Applied { revision: Revision(1) }), "{kinds:?}");
        assert!(matches!(kinds[1], DatapathEvent::RouteFailed { .. }), "{kinds:?}");
        assert!(matches!(kinds.last(), Some(DatapathEvent::Closed)), "{kinds:?}");
    }
}

#[test]
fn draining_takes_no_new_flows_and_keeps_those_it_has() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let datapath = world.start();
        let table = world.table(1, world.service(&["b1"]));
        block_on(datapath.replace(Arc::clone(&table))).unwrap();
        let node = world.address(Node::A, V4);
        let mut plain = world.lab.connect("a1", cluster_ip(V4), SECOND).unwrap();
        let mut masqueraded = world.lab.connect(Place::Outside, (node, NODE_PORT).into(), SECOND).unwrap();
        let mut from_node = world.lab.connect(Node::A, cluster_ip(V4), SECOND).unwrap();
        let mut all = |when: &str| {
            assert_eq!(plain.ask(SECOND).expect(when).peer.ip(), world.address("a1", V4), "{when}");
            assert_eq!(masqueraded.ask(SECOND).expect(when).peer.ip(), node, "{when}");
            assert_eq!(from_node.ask(SECOND).expect(when).peer.ip(), node, "{when}");
        };
        all("before");
        let status = block_on(datapath.drain()).unwrap();
        assert_eq!(status.flows, 3, "these end with the last rule that uses connection tracking");
        all("while draining");
        assert!(world.lab.http_get("a2", cluster_ip(V4), SHORT).unwrap_err().is_timed_out());

        // Somebody else's rule keeps connection tracking at work: nothing ends with us.
        world.iptables(&[
            "-t",
            "filter",
            "-A",
            "FORWARD",
            "-m",
            "conntrack",
            "--ctstate",
            "ESTABLISHED",
            "-j",
            "ACCEPT",
        ]);
        assert_eq!(block_on(datapath.drain()).unwrap().flows, 0);
        block_on(datapath.close(Close::Remove)).unwrap();
        assert!(!world.rules().contains("KUBE"));
        all("after close");
    }
}

#[test]
fn a_drained_datapath_leaves_its_successor_alone() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let table = world.table(1, world.service(&["b1"]));
        let first = world.start();
        block_on(first.replace(Arc::clone(&table))).unwrap();
        let mut connection = world.lab.connect("a1", cluster_ip(V4), SECOND).unwrap();
        connection.ask(SECOND).unwrap();
        let second = world.start();
        let conflict = block_on(second.replace(Arc::clone(&table))).unwrap_err();
        assert_eq!(conflict.kind(), ErrorKind::Conflict);
        assert!(conflict.message().contains("chain_prefix"), "{conflict}");
        // Another prefix is another place.
        let beside = world.builder().chain_prefix("OTHER").build().unwrap();
        block_on(beside.replace(Arc::clone(&table))).unwrap();
        block_on(beside.close(Close::Remove)).unwrap();
        assert!(!world.rules().contains("OTHER"));

        block_on(first.drain()).unwrap();
        block_on(second.replace(Arc::clone(&table))).unwrap();
        assert_eq!(block_on(first.drain()).unwrap().flows, 0);
        assert_eq!(block_on(first.replace(Arc::clone(&table))).unwrap_err().kind(), ErrorKind::Conflict);
        block_on(first.close(Close::Remove)).unwrap();
        assert_eq!(block_on(second.read()).unwrap(), *table);
        assert_eq!(world.ask("a2", cluster_ip(V4)).0, "b1");
        connection.ask(SECOND).unwrap();
        // A third, after the second went without saying goodbye.
        drop(second);
        let third = world.start();
        block_on(third.replace(Arc::clone(&table))).unwrap();
        connection.ask(SECOND).unwrap();
        block_on(third.close(Close::Remove)).unwrap();
        assert!(!world.rules().contains("KUBE"));
    }
}

#[test]
fn service_traffic_passes_a_forward_policy_of_drop() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        world.iptables(&["-P", "FORWARD", "DROP"]);
        let datapath = world.start();
        block_on(datapath.replace(world.table(1, world.service(&["b1"])))).unwrap();
        let node = world.address(Node::A, V4);
        assert_eq!(world.ask(Place::Outside, (node, NODE_PORT).into()), ("b1".into(), node));
        block_on(datapath.replace(world.table(2, world.service(&["a1"])))).unwrap();
        assert_eq!(world.ask("a1", cluster_ip(V4)), ("a1".into(), node), "hairpin");
        block_on(datapath.close(Close::Remove)).unwrap();
    }
}

#[test]
fn udp_flows_to_what_is_gone_are_cut_and_others_are_not() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        for &family in world.lab.families() {
            let datapath = world.start();
            let tables: Vec<_> = [["b1"].as_slice(), &["a2"], &[], &["b1"]]
                .into_iter()
                .zip(1..)
                .map(|(pods, revision)| world.table(revision, world.service(pods)))
                .collect();
            let flow = world.lab.udp_flow("a1", cluster_ip(family)).unwrap();
            // Before there is a Service: the flow is recorded as it is.
            assert!(flow.ask(SHORT).is_err());
            block_on(datapath.replace(Arc::clone(&tables[0]))).unwrap();
            assert_eq!(flow.ask(SECOND).unwrap().backend, "b1", "a frontend is added");
            let step = |from: usize, to: usize| {
                block_on(datapath.apply(Arc::new(tables[from].diff(&tables[to])))).unwrap();
            };
            step(0, 1);
            assert_eq!(flow.ask(SECOND).unwrap().backend, "a2", "a backend is replaced");
            step(1, 2);
            assert!(flow.ask(SECOND).unwrap_err().is_refused(), "no backend is left");
            step(2, 3);
            assert_eq!(flow.ask(SECOND).unwrap().backend, "b1", "a backend is back");
            let direct = world.lab.udp_flow("a1", (world.address("b1", family), PORT).into()).unwrap();
            assert_eq!(direct.ask(SECOND).unwrap().backend, "b1");
            let listed =
                |what: &str| world.run("conntrack", &["-L", "-f", what, "-p", "udp"]).lines().count();
            let words = match family {
                IpFamily::V4 => "ipv4",
                IpFamily::V6 => "ipv6",
            };
            assert_eq!(listed(words), 2);
            block_on(datapath.apply(Arc::new(tables[3].diff(&world.table(5, Vec::new()))))).unwrap();
            assert_eq!(listed(words), 1, "the flow that is not to a frontend stays");
            block_on(datapath.close(Close::Remove)).unwrap();
        }
    }
}

#[test]
fn many_routes_are_programmed_and_read_back() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let datapath = world.start();
        let routes = |shift: u16| {
            (0..500u16).map(move |i| {
                let frontend =
                    Frontend::ip([10, 97, (i >> 8) as u8, i as u8].into(), port(80), Protocol::Tcp);
                let name = ServicePortName { service: format!("s{i}").into(), ..name() };
                let backends: Vec<_> = (0..4)
                    .map(|n| Backend {
                        address: [10, 245, ((i + shift) >> 8) as u8, (i + shift) as u8].into(),
                        port: port(1000 + n),
                        local: false,
                        state: BackendState::Ready,
                    })
                    .collect();
                let target = Target { backends: backends.into(), when_empty: WhenEmpty::Drop };
                Route::new(frontend, FrontendKind::ClusterIp, name, target, Masquerade::NEVER)
            })
        };
        let first = world.table(1, routes(0).collect());
        block_on(datapath.replace(Arc::clone(&first))).unwrap();
        assert_eq!(block_on(datapath.read()).unwrap(), *first);
        let second = world.table(2, routes(3).skip(7).collect());
        block_on(datapath.apply(Arc::new(first.diff(&second)))).unwrap();
        assert_eq!(block_on(datapath.read()).unwrap(), *second);
        block_on(datapath.close(Close::Remove)).unwrap();
        assert!(!world.rules().contains("KUBE"));
    }
}

#[test]
fn new_flows_never_fail_while_endpoints_change() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let datapath = world.start();
        let mut table = world.table(1, world.service(&["a2", "b1"]));
        block_on(datapath.replace(Arc::clone(&table))).unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let client = scope.spawn(|| {
                let mut asked = 0;
                while !done.load(Ordering::Relaxed) {
                    world.ask("a1", cluster_ip(V4));
                    asked += 1;
                }
                asked
            });
            let sets = [["a2"].as_slice(), &["b1"], &["a2", "b1"]];
            for (n, pods) in (2..).zip(sets.into_iter().cycle().take(24)) {
                let next = world.table(n, world.service(pods));
                block_on(datapath.apply(Arc::new(table.diff(&next)))).unwrap();
                table = next;
            }
            done.store(true, Ordering::Relaxed);
            assert!(client.join().unwrap() > 20);
        });
        block_on(datapath.close(Close::Remove)).unwrap();
    }
}

#[test]
fn a_swap_between_the_variants_cuts_nothing() {
    let Some(world) = world(Variant::Auto) else { return };
    let table = world.table(1, world.service(&["a2", "b1"]));
    let start = |variant| world.builder().variant(variant).build().unwrap();
    let mut current = start(Variant::Legacy);
    block_on(current.replace(Arc::clone(&table))).unwrap();
    let node = world.address(Node::A, V4);
    let outside = || (node, NODE_PORT).into();
    let mut old = vec![
        world.lab.connect("a1", cluster_ip(V4), SECOND).unwrap(),
        world.lab.connect(Place::Outside, outside(), SECOND).unwrap(),
    ];
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                world.ask("a1", cluster_ip(V4));
                world.ask(Place::Outside, outside());
            }
        });
        for variant in [Variant::Nft, Variant::Legacy].into_iter().cycle().take(6) {
            let next = start(variant);
            block_on(next.replace(Arc::clone(&table))).unwrap();
            assert_eq!(block_on(current.drain()).unwrap().flows, 0, "the other variant tracks");
            block_on(current.close(Close::Remove)).unwrap();
            current = next;
            for connection in &mut old {
                connection.ask(SECOND).unwrap();
            }
            old.push(world.lab.connect(Place::Outside, outside(), SECOND).unwrap());
        }
        done.store(true, Ordering::Relaxed);
        client.join().unwrap();
    });
    block_on(current.close(Close::Remove)).unwrap();
    assert!(!world.rules().contains("KUBE"));
}

#[test]
fn datapaths_are_made_of_checked_settings() {
    for prefix in ["", "kube", "TOOLONGX", "A-B", "A B"] {
        let error = IptablesDatapath::builder().chain_prefix(prefix).build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.message().contains("chain_prefix"), "{error}");
    }
    assert_eq!(IptablesDatapath::builder().families([]).probe().unwrap_err().kind(), ErrorKind::InvalidInput);
    let nowhere = IptablesDatapath::builder().network_namespace("/run/netns/kubenet-there-is-none");
    assert_eq!(nowhere.build().unwrap_err().kind(), ErrorKind::InvalidInput);
}
