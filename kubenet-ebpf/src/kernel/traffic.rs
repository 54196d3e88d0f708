//! What the programs count by service id and by backend id.
//!
//! An id's numbers belong to one hand-out of it. A flow knows which, and is counted nowhere once that is over:
//! so nobody is charged with what an earlier owner of the id still does.

use kubenet_core::datapath::Traffic;

use super::mmap::Mapped;
use crate::layout;

/// Words of `struct traffic`.
const GENERATION: usize = 0;
const BEGUN: usize = 1;
const NUMBERS: [usize; 5] = [2, 4, 6, 8, 10];

impl Mapped<layout::Traffic> {
    /// A service has this id, now or still. Where it is new, its numbers start at zero: no program has seen the
    /// id since it was retired, because it rested.
    pub(super) fn begin(&self, id: u32) {
        let generation = self.load_word(id, GENERATION).unwrap_or_default();
        if generation == 0 || self.load_word(id, BEGUN) != Some(generation) {
            self.begin_as(id, generation.max(1));
        }
    }

    /// A backend has this id, in this generation.
    pub(super) fn begin_as(&self, id: u32, generation: u32) {
        if self.load_word(id, BEGUN) == Some(generation) && self.load_word(id, GENERATION) == Some(generation)
        {
            return;
        }
        let traffic = layout::Traffic { generation, begun: generation, ..layout::Traffic::default() };
        let stored = self.store(id, &traffic, GENERATION);
        debug_assert!(stored, "id {id} is not an index of the map");
    }

    /// A service has the id no more: what its flows still do is nobody's.
    pub(super) fn retire(&self, id: u32) {
        let generation = self.load_word(id, GENERATION).unwrap_or_default();
        self.store_word(id, GENERATION, generation.checked_add(1).unwrap_or(1));
    }

    /// A backend has the id no more.
    pub(super) fn end(&self, id: u32) {
        self.store_word(id, GENERATION, 0);
    }

    /// The numbers of whoever has the id.
    pub(super) fn numbers(&self, id: u32) -> Traffic {
        let generation = self.load_word(id, GENERATION).unwrap_or_default();
        let mut traffic = Traffic::default();
        if generation == 0 || self.load_word(id, BEGUN) != Some(generation) {
            return traffic;
        }
        let [connections, packets, bytes, reply_packets, reply_bytes] =
            NUMBERS.map(|word| self.load_long(id, word).unwrap_or_default());
        traffic.connections = connections;
        (traffic.packets, traffic.bytes) = (packets, bytes);
        (traffic.reply_packets, traffic.reply_bytes) = (reply_packets, reply_bytes);
        traffic
    }
}
