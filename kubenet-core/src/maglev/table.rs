use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
};

use super::{TableSize, client_hash, contest::Contest};

/// A consistent hashing table: which backend serves which client.
///
/// Equal sets of backends and equal sizes give equal tables, however they were made.
///
/// A backend is known by its address and port. IPv4-mapped addresses become IPv4, and flow labels and scopes are
/// dropped. The weights are relative to each other. A backend whose share is less than a slot may have none.
///
/// At most [`Table::MAX_BACKENDS`] backends own slots: the first in the order of
/// [`backends`](Self::backends).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Table {
    size: TableSize,
    backends: Vec<(SocketAddr, NonZeroU16)>,
    slots: Vec<u16>,
}

impl Table {
    /// The most backends that own slots.
    pub const MAX_BACKENDS: usize = 1 << u16::BITS;

    /// A table of [`TableSize::DEFAULT`] over these backends and their weights. A backend that is given twice
    /// counts once, with its largest weight.
    pub fn new(backends: impl IntoIterator<Item = (SocketAddr, NonZeroU16)>) -> Self {
        Self::with_size(TableSize::DEFAULT, backends)
    }

    /// A table of this size. Otherwise as [`new`](Self::new).
    pub fn with_size(size: TableSize, backends: impl IntoIterator<Item = (SocketAddr, NonZeroU16)>) -> Self {
        let mut backends: Vec<_> = backends.into_iter().map(|(at, weight)| (identity(at), weight)).collect();
        backends.sort_unstable_by(|(a, x), (b, y)| a.cmp(b).then(y.cmp(x)));
        backends.dedup_by_key(|(address, _)| *address);
        let mut table = Self { size, backends, slots: Vec::new() };
        table.rebuild();
        table
    }

    /// The backend of this client, by [`client_hash`]; none if the table has no backends.
    pub fn get(&self, client: IpAddr) -> Option<SocketAddr> {
        let index = self.slots.get(self.size.slot(client_hash(client)))?;
        Some(self.backends.get(usize::from(*index))?.0)
    }

    /// The owner of each slot, as an index into [`backends`](Self::backends). Empty if there are no backends.
    pub fn slots(&self) -> &[u16] {
        &self.slots
    }

    /// The backends and their weights, by address and port.
    pub fn backends(&self) -> &[(SocketAddr, NonZeroU16)] {
        &self.backends
    }

    /// The size that the table was made with.
    pub fn size(&self) -> TableSize {
        self.size
    }

    /// Adds a backend, or changes its weight. Gives the weight that it had.
    ///
    /// Takes time for the slots, not for the backends times the slots.
    pub fn insert(&mut self, backend: SocketAddr, weight: NonZeroU16) -> Option<NonZeroU16> {
        let backend = identity(backend);
        let old = self.find(backend).ok().map(|at| self.backends[at].1);
        if old == Some(weight) {
            return old;
        }
        self.remove(backend);
        let (Ok(at) | Err(at)) = self.find(backend);
        self.backends.insert(at, (backend, weight));
        if self.backends.len() == 1 || self.backends.len() > Self::MAX_BACKENDS {
            self.rebuild();
            return old;
        }
        let contest = Contest::new(self.size, &self.backends);
        for (slot, owner) in (0..).zip(&mut self.slots) {
            let holder = usize::from(*owner) + usize::from(usize::from(*owner) >= at);
            *owner = contest.better(slot, holder, at) as u16;
        }
        old
    }

    /// Removes a backend. Gives the weight that it had.
    ///
    /// Takes time for the slots, not for the backends times the slots.
    pub fn remove(&mut self, backend: SocketAddr) -> Option<NonZeroU16> {
        let at = self.find(identity(backend)).ok()?;
        let (_, weight) = self.backends.remove(at);
        if self.backends.is_empty() || self.backends.len() >= Self::MAX_BACKENDS {
            self.rebuild();
            return Some(weight);
        }
        let contest = Contest::new(self.size, &self.backends);
        for (slot, owner) in (0..).zip(&mut self.slots) {
            let holder = usize::from(*owner);
            *owner = if holder == at { contest.best(slot) as u16 } else { *owner - u16::from(holder > at) };
        }
        Some(weight)
    }

    fn find(&self, backend: SocketAddr) -> Result<usize, usize> {
        self.backends.binary_search_by_key(&backend, |(address, _)| *address)
    }

    fn rebuild(&mut self) {
        let serving = self.backends.len().min(Self::MAX_BACKENDS);
        self.slots = Contest::new(self.size, &self.backends[..serving]).settle();
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("size", &self.size)
            .field("backends", &self.backends)
            .finish_non_exhaustive()
    }
}

/// What a backend is known by.
fn identity(backend: SocketAddr) -> SocketAddr {
    SocketAddr::new(backend.ip().to_canonical(), backend.port())
}
