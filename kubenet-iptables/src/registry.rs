//! Who in this process programs which chains.

use std::{
    collections::HashMap,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use crate::exec::Backend;

/// A set of chains: a network namespace (device and inode of its file), a variant and a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) namespace: (u64, u64),
    pub(crate) backend: Backend,
    pub(crate) prefix: String,
}

static OWNERS: LazyLock<Mutex<HashMap<Place, u64>>> = LazyLock::new(Mutex::default);
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A datapath's share of the registry. Dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct Claim {
    place: Place,
    id: u64,
}

impl Claim {
    pub(crate) fn new(place: Place) -> Self {
        Self { place, id: NEXT.fetch_add(1, Ordering::Relaxed) }
    }

    /// Becomes the owner. `false` when another is.
    pub(crate) fn take(&self) -> bool {
        *OWNERS.lock().entry(self.place.clone()).or_insert(self.id) == self.id
    }

    pub(crate) fn is_owner(&self) -> bool {
        OWNERS.lock().get(&self.place) == Some(&self.id)
    }

    /// Whether somebody else owns the chains.
    pub(crate) fn is_taken(&self) -> bool {
        OWNERS.lock().get(&self.place).is_some_and(|id| *id != self.id)
    }

    pub(crate) fn release(&self) {
        let mut owners = OWNERS.lock();
        if owners.get(&self.place) == Some(&self.id) {
            owners.remove(&self.place);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.release();
    }
}
