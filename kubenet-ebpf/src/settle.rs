//! The first table after another process's maps were adopted: what that process left undone is put in order.
//!
//! Nothing is removed before that table is programmed. What then serves nobody goes.

use std::collections::HashSet;

use kubenet_core::datapath::DatapathError;

use crate::{
    decode::Snapshot,
    program::Tables,
    state::{Leftovers, State, cluster_ip, source_ranges, unused_sources},
};

/// Makes the room that the table may need. Packets see none of it.
pub(crate) fn before(
    state: &State,
    tables: &mut dyn Tables,
    leftovers: &Leftovers,
    snapshot: &Snapshot,
) -> Result<(), DatapathError> {
    for (id, cidr) in unused_sources(state, leftovers, snapshot) {
        tables.remove_source(id, &cidr)?;
    }
    Ok(())
}

/// Removes what the table does not need. Returns how many things that were.
pub(crate) fn after(
    state: &State,
    tables: &mut dyn Tables,
    leftovers: &Leftovers,
    snapshot: &Snapshot,
) -> Result<usize, DatapathError> {
    let mut removed = 0;
    for frontend in leftovers.strays.keys().filter(|frontend| state.get(frontend).is_none()) {
        tables.remove_service(frontend)?;
        removed += 1;
    }
    // Programs that have seen a stray may go on with what it refers to.
    tables.wait_grace_period();
    let ids: HashSet<u32> = state.routes().map(|p| p.id).collect();
    for id in snapshot.names.keys().filter(|id| !ids.contains(id)) {
        tables.remove_name(*id)?;
        removed += 1;
    }
    let wanted: HashSet<_> =
        state.routes().flat_map(|p| source_ranges(&p.route).iter().map(|cidr| (p.id, *cidr))).collect();
    for (id, cidrs) in &snapshot.sources {
        for cidr in cidrs.iter().filter(|cidr| !wanted.contains(&(*id, **cidr))) {
            tables.remove_source(*id, cidr)?;
            removed += 1;
        }
    }
    let wanted: HashSet<_> = state.routes().filter_map(|p| cluster_ip(&p.route)).collect();
    for ip in snapshot.cluster_ips.difference(&wanted) {
        tables.remove_cluster_ip(*ip)?;
        removed += 1;
    }
    for ip in wanted.difference(&snapshot.cluster_ips) {
        // Of a route that was adopted as it was, nobody else has written it.
        tables.write_cluster_ip(*ip)?;
    }
    for (family, id) in leftovers.backends(state) {
        tables.kill_backend(family, id);
    }
    Ok(removed)
}
