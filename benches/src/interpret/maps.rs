//! Copies of what maps hold.

use std::{collections::HashMap, fmt};

use super::{
    fault::Fault,
    trace::{LINE, Line, Part, Trace},
};
use crate::Failure;

/// How a map is organized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Values one after the other.
    Array,
    /// An array for each CPU.
    PerCpuArray,
    /// A hash table, be it one that forgets.
    Hash,
    /// A trie of prefixes.
    Trie,
    /// Another; nothing can be looked up in it.
    Other,
}

impl Kind {
    /// Whether keys are numbers, from 0 on. The kernel makes no call of a look-up then.
    pub fn is_array(self) -> bool {
        matches!(self, Kind::Array | Kind::PerCpuArray)
    }
}

/// The shape of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its name.
    pub name: String,
    /// How it is organized.
    pub kind: Kind,
    /// Bytes of a key.
    pub key: usize,
    /// Bytes of a value.
    pub value: usize,
    /// How many it has room for.
    pub entries: u32,
    /// Programs cannot write to it: it holds the constants of the loader.
    pub constants: bool,
}

/// What a map held before the first packet.
pub trait Source: fmt::Debug {
    /// The value of a key.
    ///
    /// # Errors
    /// It could not be read.
    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure>;

    /// Of a trie: the numbers of the prefixes that hold the key.
    ///
    /// # Errors
    /// They could not be read.
    fn prefixes(&self, _key: &[u8]) -> Result<Vec<u64>, Failure> {
        Ok(Vec::new())
    }
}

/// A source that has nothing: arrays are zero, and all else is empty.
#[derive(Clone, Copy, Debug)]
pub struct Nothing;

impl Source for Nothing {
    fn value(&self, _key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        Ok(None)
    }
}

/// Bytes before the key in an element of the kernel's hash tables (`struct htab_elem`).
const ELEMENT_HEADER: u64 = 48;

/// A map: what was looked up is copied, and only the copy is written to.
#[derive(Debug)]
pub struct Map {
    /// Its shape.
    pub shape: Shape,
    source: Box<dyn Source>,
    /// Of a hash table or trie: number of the element; `None`: there is none.
    numbers: HashMap<Vec<u8>, Option<u64>>,
    buckets: HashMap<Vec<u8>, u64>,
    values: HashMap<u64, Vec<u8>>,
    next: u64,
}

impl Map {
    /// A map, with what it holds.
    pub fn new(shape: Shape, source: impl Source + 'static) -> Self {
        Self {
            shape,
            source: Box::new(source),
            numbers: HashMap::new(),
            buckets: HashMap::new(),
            values: HashMap::new(),
            next: 0,
        }
    }

    /// Where the value begins in an element.
    fn value_at(&self) -> u64 {
        if self.shape.kind.is_array() {
            0
        } else {
            ELEMENT_HEADER + (self.shape.key as u64).next_multiple_of(8)
        }
    }

    /// Bytes from one element to the next: those of hash tables each begin a line.
    fn stride(&self) -> u64 {
        let value = (self.shape.value as u64).next_multiple_of(8);
        if self.shape.kind.is_array() {
            value.max(8)
        } else {
            (self.value_at() + value).next_multiple_of(LINE)
        }
    }

    fn failed(&self, error: Failure) -> Fault {
        Fault::Source(self.shape.name.clone(), error)
    }

    /// Looks a key up, as helpers do: where its value is, from the map's beginning.
    pub(super) fn look_up(&mut self, me: usize, key: &[u8], trace: &mut Trace) -> Result<Option<u64>, Fault> {
        let number = match self.shape.kind {
            Kind::Array | Kind::PerCpuArray => self.array_element(me, key, trace)?,
            Kind::Hash => {
                let number = self.element(key)?;
                trace.touch(self.bucket(me, key));
                if let Some(number) = number {
                    trace.access(me, number * self.stride(), self.value_at());
                }
                number
            }
            Kind::Trie => {
                for number in self.source.prefixes(key).map_err(|e| self.failed(e))? {
                    trace.touch(Line { map: me, part: Part::Node, number });
                }
                self.element(key)?
            }
            Kind::Other => return Err(self.failed("nothing can be looked up in it".into())),
        };
        Ok(number.map(|number| number * self.stride() + self.value_at()))
    }

    fn array_element(&mut self, me: usize, key: &[u8], trace: &mut Trace) -> Result<Option<u64>, Fault> {
        let Some(index) = key.first_chunk().map(|bytes| u32::from_le_bytes(*bytes)) else { return Ok(None) };
        if index >= self.shape.entries {
            return Ok(None);
        }
        let number = u64::from(index);
        if self.shape.kind == Kind::PerCpuArray {
            trace.touch(Line { map: me, part: Part::Pointers, number: number * 8 / LINE });
        }
        if !self.values.contains_key(&number) {
            let found = self.source.value(key).map_err(|e| self.failed(e))?;
            self.values.insert(number, found.unwrap_or_else(|| vec![0; self.shape.value]));
        }
        Ok(Some(number))
    }

    fn element(&mut self, key: &[u8]) -> Result<Option<u64>, Fault> {
        if let Some(number) = self.numbers.get(key) {
            return Ok(*number);
        }
        let found = self.source.value(key).map_err(|e| self.failed(e))?;
        let number = found.map(|value| self.add(value));
        self.numbers.insert(key.to_vec(), number);
        Ok(number)
    }

    fn add(&mut self, value: Vec<u8>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.values.insert(number, value);
        number
    }

    fn bucket(&mut self, me: usize, key: &[u8]) -> Line {
        let next = self.buckets.len() as u64;
        let number = *self.buckets.entry(key.to_vec()).or_insert(next);
        Line { map: me, part: Part::Bucket, number }
    }

    /// Writes a value, unless flags forbid it: 0, or the negative error.
    pub(super) fn update(
        &mut self,
        me: usize,
        key: &[u8],
        value: &[u8],
        flags: u64,
        trace: &mut Trace,
    ) -> Result<i64, Fault> {
        const NOEXIST: u64 = 1;
        const EXIST: u64 = 2;
        if self.shape.kind.is_array() {
            let Some(at) = self.look_up(me, key, trace)? else { return Ok(-7) };
            self.bytes(me, at, value.len(), trace)?.copy_from_slice(value);
            return Ok(if flags == NOEXIST { -17 } else { 0 });
        }
        let old = self.element(key)?;
        trace.touch(self.bucket(me, key));
        match (old, flags) {
            (Some(_), NOEXIST) => return Ok(-17),
            (None, EXIST) => return Ok(-2),
            _ => {}
        }
        let number = match old {
            Some(number) => {
                self.values.insert(number, value.to_vec());
                number
            }
            None => self.add(value.to_vec()),
        };
        self.numbers.insert(key.to_vec(), Some(number));
        trace.access(me, number * self.stride(), self.value_at() + value.len() as u64);
        Ok(0)
    }

    /// Removes a key: 0, or the negative error.
    pub(super) fn delete(&mut self, me: usize, key: &[u8], trace: &mut Trace) -> Result<i64, Fault> {
        if self.shape.kind.is_array() {
            return Ok(-22);
        }
        let old = self.element(key)?;
        trace.touch(self.bucket(me, key));
        let Some(number) = old else { return Ok(-2) };
        trace.access(me, number * self.stride(), self.value_at());
        self.numbers.insert(key.to_vec(), None);
        Ok(0)
    }

    /// Bytes of a value that was looked up before.
    pub(super) fn bytes(
        &mut self,
        me: usize,
        at: u64,
        len: usize,
        trace: &mut Trace,
    ) -> Result<&mut [u8], Fault> {
        let (number, within) = (at / self.stride(), at % self.stride());
        // A trie's value stands in a node, which was counted.
        if self.shape.kind != Kind::Trie {
            trace.access(me, at, len as u64);
        }
        let begin = within.checked_sub(self.value_at()).map(|begin| begin as usize);
        let value = self.values.get_mut(&number);
        let bytes = value.zip(begin).and_then(|(value, begin)| value.get_mut(begin..begin.checked_add(len)?));
        bytes.ok_or(Fault::Address { at, len })
    }

    /// Makes the bytes of an array with one value be there, which programs access without a look-up.
    pub(super) fn global(&mut self, me: usize) -> Result<(), Fault> {
        self.array_element(me, &[0; 4], &mut Trace::default()).map(drop)
    }
}
