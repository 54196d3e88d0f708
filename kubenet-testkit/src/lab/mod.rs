//! Two nodes, their pods and an outside client on one machine, as network namespaces joined by veth.
//!
//! ```text
//!                         kubenet-<id>-net (bridge)
//!            ┌───────────────────────┼─────────────────────────┐
//!       eth0 │ 10.89.0.1        eth0 │ 10.89.0.2          eth0 │ 10.89.0.100
//!        ┌───┴────┐              ┌───┴────┐               ┌────┴────┐
//!        │ node-a │              │ node-b │               │ outside │
//!        └─┬────┬─┘              └─┬────┬─┘               └─────────┘
//!    kna1  │    │ kna2       knb1  │    │ knb2
//!        ┌─┴┐  ┌┴─┐              ┌─┴┐  ┌┴─┐
//!        │a1│  │a2│ 10.244.1.0/24│b1│  │b2│ 10.244.2.0/24
//!        └──┘  └──┘              └──┘  └──┘
//! ```
//!
//! The nodes route each other's pod ranges and send everything else to the outside host, which forwards
//! nothing: what no datapath takes is lost in silence. The outside host reaches cluster IPs through node-a
//! and knows no way to pods. IPv6 is the same with `fd00:89::/64`, `fd00:244:1::/64` and `fd00:244:2::/64`.
//!
//! Needs root and iproute2. Everything is removed when the [`Lab`] is dropped, also by a panic or by SIGINT
//! and SIGTERM, which then end the process with 128 + n. A lab whose process was killed is removed by the next
//! one. Nothing in the machine's own network namespace is touched.
//!
//! ```no_run
//! use std::time::Duration;
//! use kubenet_testkit::lab::{Lab, LabConfig, Node, Place};
//!
//! let lab = Lab::new(LabConfig::new().pod("web", Node::B).pod("client", Node::A))?;
//! let _server = lab.serve("web", 8080)?;
//! let web = (lab.pod("web")?.v4(), 8080).into();
//! let answer = lab.http_get("client", web, Duration::from_secs(1))?;
//! assert_eq!((answer.backend.as_str(), answer.peer.ip()), ("web", lab.pod("client")?.v4().into()));
//! assert!(lab.http_get(Place::Outside, web, Duration::from_millis(200)).is_err());
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod cgroup;
mod cleanup;
mod client;
mod error;
mod ground;
mod ip;
mod netns;
mod path;
mod server;
mod topology;

use std::{fs, net::IpAddr, path::Path, sync::Arc};

use kubenet_core::model::{InvalidObject, IpFamily, NodeInfo};
use parking_lot::Mutex;

use self::{cgroup::Cgroup, cleanup::Registration, server::Reactor};
pub use self::{
    cleanup::remove_kept_labs,
    client::{Answer, Connection, UdpFlow},
    error::{LabError, RequestError},
    ground::Ground,
    netns::Netns,
    path::NarrowPath,
    server::Server,
    topology::{LabNode, Outside, Pod},
};
pub use crate::place::{CLUSTER_CIDR_V4, CLUSTER_CIDR_V6, Node, Place, SERVICE_CIDR_V4, SERVICE_CIDR_V6};

/// What a [`Lab`] consists of.
#[derive(Clone, Debug)]
pub struct LabConfig {
    pods: Vec<(String, Node)>,
    ipv6: bool,
}

impl Default for LabConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl LabConfig {
    /// No pods yet; IPv4, and IPv6 where the machine has it.
    pub fn new() -> Self {
        Self { pods: Vec::new(), ipv6: Path::new("/proc/sys/net/ipv6").exists() }
    }

    /// Adds a pod.
    #[must_use]
    pub fn pod(mut self, name: impl Into<String>, node: Node) -> Self {
        self.pods.push((name.into(), node));
        self
    }

    /// With or without IPv6.
    #[must_use]
    pub fn ipv6(mut self, ipv6: bool) -> Self {
        self.ipv6 = ipv6;
        self
    }
}

/// The lab. See the [module](self).
#[derive(Debug)]
pub struct Lab {
    id: String,
    ipv6: bool,
    nodes: [LabNode; 2],
    outside: Outside,
    /// The namespace of the bridge.
    net: Netns,
    changing: Mutex<()>,
    kept: Mutex<bool>,
    cgroup: Result<Cgroup, String>,
    reactor: Reactor,
    // Last: the namespaces go when all that is inside has gone.
    registration: Registration,
}

impl Lab {
    /// Builds a lab. Removes labs of processes that were killed first.
    ///
    /// # Errors
    /// [`LabError::Unsupported`] without root or iproute2; whatever else `ip` reports. Nothing is left behind.
    pub fn new(config: LabConfig) -> Result<Self, LabError> {
        require_root()?;
        cleanup::remove_stale();
        let id = cleanup::new_id();
        let registration = Registration::new(&id);
        let cgroup = Cgroup::join().map_err(|e| e.to_string());
        let reactor = Reactor::start().map_err(LabError::io("start the servers' thread"))?;
        let (net, nodes, outside) = topology::build(&registration, &id, config.ipv6)?;
        let lab = Self {
            id,
            ipv6: config.ipv6,
            nodes,
            outside,
            net,
            changing: Mutex::new(()),
            kept: Mutex::new(false),
            cgroup,
            reactor,
            registration,
        };
        for (name, node) in &config.pods {
            lab.add_pod(name, *node)?;
        }
        Ok(lab)
    }

    /// Its id: the namespaces are called `kubenet-<id>-…`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether it has IPv6.
    pub fn has_ipv6(&self) -> bool {
        self.ipv6
    }

    /// The families that it has.
    pub fn families(&self) -> &'static [IpFamily] {
        if self.ipv6 { &IpFamily::ALL } else { &[IpFamily::V4] }
    }

    /// A node.
    pub fn node(&self, node: Node) -> &LabNode {
        &self.nodes[node as usize]
    }

    /// The host outside the cluster.
    pub fn outside(&self) -> &Outside {
        &self.outside
    }

    /// A pod, by name.
    ///
    /// # Errors
    /// [`LabError::NoSuchPod`].
    pub fn pod(&self, name: &str) -> Result<Arc<Pod>, LabError> {
        let found = self.nodes.iter().find_map(|node| node.pod(name));
        found.ok_or_else(|| LabError::NoSuchPod(name.to_owned()))
    }

    /// All pods, those of node-a first.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.nodes.iter().flat_map(LabNode::pods).collect()
    }

    /// Adds a pod.
    ///
    /// # Errors
    /// A name that is taken or that Kubernetes would not allow; a failure of `ip`, after which nothing of the
    /// pod is left.
    pub fn add_pod(&self, name: &str, node: Node) -> Result<Arc<Pod>, LabError> {
        self.add_pod_with(name, node, &[])
    }

    /// Adds a pod with these addresses: at most one of each family, from the node's pod ranges. A family that
    /// is not named gets the next free one.
    ///
    /// # Errors
    /// Those of [`Lab::add_pod`]; an address that is taken or outside the ranges.
    pub fn add_pod_with(&self, name: &str, node: Node, addresses: &[IpAddr]) -> Result<Arc<Pod>, LabError> {
        let _one_at_a_time = self.changing.lock();
        if self.pod(name).is_ok() {
            return Err(LabError::InvalidInput(format!("there is a pod {name:?} already")));
        }
        self.node(node).add_pod(&self.registration, &self.id, name, addresses)
    }

    /// Removes a pod and its interface. Its servers stop.
    ///
    /// # Errors
    /// [`LabError::NoSuchPod`].
    pub fn remove_pod(&self, name: &str) -> Result<(), LabError> {
        let _one_at_a_time = self.changing.lock();
        let pod = self.pod(name)?;
        self.reactor.stop_all_of(&Place::Pod(name.to_owned()));
        self.node(pod.node()).remove_pod(&self.registration, &pod)
    }

    /// The network namespace of a place.
    ///
    /// # Errors
    /// [`LabError::NoSuchPod`].
    pub fn netns(&self, place: &Place) -> Result<Netns, LabError> {
        Ok(match place {
            Place::Pod(name) => self.pod(name)?.netns().clone(),
            Place::Node(node) => self.node(*node).netns().clone(),
            Place::Outside => self.outside.netns().clone(),
        })
    }

    /// The address of a place.
    ///
    /// # Errors
    /// [`LabError::NoSuchPod`], or no IPv6 in this lab.
    pub fn address(&self, place: &Place, family: IpFamily) -> Result<IpAddr, LabError> {
        let (v4, v6) = match place {
            Place::Pod(name) => {
                let pod = self.pod(name)?;
                (pod.v4(), pod.v6())
            }
            Place::Node(node) => (self.node(*node).v4(), self.node(*node).v6()),
            Place::Outside => (self.outside.v4(), self.outside.v6()),
        };
        match family {
            IpFamily::V4 => Ok(v4.into()),
            IpFamily::V6 => {
                v6.map(IpAddr::from).ok_or_else(|| LabError::InvalidInput("this lab has no IPv6".into()))
            }
        }
    }

    /// The cgroup (version 2) of this process while it has a lab: a place for socket hooks that see the lab's
    /// clients and nothing else of the machine. All labs of a process share it.
    ///
    /// # Errors
    /// It could not be made; the rest of the lab works without.
    pub fn cgroup(&self) -> Result<&Path, LabError> {
        match &self.cgroup {
            Ok(cgroup) => Ok(cgroup.path()),
            Err(why) => Err(LabError::Unsupported(format!("no cgroup of version 2: {why}"))),
        }
    }

    /// A node as the model describes it, with the cluster's pod ranges.
    ///
    /// # Errors
    /// None that this lab can cause.
    pub fn node_info(&self, node: Node) -> Result<NodeInfo, InvalidObject> {
        node.info(self.families())
    }

    /// Leaves the namespaces up when the lab is dropped, and prints to stderr how to look into them. The
    /// servers end with this process. [`remove_kept_labs`] removes it later.
    ///
    /// # Errors
    /// The mark that keeps later labs from removing it could not be written.
    pub fn keep(&self) -> Result<(), LabError> {
        self.registration.keep()?;
        *self.kept.lock() = true;
        eprint!("{}", self.instructions());
        Ok(())
    }

    /// How to look into the lab from a shell, and how to remove it when it was kept.
    pub fn instructions(&self) -> String {
        let mut text = format!("Lab {}. Look into it with, for example:\n", self.id);
        let mut line = |netns: &Netns, command: &str| {
            text.push_str(&format!("  ip netns exec {} {command}\n", netns.name()));
        };
        line(self.node(Node::A).netns(), "ip route");
        for pod in self.pods() {
            line(pod.netns(), "bash");
        }
        line(self.outside.netns(), "tcpdump -ni eth0");
        let prefix = format!("{}{}-", cleanup::PREFIX, self.id);
        text.push_str(&format!(
            "Remove it with:\n  for n in $(ip netns list | grep -o '^{prefix}[^ ]*'); do ip netns del $n; done; rm -f {}\n",
            cleanup::kept_mark(&self.id).display()
        ));
        text
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Sockets and threads keep a namespace alive even without its name.
        self.reactor.stop();
        let pods = self.pods();
        let all = pods.iter().map(|p| p.netns()).chain(self.nodes.iter().map(LabNode::netns));
        all.chain([self.outside.netns(), &self.net]).for_each(Netns::leave);
    }
}

fn require_root() -> Result<(), LabError> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(LabError::Unsupported("root is needed to create network namespaces".into()))
}

/// Writes a sysctl of the calling thread's network namespace, where the kernel has it.
fn sysctl(path: &str, value: &str) -> Result<(), LabError> {
    let path = Path::new("/proc/sys/net").join(path);
    if !path.exists() {
        return Ok(());
    }
    fs::write(&path, value).map_err(|error| match error.kind() {
        std::io::ErrorKind::ReadOnlyFilesystem | std::io::ErrorKind::PermissionDenied => {
            LabError::Unsupported(format!("{} cannot be written: {error}", path.display()))
        }
        _ => LabError::Io { what: format!("write {value} to {}", path.display()), source: error },
    })
}
