//! The routes that the maps hold. Pure: whoever reads the maps hands over what is in them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    num::NonZeroU16,
    sync::Arc,
};

use ipnet::IpNet;
use kubenet_core::{
    model::{Affinity, Algorithm, IpFamily},
    route::{Backend, Frontend, Masquerade, Route, SourceRanges, Target, WhenEmpty},
};

use crate::{
    layout::{
        SVC_EXTERNAL_DROP, SVC_INTERNAL_DROP, SVC_LISTED, SVC_MAGLEV, SVC_MASQ_NODE, SVC_MASQ_OUTSIDE,
        SVC_MASQ_PODS, SVC_SOURCE_NODE, SVC_SOURCE_RANGES, Service, ServiceName,
    },
    names::decode_name,
    sets::{self, Member},
    slots::Range,
    state::cluster_ip,
};

/// The arrays of backends and slots.
pub(crate) trait Arrays {
    /// The number of slots.
    fn slots(&self) -> u32;
    fn slot(&self, index: u32) -> Option<u32>;
    /// The entry of a backend, alive or not, if it is one at all.
    fn backend(&self, family: IpFamily, id: u32) -> Option<Entry>;
    /// How often the id of a backend was handed out.
    fn generation(&self, family: IpFamily, id: u32) -> u32;
}

/// An entry of `backends4` or `backends6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) backend: Backend,
    pub(crate) generation: u32,
    pub(crate) alive: bool,
}

/// What the other maps hold about routes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) services: BTreeMap<Frontend, Service>,
    pub(crate) names: HashMap<u32, ServiceName>,
    pub(crate) sources: HashMap<u32, BTreeSet<IpNet>>,
    pub(crate) cluster_ips: HashSet<IpAddr>,
}

/// A set of backends as the slots hold it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// All slots of the set, those of its list included.
    pub(crate) range: Range,
    pub(crate) members: Vec<Member>,
    /// In the order of a target.
    pub(crate) backends: Arc<[Backend]>,
    /// Every slot names a backend that is alive, and the list agrees with the slots to pick from.
    pub(crate) is_whole: bool,
}

/// A route as the maps hold it.
#[derive(Clone, Debug)]
pub(crate) struct Decoded {
    pub(crate) route: Route,
    pub(crate) internal: Found,
    /// `None`: the same as `internal`.
    pub(crate) external: Option<Found>,
}

impl Decoded {
    pub(crate) fn sets(&self) -> impl Iterator<Item = &Found> {
        std::iter::once(&self.internal).chain(&self.external)
    }
}

impl Snapshot {
    /// Every route that has a readable name.
    ///
    /// A backend that is not alive is left out: the table then differs from what was programmed, which is what
    /// an audit looks for.
    pub(crate) fn routes(&self, arrays: &dyn Arrays) -> Vec<Arc<Route>> {
        let route = |(frontend, service): (&Frontend, &Service)| {
            let mut route = self.decode(arrays, frontend, service)?.route;
            if cluster_ip(&route).is_some_and(|ip| !self.cluster_ips.contains(&ip)) {
                tracing::warn!(%frontend, "is missing among the cluster IPs");
                // That is how its other ports are treated.
                route.on_cluster_ip = false;
            }
            Some(Arc::new(route))
        };
        self.services.iter().filter_map(route).collect()
    }

    /// The route behind an entry of `services`, or `None` where the entry has no name.
    pub(crate) fn decode(
        &self,
        arrays: &dyn Arrays,
        frontend: &Frontend,
        service: &Service,
    ) -> Option<Decoded> {
        let Some((service_port, kind, on_cluster_ip)) = self.names.get(&service.id).and_then(decode_name)
        else {
            tracing::warn!(%frontend, id = service.id, "a service has no name");
            return None;
        };
        let flag = |flag: u32| service.flags & flag != 0;
        let when_empty = |flag: bool| if flag { WhenEmpty::Drop } else { WhenEmpty::Reject };
        let algorithm = if flag(SVC_MAGLEV) { Algorithm::Maglev } else { Algorithm::Random };
        let reader = Reader { arrays, frontend, algorithm, is_listed: flag(SVC_LISTED) };
        let internal = reader.set(service.internal_base, service.internal_count);
        let same = service.external_base == service.internal_base
            && service.external_count == service.internal_count;
        let external = (!same).then(|| reader.set(service.external_base, service.external_count));
        let target = Target {
            backends: Arc::clone(&internal.backends),
            when_empty: when_empty(flag(SVC_INTERNAL_DROP)),
        };
        let masquerade = Masquerade {
            pods: flag(SVC_MASQ_PODS),
            node: flag(SVC_MASQ_NODE),
            outside: flag(SVC_MASQ_OUTSIDE),
        };
        let mut route = Route::new(*frontend, kind, service_port, target, masquerade);
        route.on_cluster_ip = on_cluster_ip;
        route.algorithm = algorithm;
        if service.affinity != 0 {
            route.affinity = Affinity::new(service.timeout);
        }
        route.external = Target {
            backends: Arc::clone(&external.as_ref().unwrap_or(&internal).backends),
            when_empty: when_empty(flag(SVC_EXTERNAL_DROP)),
        };
        if flag(SVC_SOURCE_RANGES) {
            let cidrs = self.sources.get(&service.id).into_iter().flatten().copied().collect();
            route.source_ranges = Some(Arc::new(SourceRanges { cidrs, node: flag(SVC_SOURCE_NODE) }));
        }
        Some(Decoded { route, internal, external })
    }
}

/// Reads the sets of one frontend.
struct Reader<'a> {
    arrays: &'a dyn Arrays,
    frontend: &'a Frontend,
    algorithm: Algorithm,
    is_listed: bool,
}

impl Reader<'_> {
    fn set(&self, base: u32, picks: u32) -> Found {
        if picks == 0 {
            return Found { is_whole: true, ..Found::default() };
        }
        if !self.is_listed {
            return self.plain(Range { base, count: picks });
        }
        self.listed(base, picks).unwrap_or_else(|| {
            tracing::warn!(frontend = %self.frontend, "slots do not hold what their list of backends says");
            // The list may be anywhere behind the slots to pick from.
            Found { range: Range { base, count: picks }, ..Found::default() }
        })
    }

    fn plain(&self, range: Range) -> Found {
        let end = range.base.saturating_add(range.count).min(self.arrays.slots());
        let ids = (range.base..end).filter_map(|slot| self.arrays.slot(slot));
        let (members, mut backends): (Vec<_>, Vec<_>) =
            ids.filter_map(|id| self.member(id, NonZeroU16::MIN)).unzip();
        let is_whole = members.len() == range.count as usize;
        backends.sort_unstable();
        Found { range, members, backends: backends.into(), is_whole }
    }

    /// A set with a list of its members, or `None` where the slots to pick from are not what the list says.
    fn listed(&self, base: u32, picks: u32) -> Option<Found> {
        let list = base.checked_add(picks)?;
        let count = self.arrays.slot(list)?;
        // Before anything is allocated: the number is what somebody wrote there.
        (u64::from(list) + 2 * u64::from(count) < u64::from(self.arrays.slots())).then_some(())?;
        let mut members = Vec::with_capacity(count as usize);
        let mut backends = Vec::with_capacity(count as usize);
        for slot in list + 1..=list + count {
            let weight = u16::try_from(self.arrays.slot(slot + count)?).ok().and_then(NonZeroU16::new)?;
            let (member, backend) = self.member(self.arrays.slot(slot)?, weight)?;
            members.push(member);
            backends.push(backend);
        }
        let expected = sets::picks(self.algorithm, &members);
        let actual = (base..list).map(|slot| self.arrays.slot(slot));
        actual.eq(expected.into_iter().map(Some)).then_some(())?;
        backends.sort_unstable();
        let range = Range { base, count: picks + 1 + 2 * count };
        Some(Found { range, members, backends: backends.into(), is_whole: true })
    }

    fn member(&self, id: u32, weight: NonZeroU16) -> Option<(Member, Backend)> {
        let entry = self.arrays.backend(self.frontend.family(), id).filter(|entry| entry.alive)?;
        let backend = Backend { weight, ..entry.backend };
        Some((Member::new(id, &backend), backend))
    }
}
