//! Arrays that are mapped into this process: a write is a plain store.

use std::{
    io,
    marker::PhantomData,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    slice,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use aya::{Pod, maps::MapData};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// A map of kind `ARRAY` with `BPF_F_MMAPABLE` (kernel 5.5).
///
/// Values are stored word by word: a program that reads at the same time sees each word before or after.
pub(crate) struct Mapped<V> {
    memory: NonNull<u8>,
    length: NonZeroUsize,
    /// Distance of two values: the kernel rounds up to 8 bytes.
    stride: usize,
    count: u32,
    value: PhantomData<V>,
}

impl<V: Pod> Mapped<V> {
    const WORDS: usize = size_of::<V>() / 4;

    /// Maps a map whose values are `V`.
    pub(crate) fn new(map: &MapData) -> io::Result<Self> {
        const { assert!(size_of::<V>() > 0 && size_of::<V>().is_multiple_of(4)) };
        let info = map.info().map_err(io::Error::other)?;
        if info.value_size() as usize != size_of::<V>() {
            return Err(io::Error::other(format!(
                "the values have {} bytes instead of {}",
                info.value_size(),
                size_of::<V>()
            )));
        }
        let stride = size_of::<V>().next_multiple_of(8);
        let count = info.max_entries();
        let length = NonZeroUsize::new(stride * count as usize)
            .ok_or_else(|| io::Error::other("the map has no entries"))?;
        // SAFETY: a new mapping at an address that the kernel chooses takes nobody's memory.
        let memory = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map.fd().as_fd(),
                0,
            )
        }?;
        Ok(Self { memory: memory.cast(), length, stride, count, value: PhantomData })
    }

    /// Number of values.
    pub(crate) fn len(&self) -> u32 {
        self.count
    }

    fn words(&self, index: u32) -> Option<&[AtomicU32]> {
        if index >= self.count {
            return None;
        }
        // SAFETY: the index is below the number of values, each `stride` bytes long, so that the words lie
        // inside the mapping, which lives as long as self; they are aligned to 8 bytes and only accessed
        // as atomics here.
        Some(unsafe {
            let first = self.memory.as_ptr().add(index as usize * self.stride).cast::<AtomicU32>();
            slice::from_raw_parts(first, Self::WORDS)
        })
    }

    /// Stores a value, one word of it last. Out of range, it does nothing and returns false.
    pub(crate) fn store(&self, index: u32, value: &V, last: usize) -> bool {
        let Some(words) = self.words(index) else { return false };
        // SAFETY: `V` is plain old data without padding, so that its bytes may be read.
        let bytes = unsafe { slice::from_raw_parts((&raw const *value).cast::<u8>(), size_of::<V>()) };
        let store = |i: usize, order: Ordering| {
            if let (Some(word), Some(&[a, b, c, d])) = (words.get(i), bytes.as_chunks::<4>().0.get(i)) {
                word.store(u32::from_ne_bytes([a, b, c, d]), order);
            }
        };
        for i in (0..Self::WORDS).filter(|i| *i != last) {
            store(i, Ordering::Relaxed);
        }
        store(last, Ordering::Release);
        true
    }

    /// Stores one word of a value. Out of range, it does nothing.
    pub(crate) fn store_word(&self, index: u32, word: usize, value: u32) {
        if let Some(place) = self.words(index).and_then(|words| words.get(word)) {
            place.store(value, Ordering::Release);
        }
    }

    /// Reads one word of a value, or `None` out of range.
    pub(crate) fn load_word(&self, index: u32, word: usize) -> Option<u32> {
        Some(self.words(index)?.get(word)?.load(Ordering::Acquire))
    }

    /// Reads two words of a value as one number, or `None` out of range: never a half of it.
    pub(crate) fn load_long(&self, index: u32, word: usize) -> Option<u64> {
        let words = self.words(index)?.get(word..word + 2)?;
        let place = words.as_ptr().cast::<AtomicU64>();
        // Values are aligned to 8 bytes.
        place.is_aligned().then(|| {
            // SAFETY: both words lie in the mapping, the place is aligned, and it is only accessed as atomics.
            unsafe { &*place }.load(Ordering::Acquire)
        })
    }

    /// Reads a value, or `None` out of range.
    pub(crate) fn load(&self, index: u32) -> Option<V> {
        let words: Vec<u32> = self.words(index)?.iter().map(|w| w.load(Ordering::Acquire)).collect();
        // SAFETY: the words have the size of `V`, of which every bit pattern is a value.
        Some(unsafe { words.as_ptr().cast::<V>().read_unaligned() })
    }
}

// SAFETY: the mapping belongs to no thread, and whatever is in it is accessed as atomics.
unsafe impl<V: Pod> Send for Mapped<V> {}
// SAFETY: the same.
unsafe impl<V: Pod> Sync for Mapped<V> {}

impl<V> Drop for Mapped<V> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it outlives self.
        if let Err(error) = unsafe { munmap(self.memory.cast(), self.length.get()) } {
            tracing::warn!(%error, "cannot unmap a BPF map");
        }
    }
}
