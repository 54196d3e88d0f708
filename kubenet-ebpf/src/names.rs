//! What the map of names holds of a route, to read the table back: whose it is and what kind of frontend.

use std::sync::Arc;

use kubenet_core::route::{FrontendKind, Route, ServicePortName};

use crate::layout;

/// Set in an entry's kind when [`Route::on_cluster_ip`].
const ON_CLUSTER_IP: u8 = 0x80;

/// Whether a route has an entry.
pub(crate) fn check_name(route: &Route) -> Result<(), String> {
    let ServicePortName { namespace, service, port } = &route.service_port;
    if namespace.len() + service.len() + port.len() > layout::SERVICE_NAME_TEXT {
        return Err(too_long(&route.service_port));
    }
    kind(route).map(drop)
}

fn too_long(name: &ServicePortName) -> String {
    format!(
        "service port {name}: namespace, name and port name must not be longer than {} bytes together",
        layout::SERVICE_NAME_TEXT
    )
}

fn kind(Route { kind, on_cluster_ip, .. }: &Route) -> Result<u8, String> {
    let number = match kind {
        FrontendKind::ClusterIp => 0,
        FrontendKind::NodePort => 1,
        FrontendKind::ExternalIp => 2,
        FrontendKind::LoadBalancer => 3,
        _ => return Err(format!("frontends of kind {kind:?} are not supported by this datapath")),
    };
    Ok(if *on_cluster_ip { number | ON_CLUSTER_IP } else { number })
}

/// A route's entry.
pub(crate) fn encode_name(route: &Route) -> Result<layout::ServiceName, String> {
    let name = &route.service_port;
    let ServicePortName { namespace, service, port } = name;
    let too_long = || too_long(name);
    let kind = kind(route)?;
    let mut text = [0; layout::SERVICE_NAME_TEXT];
    let mut at = 0;
    let mut lengths = [0u8; 3];
    for (length, part) in lengths.iter_mut().zip([namespace, service, port]) {
        let end = at + part.len();
        text.get_mut(at..end).ok_or_else(too_long)?.copy_from_slice(part.as_bytes());
        *length = u8::try_from(part.len()).map_err(|_| too_long())?;
        at = end;
    }
    let [namespace_len, service_len, port_len] = lengths;
    Ok(layout::ServiceName { namespace_len, service_len, port_len, kind, text })
}

/// The Service port, the kind and [`Route::on_cluster_ip`] that an entry holds, or `None` where it is none of
/// ours.
pub(crate) fn decode_name(entry: &layout::ServiceName) -> Option<(ServicePortName, FrontendKind, bool)> {
    let mut at = 0;
    let mut part = |length: u8| -> Option<Arc<str>> {
        let end = at + usize::from(length);
        let text = std::str::from_utf8(entry.text.get(at..end)?).ok()?;
        at = end;
        Some(text.into())
    };
    let (namespace, service, port) =
        (part(entry.namespace_len)?, part(entry.service_len)?, part(entry.port_len)?);
    let kind = match entry.kind & !ON_CLUSTER_IP {
        0 => FrontendKind::ClusterIp,
        1 => FrontendKind::NodePort,
        2 => FrontendKind::ExternalIp,
        3 => FrontendKind::LoadBalancer,
        _ => return None,
    };
    Some((ServicePortName { namespace, service, port }, kind, entry.kind & ON_CLUSTER_IP != 0))
}
