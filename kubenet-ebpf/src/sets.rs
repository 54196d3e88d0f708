//! What the slots of a set of backends hold.
//!
//! Mostly that is the id of each backend once, in order. Where the backends do not have one slot each, because
//! they weigh differently or a table of [`maglev`] says whose a slot is, the members and their weights stand
//! behind the slots that flows pick from, so that the set can be read back: their number, the id of each, and
//! the weight of each.

use std::{collections::HashMap, net::SocketAddr, num::NonZeroU16, sync::Arc};

use kubenet_core::{
    maglev,
    model::{Algorithm, IpFamily},
    route::{Backend, Route},
};

use crate::{
    rest::Now,
    slots::{NoSlots, Range, Slots},
};

/// Whether the sets of this route are written with a list of their members.
pub(crate) fn is_listed(route: &Route) -> bool {
    route.algorithm == Algorithm::Maglev || route.internal.is_weighted() || route.external.is_weighted()
}

/// A backend of a set with a list, and its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Member {
    pub(crate) id: u32,
    pub(crate) weight: NonZeroU16,
    pub(crate) address: SocketAddr,
}

impl Member {
    pub(crate) fn new(id: u32, backend: &Backend) -> Self {
        Self { id, weight: backend.weight, address: backend.socket_addr() }
    }
}

/// The slots of a set with a list. Frontends with the same one share it: a table of Maglev is large.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    key: Key,
    /// How many slots flows pick from: the first ones of `words`.
    picks: u32,
    words: Vec<u32>,
}

/// All that the slots depend on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    family: IpFamily,
    algorithm: Algorithm,
    /// By id, of which none comes twice.
    members: Vec<Member>,
}

impl Listed {
    fn new(key: Key) -> Self {
        let mut words = picks(key.algorithm, &key.members);
        let picks = words.len() as u32;
        words.push(key.members.len() as u32);
        words.extend(key.members.iter().map(|member| member.id));
        words.extend(key.members.iter().map(|member| u32::from(member.weight.get())));
        Self { key, picks, words }
    }

    fn ids(&self) -> &[u32] {
        let first = self.picks as usize + 1;
        self.words.get(first..first + self.key.members.len()).unwrap_or_default()
    }
}

/// Whose the slots are that flows pick from.
pub(crate) fn picks(algorithm: Algorithm, members: &[Member]) -> Vec<u32> {
    match algorithm {
        // The size is that of every node and every datapath: another one would send clients elsewhere.
        Algorithm::Maglev => {
            let table = maglev::Table::new(members.iter().map(|m| (m.address, m.weight)));
            let canonical = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
            let ids: HashMap<SocketAddr, u32> =
                members.iter().map(|m| (canonical(m.address), m.id)).collect();
            let by_index: Vec<u32> =
                table.backends().iter().map(|(at, _)| ids.get(at).copied().unwrap_or(0)).collect();
            table
                .slots()
                .iter()
                .map(|owner| by_index.get(usize::from(*owner)).copied().unwrap_or(0))
                .collect()
        }
        // At random; algorithms that this library does not know are refused before.
        _ => by_weight(members),
    }
}

/// A share of the slots for each, by weight: exactly where the weights together are no more than the slots that
/// a set may have, else as near as so many slots allow, and at least one. In the order of the ids.
fn by_weight(members: &[Member]) -> Vec<u32> {
    const MOST: u64 = 1024;
    const MOST_EACH: u64 = 16;
    let total: u64 = members.iter().map(|m| u64::from(m.weight.get())).sum();
    let size = total.min(MOST.max(MOST_EACH * members.len() as u64));
    let mut end = 0;
    let mut words = Vec::with_capacity(size as usize + members.len());
    for member in members {
        // Rounded at the ends of the shares, so that what is lost for one is the next one's.
        let begin = (2 * end * size + total) / (2 * total);
        end += u64::from(member.weight.get());
        let count = ((2 * end * size + total) / (2 * total)).saturating_sub(begin).max(1);
        words.extend((0..count).map(|_| member.id));
    }
    words
}

/// A set of backends and the range of slots that holds it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Set {
    pub(crate) range: Range,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    /// Each backend once, in order.
    Plain(Box<[u32]>),
    Listed(Arc<Listed>),
}

impl Default for Content {
    fn default() -> Self {
        Content::Plain(Box::default())
    }
}

impl Set {
    /// These backends, for which there is no room yet.
    pub(crate) fn of(mut ids: Vec<u32>) -> Self {
        ids.sort_unstable();
        Self { range: Range::default(), content: Content::Plain(ids.into()) }
    }

    /// How many slots flows pick from: the first ones of the range.
    pub(crate) fn picks(&self) -> u32 {
        match &self.content {
            Content::Plain(_) => self.range.count,
            Content::Listed(listed) => listed.picks,
        }
    }

    /// What the slots hold.
    pub(crate) fn words(&self) -> &[u32] {
        match &self.content {
            Content::Plain(ids) => ids,
            Content::Listed(listed) => &listed.words,
        }
    }

    /// Whether each backend has one slot.
    pub(crate) fn is_plain(&self) -> bool {
        self.listed().is_none()
    }

    /// The last ones become the first ones, of a set with one slot for each backend.
    pub(crate) fn rotate(&mut self, by: usize) {
        if let Content::Plain(ids) = &mut self.content {
            let by = by.min(ids.len());
            ids.rotate_right(by);
        }
    }

    /// Each backend once, in order; of one that was rotated, in an order that no affinity needs.
    pub(crate) fn ids(&self) -> &[u32] {
        match &self.content {
            Content::Plain(ids) => ids,
            Content::Listed(listed) => listed.ids(),
        }
    }

    fn listed(&self) -> Option<&Arc<Listed>> {
        match &self.content {
            Content::Plain(_) => None,
            Content::Listed(listed) => Some(listed),
        }
    }
}

/// The slots of all sets.
#[derive(Debug)]
pub(crate) struct Sets {
    slots: Slots,
    shared: HashMap<Key, Shared>,
}

#[derive(Debug)]
struct Shared {
    listed: Arc<Listed>,
    range: Range,
    references: u32,
}

impl Sets {
    /// In a map of this many slots.
    pub(crate) fn new(size: u32) -> Self {
        Self { slots: Slots::new(size), shared: HashMap::new() }
    }

    /// Room for the backends of the set, one slot each.
    pub(crate) fn take(&mut self, set: &mut Set, now: Now) -> Result<(), NoSlots> {
        set.range = self.slots.take(length(set.ids()), now)?;
        Ok(())
    }

    /// Room for a set with a list, shared with those that have the same.
    pub(crate) fn take_listed(
        &mut self,
        set: &mut Set,
        (family, algorithm, mut members): (IpFamily, Algorithm, Vec<Member>),
        now: Now,
    ) -> Result<(), NoSlots> {
        members.sort_unstable();
        if members.is_empty() {
            return Ok(());
        }
        let key = Key { family, algorithm, members };
        if let Some(shared) = self.shared.get_mut(&key) {
            shared.references += 1;
            *set = Set { range: shared.range, content: Content::Listed(Arc::clone(&shared.listed)) };
            return Ok(());
        }
        let listed = Arc::new(Listed::new(key.clone()));
        let range = self.slots.take(length(&listed.words), now)?;
        *set = Set { range, content: Content::Listed(Arc::clone(&listed)) };
        self.shared.insert(key, Shared { listed, range, references: 1 });
        Ok(())
    }

    /// The room that a set of another process has, or `None` where somebody has a part of it.
    pub(crate) fn adopt(
        &mut self,
        (family, algorithm, mut members): (IpFamily, Algorithm, Vec<Member>),
        range: Range,
        is_listed: bool,
    ) -> Option<Set> {
        members.sort_unstable();
        let plain = |range| {
            let ids = members.iter().map(|member| member.id);
            Set { range, content: Content::Plain(ids.collect()) }
        };
        if range.count == 0 {
            return Some(plain(range));
        }
        let plain = (!is_listed).then(|| plain(range));
        let key = Key { family, algorithm, members };
        if is_listed && let Some(shared) = self.shared.get_mut(&key) {
            return (shared.range == range).then(|| {
                shared.references += 1;
                Set { range, content: Content::Listed(Arc::clone(&shared.listed)) }
            });
        }
        let parts = self.slots.take_free_parts(range);
        if parts != [range] {
            parts.into_iter().for_each(|part| self.slots.untake(part));
            return None;
        }
        if plain.is_some() {
            return plain;
        }
        let listed = Arc::new(Listed::new(key.clone()));
        let set = Set { range, content: Content::Listed(Arc::clone(&listed)) };
        self.shared.insert(key, Shared { listed, range, references: 1 });
        Some(set)
    }

    /// Undoes [`Sets::adopt`].
    pub(crate) fn unadopt(&mut self, set: &Set) {
        if let Some(listed) = set.listed() {
            if let Some(shared) = self.shared.get_mut(&listed.key) {
                shared.references -= 1;
                if shared.references > 0 {
                    return;
                }
            }
            self.shared.remove(&listed.key);
        }
        self.slots.untake(set.range);
    }

    /// Takes those parts of a range that nobody has.
    pub(crate) fn reserve(&mut self, range: Range) -> Vec<Range> {
        self.slots.take_free_parts(range)
    }

    /// Gives back what was reserved.
    pub(crate) fn give_back_range(&mut self, range: Range, now: Now) {
        self.slots.give_back(range, now);
    }

    /// Gives the room of a set back.
    pub(crate) fn give_back(&mut self, set: &Set, now: Now) {
        if let Some(listed) = set.listed() {
            let Some(shared) = self.shared.get_mut(&listed.key) else {
                debug_assert!(false, "return of slots that nobody holds");
                return;
            };
            shared.references -= 1;
            if shared.references > 0 {
                return;
            }
            self.shared.remove(&listed.key);
        }
        self.slots.give_back(set.range, now);
    }

    /// Whether the set may stand elsewhere without a word to anybody else: nobody shares its slots.
    pub(crate) fn is_alone(&self, set: &Set) -> bool {
        set.listed().is_none_or(|l| self.shared.get(&l.key).is_some_and(|shared| shared.references == 1))
    }

    /// The set stands elsewhere from now on.
    pub(crate) fn stands_at(&mut self, set: &mut Set, base: u32) {
        set.range.base = base;
        if let Some(shared) = set.listed().and_then(|listed| self.shared.get_mut(&listed.key)) {
            shared.range.base = base;
        }
    }

    /// The slots themselves.
    pub(crate) fn slots(&mut self) -> &mut Slots {
        &mut self.slots
    }

    pub(crate) fn has_resting(&self) -> bool {
        self.slots.has_resting()
    }

    /// The caller waited for an RCU grace period.
    pub(crate) fn wake_all(&mut self) {
        self.slots.wake_all();
    }
}

/// More than any map holds where the number does not fit.
fn length(words: &[u32]) -> u32 {
    u32::try_from(words.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;
    use crate::rest::REST;

    fn members(weights: &[u16]) -> Vec<Member> {
        let member = |(id, weight): (u32, &u16)| Member {
            id,
            weight: (*weight).try_into().unwrap(),
            address: SocketAddr::new(std::net::Ipv4Addr::from(0x0a00_0000 + id).into(), 80),
        };
        (1..).zip(weights).map(member).collect()
    }

    fn shares(words: &[u32]) -> Vec<usize> {
        assert!(words.is_sorted());
        let mut shares = BTreeMap::<u32, usize>::new();
        words.iter().for_each(|id| *shares.entry(*id).or_default() += 1);
        shares.into_values().collect()
    }

    #[test]
    fn small_weights_are_exact() {
        assert_eq!(by_weight(&members(&[3, 1])), [1, 1, 1, 2]);
        assert_eq!(shares(&by_weight(&members(&[1000, 23, 1]))), [1000, 23, 1]);
    }

    #[test]
    fn large_weights_are_divided_and_nobody_is_left_out() {
        assert_eq!(shares(&by_weight(&members(&[40_000, 20_000, 4_000]))), [640, 320, 64]);
        assert_eq!(shares(&by_weight(&members(&[65_535, 1]))), [1024, 1]);
        for weights in [vec![65_535; 3], vec![1, 65_535, 7, 30_000], (1..=500).map(|i| i * 7).collect()] {
            let shares = shares(&by_weight(&members(&weights)));
            let size = 1024.max(16 * weights.len());
            assert!(shares.iter().sum::<usize>() <= size + weights.len());
            let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
            for (share, weight) in shares.iter().zip(&weights) {
                let ideal = f64::from(*weight) / total * size as f64;
                assert!((*share as f64 - ideal).abs() <= 1.0, "{share} of {size} for {weight}: {ideal}");
            }
        }
    }

    #[test]
    fn maglev_is_the_table_of_every_node() {
        let members = members(&[1, 2, 1, 5]);
        let words = picks(Algorithm::Maglev, &members);
        let table = maglev::Table::new(members.iter().rev().map(|m| (m.address, m.weight)));
        assert_eq!(words.len(), table.size().slots());
        for client in ["192.0.2.7", "10.244.1.2", "2001:db8::7", "::1"].map(|a| a.parse().unwrap()) {
            let id = words[table.size().slot(maglev::client_hash(client))];
            let picked = members.iter().find(|m| m.id == id).map(|m| m.address);
            assert_eq!(picked, table.get(client), "{client}");
        }
    }

    #[test]
    fn equal_sets_share_their_slots_until_the_last_one_goes() {
        let mut sets = Sets::new(20_000);
        let take = |sets: &mut Sets, weights: &[u16], now| {
            let members = members(weights);
            let mut set = Set::of(members.iter().map(|member| member.id).collect());
            let content = (IpFamily::V4, Algorithm::Maglev, members);
            sets.take_listed(&mut set, content, now).map(|()| set)
        };
        let one = take(&mut sets, &[1, 1], Duration::ZERO).unwrap();
        let two = take(&mut sets, &[1, 1], Duration::ZERO).unwrap();
        assert_eq!((one.range, one.picks()), (two.range, 16_384));
        assert_eq!(one.words().len(), one.range.count as usize);
        assert_eq!(one.words()[16_384..], [2, 1, 2, 1, 1]);
        assert_eq!(one.ids(), [1, 2]);
        sets.give_back(&one, Duration::ZERO);
        assert!(take(&mut sets, &[1, 2], REST).is_err(), "still in use");
        sets.give_back(&two, REST);
        assert!(take(&mut sets, &[1, 2], REST).is_err(), "rests");
        assert!(take(&mut sets, &[1, 2], 2 * REST).is_ok());
    }
}
