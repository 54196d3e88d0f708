//! Clients that stay with their backends, with real packets on both variants. Needs root.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step fails the test")]

mod common;

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use common::{VARIANTS, World, cluster_ip, programs::Programs, world};
use futures::executor::block_on;
use kubenet_core::{
    datapath::{Capabilities, Close, Datapath, ErrorKind, Feature},
    model::{Affinity, IpFamily},
    route::Route,
};
use kubenet_iptables::IptablesDatapath;

const PODS: [&str; 3] = ["a1", "a2", "b1"];

fn sticky(world: &World, pods: &[&str]) -> Vec<Route> {
    let mut routes = world.service(pods);
    for route in &mut routes {
        route.affinity = Some(Affinity::default());
    }
    routes
}

/// Who answers a client, eight times: three backends that are picked at random agree once in two thousand runs.
fn answers(world: &World, from: &str, family: IpFamily) -> String {
    let (first, _) = world.ask(from, cluster_ip(family));
    for _ in 1..8 {
        assert_eq!(world.ask(from, cluster_ip(family)).0, first, "{from} moved");
    }
    first
}

/// The names of the lists of the Service's backends of IPv4 over TCP, by their addresses.
fn lists(rules: &str) -> BTreeMap<String, String> {
    let mut lists = BTreeMap::new();
    for line in rules.lines().filter(|line| line.contains("-p tcp") && line.contains("-m recent")) {
        let after = |option| line.split(option).nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
        let backend = after("--to-destination ");
        if !backend.starts_with('[') {
            lists.insert(backend.to_owned(), after("--name ").to_owned());
        }
    }
    lists
}

#[test]
fn clients_stay_while_rules_are_rewritten_and_restarted() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let datapath = world.start();
        block_on(datapath.replace(world.table(1, sticky(&world, &PODS)))).unwrap();
        let families = world.lab.families().to_vec();
        let before: Vec<_> = families.iter().map(|family| answers(&world, "a1", *family)).collect();
        let stay = |pods: &[&str], revision| {
            block_on(datapath.replace(world.table(revision, sticky(&world, pods)))).unwrap();
            for (family, backend) in families.iter().zip(&before) {
                assert_eq!(answers(&world, "a1", *family), *backend, "{variant:?}, {family}, {pods:?}");
            }
        };
        // The chains are written anew when another endpoint goes or comes, and when the datapath starts again.
        let chosen: Vec<_> = PODS.into_iter().filter(|pod| before.iter().any(|b| b == pod)).collect();
        stay(&chosen, 2);
        stay(&PODS, 3);
        let table = world.table(3, sticky(&world, &PODS));
        assert_eq!(block_on(datapath.read()).unwrap(), *table);
        block_on(datapath.close(Close::Keep)).unwrap();
        let next = world.start();
        assert_eq!(block_on(next.read()).unwrap(), *table);
        block_on(next.replace(table)).unwrap();
        // From one to several: the only backend noted its clients, too.
        block_on(next.replace(world.table(4, sticky(&world, &["b1"])))).unwrap();
        for family in &families {
            assert_eq!(answers(&world, "a2", *family), "b1");
        }
        block_on(next.replace(world.table(5, sticky(&world, &PODS)))).unwrap();
        for family in &families {
            assert_eq!(answers(&world, "a2", *family), "b1");
        }
        block_on(next.close(Close::Remove)).unwrap();
        assert!(!world.rules().contains("KUBE-"));
    }
}

/// As kube-proxy writes them: a chain for each backend, `--rcheck` before the choice and `--set` in its chain.
fn rules_of_kube_proxy(world: &World, lists: &BTreeMap<String, String>) -> String {
    let service = cluster_ip(IpFamily::V4).ip();
    let mask = "--mask 255.255.255.255 --rsource";
    let mut text = "*nat\n".to_owned();
    for chain in ["SERVICES", "SVC-XRY76EGRC3BSCIIJ", "MARK-MASQ", "POSTROUTING"] {
        writeln!(text, ":KUBE-{chain} - [0:0]").unwrap();
    }
    for list in lists.values() {
        writeln!(text, ":{list} - [0:0]").unwrap();
    }
    writeln!(text, "-I PREROUTING -j KUBE-SERVICES").unwrap();
    writeln!(text, "-I POSTROUTING -j KUBE-POSTROUTING").unwrap();
    writeln!(text, "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000").unwrap();
    writeln!(text, "-A KUBE-POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE --random-fully").unwrap();
    writeln!(text, "-A KUBE-SERVICES -d {service}/32 -p tcp --dport 80 -j KUBE-SVC-XRY76EGRC3BSCIIJ")
        .unwrap();
    let of_service = "-A KUBE-SVC-XRY76EGRC3BSCIIJ -m comment --comment \"demo/web:http -> ";
    for (backend, list) in lists {
        let check = format!("-m recent --rcheck --seconds 10800 --reap --name {list} {mask}");
        writeln!(text, "{of_service}{backend}\" {check} -j {list}").unwrap();
    }
    for (left, (backend, list)) in (1..=lists.len()).rev().zip(lists) {
        let chance = format!("-m statistic --mode random --probability {:.11}", 1.0 / left as f64);
        writeln!(text, "{of_service}{backend}\" {chance} -j {list}").unwrap();
        let itself = backend.split(':').next().unwrap();
        writeln!(text, "-A {list} -s {itself}/32 -j KUBE-MARK-MASQ").unwrap();
        let set = format!("-m comment --comment \"demo/web:http\" -m recent --set --name {list} {mask}");
        writeln!(text, "-A {list} -p tcp {set} -m tcp -j DNAT --to-destination {backend}").unwrap();
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text + "COMMIT\n").unwrap();
    let program = format!("iptables-{}-restore", world.word());
    world.run(&program, &["--noflush", file.path().to_str().unwrap()])
}

#[test]
fn clients_of_kube_proxy_stay_when_its_rules_are_taken_over() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let datapath = world.start();
        let table = world.table(1, sticky(&world, &PODS));
        block_on(datapath.replace(table.clone())).unwrap();
        let lists = lists(&world.rules());
        assert_eq!(lists.len(), PODS.len(), "{lists:?}");
        block_on(datapath.close(Close::Remove)).unwrap();

        rules_of_kube_proxy(&world, &lists);
        let clients = ["a1", "a2"];
        let before = clients.map(|client| answers(&world, client, IpFamily::V4));
        let datapath = world.start();
        block_on(datapath.replace(table.clone())).unwrap();
        assert!(world.rules().contains("--update") && !world.rules().contains("--rcheck"));
        for (client, backend) in clients.iter().zip(&before) {
            assert_eq!(answers(&world, client, IpFamily::V4), *backend, "{client}, {variant:?}");
        }
        assert_eq!(block_on(datapath.read()).unwrap(), *table);
        block_on(datapath.close(Close::Remove)).unwrap();
    }
}

fn limitations(capabilities: &Capabilities) -> Vec<&'static str> {
    capabilities.limitations.iter().map(|limitation| limitation.what).collect()
}

#[test]
fn without_the_match_affinity_alone_is_refused_by_name() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let programs = Programs::new(world.word());
        programs.lack("recent");
        let builder = world.builder().program_directory(programs.path());
        assert!(!builder.probe().unwrap().affinity);
        let datapath = builder.build().unwrap();
        let capabilities = datapath.capabilities();
        assert!(!capabilities.has(Feature::Affinity) && capabilities.affinity_clients.is_none());
        assert!(limitations(capabilities).contains(&"session affinity"));
        let mut routes = world.service(&PODS);
        let sticky = routes[0].frontend;
        routes[0].affinity = Some(Affinity::default());
        let report = block_on(datapath.replace(world.table(1, routes.clone()))).unwrap();
        assert_eq!(report.failed.iter().map(|failed| failed.frontend).collect::<Vec<_>>(), [sticky]);
        let error = &report.failed[0].error;
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains("demo/web:http") && error.message().contains("session affinity"));
        let rest = world.table(1, routes.split_off(1));
        assert_eq!(block_on(datapath.read()).unwrap(), *rest);
        block_on(datapath.close(Close::Remove)).unwrap();
    }
}

#[test]
fn the_number_of_clients_is_that_of_the_kernel() {
    let Some(world) = world(VARIANTS[0]) else { return };
    let datapath: IptablesDatapath = world.start();
    let parameter = Path::new("/sys/module/xt_recent/parameters/ip_list_tot");
    let clients = fs::read_to_string(parameter).unwrap().trim().parse().unwrap();
    assert_eq!(datapath.capabilities().affinity_clients, Some(clients));
    assert!(limitations(datapath.capabilities()).contains(&"clients with affinity"));
}
