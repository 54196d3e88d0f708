//! By the number of Services: time to program them and to change one, memory in the kernel, and packets of
//! random flows.

use std::time::Instant;

use kubenet_benches::{
    Failure,
    report::{Curves, Measure, Ratio, Record, Report},
    stats::Samples,
};
use kubenet_core::route::Revision;
use kubenet_ebpf::MapSizes;
use kubenet_testkit::lab::{Lab, LabConfig, Node};

use crate::{
    kubenet::{FROM_POD, Kubenet},
    packets::{Path, check_paths},
    routes,
    runs::{Case, Family, Hook, Plan, REDIRECT, Runs, SYN, Target},
};

const SIZES: [(u32, u32); 7] =
    [(1, 1), (1_000, 1), (10_000, 1), (100_000, 1), (20_000, 10), (1_000_000, 1), (1_000_000, 3)];
const QUICK: [(u32, u32); 4] = [(1, 1), (1_000, 1), (10_000, 1), (2_000, 10)];
const CHANGES: u32 = 30;
/// Packets of a batch, and batches.
const ROUNDS: u32 = 500_000;
const BATCHES: u32 = 5;

/// What the plots need.
#[derive(Default)]
struct Lines {
    packets: Curves,
    program: Curves,
    change: Curves,
}

pub(crate) fn run(report: &mut Report, quick: bool) -> Result<(), Failure> {
    let (sizes, flows) = if quick { (&QUICK[..], 100_000) } else { (&SIZES[..], 1_000_000) };
    let mut lines = Lines::default();
    // Milliseconds of a change in the smallest and in the largest table.
    let mut changes: Vec<(u32, Measure)> = Vec::new();
    for &(services, endpoints) in sizes {
        eprintln!("{services} Services of {endpoints}");
        let changed = match size(report, &mut lines, services, endpoints, flows) {
            Ok(changed) => changed,
            Err(error) => {
                // The other sizes go on; what is missing is seen to be missing.
                eprintln!("  not measured: {error}");
                let bench = format!("program_{services}x{endpoints}");
                report.add(Record::new(bench, 0.0, "s").with_value(Measure::Missing));
                continue;
            }
        };
        if endpoints == 1 && services > 1 {
            changes.push((services, changed));
        }
    }
    if let ([(few, small), ..], [.., (many, large)]) = (&changes[..], &changes[..]) {
        let is = format!("the same with {} Services instead of {}", short(*few), short(*many));
        report.add(Record::new("one_change", 0.0, "µs").with_value(*large).against(*small, is, Ratio::Cost));
    }
    let plot = |curves: Curves, file: &str, title: &str, unit| curves.plot(file, title, "Services", unit);
    let flows = short(flows);
    let title = format!("A packet of one of {flows} known flows, at random");
    report.plot(plot(lines.packets, "random_packets", &title, "ns"));
    report.plot(plot(lines.program, "program", "First programming", "s"));
    report.plot(plot(lines.change, "one_change", "One endpoint changed", "µs"));
    Ok(())
}

/// `1k`, `1m`.
fn short(number: u32) -> String {
    match number {
        n if n >= 1_000_000 && n % 1_000_000 == 0 => format!("{}m", n / 1_000_000),
        n if n >= 1_000 && n % 1_000 == 0 => format!("{}k", n / 1_000),
        n => n.to_string(),
    }
}

fn size(
    report: &mut Report,
    lines: &mut Lines,
    services: u32,
    endpoints: u32,
    flows: u32,
) -> Result<Measure, Failure> {
    let lab = Lab::new(LabConfig::new())?;
    let mut sizes = MapSizes::default();
    // Room for the others of the table, and for old sets beside new ones.
    let more = |wanted: u32| wanted + 4_096;
    sizes.services = more(services);
    sizes.slots = more(services * endpoints);
    sizes.backends4 = more(services * endpoints);
    sizes.backends6 = 16;
    // An entry for each direction, and none may make room for another.
    sizes.connections = flows * 5 / 2;
    (sizes.affinities, sizes.sockets) = (1_024, 1_024);
    let kubenet = Kubenet::start(&lab, sizes, |builder| builder)?;
    // What is beside the Services is there before them.
    kubenet.replace(routes::table(0, 1)?)?;
    let empty = kubenet.memory()?;
    let table = routes::table(services, endpoints)?;
    let took = kubenet.replace(table)?.as_secs_f64();
    let full = kubenet.memory()?;
    let mut runs = Runs::new(lab.node(Node::A).netns().clone(), "eth0", more(services))?;
    let begin = Instant::now();
    runs.fill_floor(0..services)?;
    let floor = begin.elapsed().as_secs_f64();
    let size = format!("{services}x{endpoints}");
    let line = format!("kubenet, {endpoints} endpoints");
    if services > 1 {
        let is = "one hash map with as many entries, written one by one";
        report.add(Record::new(format!("program_{size}"), took, "s").against(floor, is, Ratio::Cost));
        lines.program.point(&line, f64::from(services), took);
        lines.program.point("one hash map", f64::from(services), floor);
        let bytes = full.saturating_sub(empty) as f64 / f64::from(services);
        report.add(Record::new(format!("memory_per_service_{size}"), bytes, "bytes"));
        report.add(Record::new(format!("memory_maps_{size}"), full as f64 / f64::from(1 << 20), "MiB"));
    }
    let changed = changes(&kubenet, services, endpoints)?;
    if services > 1 {
        report.add(Record::new(format!("one_change_{size}"), 0.0, "µs").with_value(changed));
        lines.change.point(&line, f64::from(services), changed);
    }
    if endpoints == 1 {
        packets(report, lines, &kubenet, &mut runs, services, flows)?;
    }
    Ok(changed)
}

/// Changes one Service after another. Microseconds.
fn changes(kubenet: &Kubenet, services: u32, endpoints: u32) -> Result<Measure, Failure> {
    let mut samples = Samples::default();
    let mut revision = Revision(1);
    for turn in 0..CHANGES {
        let number = (turn / 2 * 7_919) % services;
        // There and back again.
        samples.push(kubenet.apply(routes::change(revision, number, endpoints, turn % 2))?);
        revision = revision.next();
    }
    Ok(Measure::from(samples.median()).times(1e6))
}

fn packets(
    report: &mut Report,
    lines: &mut Lines,
    kubenet: &Kubenet,
    runs: &mut Runs,
    services: u32,
    flows: u32,
) -> Result<(), Failure> {
    let program = kubenet.program(FROM_POD)?;
    let of = |target, plan, expect| Case { hook: Hook::Tc, family: Family::V4, target, plan, expect };
    let floor_is = "a TC program with one lookup in a hash map of as many Services, and DNAT";
    let name = format!("{}_services_{}_flows", short(services), short(flows));

    // All flows, one after the other: each is new.
    let syn = Plan { flows, services, flags: SYN, ..Plan::default() };
    let batches = 10;
    let rounds = flows / batches;
    let mut cases = [
        of(Target::Nobody, syn, None),
        of(Target::Floor, syn, Some(REDIRECT)),
        of(Target::Program(&program), syn, Some(REDIRECT)),
    ];
    let paths = [Path::NotOurs, Path::NotOurs, Path::New];
    let costs = runs.compare(&mut cases, batches, rounds, check_paths(kubenet, &paths, rounds))?;
    let over = |place: usize, costs: &[crate::runs::Cost]| (costs[place].least() - costs[0].least()).max(0.0);
    let record = Record::new(format!("new_flow_{name}"), over(2, &costs), "ns");
    report.add(record.against(over(1, &costs), floor_is, Ratio::Cost));

    let random = Plan { random: true, ..Plan { flows, services, ..Plan::default() } };
    let mut cases = [
        of(Target::Nobody, random, None),
        of(Target::Floor, random, Some(REDIRECT)),
        of(Target::Program(&program), random, Some(REDIRECT)),
    ];
    let paths = [Path::NotOurs, Path::NotOurs, Path::Known];
    let costs = runs.compare(&mut cases, BATCHES, ROUNDS, check_paths(kubenet, &paths, ROUNDS))?;
    let (floor, known) = (over(1, &costs), over(2, &costs));
    report.add(Record::new(format!("random_{name}"), known, "ns").against(floor, floor_is, Ratio::Cost));
    lines.packets.point("kubenet", f64::from(services), known);
    lines.packets.point("one lookup and DNAT", f64::from(services), floor);
    Ok(())
}
