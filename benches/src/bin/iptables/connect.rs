//! What the first packet of a connection costs, and one of an established connection, by the number of Services
//! and by the place of the one that is dialled.

use std::ops::Range;

use kubenet_benches::{
    Failure,
    connects::{Connects, Dialer},
    frontend,
    report::{Curves, Goal, Measure, Ratio, Record, Report},
    stats::Samples,
};
use kubenet_testkit::lab::Node;

use crate::{args::Name, world::World};

const SIZES: [u32; 6] = [1, 10, 1_000, 5_000, 10_000, 20_000];
const QUICK: [u32; 3] = [1, 10, 1_000];
/// Each round makes a few connections to each target in turn, so that noise hits all of them.
const ROUNDS: usize = 60;
const IN_A_ROUND: usize = 40;

/// Services that are added at once.
const STEP: u32 = 1_000;

/// What is dialled, and what that cost.
struct Target<'a> {
    dialer: &'a Dialer,
    number: u32,
    cost: Connects,
    /// CPU time of a packet that follows.
    packet: Samples,
}

pub(crate) fn run(report: &mut Report, name: Name, quick: bool) -> Result<(), Failure> {
    let sizes = if quick { &QUICK[..] } else { &SIZES };
    let rounds = if quick { ROUNDS / 3 } else { ROUNDS };
    // Those that are dialled have an endpoint that listens.
    let real: Vec<u32> = sizes.iter().flat_map(|size| places(*size)).map(|(_, number)| number).collect();
    let mut only = World::new(name)?;
    grow(&mut only, 0..1, &real)?;
    let only_dialers = (only.kubenet_dialer()?, only.baseline_dialer()?);
    let mut world = World::new(name)?;
    let dialers = (world.kubenet_dialer()?, world.baseline_dialer()?);
    let mut lines = Curves::default();
    let mut there = 0;
    for &size in sizes {
        eprintln!("connections with {size} Services, {}", name.as_str());
        grow(&mut world, there..size, &real)?;
        there = size;
        let mut targets: Vec<_> = [(&only_dialers.0, 0), (&only_dialers.1, 0)]
            .into_iter()
            .chain(places(size).into_iter().flat_map(|(_, n)| [(&dialers.0, n), (&dialers.1, n)]))
            .map(|(dialer, number)| Target {
                dialer,
                number,
                cost: Connects::default(),
                packet: Samples::default(),
            })
            .collect();
        // Neighbours and caches.
        for target in &targets {
            target.dialer.connect(frontend(target.number), 5)?;
        }
        for _ in 0..rounds {
            for target in &mut targets {
                let at = frontend(target.number);
                target.cost.extend(target.dialer.connect(at, IN_A_ROUND)?);
                target.packet.extend(target.dialer.packet_cpu(at, IN_A_ROUND)?);
            }
        }
        record(report, &mut lines, size, name, &targets);
    }
    let title = format!("A connection, by the place of its Service, iptables-{}", name.as_str());
    report.plot(lines.plot(format!("connect_{}", name.as_str()), title, "Services", "µs, median"));
    world.end(quick);
    only.end(quick);
    Ok(())
}

/// Names of places among so many Services, and the numbers of the Services there.
fn places(size: u32) -> Vec<(&'static str, u32)> {
    match size {
        1 => vec![("only", 0)],
        _ => vec![("first", 0), ("middle", size / 2), ("last", size - 1)],
    }
}

/// Adds Services on both nodes, in steps: what they take is of no interest.
fn grow(world: &mut World, numbers: Range<u32>, real: &[u32]) -> Result<(), Failure> {
    for first in numbers.clone().step_by(STEP as usize) {
        let some = first..numbers.end.min(first + STEP);
        let ours = world.objects(Node::A, some, real)?;
        if first == 0 {
            world.kubenet.declare(ours);
            world.kubenet.program()?;
        } else {
            world.kubenet.update(ours)?;
        }
    }
    let theirs = world.objects(Node::B, numbers, real)?;
    theirs.into_iter().for_each(|change| world.declared.change(change));
    world.declared.take_delta();
    world.baseline.program_in_chunks(world.declared.table())
}

/// The first two targets are the only Services of their own worlds, then both layouts for each place.
fn record(report: &mut Report, lines: &mut Curves, size: u32, name: Name, targets: &[Target<'_>]) {
    let [only, only_classic, rest @ ..] = targets else { return };
    let us = |seconds: Option<f64>| Measure::from(seconds).times(1e6);
    let p50 = |target: &Target<'_>| us(target.cost.latency.median());
    let p99 = |target: &Target<'_>| us(target.cost.latency.percentile(99.0));
    let cpu = |target: &Target<'_>| us(target.cost.cpu.median());
    let packet = |target: &Target<'_>| us(target.packet.median());
    for (pair, (place, _)) in rest.chunks(2).zip(places(size)) {
        let [ours, classic] = pair else { continue };
        let bench = format!("connect_{place}_of_{size}_{}", name.as_str());
        let add = |report: &mut Report, bench: &str, value, baseline: Measure, is: &str, ratio| {
            let record = Record::new(bench, 0.0, "µs").with_value(value).against(baseline, is, ratio);
            let aims = (size, place) == (20_000, "last")
                && bench.starts_with("connect_last_of_20000_")
                && is.starts_with("the only");
            report.add(if aims { record.aim(Goal::RatioAtMost(1.1)) } else { record });
        };
        let (alone, classic_is) = ("the only one of 1 Service, median", "the classic layout, median");
        add(report, &bench, p50(ours), p50(only), alone, Ratio::Cost);
        add(report, &format!("{bench}_vs_classic"), p50(ours), p50(classic), classic_is, Ratio::Gain);
        add(report, &format!("{bench}_p99"), p99(ours), p99(classic), "the classic layout, p99", Ratio::Gain);
        add(report, &format!("{bench}_cpu"), cpu(ours), cpu(classic), "the classic layout, CPU", Ratio::Gain);
        let packets = "a packet of an established connection, the classic layout, CPU";
        add(report, &format!("{bench}_packet_cpu"), packet(ours), packet(classic), packets, Ratio::Gain);
        // The only one is the first, and the last.
        let lines_of = if place == "only" { &["first", "middle", "last"][..] } else { &[place] };
        for place in lines_of {
            lines.point(&format!("kubenet, {place}"), f64::from(size), p50(ours));
            lines.point(&format!("classic, {place}"), f64::from(size), p50(classic));
        }
    }
    let is = "the classic layout's only one, in the same run";
    let bench = format!("connect_reference_with_{size}_{}", name.as_str());
    report.add(Record::new(bench, 0.0, "µs").with_value(p50(only)).against(
        p50(only_classic),
        is,
        Ratio::Gain,
    ));
}
