use std::collections::{BTreeMap, BTreeSet};

use aya::programs::ProgramInfo;
use kubenet_benches::{
    Failure,
    interpret::{self, Line, Map, Node, Outcome, Program, Trace, Way},
};
use nix::time::{ClockId, clock_gettime};

use super::Kind;

/// A program in the interpreter.
#[derive(Debug)]
pub(super) struct Subject {
    program: Program,
    maps: Vec<Map>,
    node: Node,
    device: u32,
}

/// What a packet costs, on average.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub(super) instructions: f64,
    /// Branches that the verifier removes.
    pub(super) removed: f64,
    pub(super) atomics: f64,
    /// Of helpers; those that are no calls are not among them.
    pub(super) calls: f64,
    pub(super) lines: f64,
    /// Those that no packet before it had touched.
    pub(super) cold: f64,
    pub(super) maps: BTreeMap<String, OfMap>,
    pub(super) helpers: BTreeMap<String, f64>,
    /// Instructions by function, and by line of the source.
    pub(super) functions: BTreeMap<String, f64>,
    pub(super) source: BTreeMap<String, f64>,
}

/// What of it is a map's.
#[derive(Clone, Debug, Default)]
pub(super) struct OfMap {
    pub(super) lookups: f64,
    pub(super) lines: f64,
    pub(super) cold: f64,
    /// Lines of the source that touch memory first.
    pub(super) by: BTreeSet<String>,
}

impl Subject {
    /// A program that is loaded, from its object.
    pub(super) fn new(object: &[u8], name: &str, loaded: &ProgramInfo, way: Way) -> Result<Self, Failure> {
        let program = Program::read(object, name)?;
        let maps = interpret::maps(&program, loaded)?;
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?;
        let clock_ns = now.tv_sec().unsigned_abs() * 1_000_000_000 + now.tv_nsec().unsigned_abs();
        // A jiffy is some thousand packets long.
        let node = Node { clock_ns, jiffies: 1, random: 0x9e37_79b9_7f4a_7c15, way: Some(way) };
        Ok(Self { program, maps, node, device: way.device })
    }

    /// Runs a packet.
    pub(super) fn run(&mut self, kind: &Kind, frame: &[u8]) -> Result<Outcome, Failure> {
        let Self { program, maps, node, device } = self;
        Ok(interpret::run(program, kind.context(), maps, node, frame, *device)?)
    }

    /// Runs packets, and counts those from number `warm` on. Of those before, XDP may leave one to the stack.
    pub(super) fn count(&mut self, kind: &Kind, frames: &[Vec<u8>], warm: usize) -> Result<Counts, Failure> {
        let mut touched = BTreeSet::new();
        let mut counts = Counts::default();
        let share = 1.0 / (frames.len().saturating_sub(warm).max(1)) as f64;
        for (number, frame) in frames.iter().enumerate() {
            let outcome = self.run(kind, frame)?;
            if number >= warm {
                if outcome.verdict != kind.sent_on() {
                    let verdict = outcome.verdict;
                    return Err(format!("{}: packet {number} is answered {verdict}", kind.name).into());
                }
                self.add(&mut counts, &outcome.trace, &touched, share);
            }
            touched.extend(outcome.trace.lines.into_keys());
        }
        Ok(counts)
    }

    fn add(&self, counts: &mut Counts, trace: &Trace, touched: &BTreeSet<Line>, share: f64) {
        counts.instructions += trace.instructions() as f64 * share;
        counts.removed += trace.removed as f64 * share;
        counts.atomics += trace.atomics as f64 * share;
        counts.lines += trace.lines.len() as f64 * share;
        for (at, times) in trace.ran.iter().enumerate().filter(|(_, times)| **times > 0) {
            let times = *times as f64 * share;
            *counts.functions.entry(self.program.function_of(at).to_owned()).or_default() += times;
            *counts.source.entry(self.line(at)).or_default() += times;
        }
        for (line, at) in &trace.lines {
            let of = counts.maps.entry(self.map(line.map).to_owned()).or_default();
            of.lines += share;
            if !touched.contains(line) {
                of.cold += share;
                counts.cold += share;
            }
            of.by.insert(self.line(*at));
        }
        let mut in_place = 0;
        for (map, times) in &trace.lookups {
            counts.maps.entry(self.map(*map).to_owned()).or_default().lookups += *times as f64 * share;
            if self.maps.get(*map).is_some_and(|map| map.shape.kind.is_array()) {
                in_place += times;
            }
        }
        for (id, times) in &trace.calls {
            *counts.helpers.entry(interpret::name(*id)).or_default() += *times as f64 * share;
            if interpret::is_inline(*id) {
                in_place += times;
            }
        }
        counts.calls += (trace.calls.values().sum::<u64>() - in_place) as f64 * share;
    }

    fn map(&self, place: usize) -> &str {
        self.maps.get(place).map_or("", |map| &map.shape.name)
    }

    /// Where in the source an instruction is.
    fn line(&self, at: usize) -> String {
        self.program.line_of(at).map_or_else(String::new, |(file, line)| format!("{file}:{line}"))
    }
}
