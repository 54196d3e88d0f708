use kubenet_core::{cluster::Change, model::TrafficPolicy};
use proptest::{prelude::*, sample::Index};

use super::{Node, Slice, Svc, World, any_node, any_service, any_slice, object_name};

/// A change to a world.
#[derive(Clone, Debug)]
pub(crate) enum Tweak {
    /// A Service is created, or declared anew.
    Service(Svc),
    /// A slice is created, or declared anew, perhaps with another owner.
    Slice(Slice),
    /// The node changes.
    Node(Node),
    /// A Service goes.
    RemoveService(Index),
    /// A slice goes.
    RemoveSlice(Index),
    /// An endpoint changes its conditions: ready, serving, terminating.
    Condition(Index, Index, [Option<bool>; 3]),
    /// An endpoint goes.
    RemoveEndpoint(Index, Index),
    /// The affinity changes.
    Affinity(Index, Option<u32>),
    /// Both policies change.
    Policies(Index, TrafficPolicy, TrafficPolicy),
}

pub(crate) fn any_tweak() -> impl Strategy<Value = Tweak> {
    let index = any::<Index>;
    prop_oneof![
        2 => any_service().prop_map(Tweak::Service),
        3 => any_slice().prop_map(Tweak::Slice),
        1 => any_node().prop_map(Tweak::Node),
        1 => index().prop_map(Tweak::RemoveService),
        1 => index().prop_map(Tweak::RemoveSlice),
        8 => any_small_tweak(),
    ]
}

/// One that leaves most as it is.
pub(crate) fn any_small_tweak() -> impl Strategy<Value = Tweak> {
    let policy = || prop::sample::select(&[TrafficPolicy::Cluster, TrafficPolicy::Local][..]);
    let timeout = prop::sample::select(&[None, Some(10), Some(100), Some(10_800)][..]);
    let index = any::<Index>;
    prop_oneof![
        4 => (index(), index(), any::<[Option<bool>; 3]>()).prop_map(|(s, e, c)| Tweak::Condition(s, e, c)),
        2 => (index(), index()).prop_map(|(s, e)| Tweak::RemoveEndpoint(s, e)),
        1 => (index(), timeout).prop_map(|(s, t)| Tweak::Affinity(s, t)),
        1 => (index(), policy(), policy()).prop_map(|(s, i, e)| Tweak::Policies(s, i, e)),
    ]
}

fn nth<'a, T>(index: &Index, all: impl ExactSizeIterator<Item = T> + 'a) -> Option<T> {
    let mut all = all;
    if all.len() == 0 { None } else { all.nth(index.index(all.len())) }
}

impl World {
    /// Changes it, and says what an API server would tell of it. `None` where there is nothing to change.
    pub(crate) fn tweak(&mut self, tweak: &Tweak) -> Option<Change> {
        match tweak {
            Tweak::Service(service) => {
                self.services.insert(service.name, service.clone());
                Some(Change::Service(service.build()))
            }
            Tweak::Slice(slice) => {
                let slice = slice.clone().fit(&self.services);
                self.slices.insert(slice.name, slice.clone());
                Some(Change::EndpointSlice(slice.build()))
            }
            Tweak::Node(node) => {
                self.node = node.clone();
                Some(Change::Node(node.build()))
            }
            Tweak::RemoveService(index) => {
                let name = *nth(index, self.services.keys())?;
                self.services.remove(&name);
                Some(Change::RemoveService(object_name("Service", name)))
            }
            Tweak::RemoveSlice(index) => {
                let name = *nth(index, self.slices.keys())?;
                self.slices.remove(&name);
                Some(Change::RemoveEndpointSlice(object_name("EndpointSlice", name)))
            }
            Tweak::Condition(index, endpoint, conditions) => {
                let slice = nth(index, self.slices.values_mut())?;
                let endpoint = nth(endpoint, slice.endpoints.iter_mut())?;
                [endpoint.ready, endpoint.serving, endpoint.terminating] = *conditions;
                Some(Change::EndpointSlice(slice.build()))
            }
            Tweak::RemoveEndpoint(index, endpoint) => {
                let slice = nth(index, self.slices.values_mut())?;
                if slice.endpoints.is_empty() {
                    return None;
                }
                slice.endpoints.remove(endpoint.index(slice.endpoints.len()));
                Some(Change::EndpointSlice(slice.build()))
            }
            Tweak::Affinity(index, timeout) => {
                let service = nth(index, self.services.values_mut())?;
                service.affinity = *timeout;
                Some(Change::Service(service.build()))
            }
            Tweak::Policies(index, internal, external) => {
                let service = nth(index, self.services.values_mut())?;
                (service.internal, service.external) = (*internal, *external);
                Some(Change::Service(service.build()))
            }
        }
    }
}
