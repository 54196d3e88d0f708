//! What this machine offers, found out without touching the network namespace that is to be programmed.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU16,
    path::Path,
    sync::Arc,
};

use ipnet::Ipv4Net;
use kubenet_core::{
    datapath::{DatapathError, ErrorKind},
    model::{Affinity, IpFamily, Protocol},
    route::{
        Backend as RouteBackend, Frontend, FrontendKind, Masquerade, NodeRouting, Revision, Route,
        RouteTable, ServicePortName, Target, WhenEmpty,
    },
};

use crate::{
    config::{Config, Variant},
    conntrack,
    exec::{Backend, ExecError, Tools},
    names::Names,
    netns,
    plan::{Context, Planner},
    restore::{self, JumpEdit},
    rule::Chains,
};

/// What was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) backend: Backend,
    pub(crate) tools: Vec<Tools>,
    /// The programs of the other variant, where they are.
    pub(crate) other: Vec<Tools>,
    pub(crate) random_fully: bool,
    /// Whether a rule can compare the addresses of a packet.
    pub(crate) hairpin: bool,
    /// Whether rules know SCTP.
    pub(crate) sctp: bool,
    /// Whether rules can remember clients, and how many for each backend where the kernel says so.
    pub(crate) recent: bool,
    pub(crate) recent_clients: Option<u32>,
    /// Whether stale flows can be cut.
    pub(crate) conntrack: bool,
}

impl Found {
    pub(crate) fn families(&self) -> Vec<IpFamily> {
        self.tools.iter().map(|tools| tools.family).collect()
    }
}

/// Enters the network namespace of the configuration with the calling thread and looks around.
pub(crate) fn examine(config: &Config) -> Result<Found, DatapathError> {
    let name = match config.variant {
        Variant::Legacy => Backend::Legacy.datapath_name(),
        Variant::Nft => Backend::Nft.datapath_name(),
        Variant::Auto => "iptables",
    };
    let error = |kind, message: String| DatapathError::new(name, "probe", kind, message);
    if let Some(path) = &config.network_namespace {
        enter(path).map_err(|(kind, message, source)| {
            DatapathError::with_source(name, "probe", kind, message, source)
        })?;
    }
    if !netns::may_administer() {
        let message = "CAP_NET_ADMIN is missing: run as root, or grant the capability to this process";
        return Err(error(ErrorKind::Permission, message.into()));
    }
    let backend = match config.variant {
        Variant::Legacy => Backend::Legacy,
        Variant::Nft => Backend::Nft,
        Variant::Auto => detect(config).ok_or_else(|| {
            let place = config.programs.place();
            error(ErrorKind::Unsupported, format!("no iptables-restore in {place}: install iptables"))
        })?,
    };
    let wanted = config.families.clone().unwrap_or_else(|| IpFamily::ALL.to_vec());
    let (mut tools, mut failures) = (Vec::new(), Vec::new());
    let (mut random_fully, mut hairpin, mut sctp, mut recent, mut tracking) = (true, true, true, true, true);
    for family in &wanted {
        match config.programs.tools(backend, *family).and_then(|tools| Ok((features(&tools)?, tools))) {
            Ok((features, found)) => {
                random_fully &= features.random_fully;
                hairpin &= features.hairpin;
                sctp &= features.sctp;
                recent &= features.recent;
                tracking &= features.conntrack;
                tools.push(found);
            }
            Err(failure) => failures.push((*family, failure)),
        }
    }
    // A family that the machine does not have is left out, unless it was asked for. One that may work later is
    // not given up silently.
    let needed = |kind| {
        config.families.is_some()
            || tools.is_empty()
            || matches!(kind, ErrorKind::Permission | ErrorKind::Unavailable)
    };
    for (family, failure) in failures {
        if needed(failure.kind) {
            return Err(error(failure.kind, format!("{family} is not available: {failure}")));
        }
        tracing::info!(%family, reason = %failure, "address family left out");
    }
    let other = wanted.iter().filter_map(|f| config.programs.tools(backend.other(), *f).ok()).collect();
    // The module is loaded by now, if it is one.
    let recent_clients = if recent { clients_per_list() } else { None };
    Ok(Found {
        backend,
        tools,
        other,
        random_fully,
        hairpin,
        sctp,
        recent,
        recent_clients,
        conntrack: tracking,
    })
}

/// How many addresses a list of the match `recent` holds. Only root may know.
fn clients_per_list() -> Option<u32> {
    fs::read_to_string("/sys/module/xt_recent/parameters/ip_list_tot").ok()?.trim().parse().ok()
}

fn enter(path: &Path) -> Result<(), (ErrorKind, String, io::Error)> {
    netns::enter(path).map_err(|source| {
        let (kind, hint) = match source.kind() {
            io::ErrorKind::NotFound => (ErrorKind::InvalidInput, "there is no such file"),
            io::ErrorKind::InvalidInput => (ErrorKind::InvalidInput, "it is no network namespace"),
            io::ErrorKind::PermissionDenied => (ErrorKind::Permission, "CAP_SYS_ADMIN is needed to enter it"),
            _ => (ErrorKind::Unavailable, "it could not be entered"),
        };
        (kind, format!("network namespace {}: {hint}", path.display()), source)
    })
}

/// The variant in use: the kubelet leaves a chain for this purpose; else what `iptables-restore` is.
fn detect(config: &Config) -> Option<Backend> {
    let has_hint = |backend: Backend| {
        IpFamily::ALL.into_iter().any(|family| {
            // Asking the legacy programs for a table makes the kernel create it: ask only where it exists.
            if backend == Backend::Legacy && !legacy_table_exists(family, "mangle") {
                return false;
            }
            let saved = config.programs.tools(backend, family).and_then(|tools| tools.save_table("mangle"));
            saved.is_ok_and(|text| {
                [":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY "].iter().any(|hint| text.contains(hint))
            })
        })
    };
    let both = [Backend::Nft, Backend::Legacy];
    both.into_iter()
        .find(|backend| has_hint(*backend))
        .or_else(|| config.programs.default_backend())
        .or_else(|| both.into_iter().find(|b| config.programs.tools(*b, IpFamily::V4).is_ok()))
}

/// Whether the calling thread's network namespace has a table of the legacy variant.
pub(crate) fn legacy_table_exists(family: IpFamily, table: &str) -> bool {
    let file = match family {
        IpFamily::V4 => "/proc/thread-self/net/ip_tables_names",
        IpFamily::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    fs::read_to_string(file).is_ok_and(|names| names.lines().any(|name| name == table))
}

struct Features {
    random_fully: bool,
    hairpin: bool,
    sctp: bool,
    recent: bool,
    conntrack: bool,
}

/// Programs routes of every kind in a network namespace of its own, which ends at once.
fn features(tools: &Tools) -> Result<Features, ExecError> {
    let tried = netns::in_a_new_one(|| {
        let mut tried = Err(ExecError::new(ErrorKind::Internal, "nothing was tried"));
        // With all that can be done without.
        for (random_fully, hairpin) in [(true, true), (true, false), (false, true), (false, false)] {
            let conntrack = || conntrack::translated_flows(tools.family).is_ok();
            let attempt =
                |sctp, recent| tools.restore(&everything(tools.family, random_fully, hairpin, sctp, recent));
            tried = attempt(false, false).map(|()| {
                let (sctp, recent) = match attempt(true, true) {
                    Ok(()) => (true, true),
                    Err(_) => (attempt(true, false).is_ok(), attempt(false, true).is_ok()),
                };
                Features { random_fully, hairpin, sctp, recent, conntrack: conntrack() }
            });
            let may_help = |e: &ExecError| !matches!(e.kind, ErrorKind::Permission | ErrorKind::Unavailable);
            if !tried.as_ref().is_err_and(may_help) {
                break;
            }
        }
        tried
    });
    match tried {
        Ok(result) => result,
        // Not allowed to make one (a container without CAP_SYS_ADMIN): the first transaction will tell.
        Err(_) => {
            let conntrack = conntrack::translated_flows(tools.family).is_ok();
            Ok(Features { random_fully: true, hairpin: false, sctp: false, recent: false, conntrack })
        }
    }
}

/// A transaction with every match and target that plans use.
fn everything(family: IpFamily, random_fully: bool, hairpin: bool, sctp: bool, recent: bool) -> String {
    let address = |n: u8| match family {
        IpFamily::V4 => IpAddr::from([192, 0, 2, n]),
        IpFamily::V6 => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(n)]),
    };
    let port = NonZeroU16::MIN;
    let mut node = NodeRouting::default();
    node.node_port_addresses.push(address(1));
    node.loopback_node_ports.push(Ipv4Net::new_assert(Ipv4Addr::LOCALHOST, 32));
    let backend = |n, local| RouteBackend::new(address(n), port, local);
    let mut routes = Vec::new();
    for protocol in Protocol::ALL.into_iter().filter(|protocol| sctp || *protocol != Protocol::Sctp) {
        for (n, backends) in
            [(2, vec![backend(4, true), backend(5, false), backend(6, false)]), (3, Vec::new())]
        {
            let name = ServicePortName {
                namespace: "kubenet".into(),
                service: format!("probe-{n}").into(),
                port: "".into(),
            };
            let target = Target { backends: backends.into(), when_empty: WhenEmpty::Reject };
            let some = Masquerade { pods: false, node: true, outside: false };
            let frontend = Frontend::ip(address(n), port, protocol);
            let kind = FrontendKind::ClusterIp;
            let mut inside = Route::new(frontend, kind, name.clone(), target.clone(), some);
            inside.affinity = recent.then(Affinity::default);
            routes.push(inside);
            let frontend = Frontend::node_port(family, port, protocol);
            let mut outside = Route::new(frontend, FrontendKind::NodePort, name, target, Masquerade::ALWAYS);
            outside.external = Target { backends: Arc::from([]), when_empty: WhenEmpty::Drop };
            routes.push(outside);
        }
    }
    let table = RouteTable::new(Revision(1), Arc::new(node), routes.into_iter().map(Arc::new));
    let families = vec![family];
    let context =
        Context { names: Names::new("KUBE"), random_fully, hairpin, sctp, accept_invalid: false, families };
    let jumps = context.jumps(table.node());
    let jumps = jumps.iter().filter(|jump| jump.is_for(family));
    let edits: Vec<_> = jumps.map(|jump| JumpEdit::insert(jump, family)).collect();
    let planner = Planner::new(Arc::new(context), table);
    let chains = planner.chains(family).map(|chains| crate::plan::changes(&Chains::new(), chains));
    restore::transaction(family, &Chains::new(), &chains.unwrap_or_default(), &edits)
}
