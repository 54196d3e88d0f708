//! Finds numbers by what they stand for, which is kept where the numbers lead.

use std::hash::{BuildHasher, Hash};

use hashbrown::{DefaultHashBuilder, HashTable};

/// Nine bytes for each number, whatever it stands for. It grows without a look at that.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    table: HashTable<Slot>,
    hasher: DefaultHashBuilder,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    hash: u32,
    number: u32,
}

impl Index {
    pub(crate) fn hash(&self, key: &impl Hash) -> u32 {
        // Half of it is enough: few have the same, and those are compared.
        self.hasher.hash_one(key) as u32
    }

    /// The number with this hash that `is_it`.
    pub(crate) fn find(&self, hash: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        self.table.find(spread(hash), |slot| slot.hash == hash && is_it(slot.number)).map(|slot| slot.number)
    }

    /// Adds a number that is not there.
    pub(crate) fn insert(&mut self, hash: u32, number: u32) {
        self.table.insert_unique(spread(hash), Slot { hash, number }, |slot| spread(slot.hash));
    }

    pub(crate) fn remove(&mut self, hash: u32, number: u32) {
        if let Ok(entry) = self.table.find_entry(spread(hash), |slot| slot.number == number) {
            entry.remove();
        }
    }

    pub(crate) fn reserve(&mut self, more: usize) {
        self.table.reserve(more, |slot| spread(slot.hash));
    }
}

/// The table wants bits at both ends.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Things by numbers, which are used again when they are gone.
#[derive(Clone, Debug)]
pub(crate) struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub(crate) fn insert(&mut self, thing: T) -> u32 {
        match self.free.pop() {
            Some(number) => {
                self.entries[number as usize] = Some(thing);
                number
            }
            None => {
                self.entries.push(Some(thing));
                // No map has more entries than such a number can count.
                (self.entries.len() - 1) as u32
            }
        }
    }

    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        self.entries.get(number as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.entries.get_mut(number as usize)?.as_mut()
    }

    pub(crate) fn remove(&mut self, number: u32) -> Option<T> {
        let thing = self.entries.get_mut(number as usize)?.take();
        self.free.extend(thing.is_some().then_some(number));
        thing
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().flatten()
    }

    pub(crate) fn reserve(&mut self, more: usize) {
        self.entries.reserve(more);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_inserted_is_found_until_it_is_removed(
            steps in prop::collection::vec((any::<bool>(), 0u16..40), 1..200),
        ) {
            let (mut index, mut slab) = (Index::default(), Slab::default());
            let mut known: BTreeMap<u16, u32> = BTreeMap::new();
            for (add, key) in steps {
                // Some share their hash.
                let hash = index.hash(&(key / 2));
                let found = index.find(hash, |number| slab.get(number) == Some(&key));
                prop_assert_eq!(found, known.get(&key).copied());
                match found {
                    None if add => {
                        let number = slab.insert(key);
                        index.insert(hash, number);
                        prop_assert!(known.values().all(|other| *other != number));
                        known.insert(key, number);
                    }
                    Some(number) if !add => {
                        index.remove(hash, number);
                        prop_assert_eq!(slab.remove(number), known.remove(&key).map(|_| key));
                    }
                    _ => {}
                }
                prop_assert_eq!(slab.iter().count(), known.len());
            }
        }
    }
}
