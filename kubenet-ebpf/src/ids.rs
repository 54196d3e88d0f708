//! Ids: allocated, never hashed (hashed ids collide silently), never 0, with a generation each.

use crate::rest::{Now, Resting};

/// An id and how often it was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handle {
    pub(crate) id: u32,
    pub(crate) generation: u32,
}

/// Hands out the ids from 1 to a last one.
#[derive(Clone, Debug)]
pub(crate) struct Ids {
    last: u32,
    /// By id; its length is the first id that was never handed out.
    generations: Vec<u32>,
    free: Vec<u32>,
    resting: Resting<u32>,
    in_use: u32,
}

impl Ids {
    pub(crate) fn up_to(last: u32) -> Self {
        Self { last, generations: vec![0], free: Vec::new(), resting: Resting::default(), in_use: 0 }
    }

    /// As another process left them: how often each id was handed out, and whether somebody has it.
    pub(crate) fn adopt(last: u32, mut generations: Vec<u32>, is_used: impl Fn(u32) -> bool) -> Self {
        generations.truncate(last as usize + 1);
        if generations.is_empty() {
            generations.push(0);
        }
        let (used, free): (Vec<u32>, Vec<u32>) =
            (1..generations.len() as u32).rev().partition(|id| is_used(*id));
        Self { last, generations, free, resting: Resting::default(), in_use: used.len() as u32 }
    }

    /// An id that nobody has, or `None` when all are in use or resting.
    pub(crate) fn take(&mut self, now: Now) -> Option<Handle> {
        while let Some(id) = self.resting.wake(now) {
            self.free.push(id);
        }
        let id = match self.free.pop() {
            Some(id) => id,
            None => {
                let id = u32::try_from(self.generations.len()).ok().filter(|id| *id <= self.last)?;
                self.generations.push(0);
                id
            }
        };
        let generation = &mut self.generations[id as usize];
        // 0 is what an entry that was never written holds.
        *generation = generation.checked_add(1).unwrap_or(1);
        self.in_use += 1;
        Some(Handle { id, generation: *generation })
    }

    /// How often the id was handed out.
    pub(crate) fn generation(&self, id: u32) -> u32 {
        self.generations.get(id as usize).copied().unwrap_or_default()
    }

    /// Room for so many more.
    pub(crate) fn reserve(&mut self, more: usize) {
        self.generations.reserve(more);
    }

    /// Gives an id back. It rests before it is handed out again.
    pub(crate) fn give_back(&mut self, id: u32, now: Now) {
        debug_assert!(id != 0 && (id as usize) < self.generations.len(), "not an id of ours");
        self.in_use -= 1;
        self.resting.push(id, now);
    }

    /// All that rested is free: the caller waited for an RCU grace period.
    pub(crate) fn wake_all(&mut self) {
        self.free.extend(self.resting.wake_all());
    }

    pub(crate) fn has_resting(&self) -> bool {
        !self.resting.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn in_use(&self) -> u32 {
        self.in_use
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use proptest::prelude::*;

    use super::*;
    use crate::rest::REST;

    #[test]
    fn an_id_rests_before_it_is_handed_out_with_the_next_generation() {
        let mut ids = Ids::up_to(1);
        let first = ids.take(Duration::ZERO).unwrap();
        assert_eq!(first, Handle { id: 1, generation: 1 });
        assert_eq!(ids.take(Duration::ZERO), None);
        ids.give_back(1, Duration::ZERO);
        assert_eq!(ids.take(REST - Duration::from_millis(1)), None);
        assert_eq!(ids.take(REST), Some(Handle { id: 1, generation: 2 }));
    }

    #[test]
    fn a_grace_period_ends_the_rest() {
        let mut ids = Ids::up_to(1);
        ids.take(Duration::ZERO).unwrap();
        ids.give_back(1, Duration::ZERO);
        assert!(ids.has_resting());
        ids.wake_all();
        assert_eq!(ids.take(Duration::ZERO), Some(Handle { id: 1, generation: 2 }));
    }

    proptest! {
        #[test]
        fn nobody_shares_an_id_and_no_pair_of_id_and_generation_comes_twice(
            steps in prop::collection::vec((any::<bool>(), 0u64..700), 1..200),
        ) {
            let mut ids = Ids::up_to(20);
            let mut now = Duration::ZERO;
            let mut held: Vec<u32> = Vec::new();
            let mut seen = BTreeMap::new();
            for (take, wait) in steps {
                now += Duration::from_millis(wait);
                if take {
                    if let Some(handle) = ids.take(now) {
                        prop_assert!((1..=20).contains(&handle.id));
                        prop_assert!(!held.contains(&handle.id));
                        prop_assert!(seen.insert((handle.id, handle.generation), ()).is_none());
                        held.push(handle.id);
                    }
                } else if let Some(id) = held.pop() {
                    ids.give_back(id, now);
                }
                prop_assert_eq!(ids.in_use() as usize, held.len());
            }
        }
    }
}
