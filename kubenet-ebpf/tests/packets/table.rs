//! The table of flows, as the programs leave it.

use std::net::SocketAddr;

use aya::maps::{Array, Map, MapData, PerCpuArray, PerCpuValues};

use crate::{bench::Bench, bench::octets, frame::Proto};

/// Slots of a bucket; its state stands behind them.
pub const SLOTS: usize = 15;
const PLACE: u32 = 0xff_ffff;

/// Bytes of a pair.
const PAIR4: usize = 128;
const PAIR6: usize = 256;

pub type Bucket = [u32; SLOTS + 1];

/// Pairs of buckets whose slots are counted side by side.
pub const COUNTS: usize = 8;

fn array<const V: usize>(map: &mut Map) -> Array<&mut MapData, [u8; V]> {
    Array::try_from(map).expect("an array")
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("a word"))
}

impl Bench {
    pub fn pair(&mut self, v4: bool, number: u32) -> Vec<u8> {
        if v4 {
            array::<PAIR4>(self.map_mut("flows4")).get(&number, 0).expect("a pair").to_vec()
        } else {
            array::<PAIR6>(self.map_mut("flows6")).get(&number, 0).expect("a pair").to_vec()
        }
    }

    pub fn set_pair(&mut self, v4: bool, number: u32, bytes: &[u8]) {
        if v4 {
            let bytes: [u8; PAIR4] = bytes.try_into().expect("a pair");
            array::<PAIR4>(self.map_mut("flows4")).set(number, bytes, 0).expect("set");
        } else {
            let bytes: [u8; PAIR6] = bytes.try_into().expect("a pair");
            array::<PAIR6>(self.map_mut("flows6")).set(number, bytes, 0).expect("set");
        }
    }

    pub fn bucket(&mut self, v4: bool, number: u32) -> Bucket {
        let map = self.map_mut(if v4 { "flow_index4" } else { "flow_index6" });
        Array::<_, Bucket>::try_from(map).expect("an array").get(&number, 0).expect("a bucket")
    }

    pub fn set_bucket(&mut self, v4: bool, number: u32, bucket: Bucket) {
        let map = self.map_mut(if v4 { "flow_index4" } else { "flow_index6" });
        Array::<_, Bucket>::try_from(map).expect("an array").set(number, bucket, 0).expect("set");
    }

    fn counts(&mut self, v4: bool) -> Array<&mut MapData, [u8; COUNTS]> {
        array::<COUNTS>(self.map_mut(if v4 { "flow_counts4" } else { "flow_counts6" }))
    }

    /// How many slots of the bucket and its neighbour are filled, as the programs say.
    pub fn filled(&mut self, v4: bool, bucket: u32) -> u8 {
        let (entry, at) = (bucket / 2 / COUNTS as u32, bucket as usize / 2 % COUNTS);
        self.counts(v4).get(&entry, 0).expect("counts")[at]
    }

    fn set_filled(&mut self, v4: bool, bucket: u32, filled: u8) {
        let (entry, at) = (bucket / 2 / COUNTS as u32, bucket as usize / 2 % COUNTS);
        let mut counts = self.counts(v4).get(&entry, 0).expect("counts");
        counts[at] = filled;
        self.counts(v4).set(entry, counts, 0).expect("set");
    }

    /// How many pairs the hand has given out.
    pub fn given(&mut self, v4: bool) -> u64 {
        let map = self.map_mut(if v4 { "flow_hand4" } else { "flow_hand6" });
        let [_, given] = Array::<_, [u64; 2]>::try_from(map).expect("an array").get(&0, 0).expect("the hand");
        given
    }

    /// The pairs that may be in use.
    fn numbers(&mut self, v4: bool) -> std::ops::Range<u32> {
        0..u32::try_from(self.given(v4)).map_or(self.setup.pairs, |given| given.min(self.setup.pairs))
    }

    /// The half of a pair for packets from one address to another: the place, and what is there.
    fn find(&mut self, from: SocketAddr, to: SocketAddr, proto: Proto) -> Option<(u32, Vec<u8>)> {
        let v4 = from.is_ipv4();
        let mut key = [octets(from.ip()), octets(to.ip())].concat();
        key.extend([from.port().to_be_bytes(), to.port().to_be_bytes()].concat());
        for number in self.numbers(v4) {
            let pair = self.pair(v4, number);
            for (half, reply) in pair.chunks(pair.len() / 2).zip(0..) {
                let flags = word(half, Word::Flags.at(v4).start);
                if half.starts_with(&key) && (flags >> 8) as u8 == proto.number() {
                    return Some((number << 1 | reply, half.to_vec()));
                }
            }
        }
        None
    }

    /// Where an index has a place: the bucket, and the slot in it.
    fn slot_of(&mut self, v4: bool, place: u32) -> Option<(u32, usize)> {
        (0..self.setup.buckets).find_map(|number| {
            let bucket = self.bucket(v4, number);
            Some((number, bucket[..SLOTS].iter().position(|slot| slot & PLACE == place)?))
        })
    }

    /// What is known of packets from one address to another.
    pub fn entry(&mut self, from: SocketAddr, to: SocketAddr, proto: Proto) -> Option<Entry> {
        let (place, bytes) = self.find(from, to, proto)?;
        Some(Entry { v4: from.is_ipv4(), place, bytes })
    }

    pub fn has(&mut self, from: SocketAddr, to: SocketAddr, proto: Proto) -> bool {
        self.entry(from, to, proto).is_some()
    }

    /// Writes an entry back, where it was.
    pub fn set_entry(&mut self, entry: &Entry) {
        let mut pair = self.pair(entry.v4, entry.place >> 1);
        let half = pair.len() / 2;
        let at = half * (entry.place & 1) as usize;
        pair[at..at + half].copy_from_slice(&entry.bytes);
        self.set_pair(entry.v4, entry.place >> 1, &pair);
    }

    /// Takes the flow of packets from one address to another out of the table.
    pub fn evict(&mut self, from: SocketAddr, to: SocketAddr, proto: Proto) {
        let v4 = from.is_ipv4();
        let (place, _) = self.find(from, to, proto).expect("the flow was there");
        for place in [place, place ^ 1] {
            let (number, slot) = self.slot_of(v4, place).expect("a slot");
            let mut bucket = self.bucket(v4, number);
            bucket[slot] = 0;
            self.set_bucket(v4, number, bucket);
            let filled = self.filled(v4, number);
            self.set_filled(v4, number, filled - 1);
        }
        self.set_pair(v4, place >> 1, &vec![0; if v4 { PAIR4 } else { PAIR6 }]);
    }

    /// Number of entries of both families: a flow has two.
    pub fn entries(&mut self) -> usize {
        let mut entries = 0;
        for v4 in [true, false] {
            for number in self.numbers(v4) {
                let pair = self.pair(v4, number);
                let halves = pair.chunks(pair.len() / 2);
                entries += halves.filter(|half| word(half, Word::Flags.at(v4).start) & 0xff00 != 0).count();
            }
        }
        entries
    }

    /// Forgets every flow, and what the programs hold ready for the next one.
    pub fn empty_table(&mut self) {
        for v4 in [true, false] {
            let free = vec![0; if v4 { PAIR4 } else { PAIR6 }];
            for number in self.numbers(v4) {
                self.set_pair(v4, number, &free);
            }
            for number in 0..self.setup.buckets {
                if self.bucket(v4, number) != Bucket::default() {
                    self.set_bucket(v4, number, Bucket::default());
                }
                if self.filled(v4, number) != 0 {
                    self.set_filled(v4, number, 0);
                }
            }
        }
        fn unclaim<const V: usize>(map: &mut Map) {
            let mut map = PerCpuArray::<_, [u8; V]>::try_from(map).expect("a map per CPU");
            let cpus = map.get(&0, 0).expect("entries").len();
            // The pair, and what the CPU was given to look through.
            let entries = PerCpuValues::try_from(vec![[0; V]; cpus]).expect("one for each CPU");
            map.set(0, entries, 0).expect("set");
        }
        unclaim::<96>(self.map_mut("new_entry4"));
        unclaim::<168>(self.map_mut("new_entry6"));
    }

    /// Has the hand be this much further than a CPU last knew.
    pub fn push_hand(&mut self, v4: bool, pairs: u64) {
        let given = self.given(v4) + pairs;
        let map = self.map_mut(if v4 { "flow_hand4" } else { "flow_hand6" });
        Array::<_, [u64; 2]>::try_from(map).expect("an array").set(0, [0, given], 0).expect("set");
    }

    /// Makes every flow look as if it was last heard this many ticks ago.
    pub fn age_flows(&mut self, ticks: u32) {
        for v4 in [true, false] {
            for number in self.numbers(v4) {
                let mut pair = self.pair(v4, number);
                let half = pair.len() / 2;
                for at in [0, half] {
                    let seen = Word::LastSeen.at(v4).start + at;
                    let before = word(&pair, seen);
                    pair[seen..seen + 4].copy_from_slice(&before.wrapping_sub(ticks).to_ne_bytes());
                }
                self.set_pair(v4, number, &pair);
            }
        }
    }
}

/// What is known of a flow in one direction: `struct conntrack4` or `struct conntrack6`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    v4: bool,
    /// Twice the number of its pair, and 1 for the backend's direction.
    pub place: u32,
    bytes: Vec<u8>,
}

/// One of its words.
#[derive(Clone, Copy, Debug)]
pub enum Word {
    LastSeen,
    Flags,
    Device,
    /// In IPv4 it shares its word with what is left of a MAC address.
    Mtu,
    Bytes,
}

impl Word {
    pub fn at(self, is_v4: bool) -> std::ops::Range<usize> {
        let (v4, v6) = match self {
            Word::LastSeen => (36, 84),
            Word::Flags => (40, 88),
            Word::Device => (44, 92),
            Word::Mtu if is_v4 => return 54..56,
            Word::Mtu => (0, 112),
            Word::Bytes => (60, 120),
        };
        let at = if is_v4 { v4 } else { v6 };
        at..at + 4
    }
}

impl Word {
    /// What a half of a pair has there.
    pub fn of(self, half: &[u8], v4: bool) -> u32 {
        word(half, self.at(v4).start)
    }
}

impl Entry {
    pub fn get(&self, word: Word) -> u32 {
        match self.bytes[word.at(self.v4)] {
            [a, b] => u16::from_ne_bytes([a, b]).into(),
            [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]),
            _ => unreachable!("a word"),
        }
    }

    /// The same with another word.
    pub fn with(&self, word: Word, value: u32) -> Self {
        let (mut entry, at) = (self.clone(), word.at(self.v4));
        match at.len() {
            2 => entry.bytes[at].copy_from_slice(&(value as u16).to_ne_bytes()),
            _ => entry.bytes[at].copy_from_slice(&value.to_ne_bytes()),
        }
        entry
    }
}
