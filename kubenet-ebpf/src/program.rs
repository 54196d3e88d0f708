//! Writes routes to the maps, in the order that keeps every packet's view whole.
//!
//! New backends, then the slots that name them and source ranges, then the one entry of `services`, which
//! switches the packets over at once; then the cluster IPs that are new, as their other ports are refused from then
//! on; then the frontends that go; then what nothing refers to any more.

use std::{net::IpAddr, sync::Arc};

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
    rest::Now,
    state::{Move, Plan, Retired, Staged, State, cluster_ip},
};

/// Entries that could not be written or removed, by their places in what was asked for.
pub(crate) type Failures = Vec<(usize, DatapathError)>;

/// The maps, as far as routes are concerned. What takes many entries takes all that it can of them.
pub(crate) trait Tables {
    fn write_backend(&mut self, family: IpFamily, handle: Handle, backend: &Backend);
    /// Marks a backend dead. Its address stays: a packet may just have picked it.
    fn kill_backend(&mut self, family: IpFamily, id: u32);
    fn write_slots(&mut self, base: u32, ids: &[u32]);
    fn write_names(&mut self, names: &[(u32, layout::ServiceName)]) -> Failures;
    /// A name that is not there is no error; the same holds for everything else that is removed.
    fn remove_names(&mut self, ids: &[u32]) -> Failures;
    /// Ports of these cluster IPs that are no Service ports are refused from now on.
    fn write_cluster_ips(&mut self, addresses: &[IpAddr]) -> Failures;
    fn remove_cluster_ips(&mut self, addresses: &[IpAddr]) -> Failures;
    /// A range from which clients may reach the Service.
    fn write_source(&mut self, service: u32, cidr: &IpNet) -> Result<(), DatapathError>;
    fn remove_source(&mut self, service: u32, cidr: &IpNet) -> Result<(), DatapathError>;
    fn write_services(&mut self, services: &[(Frontend, layout::Service)]) -> Failures;
    fn remove_services(&mut self, frontends: &[Frontend]) -> Failures;
    /// Waits until no packet can see anything that was replaced before. False where that is not possible.
    fn wait_grace_period(&mut self) -> bool;
}

/// The first failure, where one is as bad as all.
pub(crate) fn done(failures: Failures) -> Result<(), DatapathError> {
    failures.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
}

/// So many routes are written together: enough for a call of the kernel to cost nothing, and few enough to stay in
/// the processor's caches. Tests look at the borders.
const TOGETHER: usize = if cfg!(test) { 3 } else { 1024 };

/// How often room is made in one go, where slots are free but in many pieces: each takes a grace period, or more.
const ROOMS: usize = 8;

/// A route for which there was no room.
struct Full {
    route: Arc<Route>,
    error: DatapathError,
    /// Slots in one piece that would have done, of which there are as many in several.
    wanted: Option<u32>,
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
    for frontends in removals.chunks(TOGETHER) {
        remove(state, tables, frontends, &mut outcome, now);
    }
    // What was just replaced or removed makes room once no packet can see it.
    let mut still_full = if !full.is_empty() && wake(state, tables) {
        let again = full.into_iter().map(|full| full.route).collect();
        write_all(state, tables, operation, again, &mut outcome, now)
    } else {
        full
    };
    // One place for all of them, if there is one.
    let wanted = still_full.iter().filter_map(|full| full.wanted).fold(0, u32::saturating_add);
    if still_full.len() > 1 && wanted > 0 && make_room(state, tables, wanted, now) {
        let again = still_full.into_iter().map(|full| full.route).collect();
        still_full = write_all(state, tables, operation, again, &mut outcome, now);
    }
    let mut rooms = ROOMS;
    for mut full in still_full {
        let failed = loop {
            let Some(wanted) = full.wanted.filter(|_| rooms > 0) else { break Some(full) };
            rooms -= 1;
            if state.has_resting_slots() {
                wake(state, tables);
            }
            if !make_room(state, tables, wanted, now) {
                break Some(full);
            }
            match write_all(state, tables, operation, vec![full.route], &mut outcome, now).pop() {
                Some(again) => full = again,
                None => break None,
            }
        };
        if let Some(Full { route, error, .. }) = failed {
            fail(&mut outcome, &route, error);
        }
    }
    outcome
}

/// Whether something that rested may be used again.
fn wake(state: &mut State, tables: &mut dyn Tables) -> bool {
    let woken = state.has_resting() && tables.wait_grace_period();
    if woken {
        state.wake_all();
    }
    woken
}

/// Makes room for so many slots in one piece. Every packet finds each set whole, where it was or where it is then.
fn make_room(state: &mut State, tables: &mut dyn Tables, wanted: u32, now: Now) -> bool {
    match state.plan_room(wanted, now) {
        None => false,
        Some(Plan::Apart(moves, kept)) => {
            let done = moves.iter().take_while(|to| relocate(state, tables, to)).count();
            let unseen = tables.wait_grace_period();
            for (place, to) in moves.iter().enumerate() {
                if place < done {
                    state.free_slots(to.leaves(), unseen, now);
                } else {
                    state.free_slots(to.needs(), true, now);
                }
            }
            kept.into_iter().for_each(|range| state.free_slots(range, true, now));
            unseen && done == moves.len()
        }
        Some(Plan::Together(moves)) => moves.iter().all(|to| {
            if !state.take_slots(to.needs()) {
                return false;
            }
            let done = relocate(state, tables, to);
            // The next one goes where this one was.
            let unseen = !done || tables.wait_grace_period();
            state.free_slots(if done { to.leaves() } else { to.needs() }, unseen, now);
            done && unseen
        }),
    }
}

/// Lets a set stand where there is room for it.
fn relocate(state: &mut State, tables: &mut dyn Tables, to: &Move) -> bool {
    let Some(moved) = state.relocate(to) else { return false };
    tables.write_slots(moved.base, &moved.words);
    match done(tables.write_services(&[moved.service])) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, frontend = %moved.service.0, "a set of backends cannot be moved to make room");
            state.put_back(to, moved);
            false
        }
    }
}

/// Returns the routes for which there was no room.
fn write_all(
    state: &mut State,
    tables: &mut dyn Tables,
    operation: &'static str,
    routes: Vec<Arc<Route>>,
    outcome: &mut Outcome,
    now: Now,
) -> Vec<Full> {
    let mut full = Vec::new();
    let mut retired = Vec::new();
    let mut new_ips = Vec::new();
    state.expect(&routes);
    for routes in routes.chunks(TOGETHER) {
        let mut staged: Vec<Staged> = Vec::with_capacity(routes.len());
        for route in routes {
            match state.stage(route, now) {
                Ok(one) => staged.push(one),
                Err(refused) => {
                    let (may_retry, wanted) = (refused.is_full(), refused.wants_room());
                    let (route, error) = (Arc::clone(route), refused.into_error(operation));
                    if may_retry {
                        full.push(Full { route, error, wanted });
                    } else {
                        fail(outcome, &route, error);
                    }
                }
            }
        }
        let errors = write(tables, operation, &staged);
        for (staged, error) in staged.into_iter().zip(errors) {
            let Some(error) = error else {
                outcome.upserted += 1;
                let route = &staged.programmed.route;
                new_ips.extend(
                    cluster_ip(route).filter(|ip| !state.is_written(*ip)).map(|ip| (ip, Arc::clone(route))),
                );
                retired.extend(state.commit(staged, now));
                continue;
            };
            let route = Arc::clone(&staged.programmed.route);
            retired.extend(state.abort(staged, now));
            if error.kind() == ErrorKind::Capacity {
                full.push(Full { route, error, wanted: None });
            } else {
                fail(outcome, &route, error);
            }
        }
        // The next routes count on the room of ranges that went.
        let gone: Vec<Retired> = retired.extract_if(.., |item| matches!(item, Retired::Source(..))).collect();
        if !gone.is_empty() {
            // Packets that have seen an old entry find its ranges, if the kernel can wait for them.
            tables.wait_grace_period();
            clean(state, tables, &gone);
        }
    }
    write_cluster_ips(state, tables, new_ips, outcome);
    clean(state, tables, &retired);
    full
}

/// Writes the routes for which everything is reserved. Returns why one could not be written, for each of them.
fn write(tables: &mut dyn Tables, operation: &'static str, staged: &[Staged]) -> Vec<Option<DatapathError>> {
    for one in staged {
        for (handle, backend) in &one.new_backends {
            tables.write_backend(one.family(), *handle, backend);
        }
    }
    for (base, ids) in staged.iter().flat_map(Staged::slots) {
        tables.write_slots(base, ids);
    }
    let mut errors: Vec<Option<DatapathError>> = Vec::new();
    errors.resize_with(staged.len(), || None);
    let mut names = Vec::new();
    let mut whose = Vec::new();
    for (place, one) in staged.iter().enumerate().filter(|(_, one)| one.new_name) {
        match encode_name(&one.programmed.route) {
            Ok(name) => {
                names.push((one.programmed.id, name));
                whose.push(place);
            }
            Err(why) => errors[place] = Some(error(operation, ErrorKind::InvalidInput, why)),
        }
    }
    for (index, error) in tables.write_names(&names) {
        errors[whose[index]] = Some(error);
    }
    for (one, error) in staged.iter().zip(&mut errors).filter(|(_, error)| error.is_none()) {
        let id = one.programmed.id;
        *error = one.new_sources.iter().find_map(|cidr| tables.write_source(id, cidr).err());
    }
    let (services, whose): (Vec<_>, Vec<_>) = (0..)
        .zip(staged)
        .filter(|(place, _)| errors[*place].is_none())
        .map(|(place, one)| ((one.programmed.route.frontend, one.programmed.service()), place))
        .unzip();
    for (index, error) in tables.write_services(&services) {
        errors[whose[index]] = Some(error);
    }
    errors
}

/// After all entries of `services`: a port whose entry is still to come is not refused.
fn write_cluster_ips(
    state: &mut State,
    tables: &mut dyn Tables,
    mut new: Vec<(IpAddr, Arc<Route>)>,
    outcome: &mut Outcome,
) {
    // Stable: of several routes on one, the first one answers for it.
    new.sort_by_key(|(ip, _)| *ip);
    new.dedup_by_key(|(ip, _)| *ip);
    let addresses: Vec<IpAddr> = new.iter().map(|(ip, _)| *ip).collect();
    let failures = tables.write_cluster_ips(&addresses);
    addresses.into_iter().for_each(|ip| state.set_written(ip, true));
    for (index, error) in failures {
        // The route serves, but it is not all that was asked for: it is written again with the next table.
        let (ip, route) = &new[index];
        state.set_written(*ip, false);
        outcome.upserted -= 1;
        fail(outcome, route, error);
    }
}

fn remove(
    state: &mut State,
    tables: &mut dyn Tables,
    frontends: &[Frontend],
    outcome: &mut Outcome,
    now: Now,
) {
    let mut failures = tables.remove_services(frontends).into_iter().peekable();
    let mut retired = Vec::new();
    for (place, frontend) in frontends.iter().enumerate() {
        match failures.next_if(|(index, _)| *index == place) {
            None => {
                outcome.removed += usize::from(state.get(frontend).is_some());
                retired.extend(state.remove(frontend, now));
            }
            Some((_, error)) => {
                if let Some(route) = state.get(frontend).map(|p| Arc::clone(&p.route)) {
                    fail(outcome, &route, error);
                }
            }
        }
    }
    clean(state, tables, &retired);
}

fn clean(state: &State, tables: &mut dyn Tables, retired: &[Retired]) {
    let (mut names, mut ips) = (Vec::new(), Vec::new());
    for item in retired {
        match *item {
            Retired::Backend(family, id) => tables.kill_backend(family, id),
            // A route that was written later may be on it.
            Retired::ClusterIp(ip) if state.is_written(ip) => {}
            Retired::ClusterIp(ip) => ips.push(ip),
            Retired::Name(id) => names.push(id),
            Retired::Source(id, cidr) => {
                // It counts for nobody, and the next audit removes it.
                if let Err(error) = tables.remove_source(id, &cidr) {
                    tracing::warn!(%error, id, %cidr, "cannot remove a source range");
                }
            }
        }
    }
    for (index, error) in tables.remove_cluster_ips(&ips) {
        // The next audit removes it.
        tracing::warn!(%error, ip = %ips[index], "cannot remove a cluster IP");
    }
    for (index, error) in tables.remove_names(&names) {
        // A name that stays behind is overwritten when its id is used again.
        tracing::warn!(%error, id = names[index], "cannot remove the name of a service id");
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
