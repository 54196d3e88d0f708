//! The table that the maps hold.

use std::{collections::HashMap, num::NonZeroU16, sync::Arc};

use ipnet::IpNet;
use kubenet_core::{
    datapath::DatapathError,
    model::{Affinity, Algorithm, IpFamily},
    route::{
        Backend, Frontend, FrontendKind, Masquerade, Revision, Route, RouteTable, SourceRanges, Target,
        WhenEmpty,
    },
};

use super::{maps::Maps, node};
use crate::{
    layout::{
        SVC_EXTERNAL_DROP, SVC_INTERNAL_DROP, SVC_LISTED, SVC_MAGLEV, SVC_MASQ_NODE, SVC_MASQ_OUTSIDE,
        SVC_MASQ_PODS, SVC_SOURCE_NODE, SVC_SOURCE_RANGES, Service, ServiceName,
    },
    names::decode_name,
    sets::{self, Member},
    state::cluster_ip,
};

/// Rebuilds the table. An entry without a readable name is left out, as is a backend that is not alive: the
/// table then differs from what was programmed, which is what an audit looks for.
pub(crate) fn read(maps: &Maps, revision: Revision) -> Result<RouteTable, DatapathError> {
    let names = maps.names()?;
    let mut strangers = Vec::new();
    let services = maps.services(&mut strangers)?;
    for stranger in strangers {
        tracing::warn!(%stranger, "an entry of the map of services is no frontend");
    }
    let mut sources = HashMap::<u32, Vec<IpNet>>::new();
    for (id, cidr) in maps.sources()? {
        sources.entry(id).or_default().push(cidr);
    }
    let cluster_ips = maps.cluster_ips()?;
    let route = |(frontend, service): &(Frontend, Service)| {
        let mut route = route(maps, &names, frontend, service)?;
        if cluster_ip(&route).is_some_and(|ip| !cluster_ips.contains(&ip)) {
            tracing::warn!(%frontend, "is missing among the cluster IPs");
            // That is how its other ports are treated.
            route.kind = FrontendKind::ExternalIp;
        }
        if service.flags & SVC_SOURCE_RANGES != 0 {
            let mut cidrs = sources.remove(&service.id).unwrap_or_default();
            cidrs.sort_unstable();
            let node = service.flags & SVC_SOURCE_NODE != 0;
            route.source_ranges = Some(Arc::new(SourceRanges { cidrs, node }));
        }
        Some(Arc::new(route))
    };
    let routes: Vec<Arc<Route>> = services.iter().filter_map(route).collect();
    Ok(RouteTable::new(revision, node::read(maps)?, routes))
}

fn route(
    maps: &Maps,
    names: &HashMap<u32, ServiceName>,
    frontend: &Frontend,
    service: &Service,
) -> Option<Route> {
    let Some((service_port, kind, on_cluster_ip)) = names.get(&service.id).and_then(decode_name) else {
        tracing::warn!(%frontend, id = service.id, "a service has no name");
        return None;
    };
    let flag = |flag: u32| service.flags & flag != 0;
    let family = frontend.family();
    let algorithm = if flag(SVC_MAGLEV) { Algorithm::Maglev } else { Algorithm::Random };
    let target = |base: u32, count: u32, drop: bool| Target {
        backends: if flag(SVC_LISTED) {
            listed_set(maps, family, algorithm, (base, count)).unwrap_or_else(|| {
                tracing::warn!(%frontend, "slots do not hold what their list of backends says");
                Arc::default()
            })
        } else {
            set(maps, family, base, count)
        },
        when_empty: if drop { WhenEmpty::Drop } else { WhenEmpty::Reject },
    };
    let masquerade =
        Masquerade { pods: flag(SVC_MASQ_PODS), node: flag(SVC_MASQ_NODE), outside: flag(SVC_MASQ_OUTSIDE) };
    let internal = target(service.internal_base, service.internal_count, flag(SVC_INTERNAL_DROP));
    let mut route = Route::new(*frontend, kind, service_port, internal, masquerade);
    route.on_cluster_ip = on_cluster_ip;
    route.algorithm = algorithm;
    if service.affinity != 0 {
        route.affinity = Affinity::new(service.timeout);
    }
    if service.external_base == service.internal_base && service.external_count == service.internal_count {
        route.external.when_empty = if flag(SVC_EXTERNAL_DROP) { WhenEmpty::Drop } else { WhenEmpty::Reject };
    } else {
        route.external = target(service.external_base, service.external_count, flag(SVC_EXTERNAL_DROP));
    }
    Some(route)
}

fn set(maps: &Maps, family: IpFamily, base: u32, count: u32) -> Arc<[Backend]> {
    let slots = base..base.saturating_add(count).min(maps.slots.len());
    sorted(slots.filter_map(|slot| maps.backend(family, maps.slots.load(slot)?)).collect())
}

/// A set with a list of its members, or `None` where the slots to pick from are not what the list says.
fn listed_set(
    maps: &Maps,
    family: IpFamily,
    algorithm: Algorithm,
    (base, picks): (u32, u32),
) -> Option<Arc<[Backend]>> {
    if picks == 0 {
        return Some(Arc::default());
    }
    let list = base.checked_add(picks)?;
    let count = maps.slots.load(list)?;
    // Before anything is allocated: the number is what somebody wrote there.
    (u64::from(list) + 2 * u64::from(count) < u64::from(maps.slots.len())).then_some(())?;
    let mut members = Vec::with_capacity(count as usize);
    let mut backends = Vec::with_capacity(count as usize);
    for slot in list + 1..=list + count {
        let id = maps.slots.load(slot)?;
        let weight = maps.slots.load(slot + count)?;
        let weight = u16::try_from(weight).ok().and_then(NonZeroU16::new)?;
        let backend = Backend { weight, ..maps.backend(family, id)? };
        members.push(Member::new(id, &backend));
        backends.push(backend);
    }
    let expected = sets::picks(algorithm, &members);
    let actual = (base..list).map(|slot| maps.slots.load(slot));
    actual.eq(expected.into_iter().map(Some)).then(|| sorted(backends))
}

/// As a target has them.
fn sorted(mut backends: Vec<Backend>) -> Arc<[Backend]> {
    backends.sort_unstable();
    backends.into()
}
