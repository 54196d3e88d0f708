//! The main job, end to end: Kubernetes manifests in, real traffic load-balanced by the kernel out.
//!
//! Builds two nodes, pods and an outside client from network namespaces, starts a server in each pod, and for
//! each datapath programs the kernel and drives requests through it. Then, under load, it removes and adds
//! endpoints, and swaps one datapath for another. The application code is the same for every datapath:
//! `lab_world.rs` has the only lines that differ, where a datapath is built.
#![forbid(unsafe_code)]

mod args;
#[cfg(target_os = "linux")]
mod lab_world;
mod load;
mod report;
mod scenario;
mod simulated;
mod stage;
mod world;

use std::{error::Error, process::ExitCode, sync::Arc};

use clap::Parser;
use kubenet_core::kubernetes::Manifests;

use self::{
    args::{Args, Kind},
    report::Report,
    scenario::Scenario,
    simulated::SimulatedWorld,
    stage::Stage,
    world::World,
};

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::ERROR)
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

type Setting = (Arc<dyn World>, Vec<Kind>);

/// Whether no request failed.
fn run(args: &Args) -> Result<bool, Box<dyn Error>> {
    let manifests = Manifests::load(&args.manifests)?;
    for notice in &manifests.notices {
        eprintln!("note: {notice}");
    }
    let stage = Stage::plan(&manifests)?;
    let kinds = args.kinds()?;
    let real = if kinds.contains(&Kind::Memory) { None } else { real_world(&stage, &kinds, args)? };
    let (world, kinds) = match real {
        Some(real) => real,
        None => (Arc::new(SimulatedWorld::new(&stage)?) as Arc<dyn World>, vec![Kind::Memory]),
    };
    let report: Report = Scenario::new(&stage, &manifests, &world, args.requests).run(&kinds)?;
    println!("{report}");
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        println!("Written to {}", path.display());
    }
    if args.keep {
        world.keep(&manifests, kinds.first().copied())?;
    }
    Ok(report.passed())
}

/// The lab and the datapaths that this machine can run; `None`, after saying why, where it cannot have a lab.
#[cfg(target_os = "linux")]
fn real_world(stage: &Stage, kinds: &[Kind], args: &Args) -> Result<Option<Setting>, Box<dyn Error>> {
    match lab_world::LabWorld::build(stage)? {
        Ok(world) => {
            let kinds = world.usable(kinds, args.datapath.is_some())?;
            Ok(Some((Arc::new(world), kinds)))
        }
        Err(reason) => {
            say_simulated(&reason);
            Ok(None)
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn real_world(_: &Stage, _: &[Kind], _: &Args) -> Result<Option<Setting>, Box<dyn Error>> {
    say_simulated("only Linux has them");
    Ok(None)
}

fn say_simulated(reason: &str) {
    eprintln!("No kernel datapath can be shown: {reason}.");
    eprintln!("The same scenario runs on the in-memory datapath instead, as a simulation.");
}
