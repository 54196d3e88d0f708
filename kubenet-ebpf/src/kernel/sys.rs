//! Calls of `bpf(2)` for which aya has nothing.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use aya::Pod;
use nix::{errno::Errno, libc};

const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;

/// What these commands take, as `union bpf_attr` has it.
///
/// # Safety
/// The layout is that of the command that it is used for, without padding.
pub(super) unsafe trait Attributes {}

/// Calls `bpf(2)`. Returns what it returns.
///
/// # Safety
/// Pointers in `attributes` are to buffers as large as the command assumes.
pub(super) unsafe fn bpf<A: Attributes>(
    command: libc::c_long,
    attributes: &mut A,
) -> Result<libc::c_long, Errno> {
    // SAFETY: the attributes have the command's layout, and the caller vouches for pointers in them.
    Errno::result(unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<A>()) })
}

/// `struct { … } batch`.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

// SAFETY: the fields of the anonymous struct for batches, in order.
unsafe impl Attributes for BatchAttr {}

/// Random words, which nobody can know.
pub(super) fn random<const N: usize>() -> io::Result<[u64; N]> {
    let mut words = [0u64; N];
    let length = size_of_val(&words);
    // SAFETY: the buffer has this length, and any bytes are words. Up to 256 of them come at once or not at all.
    let got = Errno::result(unsafe { libc::getrandom(words.as_mut_ptr().cast(), length, 0) })?;
    if usize::try_from(got) != Ok(length) {
        return Err(Errno::EIO.into());
    }
    Ok(words)
}

/// The anonymous struct for single entries.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    unused: u32,
    key: u64,
    value: u64,
    flags: u64,
}

// SAFETY: the fields of the anonymous struct for single entries, in order.
unsafe impl Attributes for ElementAttr {}

/// Writes an entry, from any thread.
pub(crate) fn update<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let (key, value) = (&raw const *key as u64, &raw const *value as u64);
    let mut attr = ElementAttr { map_fd: map.as_raw_fd() as u32, unused: 0, key, value, flags: 0 };
    // SAFETY: key and value have the map's sizes (aya checked them when the typed map was made), outlive the call and
    // are only read.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop).map_err(Into::into)
}

/// Deletes an entry, from any thread. One that is not there is no error.
pub(crate) fn delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let key = &raw const *key as u64;
    let mut attr = ElementAttr { map_fd: map.as_raw_fd() as u32, unused: 0, key, value: 0, flags: 0 };
    // SAFETY: as for `update`; deletions have no value.
    match unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut attr) } {
        Ok(_) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Hands every entry of a hash table to `visit`, read in batches (kernel 5.6): four times as fast as one by
/// one. Entries that come or go meanwhile may be missed.
pub(crate) fn for_each<K: Pod + Default, V: Pod + Default>(
    map: BorrowedFd<'_>,
    mut visit: impl FnMut(K, V),
) -> io::Result<()> {
    let mut room = 4096;
    let (mut keys, mut values) = (vec![K::default(); room], vec![V::default(); room]);
    // The kernel's cursor: the number of a bucket.
    let (mut cursor, mut next) = (0u32, 0u32);
    let mut first = true;
    loop {
        let mut attr = BatchAttr {
            in_batch: if first { 0 } else { &raw const cursor as u64 },
            out_batch: &raw mut next as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: room as u32,
            map_fd: map.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the pointers are to buffers with room for `count` keys and values of the map's sizes (aya
        // checked them when the typed map was made), which outlive the call.
        let error = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) }.err();
        match error {
            None | Some(Errno::ENOENT) => {
                let count = (attr.count as usize).min(room);
                for (key, value) in keys[..count].iter().zip(&values[..count]) {
                    visit(*key, *value);
                }
                if error.is_some() {
                    return Ok(());
                }
                cursor = next;
                first = false;
            }
            // A bucket that holds more than there is room for.
            Some(Errno::ENOSPC) if room < 1 << 24 => {
                room *= 2;
                keys.resize(room, K::default());
                values.resize(room, V::default());
            }
            Some(Errno::EINTR) => {}
            Some(error) => return Err(error.into()),
        }
    }
}

/// Writes entries, of each its key and its value, with one call (kernel 5.6). Returns how many of them the kernel
/// took, from the first on. Where it is not all, it refused the next one, or has no batches for such a map.
pub(crate) fn update_batch<K: Pod, V: Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> usize {
    let count = keys.len().min(values.len());
    // SAFETY: there are `count` keys and values of the map's sizes (aya checked them when the typed map was made),
    // which outlive the call and are only read.
    unsafe { write_batch(BPF_MAP_UPDATE_BATCH, map, keys.as_ptr() as u64, values.as_ptr() as u64, count) }
}

/// Deletes entries, as [`update_batch`] writes them.
pub(crate) fn delete_batch<K: Pod>(map: BorrowedFd<'_>, keys: &[K]) -> usize {
    // SAFETY: as for `update_batch`; deletions have no values.
    unsafe { write_batch(BPF_MAP_DELETE_BATCH, map, keys.as_ptr() as u64, 0, keys.len()) }
}

/// # Safety
/// `keys`, and `values` where it is not 0, are addresses of `count` of the map's.
unsafe fn write_batch(
    command: libc::c_long,
    map: BorrowedFd<'_>,
    keys: u64,
    values: u64,
    count: usize,
) -> usize {
    let Ok(all) = u32::try_from(count) else { return 0 };
    if all == 0 {
        return 0;
    }
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys,
        values,
        count: all,
        map_fd: map.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the caller vouches for the pointers.
    match unsafe { bpf(command, &mut attr) } {
        Ok(_) => count,
        // A kernel that gives up before the first entry leaves the number as it was.
        Err(_) if attr.count >= all => 0,
        Err(_) => attr.count as usize,
    }
}
