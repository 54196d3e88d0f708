//! Pods told by the interface that their packets come in through: which of those with programs are pods'.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd,
};

use aya::maps::{HashMap, IterableMap, MapData};
use kubenet_core::datapath::DatapathError;
use nix::net::if_::if_nametoindex;

use super::{
    Engine,
    maps::{Maps, deleted},
    sys,
};

impl Engine {
    /// Makes the map hold the interfaces of pods. One without programs needs no entry: no packet of it is looked at.
    pub(super) fn write_pod_interfaces(&mut self) -> Result<(), DatapathError> {
        let names = self.attachments.interfaces();
        let wanted: HashSet<u32> = names
            .iter()
            .filter(|name| self.is_pods(name))
            .filter_map(|name| if_nametoindex(name.as_str()).ok())
            .collect();
        hold(&mut self.maps, "pod_interfaces", |maps| &mut maps.pod_interfaces, &wanted)
    }

    /// Before the programs are attached to an interface: the first packet counts as what it is.
    pub(super) fn announce_interface(&mut self, name: &str) -> Result<(), DatapathError> {
        match if_nametoindex(name) {
            Ok(index) if self.is_pods(name) => self.write_pod_interface(index),
            _ => Ok(()),
        }
    }

    fn write_pod_interface(&mut self, index: u32) -> Result<(), DatapathError> {
        let written = self.maps.pod_interfaces.insert(index, 1, 0);
        written.map_err(|e| self.maps.failed("pod_interfaces", "pod_cidrs", e))
    }

    fn is_pods(&self, interface: &str) -> bool {
        let detector = &self.state.node.local_detector;
        // Its source address does not count.
        detector.is_by_interface() && detector.is_pod(IpAddr::V4(Ipv4Addr::UNSPECIFIED), Some(interface))
    }
}

/// Makes a map hold these interfaces, and no others.
pub(super) fn hold(
    maps: &mut Maps,
    name: &str,
    of: impl Fn(&mut Maps) -> &mut HashMap<MapData, u32, u32>,
    wanted: &HashSet<u32>,
) -> Result<(), DatapathError> {
    let mut found = HashSet::new();
    sys::for_each(of(maps).map().fd().as_fd(), |index: u32, _: u32| {
        found.insert(index);
    })
    .map_err(|e| maps.unreadable(name, e))?;
    for index in wanted.difference(&found) {
        let written = of(maps).insert(index, 1, 0);
        written.map_err(|e| maps.failed(name, "pod_cidrs", e))?;
    }
    for index in found.difference(wanted) {
        let removed = deleted(of(maps).remove(index));
        removed.map_err(|e| maps.failed(name, "pod_cidrs", e))?;
    }
    Ok(())
}
