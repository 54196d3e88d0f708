//! Who in this process programs which chains.

use std::{
    collections::{BTreeSet, HashMap},
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

/// The datapaths of one place. Those that drain count: the rules that they left are what keeps connection
/// tracking at work for their flows.
#[derive(Debug, Default)]
struct Claimants {
    serving: Option<u64>,
    draining: BTreeSet<u64>,
}

static PLACES: LazyLock<Mutex<HashMap<Place, Claimants>>> = LazyLock::new(Mutex::default);
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

    /// Becomes the one that serves. `false` when another does.
    pub(crate) fn take(&self) -> bool {
        let mut places = PLACES.lock();
        *places.entry(self.place.clone()).or_default().serving.get_or_insert(self.id) == self.id
    }

    /// Takes back a [`Claim::take`] after which nothing was programmed. One that drained before drains on.
    pub(crate) fn give_back(&self) {
        self.change(|claimants| claimants.stop(self.id));
    }

    /// No longer serves, but its flows live on.
    pub(crate) fn drain(&self) {
        self.change(|claimants| {
            claimants.stop(self.id);
            claimants.draining.insert(self.id);
        });
    }

    pub(crate) fn is_owner(&self) -> bool {
        PLACES.lock().get(&self.place).is_some_and(|claimants| claimants.serving == Some(self.id))
    }

    /// Whether the chains may be removed: this one serves, or nobody else serves or drains. The last one that
    /// drains removes them, whichever that is.
    pub(crate) fn may_remove(&self) -> bool {
        PLACES.lock().get(&self.place).is_none_or(|claimants| match claimants.serving {
            Some(id) => id == self.id,
            None => claimants.draining.iter().all(|id| *id == self.id),
        })
    }

    pub(crate) fn release(&self) {
        self.change(|claimants| {
            claimants.stop(self.id);
            claimants.draining.remove(&self.id);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Claimants)) {
        let mut places = PLACES.lock();
        let claimants = places.entry(self.place.clone()).or_default();
        change(claimants);
        if claimants.serving.is_none() && claimants.draining.is_empty() {
            places.remove(&self.place);
        }
    }
}

impl Claimants {
    fn stop(&mut self, id: u64) {
        self.serving = self.serving.filter(|serving| *serving != id);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims<const N: usize>(prefix: &str) -> [Claim; N] {
        let place = Place { namespace: (0, 0), backend: Backend::Nft, prefix: prefix.to_owned() };
        std::array::from_fn(|_| Claim::new(place.clone()))
    }

    #[test]
    fn the_last_one_that_drains_removes_the_chains() {
        let [a, b, fresh] = claims("LAST");
        for claim in [&a, &b] {
            assert!(claim.take());
            assert!(claim.may_remove());
            claim.drain();
        }
        assert!([&a, &b, &fresh].iter().all(|claim| !claim.may_remove()));
        a.release();
        assert!(b.may_remove() && !a.may_remove() && !fresh.may_remove());
        drop(b);
        assert!(fresh.may_remove());
    }

    #[test]
    fn one_at_a_time_serves_and_a_failed_start_changes_nothing() {
        let [a, b] = claims("ONE");
        assert!(a.take() && a.take());
        assert!(!b.take());
        a.drain();
        assert!(b.take());
        b.give_back();
        assert!(a.may_remove() && !b.may_remove(), "the first drains still");
        assert!(a.take());
        a.give_back();
        assert!(!b.may_remove(), "it drains on");
        a.release();
        assert!(!PLACES.lock().contains_key(&a.place));
    }
}
