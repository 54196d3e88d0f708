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
    pub(crate) longest_walk: usize,
}

impl Preview {
    /// The most rules of one table that the first packet of a flow meets on its way to any backend or answer, once
    /// this is applied. It grows with the logarithm of the number of Services, and of endpoints.
    pub fn longest_walk(&self) -> usize {
        self.longest_walk
    }
}
