//! The figures, as a table and as JSON.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use crate::load::Stats;

/// Scripts rely on the names of these fields.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) simulated: bool,
    pub(crate) runs: Vec<Run>,
    pub(crate) changes: Changes,
    pub(crate) swaps: Swaps,
    #[serde(skip)]
    pub(crate) errors: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Run {
    pub(crate) datapath: &'static str,
    pub(crate) program_ms: f64,
    pub(crate) requests: u64,
    pub(crate) failures: u64,
    pub(crate) from: Origins,
    pub(crate) backends: BTreeMap<String, u64>,
    pub(crate) connect_us: Percentiles,
}

#[derive(Debug, Serialize)]
pub(crate) struct Origins {
    pub(crate) pod: u64,
    pub(crate) node: u64,
    pub(crate) outside: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: u32,
    pub(crate) p99: u32,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Changes {
    pub(crate) count: u64,
    pub(crate) requests: u64,
    pub(crate) failures: u64,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Swaps {
    pub(crate) count: u64,
    pub(crate) requests: u64,
    pub(crate) failures: u64,
    pub(crate) connections_kept: u64,
    pub(crate) connections_cut: u64,
}

impl Run {
    pub(crate) fn new(datapath: &'static str, program_ms: f64, mut stats: Stats) -> Self {
        stats.connects.sort_unstable();
        let percentile = |p: usize| {
            let last = stats.connects.len().saturating_sub(1);
            stats.connects.get(last * p / 100).copied().unwrap_or_default()
        };
        let connect_us = Percentiles { p50: percentile(50), p99: percentile(99) };
        let [pod, node, outside] = stats.from;
        Self {
            datapath,
            program_ms,
            requests: stats.requests,
            failures: stats.failures,
            from: Origins { pod, node, outside },
            backends: stats.backends,
            connect_us,
        }
    }
}

impl Report {
    /// Whether every request was answered and every connection lived on.
    pub(crate) fn passed(&self) -> bool {
        self.errors.is_empty()
            && self.runs.iter().all(|run| run.failures == 0)
            && self.changes.failures == 0
            && self.swaps.failures == 0
            && self.swaps.connections_cut == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.simulated { "  (SIMULATED: no packet was sent)" } else { "" };
        writeln!(f, "\nResults{mark}")?;
        writeln!(
            f,
            "{:<16} {:>10} {:>9} {:>9}  {:>10} {:>10}  share per backend",
            "datapath", "programmed", "requests", "failures", "connect p50", "p99"
        )?;
        for run in &self.runs {
            let answered: u64 = run.backends.values().sum();
            let shares: Vec<_> = run
                .backends
                .iter()
                .map(|(name, count)| format!("{name} {:.1}%", *count as f64 * 100.0 / answered.max(1) as f64))
                .collect();
            writeln!(
                f,
                "{:<16} {:>7.1} ms {:>9} {:>9}  {:>8} us {:>7} us  {}",
                run.datapath,
                run.program_ms,
                run.requests,
                run.failures,
                run.connect_us.p50,
                run.connect_us.p99,
                shares.join(", ")
            )?;
        }
        let Changes { count, requests, failures } = self.changes;
        writeln!(
            f,
            "\nUnder load, endpoints removed and added: {count} changes, {requests} requests, {failures} failed"
        )?;
        let Swaps { count, requests, failures, connections_kept, connections_cut } = self.swaps;
        writeln!(
            f,
            "Under load, one datapath swapped for another: {count} swaps, {requests} requests, {failures} failed; \
             {connections_kept} open connections kept, {connections_cut} cut"
        )?;
        for error in &self.errors {
            writeln!(f, "  failed: {error}")?;
        }
        write!(f, "{}", if self.passed() { "No request failed." } else { "SOME REQUESTS FAILED." })
    }
}
