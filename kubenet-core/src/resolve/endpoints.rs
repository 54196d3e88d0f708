//! [O2], [O3], [E1], [E2]: which endpoints a Service port has, and which of them are usable.

use std::{collections::BTreeMap, net::IpAddr, num::NonZeroU16, sync::Arc};

use crate::{
    model::{Conditions, EndpointSlice, IpFamily, NodeInfo, ServicePort},
    route::{Backend, BackendState},
};

/// All endpoints of one Service port in one family, each address and port once.
pub(super) struct Endpoints(BTreeMap<(IpAddr, NonZeroU16), Candidate>);

/// Ordered by preference: of two for the same address and port the greater counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    not_terminating: bool,
    ready: bool,
    serving: bool,
    local: bool,
}

impl Candidate {
    fn new(Conditions { ready, serving, terminating }: Conditions, local: bool) -> Self {
        Self { not_terminating: !terminating, ready, serving, local }
    }

    fn state(self) -> Option<BackendState> {
        if self.ready {
            Some(BackendState::Ready)
        } else if self.serving && !self.not_terminating {
            Some(BackendState::Terminating)
        } else {
            None
        }
    }
}

impl Endpoints {
    pub(super) fn gather<'a>(
        node: &NodeInfo,
        port: &ServicePort,
        family: IpFamily,
        slices: impl IntoIterator<Item = &'a EndpointSlice>,
    ) -> Self {
        let mut found = BTreeMap::new();
        for slice in slices {
            if slice.family() != family {
                continue;
            }
            let matching =
                slice.ports().iter().filter(|p| p.name == *port.name() && p.protocol == port.protocol());
            for number in matching.filter_map(|p| p.port) {
                for endpoint in slice.endpoints() {
                    let candidate = Candidate::new(endpoint.conditions, endpoint.is_on(node.name()));
                    found
                        .entry((endpoint.address, number))
                        .and_modify(|known: &mut Candidate| *known = candidate.max(*known))
                        .or_insert(candidate);
                }
            }
        }
        Self(found)
    }

    /// The usable endpoints anywhere ([E2], cluster set).
    pub(super) fn cluster_set(&self) -> Arc<[Backend]> {
        self.usable(|_| true)
    }

    /// The usable endpoints on this node ([E2], local set).
    pub(super) fn local_set(&self) -> Arc<[Backend]> {
        self.usable(|candidate| candidate.local)
    }

    /// [E1]: the ready ones; if there is none, those that still serve while they terminate.
    fn usable(&self, belongs: impl Fn(Candidate) -> bool) -> Arc<[Backend]> {
        let in_state = |wanted| -> Arc<[Backend]> {
            let of_state = |(&(address, port), &candidate): (&(IpAddr, NonZeroU16), &Candidate)| {
                let state = candidate.state()?;
                (state == wanted && belongs(candidate)).then_some(Backend {
                    address,
                    port,
                    local: candidate.local,
                    state,
                })
            };
            self.0.iter().filter_map(of_state).collect()
        };
        let ready = in_state(BackendState::Ready);
        if ready.is_empty() { in_state(BackendState::Terminating) } else { ready }
    }
}
