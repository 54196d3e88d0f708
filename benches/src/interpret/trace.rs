use std::collections::BTreeMap;

/// What of a map a line holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Elements: values, and of hash tables keys before them.
    Elements,
    /// The head of a hash table's bucket, by key.
    Bucket,
    /// A node of a trie.
    Node,
    /// Pointers to the values of each CPU.
    Pointers,
}

/// A line of a CPU's cache, in the memory of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// The map, by its place in the program's list.
    pub map: usize,
    /// What of it.
    pub part: Part,
    /// Which of those.
    pub number: u64,
}

/// Bytes of a line.
pub(super) const LINE: u64 = 64;

/// What a program did with one packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// How often each instruction ran. Branches that the verifier removes count in `removed` instead.
    pub ran: Vec<u64>,
    /// Branches on constants of the loader.
    pub removed: u64,
    /// Atomic operations, for which other CPUs wait. They are among the instructions.
    pub atomics: u64,
    /// Calls of helpers, by their numbers.
    pub calls: BTreeMap<i32, u64>,
    /// Look-ups by map, by its place in the program's list.
    pub lookups: BTreeMap<usize, u64>,
    /// The lines that were touched, and by which instruction first.
    pub lines: BTreeMap<Line, usize>,
    pub(super) at: usize,
}

impl Trace {
    pub(super) fn new(instructions: usize) -> Self {
        Self { ran: vec![0; instructions], ..Self::default() }
    }

    /// Instructions that ran.
    pub fn instructions(&self) -> u64 {
        self.ran.iter().sum()
    }

    /// Bytes of elements were accessed.
    pub(super) fn access(&mut self, map: usize, off: u64, len: u64) {
        for number in off / LINE..=(off + len.max(1) - 1) / LINE {
            self.touch(Line { map, part: Part::Elements, number });
        }
    }

    pub(super) fn touch(&mut self, line: Line) {
        self.lines.entry(line).or_insert(self.at);
    }
}
