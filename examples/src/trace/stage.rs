//! A node with its pods and the world around it, as two network namespaces.
//!
//! ```text
//!   kubenet-<id>-far                  kubenet-<id>-node
//!   ┌──────────────┐                 ┌──────────────────────────┐
//!   │        world ├─────────────────┤ eth0   the node's        │
//!   │          kn0 ├─────────────────┤ kn0    addresses,        │
//!   │          kn1 ├─────────────────┤ kn1    forwarding, and   │
//!   │            … │ one for a pod   │ …      the datapath      │
//!   └──────────────┘                 └──────────────────────────┘
//! ```
//!
//! Nobody lives at the far ends: packets are made there and looked at, and nothing answers them. So one
//! namespace does for all of them, whatever addresses the manifests have: the node knows its neighbours'
//! hardware addresses beforehand, has a route to each pod, and sends everything else to the world.

use std::{fmt::Write, net::IpAddr, path::Path, sync::Arc, time::Duration};

use futures::executor::block_on;
use ipnet::IpNet;
use kubenet_core::{
    datapath::{ApplyReport, Datapath},
    model::{Algorithm, IpFamily},
    route::RouteTable,
};
use kubenet_ebpf::{EbpfDatapath, MapSizes};
use kubenet_iptables::{IptablesDatapath, Variant};
use kubenet_testkit::lab::{Ground, Netns};

use super::{Dialled, TraceError, frame::Mac, places::Places};

/// A datapath of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// iptables, in one of its variants.
    Iptables(Variant),
    /// eBPF.
    Ebpf,
}

const NODE: &str = "node";
const FAR: &str = "far";
const EXTERNAL: &str = "eth0";
const WORLD: &str = "world";

/// What the node sends everything to that is nobody's; no address that a flow could come from.
const GATEWAY_V4: &str = "169.254.1.1";
const GATEWAY_V6: &str = "fe80::1";
/// For the ICMP errors of a node that has no address.
const NAMELESS_V4: &str = "169.254.1.2";

/// Large enough for every segment size that marks a socket.
const MTU: u32 = 65_535;

/// Seconds after which a connection that nobody answered is forgotten.
const FORGOTTEN: &str = "10";

/// For the lock that the legacy iptables of all namespaces share.
const LOCK_WAIT: Duration = Duration::from_secs(30);

/// What [`MapSizes::slots`] says of sets that are not plain lists, and the most that it can be.
const MAGLEV_SLOTS: usize = 16_384;
const WEIGHTED_SLOTS: usize = 1024;
const MOST_SLOTS: u32 = 1 << 26;

/// One device of the far side.
#[derive(Clone, Debug)]
pub(super) struct Device {
    pub(super) name: String,
    /// Its own hardware address, and that of the node's end.
    pub(super) macs: (Mac, Mac),
}

/// The namespaces. They go when it is dropped.
#[derive(Debug)]
pub struct Stage {
    ground: Ground,
    node: Netns,
    far: Netns,
    places: Places,
    world: Device,
    pods: Vec<Device>,
    ipv6: bool,
}

impl Stage {
    /// Builds it for these flows, which the table is to serve. `pod_cidrs` are the node's own, where they are
    /// known.
    ///
    /// # Errors
    /// What this machine lacks.
    pub fn new(table: &RouteTable, pod_cidrs: &[IpNet], flows: &[Dialled]) -> Result<Self, TraceError> {
        let ipv6 = Path::new("/proc/sys/net/ipv6").exists();
        if !ipv6 && flows.iter().any(|flow| flow.to.is_ipv6()) {
            return Err(TraceError::Missing("the kernel has no IPv6, which some flows need".into()));
        }
        let places = Places::plan(table, pod_cidrs, flows);
        let mut ground = Ground::new(ipv6)?;
        let node = ground.add(NODE, true)?;
        // Without IPv6: frames of it are captured all the same, and nothing stirs by itself.
        let far = ground.add(FAR, false)?;
        let world = Device { name: WORLD.into(), macs: macs(0) };
        let pods =
            (0..places.interfaces()).map(|n| Device { name: format!("kn{n}"), macs: macs(n + 1) }).collect();
        let stage = Self { ground, node, far, places, world, pods, ipv6 };
        stage.wire()?;
        Ok(stage)
    }

    fn wire(&self) -> Result<(), TraceError> {
        let ipv6 = self.ipv6;
        let mut far_end = String::from("link set lo down\n");
        let mut here = String::from("link set lo up\n");
        let devices = || self.pods.iter().map(|pod| (pod.name.as_str(), pod));
        for (name, device) in [(EXTERNAL, &self.world)].into_iter().chain(devices()) {
            let (far, near) = (mac(device.macs.0), mac(device.macs.1));
            let (other, netns) = (&device.name, self.far.name());
            let _ = writeln!(
                here,
                "link add {name} mtu {MTU} address {near} type veth peer name {other} mtu {MTU} address {far} netns {netns}\n\
                 link set {name} up"
            );
            let _ = writeln!(far_end, "link set {other} up");
        }
        // What the node sends in its own name, and what is masqueraded, comes from the first of each family: in
        // IPv6, where the kernel would compare prefixes, because it does not like the others.
        let of_family = |v4: bool| self.places.node().iter().filter(move |address| address.is_ipv4() == v4);
        for address in of_family(true) {
            let _ = writeln!(here, "addr add {address}/32 dev {EXTERNAL}");
        }
        for (n, address) in of_family(false).filter(|_| ipv6).enumerate() {
            let liked = if n == 0 { "forever" } else { "0" };
            let _ = writeln!(here, "addr add {address}/128 dev {EXTERNAL} nodad preferred_lft {liked}");
        }
        if !self.places.node().iter().any(IpAddr::is_ipv4) {
            let _ = writeln!(here, "addr add {NAMELESS_V4}/32 dev {EXTERNAL} scope link");
        }
        let world = mac(self.world.macs.0);
        let _ = writeln!(
            here,
            "neigh add {GATEWAY_V4} lladdr {world} dev {EXTERNAL} nud permanent\n\
             route add 0.0.0.0/0 via {GATEWAY_V4} dev {EXTERNAL} onlink"
        );
        if ipv6 {
            let _ = writeln!(
                here,
                "neigh add {GATEWAY_V6} lladdr {world} dev {EXTERNAL} nud permanent\n\
                 route add ::/0 via {GATEWAY_V6} dev {EXTERNAL}"
            );
        }
        for (pod, interface) in self.places.pods().filter(|(pod, _)| ipv6 || pod.is_ipv4()) {
            let Some(device) = self.pods.get(interface) else { continue };
            let (name, lladdr) = (&device.name, mac(device.macs.0));
            let length = if pod.is_ipv4() { 32 } else { 128 };
            let _ = writeln!(
                here,
                "neigh add {pod} lladdr {lladdr} dev {name} nud permanent\n\
                 route add {pod}/{length} dev {name}"
            );
        }
        // The far ends first exist with the near ones, and no route lasts before its device is up.
        let (links, rest): (Vec<&str>, Vec<&str>) = here.lines().partition(|line| line.starts_with("link "));
        self.ground.ip(NODE, &lines(&links))?;
        self.ground.ip(FAR, &far_end)?;
        let names: Vec<&str> = [EXTERNAL].into_iter().chain(devices().map(|(name, _)| name)).collect();
        self.ground.wait_until_running(NODE, &names)?;
        self.ground.ip(NODE, &lines(&rest))?;
        Ok(())
    }

    /// Starts a datapath on the node. It has no routes yet.
    ///
    /// # Errors
    /// What this machine lacks.
    pub fn start(&self, kind: Kind, table: &RouteTable) -> Result<Arc<dyn Datapath>, TraceError> {
        let node = self.node.path();
        let datapath: Arc<dyn Datapath> = match kind {
            Kind::Iptables(variant) => {
                let builder = IptablesDatapath::builder().variant(variant).network_namespace(node);
                Arc::new(builder.lock_wait(LOCK_WAIT).build()?)
            }
            Kind::Ebpf => {
                let mut builder = EbpfDatapath::builder()
                    .network_namespace(node)
                    .external_interface(EXTERNAL)
                    .cgroup(self.ground.cgroup()?)
                    .map_sizes(sizes(table));
                for pod in &self.pods {
                    builder = builder.pod_interface(&pod.name);
                }
                Arc::new(builder.build()?)
            }
        };
        Ok(datapath)
    }

    /// Programs a table, and says which routes it does not serve, and why.
    pub(super) fn program(
        &self,
        datapath: &Arc<dyn Datapath>,
        table: &Arc<RouteTable>,
    ) -> Result<ApplyReport, TraceError> {
        let report = block_on(datapath.replace(Arc::clone(table)))?;
        // Connection tracking came with the datapath, if at all.
        for timer in ["tcp_timeout_syn_sent", "udp_timeout", "sctp_timeout_cookie_wait"] {
            self.ground.sysctl(NODE, &format!("netfilter/nf_conntrack_{timer}"), FORGOTTEN)?;
        }
        Ok(report)
    }

    pub(super) fn node(&self) -> &Netns {
        &self.node
    }

    pub(super) fn far(&self) -> &Netns {
        &self.far
    }

    pub(super) fn has_ipv6(&self) -> bool {
        self.ipv6
    }

    pub(super) fn places(&self) -> &Places {
        &self.places
    }

    pub(super) fn world(&self) -> &Device {
        &self.world
    }

    pub(super) fn pods(&self) -> &[Device] {
        &self.pods
    }
}

/// Large enough for this table, and never smaller than usual.
fn sizes(table: &RouteTable) -> MapSizes {
    let mut sizes = MapSizes::default();
    let (mut slots, mut v4, mut v6) = (0, 0, 0);
    for route in table.routes() {
        for target in [&route.internal, &route.external] {
            let endpoints = target.backends.len();
            slots += match route.algorithm {
                Algorithm::Maglev => MAGLEV_SLOTS,
                _ if target.is_weighted() => WEIGHTED_SLOTS.max(16 * endpoints),
                _ => endpoints,
            };
            *(if route.frontend.family() == IpFamily::V4 { &mut v4 } else { &mut v6 }) += endpoints;
        }
    }
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).min(MOST_SLOTS);
    sizes.services = sizes.services.max(count(table.len()));
    // Twice: while a route changes, its old set and its new one need room.
    sizes.slots = sizes.slots.max(count(2 * slots));
    sizes.backends4 = sizes.backends4.max(count(v4));
    sizes.backends6 = sizes.backends6.max(count(v6));
    sizes
}

/// Of a pair of interfaces: the far end's, then the node's.
fn macs(n: usize) -> (Mac, Mac) {
    let [.., high, low] = n.to_be_bytes();
    ([0x02, 0x6b, 0x6e, 1, high, low], [0x02, 0x6b, 0x6e, 0, high, low])
}

fn mac(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn lines(lines: &[&str]) -> String {
    lines.iter().flat_map(|line| [line, "\n"]).collect()
}
