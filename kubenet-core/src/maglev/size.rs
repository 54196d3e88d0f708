use std::fmt;

/// How many slots a [`Table`](super::Table) has: a power of two.
///
/// Slots are two bytes each in a table. A datapath may need more for them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableSize {
    bits: u8,
}

impl TableSize {
    /// 256 slots.
    pub const MIN: Self = Self { bits: 8 };
    /// 16,384 slots: the shares of 10 backends have a standard deviation of 1.7%, those of 100 of 5.5%.
    pub const DEFAULT: Self = Self { bits: 14 };
    /// 131,072 slots.
    pub const MAX: Self = Self { bits: 17 };

    /// The smallest size with this many slots, or [`MAX`](Self::MAX) when there is none.
    pub const fn at_least(slots: usize) -> Self {
        let mut size = Self::MIN;
        while size.slots() < slots && size.bits < Self::MAX.bits {
            size.bits += 1;
        }
        size
    }

    /// The smallest size with 100 slots for each of `most` backends, as the Maglev paper advises.
    ///
    /// Give it the most backends that are ever expected, not the present number: each size has a table of its
    /// own.
    pub const fn for_backends(most: usize) -> Self {
        Self::at_least(most.saturating_mul(100))
    }

    /// The number of slots.
    pub const fn slots(self) -> usize {
        1 << self.bits
    }

    /// The slot of a [`client_hash`](super::client_hash).
    pub const fn slot(self, client_hash: u32) -> usize {
        (client_hash >> (u32::BITS - self.bits())) as usize
    }

    /// The binary logarithm of the number of slots.
    pub(super) const fn bits(self) -> u32 {
        self.bits as u32
    }
}

impl Default for TableSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Debug for TableSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} slots", self.slots())
    }
}
