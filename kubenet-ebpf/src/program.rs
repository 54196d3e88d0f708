//! Writes routes to the maps, in the order that keeps every packet's view whole.
//!
//! New backends, then the slots that name them and source ranges, then the one entry of `services`, which
//! switches the packets over at once; then the cluster IPs that are new, as their other ports are refused from then
//! on; then the frontends that go; then what nothing refers to any more.

use std::{
    net::IpAddr,
    panic::resume_unwind,
    sync::{
        Arc,
        mpsc::{self, SendError},
    },
    thread::{self, ScopedJoinHandle},
};

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
///
/// Any thread may call. What packets meet in one call and need from another is written in two calls, one after the
/// other.
pub(crate) trait Tables: Sync {
    fn write_backend(&self, family: IpFamily, handle: Handle, backend: &Backend);
    /// Marks a backend dead. Its address stays: a packet may just have picked it.
    fn kill_backend(&self, family: IpFamily, id: u32);
    fn write_slots(&self, base: u32, ids: &[u32]);
    fn write_names(&self, names: &[(u32, layout::ServiceName)]) -> Failures;
    /// A name that is not there is no error; the same holds for everything else that is removed.
    fn remove_names(&self, ids: &[u32]) -> Failures;
    /// Ports of these cluster IPs that are no Service ports are refused from now on.
    fn write_cluster_ips(&self, addresses: &[IpAddr]) -> Failures;
    fn remove_cluster_ips(&self, addresses: &[IpAddr]) -> Failures;
    /// Ranges from which clients may reach the Service with this id.
    fn write_sources(&self, sources: &[(u32, IpNet)]) -> Failures;
    fn remove_sources(&self, sources: &[(u32, IpNet)]) -> Failures;
    fn write_services(&self, services: &[(Frontend, layout::Service)]) -> Failures;
    fn remove_services(&self, frontends: &[Frontend]) -> Failures;
    /// Waits until no packet can see anything that was replaced before. False where that is not possible.
    fn wait_grace_period(&self) -> bool;
}

/// The first failure, where one is as bad as all.
pub(crate) fn done(failures: Failures) -> Result<(), DatapathError> {
    failures.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
}

/// So many routes are written together: enough for a call of the kernel to cost nothing, and few enough to stay in
/// the processor's caches. Tests look at the borders.
const TOGETHER: usize = if cfg!(test) { 3 } else { 1024 };

/// From so many routes on, two threads share the work.
const WORTH_A_THREAD: usize = if cfg!(test) { 2 * TOGETHER } else { 16 * TOGETHER };

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
    tables: &dyn Tables,
    capabilities: &Capabilities,
    operation: &'static str,
    (upserts, removals): (Vec<Arc<Route>>, Vec<Frontend>),
    now: Now,
) -> Outcome {
    let mut outcome = Outcome::default();
    let about = About { tables, capabilities, operation, now };
    let full = write_all(state, about, &upserts, &mut outcome);
    for frontends in removals.chunks(TOGETHER) {
        remove(state, tables, frontends, &mut outcome, now);
    }
    // What was just replaced or removed makes room once no packet can see it.
    let mut still_full = if !full.is_empty() && wake(state, tables) {
        write_all(state, about, &again(full), &mut outcome)
    } else {
        full
    };
    // One place for all of them, if there is one.
    let wanted = still_full.iter().filter_map(|full| full.wanted).fold(0, u32::saturating_add);
    if still_full.len() > 1 && wanted > 0 && make_room(state, tables, wanted, now) {
        still_full = write_all(state, about, &again(still_full), &mut outcome);
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
            match write_all(state, about, &[full.route], &mut outcome).pop() {
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

fn again(full: Vec<Full>) -> Vec<Arc<Route>> {
    full.into_iter().map(|full| full.route).collect()
}

/// Whether something that rested may be used again.
fn wake(state: &mut State, tables: &dyn Tables) -> bool {
    let woken = state.has_resting() && tables.wait_grace_period();
    if woken {
        state.wake_all();
    }
    woken
}

/// Makes room for so many slots in one piece. Every packet finds each set whole, where it was or where it is then.
fn make_room(state: &mut State, tables: &dyn Tables, wanted: u32, now: Now) -> bool {
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
fn relocate(state: &mut State, tables: &dyn Tables, to: &Move) -> bool {
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
fn write_all(state: &mut State, about: About<'_>, routes: &[Arc<Route>], outcome: &mut Outcome) -> Vec<Full> {
    state.expect(routes);
    let mut work = Work { state, about, outcome, full: Vec::new(), retired: Vec::new(), new_ips: Vec::new() };
    if routes.len() < WORTH_A_THREAD {
        for routes in routes.chunks(TOGETHER) {
            let (staged, full) = work.stage(routes);
            work.full.extend(full);
            let errors = write(about, &staged);
            work.settle(staged, errors);
        }
    } else {
        work.write_beside(routes);
    }
    let Work { state, outcome, full, retired, new_ips, .. } = work;
    write_cluster_ips(state, about.tables, &new_ips, outcome);
    clean(state, about.tables, &retired);
    full
}

/// What stays the same while a table is programmed.
#[derive(Clone, Copy)]
struct About<'a> {
    tables: &'a dyn Tables,
    capabilities: &'a Capabilities,
    operation: &'static str,
    now: Now,
}

/// Routes on their way into the maps.
struct Work<'a> {
    state: &'a mut State,
    about: About<'a>,
    outcome: &'a mut Outcome,
    full: Vec<Full>,
    retired: Vec<Retired>,
    new_ips: Vec<(IpAddr, Arc<Route>)>,
}

impl Work<'_> {
    /// Reserves what these routes need, and writes what no packet meets before the rest is written. Returns those for
    /// which there is no room, too.
    fn stage(&mut self, routes: &[Arc<Route>]) -> (Vec<Staged>, Vec<Full>) {
        let About { tables, capabilities, operation, now } = self.about;
        let mut staged: Vec<Staged> = Vec::with_capacity(routes.len());
        let mut full = Vec::new();
        for route in routes {
            if let Err(why) = capabilities.check(route) {
                fail(self.outcome, route, error(operation, ErrorKind::Unsupported, why));
                continue;
            }
            match self.state.stage(route, now) {
                Ok(one) => staged.push(one),
                Err(refused) => {
                    let (may_retry, wanted) = (refused.is_full(), refused.wants_room());
                    let (route, error) = (Arc::clone(route), refused.into_error(operation));
                    if may_retry {
                        full.push(Full { route, error, wanted });
                    } else {
                        fail(self.outcome, &route, error);
                    }
                }
            }
        }
        for one in &staged {
            for (handle, backend) in &one.new_backends {
                tables.write_backend(one.family(), *handle, backend);
            }
        }
        for (base, ids) in staged.iter().flat_map(Staged::slots) {
            tables.write_slots(base, ids);
        }
        (staged, full)
    }

    /// They are written, or could not be.
    fn settle(&mut self, staged: Vec<Staged>, errors: Vec<Option<DatapathError>>) {
        let now = self.about.now;
        let mut gone = Vec::new();
        for (staged, error) in staged.into_iter().zip(errors) {
            let retired = match error {
                None => {
                    self.outcome.upserted += 1;
                    let route = &staged.programmed.route;
                    if let Some(ip) = cluster_ip(route).filter(|ip| self.state.claim_cluster_ip(*ip)) {
                        self.new_ips.push((ip, Arc::clone(route)));
                    }
                    self.state.commit(staged, now)
                }
                Some(error) => {
                    let route = Arc::clone(&staged.programmed.route);
                    let retired = self.state.abort(staged, now);
                    if error.kind() == ErrorKind::Capacity {
                        self.full.push(Full { route, error, wanted: None });
                    } else {
                        fail(self.outcome, &route, error);
                    }
                    retired
                }
            };
            for item in retired {
                let is_source = matches!(item, Retired::Source(..));
                if is_source { &mut gone } else { &mut self.retired }.push(item);
            }
        }
        // The next routes count on the room of ranges that went.
        if !gone.is_empty() {
            // Packets that have seen an old entry find its ranges, if the kernel can wait for them.
            self.about.tables.wait_grace_period();
            clean(self.state, self.about.tables, &gone);
        }
    }

    /// Another thread calls the kernel, while this one reserves what the next routes need.
    fn write_beside(&mut self, routes: &[Arc<Route>]) {
        let about = self.about;
        thread::scope(|scope| {
            let (give, given) = mpsc::sync_channel::<Vec<Staged>>(1);
            let (done, results) = mpsc::channel();
            let writer = thread::Builder::new().name("kubenet-write".into()).spawn_scoped(scope, move || {
                for staged in given {
                    let errors = write(about, &staged);
                    if done.send((staged, errors)).is_err() {
                        break;
                    }
                }
            });
            let mut on_the_way = 0;
            for routes in routes.chunks(TOGETHER) {
                let (mut staged, mut full) = self.stage(routes);
                if !full.is_empty() && on_the_way > 0 {
                    // Those before them make room.
                    for (staged, errors) in results.iter().take(std::mem::take(&mut on_the_way)) {
                        self.settle(staged, errors);
                    }
                    let (more, rest) = self.stage(&again(full));
                    staged.extend(more);
                    full = rest;
                }
                self.full.extend(full);
                match give.send(staged) {
                    Ok(()) => on_the_way += 1,
                    // There is no other thread.
                    Err(SendError(staged)) => {
                        let errors = write(about, &staged);
                        self.settle(staged, errors);
                    }
                }
                while let Ok((staged, errors)) = results.try_recv() {
                    on_the_way -= 1;
                    self.settle(staged, errors);
                }
            }
            for (staged, errors) in results.iter().take(on_the_way) {
                self.settle(staged, errors);
            }
            drop(give);
            if let Some(Err(panic)) = writer.ok().map(ScopedJoinHandle::join) {
                resume_unwind(panic);
            }
        });
    }
}

/// Writes the rest of routes whose backends and slots are written. Returns why one could not be, for each of them.
fn write(about: About<'_>, staged: &[Staged]) -> Vec<Option<DatapathError>> {
    let About { tables, operation, .. } = about;
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
    let (sources, whose): (Vec<_>, Vec<_>) = (0..)
        .zip(staged)
        .filter(|(place, _)| errors[*place].is_none())
        .flat_map(|(place, one)| one.new_sources.iter().map(move |cidr| ((one.programmed.id, *cidr), place)))
        .unzip();
    for (index, error) in tables.write_sources(&sources) {
        errors[whose[index]] = Some(error);
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
    tables: &dyn Tables,
    new: &[(IpAddr, Arc<Route>)],
    outcome: &mut Outcome,
) {
    let addresses: Vec<IpAddr> = new.iter().map(|(ip, _)| *ip).collect();
    let (first, second) = match addresses.len() {
        few if few < WORTH_A_THREAD => (&addresses[..], &[][..]),
        many => addresses.split_at(many / 2),
    };
    let failures = thread::scope(|scope| {
        let other = (!second.is_empty())
            .then(|| thread::Builder::new().spawn_scoped(scope, || tables.write_cluster_ips(second)).ok());
        let mut failures = tables.write_cluster_ips(first);
        let more = match other.flatten().map(ScopedJoinHandle::join) {
            Some(Ok(more)) => more,
            Some(Err(panic)) => resume_unwind(panic),
            None => tables.write_cluster_ips(second),
        };
        failures.extend(more.into_iter().map(|(place, error)| (first.len() + place, error)));
        failures
    });
    for (index, error) in failures {
        // The route serves, but it is not all that was asked for: it is written again with the next table.
        let (ip, route) = &new[index];
        state.unclaim_cluster_ip(*ip);
        outcome.upserted -= 1;
        fail(outcome, route, error);
    }
}

fn remove(state: &mut State, tables: &dyn Tables, frontends: &[Frontend], outcome: &mut Outcome, now: Now) {
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

fn clean(state: &State, tables: &dyn Tables, retired: &[Retired]) {
    let (mut names, mut ips, mut sources) = (Vec::new(), Vec::new(), Vec::new());
    for item in retired {
        match *item {
            Retired::Backend(family, id) => tables.kill_backend(family, id),
            // A route that was written later may be on it.
            Retired::ClusterIp(ip) if state.is_written(ip) => {}
            Retired::ClusterIp(ip) => ips.push(ip),
            Retired::Name(id) => names.push(id),
            Retired::Source(id, cidr) => sources.push((id, cidr)),
        }
    }
    for (index, error) in tables.remove_sources(&sources) {
        // It counts for nobody, and the next audit removes it.
        let (id, cidr) = sources[index];
        tracing::warn!(%error, id, %cidr, "cannot remove a source range");
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
