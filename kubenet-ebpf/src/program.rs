//! Writes routes to the maps, in the order that keeps every packet's view whole.
//!
//! New backends, then the slots that name them and source ranges, then the one entry of `services`, which switches the packets
//! over at once; then the frontends that go; then what nothing refers to any more.

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use kubenet_core::{
    datapath::{Capabilities, DatapathError, ErrorKind, FailedRoute},
    model::IpFamily,
    route::{Backend, Frontend, Route},
};

use crate::{
    error::error,
    ids::Handle,
    layout,
    names::encode_name,
    refused::Refused,
    rest::Now,
    state::{Retired, Staged, StaleFlows, State, cluster_ip},
};

/// The maps, as far as routes are concerned.
pub(crate) trait Tables {
    fn write_backend(&mut self, family: IpFamily, handle: Handle, backend: &Backend);
    /// Marks a backend dead. Its address stays: a packet may just have picked it.
    fn kill_backend(&mut self, family: IpFamily, id: u32);
    fn write_slots(&mut self, base: u32, ids: &[u32]);
    fn write_name(&mut self, id: u32, name: &layout::ServiceName) -> Result<(), DatapathError>;
    fn remove_name(&mut self, id: u32) -> Result<(), DatapathError>;
    /// Ports of a cluster IP that are no Service ports are refused from now on.
    fn write_cluster_ip(&mut self, address: IpAddr) -> Result<(), DatapathError>;
    /// An address that is not there is no error.
    fn remove_cluster_ip(&mut self, address: IpAddr) -> Result<(), DatapathError>;
    /// A range from which clients may reach the Service.
    fn write_source(&mut self, service: u32, cidr: &IpNet) -> Result<(), DatapathError>;
    /// A range that is not there is no error.
    fn remove_source(&mut self, service: u32, cidr: &IpNet) -> Result<(), DatapathError>;
    fn write_service(&mut self, frontend: &Frontend, service: &layout::Service) -> Result<(), DatapathError>;
    /// A frontend that is not there is no error.
    fn remove_service(&mut self, frontend: &Frontend) -> Result<(), DatapathError>;
    /// Forgets UDP flows, so that their next packet picks again.
    fn cut(&mut self, flows: &HashSet<StaleFlows>) -> Result<(), DatapathError>;
    /// Waits until no packet can see anything that was replaced before. False where that is not possible.
    fn wait_grace_period(&mut self) -> bool;
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) upserted: usize,
    pub(crate) removed: usize,
    pub(crate) failed: Vec<FailedRoute>,
}

/// Writes routes and removes frontends. A route that cannot be written fails alone, and keeps what it had.
pub(crate) fn program(
    state: &mut State,
    tables: &mut dyn Tables,
    capabilities: &Capabilities,
    operation: &'static str,
    (upserts, removals): (Vec<Arc<Route>>, Vec<Frontend>),
    now: Now,
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut candidates = Vec::with_capacity(upserts.len());
    for route in upserts {
        match capabilities.check(&route) {
            Ok(()) => candidates.push(route),
            Err(why) => fail(&mut outcome, &route, error(operation, ErrorKind::Unsupported, why)),
        }
    }
    let full = write_all(state, tables, operation, candidates, &mut outcome, now);
    for frontend in removals {
        match tables.remove_service(&frontend) {
            Ok(()) => {
                outcome.removed += usize::from(state.get(&frontend).is_some());
                let retired = state.remove(&frontend, now);
                clean(tables, &retired);
            }
            Err(error) => {
                if let Some(route) = state.get(&frontend).map(|p| Arc::clone(&p.route)) {
                    fail(&mut outcome, &route, error);
                }
            }
        }
    }
    // What was just replaced or removed makes room once no packet can see it.
    let again: Vec<Arc<Route>> = full.iter().map(|(route, _)| Arc::clone(route)).collect();
    let still_full = if !full.is_empty() && state.has_resting() && tables.wait_grace_period() {
        state.wake_all();
        write_all(state, tables, operation, again, &mut outcome, now)
    } else {
        full
    };
    for (route, error) in still_full {
        fail(&mut outcome, &route, error);
    }
    outcome
}

/// Returns the routes for which there was no room.
fn write_all(
    state: &mut State,
    tables: &mut dyn Tables,
    operation: &'static str,
    routes: Vec<Arc<Route>>,
    outcome: &mut Outcome,
    now: Now,
) -> Vec<(Arc<Route>, DatapathError)> {
    let mut full = Vec::new();
    let mut all_staged: Vec<Staged> = Vec::with_capacity(routes.len());
    for route in routes {
        match state.stage(&route, now) {
            Ok(staged) => all_staged.push(staged),
            Err(refused) => {
                let may_retry = Refused::is_full(&refused);
                let error = refused.into_error(operation);
                if may_retry { full.push((route, error)) } else { fail(outcome, &route, error) }
            }
        }
    }
    for staged in &all_staged {
        for (handle, backend) in &staged.new_backends {
            tables.write_backend(staged.family(), *handle, backend);
        }
    }
    for (base, ids) in all_staged.iter().flat_map(Staged::slots) {
        tables.write_slots(base, ids);
    }
    let mut retired = Vec::new();
    for staged in all_staged {
        let new_ip = cluster_ip(&staged.programmed.route).filter(|ip| !state.is_written(*ip));
        match write_one(tables, operation, &staged, new_ip) {
            Ok(()) => {
                outcome.upserted += 1;
                retired.extend(state.commit(staged, now));
            }
            Err(error) => {
                let route = Arc::clone(&staged.programmed.route);
                retired.extend(state.abort(staged, now));
                if error.kind() == ErrorKind::Capacity {
                    full.push((route, error));
                } else {
                    fail(outcome, &route, error);
                }
            }
        }
    }
    if retired.iter().any(|item| matches!(item, Retired::Source(..))) {
        // Packets that have seen an old entry find its ranges, if the kernel can wait for them.
        tables.wait_grace_period();
    }
    clean(tables, &retired);
    full
}

fn write_one(
    tables: &mut dyn Tables,
    operation: &'static str,
    Staged { programmed, new_name, new_sources, .. }: &Staged,
    new_cluster_ip: Option<IpAddr>,
) -> Result<(), DatapathError> {
    let route = &programmed.route;
    if *new_name {
        let name = encode_name(route).map_err(|why| error(operation, ErrorKind::InvalidInput, why))?;
        tables.write_name(programmed.id, &name)?;
    }
    for cidr in new_sources {
        tables.write_source(programmed.id, cidr)?;
    }
    if let Some(ip) = new_cluster_ip {
        tables.write_cluster_ip(ip)?;
    }
    tables.write_service(&route.frontend, &programmed.service())
}

fn clean(tables: &mut dyn Tables, retired: &[Retired]) {
    let mut stale = HashSet::new();
    for item in retired {
        match *item {
            Retired::Backend(family, id) => tables.kill_backend(family, id),
            Retired::Flows(flows) => {
                stale.insert(flows);
            }
            Retired::ClusterIp(ip) => {
                // The next audit removes it.
                if let Err(error) = tables.remove_cluster_ip(ip) {
                    tracing::warn!(%error, %ip, "cannot remove a cluster IP");
                }
            }
            Retired::Source(id, cidr) => {
                // It counts for nobody, and the next audit removes it.
                if let Err(error) = tables.remove_source(id, &cidr) {
                    tracing::warn!(%error, id, %cidr, "cannot remove a source range");
                }
            }
            Retired::Name(id) => {
                // A name that stays behind is overwritten when its id is used again.
                if let Err(error) = tables.remove_name(id) {
                    tracing::warn!(%error, id, "cannot remove the name of a service id");
                }
            }
        }
    }
    if !stale.is_empty()
        && let Err(error) = tables.cut(&stale)
    {
        tracing::warn!(%error, "UDP flows stay with a backend that their frontend has no more");
    }
}

fn fail(outcome: &mut Outcome, route: &Route, error: DatapathError) {
    outcome.failed.push(FailedRoute {
        frontend: route.frontend,
        service_port: route.service_port.clone(),
        error,
    });
}

#[cfg(test)]
mod tests;
