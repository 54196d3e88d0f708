use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Route Kubernetes Services through the kernel, and watch real requests arrive.
#[derive(Debug, Parser)]
#[command(name = "demo", version)]
pub(crate) struct Args {
    /// A manifest file, or a directory of them: Services and EndpointSlices in YAML or JSON.
    #[arg(long, value_name = "PATH", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests"))]
    pub(crate) manifests: PathBuf,
    /// Datapaths to show, in this order. Without it, all that this machine can run.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) datapath: Option<Vec<Kind>>,
    /// Requests in each part of the demo.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(100..))]
    pub(crate) requests: u64,
    /// Write the figures to this file as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Leave the lab up at the end, programmed by the first datapath, and print how to look into it.
    #[arg(long)]
    pub(crate) keep: bool,
}

/// A datapath that the demo knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    IptablesNft,
    IptablesLegacy,
    Ebpf,
    Memory,
}

impl Kind {
    pub(crate) const REAL: [Kind; 3] = [Kind::IptablesNft, Kind::IptablesLegacy, Kind::Ebpf];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Kind::IptablesNft => "iptables-nft",
            Kind::IptablesLegacy => "iptables-legacy",
            Kind::Ebpf => "ebpf",
            Kind::Memory => "memory",
        }
    }
}

impl Args {
    /// The datapaths asked for, or all that are real.
    pub(crate) fn kinds(&self) -> Result<Vec<Kind>, String> {
        let mut kinds: Vec<Kind> = Vec::new();
        for &kind in self.datapath.as_deref().unwrap_or(&Kind::REAL) {
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        if kinds.contains(&Kind::Memory) && kinds.iter().any(|kind| *kind != Kind::Memory) {
            return Err("--datapath: memory is a simulation and cannot run beside a real datapath".into());
        }
        Ok(kinds)
    }
}
