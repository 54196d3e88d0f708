//! Ranges of the map `slots`: the set of backends of a route is one range.

use std::collections::{BTreeMap, BTreeSet};

use crate::rest::{Now, Resting};

/// A range of slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) base: u32,
    pub(crate) count: u32,
}

impl Range {
    pub(crate) fn end(self) -> u32 {
        self.base + self.count
    }
}

/// Best-fit allocator that joins neighbours when they come back.
///
/// Best fit keeps the large pieces whole; most sets are small and many have the same size, so that pieces find
/// a new owner as they are.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    size: u32,
    /// Base → count. Neighbours are always joined.
    free: BTreeMap<u32, u32>,
    /// The same as (count, base).
    by_count: BTreeSet<(u32, u32)>,
    resting: Resting<Range>,
}

/// There is no piece that is large enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoSlots {
    pub(crate) wanted: u32,
    pub(crate) largest: u32,
    pub(crate) free: u64,
    pub(crate) size: u32,
}

impl Slots {
    pub(crate) fn new(size: u32) -> Self {
        let mut slots =
            Self { size, free: BTreeMap::new(), by_count: BTreeSet::new(), resting: Resting::default() };
        slots.insert(Range { base: 0, count: size });
        slots
    }

    /// A range that nobody has. The empty range needs no room.
    pub(crate) fn take(&mut self, count: u32, now: Now) -> Result<Range, NoSlots> {
        if count == 0 {
            return Ok(Range::default());
        }
        while let Some(range) = self.resting.wake(now) {
            self.insert(range);
        }
        let Some((piece, base)) = self.by_count.range((count, 0)..).next().copied() else {
            return Err(NoSlots {
                wanted: count,
                largest: self.by_count.last().map_or(0, |(count, _)| *count),
                free: self.free.values().map(|c| u64::from(*c)).sum(),
                size: self.size,
            });
        };
        self.remove(Range { base, count: piece });
        if piece > count {
            self.insert(Range { base: base + count, count: piece - count });
        }
        Ok(Range { base, count })
    }

    /// Takes those parts of a range that nobody has.
    pub(crate) fn take_free_parts(&mut self, range: Range) -> Vec<Range> {
        let (begin, end) = (u64::from(range.base), u64::from(range.base) + u64::from(range.count));
        let before = self.free.range(..range.base).next_back();
        let pieces = before.into_iter().chain(self.free.range(range.base..));
        let pieces = pieces.map(|(&base, &count)| Range { base, count });
        let touched: Vec<Range> = pieces
            .take_while(|piece| u64::from(piece.base) < end)
            .filter(|piece| u64::from(piece.end()) > begin)
            .collect();
        let mut taken = Vec::with_capacity(touched.len());
        for piece in touched {
            // Both ends lie in the piece, so that they fit.
            let (first, last) = (piece.base.max(range.base), u64::from(piece.end()).min(end) as u32);
            self.remove(piece);
            self.insert(Range { base: piece.base, count: first - piece.base });
            self.insert(Range { base: last, count: piece.end() - last });
            taken.push(Range { base: first, count: last - first });
        }
        taken
    }

    /// The pieces that nobody has, in order.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Range> {
        self.free.iter().map(|(&base, &count)| Range { base, count })
    }

    /// How many slots there are.
    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// Takes a range if nobody has a part of it.
    pub(crate) fn take_at(&mut self, range: Range) -> bool {
        let parts = self.take_free_parts(range);
        let whole = parts == [range];
        if !whole {
            parts.into_iter().for_each(|part| self.insert(part));
        }
        whole
    }

    /// Undoes that it was taken: no program has seen it, or none can see it any more.
    pub(crate) fn untake(&mut self, range: Range) {
        self.insert(range);
    }

    /// Gives a range back. It rests before it is handed out again.
    pub(crate) fn give_back(&mut self, range: Range, now: Now) {
        if range.count > 0 {
            self.resting.push(range, now);
        }
    }

    /// All that rested is free: the caller waited for an RCU grace period.
    pub(crate) fn wake_all(&mut self) {
        let rested: Vec<Range> = self.resting.wake_all().collect();
        for range in rested {
            self.insert(range);
        }
    }

    pub(crate) fn has_resting(&self) -> bool {
        !self.resting.is_empty()
    }

    fn remove(&mut self, range: Range) {
        self.free.remove(&range.base);
        self.by_count.remove(&(range.count, range.base));
    }

    fn insert(&mut self, mut range: Range) {
        if range.count == 0 {
            return;
        }
        let before = self.free.range(..range.base).next_back().map(|(&base, &count)| Range { base, count });
        if let Some(before) = before.filter(|b| b.end() == range.base) {
            self.remove(before);
            range = Range { base: before.base, count: before.count + range.count };
        }
        if let Some(&count) = self.free.get(&range.end()) {
            self.remove(Range { base: range.end(), count });
            range.count += count;
        }
        self.free.insert(range.base, range.count);
        self.by_count.insert((range.count, range.base));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::rest::REST;

    #[test]
    fn a_full_table_says_what_is_left() {
        let mut slots = Slots::new(10);
        let a = slots.take(4, Duration::ZERO).unwrap();
        slots.take(2, Duration::ZERO).unwrap();
        slots.give_back(a, Duration::ZERO);
        let error = slots.take(5, REST).unwrap_err();
        assert_eq!(error, NoSlots { wanted: 5, largest: 4, free: 8, size: 10 });
        assert_eq!(slots.take(3, REST).unwrap(), Range { base: 0, count: 3 });
    }

    #[test]
    fn the_smallest_piece_that_fits_is_used() {
        let mut slots = Slots::new(100);
        let ranges: Vec<Range> = [10, 1, 4, 1].map(|n| slots.take(n, Duration::ZERO).unwrap()).into();
        slots.give_back(ranges[0], Duration::ZERO);
        slots.give_back(ranges[2], Duration::ZERO);
        assert_eq!(slots.take(3, REST).unwrap().base, ranges[2].base);
    }

    #[test]
    fn parts_of_a_range_that_are_free_are_taken_and_no_others() {
        let range = |base, count| Range { base, count };
        let mut slots = Slots::new(20);
        assert_eq!(slots.take_free_parts(range(5, 5)), [range(5, 5)]);
        assert_eq!(slots.take_free_parts(range(5, 5)), []);
        assert_eq!(slots.take_free_parts(range(3, 10)), [range(3, 2), range(10, 3)]);
        assert_eq!(slots.take_free_parts(range(19, u32::MAX)), [range(19, 1)]);
        assert_eq!(slots.free, BTreeMap::from([(0, 3), (13, 6)]));
        assert_eq!(slots.take_free_parts(range(0, 20)), [range(0, 3), range(13, 6)]);
        assert_eq!(slots.by_count, BTreeSet::new());
    }

    proptest! {
        #[test]
        fn ranges_in_use_or_resting_never_overlap_and_all_come_back(
            steps in prop::collection::vec((0u32..12, any::<prop::sample::Index>(), 0u64..700), 1..300),
        ) {
            const SIZE: u32 = 64;
            let mut slots = Slots::new(SIZE);
            let mut now = Duration::ZERO;
            let mut held: Vec<Range> = Vec::new();
            for (count, which, wait) in steps {
                now += Duration::from_millis(wait);
                if count < 8 {
                    if let Ok(range) = slots.take(count, now) {
                        prop_assert_eq!(range.count, count);
                        prop_assert!(range.end() <= SIZE);
                        let taken = held.iter().chain(slots.resting.iter());
                        for other in taken.filter(|_| count > 0) {
                            prop_assert!(range.end() <= other.base || other.end() <= range.base);
                        }
                        if count > 0 {
                            held.push(range);
                        }
                    }
                } else if !held.is_empty() {
                    let range = held.swap_remove(which.index(held.len()));
                    slots.give_back(range, now);
                }
            }
            for range in held {
                slots.give_back(range, now);
            }
            slots.wake_all();
            prop_assert_eq!(slots.free, BTreeMap::from([(0, SIZE)]));
            prop_assert_eq!(slots.by_count, BTreeSet::from([(SIZE, 0)]));
        }
    }
}
