//! Calls of `bpf(2)` for which aya has nothing.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use aya::Pod;
use nix::{errno::Errno, libc};

const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_DETACH: libc::c_long = 34;

/// What these commands take, as `union bpf_attr` has it.
///
/// # Safety
/// The layout is that of the command that it is used for, without padding.
unsafe trait Attributes {}

/// Calls `bpf(2)`. Returns what it returns.
///
/// # Safety
/// Pointers in `attributes` are to buffers as large as the command assumes.
unsafe fn bpf<A: Attributes>(command: libc::c_long, attributes: &mut A) -> Result<libc::c_long, Errno> {
    // SAFETY: the attributes have the command's layout, and the caller vouches for pointers in them.
    Errno::result(unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<A>()) })
}

/// `struct { … } link_create`, up to the end of what TCX takes.
#[repr(C)]
#[derive(Default)]
struct LinkCreateAttr {
    program: u32,
    /// Index of an interface, or file descriptor of a cgroup.
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    expected_revision: u64,
}

/// `struct { … } link_detach`.
#[repr(C)]
struct LinkDetachAttr {
    link: u32,
}

/// `struct { … } info`.
#[repr(C)]
struct InfoAttr {
    object: u32,
    length: u32,
    info: u64,
}

/// The beginning of `struct bpf_link_info`.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    /// Of a cgroup its number; of an interface its index and the direction, each in a half.
    target: [u32; 2],
}

/// `struct { … } query`. The kernel writes to its last field, whatever size it is told.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    pad: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

// SAFETY: the fields of the anonymous structs of these commands, in order; what the kernel's have beyond it
// takes as 0.
unsafe impl Attributes for LinkCreateAttr {}
unsafe impl Attributes for LinkDetachAttr {}
unsafe impl Attributes for InfoAttr {}
unsafe impl Attributes for QueryAttr {}

/// A direction at an interface, where programs hang by TCX (kernel 6.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tcx {
    Ingress = 46,
    Egress = 47,
}

/// Whether the kernel has TCX: a question about the loopback interface, which every namespace has.
pub(crate) fn has_tcx() -> bool {
    let mut attr = QueryAttr { target: 1, attach_type: Tcx::Ingress as u32, ..QueryAttr::default() };
    // SAFETY: no pointers: there is room for no ids.
    matches!(unsafe { bpf(BPF_PROG_QUERY, &mut attr) }, Ok(_) | Err(Errno::ENOSPC))
}

/// A program that hangs somewhere, until this is dropped.
///
/// All that is done with it goes by its file descriptor: `CAP_SYS_ADMIN` is not needed, as it is for ids.
#[derive(Debug)]
pub(crate) struct BpfLink {
    fd: OwnedFd,
    program: u32,
}

impl BpfLink {
    /// Hangs a program at an interface, behind all that hang there.
    pub(crate) fn tcx(program: BorrowedFd<'_>, index: u32, direction: Tcx) -> io::Result<Self> {
        const BPF_F_AFTER: u32 = 1 << 4;
        Self::create(program, index, direction as u32, BPF_F_AFTER)
    }

    /// Hangs a program in a cgroup, beside others.
    pub(crate) fn cgroup(
        program: BorrowedFd<'_>,
        cgroup: BorrowedFd<'_>,
        attach_type: u32,
    ) -> io::Result<Self> {
        Self::create(program, cgroup.as_raw_fd() as u32, attach_type, 0)
    }

    fn create(program: BorrowedFd<'_>, target: u32, attach_type: u32, flags: u32) -> io::Result<Self> {
        let mut attr = LinkCreateAttr {
            program: program.as_raw_fd() as u32,
            target,
            attach_type,
            flags,
            ..LinkCreateAttr::default()
        };
        // SAFETY: no pointers; on success the kernel hands us a file descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(bpf(BPF_LINK_CREATE, &mut attr)? as i32) };
        let mut link = Self { fd, program: 0 };
        link.program = link.info()?.program;
        Ok(link)
    }

    fn info(&self) -> io::Result<LinkInfo> {
        let mut info = LinkInfo::default();
        let mut attr = InfoAttr {
            object: self.fd.as_raw_fd() as u32,
            length: size_of::<LinkInfo>() as u32,
            info: &raw mut info as u64,
        };
        // SAFETY: the pointer is to `length` bytes, of which every pattern is a value, and outlives the call.
        unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
        Ok(info)
    }

    /// Whether our program still hangs at the interface of this index.
    pub(crate) fn hangs_at_interface(&self, index: u32) -> bool {
        self.info().is_ok_and(|info| info.program == self.program && info.target[0] == index)
    }

    /// Whether our program still hangs in the cgroup of this number.
    pub(crate) fn hangs_in_cgroup(&self, number: u64) -> bool {
        self.info().is_ok_and(|info| info.program == self.program && info.target == halves(number))
    }

    /// Detaches the program (kernel 5.9). Dropping the link is not enough at once: a process that this one is
    /// just starting holds a copy of the file descriptor until it has begun.
    pub(crate) fn detach(self) -> io::Result<()> {
        let mut attr = LinkDetachAttr { link: self.fd.as_raw_fd() as u32 };
        // SAFETY: no pointers.
        match unsafe { bpf(BPF_LINK_DETACH, &mut attr) } {
            // What it hung on is gone; or an older kernel, where closing it is all that can be done.
            Ok(_) | Err(Errno::ENOLINK | Errno::EOPNOTSUPP | Errno::EINVAL) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// A word of 8 bytes as it lies in memory.
fn halves(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
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
