//! What the kernel can do. Loads trial programs of a few instructions at most, and nothing stays.

use std::{collections::BTreeMap, fs, io, path::Path, thread};

use aya::{
    programs::{ProgramError, ProgramType},
    sys::{BpfHelper, is_helper_supported, is_program_supported},
};
use kubenet_core::datapath::{DatapathError, ErrorKind};

use super::{connected, link, netns};
use crate::{
    Hook, Probe,
    error::{caused, error},
};

const OPERATION: &str = "probe";

/// Helpers without which nothing works, and where they came.
const HELPERS: [(BpfHelper, &str); 2] = [
    (BpfHelper::BPF_FUNC_fib_lookup, "bpf_fib_lookup (kernel 4.18)"),
    (BpfHelper::BPF_FUNC_redirect_neigh, "bpf_redirect_neigh (kernel 5.10)"),
];

pub(crate) fn probe() -> Result<Probe, DatapathError> {
    check_capabilities()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_err(|e| caused(OPERATION, ErrorKind::Unsupported, "cannot read /proc/sys/kernel/osrelease", e))?
        .trim()
        .to_owned();
    if !is_program_supported(ProgramType::SchedClassifier).map_err(refused)? {
        let message = format!("kernel {kernel} has no BPF programs for traffic control (CONFIG_NET_CLS_BPF)");
        return Err(error(OPERATION, ErrorKind::Unsupported, message));
    }
    for (helper, name) in HELPERS {
        if !is_helper_supported(ProgramType::SchedClassifier, helper).map_err(refused)? {
            let message = format!("kernel {kernel} has not the BPF function {name}");
            return Err(error(OPERATION, ErrorKind::Unsupported, message));
        }
    }
    let sockets = is_program_supported(ProgramType::CgroupSockAddr).map_err(refused)?;
    let set_retval = BpfHelper::BPF_FUNC_set_retval;
    let connect_refused =
        sockets && is_helper_supported(ProgramType::CgroupSockAddr, set_retval).map_err(refused)?;
    Ok(Probe {
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        tcx: link::has_tcx(),
        missing: missing(&kernel, sockets)?,
        connect_refused,
        cuts_udp_sockets: connected::can_destroy(),
        kernel,
    })
}

/// The hooks that can be done without.
fn missing(kernel: &str, sockets: bool) -> Result<BTreeMap<Hook, String>, DatapathError> {
    let mut missing = BTreeMap::new();
    if !sockets {
        let why = format!("kernel {kernel} has no BPF programs for socket addresses (CONFIG_CGROUP_BPF)");
        missing.insert(Hook::Sockets, why);
    } else if netns::cookie().is_err() {
        let why = format!(
            "kernel {kernel} cannot tell network namespaces apart (SO_NETNS_COOKIE came with 5.14): the sockets of \
             pods would be translated, too"
        );
        missing.insert(Hook::Sockets, why);
    }
    // The length of a frame in several buffers.
    let length = BpfHelper::BPF_FUNC_xdp_get_buff_len;
    if !is_program_supported(ProgramType::Xdp).map_err(refused)? {
        missing.insert(Hook::Xdp, format!("kernel {kernel} has no XDP"));
    } else if !is_helper_supported(ProgramType::Xdp, length).map_err(refused)? {
        let why = format!("kernel {kernel} has no XDP for frames in several buffers: it came with 5.18");
        missing.insert(Hook::Xdp, why);
    }
    Ok(missing)
}

/// Whether connected UDP sockets of a network namespace can be cut; of this thread's, where none is named.
pub(crate) fn cuts_udp_sockets(namespace: Option<&Path>) -> bool {
    let Some(path) = namespace else { return connected::can_destroy() };
    let inside = || netns::enter(path).is_ok() && connected::can_destroy();
    thread::scope(|scope| scope.spawn(inside).join()).unwrap_or(false)
}

/// Whether the programs have a clock that is cheap to read (kernel 5.11).
pub(crate) fn has_coarse_clock() -> bool {
    let helper = BpfHelper::BPF_FUNC_ktime_get_coarse_ns;
    is_helper_supported(ProgramType::SchedClassifier, helper).unwrap_or(false)
}

/// A trial program was refused, and not for what it asks for.
fn refused(e: ProgramError) -> DatapathError {
    let code = match &e {
        ProgramError::SyscallError(e) => e.io_error.raw_os_error(),
        _ => None,
    };
    match code.map(io::Error::from_raw_os_error).map(|e| e.kind()) {
        Some(io::ErrorKind::PermissionDenied) => {
            let message = "the system call bpf is not permitted here: run as root on the machine itself, or in \
                           a container with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN and a seccomp profile that \
                           allows bpf";
            caused(OPERATION, ErrorKind::Permission, message, e)
        }
        Some(io::ErrorKind::Unsupported) => {
            caused(OPERATION, ErrorKind::Unsupported, "this kernel has no system call bpf", e)
        }
        _ => caused(OPERATION, ErrorKind::Unsupported, "the kernel refuses a trial program", e),
    }
}

/// Says which privilege is missing before the kernel says only that one is.
fn check_capabilities() -> Result<(), DatapathError> {
    const CAP_NET_ADMIN: u64 = 1 << 12;
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    const CAP_PERFMON: u64 = 1 << 38;
    const CAP_BPF: u64 = 1 << 39;
    let status = fs::read_to_string("/proc/thread-self/status")
        .map_err(|e| caused(OPERATION, ErrorKind::Unsupported, "cannot read /proc/thread-self/status", e))?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|value| u64::from_str_radix(value.trim(), 16).ok())
        .unwrap_or(0);
    let has = |capability: u64| effective & capability != 0;
    let mut missing = Vec::new();
    if !has(CAP_BPF) && !has(CAP_SYS_ADMIN) {
        missing.push("CAP_BPF (CAP_SYS_ADMIN before kernel 5.8)");
    }
    // Without it, the verifier forbids what is usual with pointers to packets.
    if !has(CAP_PERFMON) && !has(CAP_SYS_ADMIN) {
        missing.push("CAP_PERFMON (CAP_SYS_ADMIN before kernel 5.8)");
    }
    if !has(CAP_NET_ADMIN) {
        missing.push("CAP_NET_ADMIN");
    }
    if missing.is_empty() {
        return Ok(());
    }
    let message = format!("this process lacks {}: run it as root or grant that", missing.join(" and "));
    Err(error(OPERATION, ErrorKind::Permission, message))
}
