//! What a packet of each kind runs and touches: the programs in an interpreter, on copies of a real datapath's maps.
//!
//! No time is measured here, so this is the same on every machine, and explains what the part `packets` measures.

mod count;
mod table;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, Ipv6Addr};

use count::{Counts, Subject};
use kubenet_benches::{
    Failure,
    interpret::{Context, Way},
    report::{Ratio, Record, Report},
};
use kubenet_ebpf::{MapSizes, XdpMode};
use kubenet_testkit::lab::{Lab, LabConfig, Node};

use crate::{
    kubenet::{FROM_EXTERNAL, FROM_POD, Kubenet, XDP},
    packets::{self, to_node_port},
    routes,
    runs::{self, Family, Hook, Plan, REDIRECT, Runs, SYN, Target, XDP_TX},
    xdp::{self, keep_neighbours, new},
};

static DATAPATH: &[u8] = aya::include_bytes_aligned!("../../../../kubenet-ebpf/src/kubenet.bpf.o");

/// Packets before those that are counted: so many that they touch all of what is small, such as the locks of the
/// index of flows.
const WARM: usize = 1_024;
/// And those: a multiple of what CPUs are given pairs of flows in.
const COUNTED: usize = 64;
/// Of the lab's devices.
const MTU: u16 = 1500;

/// Packets of one kind.
#[derive(Clone, Copy, Debug)]
struct Kind {
    name: &'static str,
    hook: Hook,
    /// Name of the program, in the object and in the kernel.
    program: (&'static str, &'static str),
    family: Family,
    plan: Plan,
}

impl Kind {
    fn context(&self) -> Context {
        match self.hook {
            Hook::Xdp => Context::Xdp,
            Hook::Tc => Context::Tc,
        }
    }

    /// What a program answers that sends the packet on.
    fn sent_on(&self) -> u32 {
        match self.hook {
            Hook::Xdp => XDP_TX,
            Hook::Tc => REDIRECT,
        }
    }
}

/// All kinds that are counted, by the names of their benchmarks.
fn kinds() -> Vec<Kind> {
    const ON_XDP: (&str, &str) = ("kubenet_xdp", XDP);
    const OF_POD: (&str, &str) = ("kubenet_from_pod", FROM_POD);
    const OF_OUTSIDE: (&str, &str) = ("kubenet_from_external", FROM_EXTERNAL);
    let known = Plan::default();
    let reply = Plan { reply: true, ..known };
    let at_node = to_node_port();
    let kind = |name, hook, program, family, plan| Kind { name, hook, program, family, plan };
    let (four, six) = (Family::V4, Family::V6);
    vec![
        kind("known_flow_v4", Hook::Xdp, ON_XDP, four, known),
        kind("reply_v4", Hook::Xdp, ON_XDP, four, reply),
        kind("new_flow_v4", Hook::Xdp, ON_XDP, four, new(known)),
        kind("known_flow_v6", Hook::Xdp, ON_XDP, six, known),
        kind("reply_v6", Hook::Xdp, ON_XDP, six, reply),
        kind("new_flow_v6", Hook::Xdp, ON_XDP, six, new(known)),
        kind("node_port_known_v4", Hook::Xdp, ON_XDP, four, at_node),
        kind("node_port_new_v4", Hook::Xdp, ON_XDP, four, new(at_node)),
        kind("known_flow_v4_tc", Hook::Tc, OF_POD, four, known),
        kind("reply_v4_tc", Hook::Tc, OF_OUTSIDE, four, reply),
        kind("new_flow_v4_tc", Hook::Tc, OF_POD, four, new(known)),
        kind("known_flow_v6_tc", Hook::Tc, OF_POD, six, known),
        kind("reply_v6_tc", Hook::Tc, OF_OUTSIDE, six, reply),
        kind("new_flow_v6_tc", Hook::Tc, OF_POD, six, new(known)),
        kind("node_port_known_v4_tc", Hook::Tc, OF_OUTSIDE, four, at_node),
        kind("node_port_new_v4_tc", Hook::Tc, OF_OUTSIDE, four, new(at_node)),
    ]
}

pub(crate) fn run(report: &mut Report) -> Result<(), Failure> {
    eprintln!("what a packet runs and touches");
    if let Some(why) = xdp::why_not()? {
        eprintln!("  not counted: {why}");
        return Ok(());
    }
    let lab = Lab::new(LabConfig::new())?;
    let mut bench = Bench::new(&lab)?;
    for kind in kinds() {
        let (ours, floor) = bench.count(&kind)?;
        add(report, &kind, &ours, &floor);
    }
    Ok(())
}

fn add(report: &mut Report, kind: &Kind, ours: &Counts, floor: &Counts) {
    let is = if kind.hook == Hook::Xdp { xdp::FLOOR } else { packets::FLOOR };
    for (what, unit, value, baseline) in [
        ("instructions", "instructions", ours.instructions, floor.instructions),
        ("calls", "calls", ours.calls, floor.calls),
        ("lines", "lines", ours.lines, floor.lines),
        ("cold_lines", "lines", ours.cold, floor.cold),
    ] {
        let record = Record::new(format!("{what}_{}", kind.name), value, unit);
        report.add(record.against(baseline, is, Ratio::Cost));
    }
    eprint!("{}", table::render(ours));
}

/// A datapath, and the kernel to run its programs in beside the interpreter.
struct Bench {
    kubenet: Kubenet,
    runs: Runs,
    way: Way,
}

impl Bench {
    fn new(lab: &Lab) -> Result<Self, Failure> {
        let netns = lab.node(Node::A).netns().clone();
        keep_neighbours(&netns)?;
        let mut sizes = MapSizes::default();
        sizes.connections = 1 << 20;
        let kubenet = Kubenet::start(lab, sizes, |builder| builder.xdp(XdpMode::Native))?;
        kubenet.replace(routes::table(1, 1)?)?;
        let mut runs = Runs::new(netns, "eth0", 16)?;
        runs.fill_floor(0..1)?;
        let (device, source) = runs.device();
        let [four, six] = xdp::GATEWAYS;
        let gateway4 = four.parse::<Ipv4Addr>()?.octets();
        let gateway6 = six.parse::<Ipv6Addr>()?.octets();
        let way = Way { device, source, destination: xdp::GATEWAY_MAC, mtu: MTU, gateway4, gateway6 };
        Ok(Self { kubenet, runs, way })
    }

    /// Has the kernel know a kind's flow, if it is one that is known.
    fn begin(&mut self, kind: &Kind) -> Result<(), Failure> {
        if kind.plan.flags == SYN {
            return Ok(());
        }
        let program = self.kubenet.program(kind.program.1)?;
        let plan = Plan { flags: SYN, reply: false, ..kind.plan };
        self.runs.run(kind.hook, kind.family, Target::Program(&program), &plan, 1)?;
        Ok(())
    }

    /// The program that packets of a kind meet, with what its maps hold now.
    fn subject(&self, kind: &Kind) -> Result<Subject, Failure> {
        let (name, loaded) = kind.program;
        Subject::new(DATAPATH, name, &self.kubenet.loaded(loaded)?, self.way)
    }

    /// One of the benchmark's own programs for a kind: the driver or the floor.
    fn own(&self, kind: &Kind, what: &str) -> Result<Subject, Failure> {
        let hook = if kind.hook == Hook::Xdp { "xdp" } else { "tc" };
        let name = format!("{hook}_{what}");
        Subject::new(runs::OBJECT, &name, &self.runs.loaded(&name)?, self.way)
    }

    /// The packets of a plan, of the flows from its first one on. The driver is interpreted, too: a test run for each
    /// packet took half a minute in all.
    fn frames(&mut self, kind: &Kind, plan: &Plan, count: usize) -> Result<Vec<Vec<u8>>, Failure> {
        self.runs.set_plan(plan)?;
        let mut driver = self.own(kind, "driver")?;
        let frame = self.runs.frame(kind.family)?;
        (0..count).map(|_| Ok(driver.run(kind, &frame)?.frame)).collect()
    }

    /// Counts what a packet of a kind costs, and what the floor's does.
    fn count(&mut self, kind: &Kind) -> Result<(Counts, Counts), Failure> {
        self.begin(kind)?;
        let frames = self.frames(kind, &kind.plan, WARM + COUNTED)?;
        let ours = self.subject(kind)?.count(kind, &frames, WARM)?;
        // The floor knows the way there alone.
        let there = Plan { reply: false, ..kind.plan };
        let there = self.frames(kind, &there, WARM + COUNTED)?;
        let floor = self.own(kind, "floor")?.count(kind, &there, WARM)?;
        Ok((ours, floor))
    }
}
