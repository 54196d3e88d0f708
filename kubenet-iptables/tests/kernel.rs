//! Rules in the kernel: written, read back, repaired and removed. Needs root.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step fails the test")]

mod common;

use std::sync::Arc;

use common::*;
use futures::{StreamExt, executor::block_on};
use kubenet_core::{
    datapath::{Close, Datapath, DatapathEvent, DatapathExt, ErrorKind},
    model::{Algorithm, IpFamily, Protocol},
    route::{
        Backend, BackendState, Frontend, FrontendKind, Masquerade, Revision, Route, RouteDelta,
        ServicePortName, Target, WhenEmpty,
    },
};
use kubenet_iptables::IptablesDatapath;
use kubenet_testkit::lab::Node;

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
                // Shares that are no round numbers.
                let weights = [port(3 * n), port(7)];
                let backends = pods.iter().zip(weights);
                let backends = backends.map(|(pod, weight)| Backend { weight, ..world.backend(pod, V4) });
                Target { backends: backends.collect(), when_empty }
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
        let xlb = "KUBE-XLB-XPGD46QRK7WJZT7O";
        for rule in [
            // kube-proxy leads all of INPUT to this chain; our answers for node ports are in it.
            ["-N", "KUBE-NODEPORTS"].as_slice(),
            &["-N", "KUBE-PROXY-CANARY"],
            &["-t", "nat", "-N", "KUBE-PROXY-CANARY"],
            &["-N", "KUBE-FIREWALL"],
            &["-N", "KUBE-PROXY-FIREWALL"],
            &["-A", "KUBE-PROXY-FIREWALL", "-d", "192.0.2.9", "-p", "tcp", "-j", "DROP"],
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
            &["-A", "FORWARD", "-m", "conntrack", "--ctstate", "NEW", "-j", "KUBE-PROXY-FIREWALL"],
            &["-t", "nat", "-N", "KUBE-SERVICES"],
            &["-t", "nat", "-N", svc],
            // Up to 1.24: a Service of type LoadBalancer with local policy.
            &["-t", "nat", "-N", xlb],
            &["-t", "nat", "-A", xlb, "-s", "10.244.0.0/16", "-j", svc],
            &["-t", "nat", "-A", "KUBE-SERVICES", "-d", "192.0.2.9", "-p", "tcp", "-j", xlb],
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
        for gone in ["KUBE-PROXY-FIREWALL", "KUBE-PROXY-CANARY", xlb] {
            assert!(!rules.contains(gone), "{gone}: {rules}");
        }
        assert!(rules.contains("KUBE-FIREWALL"), "the kubelet's");
        assert!(rules.contains(&format!("-A OTHER -j {svc}")) && !rules.contains("192.0.2.1"), "{rules}");
        let error = block_on(datapath.close(Close::Remove)).unwrap_err();
        assert!(error.message().contains(svc), "{error}");
        world.iptables(&["-t", "nat", "-F", "OTHER"]);
        block_on(datapath.close(Close::Remove)).unwrap();
        let rules = world.rules();
        let left: Vec<_> = rules.lines().filter(|line| line.contains("KUBE-")).collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(left[0].starts_with(":KUBE-FIREWALL "));
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
        let mut maglev = world.service(&["a1"]).remove(0);
        maglev.frontend.port = port(81);
        maglev.algorithm = Algorithm::Maglev;
        let mut routes = world.service(&["a1"]);
        routes.push(maglev);
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
                        weight: std::num::NonZeroU16::MIN,
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
        // What keeps other ports out of a chain that is for one.
        let rules = world.rules();
        let guard = rules.lines().find(|line| line.starts_with("-A KUBE-NET-") && line.contains("! --dport"));
        let words: Vec<_> = guard.unwrap().split(' ').skip(1).collect();
        world.iptables(&[&["-t", "nat", "-D"], &words[..]].concat());
        assert!(block_on(datapath.drift(&second)).unwrap().is_some());
        block_on(datapath.replace(Arc::clone(&second))).unwrap();
        assert_eq!(block_on(datapath.drift(&second)).unwrap(), None);
        assert!(world.rules().contains(guard.unwrap()));
        block_on(datapath.close(Close::Remove)).unwrap();
        assert!(!world.rules().contains("KUBE"));
    }
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
