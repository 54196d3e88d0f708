//! Programming, by the number of Services, from declared objects: all of them into empty maps, one that changes,
//! and the memory for them in the kernel and in this process.

use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, MapData};
use kubenet_benches::{
    Failure, cluster,
    report::{Curves, Goal, Measure, Ratio, Record, Report},
    slice,
    stats::Samples,
};
use kubenet_core::cluster::{Change, Cluster};
use kubenet_ebpf::MapSizes;
use kubenet_testkit::lab::{Lab, LabConfig};
use peak_alloc::PeakAlloc;

use crate::{kubenet::Kubenet, short};

/// What this process holds, as it was asked of the allocator.
#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Services, endpoints of each, and how often they are programmed.
const SIZES: [(u32, u32, u32); 5] =
    [(1_000, 3, 5), (10_000, 3, 5), (20_000, 10, 5), (100_000, 3, 3), (1_000_000, 3, 2)];
const QUICK: [(u32, u32, u32); 2] = [(1_000, 3, 3), (2_000, 10, 3)];
const CHANGES: u32 = 100;
/// Most seconds for a first programming, by its size.
const GOALS: [((u32, u32), f64); 2] = [((20_000, 10), 0.25), ((1_000_000, 3), 4.0)];
/// Most microseconds for a change.
const CHANGE_GOAL: f64 = 100.0;

#[derive(Default)]
struct Lines {
    program: Curves,
    change: Curves,
    memory: Curves,
}

pub(crate) fn run(report: &mut Report, quick: bool) -> Result<(), Failure> {
    let mut lines = Lines::default();
    // Microseconds of a change in the smallest and in the largest table.
    let mut changes: Vec<(u32, Measure)> = Vec::new();
    for &(services, endpoints, rounds) in if quick { &QUICK[..] } else { &SIZES[..] } {
        eprintln!("{services} Services of {endpoints}");
        match size(report, &mut lines, services, endpoints, rounds) {
            Ok(changed) => changes.push((services, changed)),
            Err(error) => {
                // The other sizes go on; what is missing is seen to be missing.
                eprintln!("  not measured: {error}");
                let bench = format!("program_{services}x{endpoints}");
                report.add(Record::new(bench, 0.0, "s").with_value(Measure::Missing));
            }
        }
    }
    if let [(few, small), .., (many, large)] = changes[..] {
        let is = format!("the same with {} Services instead of {}", short(few), short(many));
        let record = Record::new("one_change", 0.0, "µs").with_value(large).against(small, is, Ratio::Cost);
        report.add(record.aim(Goal::ValueAtMost(CHANGE_GOAL)));
    }
    let plot = |curves: Curves, file: &str, title: &str, unit| curves.plot(file, title, "Services", unit);
    report.plot(plot(lines.program, "program", "First programming", "s"));
    report.plot(plot(lines.change, "one_change", "One endpoint changed", "µs"));
    report.plot(plot(lines.memory, "memory", "Memory for a Service", "bytes"));
    Ok(())
}

/// Microseconds of a change.
fn size(
    report: &mut Report,
    lines: &mut Lines,
    services: u32,
    endpoints: u32,
    rounds: u32,
) -> Result<Measure, Failure> {
    let mut cluster = cluster(services, endpoints)?;
    let begin = Instant::now();
    drop(cluster.take_delta());
    let resolved = begin.elapsed();
    let lab = Lab::new(LabConfig::new())?;
    let (mut programmed, mut baseline) = (Samples::default(), Samples::default());
    let mut last = None;
    for _ in 0..rounds {
        // The maps of the round before go first.
        drop(last.take());
        baseline.push(one_by_one(services, endpoints)?);
        let kubenet = Kubenet::start(&lab, sizes(services, endpoints), |builder| builder)?;
        let before = (kubenet.memory()?, MEMORY.current_usage());
        programmed.push(kubenet.replace(cluster.table().clone())?);
        let own = MEMORY.current_usage().saturating_sub(before.1);
        let maps = kubenet.memory()?.saturating_sub(before.0);
        last = Some((kubenet, maps, own));
    }
    let Some((kubenet, maps, own)) = last else { return Ok(Measure::Missing) };
    let size = format!("{services}x{endpoints}");
    let line = format!("{endpoints} endpoints");
    let took = Measure::from(programmed.median());
    let is = "the same entries in maps of the same shapes, each written by a call of its own";
    let mut record = Record::new(format!("program_{size}"), 0.0, "s").with_value(took);
    if let Some((_, most)) = GOALS.iter().find(|(of, _)| *of == (services, endpoints)) {
        record = record.aim(Goal::ValueAtMost(*most));
    }
    report.add(record.against(baseline.median(), is, Ratio::Cost));
    let both = took.number().map(|took| took + resolved.as_secs_f64());
    report.add(Record::new(format!("resolve_and_program_{size}"), 0.0, "s").with_value(both));
    lines.program.point(&format!("kubenet, {line}"), f64::from(services), took);
    lines.program.point(&format!("one by one, {line}"), f64::from(services), baseline.median());
    for (what, bytes) in [("kernel", maps as f64), ("own", own as f64)] {
        let each = bytes / f64::from(services);
        report.add(Record::new(format!("memory_{what}_per_service_{size}"), each, "bytes"));
        lines.memory.point(&format!("{what}, {line}"), f64::from(services), each);
    }
    let changed = changes(&mut cluster, &kubenet, services, endpoints)?;
    let record = Record::new(format!("one_change_{size}"), 0.0, "µs").with_value(changed);
    report.add(record.aim(Goal::ValueAtMost(CHANGE_GOAL)));
    lines.change.point(&line, f64::from(services), changed);
    Ok(changed)
}

/// Room for the Services, and for old sets beside new ones.
fn sizes(services: u32, endpoints: u32) -> MapSizes {
    let more = |wanted: u32| wanted + 4_096;
    let mut sizes = MapSizes::default();
    sizes.services = more(services);
    sizes.slots = more(services * endpoints);
    sizes.backends4 = more(services * endpoints);
    sizes.backends6 = 16;
    (sizes.connections, sizes.affinities, sizes.sockets) = (1_024, 1_024, 1_024);
    sizes
}

/// Declares another endpoint for one Service after another, until the kernel has it: the median in microseconds.
fn changes(
    cluster: &mut Cluster,
    kubenet: &Kubenet,
    services: u32,
    endpoints: u32,
) -> Result<Measure, Failure> {
    let mut samples = Samples::default();
    for turn in 0..CHANGES {
        // There and back again.
        let slice = slice(turn / 2 * 7_919 % services, endpoints, turn + 1)?;
        let begin = Instant::now();
        cluster.change(Change::EndpointSlice(slice));
        let delta = cluster.take_delta().ok_or("a change that changes nothing")?;
        let resolved = begin.elapsed();
        samples.push(resolved + kubenet.apply(delta)?);
    }
    Ok(Measure::from(samples.median()).times(1e6))
}

/// The entries of so many Services, of the sizes that the datapath's have, each by a call of its own.
fn one_by_one(services: u32, endpoints: u32) -> Result<Duration, Failure> {
    const NO_PREALLOC: u32 = 1;
    let backends = services * endpoints;
    let mut by_frontend = HashMap::<MapData, [u8; 8], [u8; 32]>::create(services, NO_PREALLOC)?;
    let mut names = HashMap::<MapData, u32, [u8; 196]>::create(services, NO_PREALLOC)?;
    let mut cluster_ips = HashMap::<MapData, u32, u32>::create(services, NO_PREALLOC)?;
    let mut slots = Array::<MapData, u32>::create(backends.max(1), 0)?;
    let mut by_id = Array::<MapData, [u8; 12]>::create(backends.max(1), 0)?;
    let begin = Instant::now();
    for i in 0..backends {
        by_id.set(i, [1; 12], 0)?;
        slots.set(i, i, 0)?;
    }
    for i in 0..services {
        names.insert(i, [1; 196], 0)?;
        by_frontend.insert(u64::from(i).to_ne_bytes(), [1; 32], 0)?;
        cluster_ips.insert(i, 1, 0)?;
    }
    Ok(begin.elapsed())
}
