//! The table that the maps hold.

use std::{collections::HashMap, sync::Arc};

use kubenet_core::{
    datapath::DatapathError,
    model::IpFamily,
    route::{Backend, Frontend, Masquerade, Revision, Route, RouteTable, Target, WhenEmpty},
};

use super::{maps::Maps, node};
use crate::{
    layout::{
        SVC_EXTERNAL_DROP, SVC_INTERNAL_DROP, SVC_MASQ_NODE, SVC_MASQ_OUTSIDE, SVC_MASQ_PODS, Service,
        ServiceName,
    },
    state::decode_name,
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
    let routes: Vec<Arc<Route>> =
        services.iter().filter_map(|(frontend, service)| route(maps, &names, frontend, service)).collect();
    Ok(RouteTable::new(revision, node::read(maps)?, routes))
}

fn route(
    maps: &Maps,
    names: &HashMap<u32, ServiceName>,
    frontend: &Frontend,
    service: &Service,
) -> Option<Arc<Route>> {
    let Some((service_port, kind)) = names.get(&service.id).and_then(decode_name) else {
        tracing::warn!(%frontend, id = service.id, "a service has no name");
        return None;
    };
    let flag = |flag: u32| service.flags & flag != 0;
    let family = frontend.family();
    let target = |base: u32, count: u32, drop: bool| Target {
        backends: set(maps, family, base, count),
        when_empty: if drop { WhenEmpty::Drop } else { WhenEmpty::Reject },
    };
    let masquerade =
        Masquerade { pods: flag(SVC_MASQ_PODS), node: flag(SVC_MASQ_NODE), outside: flag(SVC_MASQ_OUTSIDE) };
    let internal = target(service.internal_base, service.internal_count, flag(SVC_INTERNAL_DROP));
    let mut route = Route::new(*frontend, kind, service_port, internal, masquerade);
    if service.external_base == service.internal_base && service.external_count == service.internal_count {
        route.external.when_empty = if flag(SVC_EXTERNAL_DROP) { WhenEmpty::Drop } else { WhenEmpty::Reject };
    } else {
        route.external = target(service.external_base, service.external_count, flag(SVC_EXTERNAL_DROP));
    }
    Some(Arc::new(route))
}

fn set(maps: &Maps, family: IpFamily, base: u32, count: u32) -> Arc<[Backend]> {
    let slots = base..base.saturating_add(count).min(maps.slots.len());
    slots.filter_map(|slot| maps.backend(family, maps.slots.load(slot)?)).collect()
}
