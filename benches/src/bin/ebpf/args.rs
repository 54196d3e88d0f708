use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Measures the eBPF datapath beside programs that do as little as possible, direct routing and iptables.
#[derive(Debug, Parser)]
#[command(name = "ebpf", version)]
pub(crate) struct Args {
    /// Where results.json and the plots go.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Smaller clusters and fewer repetitions: about a minute.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only this part.
    #[arg(long, value_name = "PART")]
    pub(crate) only: Option<Part>,
}

/// A part of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// What a packet runs and touches, counted.
    Instructions,
    /// One packet again and again.
    Packets,
    /// From declared objects to the kernel, changes and memory, by the number of Services.
    Programming,
    /// Random packets, by the number of Services.
    Scale,
    /// Connections through network namespaces.
    Traffic,
}

impl Part {
    pub(crate) const ALL: [Part; 5] =
        [Part::Instructions, Part::Packets, Part::Programming, Part::Scale, Part::Traffic];
}
