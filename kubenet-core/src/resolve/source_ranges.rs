//! [R1], [R2]: who may reach a load balancer's address.

use std::sync::Arc;

use ipnet::IpNet;

use crate::{
    model::{IpFamily, NodeInfo, Service},
    route::SourceRanges,
};

/// The ranges that count for the addresses of one family; `None` where everybody may.
pub(super) fn of(node: &NodeInfo, service: &Service, family: IpFamily) -> Option<Arc<SourceRanges>> {
    let ours = service.source_ranges().iter().filter(|range| IpFamily::of(range.addr()) == family);
    let mut cidrs = IpNet::aggregate(&ours.copied().collect());
    if cidrs.is_empty() && !service.has_unreadable_source_ranges() {
        return None;
    }
    if cidrs.iter().any(|range| range.prefix_len() == 0) {
        return None;
    }
    cidrs.sort_unstable();
    let node = node.addresses().iter().any(|address| cidrs.iter().any(|range| range.contains(address)));
    Some(Arc::new(SourceRanges { cidrs, node }))
}
