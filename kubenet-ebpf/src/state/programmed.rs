//! What is written of a route.

use std::{collections::HashSet, sync::Arc};

use ipnet::IpNet;
use kubenet_core::{
    model::{Affinity, Algorithm, IpFamily},
    route::{Backend, FrontendAddress, Route, WhenEmpty},
};

use crate::{
    ids::Handle,
    layout,
    sets::{Set, is_listed},
};

/// A route as the maps hold it.
#[derive(Clone, Debug)]
pub(crate) struct Programmed {
    pub(crate) route: Arc<Route>,
    pub(crate) id: u32,
    /// The number of its Service's port.
    pub(crate) port: u32,
    /// The id of its clients' choices; 0: they have none.
    pub(crate) affinity: u32,
    /// How often UDP flows lost a backend here that others may have still: those that are there look whether it
    /// was theirs.
    pub(crate) cuts: u16,
    pub(crate) internal: Set,
    /// `None`: the same as `internal`.
    pub(crate) external: Option<Box<Set>>,
}

impl Programmed {
    /// The entry of `services`.
    pub(crate) fn service(&self) -> layout::Service {
        let external = self.external.as_deref().unwrap_or(&self.internal);
        let Route { masquerade, internal: inside, external: outside, frontend, .. } = &*self.route;
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        layout::Service {
            internal_base: self.internal.range.base,
            internal_count: self.internal.picks(),
            external_base: external.range.base,
            external_count: external.picks(),
            id: self.id,
            affinity: self.affinity,
            timeout: self.route.affinity.map_or(0, Affinity::timeout_seconds),
            flags: flag(masquerade.pods, layout::SVC_MASQ_PODS)
                | flag(masquerade.node, layout::SVC_MASQ_NODE)
                | flag(masquerade.outside, layout::SVC_MASQ_OUTSIDE)
                | flag(inside.when_empty == WhenEmpty::Drop, layout::SVC_INTERNAL_DROP)
                | flag(outside.when_empty == WhenEmpty::Drop, layout::SVC_EXTERNAL_DROP)
                | flag(matches!(frontend.address, FrontendAddress::NodePort(_)), layout::SVC_NODE_PORT)
                | flag(self.route.algorithm == Algorithm::Maglev, layout::SVC_MAGLEV)
                | flag(is_listed(&self.route), layout::SVC_LISTED)
                | flag(self.route.source_ranges.is_some(), layout::SVC_SOURCE_RANGES)
                | flag(self.route.source_ranges.as_ref().is_some_and(|s| s.node), layout::SVC_SOURCE_NODE)
                | u32::from(self.cuts) << layout::SVC_CUTS_SHIFT,
        }
    }

    /// The sets of flows from inside and from outside.
    fn both(&self) -> [&Set; 2] {
        [&self.internal, self.external.as_deref().unwrap_or(&self.internal)]
    }

    /// Whether a flow may have a backend of this one that it may not have of the new one.
    pub(super) fn takes_away(&self, new: &Programmed) -> bool {
        let loses = |(old, new): (&Set, &Set)| {
            let kept: HashSet<&u32> = new.ids().iter().collect();
            old.ids().iter().any(|id| !kept.contains(id))
        };
        self.both().into_iter().zip(new.both()).any(loses)
    }

    pub(crate) fn sets(&self) -> impl Iterator<Item = &Set> {
        std::iter::once(&self.internal).chain(self.external.as_deref())
    }
}

/// A route for which everything is reserved, and to which nothing that a packet sees refers yet.
#[derive(Clone, Debug)]
pub(crate) struct Staged {
    pub(crate) programmed: Programmed,
    /// Backends whose entries must be written first.
    pub(crate) new_backends: Vec<(Handle, Backend)>,
    /// The name must be written first.
    pub(crate) new_name: bool,
    /// Source ranges that must be written first.
    pub(crate) new_sources: Vec<IpNet>,
}

impl Staged {
    pub(crate) fn family(&self) -> IpFamily {
        self.programmed.route.frontend.family()
    }

    /// The slots that must be written first: base, and what they hold from there on.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (u32, &[u32])> {
        self.programmed.sets().map(|set| (set.range.base, set.words()))
    }
}
