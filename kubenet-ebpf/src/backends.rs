//! Which backend has which id.

use std::{collections::HashMap, num::NonZeroU16, sync::Arc};

use kubenet_core::{
    datapath::BackendName,
    model::Protocol,
    route::{Backend, Route, ServicePortName},
};

use crate::{
    ids::{Handle, Ids},
    rest::Now,
};

/// What an id stands for. The frontends of one Service port share their backends' ids.
///
/// Whether a backend is ready or terminating is part of it: a change of state is a new id, so that an entry
/// of `backends` never changes its meaning while a packet looks at it. Its weight is not: that belongs to the
/// set, and may differ from one to the next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) service_port: ServicePortName,
    pub(crate) protocol: Protocol,
    pub(crate) backend: Backend,
}

impl Identity {
    pub(crate) fn new(route: &Route, backend: &Backend) -> Self {
        Self {
            service_port: route.service_port.clone(),
            protocol: route.frontend.protocol,
            backend: Backend { weight: NonZeroU16::MIN, ..*backend },
        }
    }

    /// Under which name it is counted.
    pub(crate) fn name(&self) -> BackendName {
        let Self { service_port, protocol, backend } = self;
        BackendName {
            service_port: service_port.clone(),
            protocol: *protocol,
            address: backend.socket_addr(),
        }
    }
}

/// The backends of one address family: ids with reference counts.
#[derive(Debug)]
pub(crate) struct Backends {
    by_identity: HashMap<Arc<Identity>, u32>,
    by_id: HashMap<u32, Entry>,
    ids: Ids,
}

#[derive(Debug)]
struct Entry {
    identity: Arc<Identity>,
    generation: u32,
    references: u32,
}

impl Backends {
    /// For a map of this many entries.
    pub(crate) fn new(size: u32) -> Self {
        Self {
            by_identity: HashMap::new(),
            by_id: HashMap::new(),
            // Index 0 is never used.
            ids: Ids::up_to(size.saturating_sub(1)),
        }
    }

    /// Whether the id may stand for this: neither has another partner.
    pub(crate) fn may_adopt(&self, id: u32, identity: &Identity) -> bool {
        match (self.by_id.get(&id), self.by_identity.get(identity)) {
            (None, None) => true,
            (Some(entry), Some(known)) => *known == id && *entry.identity == *identity,
            _ => false,
        }
    }

    /// An id that another process handed out. One reference more.
    pub(crate) fn adopt(&mut self, Handle { id, generation }: Handle, identity: Identity) {
        if let Some(entry) = self.by_id.get_mut(&id) {
            entry.references += 1;
            return;
        }
        let identity = Arc::new(identity);
        self.by_identity.insert(Arc::clone(&identity), id);
        self.by_id.insert(id, Entry { identity, generation, references: 1 });
    }

    /// After all that is to be adopted: how often each id was handed out, and whether others than the adopted
    /// ones are not to be touched.
    pub(crate) fn finish_adoption(
        &mut self,
        size: u32,
        generations: Vec<u32>,
        is_reserved: impl Fn(u32) -> bool,
    ) {
        let by_id = &self.by_id;
        self.ids =
            Ids::adopt(size.saturating_sub(1), generations, |id| by_id.contains_key(&id) || is_reserved(id));
    }

    /// Gives back an id that nobody holds but that was reserved at adoption.
    pub(crate) fn give_back(&mut self, id: u32, now: Now) {
        self.ids.give_back(id, now);
    }

    /// The id of a backend, and whether it is new. One reference more.
    pub(crate) fn acquire(&mut self, identity: Identity, now: Now) -> Option<(Handle, bool)> {
        if let Some(&id) = self.by_identity.get(&identity)
            && let Some(entry) = self.by_id.get_mut(&id)
        {
            entry.references += 1;
            return Some((Handle { id, generation: entry.generation }, false));
        }
        let handle = self.ids.take(now)?;
        let identity = Arc::new(identity);
        self.by_identity.insert(Arc::clone(&identity), handle.id);
        self.by_id.insert(handle.id, Entry { identity, generation: handle.generation, references: 1 });
        Some((handle, true))
    }

    /// One reference less. True when that was the last one: the entry must be marked dead.
    #[must_use]
    pub(crate) fn release(&mut self, id: u32, now: Now) -> bool {
        let Some(entry) = self.by_id.get_mut(&id) else {
            debug_assert!(false, "release of backend {id}, which nobody holds");
            return false;
        };
        entry.references -= 1;
        if entry.references > 0 {
            return false;
        }
        self.by_identity.remove(&entry.identity);
        self.by_id.remove(&id);
        self.ids.give_back(id, now);
        true
    }

    /// Whether somebody holds the id.
    pub(crate) fn is_alive(&self, id: u32) -> bool {
        self.by_id.contains_key(&id)
    }

    /// Every id in use, with its generation and what it stands for.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Handle, &Backend)> {
        self.by_id
            .iter()
            .map(|(&id, entry)| (Handle { id, generation: entry.generation }, &entry.identity.backend))
    }

    /// Every id in use, with its generation and what it stands for.
    pub(crate) fn identities(&self) -> impl Iterator<Item = (Handle, &Identity)> {
        let handle = |(&id, entry)| {
            let entry: &Entry = entry;
            (Handle { id, generation: entry.generation }, &*entry.identity)
        };
        self.by_id.iter().map(handle)
    }

    #[cfg(test)]
    pub(crate) fn in_use(&self) -> u32 {
        self.ids.in_use()
    }

    pub(crate) fn wake_all(&mut self) {
        self.ids.wake_all();
    }

    pub(crate) fn has_resting(&self) -> bool {
        self.ids.has_resting()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kubenet_core::route::BackendState;

    use super::*;

    fn identity(service: &str, last: u8, state: BackendState) -> Identity {
        Identity {
            service_port: ServicePortName {
                namespace: "demo".into(),
                service: service.into(),
                port: "".into(),
            },
            protocol: Protocol::Tcp,
            backend: Backend {
                address: [10, 0, 0, last].into(),
                port: 80.try_into().unwrap(),
                local: false,
                state,
                weight: NonZeroU16::MIN,
            },
        }
    }

    #[test]
    fn frontends_of_one_service_port_share_an_id_until_the_last_one_goes() {
        let mut backends = Backends::new(10);
        let web = || identity("web", 1, BackendState::Ready);
        let (a, new) = backends.acquire(web(), Duration::ZERO).unwrap();
        assert!(new);
        assert_eq!(backends.acquire(web(), Duration::ZERO), Some((a, false)));
        assert!(!backends.release(a.id, Duration::ZERO));
        assert!(backends.release(a.id, Duration::ZERO));
        assert_eq!(backends.in_use(), 0);
        let (b, new) = backends.acquire(web(), Duration::ZERO).unwrap();
        assert!(new && b.id != a.id, "the old id rests");
    }

    #[test]
    fn another_service_or_another_state_has_an_id_of_its_own() {
        let mut backends = Backends::new(10);
        let (a, _) = backends.acquire(identity("web", 1, BackendState::Ready), Duration::ZERO).unwrap();
        let (b, _) = backends.acquire(identity("api", 1, BackendState::Ready), Duration::ZERO).unwrap();
        let (c, _) = backends.acquire(identity("web", 1, BackendState::Terminating), Duration::ZERO).unwrap();
        assert!(a.id != b.id && a.id != c.id && b.id != c.id);
    }

    #[test]
    fn index_0_is_never_used_and_a_full_map_is_no_panic() {
        let mut backends = Backends::new(2);
        let (a, _) = backends.acquire(identity("web", 1, BackendState::Ready), Duration::ZERO).unwrap();
        assert_eq!(a.id, 1);
        assert_eq!(backends.acquire(identity("web", 2, BackendState::Ready), Duration::ZERO), None);
    }
}
