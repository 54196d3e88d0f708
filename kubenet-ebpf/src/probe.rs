use std::collections::BTreeMap;

use kubenet_core::datapath::DatapathError;

/// A kind of place in the kernel where programs hang.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Hook {
    /// At sockets of a cgroup: this node's own processes.
    Sockets,
    /// Traffic control, at interfaces of pods and at external ones.
    Tc,
    /// In drivers of external interfaces.
    Xdp,
}

/// What the kernel and this process's privileges allow.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Probe {
    /// Release of the kernel, such as `6.12.8`.
    pub kernel: String,
    /// Whether the kernel has its own type information, so that `bpftool` shows our maps with names.
    pub btf: bool,
    /// Whether programs attach to interfaces by TCX links (kernel 6.6). Otherwise by a `clsact` queueing
    /// discipline.
    pub tcx: bool,
    /// Hooks that cannot be used, and why. Whether a device can have the XDP program, only its driver says.
    pub missing: BTreeMap<Hook, String>,
    /// Whether a socket of this node that dials a Service without backends gets `ECONNREFUSED` (kernel 5.18).
    /// Otherwise it gets `EPERM`.
    pub connect_refused: bool,
    /// Whether connected UDP sockets of this node's processes are cut when their backend goes, so that they connect
    /// again (`CONFIG_INET_DIAG_DESTROY`). Otherwise they stay with it.
    pub cuts_udp_sockets: bool,
}

impl Probe {
    /// Whether a hook can be used.
    pub fn has(&self, hook: Hook) -> bool {
        !self.missing.contains_key(&hook)
    }
}

/// Finds out whether [`EbpfDatapath`](crate::EbpfDatapath) can run here. Changes nothing.
///
/// ```no_run
/// match kubenet_ebpf::probe() {
///     Ok(found) => println!("{found:?}"),
///     Err(error) => println!("cannot run here: {error}"),
/// }
/// ```
///
/// # Errors
/// [`ErrorKind::Unsupported`](kubenet_core::datapath::ErrorKind) when the kernel lacks something,
/// [`ErrorKind::Permission`](kubenet_core::datapath::ErrorKind) when a privilege is missing. The message names
/// it.
pub fn probe() -> Result<Probe, DatapathError> {
    crate::engine::probe()
}
