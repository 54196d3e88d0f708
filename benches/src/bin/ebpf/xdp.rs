//! One packet of each kind in XDP: it comes in and leaves again by one device.

use std::process::Command;

use kubenet_benches::{
    Failure,
    report::{Goal, Ratio, Record, Report},
};
use kubenet_ebpf::{Hook::Xdp, MapSizes, XdpMode, probe};
use kubenet_testkit::lab::{Lab, LabConfig, Netns, Node};

use crate::{
    kubenet::{Kubenet, XDP},
    packets::{MASQUERADED, NEW_ROUNDS, Path, ROUNDS, case, check_paths, over, to_node_port},
    routes,
    runs::{Family, Hook, Plan, Runs, SYN, Target},
};

pub(crate) const FLOOR: &str = "an XDP program with one hash lookup and DNAT";
const ROUTED: &str = "the same with a look-up of the route";

pub(crate) fn run(report: &mut Report, quick: bool) -> Result<(), Failure> {
    if let Some(why) = why_not()? {
        eprintln!("  not measured in XDP: {why}");
        return Ok(());
    }
    let lab = Lab::new(LabConfig::new())?;
    let netns = lab.node(Node::A).netns().clone();
    keep_neighbours(&netns)?;
    let mut sizes = MapSizes::default();
    sizes.connections = 1 << 20;
    let kubenet = Kubenet::start(&lab, sizes, |builder| builder.xdp(XdpMode::Native))?;
    kubenet.replace(routes::table(1, 1)?)?;
    let mut runs = Runs::new(netns, "eth0", 16)?;
    runs.fill_floor(0..1)?;
    let program = kubenet.program(XDP)?;
    let mut bench = Bench {
        kubenet: &kubenet,
        program: Target::Program(&program),
        runs: &mut runs,
        batches: if quick { 10 } else { 40 },
    };
    for (family, name) in [(Family::V4, "v4"), (Family::V6, "v6")] {
        let plan = Plan::default();
        let aim = |most| (family == Family::V4).then_some(Goal::RatioAtMost(most));
        bench.begin(family, plan)?;
        bench.add(report, &format!("known_flow_{name}"), family, plan, Path::MostKnown, aim(1.5))?;
        let reply = Plan { reply: true, ..plan };
        bench.add(report, &format!("reply_{name}"), family, reply, Path::MostKnown, aim(1.5))?;
        bench.add(report, &format!("new_flow_{name}"), family, new(plan), Path::MostNew, aim(6.0))?;
    }
    let plan = to_node_port();
    bench.begin(Family::V4, plan)?;
    bench.add(report, "node_port_known_v4", Family::V4, plan, Path::MostKnown, None)?;
    bench.add(report, "node_port_new_v4", Family::V4, new(plan), Path::MostNew, None)
}

/// Why there is no XDP here.
pub(crate) fn why_not() -> Result<Option<String>, Failure> {
    Ok(probe()?.missing.remove(&Xdp).map(|why| why.to_string()))
}

/// The outside host, in both families.
pub(crate) const GATEWAYS: [&str; 2] = ["10.89.0.100", "fd00:89::100"];
pub(crate) const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x64];

/// XDP asks for no neighbour: all ways lead to the outside host, and stay.
pub(crate) fn keep_neighbours(netns: &Netns) -> Result<(), Failure> {
    let mac = GATEWAY_MAC.map(|byte| format!("{byte:02x}")).join(":");
    for gateway in GATEWAYS {
        let entry = ["neigh", "replace", gateway, "lladdr", &mac, "dev", "eth0"];
        let output = netns.run(|| Command::new("ip").args(entry).output())??;
        if !output.status.success() {
            return Err(format!("ip neigh: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
    }
    Ok(())
}

/// First packets of flows that nobody has seen, above those of before.
pub(crate) fn new(plan: Plan) -> Plan {
    Plan { flows: 1 << 24, next: 1 << 20, flags: SYN, ..plan }
}

struct Bench<'a> {
    kubenet: &'a Kubenet,
    program: Target<'a>,
    runs: &'a mut Runs,
    batches: u32,
}

impl Bench<'_> {
    fn begin(&mut self, family: Family, plan: Plan) -> Result<(), Failure> {
        self.runs.run(Hook::Xdp, family, self.program, &Plan { flags: SYN, ..plan }, 1)?;
        Ok(())
    }

    /// Measures packets of a plan beside the floors.
    fn add(
        &mut self,
        report: &mut Report,
        name: &str,
        family: Family,
        plan: Plan,
        path: Path,
        aim: Option<Goal>,
    ) -> Result<(), Failure> {
        let rounds = match path {
            Path::MostNew if plan.clients == routes::OUTSIDE => MASQUERADED,
            Path::MostNew => NEW_ROUNDS,
            _ => ROUNDS,
        };
        // The floors know the way there alone, and the one with a route IPv4 alone.
        let there = Plan { reply: false, ..plan };
        let mut cases = vec![
            case(Hook::Xdp, family, Target::Nobody, plan),
            case(Hook::Xdp, family, self.program, plan),
            case(Hook::Xdp, family, Target::Nobody, there),
            case(Hook::Xdp, family, Target::Floor, there),
        ];
        if family == Family::V4 {
            cases.push(case(Hook::Xdp, family, Target::Routed, there));
        }
        let paths = [Path::NotOurs, path];
        let check = check_paths(self.kubenet, &paths, rounds);
        let costs = self.runs.compare(&mut cases, self.batches, rounds, check)?;
        let [driver, cost, driver_there, floor, routed @ ..] = &costs[..] else { return Ok(()) };
        let record = Record::new(name, over(cost, driver), "ns");
        let record = record.against(over(floor, driver_there), FLOOR, Ratio::Cost);
        report.add(match aim {
            Some(goal) => record.aim(goal),
            None => record,
        });
        for routed in routed {
            let record = Record::new(format!("{name}_vs_routed"), over(cost, driver), "ns");
            report.add(record.against(over(routed, driver_there), ROUTED, Ratio::Cost));
        }
        Ok(())
    }
}
