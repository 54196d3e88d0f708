use k8s_openapi::api::core::v1;

use super::{
    conversion::{Checks, Problems},
    meta, parse_address, parse_cidr,
};
use crate::{health::NodeEligibility, model::NodeInfo};

const ZONE: &str = "topology.kubernetes.io/zone";

/// [H2]: whether new traffic may come to the node, from its object.
///
/// [H2]: crate::resolve
impl From<&v1::Node> for NodeEligibility {
    fn from(object: &v1::Node) -> Self {
        let taints = object.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        NodeEligibility::of(
            object.metadata.deletion_timestamp.is_some(),
            taints.map(|taint| taint.key.as_str()),
        )
    }
}

pub(super) fn convert(object: &v1::Node) -> Result<NodeInfo, Problems> {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let title = format!("Node {}", if name.is_empty() { "(no name)" } else { name });
    let mut checks = Checks::new(&title);
    let mut builder = NodeInfo::builder(name);
    if let Some(zone) = meta::label(&object.metadata, ZONE) {
        builder = builder.zone(zone);
    }
    let addresses = object.status.iter().flat_map(|status| status.addresses.iter().flatten()).enumerate();
    let mut seen = Vec::new();
    for kind in ["InternalIP", "ExternalIP"] {
        for (i, address) in addresses.clone().filter(|(_, address)| address.type_ == kind) {
            match parse_address(&address.address) {
                Ok(parsed) if seen.contains(&parsed) => {}
                Ok(parsed) => {
                    seen.push(parsed);
                    builder = builder.address(parsed);
                }
                Err(error) => {
                    checks.add(format!("status.addresses[{i}].address"), &address.address, error.to_string());
                }
            }
        }
    }
    let spec = object.spec.as_ref();
    let many = spec.and_then(|spec| spec.pod_cidrs.as_deref()).unwrap_or_default();
    let many = many.iter().enumerate().map(|(i, cidr)| (format!("spec.podCIDRs[{i}]"), cidr));
    let only = spec.and_then(|spec| spec.pod_cidr.as_ref()).filter(|_| many.len() == 0);
    for (field, text) in many.chain(only.map(|cidr| ("spec.podCIDR".to_owned(), cidr))) {
        match parse_cidr(text) {
            Ok(cidr) => builder = builder.pod_cidr(cidr),
            // The older field is empty where nothing is allocated.
            Err(_) if text.is_empty() => {}
            Err(error) => checks.add(field, text, error.to_string()),
        }
    }
    checks.end()?;
    Ok(builder.build()?)
}
