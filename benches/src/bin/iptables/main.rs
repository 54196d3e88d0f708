//! Measures the iptables datapath beside the classic layout of kube-proxy, in one run.
//!
//! Both are programmed in network namespaces of one lab, kubenet on node-a and the classic layout on node-b,
//! for the nf_tables variant and for the legacy one. Everything is removed at the end, also on Ctrl-C.
#![forbid(unsafe_code)]

mod args;
mod classic;
mod connect;
mod program;
mod restore;
mod world;

use std::process::ExitCode;

use args::{Args, Name, Part};
use clap::Parser;
use kubenet_benches::{Failure, report::Report};
use peak_alloc::PeakAlloc;

/// Counts what the datapath holds.
#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

fn main() -> ExitCode {
    let args = Args::parse();
    let mut report = Report::default();
    let ran = run(&args, &mut report);
    match report.finish(&args.out).and(ran) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("iptables: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs every part, also after one that failed. The first failure counts.
fn run(args: &Args, report: &mut Report) -> Result<(), Failure> {
    let names = args.variant.map_or(Name::ALL.to_vec(), |name| vec![name]);
    let mut ran = Ok(());
    let mut note = |part: Result<(), Failure>| {
        if let Err(error) = part {
            eprintln!("  not measured: {error}");
            if ran.is_ok() {
                ran = Err(error);
            }
        }
    };
    for name in names {
        if args.only != Some(Part::Connect) {
            note(program::run(report, name, args.quick));
        }
        if args.only != Some(Part::Program) {
            note(connect::run(report, name, args.quick));
        }
    }
    ran
}
