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

use std::{process::ExitCode, time::Instant};

use args::{Args, Name, Part};
use clap::Parser;
use kubenet_benches::{Failure, report::Report};
use peak_alloc::PeakAlloc;

/// Counts what the datapath holds.
#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

fn main() -> ExitCode {
    let args = Args::parse();
    let begin = Instant::now();
    let mut report = Report::default();
    let ran = run(&args, &mut report);
    println!("{}", report.table());
    let written = report.write(&args.out);
    println!(
        "{} figures in {:.0} s; also in {}",
        report.records().len(),
        begin.elapsed().as_secs_f64(),
        args.out.display()
    );
    match ran.and(written) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("iptables: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args, report: &mut Report) -> Result<(), Failure> {
    let names = args.variant.map_or(Name::ALL.to_vec(), |name| vec![name]);
    for name in names {
        if args.only != Some(Part::Connect) {
            program::run(report, name, args.quick)?;
        }
        if args.only != Some(Part::Program) {
            connect::run(report, name, args.quick)?;
        }
    }
    Ok(())
}
