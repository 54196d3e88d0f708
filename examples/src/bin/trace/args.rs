use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use kubenet_examples::node::NodeArgs;

/// What would happen to this packet? Says for described flows what the Services of some manifests mean on a
/// node: who may answer, whether the source address is replaced, and which rules decided.
#[derive(Debug, Parser)]
#[command(name = "trace", version)]
pub(crate) struct Args {
    /// A manifest file, or a directory of them: Services, EndpointSlices and Nodes in YAML or JSON.
    #[arg(long, value_name = "PATH", required = true)]
    pub(crate) manifests: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Who is asked. All but memory need root: each flow is sent through the datapath of the kernel, in network
    /// namespaces made for it.
    #[arg(long, value_name = "NAME", value_enum, default_value_t = Kind::Memory)]
    pub(crate) datapath: Kind,
    /// Flows, one JSON object a line: {"from": IP, "to": IP, "port": N, "protocol": "TCP"|"UDP"|"SCTP"}. `-` is
    /// standard input. Each is answered by a line of JSON.
    #[arg(long, value_name = "FILE|-", conflicts_with_all = ["from", "to", "port", "protocol"])]
    pub(crate) flows: Option<PathBuf>,
    /// How many connections of a flow are tried to see whom a datapath of the kernel may pick. It is less where
    /// enough was seen, and more only while a backend that the routes allow has not been seen. The reference in
    /// memory says it at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) samples: u32,
    /// The client's address.
    #[arg(long, value_name = "IP", required_unless_present = "flows")]
    pub(crate) from: Option<String>,
    /// The address that it dials.
    #[arg(long, value_name = "IP", required_unless_present = "flows")]
    pub(crate) to: Option<String>,
    /// The port that it dials.
    #[arg(long, value_name = "N", required_unless_present = "flows")]
    pub(crate) port: Option<u16>,
    /// TCP, UDP or SCTP.
    #[arg(long, default_value = "TCP")]
    pub(crate) protocol: String,
}

/// A datapath that can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// The reference, in memory.
    Memory,
    /// iptables, in the variant that this machine uses.
    Iptables,
    /// iptables, nf_tables.
    IptablesNft,
    /// iptables, legacy.
    IptablesLegacy,
    /// eBPF.
    Ebpf,
}
