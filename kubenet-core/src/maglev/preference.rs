use std::net::SocketAddr;

use super::{TableSize, hash};

/// The order in which a backend prefers the slots: a permutation that depends on the backend and the size alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Preference {
    id: u64,
    mask: u32,
    half: u32,
    offset: u32,
    multipliers: [u32; 3],
    inverses: [u32; 3],
}

impl Preference {
    pub(super) fn new(backend: SocketAddr, size: TableSize) -> Self {
        let id = hash::backend_id(backend);
        let [first, second] = [hash::draw(id, 1), hash::draw(id, 2)];
        let multipliers = [first >> 32, second, second >> 32].map(|draw| draw as u32 | 1);
        Self {
            id,
            mask: u32::MAX >> (u32::BITS - size.bits()),
            half: size.bits().div_ceil(2),
            offset: first as u32,
            multipliers,
            inverses: multipliers.map(inverse),
        }
    }

    /// The place of a slot in this order, from 0.
    pub(super) fn rank(&self, slot: u32) -> u32 {
        let x = (slot ^ self.offset) & self.mask;
        self.multipliers.iter().fold(x, |x, &multiplier| {
            let x = x.wrapping_mul(multiplier) & self.mask;
            x ^ (x >> self.half)
        })
    }

    /// The slot at a place of this order: the inverse of [`rank`](Self::rank). A shift by half the bits or more
    /// undoes itself.
    pub(super) fn slot(&self, rank: u32) -> u32 {
        let x = self.inverses.iter().rev().fold(rank, |x, &inverse| {
            let x = x ^ (x >> self.half);
            x.wrapping_mul(inverse) & self.mask
        });
        (x ^ self.offset) & self.mask
    }

    /// Decides between backends with equal scores for a slot.
    pub(super) fn tie(&self, slot: u32) -> u64 {
        hash::draw(self.id, slot + 3)
    }
}

/// The inverse of an odd number modulo 2^32, by Newton's iteration: each step doubles the correct bits, from 3.
fn inverse(odd: u32) -> u32 {
    (0..4).fold(odd, |x, _| x.wrapping_mul(2u32.wrapping_sub(odd.wrapping_mul(x))))
}
