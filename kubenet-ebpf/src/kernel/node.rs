//! Facts about the node in the maps: its addresses, the pods' ranges, the source of masqueraded flows.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use aya::maps::{
    MapData, MapError,
    lpm_trie::{Key, LpmTrie},
};
use ipnet::{IpNet, Ipv4Net};
use kubenet_core::{
    datapath::{DatapathError, ErrorKind},
    model::{IpFamily, LocalDetector},
    route::NodeRouting,
};

use super::{
    maps::{FamilyMaps, Maps},
    membarrier,
};
use crate::{
    MapSizes,
    error::error,
    layout::{Addr4, Addr6, Address, NODE_ADDR_LOCAL, NODE_ADDR_NODE_PORT},
};

/// Where an entry of `node_addrs` says which place the address has in `NodeRouting::addresses`: 1 is the
/// first. The programs look at the flags below only.
const PLACE_SHIFT: u32 = 8;
/// The same for `NodeRouting::node_port_addresses`.
const NODE_PORT_PLACE_SHIFT: u32 = 20;
const PLACE_MASK: u32 = 0xfff;

/// The entries of one family.
#[derive(Debug)]
struct Wanted<A> {
    addresses: HashMap<A, u32>,
    cidrs: Cidrs<A>,
}

impl<A: Address> Wanted<A> {
    fn of(node: &NodeRouting, convert: impl Fn(IpAddr) -> Option<A>) -> Self {
        let mut addresses = HashMap::new();
        let lists = [
            (&node.addresses, NODE_ADDR_LOCAL, PLACE_SHIFT),
            (&node.node_port_addresses, NODE_ADDR_NODE_PORT, NODE_PORT_PLACE_SHIFT),
        ];
        for (list, flag, shift) in lists {
            for (place, address) in (1..).zip(list) {
                if let Some(address) = convert(*address) {
                    *addresses.entry(address).or_default() |= flag | (place & PLACE_MASK) << shift;
                }
            }
        }
        let cidrs = (1..)
            .zip(node.local_detector.cidrs())
            .filter_map(|(place, cidr)| Some(((cidr.prefix_len().into(), convert(cidr.addr())?), place)));
        Self { addresses, cidrs: cidrs.collect() }
    }

    fn check(&self, sizes: &MapSizes, family: char, operation: &'static str) -> Result<(), DatapathError> {
        let check = |map: &str, wanted: usize, size: u32, setting: &str| {
            has_room(&format!("{map}{family}"), wanted, size, setting, operation)
        };
        check("node_addrs", self.addresses.len(), sizes.node_addresses, "node_addresses")?;
        check("pod_cidrs", self.cidrs.len(), sizes.pod_cidrs, "pod_cidrs")
    }

    /// Writes what is missing or different. What is too much goes before when there is no room for both,
    /// else afterwards.
    fn write(self, maps: &mut FamilyMaps<A>, sizes: &MapSizes) -> Result<(), (&'static str, MapError)> {
        let addresses = maps.node_addrs.iter().collect::<Result<HashMap<A, u32>, _>>();
        let addresses = addresses.map_err(|e| ("node_addrs", e))?;
        let (wanted, room) = (&self.addresses, sizes.node_addresses as usize);
        let gone: Vec<A> = addresses.keys().filter(|a| !wanted.contains_key(a)).copied().collect();
        let first = gone.len() + wanted.len() > room;
        let remove = |maps: &mut FamilyMaps<A>| gone.iter().try_for_each(|a| maps.node_addrs.remove(a));
        if first {
            remove(maps).map_err(|e| ("node_addrs", e))?;
        }
        for (address, value) in wanted.iter().filter(|(a, v)| addresses.get(a) != Some(v)) {
            maps.node_addrs.insert(address, value, 0).map_err(|e| ("node_addrs", e))?;
        }
        if !first {
            remove(maps).map_err(|e| ("node_addrs", e))?;
        }

        write_cidrs(&mut maps.pod_cidrs, &self.cidrs, sizes.pod_cidrs).map_err(|e| ("pod_cidrs", e))
    }
}

fn has_room(
    map: &str,
    wanted: usize,
    size: u32,
    setting: &str,
    operation: &'static str,
) -> Result<(), DatapathError> {
    if wanted <= size as usize {
        return Ok(());
    }
    let message =
        format!("map {map} has room for {size} entries, and {wanted} are needed: raise MapSizes::{setting}");
    Err(error(operation, ErrorKind::Capacity, message))
}

/// Lengths and addresses of prefixes, and what the map says of each.
type Cidrs<A> = HashMap<(u32, A), u32>;

/// Writes what is missing or different, in the same order.
fn write_cidrs<A: Address>(
    map: &mut LpmTrie<MapData, A, u32>,
    wanted: &Cidrs<A>,
    room: u32,
) -> Result<(), MapError> {
    let cidrs = read_cidrs(map)?;
    let gone: Vec<(u32, A)> = cidrs.keys().filter(|c| !wanted.contains_key(c)).copied().collect();
    let first = gone.len() + wanted.len() > room as usize;
    let remove = |map: &mut LpmTrie<MapData, A, u32>| {
        gone.iter().try_for_each(|(length, address)| map.remove(&Key::new(*length, *address)))
    };
    if first {
        remove(map)?;
    }
    for ((length, address), value) in wanted.iter().filter(|(c, v)| cidrs.get(c) != Some(v)) {
        map.insert(&Key::new(*length, *address), value, 0)?;
    }
    if !first {
        remove(map)?;
    }
    Ok(())
}

fn read_cidrs<A: Address>(map: &LpmTrie<MapData, A, u32>) -> Result<Cidrs<A>, MapError> {
    let entry = |(key, place): (Key<A>, u32)| ((key.prefix_len(), key.data()), place);
    map.iter().map(|item| item.map(entry)).collect()
}

fn v4(address: IpAddr) -> Option<Addr4> {
    match address {
        IpAddr::V4(address) => Some(address.into()),
        IpAddr::V6(_) => None,
    }
}

fn v6(address: IpAddr) -> Option<Addr6> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(address.into()),
    }
}

/// Makes the maps hold the facts. Fails before anything is written when there is no room.
pub(crate) fn write(maps: &mut Maps, node: &NodeRouting, sizes: &MapSizes) -> Result<(), DatapathError> {
    let (wanted4, wanted6) = (Wanted::of(node, v4), Wanted::of(node, v6));
    let loopback: Cidrs<Addr4> = node
        .loopback_node_ports
        .iter()
        .map(|net| ((net.prefix_len().into(), net.addr().into()), 1))
        .collect();
    wanted4.check(sizes, '4', maps.operation)?;
    wanted6.check(sizes, '6', maps.operation)?;
    has_room("loopback_nets", loopback.len(), sizes.node_addresses, "node_addresses", maps.operation)?;
    let setting = |map: &str| if map == "node_addrs" { "node_addresses" } else { "pod_cidrs" };
    let result = wanted4.write(&mut maps.v4, sizes);
    result.map_err(|(map, e)| maps.failed(&format!("{map}4"), setting(map), e))?;
    let result = wanted6.write(&mut maps.v6, sizes);
    result.map_err(|(map, e)| maps.failed(&format!("{map}6"), setting(map), e))?;
    write_cidrs(&mut maps.loopback, &loopback, sizes.node_addresses)
        .map_err(|e| maps.failed("loopback_nets", "node_addresses", e))?;

    let mut config = maps.config();
    config.snat4 = node.primary_address(IpFamily::V4).and_then(v4).unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    let snat6 = node.primary_address(IpFamily::V6).and_then(v6).unwrap_or(Ipv6Addr::UNSPECIFIED.into());
    config.set_snat6(snat6, || {
        // Where the kernel cannot wait: no program takes as long as the time between two changes.
        membarrier();
    });
    config.set_detector(&node.local_detector);
    maps.set_config(&config);
    Ok(())
}

/// The facts that the maps hold.
pub(crate) fn read(maps: &Maps) -> Result<Arc<NodeRouting>, DatapathError> {
    let mut entries = Vec::new();
    let mut cidrs = Vec::new();
    collect(&maps.v4, &mut entries, &mut cidrs).map_err(|(map, e)| maps.failed(map, map, e))?;
    collect(&maps.v6, &mut entries, &mut cidrs).map_err(|(map, e)| maps.failed(map, map, e))?;
    let list = |flag: u32, shift: u32| {
        let mut list: Vec<(u32, IpAddr)> = entries
            .iter()
            .filter(|(_, value)| value & flag != 0)
            .map(|(address, value)| (value >> shift & PLACE_MASK, *address))
            .collect();
        list.sort_unstable();
        list.into_iter().map(|(_, address)| address).collect()
    };
    cidrs.sort_unstable_by_key(|(place, _)| *place);
    let mut node = NodeRouting::default();
    node.addresses = list(NODE_ADDR_LOCAL, PLACE_SHIFT);
    node.node_port_addresses = list(NODE_ADDR_NODE_PORT, NODE_PORT_PLACE_SHIFT);
    let loopback =
        read_cidrs(&maps.loopback).map_err(|e| maps.failed("loopback_nets", "node_addresses", e))?;
    let net = |(length, address): &(u32, Addr4)| match IpAddr::from(*address) {
        IpAddr::V4(address) => Ipv4Net::new(address, u8::try_from(*length).ok()?).ok(),
        IpAddr::V6(_) => None,
    };
    node.loopback_node_ports = loopback.keys().filter_map(net).collect();
    node.loopback_node_ports.sort_unstable();
    if !cidrs.is_empty() {
        node.local_detector = LocalDetector::Cidrs(cidrs.into_iter().map(|(_, cidr)| cidr).collect());
    } else if let Some(detector) = maps.config().detector() {
        node.local_detector = detector;
    }
    Ok(Arc::new(node))
}

fn collect<A: Address>(
    maps: &FamilyMaps<A>,
    addresses: &mut Vec<(IpAddr, u32)>,
    cidrs: &mut Vec<(u32, IpNet)>,
) -> Result<(), (&'static str, MapError)> {
    for entry in maps.node_addrs.iter() {
        let (address, value) = entry.map_err(|e| ("node_addrs", e))?;
        addresses.push((address.into(), value));
    }
    for ((length, address), place) in read_cidrs(&maps.pod_cidrs).map_err(|e| ("pod_cidrs", e))? {
        if let Some(cidr) = u8::try_from(length).ok().and_then(|l| IpNet::new(address.into(), l).ok()) {
            cidrs.push((place, cidr));
        }
    }
    Ok(())
}
