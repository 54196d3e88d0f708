//! Which backend has which id.

use std::num::NonZeroU16;

use kubenet_core::route::Backend;

use crate::{
    ids::{Handle, Ids},
    index::Index,
    rest::Now,
};

/// What an id stands for. The frontends of one Service port share their backends' ids.
///
/// Whether a backend is ready or terminating is part of it: a change of state is a new id, so that an entry
/// of `backends` never changes its meaning while a packet looks at it. Its weight is not: that belongs to the
/// set, and may differ from one to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    /// The number of the Service's port, of [`Ports`](crate::ports::Ports).
    pub(crate) port: u32,
    pub(crate) backend: Backend,
}

impl Identity {
    pub(crate) fn new(port: u32, backend: &Backend) -> Self {
        Self { port, backend: Backend { weight: NonZeroU16::MIN, ..*backend } }
    }
}

/// The backends of one address family: ids with reference counts.
#[derive(Debug)]
pub(crate) struct Backends {
    index: Index,
    /// By id. `None`: nobody holds it.
    by_id: Vec<Option<Entry>>,
    ids: Ids,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    identity: Identity,
    references: u32,
}

impl Backends {
    /// For a map of this many entries.
    pub(crate) fn new(size: u32) -> Self {
        // Index 0 is never used.
        Self { index: Index::default(), by_id: Vec::new(), ids: Ids::up_to(size.saturating_sub(1)) }
    }

    fn get(&self, id: u32) -> Option<&Entry> {
        self.by_id.get(id as usize)?.as_ref()
    }

    fn get_mut(&mut self, id: u32) -> Option<&mut Entry> {
        self.by_id.get_mut(id as usize)?.as_mut()
    }

    fn find(&self, hash: u32, identity: &Identity) -> Option<u32> {
        self.index.find(hash, |id| self.get(id).is_some_and(|entry| entry.identity == *identity))
    }

    /// One reference to an id that nobody holds.
    fn insert(&mut self, id: u32, hash: u32, identity: Identity) {
        let place = id as usize;
        if place >= self.by_id.len() {
            self.by_id.resize(place + 1, None);
        }
        self.by_id[place] = Some(Entry { identity, references: 1 });
        self.index.insert(hash, id);
    }

    /// Whether the id may stand for this: neither has another partner.
    pub(crate) fn may_adopt(&self, id: u32, identity: &Identity) -> bool {
        match (self.get(id), self.find(self.index.hash(identity), identity)) {
            (None, None) => true,
            (Some(_), Some(known)) => known == id,
            _ => false,
        }
    }

    /// An id that another process handed out. One reference more.
    pub(crate) fn adopt(&mut self, id: u32, identity: Identity) {
        match self.get_mut(id) {
            Some(entry) => entry.references += 1,
            None => self.insert(id, self.index.hash(&identity), identity),
        }
    }

    /// After all that is to be adopted: how often each id was handed out, and whether others than the adopted
    /// ones are not to be touched.
    pub(crate) fn finish_adoption(
        &mut self,
        size: u32,
        generations: Vec<u32>,
        is_reserved: impl Fn(u32) -> bool,
    ) {
        let is_used = |id| self.is_alive(id) || is_reserved(id);
        self.ids = Ids::adopt(size.saturating_sub(1), generations, is_used);
    }

    /// Gives back an id that nobody holds but that was reserved at adoption.
    pub(crate) fn give_back(&mut self, id: u32, now: Now) {
        self.ids.give_back(id, now);
    }

    /// The id of a backend, and whether it is new. One reference more.
    pub(crate) fn acquire(&mut self, identity: Identity, now: Now) -> Option<(Handle, bool)> {
        let hash = self.index.hash(&identity);
        if let Some(id) = self.find(hash, &identity)
            && let Some(entry) = self.get_mut(id)
        {
            entry.references += 1;
            return Some((self.handle(id), false));
        }
        let handle = self.ids.take(now)?;
        self.insert(handle.id, hash, identity);
        Some((handle, true))
    }

    /// One reference less. True when that was the last one: the entry must be marked dead.
    #[must_use]
    pub(crate) fn release(&mut self, id: u32, now: Now) -> bool {
        let Some(entry) = self.get_mut(id) else {
            debug_assert!(false, "release of backend {id}, which nobody holds");
            return false;
        };
        entry.references -= 1;
        if entry.references > 0 {
            return false;
        }
        let identity = entry.identity;
        self.index.remove(self.index.hash(&identity), id);
        self.by_id[id as usize] = None;
        self.ids.give_back(id, now);
        true
    }

    /// Whether somebody holds the id.
    pub(crate) fn is_alive(&self, id: u32) -> bool {
        self.get(id).is_some()
    }

    fn handle(&self, id: u32) -> Handle {
        Handle { id, generation: self.ids.generation(id) }
    }

    /// Every id in use, with its generation and what it stands for.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Handle, &Identity)> {
        let entries = (0..).zip(&self.by_id);
        entries.filter_map(|(id, entry)| Some((self.handle(id), &entry.as_ref()?.identity)))
    }

    /// Room for so many more.
    pub(crate) fn reserve(&mut self, more: usize) {
        self.index.reserve(more);
        self.by_id.reserve(more + 1);
        self.ids.reserve(more);
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

    const WEB: u32 = 0;
    const API: u32 = 1;

    fn identity(port: u32, last: u8, state: BackendState) -> Identity {
        Identity {
            port,
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
        let web = || identity(WEB, 1, BackendState::Ready);
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
        let (a, _) = backends.acquire(identity(WEB, 1, BackendState::Ready), Duration::ZERO).unwrap();
        let (b, _) = backends.acquire(identity(API, 1, BackendState::Ready), Duration::ZERO).unwrap();
        let (c, _) = backends.acquire(identity(WEB, 1, BackendState::Terminating), Duration::ZERO).unwrap();
        assert!(a.id != b.id && a.id != c.id && b.id != c.id);
    }

    #[test]
    fn index_0_is_never_used_and_a_full_map_is_no_panic() {
        let mut backends = Backends::new(2);
        let (a, _) = backends.acquire(identity(WEB, 1, BackendState::Ready), Duration::ZERO).unwrap();
        assert_eq!(a.id, 1);
        assert_eq!(backends.acquire(identity(WEB, 2, BackendState::Ready), Duration::ZERO), None);
    }
}
