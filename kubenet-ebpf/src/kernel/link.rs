//! Programs that hang somewhere by a BPF link.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{errno::Errno, libc};

use super::sys::{Attributes, bpf};

const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// `enum bpf_link_type`.
const BPF_LINK_TYPE_CGROUP: u32 = 3;
const BPF_LINK_TYPE_XDP: u32 = 6;
const BPF_LINK_TYPE_TCX: u32 = 11;

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

/// `struct { … } link_update`.
#[repr(C)]
struct LinkUpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// `struct { … } link_detach`.
#[repr(C)]
struct LinkDetachAttr {
    link: u32,
}

/// The anonymous struct for `BPF_OBJ_*`.
#[repr(C)]
struct ObjectAttr {
    path: u64,
    object: u32,
    flags: u32,
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
unsafe impl Attributes for LinkUpdateAttr {}
unsafe impl Attributes for LinkDetachAttr {}
unsafe impl Attributes for ObjectAttr {}
unsafe impl Attributes for InfoAttr {}
unsafe impl Attributes for QueryAttr {}

/// A direction at an interface, where programs hang by TCX (kernel 6.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// Pins a program or a link.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjectAttr { path: name.as_ptr() as u64, object: object.as_raw_fd() as u32, flags: 0 };
    // SAFETY: the path ends with a zero byte and outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr) }?;
    Ok(())
}

/// A program that hangs somewhere: until this is dropped, or until it is detached where the link is pinned.
///
/// All that is done with it goes by its file descriptor: `CAP_SYS_ADMIN` is not needed, as it is for ids.
#[derive(Debug)]
pub(crate) struct BpfLink {
    fd: OwnedFd,
    program: u32,
    pin: Option<PathBuf>,
}

/// What a program hangs at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The index of an interface.
    Interface(u32),
    /// The number of a cgroup.
    Cgroup(u64),
}

impl BpfLink {
    /// Hangs a program at an interface, behind all that hang there.
    pub(crate) fn tcx(program: BorrowedFd<'_>, index: u32, direction: Tcx) -> io::Result<Self> {
        const BPF_F_AFTER: u32 = 1 << 4;
        Self::create(program, index, direction as u32, BPF_F_AFTER)
    }

    /// Hangs a program at an interface's driver (kernel 5.9), where there is place for one: never in the place of
    /// somebody else's.
    pub(crate) fn xdp(program: BorrowedFd<'_>, index: u32) -> io::Result<Self> {
        const BPF_XDP: u32 = 37;
        const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
        Self::create(program, index, BPF_XDP, XDP_FLAGS_DRV_MODE)
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
        Self { fd, program: 0, pin: None }.informed()
    }

    /// The link that is pinned there.
    pub(crate) fn pinned(path: &Path) -> io::Result<Self> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        let mut attr = ObjectAttr { path: name.as_ptr() as u64, object: 0, flags: 0 };
        // SAFETY: the path ends with a zero byte and outlives the call; the file descriptor is nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(bpf(BPF_OBJ_GET, &mut attr)? as i32) };
        Self { fd, program: 0, pin: Some(path.to_owned()) }.informed()
    }

    fn informed(mut self) -> io::Result<Self> {
        self.program = self.info()?.program;
        Ok(self)
    }

    /// Pins the link: it outlives this process.
    pub(crate) fn pin(&self, path: &Path) -> io::Result<()> {
        pin(self.fd.as_fd(), path)
    }

    /// Where it is pinned, to be removed when it is detached.
    pub(crate) fn set_pin(&mut self, path: PathBuf) {
        self.pin = Some(path);
    }

    pub(crate) fn pin_path(&self) -> Option<&Path> {
        self.pin.as_deref()
    }

    /// The id of its program.
    pub(crate) fn program(&self) -> u32 {
        self.program
    }

    /// Puts another program in the place of its program: each packet meets one or the other (kernel 5.7).
    pub(crate) fn update(&mut self, program: BorrowedFd<'_>) -> io::Result<()> {
        let mut attr = LinkUpdateAttr {
            link: self.fd.as_raw_fd() as u32,
            program: program.as_raw_fd() as u32,
            flags: 0,
            old_program: 0,
        };
        // SAFETY: no pointers.
        unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }?;
        self.program = self.info()?.program;
        Ok(())
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

    /// Where it hangs, if it does.
    pub(crate) fn place(&self) -> Option<Place> {
        let info = self.info().ok()?;
        let [low, high] = info.target;
        match info.kind {
            BPF_LINK_TYPE_TCX | BPF_LINK_TYPE_XDP if low != 0 => Some(Place::Interface(low)),
            BPF_LINK_TYPE_CGROUP if info.target != [0, 0] => Some(Place::Cgroup(whole(low, high))),
            _ => None,
        }
    }

    /// Whether our program still hangs there.
    pub(crate) fn hangs_at(&self, place: Place) -> bool {
        self.info().is_ok_and(|info| info.program == self.program) && self.place() == Some(place)
    }

    /// Detaches the program (kernel 5.9). Dropping the link is not enough at once: a process that this one is
    /// just starting holds a copy of the file descriptor until it has begun.
    pub(crate) fn detach(self) -> io::Result<()> {
        let mut attr = LinkDetachAttr { link: self.fd.as_raw_fd() as u32 };
        // SAFETY: no pointers.
        let detached = match unsafe { bpf(BPF_LINK_DETACH, &mut attr) } {
            // What it hung on is gone; or an older kernel, where closing it is all that can be done.
            Ok(_) | Err(Errno::ENOLINK | Errno::EOPNOTSUPP | Errno::EINVAL) => Ok(()),
            Err(e) => Err(e.into()),
        };
        let unpinned = self.pin.as_deref().map_or(Ok(()), crate::pin::remove);
        detached.and(unpinned)
    }
}

/// A word of 8 bytes from its halves as they lie in memory.
fn whole(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}
