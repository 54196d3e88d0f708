use std::{path::PathBuf, time::Duration};

use kubenet_core::{
    datapath::{DatapathError, ErrorKind},
    model::IpFamily,
    route::RouteTable,
};

use crate::{
    config::{Config, LONGEST_PREFIX, Settings, Variant},
    datapath::IptablesDatapath,
    preview::Preview,
    start,
};

/// Configures an [`IptablesDatapath`]. Everything has a default.
#[derive(Clone, Debug)]
pub struct IptablesBuilder(Config);

/// What [`IptablesBuilder::probe`] found on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Probe {
    /// Name of the datapath that [`IptablesBuilder::build`] would make: `iptables-nft` or `iptables-legacy`.
    pub datapath: &'static str,
    /// The address families that can be served.
    pub families: Vec<IpFamily>,
    /// Whether source ports of masqueraded flows are chosen fully at random.
    pub random_fully: bool,
    /// Whether clients can stay with their backends: session affinity.
    pub affinity: bool,
    /// Whether stale UDP flows can be cut.
    pub conntrack: bool,
}

impl Default for IptablesBuilder {
    fn default() -> Self {
        let programs = Settings {
            directory: None,
            lock_wait: Duration::from_secs(5),
            lock_file: None,
            time_limit: Duration::from_secs(300),
        };
        Self(Config {
            variant: Variant::Auto,
            prefix: "KUBE".to_owned(),
            network_namespace: None,
            programs,
            families: None,
            accept_invalid: false,
        })
    }
}

impl IptablesBuilder {
    /// Which variant of iptables to use; the one that this machine uses when not set.
    #[must_use]
    pub fn variant(mut self, variant: Variant) -> Self {
        self.0.variant = variant;
        self
    }

    /// First part of the names of all chains; `KUBE`, as kube-proxy has it, when not set. Another one lives
    /// beside a running kube-proxy. At most 7 capital letters and digits.
    #[must_use]
    pub fn chain_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.0.prefix = prefix.into();
        self
    }

    /// The network namespace to program, such as `/run/netns/node-a` or `/proc/1/ns/net`; the caller's when
    /// not set.
    #[must_use]
    pub fn network_namespace(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.network_namespace = Some(path.into());
        self
    }

    /// How long to wait for the lock that the legacy programs share, in whole seconds; 5 when not set.
    #[must_use]
    pub fn lock_wait(mut self, lock_wait: Duration) -> Self {
        self.0.programs.lock_wait = lock_wait;
        self
    }

    /// The file of that lock; `/run/xtables.lock` when not set. All programs that change rules in the same
    /// network namespace must use the same.
    #[must_use]
    pub fn lock_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.programs.lock_file = Some(path.into());
        self
    }

    /// How long a program may take, beside its wait for the lock, before it is killed and the update fails; 5
    /// minutes when not set.
    #[must_use]
    pub fn time_limit(mut self, time_limit: Duration) -> Self {
        self.0.programs.time_limit = time_limit;
        self
    }

    /// The directory of the iptables programs; those of `PATH` and the usual `sbin`s when not set.
    #[must_use]
    pub fn program_directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.programs.directory = Some(path.into());
        self
    }

    /// The address families to serve. When not set: those that this machine has.
    #[must_use]
    pub fn families(mut self, families: impl IntoIterator<Item = IpFamily>) -> Self {
        let mut families: Vec<_> = families.into_iter().collect();
        families.sort_unstable();
        families.dedup();
        self.0.families = Some(families);
        self
    }

    /// Whether packets are forwarded that the kernel's connection tracking can make no sense of: state INVALID.
    /// When not set, they are dropped, because nobody translates them back, and whoever gets one so resets its
    /// connection. For networks where packets of one connection take different ways. kube-proxy's
    /// `conntrack.tcpBeLiberal` sets the kernel's `nf_conntrack_tcp_be_liberal`, too: that is left to the caller.
    #[must_use]
    pub fn accept_invalid(mut self, accept: bool) -> Self {
        self.0.accept_invalid = accept;
        self
    }

    fn check(&self) -> Result<(), DatapathError> {
        let bad =
            |message: String| Err(DatapathError::new("iptables", "build", ErrorKind::InvalidInput, message));
        let prefix = &self.0.prefix;
        let valid = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit();
        if prefix.is_empty() || prefix.len() > LONGEST_PREFIX || !prefix.chars().all(valid) {
            return bad(format!(
                "chain_prefix {prefix:?}: must be 1 to {LONGEST_PREFIX} capital letters and digits, so that names \
                 of chains fit into 28 characters"
            ));
        }
        if self.0.families.as_ref().is_some_and(Vec::is_empty) {
            return bad("families: must hold at least one".into());
        }
        if self.0.programs.lock_wait > Duration::from_secs(3600) {
            return bad("lock_wait: must be at most an hour".into());
        }
        if self.0.programs.time_limit.is_zero() {
            return bad("time_limit: must be above zero".into());
        }
        Ok(())
    }

    /// Finds out what this machine offers. Nothing is changed: where rules are tried, it is in a network
    /// namespace made for the purpose.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] without the iptables programs or the kernel's modules,
    /// [`ErrorKind::Permission`] without `CAP_NET_ADMIN`, [`ErrorKind::InvalidInput`] for a bad setting.
    pub fn probe(&self) -> Result<Probe, DatapathError> {
        self.check()?;
        start::probe(&self.0)
    }

    /// What the datapath would be told to apply for a table, from nothing, or, where `before` is given, to get from
    /// that table to this one. Needs no privileges and asks the machine nothing: both families are planned unless
    /// [`families`](Self::families) says otherwise, for an iptables of today.
    ///
    /// ```
    /// use kubenet_core::{model::*, resolve::resolve};
    /// use kubenet_iptables::IptablesDatapath;
    /// # if cfg!(target_os = "linux") {
    /// let node = NodeInfo::builder("node-a").address("10.0.0.1".parse()?).build()?;
    /// let web = Service::builder("demo", "web")
    ///     .cluster_ip("10.96.0.10".parse()?)
    ///     .port(ServicePort::new("http", Protocol::Tcp, 80.try_into()?))
    ///     .build()?;
    /// let preview = IptablesDatapath::builder().preview(&resolve(&node, [&web], []), None)?;
    /// assert!(preview.texts[&IpFamily::V4].contains("-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp"));
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a bad setting, [`ErrorKind::Unsupported`] where the node asks for what
    /// rules cannot do.
    pub fn preview(&self, table: &RouteTable, before: Option<&RouteTable>) -> Result<Preview, DatapathError> {
        self.check()?;
        start::preview(&self.0, table, before)
    }

    /// Probes, and starts the datapath's thread. No rule is written before the first
    /// [`replace`](kubenet_core::datapath::Datapath::replace).
    ///
    /// # Errors
    /// Those of [`IptablesBuilder::probe`].
    pub fn build(self) -> Result<IptablesDatapath, DatapathError> {
        self.check()?;
        start::build(self.0)
    }
}
