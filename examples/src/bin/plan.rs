//! What `IptablesDatapath` would apply for some manifests on a node, as input for `iptables-restore --noflush`.
//! Needs no root and changes nothing.
//!
//! ```sh
//! cargo run -p kubenet-examples --bin plan -- --manifests examples/manifests --node-name node-a \
//!     --node-ip 10.89.0.1 --cluster-cidr 10.244.0.0/16 --family ipv4
//! ```
#![forbid(unsafe_code)]

use std::{
    error::Error,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, ValueEnum};
use kubenet_core::{model::IpFamily, resolve::resolve, route::RouteTable};
use kubenet_examples::{manifests, node::NodeArgs};
use kubenet_iptables::IptablesDatapath;

/// Print the iptables-restore input that would be applied for the Services of some manifests on a node.
#[derive(Debug, Parser)]
#[command(name = "plan", version)]
struct Args {
    /// A manifest file, or a directory of them: Services, EndpointSlices and Nodes in YAML or JSON.
    #[arg(long, value_name = "PATH", required = true)]
    manifests: Vec<PathBuf>,
    #[command(flatten)]
    node: NodeArgs,
    /// Manifests that were applied before: print the change only.
    #[arg(long, value_name = "PATH")]
    previous: Vec<PathBuf>,
    /// Print this address family alone, without a headline.
    #[arg(long, value_name = "FAMILY", value_enum)]
    family: Option<Family>,
    /// First part of the names of all chains.
    #[arg(long, value_name = "PREFIX", default_value = "KUBE")]
    chain_prefix: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Family {
    Ipv4,
    Ipv6,
}

impl From<Family> for IpFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::Ipv4 => IpFamily::V4,
            Family::Ipv6 => IpFamily::V6,
        }
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plan: {error}");
            ExitCode::FAILURE
        }
    }
}

fn table(args: &Args, paths: &[PathBuf]) -> Result<RouteTable, Box<dyn Error>> {
    let manifests = manifests::load(paths)?;
    let node = args.node.node(&manifests.nodes)?;
    Ok(resolve(&node, &manifests.services, &manifests.slices))
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let before = match &args.previous[..] {
        [] => None,
        paths => Some(table(args, paths)?),
    };
    let table = table(args, &args.manifests)?;
    let mut builder = IptablesDatapath::builder().chain_prefix(&args.chain_prefix);
    if let Some(family) = args.family {
        builder = builder.families([family.into()]);
    }
    let preview = builder.preview(&table, before.as_ref())?;
    for failed in &preview.failed {
        eprintln!("not served: {}", failed.error);
    }
    if !table.node().loopback_node_ports.is_empty() && args.family != Some(Family::Ipv6) {
        eprintln!("needed besides: net.ipv4.conf.all.route_localnet=1, once this is applied");
    }
    let mut out = io::stdout().lock();
    for (family, text) in &preview.texts {
        if args.family.is_none() {
            let program = if *family == IpFamily::V4 { "iptables-restore" } else { "ip6tables-restore" };
            writeln!(out, "# {family}: {program} --noflush")?;
        }
        out.write_all(text.as_bytes())?;
    }
    Ok(())
}
