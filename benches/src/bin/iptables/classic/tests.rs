use std::{collections::HashMap, process::Command};

use kubenet_benches::{cluster, drive::Driver, report::Measure, slice};
use kubenet_core::cluster::Change;
use kubenet_iptables::Variant;
use kubenet_testkit::{
    conformance,
    lab::{Lab, LabConfig, LabError, Netns, Node},
    memory::MemoryDatapath,
};

use super::*;
use crate::restore::{Locks, Restore};

const PODS: &str = "10.244.0.0/16";

fn table(services: u32, endpoints: u32) -> RouteTable {
    let mut cluster = cluster(services, endpoints).unwrap();
    cluster.take_delta();
    RouteTable::clone(cluster.table())
}

/// Rules of a chain in a transaction.
fn rules<'a>(text: &'a str, chain: &str) -> Vec<&'a str> {
    let begin = format!("-A {chain} ");
    text.lines().filter(|line| line.starts_with(&begin)).collect()
}

#[test]
fn there_is_one_list_and_a_chain_for_each_port_and_each_endpoint() {
    let text = Classic::new(PODS).first(&table(20, 10));
    assert_eq!(rules(&text, "KUBE-SERVICES").len(), 21, "and the one for node ports");
    let declared =
        |kind: &str| text.lines().filter(|line| line.starts_with(&format!(":KUBE-{kind}-"))).count();
    assert_eq!((declared("SVC"), declared("SEP")), (20, 200));
    let chain = format!("KUBE-SVC-{}", hash(&["bench/service-3:http", "tcp"]));
    let port = rules(&text, &chain);
    assert_eq!(port.len(), 11);
    assert!(port[0].contains("! -s 10.244.0.0/16 -j KUBE-MARK-MASQ"), "{}", port[0]);
    assert!(port[1].contains("--probability 0.1000000000"), "{}", port[1]);
    assert!(!port[10].contains("statistic"), "{}", port[10]);
    let endpoint = port[10].rsplit(' ').next().unwrap();
    let endpoint = rules(&text, endpoint);
    assert!(endpoint.len() == 2 && endpoint[1].contains("-j DNAT --to-destination 20.0."), "{endpoint:?}");
}

#[test]
fn large_clusters_have_no_comments() {
    assert!(Classic::new(PODS).first(&table(100, 10)).contains("--comment"));
    assert!(!Classic::new(PODS).first(&table(101, 10)).contains("--comment"));
}

#[test]
fn a_change_writes_the_list_and_the_chains_of_what_changed() {
    let mut driver =
        Driver::new(kubenet_benches::node().unwrap(), std::sync::Arc::new(MemoryDatapath::new()));
    let mut classic = Classic::new(PODS);
    for number in 0..50 {
        driver.declare([
            Change::Service(kubenet_benches::service(number).unwrap()),
            Change::EndpointSlice(slice(number, 3, 0).unwrap()),
        ]);
    }
    classic.first(driver.table());
    driver.declare([Change::EndpointSlice(slice(7, 3, 1).unwrap())]);
    let text = classic.change([driver.route(7).unwrap().as_ref()]);
    assert_eq!(rules(&text, "KUBE-SERVICES").len(), 51);
    let declared: Vec<_> = text.lines().filter(|line| line.starts_with(":KUBE-S")).collect();
    assert_eq!(
        declared.len(),
        1 + 1 + 3 + 1,
        "the list, the port, its endpoints, the one that goes: {declared:?}"
    );
    assert_eq!(text.lines().filter(|line| line.starts_with("-X KUBE-SEP-")).count(), 1);
}

fn in_lab(test: impl Fn(&Netns, &Restore)) {
    let lab = match Lab::new(LabConfig::new().ipv6(false)) {
        Ok(lab) => lab,
        Err(LabError::Unsupported(why)) => return conformance::skip(why),
        Err(error) => panic!("{error}"),
    };
    let locks = Locks::new().unwrap();
    for (node, variant) in Node::ALL.into_iter().zip([Variant::Nft, Variant::Legacy]) {
        test(lab.node(node).netns(), &Restore::new(variant, locks.file("lock")));
    }
}

fn well(measure: Measure) {
    assert!(matches!(measure, Measure::Known(_)), "{measure:?}");
}

#[test]
fn iptables_takes_every_transaction() {
    const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);
    in_lab(|netns, restore| {
        for (services, endpoints) in [(3, 2), (300, 5), (2, 0)] {
            let text = Classic::new(PODS).first(&table(services, endpoints));
            well(restore.check(netns, &text).unwrap());
        }
        let mut classic = Classic::new(PODS);
        well(restore.apply(netns, &classic.first(&table(20, 3)), LIMIT).unwrap());
        let changed = table(1, 4);
        let change = classic.change(changed.routes().map(AsRef::as_ref));
        well(restore.check(netns, &change).unwrap());
        well(restore.apply(netns, &change, LIMIT).unwrap());
        for text in classic.in_chunks(&table(50, 3), 20) {
            well(restore.apply(netns, &text, LIMIT).unwrap());
        }
    });
}

#[test]
fn chunks_lead_to_the_same_rules_as_one_transaction() {
    const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);
    let saved = |netns: &Netns, program: &str| {
        let output = netns.run(|| Command::new(program).args(["-t", "nat"]).output()).unwrap().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut chains: HashMap<String, Vec<String>> = HashMap::new();
        for line in text.lines().filter(|line| line.starts_with("-A ")) {
            let chain = line.split(' ').nth(1).unwrap();
            chains.entry(chain.to_owned()).or_default().push(line.to_owned());
        }
        assert!(chains.len() > 100, "{text:.500}");
        chains
    };
    let ends: std::sync::Mutex<Vec<_>> = std::sync::Mutex::default();
    for whole in [true, false] {
        let table = table(60, 2);
        let mut classic = Classic::new(PODS);
        let texts = if whole { vec![classic.first(&table)] } else { classic.in_chunks(&table, 25) };
        in_lab(|netns, restore| {
            texts.iter().for_each(|text| well(restore.apply(netns, text, LIMIT).unwrap()));
            ends.lock().unwrap().push(saved(netns, &format!("{}-save", restore.family_program())));
        });
    }
    let ends = ends.into_inner().unwrap();
    // Without root there are none.
    assert!(ends.is_empty() || (ends[0] == ends[2] && ends[1] == ends[3]));
}
