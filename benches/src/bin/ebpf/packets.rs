//! One packet of each kind, again and again, beside the floor.

use aya::programs::ProgramFd;
use kubenet_benches::{
    Failure,
    report::{Ratio, Record, Report},
};
use kubenet_ebpf::MapSizes;
use kubenet_testkit::lab::{Lab, LabConfig, Node};

use crate::{
    kubenet::{FROM_EXTERNAL, FROM_POD, Kubenet},
    routes,
    runs::{ACK, Case, Cost, Family, Hook, Plan, REDIRECT, Runs, SYN, Target, XDP_TX, node_address},
    xdp,
};

/// What the counters must say of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// No program of the datapath runs.
    NotOurs,
    Known,
    New,
    /// The same of XDP, which leaves a packet to the stack now and then.
    MostKnown,
    MostNew,
}

/// A check for [`Runs::compare`]: every packet of a batch took the path under test.
pub(crate) fn check_paths<'a>(
    kubenet: &'a Kubenet,
    paths: &'a [Path],
    rounds: u32,
) -> impl FnMut(usize, bool) -> Result<(), Failure> + 'a {
    let mut before = [0, 0];
    move |place, done| {
        let path = paths.get(place).copied().unwrap_or(Path::NotOurs);
        if path == Path::NotOurs {
            return Ok(());
        }
        let now = kubenet.counted()?;
        let grew = [now[0] - before[0], now[1] - before[1]];
        before = now;
        let rounds = u64::from(rounds);
        let expected = match path {
            Path::Known | Path::MostKnown => [rounds, 0],
            _ => [0, rounds],
        };
        // One in ten seconds, and no batch takes so long.
        let missing = [expected[0].wrapping_sub(grew[0]), expected[1].wrapping_sub(grew[1])];
        let some = matches!(path, Path::MostKnown | Path::MostNew);
        if done && missing.iter().sum::<u64>() > u64::from(some) {
            return Err(format!(
                "of {rounds} packets, {} were of known flows and {} of new ones",
                grew[0], grew[1]
            )
            .into());
        }
        Ok(())
    }
}

pub(crate) fn run(report: &mut Report, quick: bool) -> Result<(), Failure> {
    eprintln!("one packet again and again");
    let lab = Lab::new(LabConfig::new())?;
    let mut sizes = MapSizes::default();
    sizes.connections = 1 << 20;
    let kubenet = Kubenet::start(&lab, sizes, |builder| builder)?;
    kubenet.replace(routes::table(1, 1)?)?;
    let mut runs = Runs::new(lab.node(Node::A).netns().clone(), "eth0", 16)?;
    runs.fill_floor(0..1)?;
    let bench = Bench {
        kubenet: &kubenet,
        from_pod: kubenet.program(FROM_POD)?,
        from_external: kubenet.program(FROM_EXTERNAL)?,
        batches: if quick { 10 } else { 40 },
    };
    floors(&bench, report, &mut runs)?;
    for (family, name) in [(Family::V4, "v4"), (Family::V6, "v6")] {
        established(&bench, report, &mut runs, family, name)?;
        new_flows(&bench, report, &mut runs, family, name)?;
    }
    node_port(&bench, report, &mut runs)?;
    drop(kubenet);
    xdp::run(report, quick)
}

struct Bench<'a> {
    kubenet: &'a Kubenet,
    from_pod: ProgramFd,
    from_external: ProgramFd,
    batches: u32,
}

pub(crate) const ROUNDS: u32 = 100_000;
/// Of new flows: so many that the table of connections has room for those of all batches.
pub(crate) const NEW_ROUNDS: u32 = 10_000;
/// Of new flows that are masqueraded: so many that ports stay easy to find.
pub(crate) const MASQUERADED: u32 = 2_000;
pub(crate) const FLOOR: &str = "a TC program with one hash lookup and DNAT";

pub(crate) fn case(hook: Hook, family: Family, target: Target<'_>, plan: Plan) -> Case<'_> {
    let expect = match (target, hook) {
        (Target::Nobody | Target::Empty, _) => None,
        (_, Hook::Tc) => Some(REDIRECT),
        (_, Hook::Xdp) => Some(XDP_TX),
    };
    Case { hook, family, target, plan, expect }
}

/// What is over the driver's own cost.
pub(crate) fn over(cost: &Cost, driver: &Cost) -> f64 {
    (cost.least() - driver.least()).max(0.0)
}

fn floors(bench: &Bench<'_>, report: &mut Report, runs: &mut Runs) -> Result<(), Failure> {
    let plan = Plan::default();
    for (hook, name) in [(Hook::Tc, "tc"), (Hook::Xdp, "xdp")] {
        let mut cases = [
            case(hook, Family::V4, Target::Nobody, plan),
            case(hook, Family::V4, Target::Empty, plan),
            case(hook, Family::V4, Target::Floor, plan),
            case(hook, Family::V6, Target::Nobody, plan),
            case(hook, Family::V6, Target::Floor, plan),
        ];
        let costs = runs.compare(&mut cases, bench.batches, ROUNDS, |_, _| Ok(()))?;
        let [driver, empty, four, driver6, six] = &costs[..] else { continue };
        report.add(Record::new(format!("driver_{name}"), driver.least(), "ns"));
        let is = "the driver's own cost, which is subtracted";
        for (what, cost, driver) in
            [("empty", empty, driver), ("floor_v4", four, driver), ("floor_v6", six, driver6)]
        {
            let record = Record::new(format!("{what}_{name}"), over(cost, driver), "ns");
            report.add(record.against(driver.least(), is, Ratio::Cost));
        }
    }
    let targets = [Target::Nobody, Target::Floor, Target::Routed];
    let mut cases = targets.map(|target| case(Hook::Tc, Family::V4, target, plan));
    let costs = runs.compare(&mut cases, bench.batches, ROUNDS, |_, _| Ok(()))?;
    let [driver, floor, routed] = &costs[..] else { return Ok(()) };
    let is = "the floor without a look-up of the route";
    let record = Record::new("floor_v4_tc_routed", over(routed, driver), "ns");
    report.add(record.against(over(floor, driver), is, Ratio::Cost));
    Ok(())
}

/// Packets of a flow that is known, both ways.
fn established(
    bench: &Bench<'_>,
    report: &mut Report,
    runs: &mut Runs,
    family: Family,
    name: &str,
) -> Result<(), Failure> {
    let plan = Plan::default();
    let syn = Plan { flags: SYN, ..plan };
    runs.run(Hook::Tc, family, Target::Program(&bench.from_pod), &syn, 1)?;
    let reply = Plan { reply: true, ..plan };
    let mut cases = vec![
        case(Hook::Tc, family, Target::Nobody, plan),
        case(Hook::Tc, family, Target::Floor, plan),
        case(Hook::Tc, family, Target::Program(&bench.from_pod), plan),
        case(Hook::Tc, family, Target::Program(&bench.from_external), reply),
    ];
    if family == Family::V4 {
        cases.push(case(Hook::Tc, family, Target::Routed, plan));
    }
    let paths = [Path::NotOurs, Path::NotOurs, Path::Known, Path::Known];
    let check = check_paths(bench.kubenet, &paths, ROUNDS);
    let costs = runs.compare(&mut cases, bench.batches, ROUNDS, check)?;
    let [driver, floor, known, reply, routed @ ..] = &costs[..] else { return Ok(()) };
    let mut add = |bench: String, cost: &Cost, baseline: &Cost, is: &str| {
        let record = Record::new(bench, over(cost, driver), "ns");
        report.add(record.against(over(baseline, driver), is, Ratio::Cost));
    };
    for (what, cost) in [("known_flow", known), ("reply", reply)] {
        add(format!("{what}_{name}_tc"), cost, floor, FLOOR);
        for routed in routed {
            add(format!("{what}_{name}_tc_vs_routed"), cost, routed, "the same with a look-up of the route");
        }
    }
    Ok(())
}

/// First packets, each of a flow that nobody has seen.
fn new_flows(
    bench: &Bench<'_>,
    report: &mut Report,
    runs: &mut Runs,
    family: Family,
    name: &str,
) -> Result<(), Failure> {
    // Above the flow of before.
    let plan = Plan { flows: 1 << 24, next: 1 << 20, flags: SYN, ..Plan::default() };
    let program = Target::Program(&bench.from_pod);
    let costs = beside_floor(bench, runs, family, program, plan, NEW_ROUNDS, Path::New)?;
    report.add(Record::new(format!("new_flow_{name}_tc"), over(&costs[2], &costs[0]), "ns").against(
        over(&costs[1], &costs[0]),
        FLOOR,
        Ratio::Cost,
    ));
    Ok(())
}

/// A known flow of a client outside to the node port.
pub(crate) fn to_node_port() -> Plan {
    Plan {
        clients: routes::OUTSIDE,
        service: node_address(),
        port: routes::NODE_PORT.get(),
        flags: ACK,
        ..Plan::default()
    }
}

fn node_port(bench: &Bench<'_>, report: &mut Report, runs: &mut Runs) -> Result<(), Failure> {
    let known = to_node_port();
    let program = Target::Program(&bench.from_external);
    runs.run(Hook::Tc, Family::V4, program, &Plan { flags: SYN, ..known }, 1)?;
    let new = Plan { flows: 1 << 24, next: 1 << 20, flags: SYN, ..known };
    for (bench_name, plan, rounds, path) in [
        ("node_port_known_v4_tc", known, ROUNDS, Path::Known),
        ("node_port_new_v4_tc", new, MASQUERADED, Path::New),
    ] {
        let costs = beside_floor(bench, runs, Family::V4, program, plan, rounds, path)?;
        let record = Record::new(bench_name, over(&costs[2], &costs[0]), "ns");
        report.add(record.against(over(&costs[1], &costs[0]), FLOOR, Ratio::Cost));
    }
    Ok(())
}

/// Costs of the driver, the floor and the program.
fn beside_floor(
    bench: &Bench<'_>,
    runs: &mut Runs,
    family: Family,
    program: Target<'_>,
    plan: Plan,
    rounds: u32,
    path: Path,
) -> Result<Vec<Cost>, Failure> {
    let targets = [Target::Nobody, Target::Floor, program];
    let mut cases = targets.map(|target| case(Hook::Tc, family, target, plan));
    let paths = [Path::NotOurs, Path::NotOurs, path];
    runs.compare(&mut cases, bench.batches, rounds, check_paths(bench.kubenet, &paths, rounds))
}
