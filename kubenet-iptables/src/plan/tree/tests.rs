use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::{collection, prelude::*};

use super::*;
use crate::rule::host;

fn names() -> Names {
    Names::new("KUBE")
}

fn rules(address: IpAddr, value: u8) -> Arc<[Rule]> {
    let rule = Rule { destination: Some(host(address)), ..Rule::to(Target::Accept) };
    Arc::from([rule.comment(value.to_string())])
}

fn leaves(addresses: impl IntoIterator<Item = (IpAddr, u8)>) -> Leaves {
    addresses.into_iter().map(|(address, value)| (address, rules(address, value))).collect()
}

fn chains_of(leaves: &Leaves) -> BTreeMap<ChainName, Vec<Rule>> {
    let names = names();
    let tree = Tree {
        names: &names,
        space: Space::Addresses,
        root: &names.services,
        leaves,
        edits: &LeafEdits::new(),
    };
    tree.chains().into_iter().map(|(name, rules)| (name, rules.unwrap())).collect()
}

/// The comments of the rules that a packet meets and that are about its address, and how many rules it meets.
fn walk(chains: &BTreeMap<ChainName, Vec<Rule>>, to: IpAddr) -> (Vec<String>, usize) {
    let mut stack = vec![chains[&names().services].iter()];
    let (mut found, mut met) = (Vec::new(), 0);
    while let Some(chain) = stack.last_mut() {
        let Some(rule) = chain.next() else {
            stack.pop();
            continue;
        };
        met += 1;
        if !rule.destination.unwrap().contains(&to) {
            continue;
        }
        match rule.target.as_ref().unwrap() {
            Target::Jump(name) => stack.push(chains[name].iter()),
            Target::Goto(name) => *chain = chains[name].iter(),
            _ => found.push(rule.comment.clone()),
        }
    }
    (found, met)
}

/// What makes `new` of `old`, and an edit that changes nothing.
fn edits(old: &Leaves, new: &Leaves) -> LeafEdits {
    let differs = |a: &&IpAddr| old.get(a) != new.get(a);
    let mut edits: LeafEdits =
        old.keys().chain(new.keys()).filter(differs).map(|a| (*a, new.get(a).cloned())).collect();
    edits
        .extend(old.iter().next().filter(|(a, r)| new.get(a) == Some(r)).map(|(a, r)| (*a, Some(r.clone()))));
    edits
}

fn address(dense: bool) -> impl Strategy<Value = IpAddr> {
    let v4 =
        move |n: u32| IpAddr::from(Ipv4Addr::from(0x0a60_0000 | n & if dense { 0x1ff } else { 0xf_ffff }));
    prop_oneof![
        8 => any::<u32>().prop_map(v4),
        1 => any::<u32>().prop_map(|n| IpAddr::from(Ipv4Addr::from(n))),
    ]
}

fn family(v6: bool, address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) if v6 => Ipv6Addr::from(0xfd00_0096_u128 << 96 | u128::from(u32::from(v4))).into(),
        other => other,
    }
}

fn cluster() -> impl Strategy<Value = (Leaves, Leaves)> {
    (any::<bool>(), any::<bool>()).prop_flat_map(|(dense, v6)| {
        let some = || collection::btree_map(address(dense), any::<u8>(), 0..200);
        let few = || collection::vec((address(dense), any::<u8>()), 0..20);
        (some(), few(), collection::vec(any::<prop::sample::Index>(), 0..20)).prop_map(
            move |(old, put, gone)| {
                let old: BTreeMap<_, _> = old.into_iter().map(|(a, v)| (family(v6, a), v)).collect();
                let mut new = old.clone();
                new.extend(put.into_iter().map(|(a, v)| (family(v6, a), v)));
                for index in gone.iter().filter(|_| !old.is_empty()) {
                    new.remove(old.keys().nth(index.index(old.len())).unwrap());
                }
                (leaves(old), leaves(new))
            },
        )
    })
}

proptest! {
    #[test]
    fn the_tree_leads_where_a_flat_list_does((leaves, other) in cluster()) {
        let chains = chains_of(&leaves);
        for to in leaves.keys().chain(other.keys()) {
            let flat: Vec<_> = leaves.get(to).iter().flat_map(|r| r.iter()).map(|r| r.comment.clone()).collect();
            prop_assert_eq!(walk(&chains, *to).0, flat, "{}", to);
        }
    }

    #[test]
    fn a_change_makes_the_tree_of_the_new_addresses((old, new) in cluster()) {
        let names = names();
        let edits = edits(&old, &new);
        let tree = Tree { names: &names, space: Space::Addresses, root: &names.services, leaves: &old, edits: &edits };
        let mut chains = chains_of(&old);
        for (name, rules) in tree.changes() {
            match rules {
                Some(rules) => drop(chains.insert(name, rules)),
                None => drop(chains.remove(&name)),
            }
        }
        prop_assert_eq!(chains, chains_of(&new));
    }

    #[test]
    fn a_path_names_the_chains_that_a_packet_passes((leaves, _) in cluster()) {
        let names = names();
        let tree = Tree { names: &names, space: Space::Addresses, root: &names.services, leaves: &leaves, edits: &LeafEdits::new() };
        let chains = chains_of(&leaves);
        for (address, own) in &leaves {
            let path = tree.path(*address, own).unwrap();
            for (chain, rules) in &path {
                prop_assert!(rules.iter().all(|rule| chains[chain].contains(rule)));
            }
            prop_assert_eq!(&path.last().unwrap().1[..], &own[..]);
        }
    }
}

/// Addresses as an API server hands them out: at random from 10.96.0.0/12.
fn allocated(n: u32) -> Leaves {
    let address = |i: u32| IpAddr::from(Ipv4Addr::from(0x0a60_0000 | (i.wrapping_mul(2_654_435_761) >> 12)));
    leaves((0..n).map(|i| (address(i), 0)))
}

#[test]
fn a_packet_meets_a_number_of_rules_that_grows_with_the_logarithm() {
    let names = names();
    let mut walks = Vec::new();
    for n in [10, 100, 1_000, 10_000, 100_000] {
        let leaves = allocated(n);
        let tree = Tree {
            names: &names,
            space: Space::Addresses,
            root: &names.services,
            leaves: &leaves,
            edits: &LeafEdits::new(),
        };
        let chains = tree.chains().into_iter().map(|(name, rules)| (name, rules.unwrap())).collect();
        walks.push(leaves.keys().map(|to| walk(&chains, *to).1).max().unwrap());
    }
    assert_eq!(walks[0], 10);
    assert!(walks.iter().all(|walk| *walk <= 60), "{walks:?}");
}

#[test]
fn one_address_more_changes_one_leaf() {
    let names = names();
    let old = allocated(20_000);
    let added: IpAddr = [10, 100, 7, 7].into();
    let edits = LeafEdits::from([(added, Some(rules(added, 1)))]);
    let tree =
        Tree { names: &names, space: Space::Addresses, root: &names.services, leaves: &old, edits: &edits };
    let changes = tree.changes();
    let before = chains_of(&old);
    let changed = changes.iter().filter(|(name, rules)| before.get(*name) != rules.as_ref()).count();
    assert!((1..=5).contains(&changed), "{changed} chains");
    assert!(changes.len() < 20, "{} chains were looked at", changes.len());
}

#[test]
fn awkward_addresses_end_in_a_long_chain_and_not_in_too_many() {
    // Each divides what is left into one and the rest.
    let nested = (0..120_u32).map(|i| (IpAddr::from(Ipv6Addr::from(1_u128 << i)), 0));
    let leaves = leaves(nested);
    let chains = chains_of(&leaves);
    assert!(chains.len() <= usize::from(DEPTH) * 4 + 1);
    for to in leaves.keys() {
        assert_eq!(walk(&chains, *to).0, ["0"], "{to}");
    }
}

/// Rules for ports, each with its value as the comment.
fn ports(ports: &BTreeMap<(Protocol, NonZeroU16), u8>) -> Leaves {
    let leaf = |(&(protocol, port), value): (&(Protocol, NonZeroU16), &u8)| {
        let rule = Rule { port: Some(port), ..Rule::to(Target::Accept) };
        let rules: Arc<[Rule]> = Arc::from([rule.protocol(protocol).comment(value.to_string())]);
        (of_port(protocol, port), rules)
    };
    ports.iter().map(leaf).collect()
}

/// The comments of the rules that match, and how many rules are met.
fn walk_ports(
    chains: &TreeChanges,
    names: &Names,
    (protocol, port): (Protocol, u16),
) -> (Vec<String>, usize) {
    let mut stack = vec![chains[&names.node_ports].as_ref().unwrap().iter()];
    let (mut found, mut met) = (Vec::new(), 0);
    while let Some(chain) = stack.last_mut() {
        let Some(rule) = chain.next() else {
            stack.pop();
            continue;
        };
        met += 1;
        let in_range = rule.ports.is_none_or(|(first, last)| (first..=last).contains(&port));
        if rule.protocol != Some(protocol) || rule.port.is_some_and(|p| p.get() != port) || !in_range {
            continue;
        }
        match rule.target.as_ref().unwrap() {
            Target::Jump(name) => stack.push(chains[name].as_ref().unwrap().iter()),
            Target::Goto(name) => *chain = chains[name].as_ref().unwrap().iter(),
            _ => found.push(rule.comment.clone()),
        }
    }
    (found, met)
}

fn any_ports() -> impl Strategy<Value = BTreeMap<(Protocol, NonZeroU16), u8>> {
    let protocol = proptest::sample::select(PROTOCOLS.to_vec());
    let port = prop_oneof![6 => 30_000u16..32_768, 1 => 1u16.., 1 => Just(u16::MAX), 1 => Just(1)];
    let port = port.prop_map(|port| NonZeroU16::new(port).unwrap());
    collection::btree_map((protocol, port), any::<u8>(), 0..300)
}

proptest! {
    #[test]
    fn ports_lead_where_a_flat_list_does(is in any_ports(), was in any_ports()) {
        let names = names();
        let (old, new) = (ports(&was), ports(&is));
        let (edits, none) = (edits(&old, &new), LeafEdits::new());
        let tree = |leaves, edits| Tree { names: &names, space: Space::Ports, root: &names.node_ports, leaves, edits };
        let mut chains = tree(&old, &none).chains();
        for (name, rules) in tree(&old, &edits).changes() {
            match rules {
                Some(rules) => drop(chains.insert(name, Some(rules))),
                None => drop(chains.remove(&name)),
            }
        }
        prop_assert_eq!(&chains, &tree(&new, &none).chains());
        for (protocol, port) in is.keys().chain(was.keys()) {
            for protocol in [*protocol, Protocol::Tcp] {
                let flat: Vec<_> = is.get(&(protocol, *port)).iter().map(|value| value.to_string()).collect();
                prop_assert_eq!(walk_ports(&chains, &names, (protocol, port.get())).0, flat);
            }
        }
    }
}

#[test]
fn a_packet_to_a_node_port_meets_few_rules() {
    let names = names();
    // The usual range, full, for two protocols.
    let all = [Protocol::Tcp, Protocol::Udp].into_iter().flat_map(|p| (30_000..32_768).map(move |n| (p, n)));
    let all: Vec<(Protocol, u16)> = all.collect();
    let leaves = ports(&all.iter().map(|(p, n)| ((*p, NonZeroU16::new(*n).unwrap()), 0)).collect());
    let edits = LeafEdits::new();
    let tree =
        Tree { names: &names, space: Space::Ports, root: &names.node_ports, leaves: &leaves, edits: &edits };
    let chains = tree.chains();
    let most = all.iter().map(|port| walk_ports(&chains, &names, *port).1).max().unwrap();
    assert!(most <= 40 && chains.len() < 500, "{most} rules, {} chains", chains.len());
}
