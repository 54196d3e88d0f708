//! How long it takes to program all of a cluster and to follow its changes, and what it holds in memory.

use std::time::{Duration, Instant};

use kubenet_benches::{
    Failure, machine,
    report::{Curves, Goal, Measure, Ratio, Record, Report},
    service, slice,
    stats::Samples,
};
use kubenet_core::cluster::Change;

use crate::{MEMORY, args::Name, world::World};

const SIZES: [(u32, u32); 6] = [(100, 1), (1_000, 1), (5_000, 1), (20_000, 1), (1_000, 10), (5_000, 10)];
const QUICK: [(u32, u32); 4] = [(100, 1), (1_000, 1), (2_000, 1), (200, 10)];
const SMALL: u32 = 100;
/// Changes of a burst.
const BURST: u32 = 100;
/// Changes that are measured one by one; their median counts.
const CHANGES: u32 = 15;
/// The baseline's changes are enough after this time.
const ENOUGH: Duration = Duration::from_secs(12);
const CLASSIC: &str = "the classic layout";

/// What the plots need.
#[derive(Default)]
struct Lines {
    first: Curves,
    change: Curves,
    kernel: Curves,
}

pub(crate) fn run(report: &mut Report, name: Name, quick: bool) -> Result<(), Failure> {
    let sizes = if quick { &QUICK[..] } else { &SIZES };
    let largest = sizes.iter().filter(|(_, endpoints)| *endpoints == 1).map(|(services, _)| *services).max();
    let mut lines = Lines::default();
    let mut small = World::new(name)?;
    small.kubenet.declare(objects(SMALL, 1)?);
    small.kubenet.program()?;
    for &(services, endpoints) in sizes {
        eprintln!("{} Services of {endpoints}, {}", services, name.as_str());
        let reference = (endpoints == 1 && Some(services) == largest).then_some(&mut small);
        if let Err(error) = size(report, &mut lines, name, (services, endpoints), reference, quick) {
            // The other sizes go on. What is missing meets no goal.
            eprintln!("  not measured: {error}");
            let missing = |bench: &str, unit| Record::new(bench, 0.0, unit).with_value(Measure::Missing);
            let first = format!("first_program_{services}x{endpoints}_{}", name.as_str());
            report.add_unless_there(aim_first(missing(&first, "s"), (services, endpoints), name));
            if endpoints == 1 && Some(services) == largest {
                let change = format!("one_change_{services}_vs_{SMALL}_{}", name.as_str());
                report.add_unless_there(aim_change(missing(&change, "ms"), name));
            }
        }
    }
    small.end(quick);
    let variant = name.as_str();
    let plot = |lines: Curves, file: &str, title: &str, unit| {
        lines.plot(format!("{file}_{variant}"), format!("{title}, iptables-{variant}"), "Services", unit)
    };
    report.plot(plot(lines.first, "first_program", "First programming (triangles: given up there)", "s"));
    report.plot(plot(lines.change, "one_change", "One endpoint changed", "ms"));
    report.plot(plot(lines.kernel, "memory_kernel", "Kernel memory", "MiB"));
    Ok(())
}

fn objects(services: u32, endpoints: u32) -> Result<Vec<Change>, Failure> {
    let mut changes = Vec::new();
    for number in 0..services {
        changes.push(Change::Service(service(number)?));
        changes.push(Change::EndpointSlice(slice(number, endpoints, 0)?));
    }
    Ok(changes)
}

fn size(
    report: &mut Report,
    lines: &mut Lines,
    name: Name,
    (services, endpoints): (u32, u32),
    small: Option<&mut World>,
    quick: bool,
) -> Result<(), Failure> {
    let mut world = World::new(name)?;
    world.kubenet.declare(objects(services, endpoints)?);
    let bench = |what: &str| format!("{what}_{services}x{endpoints}_{}", name.as_str());
    let per = if endpoints == 1 { "1 endpoint" } else { "10 endpoints" };
    let (ours, theirs) = (format!("kubenet, {per}"), format!("classic, {per}"));
    let x = f64::from(services);

    let empty = settled_memory()?;
    let heap = MEMORY.current_usage();
    let kubenet = world.kubenet.program()?;
    let heap = MEMORY.current_usage().saturating_sub(heap);
    let with_kubenet = settled_memory()?;
    let classic = world.baseline.program(world.kubenet.table())?;
    let first = Record::new(bench("first_program"), kubenet.as_secs_f64(), "s");
    let first = first.against(classic, CLASSIC, Ratio::Gain);
    report.add(aim_first(first, (services, endpoints), name));
    lines.first.point(&ours, x, kubenet.as_secs_f64());
    lines.first.point(&theirs, x, classic);
    if let Measure::AtLeast(_) = classic {
        world.baseline.program_in_chunks(world.kubenet.table())?;
    }
    let with_both = settled_memory()?;

    let mib = |more: u64, less: u64| more.checked_sub(less).map(|bytes| bytes as f64 / f64::from(1 << 20));
    let (kernel, kernel_classic) = (mib(with_kubenet, empty), mib(with_both, with_kubenet));
    report.add(Record::new(bench("memory_kernel"), 0.0, "MiB").with_value(kernel).against(
        kernel_classic,
        CLASSIC,
        Ratio::Gain,
    ));
    lines.kernel.point(&ours, x, kernel);
    lines.kernel.point(&theirs, x, kernel_classic);
    report.add(Record::new(bench("memory_user"), heap as f64 / f64::from(1 << 20), "MiB"));

    changes(report, lines, &mut world, small, (services, endpoints), name)?;
    world.end(quick);
    Ok(())
}

/// What the kernel holds, once it had a moment to free what it no longer needs.
fn settled_memory() -> Result<u64, Failure> {
    machine::settle(Duration::from_secs(2));
    Ok(machine::kernel_memory()?)
}

/// One change after another: kubenet's, that in the small cluster, the baseline's.
fn changes(
    report: &mut Report,
    lines: &mut Lines,
    world: &mut World,
    mut small: Option<&mut World>,
    (services, endpoints): (u32, u32),
    name: Name,
) -> Result<(), Failure> {
    let variant = name.as_str();
    let (mut ours, mut ours_small, mut classic) =
        (Samples::default(), Samples::default(), Samples::default());
    let begin = Instant::now();
    for turn in 1..=CHANGES {
        let number = turn * 7_919 % services;
        let change = world.changes(&[number], endpoints)?;
        ours.push(world.kubenet.update(change)?);
        if let Some(small) = small.as_deref_mut() {
            let change = small.changes(&[turn * 7 % SMALL], 1)?;
            ours_small.push(small.kubenet.update(change)?);
        }
        let routes: Vec<_> = world.kubenet.route(number).into_iter().collect();
        if (begin.elapsed() < ENOUGH || classic.is_empty())
            && let Measure::Known(took) = world.baseline.change(&routes)?
        {
            classic.push(Duration::from_secs_f64(took));
        }
    }
    let per = if endpoints == 1 { "1 endpoint" } else { "10 endpoints" };
    let ms = |samples: &Samples| Measure::from(samples.median()).times(1e3);
    lines.change.point(&format!("kubenet, {per}"), f64::from(services), ms(&ours));
    lines.change.point(&format!("classic, {per}"), f64::from(services), ms(&classic));
    let one = |bench: String| Record::new(bench, 0.0, "ms").with_value(ms(&ours));
    let size = format!("{services}x{endpoints}_{variant}");
    report.add(one(format!("one_change_{size}")).against(ms(&classic), CLASSIC, Ratio::Gain));
    if small.is_some() {
        let is = format!("the same with {SMALL} Services");
        let record = one(format!("one_change_{services}_vs_{SMALL}_{variant}"));
        report.add(aim_change(record.against(ms(&ours_small), is, Ratio::Cost), name));
    }
    let slow = classic.median().is_none_or(|seconds| seconds > 1.0);
    let (mut ours, mut classic) = (Samples::default(), Samples::default());
    let numbers: Vec<_> = (0..BURST.min(services)).map(|place| place * (services / BURST).max(1)).collect();
    for _ in 0..if slow { 1 } else { 3 } {
        let burst = world.changes(&numbers, endpoints)?;
        ours.push(world.kubenet.update(burst)?);
        let routes: Vec<_> = numbers.iter().filter_map(|number| world.kubenet.route(*number)).collect();
        if let Measure::Known(took) = world.baseline.change(&routes)? {
            classic.push(Duration::from_secs_f64(took));
        }
    }
    let record = Record::new(format!("burst_100_{size}"), 0.0, "ms").with_value(ms(&ours));
    report.add(record.against(ms(&classic), CLASSIC, Ratio::Gain));
    Ok(())
}

/// What the first programming of the largest clusters aims at.
fn aim_first(record: Record, size: (u32, u32), name: Name) -> Record {
    match (size, name) {
        ((5_000, 10) | (20_000, 1), Name::Nft) => record.aim(Goal::RatioAtLeast(40.0)),
        ((5_000, 10) | (20_000, 1), Name::Legacy) => record.aim(Goal::RatioAtLeast(1.0)),
        _ => record,
    }
}

/// What a change in the largest cluster aims at. The legacy variant writes whole tables.
fn aim_change(record: Record, name: Name) -> Record {
    match name {
        Name::Nft => record.aim(Goal::RatioAtMost(2.0)).aim(Goal::ValueAtMost(30.0)),
        Name::Legacy => record,
    }
}
