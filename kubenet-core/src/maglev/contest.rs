use std::{net::SocketAddr, num::NonZeroU16, sync::OnceLock};

use super::{TableSize, preference::Preference};

/// What decides who owns a slot: the lowest score, then the lowest tie, then the lowest index.
#[derive(Debug)]
pub(super) struct Contest {
    waits: &'static [u32],
    contenders: Vec<Contender>,
    total_weight: u64,
}

#[derive(Debug)]
struct Contender {
    preference: Preference,
    /// 2^32 / weight: what one unit of waiting costs.
    pace: u64,
}

impl Contest {
    pub(super) fn new(size: TableSize, backends: &[(SocketAddr, NonZeroU16)]) -> Self {
        let contender = |&(backend, weight): &(SocketAddr, NonZeroU16)| Contender {
            preference: Preference::new(backend, size),
            pace: (1 << 32) / u64::from(weight.get()),
        };
        Self {
            waits: waits(size),
            contenders: backends.iter().map(contender).collect(),
            total_weight: backends.iter().map(|(_, weight)| u64::from(weight.get())).sum(),
        }
    }

    /// The owners of all slots; nothing if there are no contenders.
    ///
    /// Each contender claims the slots that it prefers, down to a score that leaves few slots unclaimed. All
    /// contenders are asked about those. This is much less work than to ask all about each slot.
    pub(super) fn settle(&self) -> Vec<u16> {
        if self.contenders.is_empty() {
            return Vec::new();
        }
        let bound = self.bound();
        let mut lowest = vec![u64::MAX; self.waits.len()];
        let mut owners = vec![0; self.waits.len()];
        for (index, contender) in self.contenders.iter().enumerate() {
            for (rank, &wait) in (0..).zip(self.waits) {
                let score = u64::from(wait) * contender.pace;
                if score > bound {
                    break;
                }
                let slot = contender.preference.slot(rank);
                let (lowest, owner) = (&mut lowest[slot as usize], &mut owners[slot as usize]);
                if score < *lowest
                    || score == *lowest && self.better(slot, usize::from(*owner), index) == index
                {
                    *lowest = score;
                    *owner = index as u16;
                }
            }
        }
        for ((slot, owner), lowest) in (0..).zip(&mut owners).zip(&lowest) {
            if *lowest == u64::MAX {
                *owner = self.best(slot) as u16;
            }
        }
        owners
    }

    /// The owner of a slot; 0 if there are no contenders.
    pub(super) fn best(&self, slot: u32) -> usize {
        let mut best = (u64::MAX, 0);
        for (index, contender) in self.contenders.iter().enumerate() {
            let score = self.score(contender, slot);
            if score < best.0 || score == best.0 && self.better(slot, best.1, index) == index {
                best = (score, index);
            }
        }
        best.1
    }

    /// Which of two contenders has the better claim to a slot.
    pub(super) fn better(&self, slot: u32, one: usize, other: usize) -> usize {
        let [a, b] = [&self.contenders[one], &self.contenders[other]];
        let order = self
            .score(a, slot)
            .cmp(&self.score(b, slot))
            .then_with(|| a.preference.tie(slot).cmp(&b.preference.tie(slot)))
            .then(one.cmp(&other));
        if order.is_gt() { other } else { one }
    }

    /// A score below which about one slot in `contenders` is not claimed.
    ///
    /// Scores are those of exponential waiting times: the share of slots without a claim below `bound` is
    /// exp(-bound * total weight / 2^60). A contender of mean weight has at least one claim, so that many
    /// contenders are not all asked about every slot.
    fn bound(&self) -> u64 {
        let contenders = self.contenders.len() as u64;
        let times_16 = 11 * u64::from(contenders.ilog2()) + 16;
        let claimed = times_16.saturating_mul((1 << 56) / self.total_weight);
        let first = u64::from(self.waits[0]) * ((contenders << 32) / self.total_weight);
        claimed.max(first)
    }

    fn score(&self, contender: &Contender, slot: u32) -> u64 {
        u64::from(self.waits[contender.preference.rank(slot) as usize]) * contender.pace
    }
}

/// The waiting time until each rank, in units of 2^-28: the mean order statistics of as many exponential waiting
/// times as there are slots. The last one is below 13 units.
fn waits(size: TableSize) -> &'static [u32] {
    const SIZES: usize = (TableSize::MAX.bits() - TableSize::MIN.bits() + 1) as usize;
    static WAITS: [OnceLock<Vec<u32>>; SIZES] = [const { OnceLock::new() }; SIZES];
    WAITS[(size.bits() - TableSize::MIN.bits()) as usize].get_or_init(|| {
        let waits = (1..=size.slots() as u32).rev().scan(0, |wait, slots_left| {
            *wait += (1 << 28) / slots_left;
            Some(*wait)
        });
        waits.collect()
    })
}
