//! The embedded object: its maps get their sizes, its programs their constants.

use std::{collections::BTreeMap, path::Path};

use aya::{Ebpf, EbpfLoader, util::KernelVersion};
use kubenet_core::datapath::{DatapathError, ErrorKind};

use super::probe;
use crate::{
    MapSizes,
    error::caused,
    layout::FlowSeed,
    pin::{self, Shape},
};

pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!("../kubenet.bpf.o");

/// The maps whose sizes are settings.
fn sizes(sizes: &MapSizes) -> [(&'static str, u32); 33] {
    let names = sizes.service_names();
    [
        ("services4", sizes.services),
        ("services6", sizes.services),
        ("service_names", names),
        ("cluster_ips4", names),
        ("cluster_ips6", names),
        ("service_addrs4", names),
        ("service_addrs6", names),
        ("slots", sizes.slots),
        ("backends4", sizes.backends4),
        ("backends6", sizes.backends6),
        // Ids begin at 1.
        ("service_traffic", names.saturating_add(1)),
        ("backend_traffic4", sizes.backends4),
        ("backend_traffic6", sizes.backends6),
        ("flows4", sizes.flow_pairs()),
        ("flows6", sizes.flow_pairs()),
        ("flow_index4", sizes.flow_buckets()),
        ("flow_index6", sizes.flow_buckets()),
        ("flow_counts4", sizes.flow_counts()),
        ("flow_counts6", sizes.flow_counts()),
        ("affinity4", sizes.affinities),
        ("affinity6", sizes.affinities),
        ("socket_peers4", sizes.sockets),
        ("socket_peers6", sizes.sockets),
        ("socket_flows", sizes.sockets),
        ("dialled4", sizes.dialled()),
        ("dialled6", sizes.dialled()),
        ("node_addrs4", sizes.node_addresses),
        ("node_addrs6", sizes.node_addresses),
        ("pod_cidrs4", sizes.pod_cidrs),
        ("pod_cidrs6", sizes.pod_cidrs),
        ("loopback_nets", sizes.node_addresses),
        ("source_ranges4", sizes.source_ranges),
        ("source_ranges6", sizes.source_ranges),
    ]
}

/// What shape each map has that outlives a process.
pub(crate) fn shapes(of: &MapSizes) -> Result<BTreeMap<String, Shape>, DatapathError> {
    pin::shapes(OBJECT, &sizes(of))
}

/// Creates the maps, or takes those that are pinned in `directory` and pins the others there.
pub(crate) fn load(
    of: &MapSizes,
    connect_refused: bool,
    direct_server_return: bool,
    has_external_tc: bool,
    redirect_peer: bool,
    seed: &FlowSeed,
    pinned: Option<(&Path, &BTreeMap<String, Shape>)>,
) -> Result<Ebpf, DatapathError> {
    /// Spares the routing look-up the search for a neighbour, which `bpf_redirect_neigh` does anyway.
    const BPF_FIB_LOOKUP_SKIP_NEIGH: u32 = 4;
    let have_set_retval = u32::from(connect_refused);
    let have_dsr = u32::from(direct_server_return);
    let have_peer = u32::from(redirect_peer);
    let have_coarse_clock = u32::from(probe::has_coarse_clock());
    #[cfg(test)]
    let have_coarse_clock = if tests::OTHER_BUILD.get() { 0 } else { have_coarse_clock };
    let has_skip_neigh = KernelVersion::current().is_ok_and(|v| v >= KernelVersion::new(6, 3, 0));
    let fib_flags = if has_skip_neigh && !redirect_peer { BPF_FIB_LOOKUP_SKIP_NEIGH } else { 0 };
    let has_external_tc = u32::from(has_external_tc);
    let (flow_pairs, flow_mask) = (of.flow_pairs(), of.flow_buckets() - 1);
    let dialled_mask = of.dialled() - 1;
    let mut loader = EbpfLoader::new();
    // The programs need no relocation against the kernel's types.
    loader.btf(None);
    loader.override_global("have_set_retval", &have_set_retval, true);
    loader.override_global("have_dsr", &have_dsr, true);
    loader.override_global("have_peer", &have_peer, true);
    loader.override_global("have_coarse_clock", &have_coarse_clock, true);
    loader.override_global("fib_flags", &fib_flags, true);
    loader.override_global("has_external_tc", &has_external_tc, true);
    loader.override_global("flow_pairs", &flow_pairs, true);
    loader.override_global("flow_mask", &flow_mask, true);
    loader.override_global("dialled_mask", &dialled_mask, true);
    loader.override_global("flow_secret", seed, true);
    for (map, size) in sizes(of) {
        loader.map_max_entries(map, size);
    }
    if let Some((directory, shapes)) = pinned {
        for name in shapes.keys() {
            loader.map_pin_path(name, directory.join(name));
        }
    }
    loader.load(OBJECT).map_err(|e| {
        let message = "cannot create the BPF maps: check the memory limits and MapSizes";
        caused("build", ErrorKind::Unavailable, message, e)
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;

    thread_local! {
        /// This thread loads other programs than all others: one of their constants differs.
        pub(in super::super) static OTHER_BUILD: Cell<bool> = const { Cell::new(false) };
    }
}
