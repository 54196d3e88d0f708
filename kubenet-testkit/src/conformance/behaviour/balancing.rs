//! Which backend is picked: hints ([E3]), session affinity ([A1], [A2], [A3]), Maglev, weights.

use std::{collections::BTreeMap, time::Duration};

use kubenet_core::{
    datapath::Feature,
    maglev,
    model::Protocol::{Tcp, Udp},
    route::FrontendKind::{self, ClusterIp, NodePort},
};

use super::{Case, TCP, UDP};
use crate::conformance::{
    bench::{Bench, Step, Way, check},
    fixture::{Svc, place},
};

const AFFINITY: &[Feature] = &[Feature::Affinity];

pub(super) const CASES: &[Case] = &[
    Case::new("hints_keep_cluster_traffic_in_the_zone", TCP, hints),
    Case::new("affinity_keeps_a_client_on_its_backend", TCP, affinity_keeps).with(AFFINITY),
    Case::new("affinity_keeps_udp_clients_on_their_backend", UDP, affinity_keeps_udp).with(AFFINITY),
    Case::new("affinity_is_shared_by_the_frontends_of_a_port", TCP, affinity_shared).with(AFFINITY),
    Case::new("affinity_chooses_again_when_the_backend_goes", TCP, affinity_backend_goes).with(AFFINITY),
    Case::new("affinity_ends_with_its_timeout", TCP, affinity_times_out).with(AFFINITY),
    Case::new("affinity_timeout_changes_for_known_clients", TCP, affinity_timeout_changes).with(AFFINITY),
    Case::new("maglev_picks_what_every_node_picks", TCP, maglev_agrees).with(&[Feature::Maglev]),
    Case::new("weights_divide_new_connections", TCP, weights).with(&[Feature::Weights]),
];

const ALL: &[&str] = &["a1", "a2", "b1", "b2"];
const CLIENTS: [&str; 3] = ["client-a", "node-a", "outside"];

/// Every answer of several connections must be of the same backend: four that pick at random would all agree
/// about once in a million runs.
fn always_the_same(bench: &Bench<'_>, way: Way<'_>) -> Step<String> {
    let first = bench.served(way, ALL)?;
    for _ in 0..10 {
        bench.served(way, &[&first])?;
    }
    Ok(first)
}

/// Any policy but Local follows the hints, and only if each endpoint has one and one is for this zone.
fn hints(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service();
    bench.set_node(|node| node.zone("here"));
    let hinted = |zones: &[&'static str]| svc.on(ALL).for_zones(zones);
    let in_zone = [("client-a", ClusterIp), ("node-a", ClusterIp), ("outside", NodePort)];
    bench.program(&[hinted(&["there", "here", "there", "here"])])?;
    for (from, kind) in in_zone {
        for _ in 0..10 {
            bench.served((from, &svc, kind, Tcp), &["a2", "b2"])?;
        }
    }
    bench.update(&[hinted(&["there", "here", "there", "here"]).internal_local()])?;
    let mut local = BTreeMap::new();
    for _ in 0..32 {
        *local.entry(bench.served(("client-a", &svc, ClusterIp, Tcp), &["a1", "a2"])?).or_insert(0) += 1;
    }
    check(local.len() == 2, || format!("a local set has no hints, got {local:?}"))?;
    for ignored in [&["there", "here", "here"][..], &["there"; 4]] {
        bench.update(&[hinted(ignored)])?;
        let mut heard = BTreeMap::new();
        for _ in 0..64 {
            *heard.entry(bench.served(("client-a", &svc, ClusterIp, Tcp), ALL)?).or_insert(0) += 1;
        }
        check(heard.len() == ALL.len(), || format!("the hints {ignored:?} should not count, got {heard:?}"))?;
    }
    Ok(())
}

fn affinity_keeps(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service().sticky(600);
    bench.program(&[svc.on(ALL)])?;
    CLIENTS.iter().try_for_each(|from| always_the_same(bench, (from, &svc, ClusterIp, Tcp)).map(drop))
}

fn affinity_keeps_udp(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service().sticky(600);
    bench.program(&[svc.on(ALL)])?;
    CLIENTS.iter().try_for_each(|from| always_the_same(bench, (from, &svc, NodePort, Udp)).map(drop))
}

fn affinity_shared(bench: &mut Bench<'_>) -> Step {
    // Several Services: one alone might agree by chance.
    let all: Vec<Svc> = (0..4).map(|_| bench.service().sticky(600).on(ALL).exposed()).collect();
    let kinds = bench.datapath()?.capabilities().frontends.clone();
    bench.program(&all)?;
    for svc in &all {
        let backend = bench.served(("client-a", svc, ClusterIp, Tcp), ALL)?;
        for &kind in kinds.iter().filter(|kind| kind.is_external()) {
            bench.served(("client-a", svc, kind, Tcp), &[&backend])?;
        }
    }
    Ok(())
}

fn affinity_backend_goes(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service().sticky(600);
    bench.program(&[svc.on(ALL)])?;
    let before = always_the_same(bench, ("client-a", &svc, ClusterIp, Tcp))?;
    let left: Vec<&str> = ALL.iter().copied().filter(|name| *name != before).collect();
    bench.update(&[svc.on(&left)])?;
    let after = bench.served(("client-a", &svc, ClusterIp, Tcp), &left)?;
    // Its choice is not forgotten when the first one comes back.
    bench.update(&[svc.on(ALL)])?;
    for _ in 0..5 {
        bench.served(("client-a", &svc, ClusterIp, Tcp), &[&after])?;
    }
    Ok(())
}

/// Whether some client of several Services was given another backend.
fn some_moved(bench: &Bench<'_>, all: &[Svc], before: &[String]) -> Step<bool> {
    let mut moved = false;
    for (svc, backend) in all.iter().zip(before) {
        moved |= bench.served(("client-a", svc, ClusterIp, Tcp), ALL)? != *backend;
    }
    Ok(moved)
}

fn affinity_times_out(bench: &mut Bench<'_>) -> Step {
    // Sixteen clients that choose again: all choose as before about once in four billion runs.
    let all: Vec<Svc> = (0..16).map(|_| bench.service().sticky(1).on(ALL)).collect();
    bench.program(&all)?;
    let before = picks(bench, &all)?;
    bench.world.wait(Duration::from_millis(2_500));
    check(some_moved(bench, &all, &before)?, || "no client of 16 chose again after the timeout".into())
}

fn affinity_timeout_changes(bench: &mut Bench<'_>) -> Step {
    let all: Vec<Svc> = (0..16).map(|_| bench.service().sticky(600).on(ALL)).collect();
    bench.program(&all)?;
    let before = picks(bench, &all)?;
    bench.world.wait(Duration::from_millis(2_500));
    check(!some_moved(bench, &all, &before)?, || "a client moved long before the timeout".into())?;
    bench.world.wait(Duration::from_millis(2_500));
    bench.update(&all.iter().map(|svc| svc.clone().sticky(1)).collect::<Vec<_>>())?;
    check(some_moved(bench, &all, &before)?, || "the shorter timeout had no effect".into())
}

fn picks(bench: &Bench<'_>, all: &[Svc]) -> Step<Vec<String>> {
    all.iter().map(|svc| bench.served(("client-a", svc, ClusterIp, Tcp), ALL)).collect()
}

fn maglev_agrees(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service().maglev();
    bench.program(&[svc.on(ALL)])?;
    let frontend = svc.frontend(ClusterIp, bench.family, Tcp);
    let table = bench.table();
    let Some(route) = table.get(&frontend) else { return check(false, || format!("no route to {frontend}")) };
    let hashed = maglev::Table::new(route.internal.backends.iter().map(|b| (b.socket_addr(), b.weight)));
    for (from, kind) in
        [("client-a", ClusterIp), ("node-a", ClusterIp), ("outside", NodePort), ("client-a", NodePort)]
    {
        let client = bench.world.address(&place(from), bench.family)?;
        let picked = hashed.get(client).map(|address| address.ip());
        let mut expected = None;
        for name in ALL {
            if Some(bench.world.address(&place(name), bench.family)?) == picked {
                expected = Some(*name);
            }
        }
        let Some(expected) = expected else { return check(false, || "the table picks nobody".into()) };
        for _ in 0..5 {
            bench.served((from, &svc, kind, Tcp), &[expected])?;
        }
    }
    Ok(())
}

/// Three of four connections go to the backend of weight 3: 160 of them give it 120, within six times the
/// standard deviation of 5.5.
fn weights(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service().with_weights(&[3, 1]);
    bench.program(&[svc.on(&["a1", "b1"])])?;
    let ways: [(&str, FrontendKind); 2] = [("client-a", ClusterIp), ("outside", NodePort)];
    for (from, kind) in ways {
        let mut share = BTreeMap::<String, u32>::new();
        for _ in 0..160 {
            *share.entry(bench.served((from, &svc, kind, Tcp), &["a1", "b1"])?).or_default() += 1;
        }
        let heavy = share.get("a1").copied().unwrap_or(0);
        check((87..=153).contains(&heavy), || format!("from {from}: {share:?}"))?;
    }
    Ok(())
}
