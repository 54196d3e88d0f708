use std::{num::NonZeroU32, ops::RangeInclusive, path::PathBuf};

use kubenet_core::datapath::{DatapathError, ErrorKind};

use crate::{EbpfDatapath, error::error};

/// Where a node's agent pins, if nothing speaks for another place; see [`EbpfBuilder::pin_dir`].
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/kubenet";

/// Numbers of entries of the maps.
///
/// Arrays take their memory at once (8 bytes a slot, 16 or 24 a backend), and so do the connection tables
/// (about 160 bytes an IPv4 connection, 290 an IPv6 one) and what is known of clients; hash tables grow with what
/// is in them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MapSizes {
    /// Frontends of each address family.
    pub services: u32,
    /// Places for backends in the sets of all frontends together. While a route changes, its old set and its
    /// new one both need room. A set of Maglev takes 16,384, which frontends of a Service port share when they
    /// have the same backends; one of different weights takes up to 1,024, or 16 for each backend if that is more.
    pub slots: u32,
    /// IPv4 backends: one for each endpoint of each Service port.
    pub backends4: u32,
    /// IPv6 backends.
    pub backends6: u32,
    /// Connections of each address family, 1,024 or more; there is room for no fewer than 128 for each CPU. Where
    /// there are more, new ones take the room of those that
    /// are closed or that nobody has answered, then of UDP flows without answers, and only then of the one that was
    /// silent for longest, among some that are looked at. So a flood pushes out no connection that was answered,
    /// while those fill less than half.
    pub connections: u32,
    /// Clients, of each address family, that stay with a backend of a Service port; about 80 bytes each, taken
    /// at once. The least recently seen make room for new ones.
    pub affinities: u32,
    /// Sockets of this node, of each address family, that talk to a Service. Of connected UDP sockets that are open
    /// at one time, so many follow the backends. A TCP socket's `getpeername()` says what was dialled until about so
    /// many others have dialled, and the backend from then on.
    pub sockets: u32,
    /// Addresses of this node, of each family, and ranges of loopback addresses with node ports.
    pub node_addresses: u32,
    /// Ranges of pod addresses, of each family.
    pub pod_cidrs: u32,
    /// Source ranges of all load-balancer addresses together, of each family. While a route changes, its old
    /// ones and its new ones both need room.
    pub source_ranges: u32,
}

impl Default for MapSizes {
    fn default() -> Self {
        Self {
            services: 65_536,
            slots: 1 << 20,
            backends4: 1 << 18,
            backends6: 1 << 18,
            connections: 131_072,
            affinities: 131_072,
            sockets: 65_536,
            node_addresses: 256,
            pod_cidrs: 1024,
            source_ranges: 65_536,
        }
    }
}

impl MapSizes {
    /// What a place in the index of flows has room for.
    const MOST_CONNECTIONS: u32 = (1 << 23) - 8;

    /// Service ids of both families.
    #[cfg(target_os = "linux")]
    pub(crate) fn service_names(&self) -> u32 {
        self.services.saturating_mul(2)
    }

    /// With room for flows enough that CPUs that look for some at once do not meet.
    #[cfg(target_os = "linux")]
    pub(crate) fn for_cpus(self, cpus: usize) -> Self {
        let least = u32::try_from(cpus).unwrap_or(u32::MAX).saturating_mul(128);
        Self { connections: self.connections.max(least.min(Self::MOST_CONNECTIONS)), ..self }
    }

    /// Places for flows: the first is never used, and each CPU looks through eight at a time.
    #[cfg(target_os = "linux")]
    pub(crate) fn flow_pairs(&self) -> u32 {
        self.connections.saturating_add(1).next_multiple_of(8)
    }

    /// Buckets of the index of flows, for about four entries each, of which a flow has two.
    #[cfg(target_os = "linux")]
    pub(crate) fn flow_buckets(&self) -> u32 {
        (self.connections / 2).next_power_of_two()
    }

    /// Entries that count what is in eight pairs of buckets each.
    #[cfg(target_os = "linux")]
    pub(crate) fn flow_counts(&self) -> u32 {
        self.flow_buckets().div_ceil(16)
    }

    /// Places for what TCP sockets dialled: a power of two.
    #[cfg(target_os = "linux")]
    pub(crate) fn dialled(&self) -> u32 {
        self.sockets.next_power_of_two()
    }

    fn check(&self) -> Result<(), DatapathError> {
        // What indexes of addresses have room for, see `kernel::node`.
        const MOST_ADDRESSES: u32 = 4094;
        const MOST: u32 = 1 << 26;
        let Self {
            services,
            slots,
            backends4,
            backends6,
            connections,
            affinities,
            sockets,
            node_addresses,
            pod_cidrs,
            source_ranges,
        } = *self;
        let limits = [
            ("services", services, 1, MOST),
            ("slots", slots, 1, MOST),
            ("backends4", backends4, 2, MOST),
            ("backends6", backends6, 2, MOST),
            ("connections", connections, 1024, Self::MOST_CONNECTIONS),
            ("affinities", affinities, 1, MOST),
            ("sockets", sockets, 1, MOST),
            ("node_addresses", node_addresses, 1, MOST_ADDRESSES),
            ("pod_cidrs", pod_cidrs, 1, MOST),
            ("source_ranges", source_ranges, 1, MOST),
        ];
        match limits.into_iter().find(|(_, size, least, most)| !(least..=most).contains(&size)) {
            Some((name, size, least, most)) => Err(error(
                "build",
                ErrorKind::InvalidInput,
                format!("MapSizes::{name}: {size}: must be {least} to {most}"),
            )),
            None => Ok(()),
        }
    }
}

/// How programs hang at interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttachMode {
    /// By TCX links where the kernel has them (6.6), else by filters.
    #[default]
    Auto,
    /// By TCX links. They run before all filters, and behind the TCX programs that hang there already.
    Tcx,
    /// By filters of a `clsact` queueing discipline: beside programs of others that expect a place in the
    /// order of filters. The queueing discipline is made where it is missing, and stays.
    Clsact,
}

/// Where the XDP program hangs, which serves the packets that leave by the external device that they came in by:
/// node ports and addresses of load balancers whose backend is on another node, and the replies. It spares the
/// kernel to make packets of them. All others it passes on untouched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum XdpMode {
    /// At external interfaces that are network cards, or a virtual machine's. On virtual devices such as veth, a
    /// bridge or a bond, TC alone is faster.
    #[default]
    Auto,
    /// At every external interface, in its driver.
    Native,
    /// Nowhere.
    Off,
}

/// Which hooks are used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hooks {
    pub(crate) sockets: bool,
    pub(crate) pods: bool,
    pub(crate) external: bool,
    pub(crate) xdp: XdpMode,
}

/// Describes an [`EbpfDatapath`]. Nothing is touched before [`EbpfBuilder::build`].
#[derive(Clone, Debug)]
pub struct EbpfBuilder {
    pub(crate) network_namespace: Option<PathBuf>,
    pub(crate) external_interfaces: Vec<String>,
    pub(crate) pod_interfaces: Vec<String>,
    pub(crate) cgroup: Option<PathBuf>,
    pub(crate) sizes: MapSizes,
    pub(crate) snat_ports: RangeInclusive<u16>,
    pub(crate) attach_mode: AttachMode,
    pub(crate) direct_server_return: bool,
    pub(crate) redirect_peer: bool,
    pub(crate) hooks: Hooks,
    pub(crate) flow_events: Option<NonZeroU32>,
    pub(crate) pin_dir: Option<PathBuf>,
    pub(crate) pin_if_possible: bool,
}

impl Default for EbpfBuilder {
    fn default() -> Self {
        Self {
            network_namespace: None,
            external_interfaces: Vec::new(),
            pod_interfaces: Vec::new(),
            cgroup: None,
            sizes: MapSizes::default(),
            // Below the node ports (30000 to 32767), net.ipv4.ip_local_port_range (32768 to 60999) and what
            // kubenet-iptables masquerades with.
            snat_ports: 1024..=29_999,
            attach_mode: AttachMode::Auto,
            direct_server_return: false,
            redirect_peer: false,
            hooks: Hooks { sockets: true, pods: true, external: true, xdp: XdpMode::Auto },
            flow_events: None,
            pin_dir: None,
            pin_if_possible: false,
        }
    }
}

impl EbpfBuilder {
    /// The network namespace of the node, such as `/run/netns/NAME` or `/proc/PID/ns/net`. The current one
    /// when not set.
    #[must_use]
    pub fn network_namespace(mut self, path: impl Into<PathBuf>) -> Self {
        self.network_namespace = Some(path.into());
        self
    }

    /// Adds an interface through which clients outside and other nodes reach this node.
    #[must_use]
    pub fn external_interface(mut self, name: impl Into<String>) -> Self {
        self.external_interfaces.push(name.into());
        self
    }

    /// Adds the host end of the interface of a pod that exists, as
    /// [`attach_pod`](EbpfDatapath::attach_pod) does later.
    #[must_use]
    pub fn pod_interface(mut self, name: impl Into<String>) -> Self {
        self.pod_interfaces.push(name.into());
        self
    }

    /// The cgroup (version 2) whose processes, as far as they live in the node's network namespace, reach
    /// Services through their sockets. Without it this node's own processes reach no Service.
    #[must_use]
    pub fn cgroup(mut self, path: impl Into<PathBuf>) -> Self {
        self.cgroup = Some(path.into());
        self
    }

    /// Sets the sizes of the maps.
    #[must_use]
    pub fn map_sizes(mut self, sizes: MapSizes) -> Self {
        self.sizes = sizes;
        self
    }

    /// The source ports of masqueraded flows; 1024 to 29999 when not set. They should be outside
    /// `net.ipv4.ip_local_port_range`, where the node's own sockets take their ports, and outside the
    /// cluster's node port range.
    ///
    /// Each datapath of a process prefers a sixteenth of the range of its own, so that two that live side by
    /// side, one of them draining, do not choose the same port.
    #[must_use]
    pub fn snat_ports(mut self, ports: RangeInclusive<u16>) -> Self {
        self.snat_ports = ports;
        self
    }

    /// Reports flows that begin and packets that are dropped to who listens to
    /// [`Datapath::events`](kubenet_core::datapath::Datapath::events), at most so many of each CPU in a second: as
    /// [`FlowStarted`](kubenet_core::datapath::DatapathEvent::FlowStarted),
    /// [`PacketDropped`](kubenet_core::datapath::DatapathEvent::PacketDropped) and
    /// [`Missed`](kubenet_core::datapath::DatapathEvent::Missed). Not set, they are not among the events.
    ///
    /// While nobody listens, the programs report nothing, and packets of known flows never pay for it. A reader has
    /// room for 1,024 events: one that waits for something rare should not ask for many of these.
    #[must_use]
    pub fn flow_events(mut self, per_second: NonZeroU32) -> Self {
        self.flow_events = Some(per_second);
        self
    }

    /// Chooses how programs hang at interfaces.
    #[must_use]
    pub fn attach_mode(mut self, mode: AttachMode) -> Self {
        self.attach_mode = mode;
        self
    }

    /// Lets backends on other nodes answer clients outside by themselves. Off when not set.
    ///
    /// Such a client is not masqueraded: the backend sees its address, and its node's answers go to it without the
    /// way back through this node. For that, this node marks the first packet of each connection, and every UDP
    /// datagram, with the frontend that was dialled: in an IPv4 option (8 bytes) or an IPv6 destination option
    /// (24 bytes), of the types that RFC 4727 sets aside for such use. No encapsulation is needed, so that packets
    /// take the ordinary way, TCP loses nothing of its segment size, and a receiver that does not know the option
    /// skips it. A datagram that is too large with it is answered with the path MTU that is left.
    ///
    /// Switch it on everywhere or nowhere: a backend's node that does not know it answers in the backend's own
    /// name, which the client does not understand. The network between nodes must let packets with such options,
    /// and with clients' addresses, pass: some clouds drop both. Whoever can send packets to a pod from outside
    /// can choose in which name that pod answers to it; that is no more than it could see by asking the frontend.
    ///
    /// Clients that are pods, or this node's own processes, are served as without it.
    #[must_use]
    pub fn direct_server_return(mut self, on: bool) -> Self {
        self.direct_server_return = on;
        self
    }

    /// Puts translated packets for pods of this node straight into their network namespaces, with
    /// `bpf_redirect_peer`. Off when not set.
    ///
    /// Such a packet is spared the neighbour's output, the egress of the pod's host-side interface and the queue of
    /// the pair. **What is there does not see it any more**: programs, filters, queueing disciplines (with their
    /// limits of bandwidth) and captures at that *egress*, XDP programs in the driver at the pod's end, and the
    /// resolution of the neighbour: the frame has the MAC address that was last known of the pod. Where a network
    /// plugin enforces policy there, translated packets would evade it: leave this off.
    ///
    /// Served so are interfaces of pods, of the kinds veth and netkit, whose other end was in another network
    /// namespace when they were attached, or at the last [`replace`](kubenet_core::datapath::Datapath::replace). Others
    /// are served as without it, and so are packets while the kernel knows no MAC address of the pod, fragments,
    /// ICMP errors, SCTP, IPv6 extension headers, and what the node's own processes send. Before kernel 6.15, a packet
    /// that IPsec decrypted on this node keeps its mark of that on the way, and the pod may drop it.
    #[must_use]
    pub fn redirect_peer(mut self, on: bool) -> Self {
        self.redirect_peer = on;
        self
    }

    /// Chooses where the XDP program hangs (kernel 5.18).
    ///
    /// A device that cannot have it goes without, and TC serves it: when its driver has no native XDP, when an XDP
    /// program of somebody else hangs there, or when there are VLANs on it. A
    /// [`DatapathEvent::Drift`](kubenet_core::datapath::DatapathEvent::Drift) names the device, the reason and the
    /// remedy; each [`replace`](kubenet_core::datapath::Datapath::replace) tries again. VLANs that come later are found
    /// by [`is_intact`](kubenet_core::datapath::Datapath::is_intact) and audits, until which the XDP program serves
    /// their packets, too, where the device takes off the tags.
    #[must_use]
    pub fn xdp(mut self, mode: XdpMode) -> Self {
        self.hooks.xdp = mode;
        self
    }

    /// Whether the socket hooks hang in the [`cgroup`](EbpfBuilder::cgroup); they do when not set. Without them,
    /// this node's own processes reach no Service.
    #[must_use]
    pub fn socket_hooks(mut self, on: bool) -> Self {
        self.hooks.sockets = on;
        self
    }

    /// Whether TC programs hang at the interfaces of pods; they do when not set. Without them, pods reach no
    /// Service, and [`attach_pod`](EbpfDatapath::attach_pod) attaches nothing.
    #[must_use]
    pub fn pod_tc(mut self, on: bool) -> Self {
        self.hooks.pods = on;
        self
    }

    /// Whether TC programs hang at external interfaces; they do when not set. Without them, only the XDP program is
    /// there, if [`xdp`](EbpfBuilder::xdp) attaches one: it passes packets for backends of this node translated to
    /// the stack, and nobody serves fragments, ICMP errors, headers with options or extensions, and packets whose
    /// checksum is yet to be completed, nor answers for Services without backends.
    ///
    /// What is switched off is not in [`Capabilities`](kubenet_core::datapath::Capabilities).
    #[must_use]
    pub fn external_tc(mut self, on: bool) -> Self {
        self.hooks.external = on;
        self
    }

    /// Pins maps and links in this directory of a BPF file system, such as [`DEFAULT_PIN_DIR`]: the kernel goes on
    /// forwarding when this process ends, however it ends, and the next one goes on from there. Not set, everything
    /// ends with the process.
    ///
    /// A node agent wants that. It is not on by itself, because the directory is one place of the machine: it
    /// serves one datapath at a time, whose process locks it, and what is pinned there stays until
    /// [`Close::Remove`](kubenet_core::datapath::Close::Remove) or [`remove_pins`](crate::remove_pins).
    ///
    /// The parent must be there, and the directory itself be empty, missing or of this use: it is made, and
    /// removed with the last pin.
    #[must_use]
    pub fn pin_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.pin_dir = Some(path.into());
        self
    }

    /// Goes on without pins where [`pin_dir`](EbpfBuilder::pin_dir) is on no BPF file system that can be written.
    /// [`Capabilities::keep_on_close`](kubenet_core::datapath::Capabilities::keep_on_close) says which it is.
    #[must_use]
    pub fn pin_if_possible(mut self) -> Self {
        self.pin_if_possible = true;
        self
    }

    /// Checks the settings and the kernel, then loads programs and maps. Blocks for some 10 ms.
    ///
    /// Packets meet the programs only after the first [`replace`](kubenet_core::datapath::Datapath::replace)
    /// has filled the maps. Where another process left maps and programs in [`pin_dir`](EbpfBuilder::pin_dir),
    /// packets meet those until then, and `replace` changes what differs.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] names the setting and the rule, [`ErrorKind::Unsupported`] and
    /// [`ErrorKind::Permission`] what is missing on this machine, or what is pinned that cannot be adopted.
    /// [`ErrorKind::Unavailable`] when another datapath has the directory of pins, or it is on no BPF file system.
    /// Nothing was changed then.
    pub fn build(self) -> Result<EbpfDatapath, DatapathError> {
        self.sizes.check()?;
        let invalid = |message: String| error("build", ErrorKind::InvalidInput, message);
        let (first, last) = (*self.snat_ports.start(), *self.snat_ports.end());
        if first == 0 || first > last {
            return Err(invalid(format!(
                "snat_ports: {first} to {last}: must be a range of ports from 1 to 65535 that is not empty"
            )));
        }
        for (i, name) in self.external_interfaces.iter().enumerate() {
            check_interface(name).map_err(|rule| invalid(format!("external_interface: {name:?}: {rule}")))?;
            if self.external_interfaces[..i].contains(name) {
                return Err(invalid(format!("external_interface: {name:?}: is named twice")));
            }
        }
        self.check_hooks().map_err(invalid)?;
        for name in &self.pod_interfaces {
            check_interface(name).map_err(|rule| invalid(format!("pod_interface: {name:?}: {rule}")))?;
        }
        EbpfDatapath::start(self)
    }
}

impl EbpfBuilder {
    /// Whether TC programs are at external interfaces.
    pub(crate) fn has_external_tc(&self) -> bool {
        self.hooks.external && !self.external_interfaces.is_empty()
    }

    fn check_hooks(&self) -> Result<(), String> {
        let Hooks { sockets, pods, external, xdp } = self.hooks;
        // By itself, XdpMode::Auto attaches nothing.
        let none = !pods && !external && xdp != XdpMode::Native;
        if none && !(sockets && self.cgroup.is_some()) {
            return Err("no hook is left: set a cgroup, or leave pod_tc or external_tc on".to_owned());
        }
        if self.direct_server_return && !external {
            return Err("direct_server_return: it is TC that marks packets and learns from marks: leave external_tc on"
                .to_owned());
        }
        if xdp == XdpMode::Native && !external && !pods {
            return Err(
                "xdp: without external_tc it needs pod_tc, which translates what pods answer".to_owned()
            );
        }
        Ok(())
    }
}

/// The kernel's rule for names of interfaces.
pub(crate) fn check_interface(name: &str) -> Result<(), &'static str> {
    let bad = |c: char| c == '/' || c == ':' || c == '\0' || c.is_ascii_whitespace();
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.contains(bad) {
        return Err("must have 1 to 15 characters, without '/', ':' and white space");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(builder: EbpfBuilder) -> String {
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        error.message().to_owned()
    }

    #[test]
    fn there_is_room_for_flows_for_each_cpu_and_none_without_a_place() {
        let few = MapSizes { connections: 1024, ..MapSizes::default() };
        assert_eq!(few.clone().for_cpus(8).connections, 1024);
        assert_eq!(few.clone().for_cpus(256).connections, 32_768);
        assert_eq!(MapSizes::default().for_cpus(256), MapSizes::default());
        let most = few.for_cpus(usize::MAX);
        assert_eq!((most.flow_pairs(), most.flow_buckets()), (1 << 23, 1 << 22));
    }

    #[test]
    #[allow(clippy::reversed_empty_ranges)]
    fn a_bad_setting_is_named_with_its_rule() {
        let builder = EbpfDatapath::builder;
        assert_eq!(
            message(builder().map_sizes(MapSizes { slots: 0, ..MapSizes::default() })),
            "MapSizes::slots: 0: must be 1 to 67108864"
        );
        assert!(message(builder().snat_ports(9..=8)).starts_with("snat_ports: 9 to 8: must be a range"));
        let nothing = builder().pod_tc(false).external_tc(false);
        for xdp in [XdpMode::Off, XdpMode::Auto] {
            assert!(message(nothing.clone().xdp(xdp)).starts_with("no hook is left"));
        }
        let direct = builder().direct_server_return(true).external_tc(false).xdp(XdpMode::Native);
        assert!(message(direct).starts_with("direct_server_return: it is TC"));
        assert!(message(nothing.clone().cgroup("/x").socket_hooks(false)).starts_with("no hook is left"));
        assert!(message(nothing.xdp(XdpMode::Native)).starts_with("xdp: without external_tc"));
        assert!(message(builder().external_interface("")).starts_with("external_interface: \"\": must have"));
        assert!(
            message(builder().external_interface("eth0").external_interface("eth0")).ends_with("named twice")
        );
    }
}
