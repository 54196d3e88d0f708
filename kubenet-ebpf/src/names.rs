//! Names of Service ports as the map holds them, to read the table back.

use std::sync::Arc;

use kubenet_core::route::{FrontendKind, ServicePortName};

use crate::layout;

/// A name as the map holds it.
pub(crate) fn encode_name(name: &ServicePortName, kind: FrontendKind) -> Result<layout::ServiceName, String> {
    let ServicePortName { namespace, service, port } = name;
    let too_long = || {
        format!(
            "service port {name}: namespace, name and port name must not be longer than {} bytes together",
            layout::SERVICE_NAME_TEXT
        )
    };
    let kind = match kind {
        FrontendKind::ClusterIp => 0,
        FrontendKind::NodePort => 1,
        FrontendKind::ExternalIp => 2,
        FrontendKind::LoadBalancer => 3,
        _ => return Err(format!("frontends of kind {kind:?} are not supported by this datapath")),
    };
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

/// The name and the kind that an entry of the map holds, or `None` where it is none of ours.
pub(crate) fn decode_name(entry: &layout::ServiceName) -> Option<(ServicePortName, FrontendKind)> {
    let mut at = 0;
    let mut part = |length: u8| -> Option<Arc<str>> {
        let end = at + usize::from(length);
        let text = std::str::from_utf8(entry.text.get(at..end)?).ok()?;
        at = end;
        Some(text.into())
    };
    let (namespace, service, port) =
        (part(entry.namespace_len)?, part(entry.service_len)?, part(entry.port_len)?);
    let kind = match entry.kind {
        0 => FrontendKind::ClusterIp,
        1 => FrontendKind::NodePort,
        2 => FrontendKind::ExternalIp,
        3 => FrontendKind::LoadBalancer,
        _ => return None,
    };
    Some((ServicePortName { namespace, service, port }, kind))
}
