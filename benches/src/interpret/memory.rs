//! What programs can access: the packet, its context, stacks, and values of maps, each at addresses of its own.

use super::{fault::Fault, maps::Map, trace::Trace};

/// Below 2^32, as contexts have 32 bits for it.
const PACKET: u64 = 0x1000_0000;
const CONTEXT: u64 = 0x3_0000_0000;
const STACKS: u64 = 0x4_0000_0000;
const STACK: usize = 512;
/// Functions that call each other, each with a stack.
pub(super) const FRAMES: usize = 8;
/// Stacks have room between them, so that who leaves one is noticed.
const STACK_STRIDE: u64 = 0x1000;
const HANDLES: u64 = 0x5_0000_0000;
const HANDLE_STRIDE: u64 = 0x100;
/// Values of each map begin so many bytes behind those of the one before.
const VALUES_SHIFT: u32 = 40;

/// All memory of a run.
#[derive(Debug)]
pub(super) struct Memory<'a> {
    pub(super) packet: Vec<u8>,
    pub(super) context: Vec<u8>,
    stacks: Vec<[u8; STACK]>,
    pub(super) maps: &'a mut [Map],
    pub(super) trace: Trace,
}

impl<'a> Memory<'a> {
    pub(super) fn new(packet: Vec<u8>, context: Vec<u8>, maps: &'a mut [Map], trace: Trace) -> Self {
        Self { packet, context, stacks: vec![[0; STACK]; FRAMES], maps, trace }
    }

    /// Where the packet is, for contexts.
    pub(super) fn packet_range(len: usize) -> [u32; 2] {
        [PACKET as u32, PACKET as u32 + len as u32]
    }

    pub(super) fn context_address() -> u64 {
        CONTEXT
    }

    /// Behind the last byte of a function's stack.
    pub(super) fn frame_pointer(depth: usize) -> u64 {
        STACKS + depth as u64 * STACK_STRIDE + STACK as u64
    }

    /// What a program hands to helpers for a map.
    pub(super) fn handle(map: usize) -> u64 {
        HANDLES + map as u64 * HANDLE_STRIDE
    }

    pub(super) fn map_of(&self, handle: u64) -> Result<usize, Fault> {
        let map = handle.checked_sub(HANDLES).filter(|over| over % HANDLE_STRIDE == 0);
        let map = map.map(|over| (over / HANDLE_STRIDE) as usize).filter(|map| *map < self.maps.len());
        map.ok_or(Fault::NotAMap(handle))
    }

    /// Of a value, by where it is in its map.
    pub(super) fn value_address(map: usize, at: u64) -> u64 {
        ((map as u64 + 1) << VALUES_SHIFT) + at
    }

    /// Which map's value an address is of.
    pub(super) fn value_map(&self, address: u64) -> Option<usize> {
        let map = (address >> VALUES_SHIFT).checked_sub(1)? as usize;
        (map < self.maps.len()).then_some(map)
    }

    /// Bytes that the program may read and write.
    pub(super) fn bytes(&mut self, at: u64, len: usize) -> Result<&mut [u8], Fault> {
        let missing = Fault::Address { at, len };
        if let Some(map) = self.value_map(at) {
            let within = at & ((1 << VALUES_SHIFT) - 1);
            return self.maps.get_mut(map).ok_or(missing)?.bytes(map, within, len, &mut self.trace);
        }
        let (all, begin) = if at >= HANDLES {
            return Err(missing);
        } else if let Some(over) = at.checked_sub(STACKS) {
            let stack = self.stacks.get_mut((over / STACK_STRIDE) as usize);
            (stack.map(|stack| &mut stack[..]), over % STACK_STRIDE)
        } else if let Some(over) = at.checked_sub(CONTEXT) {
            (Some(&mut self.context[..]), over)
        } else {
            (Some(&mut self.packet[..]), at.checked_sub(PACKET).ok_or(Fault::Address { at, len })?)
        };
        let begin = begin as usize;
        all.and_then(|all| all.get_mut(begin..begin.checked_add(len)?)).ok_or(missing)
    }

    pub(super) fn load(&mut self, at: u64, len: usize) -> Result<u64, Fault> {
        let mut word = [0; 8];
        word[..len].copy_from_slice(self.bytes(at, len)?);
        Ok(u64::from_le_bytes(word))
    }

    pub(super) fn store(&mut self, at: u64, len: usize, value: u64) -> Result<(), Fault> {
        let word = value.to_le_bytes();
        self.bytes(at, len)?.copy_from_slice(&word[..len]);
        Ok(())
    }
}
