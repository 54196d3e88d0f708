use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use super::{Backend, Frontend, NodeRouting, Revision, Route};

/// The way from one revision to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RouteDelta {
    /// Where it starts.
    pub base: Revision,
    /// Where it ends.
    pub revision: Revision,
    /// The node's facts, when they changed.
    pub node: Option<Arc<NodeRouting>>,
    /// Routes that are new or changed.
    pub upserts: Vec<Arc<Route>>,
    /// Frontends that are no longer served.
    pub removals: Vec<Frontend>,
    /// Backends that a frontend can no longer pick: connections to them may need cutting ([L2]).
    ///
    /// [L2]: crate::resolve
    pub removed_backends: Vec<RemovedBackend>,
}

/// A backend that left a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RemovedBackend {
    /// The route.
    pub frontend: Frontend,
    /// Address and port of the backend.
    pub backend: SocketAddr,
}

impl RouteDelta {
    /// A delta that only moves the revision.
    pub fn empty(base: Revision, revision: Revision) -> Self {
        Self { base, revision, ..Self::default() }
    }

    /// Whether it changes nothing that packets can see.
    pub fn is_empty(&self) -> bool {
        self.node.is_none() && self.upserts.is_empty() && self.removals.is_empty()
    }

    /// Records the step from `old` to `new` of one frontend. Nothing is recorded when they are equal.
    pub fn change(&mut self, old: Option<&Arc<Route>>, new: Option<&Arc<Route>>) {
        if old == new {
            return;
        }
        match (old, new) {
            (_, Some(new)) => self.upserts.push(Arc::clone(new)),
            (Some(old), None) => self.removals.push(old.frontend),
            (None, None) => {}
        }
        let Some(old) = old else { return };
        let left: HashSet<_> =
            new.into_iter().flat_map(|new| new.backends()).map(Backend::socket_addr).collect();
        for gone in old.backends() {
            let address = gone.socket_addr();
            if !left.contains(&address) {
                self.removed_backends.push(RemovedBackend { frontend: old.frontend, backend: address });
            }
        }
    }

    /// The frontends that it changes.
    pub fn touched(&self) -> BTreeSet<Frontend> {
        self.upserts.iter().map(|route| route.frontend).chain(self.removals.iter().copied()).collect()
    }

    /// This step and the one after it as one step.
    #[must_use]
    pub fn then(self, next: RouteDelta) -> RouteDelta {
        let overridden = next.touched();
        let mut both = RouteDelta::empty(self.base, next.revision);
        both.node = next.node.or(self.node);
        both.upserts = self.upserts;
        both.upserts.retain(|route| !overridden.contains(&route.frontend));
        both.upserts.extend(next.upserts);
        both.removals = self.removals;
        both.removals.retain(|frontend| !overridden.contains(frontend));
        both.removals.extend(next.removals);
        let routes: BTreeMap<_, _> = both.upserts.iter().map(|route| (route.frontend, route)).collect();
        let came_back = |gone: &RemovedBackend| {
            let route = routes.get(&gone.frontend);
            route.is_some_and(|route| route.backends().any(|b| b.socket_addr() == gone.backend))
        };
        let mut removed: BTreeSet<_> =
            self.removed_backends.into_iter().chain(next.removed_backends).collect();
        removed.retain(|gone| !came_back(gone));
        both.removed_backends = removed.into_iter().collect();
        both
    }
}
