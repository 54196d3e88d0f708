//! Packets of random flows, by the number of Services.

use kubenet_benches::{
    Failure,
    report::{Curves, Measure, Ratio, Record, Report},
};
use kubenet_ebpf::MapSizes;
use kubenet_testkit::lab::{Lab, LabConfig, Node};

use crate::{
    kubenet::{FROM_POD, Kubenet},
    packets::{Path, check_paths},
    routes,
    runs::{Case, Family, Hook, Plan, REDIRECT, Runs, SYN, Target},
    short,
};

const SIZES: [u32; 5] = [1, 1_000, 10_000, 100_000, 1_000_000];
const QUICK: [u32; 3] = [1, 1_000, 10_000];
/// Packets of a batch, and batches.
const ROUNDS: u32 = 500_000;
const BATCHES: u32 = 5;

pub(crate) fn run(report: &mut Report, quick: bool) -> Result<(), Failure> {
    let (sizes, flows) = if quick { (&QUICK[..], 100_000) } else { (&SIZES[..], 1_000_000) };
    let mut lines = Curves::default();
    for &services in sizes {
        eprintln!("{services} Services");
        if let Err(error) = size(report, &mut lines, services, flows) {
            // The other sizes go on; what is missing is seen to be missing.
            eprintln!("  not measured: {error}");
            let bench = format!("random_{}_services_{}_flows", short(services), short(flows));
            report.add(Record::new(bench, 0.0, "ns").with_value(Measure::Missing));
        }
    }
    let title = format!("A packet of one of {} known flows, at random", short(flows));
    report.plot(lines.plot("random_packets", title, "Services", "ns"));
    Ok(())
}

fn size(report: &mut Report, lines: &mut Curves, services: u32, flows: u32) -> Result<(), Failure> {
    let lab = Lab::new(LabConfig::new())?;
    let mut sizes = MapSizes::default();
    // Room for the others of the table, too.
    let more = |wanted: u32| wanted + 4_096;
    (sizes.services, sizes.slots, sizes.backends4) = (more(services), more(services), more(services));
    sizes.backends6 = 16;
    // None may make room for another.
    sizes.connections = flows * 5 / 4;
    (sizes.affinities, sizes.sockets) = (1_024, 1_024);
    let kubenet = Kubenet::start(&lab, sizes, |builder| builder)?;
    kubenet.replace(routes::table(services, 1)?)?;
    let mut runs = Runs::new(lab.node(Node::A).netns().clone(), "eth0", more(services))?;
    runs.fill_floor(0..services)?;
    packets(report, lines, &kubenet, &mut runs, services, flows)
}

fn packets(
    report: &mut Report,
    lines: &mut Curves,
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
    lines.point("kubenet", f64::from(services), known);
    lines.point("one lookup and DNAT", f64::from(services), floor);
    Ok(())
}
