//! Measures the eBPF datapath beside programs that do as little as possible, direct routing and iptables.
//!
//! Packets are test runs of the programs that the datapath has loaded: a driver of the benchmark's own restores
//! the packet before each round, and its cost is subtracted. The datapath's counters must say that every
//! packet took the path under test. What one runs and touches is counted in an interpreter.
//!
//! Everything is in network namespaces of labs and is removed at the end, also on Ctrl-C.
#![forbid(unsafe_code)]

mod args;
mod instructions;
mod kubenet;
mod packets;
mod program;
mod routes;
mod runs;
mod scale;
mod traffic;
mod xdp;

use std::process::ExitCode;

use args::{Args, Part};
use clap::Parser;
use kubenet_benches::{Failure, report::Report};

fn main() -> ExitCode {
    let args = Args::parse();
    let mut report = Report::default();
    let ran = run(&args, &mut report);
    match report.finish(&args.out).and(ran) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ebpf: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs every part, also after one that failed. The first failure counts.
fn run(args: &Args, report: &mut Report) -> Result<(), Failure> {
    let mut ran = Ok(());
    for part in Part::ALL.into_iter().filter(|part| args.only.is_none_or(|only| only == *part)) {
        let done = match part {
            Part::Instructions => instructions::run(report),
            Part::Packets => packets::run(report, args.quick),
            Part::Programming => program::run(report, args.quick),
            Part::Scale => scale::run(report, args.quick),
            Part::Traffic => traffic::run(report, args.quick),
        };
        if let Err(error) = done {
            eprintln!("  not measured: {error}");
            if ran.is_ok() {
                ran = Err(error);
            }
        }
    }
    ran
}

/// `1k`, `1m`.
fn short(number: u32) -> String {
    match number {
        n if n >= 1_000_000 && n % 1_000_000 == 0 => format!("{}m", n / 1_000_000),
        n if n >= 1_000 && n % 1_000 == 0 => format!("{}k", n / 1_000),
        n => n.to_string(),
    }
}
