use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use kubenet_iptables::Variant;

/// Measures the iptables datapath beside the classic layout of kube-proxy, in one run.
#[derive(Debug, Parser)]
#[command(name = "iptables", version)]
pub(crate) struct Args {
    /// Where results.json and the plots go.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Smaller clusters and fewer repetitions: about three minutes.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only this variant of iptables.
    #[arg(long, value_name = "NAME")]
    pub(crate) variant: Option<Name>,
    /// Only this part.
    #[arg(long, value_name = "PART")]
    pub(crate) only: Option<Part>,
}

/// A variant of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Name {
    Nft,
    Legacy,
}

/// A part of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// First programming, changes and memory.
    Program,
    /// Connections.
    Connect,
}

impl Name {
    pub(crate) const ALL: [Name; 2] = [Name::Nft, Name::Legacy];

    /// As in the names of benches.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Name::Nft => "nft",
            Name::Legacy => "legacy",
        }
    }

    pub(crate) const fn variant(self) -> Variant {
        match self {
            Name::Nft => Variant::Nft,
            Name::Legacy => Variant::Legacy,
        }
    }
}
