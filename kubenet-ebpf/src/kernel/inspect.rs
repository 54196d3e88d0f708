//! Reads what is pinned, beside the process that uses it.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    fs::{self, File},
    io,
    net::SocketAddr,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aya::maps::{MapData, MapError};
use kubenet_core::{
    datapath::{BackendName, Counters, DatapathError, DatapathEvent, ErrorKind},
    model::{IpFamily, Protocol},
    route::{Revision, RouteTable, ServicePortName},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::{
    clock,
    events::{RENEWAL, Reader, Ring},
    maps::{FamilyMaps, Maps},
    node, object, sys,
};
use crate::{
    BackendEntry, Connection, MapSizes, Metric, Metrics, StickyClient,
    decode::{Arrays, Snapshot},
    error::{caused, error},
    layout::{
        Addr4, Addr6, Address, AffinityKey, Be16, CLOCK_SHIFT, CONFIG_DRAINING, CT_FIN, CT_RST,
        CT_SEEN_REPLY, Choice, Pair,
    },
    names::decode_name,
    pin,
};

const OPERATION: &str = "inspect";

/// Maps of a directory.
pub(crate) struct Inspection {
    directory: PathBuf,
    maps: Maps,
    affinity4: MapData,
    affinity6: MapData,
}

impl fmt::Debug for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inspection").finish_non_exhaustive()
    }
}

impl Inspection {
    pub(crate) fn open(path: &Path) -> Result<Self, DatapathError> {
        let maps = pin::maps_in(path);
        if let Err(e) = fs::metadata(&maps) {
            let message = format!("{}: no maps of this library's layout are pinned there", maps.display());
            return Err(caused(OPERATION, ErrorKind::Unavailable, message, e));
        }
        pin::check_maps(&maps, &object::shapes(&MapSizes::default())?, true)?;
        let affinity = |name: &str| {
            MapData::from_pin(maps.join(name)).map_err(|e| {
                let message = format!("{}: the map {name} cannot be opened", maps.display());
                caused(OPERATION, ErrorKind::Unavailable, message, e)
            })
        };
        let (affinity4, affinity6) = (affinity("affinity4")?, affinity("affinity6")?);
        let directory = maps;
        let mut maps = Maps::open(&directory)?;
        maps.operation = OPERATION;
        Ok(Self { directory, maps, affinity4, affinity6 })
    }

    pub(crate) fn table(&self) -> Result<RouteTable, DatapathError> {
        let routes = self.maps.snapshot()?.routes(&self.maps);
        Ok(RouteTable::new(Revision::default(), node::read(&self.maps)?, routes))
    }

    pub(crate) fn backends(&self) -> Vec<BackendEntry> {
        let of = |family: IpFamily, size: u32| {
            (1..size).filter(move |id| self.maps.generation(family, *id) != 0).filter_map(move |id| {
                let entry = self.maps.backend(family, id)?;
                let (backend, generation) = (entry.backend, entry.generation);
                Some(BackendEntry { id, generation, backend, in_use: entry.alive })
            })
        };
        of(IpFamily::V4, self.maps.v4.backends.len())
            .chain(of(IpFamily::V6, self.maps.v6.backends.len()))
            .collect()
    }

    pub(crate) fn connections(&self) -> Result<Vec<Connection>, DatapathError> {
        let owners = owners(&self.maps.snapshot()?, |service| service.id);
        let now = clock::ticks().map_err(|e| self.maps.unreadable("flows4", e))?;
        let mut found = Vec::new();
        let result = connections(&self.maps.v4, now, &owners, &mut found);
        result.map_err(|e| self.maps.unreadable("flows4", e))?;
        let result = connections(&self.maps.v6, now, &owners, &mut found);
        result.map_err(|e| self.maps.unreadable("flows6", e))?;
        Ok(found)
    }

    pub(crate) fn clients(&self) -> Result<Vec<StickyClient>, DatapathError> {
        let owners = owners(&self.maps.snapshot()?, |service| service.affinity);
        let now = clock::ticks().map_err(|e| self.maps.unreadable("affinity4", e))?;
        let mut found = Vec::new();
        let mut add = |family, affinity, client, choice: Choice| {
            let entry = self.maps.backend(family, choice.backend);
            let entry = entry.filter(|entry| entry.alive && entry.generation == choice.generation);
            let ticks = clock::age(now, (choice.last_new >> CLOCK_SHIFT) as u32);
            found.push(StickyClient {
                client,
                service_port: owners.get(&affinity).cloned(),
                backend: entry.map(|entry| entry.backend),
                idle: clock::duration(ticks),
            });
        };
        let visit =
            |key: AffinityKey<Addr4>, choice| add(IpFamily::V4, key.affinity, key.addr.into(), choice);
        sys::for_each(self.affinity4.fd().as_fd(), visit)
            .map_err(|e| self.maps.unreadable("affinity4", e))?;
        let visit =
            |key: AffinityKey<Addr6>, choice| add(IpFamily::V6, key.affinity, key.addr.into(), choice);
        sys::for_each(self.affinity6.fd().as_fd(), visit)
            .map_err(|e| self.maps.unreadable("affinity6", e))?;
        Ok(found)
    }

    pub(crate) fn metrics(&self) -> Result<Metrics, DatapathError> {
        (0..).zip(Metric::ALL).map(|(index, metric)| Ok((metric, self.maps.metric(index)?))).collect()
    }

    pub(crate) fn counters(&self) -> Result<Counters, DatapathError> {
        let snapshot = self.maps.snapshot()?;
        let mut counters = Counters::default();
        let mut seen = HashSet::new();
        for (frontend, service) in &snapshot.services {
            counters.routes.insert(*frontend, self.maps.traffic.numbers(service.id));
            let Some(decoded) = snapshot.decode(&self.maps, frontend, service) else { continue };
            let family = frontend.family();
            for member in decoded.sets().flat_map(|set| &set.members) {
                // The frontends of a Service port share its backends.
                if !seen.insert((family, member.id)) {
                    continue;
                }
                let name = BackendName {
                    service_port: decoded.route.service_port.clone(),
                    protocol: frontend.protocol,
                    address: member.address,
                };
                *counters.backends.entry(name).or_default() += self.maps.backend_traffic(family, member.id);
            }
        }
        Ok(counters)
    }

    pub(crate) fn follow(&self) -> Result<Follower, DatapathError> {
        let here = self.directory.display();
        let failed =
            |message: String| move |e: io::Error| caused("follow", ErrorKind::Unavailable, message, e);
        let directory = File::open(&self.directory).map_err(failed(format!("{here}: cannot be opened")))?;
        let lock = match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EAGAIN)) => {
                let message =
                    format!("{here}: somebody follows these events already, and a ring has one reader");
                return Err(error("follow", ErrorKind::Unavailable, message));
            }
            Err((_, e)) => return Err(failed(format!("{here}: cannot be locked"))(e.into())),
        };
        let ring = Ring::open(&self.maps, Reader::Follower)
            .map_err(|e| caused("follow", ErrorKind::Unavailable, "the ring of events cannot be read", e))?;
        Ok(Follower { ring, waiting: VecDeque::new(), _lock: lock })
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.maps.config().flags & CONFIG_DRAINING != 0
    }
}

/// The one reader from outside.
pub(crate) struct Follower {
    ring: Ring,
    waiting: VecDeque<DatapathEvent>,
    _lock: Flock<File>,
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").finish_non_exhaustive()
    }
}

impl Follower {
    pub(crate) fn next(&mut self, timeout: Duration) -> Result<Option<DatapathEvent>, DatapathError> {
        self.try_next(timeout)
            .map_err(|e| caused("follow", ErrorKind::Unavailable, "the ring of events cannot be read", e))
    }

    fn try_next(&mut self, timeout: Duration) -> Result<Option<DatapathEvent>, MapError> {
        // None is later than any clock will be.
        let end = Instant::now().checked_add(timeout);
        loop {
            self.ring.renew()?;
            if self.waiting.is_empty() {
                self.ring.read(|event| self.waiting.push_back(event))?;
            }
            let left = end.map_or(RENEWAL, |end| end.saturating_duration_since(Instant::now()));
            if !self.waiting.is_empty() || left.is_zero() {
                return Ok(self.waiting.pop_front());
            }
            self.ring.wait(None, left.min(RENEWAL))?;
        }
    }
}

/// Whose an id is.
fn owners(snapshot: &Snapshot, id: impl Fn(&crate::layout::Service) -> u32) -> HashMap<u32, ServicePortName> {
    let owner = |service| Some((id(service), decode_name(snapshot.names.get(&service.id)?)?.0));
    snapshot.services.values().filter_map(owner).collect()
}

fn connections<A: Address>(
    maps: &FamilyMaps<A>,
    now: u32,
    owners: &HashMap<u32, ServicePortName>,
    found: &mut Vec<Connection>,
) -> io::Result<()> {
    let at = |address: A, port: Be16| SocketAddr::new(address.into(), port.into());
    for Pair { there, .. } in maps.flows()? {
        let Some(protocol) = Protocol::from_number(there.proto()) else { continue };
        found.push(Connection {
            protocol,
            client: at(there.key.saddr, there.key.sport),
            frontend: at(there.key.daddr, there.key.dport),
            source: at(there.target.saddr, there.target.sport),
            backend: at(there.target.daddr, there.target.dport),
            service_port: owners.get(&there.service).cloned(),
            idle: clock::duration(clock::age(now, there.last_seen)),
            is_answered: there.flags & CT_SEEN_REPLY != 0,
            is_closing: there.flags & (CT_FIN | CT_RST) != 0,
        });
    }
    Ok(())
}
