//! What several programs ask about the node on their command lines.

use std::{collections::BTreeMap, net::IpAddr};

use clap::Args;
use ipnet::IpNet;
use kubenet_core::{
    kubernetes::{parse_address, parse_cidr},
    model::{InvalidObject, NodeInfo, NodePortAddresses},
};

/// The label that says which zone a node is in.
const ZONE: &str = "topology.kubernetes.io/zone";

/// The node that routes are resolved for.
#[derive(Clone, Debug, Args)]
pub struct NodeArgs {
    /// The node's name, as endpoints call it in nodeName.
    #[arg(long, value_name = "NAME")]
    pub node_name: String,
    /// An address of the node; the first of each family is the primary one. Without it, those of the Node of
    /// that name in the manifests.
    #[arg(long, value_name = "IP", value_delimiter = ',', value_parser = address)]
    pub node_ip: Vec<IpAddr>,
    /// A range that the pods of the cluster live in.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = cidr)]
    pub cluster_cidr: Vec<IpNet>,
    /// The node's addresses on which node ports answer: ranges, `primary` for the first of each family, or `all`.
    #[arg(long, value_name = "CIDR|primary|all", value_delimiter = ',')]
    pub node_port_addresses: Vec<String>,
    /// Labels of the node. topology.kubernetes.io/zone is its zone.
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = label)]
    pub node_labels: Vec<(String, String)>,
    /// Masquerade all traffic to cluster IPs.
    #[arg(long)]
    pub masquerade_all: bool,
    /// Let node ports answer on IPv4 loopback addresses, too.
    #[arg(long)]
    pub localhost_node_ports: bool,
}

fn address(text: &str) -> Result<IpAddr, String> {
    parse_address(text).map_err(|error| error.to_string())
}

fn cidr(text: &str) -> Result<IpNet, String> {
    parse_cidr(text).map_err(|error| error.to_string())
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be KEY=VALUE".into()),
    }
}

impl NodeArgs {
    /// The node, from the arguments and from what `declared` Nodes say of the one of that name.
    ///
    /// # Errors
    /// The argument that cannot be, in words.
    pub fn node(&self, declared: &[NodeInfo]) -> Result<NodeInfo, String> {
        let declared = declared.iter().find(|node| node.name() == self.node_name);
        let mut builder = NodeInfo::builder(&self.node_name);
        if let Some(zone) = declared.and_then(NodeInfo::zone) {
            builder = builder.zone(zone);
        }
        let labels: BTreeMap<_, _> = self.node_labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        if let Some(zone) = labels.get(ZONE) {
            builder = builder.zone(*zone);
        }
        let declared = declared.map_or(&[][..], NodeInfo::addresses);
        let addresses = if self.node_ip.is_empty() { declared } else { &self.node_ip };
        for address in addresses {
            builder = builder.address(*address);
        }
        for cidr in &self.cluster_cidr {
            builder = builder.cluster_cidr(*cidr);
        }
        let node = builder
            .node_port_addresses(self.chosen_addresses()?)
            .masquerade_all(self.masquerade_all)
            .localhost_node_ports(self.localhost_node_ports)
            .build();
        node.map_err(|InvalidObject { field, value, rule, .. }| {
            let argument = if field.starts_with("status.addresses") { "--node-ip" } else { "--node-name" };
            format!("{argument}: {value:?}: {rule}")
        })
    }

    fn chosen_addresses(&self) -> Result<NodePortAddresses, String> {
        let chosen = match &self.node_port_addresses[..] {
            [] => return Ok(NodePortAddresses::All),
            [word] if word == "all" => return Ok(NodePortAddresses::All),
            [word] if word == "primary" => return Ok(NodePortAddresses::Primary),
            several => several,
        };
        let cidrs = chosen.iter().map(|text| {
            parse_cidr(text).map_err(|_| {
                format!(
                    "--node-port-addresses: {text:?}: must be a CIDR, or `primary` or `all` alone with nothing beside it"
                )
            })
        });
        Ok(NodePortAddresses::Cidrs(cidrs.collect::<Result<_, _>>()?))
    }
}
