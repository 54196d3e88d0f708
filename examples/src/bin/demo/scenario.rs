//! What is shown, in order. Knows nothing of the kernel: the same lines run for every datapath.

use std::{
    error::Error,
    io::{IsTerminal, Write},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use futures::executor::block_on;
use kubenet_core::{
    datapath::Close,
    kubernetes::Manifests,
    model::{EndpointSlice, Protocol},
    router::ServiceRouter,
};

use crate::{
    args::Kind,
    load::{Load, Stats},
    report::{Changes, Report, Run, Swaps},
    stage::Stage,
    world::{Connection, From, World},
};

const CHANGES: usize = 20;
const SWAPS: usize = 10;
/// Connections opened before each swap, from each client.
const CONNECTIONS: usize = 2;
/// Longer than the demo: no open connection is cut by the deadline.
const DRAIN_FOR: Duration = Duration::from_secs(600);

pub(crate) struct Scenario<'a> {
    stage: &'a Stage,
    manifests: &'a Manifests,
    world: &'a Arc<dyn World>,
    requests: u64,
}

impl<'a> Scenario<'a> {
    pub(crate) fn new(
        stage: &'a Stage,
        manifests: &'a Manifests,
        world: &'a Arc<dyn World>,
        requests: u64,
    ) -> Self {
        Self { stage, manifests, world, requests }
    }

    pub(crate) fn run(&self, kinds: &[Kind]) -> Result<Report, Box<dyn Error>> {
        let mut report = Report {
            simulated: self.world.is_simulated(),
            runs: Vec::new(),
            changes: Changes::default(),
            swaps: Swaps::default(),
            errors: Vec::new(),
        };
        for &kind in kinds {
            self.one_datapath(kind, &mut report)?;
        }
        match rotation(kinds) {
            Some(rotation) => self.swaps(&rotation, &mut report)?,
            None => eprintln!("Swaps need two datapaths: left out"),
        }
        Ok(report)
    }

    /// Programs a datapath through a router of its own.
    fn start(&self, kind: Kind) -> Result<(ServiceRouter, Duration), Box<dyn Error>> {
        let datapath = self.world.datapath(kind)?;
        let router = ServiceRouter::start(self.world.node(), datapath)?;
        let begin = Instant::now();
        router.submit(self.manifests.clone())?;
        let status = block_on(router.flush())?;
        let took = begin.elapsed();
        for failed in &status.failed {
            eprintln!(
                "[{}] not served: {} ({}): {}",
                kind.name(),
                failed.frontend,
                failed.service_port,
                failed.error
            );
        }
        Ok((router, took))
    }

    fn one_datapath(&self, kind: Kind, report: &mut Report) -> Result<(), Box<dyn Error>> {
        let name = kind.name();
        let (router, took) = self.start(kind)?;
        eprintln!(
            "[{name}] {} routes programmed in {:.1} ms",
            router.status().routes,
            took.as_secs_f64() * 1e3
        );
        for target in self.stage.targets.iter().filter(|target| !target.answers) {
            match self.world.is_refused(From::Pod, target.protocol, target.inside) {
                Ok(()) => eprintln!("[{name}] {} has no endpoints: refused at once", target.service),
                Err(error) => report.errors.push(format!("{name}: {}: {error}", target.service)),
            }
        }
        let load = Load::exactly(self.world, self.stage, self.requests);
        let mut stats = self.finish(&format!("[{name}] requests"), load)?;
        report.errors.append(&mut stats.errors);
        report.runs.push(Run::new(name, took.as_secs_f64() * 1e3, stats));
        self.changes(name, &router, report)?;
        block_on(router.close(Close::Remove))?;
        Ok(())
    }

    /// Removes and adds endpoints while requests go on.
    fn changes(&self, name: &str, router: &ServiceRouter, report: &mut Report) -> Result<(), Box<dyn Error>> {
        let slices: Vec<_> =
            self.manifests.slices.iter().filter(|slice| slice.endpoints().len() > 1).collect();
        if slices.is_empty() {
            eprintln!("[{name}] no slice has two endpoints: no endpoint can be removed under load");
            return Ok(());
        }
        let load = Load::at_least(self.world, self.stage, self.requests);
        for i in 0..CHANGES / 2 {
            let slice = slices[i % slices.len()];
            for next in [without(slice, i)?, slice.clone()] {
                router.submit(next)?;
                block_on(router.flush())?;
                report.changes.count += 1;
                thread::sleep(Duration::from_millis(25));
            }
        }
        let mut stats = self.finish(&format!("[{name}] requests while endpoints come and go"), load)?;
        report.changes.requests += stats.requests;
        report.changes.failures += stats.failures;
        report.errors.append(&mut stats.errors);
        Ok(())
    }

    /// Swaps datapaths while requests go on, and keeps connections open across.
    fn swaps(&self, rotation: &[Kind], report: &mut Report) -> Result<(), Box<dyn Error>> {
        let (router, _) = self.start(rotation[0])?;
        let load = Load::at_least(self.world, self.stage, self.requests);
        let mut open: Vec<Box<dyn Connection>> = Vec::new();
        for i in 0..SWAPS {
            for from in From::ALL {
                let target =
                    self.stage.answering(Protocol::Tcp).find_map(|target| self.world.dial(from, target));
                for _ in 0..CONNECTIONS {
                    let Some(address) = target else { continue };
                    match self.world.connect(from, address) {
                        Ok(connection) => open.push(connection),
                        Err(error) => report.errors.push(format!("before swap {i}: {error}")),
                    }
                }
            }
            self.ask_all(&mut open, &format!("before swap {i}"), report);
            let next = self.world.datapath(rotation[(i + 1) % rotation.len()])?;
            let swap = block_on(router.swap(next, DRAIN_FOR))?;
            report.swaps.count += 1;
            eprintln!(
                "[swap {:>2}] {} -> {} in {:.1} ms, {} connections open",
                i + 1,
                swap.from,
                swap.to,
                swap.took.as_secs_f64() * 1e3,
                open.len()
            );
            self.ask_all(&mut open, &format!("after swap {} ({} -> {})", i + 1, swap.from, swap.to), report);
            thread::sleep(Duration::from_millis(100));
        }
        let mut stats = self.finish("[swaps] requests", load)?;
        self.ask_all(&mut open, "after the last swap", report);
        report.swaps.requests = stats.requests;
        report.swaps.failures = stats.failures;
        report.swaps.connections_kept = open.len() as u64;
        report.errors.append(&mut stats.errors);
        drop(open);
        block_on(router.close(Close::Remove))?;
        Ok(())
    }

    /// Asks over every open connection; one that does not answer is cut.
    fn ask_all(&self, open: &mut Vec<Box<dyn Connection>>, when: &str, report: &mut Report) {
        open.retain_mut(|connection| match connection.ask() {
            Ok(_) => true,
            Err(error) => {
                report.swaps.connections_cut += 1;
                report.errors.push(format!("open connection, {when}: {error}"));
                false
            }
        });
    }

    /// Waits for a load that was asked for at least so many requests.
    fn finish(&self, label: &str, load: Load) -> Result<Stats, String> {
        load.release();
        self.progress(label, &load);
        load.join()
    }

    fn progress(&self, label: &str, load: &Load) {
        let mut stderr = std::io::stderr();
        while load.is_running() {
            if stderr.is_terminal() {
                let _ = write!(stderr, "\r{label}: {}", load.begun());
            }
            thread::sleep(Duration::from_millis(50));
        }
        eprintln!("{}{label}: {}", if stderr.is_terminal() { "\r" } else { "" }, load.begun());
    }
}

/// The slice without one of its endpoints.
fn without(slice: &EndpointSlice, which: usize) -> Result<EndpointSlice, kubenet_core::model::InvalidObject> {
    let which = which % slice.endpoints().len();
    let mut builder = EndpointSlice::builder(
        &**slice.name().namespace(),
        &**slice.name().name(),
        &**slice.service().name(),
        slice.family(),
    );
    for port in slice.ports() {
        builder = builder.port(port.clone());
    }
    let others = slice.endpoints().iter().enumerate().filter(|(i, _)| *i != which);
    builder.endpoints(others.map(|(_, endpoint)| endpoint.clone())).build()
}

/// The order in which datapaths follow each other: from iptables to eBPF and back, with each variant in turn.
fn rotation(kinds: &[Kind]) -> Option<Vec<Kind>> {
    let others: Vec<_> = kinds.iter().copied().filter(|kind| *kind != Kind::Ebpf).collect();
    if kinds.contains(&Kind::Memory) {
        return Some(vec![Kind::Memory, Kind::Memory]);
    }
    if kinds.contains(&Kind::Ebpf) && !others.is_empty() {
        return Some(others.into_iter().flat_map(|other| [other, Kind::Ebpf]).collect());
    }
    (others.len() > 1).then_some(others)
}
