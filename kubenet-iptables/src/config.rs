//! What a datapath is made of, as its builder was told.

use std::{path::PathBuf, time::Duration};

use kubenet_core::model::IpFamily;

/// The longest name that iptables takes is 28 characters; the longest of ours without its prefix has 21
/// (`-SVC-` and a hash).
pub(crate) const LONGEST_PREFIX: usize = 7;

/// Which kernel interface the iptables programs use. Rules of one are invisible to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Variant {
    /// The one that this machine uses: where the kubelet left its hint, else the default of its
    /// `iptables-restore`.
    #[default]
    Auto,
    /// The interface of old, `ip_tables`.
    Legacy,
    /// nf_tables.
    Nft,
}

/// A checked configuration.
#[derive(Clone, Debug)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "read where there is iptables"))]
pub(crate) struct Config {
    pub(crate) variant: Variant,
    pub(crate) prefix: String,
    pub(crate) network_namespace: Option<PathBuf>,
    pub(crate) programs: Settings,
    pub(crate) families: Option<Vec<IpFamily>>,
    pub(crate) accept_invalid: bool,
}

/// How to run the programs.
#[derive(Clone, Debug)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "read where there is iptables"))]
pub(crate) struct Settings {
    /// Where to look for them instead of `PATH`.
    pub(crate) directory: Option<PathBuf>,
    /// How long they may wait for the lock of the legacy variant.
    pub(crate) lock_wait: Duration,
    /// The lock's file where it is not the usual one.
    pub(crate) lock_file: Option<PathBuf>,
    /// How long they may take, not counting the wait for the lock.
    pub(crate) time_limit: Duration,
}
