use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use kubenet_core::{
    model::{IpFamily, Protocol},
    route::{
        Frontend, FrontendKind, Masquerade, NodeRouting, Revision, Route, RouteTable, ServicePortName,
        Target as RouteTarget, WhenEmpty,
    },
};
use proptest::{collection, prelude::*};

use super::*;
use crate::{
    names::Names,
    plan::{Context, Planner},
    rule::{Chains, Table},
};

fn planner(table: RouteTable, hairpin: bool) -> Planner {
    let families = vec![IpFamily::V4];
    let context = Context {
        names: Names::new("KUBE"),
        random_fully: true,
        hairpin,
        sctp: true,
        accept_invalid: false,
        families,
    };
    Planner::new(Arc::new(context), table)
}

fn table(revision: u64, backends: &[Backend]) -> RouteTable {
    let name = ServicePortName { namespace: "demo".into(), service: "web".into(), port: "".into() };
    let frontend = Frontend::ip([10, 96, 0, 1].into(), 80.try_into().unwrap(), Protocol::Tcp);
    let target = RouteTarget { backends: backends.into(), when_empty: WhenEmpty::Reject };
    let route = Route::new(frontend, FrontendKind::ClusterIp, name, target, Masquerade::NEVER);
    RouteTable::new(Revision(revision), Arc::new(NodeRouting::default()), [Arc::new(route)])
}

fn backend(n: u32, weight: u16, local: bool) -> Backend {
    let address = std::net::Ipv4Addr::from(0x0af4_0000 + n);
    let weight = weight.try_into().unwrap();
    Backend { weight, ..Backend::new(address.into(), 8080.try_into().unwrap(), local) }
}

/// How likely a new flow that no endpoint began gets each, and the most rules that it meets.
fn odds(
    chains: &Chains,
    chain: &ChainName,
    likely: f64,
    met: usize,
    all: &mut BTreeMap<SocketAddr, f64>,
) -> usize {
    let (mut left, mut most) = (likely, met);
    for (n, rule) in chains[&(Table::Nat, chain.clone())].iter().enumerate() {
        // Only marks flows of endpoints.
        if rule.source.is_some_and(|source| !source.inverted) {
            continue;
        }
        let taken = rule.chance.map_or(left, |chance| left * chance.to_string().parse::<f64>().unwrap());
        let met = met + n + 1;
        most = most.max(met);
        match rule.target.as_ref().unwrap() {
            Target::Dnat(to) => *all.entry(*to).or_default() += taken,
            Target::Goto(to) | Target::Jump(to) => most = most.max(odds(chains, to, taken, met, all)),
            other => panic!("{other:?}"),
        }
        left -= taken;
    }
    most
}

fn set_chain(planner: &Planner) -> ChainName {
    let chains = planner.chains(IpFamily::V4).unwrap();
    chains.keys().find(|(_, name)| name.as_str().starts_with("KUBE-SVC-")).unwrap().1.clone()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn every_endpoint_is_as_likely_as_it_weighs(
        weights in collection::btree_map(0u32..100_000, (1u16..2_000, any::<bool>()), 2..600),
        plain in any::<bool>(),
        hairpin in any::<bool>(),
    ) {
        let weight = |weight| if plain { 1 } else { weight };
        let backends: Vec<_> =
            weights.iter().map(|(n, (weighs, local))| backend(*n, weight(*weighs), *local)).collect();
        let planner = planner(table(1, &backends), hairpin);
        let mut all = BTreeMap::new();
        odds(planner.chains(IpFamily::V4).unwrap(), &set_chain(&planner), 1.0, 0, &mut all);
        prop_assert_eq!(all.len(), backends.len());
        let sum: f64 = backends.iter().map(|b| f64::from(b.weight.get())).sum();
        for backend in &backends {
            let (is, should) = (all[&backend.socket_addr()], f64::from(backend.weight.get()) / sum);
            // Rules are written with ten digits.
            prop_assert!((is - should).abs() < 2e-9, "{} of {}: {is}, not {should}", backend.socket_addr(), all.len());
        }
    }
}

#[test]
fn a_flow_meets_a_number_of_rules_that_grows_with_the_logarithm() {
    let mut walks = Vec::new();
    for n in [32, 100, 1_000, 5_000] {
        let backends: Vec<_> = (0..n).map(|n| backend(n, 1, false)).collect();
        let planner = planner(table(1, &backends), true);
        let chains = planner.chains(IpFamily::V4).unwrap();
        walks.push(odds(chains, &set_chain(&planner), 1.0, 0, &mut BTreeMap::new()));
    }
    assert_eq!(walks[0], 32);
    assert!(walks.iter().all(|walk| *walk <= 3 * 8 + 32), "{walks:?}");
}

#[test]
fn one_endpoint_more_or_less_rewrites_a_chain_and_the_chances_above() {
    let backends: Vec<_> = (0..1_000).map(|n| backend(n, 1, false)).collect();
    for (was, is) in [(1..1_000, 0..1_000), (0..1_000, 0..999), (0..1_000, 3..1_000), (0..33, 0..32)] {
        let endpoints = was.len().abs_diff(is.len());
        let (was, is) = (table(1, &backends[was]), table(2, &backends[is]));
        let planner = planner(was.clone(), true);
        let step = planner.step(Arc::new(was.diff(&is)));
        let changes = &step.changes[&IpFamily::V4];
        let chains = changes.keys().filter(|(_, name)| name.as_str().contains("-SV")).count();
        // Where a chain divides, or parts become one chain, there are eight more.
        let most = if is.routes().any(|r| r.backends().count() == 32) { 9 } else { 4 * endpoints };
        assert!((1..=most).contains(&chains), "{chains} chains for {endpoints} endpoints");
    }
}
