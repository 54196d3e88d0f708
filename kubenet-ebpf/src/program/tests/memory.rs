//! Maps in memory.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use kubenet_core::route::FrontendAddress;

use super::*;
use crate::decode::{Arrays, Entry, Snapshot};

/// What a packet finds behind a frontend: the backends by their generation-checked entries.
pub(super) type View = BTreeMap<Frontend, (Seen, Seen, u32, BTreeSet<IpNet>)>;
/// Backends, and how many slots each has.
pub(super) type Seen = BTreeMap<Backend, u32>;

/// Maps in memory, which look after every write whether a packet sees only whole routes.
pub(super) struct Memory {
    pub(super) sizes: MapSizes,
    pub(super) backends: HashMap<(IpFamily, u32), (Handle, Backend, bool)>,
    pub(super) slots: HashMap<u32, u32>,
    pub(super) names: HashMap<u32, layout::ServiceName>,
    pub(super) services: BTreeMap<Frontend, layout::Service>,
    pub(super) sources: BTreeSet<(u32, IpNet)>,
    pub(super) cluster_ips: BTreeSet<IpAddr>,
    /// What each frontend may show: before the change and after it.
    pub(super) allowed: [View; 2],
    /// Frontends of the new table that had no entry yet when the rest of their cluster IP was refused.
    pub(super) refused: Vec<Frontend>,
    pub(super) grace_periods: usize,
    /// What entries of `services` showed that were replaced or removed since the last grace period: packets may
    /// still go on with them.
    pub(super) old: Vec<(Frontend, layout::Service, [Vec<Backend>; 2])>,
    /// There is no memory for another entry in the place of one that is there.
    pub(super) no_memory: bool,
    /// Every id that was ever written, with its generation: connections may know it still.
    pub(super) handed_out: BTreeSet<(IpFamily, u32, u32)>,
    /// After so many writes the process ends.
    pub(super) writes_left: usize,
    /// Somebody damaged the maps: what packets see is not judged.
    pub(super) is_damaged: bool,
}

/// What the process ends with.
pub(super) struct Crash;

impl Memory {
    pub(super) fn new(sizes: MapSizes) -> Self {
        Self {
            sizes,
            backends: HashMap::new(),
            slots: HashMap::new(),
            names: HashMap::new(),
            services: BTreeMap::new(),
            sources: BTreeSet::new(),
            cluster_ips: BTreeSet::new(),
            allowed: Default::default(),
            refused: Vec::new(),
            grace_periods: 0,
            old: Vec::new(),
            no_memory: false,
            handed_out: BTreeSet::new(),
            writes_left: usize::MAX,
            is_damaged: false,
        }
    }

    fn write(&mut self) {
        match self.writes_left.checked_sub(1) {
            Some(left) => self.writes_left = left,
            None => resume_unwind(Box::new(Crash)),
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot {
            services: self.services.clone(),
            names: self.names.clone(),
            cluster_ips: self.cluster_ips.iter().copied().collect(),
            ..Snapshot::default()
        };
        for (id, cidr) in &self.sources {
            snapshot.sources.entry(*id).or_default().insert(*cidr);
        }
        snapshot
    }

    /// The backends of a set, each with what is behind it of all slots.
    fn set(&self, frontend: &Frontend, base: u32, count: u32) -> Seen {
        let mut shares = BTreeMap::<Backend, u32>::new();
        for slot in base..base + count {
            let id = self.slots[&slot];
            let (_, backend, alive) = self.backends[&(frontend.family(), id)];
            assert!(alive, "{frontend}: slot {slot} names the dead backend {id}");
            *shares.entry(Backend { weight: NonZeroU16::MIN, ..backend }).or_default() += 1;
        }
        shares
    }

    /// The backends that a packet may pick which has read this entry, dead ones among them.
    fn picks(&self, frontend: &Frontend, service: &layout::Service) -> [Vec<Backend>; 2] {
        let ranges = [
            (service.internal_base, service.internal_count),
            (service.external_base, service.external_count),
        ];
        ranges.map(|(base, count)| {
            let ids = (base..base + count).map(|slot| self.slots[&slot]);
            let backend = |id| self.backends[&(frontend.family(), id)].1;
            let mut backends: Vec<Backend> = ids.map(backend).collect();
            backends.sort_unstable();
            backends
        })
    }

    fn note_old(&mut self, frontend: &Frontend) {
        if let Some(service) = self.services.get(frontend).filter(|_| !self.is_damaged) {
            self.old.push((*frontend, *service, self.picks(frontend, service)));
        }
    }

    pub(super) fn view(&self) -> View {
        self.services
            .iter()
            .map(|(frontend, s)| {
                let internal = self.set(frontend, s.internal_base, s.internal_count);
                let external = self.set(frontend, s.external_base, s.external_count);
                let sources = self.sources.iter().filter(|(id, _)| *id == s.id).map(|(_, cidr)| *cidr);
                (*frontend, (internal, external, s.flags & !layout::SVC_CUTS, sources.collect()))
            })
            .collect()
    }

    fn look(&self) {
        if self.is_damaged {
            return;
        }
        for (frontend, service, picks) in &self.old {
            assert_eq!(
                self.picks(frontend, service),
                *picks,
                "{frontend}: slots that a packet may still read"
            );
        }
        for (frontend, seen) in self.view() {
            // Of both routes' source ranges, none may be missing while the other's are there, too.
            let ranges = |view: &View| view.get(&frontend).map_or(BTreeSet::new(), |v| v.3.clone());
            let either: BTreeSet<IpNet> = self.allowed.iter().flat_map(ranges).collect();
            let fits = |view: &View| {
                view.get(&frontend).is_some_and(|(internal, external, flags, sources)| {
                    (internal, external, flags) == (&seen.0, &seen.1, &seen.2)
                        && sources.is_subset(&seen.3)
                        && seen.3.is_subset(&either)
                })
            };
            assert!(
                self.allowed.iter().any(fits),
                "{frontend}: a packet sees {seen:?}, neither the old route nor the new one"
            );
        }
    }
}

fn full(map: &str) -> DatapathError {
    error("test", ErrorKind::Capacity, format!("map {map} is full"))
}

impl Arrays for Memory {
    fn slots(&self) -> u32 {
        self.sizes.slots
    }

    fn slot(&self, index: u32) -> Option<u32> {
        (index < self.sizes.slots).then(|| self.slots.get(&index).copied().unwrap_or_default())
    }

    fn backend(&self, family: IpFamily, id: u32) -> Option<Entry> {
        let (handle, backend, alive) = *self.backends.get(&(family, id))?;
        Some(Entry { backend, generation: handle.generation, alive })
    }

    fn generation(&self, family: IpFamily, id: u32) -> u32 {
        self.backends.get(&(family, id)).map_or(0, |(handle, _, _)| handle.generation)
    }
}

impl Memory {
    fn write_backend(&mut self, family: IpFamily, handle: Handle, backend: &Backend) {
        self.write();
        let size = if family == IpFamily::V4 { self.sizes.backends4 } else { self.sizes.backends6 };
        assert!(handle.id > 0 && handle.id < size);
        let is_new = self.handed_out.insert((family, handle.id, handle.generation));
        assert!(is_new, "{handle:?} stood for another backend before");
        self.backends.insert((family, handle.id), (handle, *backend, true));
        self.look();
    }

    fn kill_backend(&mut self, family: IpFamily, id: u32) {
        self.write();
        if let Some(entry) = self.backends.get_mut(&(family, id)) {
            entry.2 = false;
        }
        self.look();
    }

    fn write_slots(&mut self, base: u32, ids: &[u32]) {
        for (slot, id) in (base..).zip(ids) {
            self.write();
            assert!(slot < self.sizes.slots);
            self.slots.insert(slot, *id);
            if ids.len() < 1000 {
                self.look();
            }
        }
    }

    fn write_names(&mut self, names: &[(u32, layout::ServiceName)]) -> Failures {
        for (id, name) in names {
            self.write();
            self.names.insert(*id, *name);
        }
        Vec::new()
    }

    fn remove_names(&mut self, ids: &[u32]) -> Failures {
        for id in ids {
            self.write();
            self.names.remove(id);
        }
        Vec::new()
    }

    fn write_cluster_ips(&mut self, addresses: &[IpAddr]) -> Failures {
        for address in addresses {
            self.write();
            self.cluster_ips.insert(*address);
            let to_come = self.allowed[1].keys().filter(|f| f.address == FrontendAddress::Ip(*address));
            self.refused.extend(to_come.filter(|f| !self.services.contains_key(f)));
        }
        Vec::new()
    }

    fn remove_cluster_ips(&mut self, addresses: &[IpAddr]) -> Failures {
        for address in addresses {
            self.write();
            self.cluster_ips.remove(address);
        }
        Vec::new()
    }

    fn write_sources(&mut self, sources: &[(u32, IpNet)]) -> Failures {
        for (service, cidr) in sources {
            self.write();
            let of_family = |c: &IpNet| IpFamily::of(c.addr()) == IpFamily::of(cidr.addr());
            let there = self.sources.iter().filter(|(_, c)| of_family(c)).count();
            assert!(there < self.sizes.source_ranges as usize, "room is looked for before");
            self.sources.insert((*service, *cidr));
            self.look();
        }
        Vec::new()
    }

    fn remove_sources(&mut self, sources: &[(u32, IpNet)]) -> Failures {
        for source in sources {
            self.write();
            self.sources.remove(source);
            self.look();
        }
        Vec::new()
    }

    fn write_services(&mut self, services: &[(Frontend, layout::Service)]) -> Failures {
        let mut failures = Vec::new();
        for (place, (frontend, service)) in services.iter().enumerate() {
            self.write();
            let family = self.services.keys().filter(|f| f.family() == frontend.family()).count();
            if !self.services.contains_key(frontend) && family >= self.sizes.services as usize {
                failures.push((place, full("services")));
                continue;
            }
            if self.no_memory && self.services.contains_key(frontend) {
                failures.push((place, error("test", ErrorKind::Unavailable, "no memory")));
                continue;
            }
            assert!(self.names.contains_key(&service.id), "the name comes before the service");
            self.note_old(frontend);
            self.services.insert(*frontend, *service);
            self.look();
        }
        failures
    }

    fn remove_services(&mut self, frontends: &[Frontend]) -> Failures {
        for frontend in frontends {
            self.write();
            self.note_old(frontend);
            self.services.remove(frontend);
        }
        Vec::new()
    }

    fn wait_grace_period(&mut self) -> bool {
        self.grace_periods += 1;
        self.old.clear();
        true
    }
}

/// The same, for all threads: one after the other, in any order.
pub(super) struct Shared<'a>(Mutex<&'a mut Memory>);

impl<'a> Shared<'a> {
    pub(super) fn new(memory: &'a mut Memory) -> Self {
        Self(Mutex::new(memory))
    }

    fn get(&self) -> MutexGuard<'_, &'a mut Memory> {
        // The process ends in a thread that has it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables for Shared<'_> {
    fn write_backend(&self, family: IpFamily, handle: Handle, backend: &Backend) {
        self.get().write_backend(family, handle, backend);
    }

    fn kill_backend(&self, family: IpFamily, id: u32) {
        self.get().kill_backend(family, id);
    }

    fn write_slots(&self, base: u32, ids: &[u32]) {
        self.get().write_slots(base, ids);
    }

    fn write_names(&self, names: &[(u32, layout::ServiceName)]) -> Failures {
        self.get().write_names(names)
    }

    fn remove_names(&self, ids: &[u32]) -> Failures {
        self.get().remove_names(ids)
    }

    fn write_cluster_ips(&self, addresses: &[IpAddr]) -> Failures {
        self.get().write_cluster_ips(addresses)
    }

    fn remove_cluster_ips(&self, addresses: &[IpAddr]) -> Failures {
        self.get().remove_cluster_ips(addresses)
    }

    fn write_sources(&self, sources: &[(u32, IpNet)]) -> Failures {
        self.get().write_sources(sources)
    }

    fn remove_sources(&self, sources: &[(u32, IpNet)]) -> Failures {
        self.get().remove_sources(sources)
    }

    fn write_services(&self, services: &[(Frontend, layout::Service)]) -> Failures {
        self.get().write_services(services)
    }

    fn remove_services(&self, frontends: &[Frontend]) -> Failures {
        self.get().remove_services(frontends)
    }

    fn wait_grace_period(&self) -> bool {
        self.get().wait_grace_period()
    }
}
