//! The maps, typed.

use std::{collections::HashSet, io, net::IpAddr, num::NonZeroU16, os::fd::AsFd, path::Path, sync::Arc};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, IterableMap, LpmTrie, Map, MapData, MapError, PerCpuArray, lpm_trie},
};
use ipnet::IpNet;
use kubenet_core::{
    datapath::{DatapathError, ErrorKind, Traffic},
    model::{IpFamily, Protocol},
    route::{Backend, BackendState, Frontend, FrontendAddress},
};
use nix::errno::Errno;

use super::{mmap::Mapped, sys};
use crate::{
    decode::{Arrays, Entry, Snapshot},
    error::{caused, error},
    ids::Handle,
    layout::{
        self, Addr4, Addr6, Address, BACKEND_ALIVE, BACKEND_LOCAL, BACKEND_TERMINATING, Be16, CT_PROTO_SHIFT,
        Config, Conntrack, FlowSeed, Pair, Service, ServiceKey, ServiceName, SocketFlow, SourceRange,
        XdpDevices,
    },
    state::State,
};

/// Every map of the object that user space reads or writes.
pub(crate) struct Maps {
    pub(crate) v4: FamilyMaps<Addr4>,
    pub(crate) v6: FamilyMaps<Addr6>,
    pub(crate) slots: Mapped<u32>,
    pub(crate) config: Mapped<Config>,
    /// By service id.
    pub(super) traffic: Mapped<layout::Traffic>,
    pub(crate) loopback: LpmTrie<MapData, Addr4, u32>,
    pub(super) names: HashMap<MapData, u32, ServiceName>,
    /// By the indexes of interfaces.
    pub(super) pod_interfaces: HashMap<MapData, u32, u32>,
    pub(super) pod_peers: HashMap<MapData, u32, u32>,
    /// By the cookies of sockets.
    pub(super) socket_flows: HashMap<MapData, u64, SocketFlow>,
    /// Read at the next start.
    flow_seed: Mapped<FlowSeed>,
    metrics: PerCpuArray<MapData, u64>,
    xdp_devices: Array<MapData, XdpDevices>,
    /// The rings of those who listen, who they are, and what each may hear.
    pub(super) events: MapData,
    pub(super) followed: MapData,
    pub(super) listeners: Arc<Mapped<layout::Listeners>>,
    /// What is going on, for errors.
    pub(crate) operation: &'static str,
}

/// The maps of one address family.
pub(crate) struct FamilyMaps<A: Address> {
    pub(super) services: HashMap<MapData, ServiceKey<A>, Service>,
    pub(super) cluster_ips: HashMap<MapData, A, u32>,
    /// Other addresses with Services.
    pub(super) service_addrs: HashMap<MapData, A, u32>,
    pub(crate) backends: Mapped<layout::Backend<A>>,
    /// By backend id.
    pub(super) traffic: Mapped<layout::Traffic>,
    /// Mapped only while somebody reads: it is large.
    flows: MapData,
    pub(crate) node_addrs: HashMap<MapData, A, u32>,
    pub(crate) pod_cidrs: LpmTrie<MapData, A, u32>,
    pub(super) source_ranges: LpmTrie<MapData, SourceRange<A>, u32>,
}

/// Word of `struct config` with the flags.
const CONFIG_FLAGS_WORD: usize = 1;

/// Where maps come from, by their names.
type Source<'a> = &'a mut dyn FnMut(&str) -> Option<Map>;

/// Takes a map out of the loaded object, or out of a directory.
fn take<T, E: Into<MapError>>(
    source: Source<'_>,
    name: &str,
    make: impl FnOnce(Map) -> Result<T, E>,
) -> Result<T, DatapathError> {
    let map =
        source(name).ok_or_else(|| error("build", ErrorKind::Internal, format!("there is no map {name}")))?;
    make(map).map_err(|e| {
        let message = format!("map {name} has not the layout that this library expects");
        caused("build", ErrorKind::Internal, message, e.into())
    })
}

pub(super) fn mapped<V: Pod>(map: Map) -> Result<Mapped<V>, MapError> {
    Ok(Mapped::new(&array(map)?)?)
}

fn array(map: Map) -> Result<MapData, MapError> {
    match map {
        Map::Array(data) => Ok(data),
        other => Err(io::Error::other(format!("is not an array: {other:?}")).into()),
    }
}

fn ring(map: Map) -> Result<MapData, MapError> {
    match map {
        Map::RingBuf(data) => Ok(data),
        other => Err(io::Error::other(format!("is not a ring buffer: {other:?}")).into()),
    }
}

impl<A: Address> FamilyMaps<A> {
    fn take(source: Source<'_>, family: char) -> Result<Self, DatapathError> {
        let name = |base: &str| format!("{base}{family}");
        Ok(Self {
            services: take(source, &name("services"), HashMap::try_from)?,
            cluster_ips: take(source, &name("cluster_ips"), HashMap::try_from)?,
            service_addrs: take(source, &name("service_addrs"), HashMap::try_from)?,
            backends: take(source, &name("backends"), mapped)?,
            traffic: take(source, &name("backend_traffic"), mapped)?,
            flows: take(source, &name("flows"), array)?,
            node_addrs: take(source, &name("node_addrs"), HashMap::try_from)?,
            pod_cidrs: take(source, &name("pod_cidrs"), LpmTrie::try_from)?,
            source_ranges: take(source, &name("source_ranges"), LpmTrie::try_from)?,
        })
    }

    pub(super) fn write_backend(&self, handle: Handle, addr: A, backend: &Backend) {
        let mut flags = BACKEND_ALIVE;
        if backend.local {
            flags |= BACKEND_LOCAL;
        }
        if backend.state == BackendState::Terminating {
            flags |= BACKEND_TERMINATING;
        }
        let entry =
            layout::Backend { addr, port: backend.port.get().into(), flags, generation: handle.generation };
        self.traffic.begin_as(handle.id, handle.generation);
        self.store_backend(handle.id, &entry);
    }

    /// Port and flags share a word, which is written last.
    fn store_backend(&self, id: u32, entry: &layout::Backend<A>) {
        let stored = self.backends.store(id, entry, size_of::<A>() / 4);
        debug_assert!(stored, "backend id {id} is not an index of the map");
    }

    pub(super) fn kill_backend(&self, id: u32) {
        if let Some(mut entry) = self.backends.load(id) {
            entry.flags &= !BACKEND_ALIVE;
            self.store_backend(id, &entry);
        }
        self.traffic.end(id);
    }

    /// What stands behind an id.
    fn entry(&self, id: u32) -> Option<Entry> {
        let layout::Backend { addr, port, flags, generation } = self.backends.load(id)?;
        let flag = |flag: u16| flags & flag != 0;
        let port = NonZeroU16::new(port.into())?;
        let state = if flag(BACKEND_TERMINATING) { BackendState::Terminating } else { BackendState::Ready };
        let backend = Backend { state, ..Backend::new(addr.into(), port, flag(BACKEND_LOCAL)) };
        Some(Entry { backend, generation, alive: flag(BACKEND_ALIVE) })
    }

    /// The last word of an entry.
    fn generation(&self, id: u32) -> Option<u32> {
        self.backends.load_word(id, size_of::<layout::Backend<A>>() / 4 - 1)
    }

    /// Every flow, but for those that are replaced while they are read.
    pub(super) fn flows(&self) -> io::Result<impl Iterator<Item = Pair<A>>> {
        let flows = Mapped::<Pair<A>>::new(&self.flows)?;
        Ok((0..flows.len()).filter_map(move |number| {
            // Most may be free.
            if flows.load_word(number, Conntrack::<A>::FLAGS)? >> CT_PROTO_SHIFT == 0 {
                return None;
            }
            let pair = flows.load(number)?;
            let again = flows.load(number)?;
            (pair.is_known() && pair.keys() == again.keys()).then_some(pair)
        }))
    }

    /// Every entry of `source_ranges`.
    fn sources(&self, found: &mut Vec<(u32, IpNet)>) -> Result<(), MapError> {
        for key in self.source_ranges.keys() {
            let key = key?;
            let SourceRange { service, addr } = key.data();
            let length = key.prefix_len().checked_sub(u32::BITS).and_then(|l| u8::try_from(l).ok());
            if let Some(cidr) = length.and_then(|l| IpNet::new(addr.into(), l).ok()) {
                found.push((service, cidr));
            }
        }
        Ok(())
    }

    fn services(&self, visit: impl FnMut(ServiceKey<A>, Service)) -> io::Result<()> {
        sys::for_each(self.services.map().fd().as_fd(), visit)
    }
}

impl Maps {
    /// Takes the maps out of the loaded object.
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        Self::from(&mut |name| ebpf.take_map(name))
    }

    /// Opens maps that are pinned.
    pub(crate) fn open(directory: &Path) -> Result<Self, DatapathError> {
        Self::from(&mut |name| MapData::from_pin(directory.join(name)).and_then(Map::from_map_data).ok())
    }

    fn from(source: Source<'_>) -> Result<Self, DatapathError> {
        Ok(Self {
            v4: FamilyMaps::take(source, '4')?,
            v6: FamilyMaps::take(source, '6')?,
            slots: take(source, "slots", mapped)?,
            loopback: take(source, "loopback_nets", LpmTrie::try_from)?,
            config: take(source, "config", mapped)?,
            traffic: take(source, "service_traffic", mapped)?,
            names: take(source, "service_names", HashMap::try_from)?,
            pod_interfaces: take(source, "pod_interfaces", HashMap::try_from)?,
            pod_peers: take(source, "pod_peers", HashMap::try_from)?,
            socket_flows: take(source, "socket_flows", HashMap::try_from)?,
            flow_seed: take(source, "flow_seed", mapped)?,
            metrics: take(source, "metrics", PerCpuArray::try_from)?,
            xdp_devices: take(source, "xdp_devices", Array::try_from)?,
            events: take(source, "events", ring)?,
            followed: take(source, "followed", ring)?,
            listeners: Arc::new(take(source, "listeners", mapped)?),
            operation: "build",
        })
    }

    pub(crate) fn config(&self) -> Config {
        self.config.load(0).unwrap_or_default()
    }

    pub(crate) fn set_config(&self, config: &Config) {
        if self.config() != *config {
            self.config.store(0, config, CONFIG_FLAGS_WORD);
        }
    }

    /// Keeps what flows are looked for by, for who adopts them.
    pub(super) fn set_flow_seed(&self, seed: &FlowSeed) {
        self.flow_seed.store(0, seed, 0);
    }

    /// Says whose frames the XDP program serves.
    pub(crate) fn set_xdp_devices(&mut self, devices: XdpDevices) -> Result<(), DatapathError> {
        if self.xdp_devices.get(&0, 0).is_ok_and(|before| before == devices) {
            return Ok(());
        }
        self.xdp_devices.set(0, devices, 0).map_err(|e| self.failed("xdp_devices", "xdp_devices", e))
    }

    /// Every entry of `services4` and `services6`. An entry that is no frontend goes to `strangers`.
    pub(crate) fn services(
        &self,
        strangers: &mut Vec<String>,
    ) -> Result<Vec<(Frontend, Service)>, DatapathError> {
        let mut found = Vec::new();
        let mut add = |family, addr: IpAddr, port: Be16, proto: u8, service: Service| match frontend(
            family, addr, port, proto,
        ) {
            Some(frontend) => found.push((frontend, service)),
            None => strangers.push(format!("{addr}, port {}, protocol {proto}", u16::from(port))),
        };
        self.v4
            .services(|k, s| add(IpFamily::V4, k.addr.into(), k.port, k.proto, s))
            .map_err(|e| self.unreadable("services4", e))?;
        self.v6
            .services(|k, s| add(IpFamily::V6, k.addr.into(), k.port, k.proto, s))
            .map_err(|e| self.unreadable("services6", e))?;
        Ok(found)
    }

    /// Every entry of `service_names`.
    pub(crate) fn names(&self) -> Result<std::collections::HashMap<u32, ServiceName>, DatapathError> {
        let mut names = std::collections::HashMap::new();
        sys::for_each(self.names.map().fd().as_fd(), |id, name| {
            names.insert(id, name);
        })
        .map_err(|e| self.unreadable("service_names", e))?;
        Ok(names)
    }

    /// Every cluster IP.
    pub(crate) fn cluster_ips(&self) -> Result<HashSet<IpAddr>, DatapathError> {
        let mut found = HashSet::new();
        sys::for_each(self.v4.cluster_ips.map().fd().as_fd(), |address: Addr4, _: u32| {
            found.insert(address.into());
        })
        .map_err(|e| self.unreadable("cluster_ips4", e))?;
        sys::for_each(self.v6.cluster_ips.map().fd().as_fd(), |address: Addr6, _: u32| {
            found.insert(address.into());
        })
        .map_err(|e| self.unreadable("cluster_ips6", e))?;
        Ok(found)
    }

    /// Every source range, with the id of its service.
    pub(crate) fn sources(&self) -> Result<Vec<(u32, IpNet)>, DatapathError> {
        let mut found = Vec::new();
        let result = self.v4.sources(&mut found);
        result.map_err(|e| self.failed("source_ranges4", "source_ranges", e))?;
        let result = self.v6.sources(&mut found);
        result.map_err(|e| self.failed("source_ranges6", "source_ranges", e))?;
        Ok(found)
    }

    /// What the hash tables hold about routes.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, DatapathError> {
        let mut strangers = Vec::new();
        let services = self.services(&mut strangers)?.into_iter().collect();
        for stranger in strangers {
            tracing::warn!(%stranger, "an entry of the map of services is no frontend");
        }
        let mut snapshot = Snapshot {
            services,
            names: self.names()?,
            cluster_ips: self.cluster_ips()?,
            ..Snapshot::default()
        };
        for (id, cidr) in self.sources()? {
            snapshot.sources.entry(id).or_default().insert(cidr);
        }
        Ok(snapshot)
    }

    /// The process before may have ended before it said that an id is nobody's.
    pub(super) fn retire_strangers(&self, state: &State, snapshot: &Snapshot) {
        let used: HashSet<u32> = state.routes().map(|programmed| programmed.id).collect();
        snapshot.names.keys().filter(|id| !used.contains(id)).for_each(|id| self.traffic.retire(*id));
    }

    /// What the backend with this id was charged with.
    pub(crate) fn backend_traffic(&self, family: IpFamily, id: u32) -> Traffic {
        match family {
            IpFamily::V4 => self.v4.traffic.numbers(id),
            IpFamily::V6 => self.v6.traffic.numbers(id),
        }
    }

    /// One number for each index of `metrics`, all CPUs together.
    pub(crate) fn metric(&self, index: u32) -> Result<u64, DatapathError> {
        let by_cpu = self.metrics.get(&index, 0).map_err(|e| self.failed("metrics", "metrics", e))?;
        Ok(by_cpu.iter().sum())
    }

    pub(super) fn metrics_map(&self) -> &MapData {
        self.metrics.map()
    }

    #[cfg(test)]
    pub(crate) fn metrics_len(&self) -> u32 {
        self.metrics.len()
    }

    /// An error for a failed call on a map, with its size and the setting where it is full.
    pub(crate) fn failed(&self, map: &str, setting: &str, error: MapError) -> DatapathError {
        let errno = match &error {
            MapError::SyscallError(e) => e.io_error.raw_os_error(),
            MapError::IoError(e) => e.raw_os_error(),
            _ => None,
        };
        let (kind, message) = match errno.map(Errno::from_raw) {
            Some(Errno::E2BIG | Errno::ENOSPC) => {
                let size = self.size(map).map_or(String::new(), |size| format!("it holds {size} entries: "));
                (ErrorKind::Capacity, format!("map {map} is full: {size}raise MapSizes::{setting}"))
            }
            Some(Errno::ENOMEM) => {
                (ErrorKind::Unavailable, format!("the kernel has no memory for another entry of map {map}"))
            }
            Some(Errno::EPERM | Errno::EACCES) => {
                (ErrorKind::Permission, format!("map {map}: the privilege CAP_BPF is gone"))
            }
            _ => (ErrorKind::Internal, format!("map {map}: a call failed")),
        };
        caused(self.operation, kind, message, error)
    }

    /// How many entries one of the maps holds that can get full.
    fn size(&self, map: &str) -> Option<u32> {
        let map = match map {
            "services4" => self.v4.services.map(),
            "services6" => self.v6.services.map(),
            "cluster_ips4" => self.v4.cluster_ips.map(),
            "cluster_ips6" => self.v6.cluster_ips.map(),
            "source_ranges4" => self.v4.source_ranges.map(),
            "source_ranges6" => self.v6.source_ranges.map(),
            "service_names" => self.names.map(),
            _ => return None,
        };
        map.info().ok().map(|info| info.max_entries())
    }

    pub(crate) fn unreadable(&self, map: &str, error: io::Error) -> DatapathError {
        caused(self.operation, ErrorKind::Unavailable, format!("cannot read map {map}"), error)
    }
}

impl Arrays for Maps {
    fn slots(&self) -> u32 {
        self.slots.len()
    }

    fn slot(&self, index: u32) -> Option<u32> {
        self.slots.load_word(index, 0)
    }

    fn backend(&self, family: IpFamily, id: u32) -> Option<Entry> {
        match family {
            IpFamily::V4 => self.v4.entry(id),
            IpFamily::V6 => self.v6.entry(id),
        }
    }

    fn generation(&self, family: IpFamily, id: u32) -> u32 {
        let generation = match family {
            IpFamily::V4 => self.v4.generation(id),
            IpFamily::V6 => self.v6.generation(id),
        };
        generation.unwrap_or_default()
    }
}

/// The frontend of a key of `services4` or `services6`.
fn frontend(family: IpFamily, addr: IpAddr, port: Be16, proto: u8) -> Option<Frontend> {
    let protocol = Protocol::from_number(proto)?;
    let port = NonZeroU16::new(port.into())?;
    Some(if addr.is_unspecified() {
        Frontend::node_port(family, port, protocol)
    } else {
        Frontend::ip(addr, port, protocol)
    })
}

/// The key of a frontend, in the family that it has.
pub(super) enum Key {
    V4(ServiceKey<Addr4>),
    V6(ServiceKey<Addr6>),
}

pub(super) fn key(frontend: &Frontend) -> Key {
    fn make<A: Address>(addr: A, frontend: &Frontend) -> ServiceKey<A> {
        let proto = frontend.protocol.number();
        ServiceKey { addr, port: frontend.port.get().into(), proto, pad: 0 }
    }
    match frontend.address {
        FrontendAddress::Ip(IpAddr::V4(address)) => Key::V4(make(address.into(), frontend)),
        FrontendAddress::Ip(IpAddr::V6(address)) => Key::V6(make(address.into(), frontend)),
        FrontendAddress::NodePort(IpFamily::V4) => Key::V4(make(Addr4::default(), frontend)),
        FrontendAddress::NodePort(IpFamily::V6) => Key::V6(make(Addr6::default(), frontend)),
    }
}

pub(super) fn source_key<A: Address>(service: u32, addr: A, prefix_len: u8) -> lpm_trie::Key<SourceRange<A>> {
    lpm_trie::Key::new(u32::BITS + u32::from(prefix_len), SourceRange { service, addr })
}

/// A deletion of what is not there is none that failed.
pub(super) fn deleted(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(()),
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        other => other,
    }
}
