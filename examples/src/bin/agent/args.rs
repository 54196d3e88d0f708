use std::{fmt::Display, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Parser, ValueEnum};
use ipnet::IpNet;
use k8s_openapi::jiff::SignedDuration;
use kubenet_core::model::NodePortAddresses;
use kubenet_examples::agent::Config;
use tracing::level_filters::LevelFilter;

/// Routes Kubernetes Services on this node through the kernel.
///
/// Where kube-proxy has an option of the same name, it means the same.
#[derive(Debug, Parser)]
#[command(name = "agent", version)]
pub(crate) struct Args {
    /// What makes the kernel route. `auto` is eBPF where the kernel and the privileges allow it and it goes on
    /// when the agent is down, else iptables; `memory` routes nothing, for trials.
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub(crate) datapath: Kind,
    /// A kubeconfig file. Without it, the credentials of the pod that the agent runs in.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Address of the API server, instead of the one that goes with the credentials. A pod's own is the cluster
    /// IP of the Service `kubernetes`, which nobody routes before this agent runs.
    #[arg(long, value_name = "URL")]
    pub(crate) apiserver: Option<String>,
    /// Name of this node's Node object.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: String,
    /// The ranges of all pods of the cluster. Without them cluster-IP traffic is never masqueraded.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    cluster_cidr: Vec<IpNet>,
    /// On which of the node's addresses node ports answer: ranges, `primary` or `all`.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', default_value = "all")]
    node_port_addresses: Vec<NodePorts>,
    /// Masquerade all cluster-IP traffic, that of pods, too.
    #[arg(long)]
    masquerade_all: bool,
    /// Let node ports answer on IPv4 loopback addresses, too.
    #[arg(long)]
    localhost_node_ports: bool,
    /// Serve the Services whose label service.kubernetes.io/service-proxy-name has this value, and no others.
    #[arg(long, value_name = "NAME")]
    service_proxy_name: Option<String>,
    /// Where /healthz and /livez are served; empty for nowhere.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:10256")]
    healthz_bind_address: Bind,
    /// Where /metrics is served; empty for nowhere.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10249")]
    metrics_bind_address: Bind,
    /// At most one update of the kernel per this time.
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = duration)]
    min_sync_period: Duration,
    /// The node is unhealthy when an update has waited for twice this time.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    sync_period: Duration,
    /// How often the kernel is read back, compared and repaired.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    audit_interval: Duration,
    /// eBPF: an interface through which clients outside and other nodes reach this node. Without it, those of
    /// the default routes.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) external_interface: Vec<String>,
    /// eBPF: the cgroup (version 2) whose processes reach Services through their sockets.
    #[arg(long, value_name = "PATH", default_value = "/sys/fs/cgroup")]
    pub(crate) cgroup: PathBuf,
    /// eBPF: where programs and maps are kept while no agent runs, on a BPF file system. Where there is none, they
    /// end with the agent.
    #[arg(long, value_name = "PATH", default_value = "/sys/fs/bpf/kubenet")]
    pub(crate) pin_dir: PathBuf,
    /// eBPF: how the names of the host ends of the pods' interfaces begin.
    #[arg(long, value_name = "PREFIX")]
    pub(crate) pod_interface_prefix: Option<String>,
    /// Least level of messages in the log.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(crate) log_level: LevelFilter,
}

/// A datapath that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Auto,
    Ebpf,
    Iptables,
    Memory,
}

/// An element of `--node-port-addresses`.
#[derive(Clone, Debug)]
enum NodePorts {
    All,
    Primary,
    Cidr(IpNet),
}

impl FromStr for NodePorts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(NodePorts::All),
            "primary" => Ok(NodePorts::Primary),
            cidr => {
                cidr.parse().map(NodePorts::Cidr).map_err(|_| "must be a CIDR, `primary` or `all`".into())
            }
        }
    }
}

/// An address to listen on, or none.
#[derive(Clone, Copy, Debug)]
struct Bind(Option<SocketAddr>);

impl FromStr for Bind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        text.parse().map(|address| Self(Some(address))).map_err(|_| "must be ADDRESS:PORT or empty".into())
    }
}

/// `500ms`, `30s`, `1m30s`.
fn duration(text: &str) -> Result<Duration, String> {
    let say = |error: &dyn Display| format!("must be a time such as 500ms, 30s or 1m30s: {error}");
    let duration: SignedDuration = text.parse().map_err(|error| say(&error))?;
    Duration::try_from(duration).map_err(|error| say(&error))
}

impl Args {
    /// What the agent itself needs to know.
    pub(crate) fn config(&self) -> Result<Config, String> {
        let mut config = Config::new(self.node_name.as_str());
        config.cluster_cidrs.clone_from(&self.cluster_cidr);
        config.node_port_addresses = self.node_ports()?;
        config.masquerade_all = self.masquerade_all;
        config.localhost_node_ports = self.localhost_node_ports;
        config.service_proxy_name.clone_from(&self.service_proxy_name);
        config.healthz_bind_address = self.healthz_bind_address.0;
        config.metrics_bind_address = self.metrics_bind_address.0;
        config.min_sync_period = self.min_sync_period;
        config.sync_period = self.sync_period;
        config.audit_interval = self.audit_interval;
        Ok(config)
    }

    fn node_ports(&self) -> Result<NodePortAddresses, String> {
        match self.node_port_addresses.as_slice() {
            [] | [NodePorts::All] => Ok(NodePortAddresses::All),
            [NodePorts::Primary] => Ok(NodePortAddresses::Primary),
            many => {
                let cidrs = many.iter().map(|one| match one {
                    NodePorts::Cidr(cidr) => Ok(*cidr),
                    NodePorts::All | NodePorts::Primary => {
                        Err("--node-port-addresses: `all` and `primary` stand alone".to_owned())
                    }
                });
                Ok(NodePortAddresses::Cidrs(cidrs.collect::<Result<_, _>>()?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(more: &[&str]) -> Result<Config, String> {
        let all = ["agent", "--node-name", "node-a"].iter().chain(more);
        Args::try_parse_from(all).map_err(|error| error.to_string())?.config()
    }

    #[test]
    fn the_defaults_are_kube_proxys_where_it_has_them() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.healthz_bind_address, Some("0.0.0.0:10256".parse().unwrap()));
        assert_eq!(config.metrics_bind_address, Some("127.0.0.1:10249".parse().unwrap()));
        assert_eq!(config.sync_period, Duration::from_secs(30));
        assert_eq!(config.node_port_addresses, NodePortAddresses::All);
    }

    #[test]
    fn what_is_given_is_taken() {
        let config = parse(&[
            "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56",
            "--node-port-addresses=10.0.0.0/8",
            "--min-sync-period=1m30s",
            "--healthz-bind-address=",
        ])
        .unwrap();
        assert_eq!(config.cluster_cidrs.len(), 2);
        let cidrs = NodePortAddresses::Cidrs(vec!["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(config.node_port_addresses, cidrs);
        assert_eq!(config.min_sync_period, Duration::from_secs(90));
        assert_eq!(config.healthz_bind_address, None);
        let config = parse(&["--node-port-addresses=primary"]).unwrap();
        assert_eq!(config.node_port_addresses, NodePortAddresses::Primary);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for bad in [
            "--cluster-cidr=10.244.0.0/33",
            "--node-port-addresses=eth0",
            "--node-port-addresses=primary,10.0.0.0/8",
            "--min-sync-period=soon",
            "--sync-period=-5s",
            "--metrics-bind-address=10249",
            "--datapath=ipvs",
        ] {
            assert!(parse(&[bad]).is_err(), "{bad}");
        }
    }
}
