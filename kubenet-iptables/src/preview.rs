//! What would be applied, as text and without privileges.

use std::collections::BTreeMap;

use kubenet_core::{datapath::FailedRoute, model::IpFamily};

/// The input that `iptables-restore --noflush` and `ip6tables-restore --noflush` would be given:
/// [`IptablesBuilder::preview`](crate::IptablesBuilder::preview).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Preview {
    /// By family; no entry where nothing would be changed.
    pub texts: BTreeMap<IpFamily, String>,
    /// Routes that cannot be served, and are not part of the texts.
    pub failed: Vec<FailedRoute>,
}
