//! [O2], [O3], [E1], [E2]: which endpoints a Service port has, and which of them are usable.

use std::{cmp::Ordering, collections::BTreeMap, net::IpAddr, num::NonZeroU16, sync::Arc};

use super::topology::{self, Topology};
use crate::{
    model::{Endpoint, EndpointSlice, Hints, IpFamily, NodeInfo, Service, ServicePort},
    route::{Backend, BackendState},
};

/// All endpoints of one Service port in one family, each address and port once.
pub(super) struct Endpoints<'a> {
    node: &'a NodeInfo,
    found: BTreeMap<(IpAddr, NonZeroU16), Candidate<'a>>,
}

#[derive(Clone, Copy)]
struct Candidate<'a> {
    not_terminating: bool,
    ready: bool,
    serving: bool,
    local: bool,
    weight: u16,
    hints: Option<&'a Hints>,
}

impl<'a> Candidate<'a> {
    fn new(endpoint: &'a Endpoint, node: &NodeInfo) -> Self {
        let conditions = endpoint.conditions;
        Self {
            not_terminating: !conditions.terminating,
            ready: conditions.ready,
            serving: conditions.serving,
            local: endpoint.is_on(node.name()),
            weight: endpoint.weight,
            hints: endpoint.hints.as_deref(),
        }
    }

    fn state(self) -> Option<BackendState> {
        if self.weight == 0 {
            None
        } else if self.ready {
            Some(BackendState::Ready)
        } else if self.serving && !self.not_terminating {
            Some(BackendState::Terminating)
        } else {
            None
        }
    }

    /// Of two for the same address and port the greater counts, whatever the order of the slices.
    fn preference(self, other: Self) -> Ordering {
        let key = |c: Self| (c.not_terminating, c.ready, c.serving, c.local, c.weight);
        let hints = |c: Self| c.hints.map(|hints| (&hints.nodes, &hints.zones));
        key(self).cmp(&key(other)).then_with(|| hints(self).cmp(&hints(other)))
    }
}

impl<'a> Endpoints<'a> {
    pub(super) fn gather(
        node: &'a NodeInfo,
        port: &ServicePort,
        family: IpFamily,
        slices: impl IntoIterator<Item = &'a EndpointSlice>,
    ) -> Self {
        let mut found = BTreeMap::new();
        for slice in slices {
            if slice.family() != family {
                continue;
            }
            for number in numbers(slice, port) {
                for endpoint in slice.endpoints() {
                    let candidate = Candidate::new(endpoint, node);
                    found
                        .entry((endpoint.address, number))
                        .and_modify(|known: &mut Candidate<'_>| {
                            if candidate.preference(*known).is_gt() {
                                *known = candidate;
                            }
                        })
                        .or_insert(candidate);
                }
            }
        }
        Self { node, found }
    }

    /// The usable endpoints anywhere, after topology ([E2], cluster set).
    pub(super) fn cluster_set(&self) -> (Arc<[Backend]>, Topology) {
        let ready = self.found.values().filter(|c| c.state() == Some(BackendState::Ready));
        let topology = topology::choose(self.node, ready.map(|candidate| candidate.hints));
        let for_us = |candidate: Candidate<'_>| topology.admits(self.node, candidate.hints);
        let ready = self.in_state(BackendState::Ready, for_us);
        if ready.is_empty() {
            // [E3]: topology is not for the stop-gaps.
            (self.in_state(BackendState::Terminating, |_| true), Topology::Everywhere)
        } else {
            (ready, topology)
        }
    }

    /// The usable endpoints on this node ([E2], local set).
    pub(super) fn local_set(&self) -> Arc<[Backend]> {
        let ready = self.in_state(BackendState::Ready, |candidate| candidate.local);
        if ready.is_empty() {
            self.in_state(BackendState::Terminating, |candidate| candidate.local)
        } else {
            ready
        }
    }

    fn in_state(&self, wanted: BackendState, belongs: impl Fn(Candidate<'_>) -> bool) -> Arc<[Backend]> {
        let of_state = |(&(address, port), &candidate): (&(IpAddr, NonZeroU16), &Candidate<'_>)| {
            let state = candidate.state().filter(|state| *state == wanted && belongs(candidate))?;
            let weight = NonZeroU16::new(candidate.weight)?;
            Some(Backend { address, port, local: candidate.local, state, weight })
        };
        let mut backends: Vec<_> = self.found.iter().filter_map(of_state).collect();
        reduce_weights(&mut backends);
        backends.into()
    }
}

/// The port numbers that a slice has for a Service port ([O2]).
fn numbers(slice: &EndpointSlice, port: &ServicePort) -> impl Iterator<Item = NonZeroU16> {
    let matching = slice.ports().iter().filter(|p| p.name == *port.name() && p.protocol == port.protocol());
    matching.filter_map(|p| p.port)
}

/// Divides by what all weights have in common, so that equal shares are equal values.
fn reduce_weights(backends: &mut [Backend]) {
    let common = backends.iter().fold(0, |common, backend| gcd(backend.weight.get(), common));
    if common > 1 {
        for backend in backends {
            backend.weight = NonZeroU16::new(backend.weight.get() / common).unwrap_or(NonZeroU16::MIN);
        }
    }
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// [H3]: how many addresses here are ready, over all ports of the Service. Of a Service of both families, the
/// family that has more counts: a pod has an address of each.
pub(super) fn local_ready_addresses<'a>(
    node: &NodeInfo,
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> usize {
    // An endpoint that no port of the Service leads to is not usable.
    let serves =
        |slice: &&EndpointSlice| service.ports().iter().any(|port| numbers(slice, port).next().is_some());
    let mut addresses: Vec<IpAddr> = slices
        .into_iter()
        .filter(serves)
        .flat_map(EndpointSlice::endpoints)
        .filter(|endpoint| endpoint.conditions.ready && endpoint.weight > 0 && endpoint.is_on(node.name()))
        .map(|endpoint| endpoint.address)
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    let v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
    v4.max(addresses.len() - v4)
}
