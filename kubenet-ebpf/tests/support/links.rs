//! The BPF links of the machine, as an administrator sees them.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use nix::libc;

const GET_INFO_BY_FD: libc::c_long = 15;
const LINK_GET_FD_BY_ID: libc::c_long = 30;
const LINK_GET_NEXT_ID: libc::c_long = 31;
const LINK_DETACH: libc::c_long = 34;

/// What a link leads to.
#[derive(Debug)]
pub struct Link {
    pub program: u32,
    /// Index, if it is one at an interface.
    pub interface: u32,
    /// Number, if it is one in a cgroup.
    pub cgroup: u64,
}

fn bpf(command: libc::c_long, attributes: &mut [u32]) -> io::Result<i32> {
    let size = size_of_val(attributes);
    // SAFETY: the attributes are as long as is said, and pointers in them are to live buffers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn visit(mut visit: impl FnMut(&OwnedFd, Link)) {
    const CGROUP: u32 = 3;
    const TCX: u32 = 11;
    let mut id = 0;
    loop {
        let mut attributes = [id, 0, 0];
        if bpf(LINK_GET_NEXT_ID, &mut attributes).is_err() {
            return;
        }
        id = attributes[1];
        // Those of other tests come and go.
        let Ok(fd) = bpf(LINK_GET_FD_BY_ID, &mut [id, 0, 0]) else { continue };
        // SAFETY: the kernel made it for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut info = [0u32; 16];
        let at = info.as_mut_ptr() as u64;
        let mut attributes = [fd.as_raw_fd() as u32, size_of_val(&info) as u32, at as u32, (at >> 32) as u32];
        if bpf(GET_INFO_BY_FD, &mut attributes).is_err() {
            continue;
        }
        let [kind, _, program, _, low, high, ..] = info;
        let link = Link {
            program,
            interface: if kind == TCX { low } else { 0 },
            cgroup: if kind == CGROUP { u64::from(low) | u64::from(high) << 32 } else { 0 },
        };
        visit(&fd, link);
    }
}

/// Counts the links that are so.
pub fn count(is: impl Fn(&Link) -> bool) -> usize {
    let mut count = 0;
    visit(|_, link| count += usize::from(is(&link)));
    count
}

/// Detaches the links that are so, and counts them.
pub fn detach(is: impl Fn(&Link) -> bool) -> usize {
    let mut count = 0;
    visit(|fd, link| {
        if is(&link) {
            bpf(LINK_DETACH, &mut [fd.as_raw_fd() as u32]).unwrap();
            count += 1;
        }
    });
    count
}

/// The privileges that are needed, by the kernel's numbers.
pub const NEEDED: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];

/// Takes all other privileges from this thread.
pub fn keep_only(capabilities: impl IntoIterator<Item = u32>) {
    const VERSION_3: u32 = 0x2008_0522;
    let bits = capabilities.into_iter().fold(0u64, |bits, capability| bits | 1 << capability);
    let (low, high) = (bits as u32, (bits >> 32) as u32);
    let header = [VERSION_3, 0];
    let data = [low, low, 0, high, high, 0];
    // SAFETY: the buffers have the layouts of `struct __user_cap_header_struct` and, twice, of
    // `struct __user_cap_data_struct`.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}
