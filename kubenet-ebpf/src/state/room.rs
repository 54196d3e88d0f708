//! Room in one piece, where only many small ones are free.
//!
//! Sets move as they change: a copy is written to slots that nobody has, then the entry of `services`, and after a
//! grace period nobody sees the old slots. So as many sets as stand in the way go elsewhere at once. Where they find no
//! place, those between free pieces move together, one after the other.

use std::collections::{BTreeMap, BTreeSet};

use kubenet_core::{model::Protocol, route::Frontend};

use super::{Programmed, State};
use crate::{layout, rest::Now, sets::Set, slots::Range};

/// How many places are tried for room, and how many sets move together at most, each with a grace period.
const PLACES: usize = 64;
const TOGETHER: usize = 64;

/// A set that is to stand elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    frontend: Frontend,
    external: bool,
    pub(crate) from: Range,
    /// The first slot.
    to: u32,
}

impl Move {
    /// The slots that it needs and does not have.
    pub(crate) fn needs(&self) -> Range {
        Range { base: self.to, count: self.distance() }
    }

    /// The slots that it leaves.
    pub(crate) fn leaves(&self) -> Range {
        let overlaps = self.distance() < self.from.count;
        let base = if overlaps { self.to + self.from.count } else { self.from.base };
        Range { base, count: self.distance() }
    }

    fn distance(&self) -> u32 {
        self.from.count.min(self.from.base.abs_diff(self.to))
    }
}

/// How room is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// These sets go elsewhere, where room is taken for them. So are the free slots between them.
    Apart(Vec<Move>, Vec<Range>),
    /// These go to lower slots, one after the other. Nothing is taken yet.
    Together(Vec<Move>),
}

/// What is to be written for a set to stand elsewhere.
#[derive(Debug)]
pub(crate) struct Moved {
    pub(crate) base: u32,
    pub(crate) words: Vec<u32>,
    pub(crate) service: (Frontend, layout::Service),
    before: Set,
}

/// Who has a range of slots.
#[derive(Clone, Copy, Debug)]
struct Holder {
    range: Range,
    frontend: Frontend,
    external: bool,
    /// Nobody else has it, too.
    alone: bool,
    /// It may overlap with where it stood: the order of its slots matters to nobody.
    slides: bool,
}

impl State {
    /// How so many slots in one piece can be had, where there is none. `None` where they cannot.
    pub(crate) fn plan_room(&mut self, wanted: u32, now: Now) -> Option<Plan> {
        let holders = self.holders();
        let pieces: Vec<Range> = self.sets.slots().pieces().collect();
        self.apart(wanted, &holders, &pieces, now).or_else(|| together(wanted, &holders, &pieces))
    }

    fn holders(&self) -> BTreeMap<u32, Holder> {
        let mut holders = BTreeMap::new();
        let mut shared = BTreeSet::new();
        for programmed in self.routes.iter() {
            for (external, set) in (0..).map(|n| n > 0).zip(programmed.sets()) {
                let holder = Holder {
                    range: set.range,
                    frontend: programmed.route.frontend,
                    external,
                    alone: self.sets.is_alone(set),
                    // Clients that stay, and UDP flows, look for theirs among ids in order.
                    slides: set.is_plain()
                        && programmed.route.affinity.is_none()
                        && programmed.route.frontend.protocol != Protocol::Udp,
                };
                if set.range.count > 0 && holders.insert(set.range.base, holder).is_some() {
                    shared.insert(set.range.base);
                }
            }
        }
        for base in shared {
            holders.entry(base).and_modify(|holder| holder.alone = false);
        }
        holders
    }

    /// Where the fewest slots are in use, and whoever has them finds others.
    fn apart(
        &mut self,
        wanted: u32,
        holders: &BTreeMap<u32, Holder>,
        pieces: &[Range],
        now: Now,
    ) -> Option<Plan> {
        let size = self.sets.slots().size();
        let mut sums = vec![0u64];
        sums.extend(pieces.iter().scan(0, |sum, piece| {
            *sum += u64::from(piece.count);
            Some(*sum)
        }));
        let free_below = |slot: u32| {
            let whole = pieces.partition_point(|piece| piece.end() <= slot);
            let part = pieces.get(whole).map_or(0, |piece| slot.saturating_sub(piece.base));
            sums[whole] + u64::from(part)
        };
        let mut places: Vec<(u64, u32)> = pieces
            .iter()
            .flat_map(|piece| [Some(piece.base), piece.end().checked_sub(wanted)])
            .flatten()
            .filter(|base| size - base >= wanted)
            .map(|base| (u64::from(wanted) - (free_below(base + wanted) - free_below(base)), base))
            .collect();
        places.sort_unstable();
        places.dedup();
        places
            .into_iter()
            .take(PLACES)
            .find_map(|(used, base)| self.vacate(Range { base, count: wanted }, used, holders, now))
    }

    /// Takes places for all sets that have a part of a range.
    fn vacate(&mut self, range: Range, used: u64, holders: &BTreeMap<u32, Holder>, now: Now) -> Option<Plan> {
        let before = holders.range(..range.base).next_back().map(|(_, holder)| holder);
        let inside = holders.range(range.base..range.end()).map(|(_, holder)| holder);
        let mut there: Vec<&Holder> =
            before.into_iter().filter(|holder| holder.range.end() > range.base).chain(inside).collect();
        let part = |holder: &Holder| {
            u64::from(holder.range.end().min(range.end()) - holder.range.base.max(range.base))
        };
        // Slots that no route has are another's, from before this process.
        if !there.iter().all(|holder| holder.alone)
            || there.iter().map(|holder| part(holder)).sum::<u64>() != used
        {
            return None;
        }
        // The largest ones have the fewest places.
        there.sort_unstable_by_key(|holder| std::cmp::Reverse(holder.range.count));
        let slots = self.sets.slots();
        let kept = slots.take_free_parts(range);
        let mut moves = Vec::with_capacity(there.len());
        for holder in there {
            let Holder { frontend, external, range: from, .. } = *holder;
            match slots.take(from.count, now) {
                Ok(to) => moves.push(Move { frontend, external, from, to: to.base }),
                Err(_) => {
                    let taken = moves.iter().map(|m: &Move| Range { base: m.to, count: m.from.count });
                    taken.chain(kept).for_each(|range| slots.untake(range));
                    return None;
                }
            }
        }
        Some(Plan::Apart(moves, kept))
    }

    /// Takes a range for a set that is to move. False where somebody has a part of it.
    pub(crate) fn take_slots(&mut self, range: Range) -> bool {
        self.sets.slots().take_at(range)
    }

    /// A range that no packet can see is free at once; others rest.
    pub(crate) fn free_slots(&mut self, range: Range, unseen: bool, now: Now) {
        if unseen {
            self.sets.slots().untake(range);
        } else {
            self.sets.give_back_range(range, now);
        }
    }

    /// The set stands elsewhere as soon as this is written.
    pub(crate) fn relocate(&mut self, to: &Move) -> Option<Moved> {
        let programmed = self.routes.get_mut(&to.frontend)?;
        let set = set_of(programmed, to.external)?;
        if set.range != to.from {
            return None;
        }
        let before = set.clone();
        let new = to.distance() as usize;
        if to.distance() < to.from.count {
            // What stays where it is is read as it was; the last ones go before it.
            set.rotate(new);
        }
        let words = set.words()[..new].to_vec();
        self.sets.stands_at(set, to.to);
        Some(Moved { base: to.to, words, service: (to.frontend, programmed.service()), before })
    }

    /// It could not be written: the set stands where it stood.
    pub(crate) fn put_back(&mut self, to: &Move, moved: Moved) {
        if let Some(set) =
            self.routes.get_mut(&to.frontend).and_then(|programmed| set_of(programmed, to.external))
        {
            *set = moved.before;
            self.sets.stands_at(set, to.from.base);
        }
    }
}

fn set_of(programmed: &mut Programmed, external: bool) -> Option<&mut Set> {
    if external { programmed.external.as_deref_mut() } else { Some(&mut programmed.internal) }
}

/// The fewest slots between free pieces that are enough together.
fn together(wanted: u32, holders: &BTreeMap<u32, Holder>, pieces: &[Range]) -> Option<Plan> {
    let runs = (0..pieces.len()).filter_map(|first| run(wanted, holders, &pieces[first..]));
    runs.min_by_key(|moves| moves.iter().map(|m| u64::from(m.needs().count)).sum::<u64>()).map(Plan::Together)
}

/// From the first piece on.
fn run(wanted: u32, holders: &BTreeMap<u32, Holder>, pieces: &[Range]) -> Option<Vec<Move>> {
    let mut moves = Vec::new();
    let (mut free, mut end) = (0, pieces.first()?.base);
    for piece in pieces {
        while end < piece.base {
            let holder = holders.get(&end).filter(|holder| holder.alone)?;
            let Holder { frontend, external, range: from, slides, .. } = *holder;
            if moves.len() == TOGETHER || free < from.count && !slides {
                return None;
            }
            moves.push(Move { frontend, external, from, to: from.base - free });
            end = from.end();
        }
        free += piece.count;
        end = piece.end();
        if free >= wanted {
            return Some(moves);
        }
    }
    None
}
