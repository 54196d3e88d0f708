//! Who is joined to whom, and with which addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use kubenet_core::model::validate_name;
use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};
use parking_lot::Mutex;

use super::{
    LabError, Netns,
    cleanup::{PREFIX, Registration},
    ip, sysctl,
};
use crate::place::{Node, OUTSIDE_V4, OUTSIDE_V6, POD_INTERFACES, SERVICE_CIDR_V4, SERVICE_CIDR_V6};

/// What pods have as default gateway: the same on every host end, and no address that a flow could come from.
const GATEWAY_V4: &str = "169.254.1.1";
const GATEWAY_V6: &str = "fe80::1";
const MAX_PODS: u8 = 250;

/// A node of the lab.
#[derive(Debug)]
pub struct LabNode {
    node: Node,
    netns: Netns,
    ipv6: bool,
    pods: Mutex<BTreeMap<String, Arc<Pod>>>,
    next_pod: AtomicU8,
}

/// The host outside the cluster.
#[derive(Debug)]
pub struct Outside {
    netns: Netns,
    ipv6: bool,
}

/// A pod of the lab.
#[derive(Debug)]
pub struct Pod {
    name: String,
    node: Node,
    netns: Netns,
    v4: Ipv4Addr,
    v6: Option<Ipv6Addr>,
    host_interface: String,
}

impl LabNode {
    /// Which of the two.
    pub fn node(&self) -> Node {
        self.node
    }

    /// `node-a` or `node-b`.
    pub fn name(&self) -> &'static str {
        self.node.name()
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its address.
    pub fn v4(&self) -> Ipv4Addr {
        self.node.v4()
    }

    /// Its address, in a lab with IPv6.
    pub fn v6(&self) -> Option<Ipv6Addr> {
        self.ipv6.then(|| self.node.v6())
    }

    /// The interface to the other node and to the outside.
    pub fn external_interface(&self) -> &'static str {
        "eth0"
    }

    /// Its pods, by name.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.lock().values().cloned().collect()
    }

    /// The host ends of its pods' interfaces.
    pub fn pod_interfaces(&self) -> Vec<String> {
        self.pods.lock().values().map(|pod| pod.host_interface.clone()).collect()
    }

    pub(super) fn pod(&self, name: &str) -> Option<Arc<Pod>> {
        self.pods.lock().get(name).cloned()
    }

    pub(super) fn add_pod(
        &self,
        registration: &Registration,
        id: &str,
        name: &str,
        wanted: &[IpAddr],
    ) -> Result<Arc<Pod>, LabError> {
        validate_name(name).map_err(|rule| LabError::InvalidInput(format!("pod name {name:?}: {rule}")))?;
        let (number, v4, v6) = self.assign(wanted)?;
        // An interface's name has at most 15 bytes. Pod names have no underscore, so the two forms never meet.
        let host_interface = if name.len() <= 13 {
            format!("{POD_INTERFACES}{name}")
        } else {
            format!("{POD_INTERFACES}_{number}")
        };
        let full_name = format!("{PREFIX}{id}-pod-{name}");
        registration.create(std::slice::from_ref(&full_name))?;
        let built = (|| {
            let netns = Netns::open(&full_name)?;
            netns.run(|| harden(false, self.ipv6))??;
            let pod = Arc::new(Pod { name: name.to_owned(), node: self.node, netns, v4, v6, host_interface });
            self.wire(&pod)?;
            Ok(pod)
        })();
        match built {
            Ok(pod) => {
                self.pods.lock().insert(name.to_owned(), Arc::clone(&pod));
                Ok(pod)
            }
            Err(error) => {
                registration.remove(&full_name);
                Err(error)
            }
        }
    }

    /// A number for a new pod, and its addresses: those wanted, else by its number.
    fn assign(&self, wanted: &[IpAddr]) -> Result<(u8, Ipv4Addr, Option<Ipv6Addr>), LabError> {
        let pods = self.pods();
        let taken = |address: IpAddr| {
            pods.iter()
                .any(|pod| IpAddr::from(pod.v4) == address || pod.v6.map(IpAddr::from) == Some(address))
        };
        let (range_v4, range_v6) = (self.node.pod_range_v4(), self.node.pod_range_v6());
        for &address in wanted {
            let inside = match address {
                IpAddr::V4(v4) => range_v4.contains(&v4),
                IpAddr::V6(v6) => range_v6.contains(&v6),
            };
            if !inside || taken(address) {
                let rule = if inside { "is taken" } else { "is in neither of the node's pod ranges" };
                let name = self.name();
                return Err(LabError::InvalidInput(format!(
                    "{name}: pod address {address} {rule} ({range_v4}, {range_v6})"
                )));
            }
        }
        let wanted_v4 = wanted.iter().find_map(|a| if let IpAddr::V4(v4) = a { Some(*v4) } else { None });
        let wanted_v6 = wanted.iter().find_map(|a| if let IpAddr::V6(v6) = a { Some(*v6) } else { None });
        loop {
            let more = |n| (n < MAX_PODS).then_some(n + 1);
            let Ok(number) = self.next_pod.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) else {
                let name = self.name();
                return Err(LabError::InvalidInput(format!("{name} has had {MAX_PODS} pods already")));
            };
            let own_v4 = wanted_v4.unwrap_or(self.node.pod_v4(number));
            let own_v6 = wanted_v6.unwrap_or(self.node.pod_v6(number));
            if !taken(own_v4.into()) && !taken(own_v6.into()) {
                return Ok((number, own_v4, self.ipv6.then_some(own_v6)));
            }
        }
    }

    /// Joins a pod to its node by a pair of interfaces and routes.
    fn wire(&self, pod: &Pod) -> Result<(), LabError> {
        let (host, v4, node_v4) = (&pod.host_interface, pod.v4, self.v4());
        let mut here = format!(
            "link add {host} type veth peer name eth0 netns {}\n\
             link set {host} addrgenmode none\n\
             link set {host} up\n\
             addr add {GATEWAY_V4}/32 dev {host} scope link\n\
             route add {v4}/32 dev {host} src {node_v4}\n",
            pod.netns.name()
        );
        let mut there = format!(
            "link set lo up\n\
             link set eth0 up\n\
             addr add {v4}/32 dev eth0\n\
             route add {GATEWAY_V4}/32 dev eth0 scope link\n\
             route add 0.0.0.0/0 via {GATEWAY_V4} dev eth0\n"
        );
        if let (Some(v6), Some(node_v6)) = (pod.v6, self.v6()) {
            here += &format!(
                "addr add {GATEWAY_V6}/64 dev {host} nodad\n\
                 route add {v6}/128 dev {host} src {node_v6}\n"
            );
            there += &format!(
                "addr add {v6}/128 dev eth0 nodad\n\
                 route add ::/0 via {GATEWAY_V6} dev eth0\n"
            );
        }
        ip::batch(Some(self.netns.name()), &here)?;
        ip::batch(Some(pod.netns.name()), &there)?;
        self.netns.run(|| running(&[host]))??;
        pod.netns.run(|| running(&["eth0"]))?
    }

    pub(super) fn remove_pod(&self, registration: &Registration, pod: &Pod) -> Result<(), LabError> {
        self.pods.lock().remove(&pod.name);
        pod.netns.leave();
        // Before the namespace, which may live on for a moment: its peer goes with it.
        let unplugged = ip::batch(Some(self.netns.name()), &format!("link del {}\n", pod.host_interface));
        registration.remove(pod.netns.name());
        unplugged
    }
}

impl Outside {
    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its address.
    pub fn v4(&self) -> Ipv4Addr {
        OUTSIDE_V4
    }

    /// Its address, in a lab with IPv6.
    pub fn v6(&self) -> Option<Ipv6Addr> {
        self.ipv6.then_some(OUTSIDE_V6)
    }
}

impl Pod {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node that it runs on.
    pub fn node(&self) -> Node {
        self.node
    }

    /// Its network namespace. The interface in it is `eth0`.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its address.
    pub fn v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// Its address, in a lab with IPv6.
    pub fn v6(&self) -> Option<Ipv6Addr> {
        self.v6
    }

    /// The host end of its interface, in the node's network namespace.
    pub fn host_interface(&self) -> &str {
        &self.host_interface
    }
}

/// Creates everything but the pods.
pub(super) fn build(
    registration: &Registration,
    id: &str,
    ipv6: bool,
) -> Result<(Netns, [LabNode; 2], Outside), LabError> {
    let name = |part: &str| format!("{PREFIX}{id}-{part}");
    registration.create(&[name("net"), name("node-a"), name("node-b"), name("outside")])?;
    let net = Netns::open(&name("net"))?;
    net.run(|| {
        // Where br_netfilter is loaded, bridged packets would pass iptables once more.
        for hook in ["iptables", "ip6tables", "arptables"] {
            sysctl(&format!("bridge/bridge-nf-call-{hook}"), "0")?;
        }
        harden(false, false)
    })??;
    let node = |node: Node| {
        Ok::<_, LabError>(LabNode {
            node,
            netns: Netns::open(&name(node.name()))?,
            ipv6,
            pods: Mutex::default(),
            next_pod: AtomicU8::new(2),
        })
    };
    let nodes = [node(Node::A)?, node(Node::B)?];
    let outside = Outside { netns: Netns::open(&name("outside"))?, ipv6 };
    for node in &nodes {
        node.netns.run(|| harden(true, ipv6))??;
    }
    outside.netns.run(|| harden(false, ipv6))??;

    let mut lines = String::from(
        "link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0\n\
         link set br0 up\n",
    );
    for part in ["node-a", "node-b", "outside"] {
        lines += &format!(
            "link add {part} type veth peer name eth0 netns {}\n\
             link set {part} master br0 up\n",
            name(part)
        );
    }
    ip::batch(Some(net.name()), &lines)?;
    for node in &nodes {
        let other = node.node.other();
        let mut lines = address_lines(node.v4(), node.v6());
        lines += &format!(
            "route add {} via {}\nroute add 0.0.0.0/0 via {}\n",
            other.pod_range_v4(),
            other.v4(),
            outside.v4()
        );
        if let Some(outside_v6) = outside.v6() {
            lines += &format!(
                "route add {} via {}\nroute add ::/0 via {outside_v6}\n",
                other.pod_range_v6(),
                other.v6(),
            );
        }
        ip::batch(Some(node.netns.name()), &lines)?;
    }
    let mut lines = address_lines(outside.v4(), outside.v6());
    lines += &format!("route add {SERVICE_CIDR_V4} via {}\n", nodes[0].v4());
    if let Some(v6) = nodes[0].v6() {
        lines += &format!("route add {SERVICE_CIDR_V6} via {v6}\n");
    }
    ip::batch(Some(outside.netns.name()), &lines)?;
    net.run(|| running(&["node-a", "node-b", "outside", "br0"]))??;
    for netns in [&nodes[0].netns, &nodes[1].netns, &outside.netns] {
        netns.run(|| running(&["eth0"]))??;
    }
    Ok((net, nodes, outside))
}

fn address_lines(v4: Ipv4Addr, v6: Option<Ipv6Addr>) -> String {
    let mut lines = format!("link set lo up\nlink set eth0 up\naddr add {v4}/24 dev eth0\n");
    if let Some(v6) = v6 {
        lines += &format!("addr add {v6}/64 dev eth0 nodad\n");
    }
    lines
}

/// Settings of the calling thread's namespace, before it has interfaces other than `lo`.
pub(super) fn harden(forward: bool, ipv6: bool) -> Result<(), LabError> {
    let flag = |on: bool| if on { "1" } else { "0" };
    sysctl("ipv4/ip_forward", flag(forward))?;
    // Many clients are refused in a moment; each is to hear of it.
    sysctl("ipv4/icmp_ratelimit", "0")?;
    sysctl("ipv6/icmp/ratelimit", "0")?;
    // Those of the whole namespace are limited by type.
    sysctl("ipv4/icmp_ratemask", "0")?;
    sysctl("ipv6/icmp/ratemask", "\n")?;
    // One client makes tens of thousands of connections to one address.
    sysctl("ipv4/tcp_tw_reuse", "1")?;
    for device in ["all", "default", "lo"] {
        let v4 = |name: &str, value| sysctl(&format!("ipv4/conf/{device}/{name}"), value);
        v4("rp_filter", "0")?;
        v4("send_redirects", "0")?;
        v4("accept_redirects", "0")?;
        let v6 = |name: &str, value| sysctl(&format!("ipv6/conf/{device}/{name}"), value);
        v6("disable_ipv6", flag(!ipv6))?;
        v6("forwarding", flag(forward))?;
        v6("accept_dad", "0")?;
        v6("accept_ra", "0")?;
        v6("router_solicitations", "0")?;
        v6("accept_redirects", "0")?;
    }
    Ok(())
}

/// Waits until interfaces of the calling thread's namespace carry packets: the kernel notices a moment after
/// both ends are up, and loses what is sent before.
pub(super) fn running(interfaces: &[&str]) -> Result<(), LabError> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let found =
            getifaddrs().map_err(|e| LabError::Io { what: "list interfaces".into(), source: e.into() })?;
        let up: BTreeSet<String> = found
            .filter(|interface| interface.flags.contains(InterfaceFlags::IFF_RUNNING))
            .map(|interface| interface.interface_name)
            .collect();
        let Some(down) = interfaces.iter().find(|name| !up.contains(**name)) else { return Ok(()) };
        if Instant::now() > deadline {
            return Err(LabError::Io {
                what: format!("interface {down} does not come up"),
                source: io::ErrorKind::TimedOut.into(),
            });
        }
        thread::sleep(Duration::from_millis(1));
    }
}
