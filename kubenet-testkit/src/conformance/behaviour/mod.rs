//! What must hold over time. Each case has Services of its own on one shared datapath.

mod balancing;
mod connections;
mod counters;
mod errors;
mod frontends;
mod lifecycle;
mod ranges;
mod updates;

use std::{sync::Arc, time::Instant};

use kubenet_core::{
    datapath::{Datapath, Feature},
    model::{IpFamily, Protocol},
    route::FrontendKind,
};

use super::{
    bench::{Bench, Step, Stop},
    clients::Clients,
    matrix::{Asked, unsupported},
    report::{CaseReport, Outcome},
};

/// A case: its name, the protocols that it needs, and what it does.
struct Case {
    name: &'static str,
    protocols: &'static [Protocol],
    features: &'static [Feature],
    run: fn(&mut Bench<'_>) -> Step,
}

impl Case {
    const fn new(
        name: &'static str,
        protocols: &'static [Protocol],
        run: fn(&mut Bench<'_>) -> Step,
    ) -> Self {
        Self { name, protocols, features: &[], run }
    }

    /// The same for datapaths that have these features.
    const fn with(self, features: &'static [Feature]) -> Self {
        Self { features, ..self }
    }
}

const TCP: &[Protocol] = &[Protocol::Tcp];
const UDP: &[Protocol] = &[Protocol::Udp];

pub(super) fn run(clients: &Clients<'_>, slot: &mut Option<Arc<dyn Datapath>>) -> Vec<CaseReport> {
    let mut reports = Vec::new();
    // The matrix has the numbers below.
    let mut number = 1000;
    // Cases that close the datapath come last.
    let cases = [
        connections::CASES,
        errors::CASES,
        balancing::CASES,
        frontends::CASES,
        ranges::CASES,
        updates::CASES,
        counters::CASES,
        lifecycle::CASES,
    ];
    let cases = cases.into_iter().flatten();
    for case in cases {
        for family in IpFamily::ALL {
            number += 10;
            let began = Instant::now();
            let mut bench = Bench::new(clients, slot, family, number);
            let outcome = match attempt(case, &mut bench) {
                // Whatever came of it.
                _ if clients.others_asked() => {
                    Outcome::NotSupported("it has clients that are not in its capabilities".into())
                }
                Ok(()) => Outcome::Passed,
                Err(Stop::Failed(why)) => Outcome::Failed(why),
                Err(Stop::NotSupported(why)) => Outcome::NotSupported(why),
            };
            let name = format!("{}/{family}", case.name);
            reports.push(CaseReport { name, outcome, took: began.elapsed() });
        }
    }
    reports
}

/// A case for connected sockets of the node itself.
fn node_udp_follows(bench: &mut Bench<'_>) -> Step {
    if bench.datapath()?.capabilities().node_udp_follows {
        return Ok(());
    }
    Err(Stop::NotSupported("connected UDP sockets of the node stay where they are (node_udp_follows)".into()))
}

fn attempt(case: &Case, bench: &mut Bench<'_>) -> Step {
    let datapath = bench.datapath()?;
    for &protocol in case.protocols {
        for kind in [FrontendKind::ClusterIp, FrontendKind::NodePort] {
            let features = case.features.iter().copied();
            let asked = Asked { kind, protocol, family: bench.family };
            if let Some(why) = unsupported(bench.world, datapath.capabilities(), asked, features) {
                return Err(Stop::NotSupported(why));
            }
        }
    }
    drop(datapath);
    (case.run)(bench)
}
