//! The first table after another process's maps were adopted: what that process left undone is put in order.
//!
//! Nothing is removed before that table is programmed. What then serves nobody goes.

use std::{collections::HashSet, net::IpAddr};

use kubenet_core::{datapath::DatapathError, route::Frontend};

use crate::{
    decode::Snapshot,
    program::{Tables, done},
    state::{Leftovers, State, cluster_ip, source_ranges, unused_sources},
};

/// Makes the room that the table may need. Packets see none of it.
pub(crate) fn before(
    state: &State,
    tables: &dyn Tables,
    leftovers: &Leftovers,
    snapshot: &Snapshot,
) -> Result<(), DatapathError> {
    done(tables.remove_sources(&unused_sources(state, leftovers, snapshot)))
}

/// Removes what the table does not need. Returns how many things that were.
pub(crate) fn after(
    state: &State,
    tables: &dyn Tables,
    leftovers: &Leftovers,
    snapshot: &Snapshot,
) -> Result<usize, DatapathError> {
    let mut removed = 0;
    let strays = leftovers.strays.keys().filter(|frontend| state.get(frontend).is_none());
    let strays: Vec<Frontend> = strays.copied().collect();
    done(tables.remove_services(&strays))?;
    removed += strays.len();
    // Programs that have seen a stray may go on with what it refers to.
    tables.wait_grace_period();
    let ids: HashSet<u32> = state.routes().map(|p| p.id).collect();
    let names: Vec<u32> = snapshot.names.keys().filter(|id| !ids.contains(id)).copied().collect();
    done(tables.remove_names(&names))?;
    removed += names.len();
    let wanted: HashSet<_> =
        state.routes().flat_map(|p| source_ranges(&p.route).iter().map(|cidr| (p.id, *cidr))).collect();
    let found = snapshot.sources.iter().flat_map(|(id, cidrs)| cidrs.iter().map(|cidr| (*id, *cidr)));
    let sources: Vec<_> = found.filter(|source| !wanted.contains(source)).collect();
    done(tables.remove_sources(&sources))?;
    removed += sources.len();
    let wanted: HashSet<_> = state.routes().filter_map(|p| cluster_ip(&p.route)).collect();
    let ips: Vec<IpAddr> = snapshot.cluster_ips.difference(&wanted).copied().collect();
    done(tables.remove_cluster_ips(&ips))?;
    removed += ips.len();
    for (family, id) in leftovers.backends(state) {
        tables.kill_backend(family, id);
    }
    Ok(removed)
}
