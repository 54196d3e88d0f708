use std::{net::SocketAddr, time::Duration};

use ipnet::IpNet;
use kubenet_core::{
    model::{InvalidObject, NodeInfo, NodePortAddresses},
    router::RouterOptions,
};

/// What an [`Agent`](super::Agent) needs to know.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Name of the Node object that this agent runs on.
    pub node_name: String,
    /// The ranges of all pods of the cluster. Without any, cluster-IP traffic is never masqueraded.
    pub cluster_cidrs: Vec<IpNet>,
    /// On which of the node's addresses node ports answer.
    pub node_port_addresses: NodePortAddresses,
    /// Masquerade all cluster-IP traffic.
    pub masquerade_all: bool,
    /// Let node ports answer on IPv4 loopback addresses, too.
    pub localhost_node_ports: bool,
    /// Serve the Services whose label `service.kubernetes.io/service-proxy-name` has this value, and no others.
    pub service_proxy_name: Option<String>,
    /// Where `/healthz` and `/livez` are served.
    pub healthz_bind_address: Option<SocketAddr>,
    /// Where `/metrics` is served.
    pub metrics_bind_address: Option<SocketAddr>,
    /// At most one update of the kernel per this time.
    pub min_sync_period: Duration,
    /// The node is unhealthy when an update waits for twice this time.
    pub sync_period: Duration,
    /// How often the kernel is read back, compared and repaired.
    pub audit_interval: Duration,
    /// Ask the server to stream lists. Where it does not, they are read by pages.
    pub streaming_lists: bool,
    /// Objects on a page.
    pub page_size: u32,
}

impl Config {
    /// The defaults for the node of this name.
    pub fn new(node_name: impl Into<String>) -> Self {
        let router = RouterOptions::default();
        Self {
            node_name: node_name.into(),
            cluster_cidrs: Vec::new(),
            node_port_addresses: NodePortAddresses::All,
            masquerade_all: false,
            localhost_node_ports: false,
            service_proxy_name: None,
            healthz_bind_address: None,
            metrics_bind_address: None,
            min_sync_period: router.min_interval,
            sync_period: router.sync_period,
            audit_interval: router.audit_interval,
            streaming_lists: true,
            page_size: 500,
        }
    }

    pub(super) fn router_options(&self) -> RouterOptions {
        let mut options = RouterOptions::default();
        options.min_interval = self.min_sync_period;
        options.sync_period = self.sync_period;
        options.audit_interval = self.audit_interval;
        options
    }

    /// Adds to what the Node object says what the command line says.
    pub(super) fn node(&self, node: NodeInfo) -> Result<NodeInfo, InvalidObject> {
        let mut builder = node
            .into_builder()
            .node_port_addresses(self.node_port_addresses.clone())
            .masquerade_all(self.masquerade_all)
            .localhost_node_ports(self.localhost_node_ports);
        for cidr in &self.cluster_cidrs {
            builder = builder.cluster_cidr(*cidr);
        }
        builder.build()
    }
}
