//! The traffic matrix: rows of (source, frontend) → (endpoints, whom they see), as in kube-proxy's
//! packet-flow tables. All Services are programmed at once; each row is tried for every protocol and family.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use futures::executor::block_on;
use kubenet_core::{
    datapath::{Capabilities, Datapath, FailedRoute, Feature},
    model::{IpFamily, Protocol},
    route::{
        FrontendKind::{self, ClusterIp, ExternalIp, LoadBalancer, NodePort},
        Origin, Revision,
    },
};
use parking_lot::Mutex;

use super::{
    bench::{ANSWER, DROPPED},
    clients::origin,
    fixture::{HERE, Svc, TERMINATING, UNREADY, node_of, place, table},
    report::{CaseReport, Outcome},
    world::{Got, World},
};
use crate::place::Place;

/// Whose address the backend sees. A backend that is its own client always sees the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sees {
    Client,
    Node,
}
use Sees::{Client, Node};

#[derive(Clone, Debug)]
enum Expect {
    /// Each of these answers some of the requests, and nobody else.
    Served(&'static [&'static str], Sees),
    Refused,
    Dropped,
}
use Expect::{Dropped, Refused, Served};

struct Case {
    name: &'static str,
    svc: Svc,
    rows: &'static [Row],
}

/// Frontend, client, what it gets.
type Row = (FrontendKind, &'static str, Expect);

/// More questions than it takes to hear from each of three backends, unless one is never picked.
const QUESTIONS: usize = 64;

#[rustfmt::skip]
fn cases() -> Vec<Case> {
    let mut number = 0;
    let mut case = |name, svc: fn(Svc) -> Svc, rows| {
        number += 1;
        let mut svc = svc(Svc::new(number).exposed());
        if WITH_SCTP.contains(&name) {
            svc = svc.with_protocol(Protocol::Sctp);
        }
        Case { name, svc, rows }
    };
    vec![
        case("backend_here", |s| s.on(&["a1"]), &[
            (ClusterIp, "client-a", Served(&["a1"], Client)),
            (ClusterIp, "node-a",   Served(&["a1"], Node)),
            (ClusterIp, "outside",  Served(&["a1"], Node)),
            (NodePort,  "client-a", Served(&["a1"], Node)),
            (NodePort,  "client-b", Served(&["a1"], Node)),
            (NodePort,  "node-a",   Served(&["a1"], Node)),
            (NodePort,  "outside",  Served(&["a1"], Node)),
        ]),
        case("backend_elsewhere", |s| s.on(&["b1"]), &[
            (ClusterIp, "client-a", Served(&["b1"], Client)),
            (ClusterIp, "node-a",   Served(&["b1"], Node)),
            (ClusterIp, "outside",  Served(&["b1"], Node)),
            (NodePort,  "client-a", Served(&["b1"], Node)),
            (NodePort,  "client-b", Served(&["b1"], Node)),
            (NodePort,  "node-a",   Served(&["b1"], Node)),
            (NodePort,  "outside",  Served(&["b1"], Node)),
        ]),
        case("backends_here_and_elsewhere", |s| s.on(&["a1", "a2", "b1"]), &[
            (ClusterIp, "client-a", Served(&["a1", "a2", "b1"], Client)),
            (ClusterIp, "node-a",   Served(&["a1", "a2", "b1"], Node)),
            (ClusterIp, "outside",  Served(&["a1", "a2", "b1"], Node)),
            (NodePort,  "client-a", Served(&["a1", "a2", "b1"], Node)),
            (NodePort,  "client-b", Served(&["a1", "a2", "b1"], Node)),
            (NodePort,  "node-a",   Served(&["a1", "a2", "b1"], Node)),
            (NodePort,  "outside",  Served(&["a1", "a2", "b1"], Node)),
        ]),
        case("backend_on_host_network_here", |s| s.on(&["node-a"]), &[
            (ClusterIp, "client-a", Served(&["node-a"], Client)),
            (ClusterIp, "node-a",   Served(&["node-a"], Node)),
            (ClusterIp, "outside",  Served(&["node-a"], Node)),
            (NodePort,  "client-a", Served(&["node-a"], Node)),
            (NodePort,  "client-b", Served(&["node-a"], Node)),
            (NodePort,  "node-a",   Served(&["node-a"], Node)),
            (NodePort,  "outside",  Served(&["node-a"], Node)),
        ]),
        case("backend_on_host_network_elsewhere", |s| s.on(&["node-b"]), &[
            (ClusterIp, "client-a", Served(&["node-b"], Client)),
            (ClusterIp, "node-a",   Served(&["node-b"], Node)),
            (ClusterIp, "outside",  Served(&["node-b"], Node)),
            (NodePort,  "client-a", Served(&["node-b"], Node)),
            (NodePort,  "client-b", Served(&["node-b"], Node)),
            (NodePort,  "node-a",   Served(&["node-b"], Node)),
            (NodePort,  "outside",  Served(&["node-b"], Node)),
        ]),
        case("no_endpoints_rejects", |s| s, &[
            (ClusterIp, "client-a", Refused),
            (ClusterIp, "node-a",   Refused),
            (ClusterIp, "outside",  Refused),
            (NodePort,  "client-a", Refused),
            (NodePort,  "client-b", Refused),
            (NodePort,  "node-a",   Refused),
            (NodePort,  "outside",  Refused),
        ]),
        case("only_unready_endpoints_rejects", |s| s.and("a1", UNREADY).and("b1", UNREADY), &[
            (ClusterIp, "client-a", Refused),
            (NodePort,  "outside",  Refused),
        ]),
        case("unready_endpoint_is_not_picked", |s| s.on(&["a1"]).and("b1", UNREADY), &[
            (ClusterIp, "client-a", Served(&["a1"], Client)),
            (NodePort,  "outside",  Served(&["a1"], Node)),
        ]),
        case("hairpin", |s| s.on(&["a1"]), &[
            (ClusterIp, "a1", Served(&["a1"], Client)),
            (NodePort,  "a1", Served(&["a1"], Node)),
        ]),
        case("hairpin_among_others", |s| s.on(&["a1", "a2", "b1"]), &[
            (ClusterIp, "a1", Served(&["a1", "a2", "b1"], Client)),
            (NodePort,  "a1", Served(&["a1", "a2", "b1"], Node)),
            (NodePort,  "b1", Served(&["a1", "a2", "b1"], Node)),
        ]),
        case("internal_local_prefers_here", |s| s.on(&["a1", "b1"]).internal_local(), &[
            (ClusterIp, "client-a", Served(&["a1"], Client)),
            (ClusterIp, "node-a",   Served(&["a1"], Node)),
            (ClusterIp, "outside",  Served(&["a1"], Node)),
            (NodePort,  "client-a", Served(&["a1", "b1"], Node)),
            (NodePort,  "outside",  Served(&["a1", "b1"], Node)),
        ]),
        case("internal_local_without_local_endpoints_drops", |s| s.on(&["b1"]).internal_local(), &[
            (ClusterIp, "client-a", Dropped),
            (ClusterIp, "node-a",   Dropped),
            (ClusterIp, "outside",  Dropped),
            (NodePort,  "outside",  Served(&["b1"], Node)),
        ]),
        case("internal_local_without_endpoints_rejects", |s| s.internal_local(), &[
            (ClusterIp, "client-a", Refused),
            (ClusterIp, "node-a",   Refused),
        ]),
        case("external_local_keeps_the_client_address", |s| s.on(&["a1", "b1"]).external_local(), &[
            (NodePort,  "outside",  Served(&["a1"], Client)),
            (NodePort,  "client-a", Served(&["a1", "b1"], Client)),
            (NodePort,  "node-a",   Served(&["a1", "b1"], Node)),
            (ClusterIp, "client-a", Served(&["a1", "b1"], Client)),
            (ClusterIp, "outside",  Served(&["a1", "b1"], Node)),
        ]),
        case("external_local_with_backend_here", |s| s.on(&["a2"]).external_local(), &[
            (NodePort,  "outside",  Served(&["a2"], Client)),
            (NodePort,  "client-b", Served(&["a2"], Client)),
            (NodePort,  "a2",       Served(&["a2"], Node)),
        ]),
        case("external_local_without_local_endpoints_drops_external", |s| s.on(&["b1"]).external_local(), &[
            (NodePort,  "outside",  Dropped),
            (NodePort,  "client-a", Served(&["b1"], Client)),
            (NodePort,  "node-a",   Served(&["b1"], Node)),
            (ClusterIp, "client-a", Served(&["b1"], Client)),
        ]),
        case("external_local_without_endpoints_rejects", |s| s.external_local(), &[
            (NodePort,  "outside",  Refused),
            (NodePort,  "client-a", Refused),
            (NodePort,  "node-a",   Refused),
        ]),
        case("both_local", |s| s.on(&["a1", "b1"]).internal_local().external_local(), &[
            (ClusterIp, "client-a", Served(&["a1"], Client)),
            (NodePort,  "outside",  Served(&["a1"], Client)),
            (NodePort,  "client-a", Served(&["a1", "b1"], Client)),
        ]),
        case("terminating_is_not_picked_beside_ready", |s| s.on(&["b1"]).and("a1", TERMINATING), &[
            (ClusterIp, "client-a", Served(&["b1"], Client)),
            (NodePort,  "outside",  Served(&["b1"], Node)),
        ]),
        case("terminating_serves_when_nothing_is_ready", |s| s.and("a1", TERMINATING).and("b1", UNREADY), &[
            (ClusterIp, "client-a", Served(&["a1"], Client)),
            (NodePort,  "outside",  Served(&["a1"], Node)),
        ]),
        case("terminating_here_serves_a_local_set", |s| {
            s.on(&["b1"]).and("a1", TERMINATING).internal_local().external_local()
        }, &[
            (ClusterIp, "client-a", Served(&["a1"], Client)),
            (NodePort,  "outside",  Served(&["a1"], Client)),
            (NodePort,  "client-a", Served(&["b1"], Client)),
        ]),
        case("source_ranges_admit_whom_they_hold_to_the_load_balancer_alone", |s| {
            s.on(&["a1", "b1"]).only_from(&["outside"])
        }, &[
            (LoadBalancer, "outside",  Served(&["a1", "b1"], Node)),
            (LoadBalancer, "client-a", Dropped),
            (LoadBalancer, "node-a",   Dropped),
            (ExternalIp,   "client-a", Served(&["a1", "b1"], Node)),
            (NodePort,     "client-a", Served(&["a1", "b1"], Node)),
            (ClusterIp,    "client-a", Served(&["a1", "b1"], Client)),
        ]),
        case("source_ranges_go_by_a_pods_own_address", |s| s.on(&["a1"]).only_from(&["client-a"]), &[
            (LoadBalancer, "client-a", Served(&["a1"], Node)),
            (LoadBalancer, "a1",       Dropped),
            (LoadBalancer, "outside",  Dropped),
        ]),
        case("source_ranges_that_hold_the_node_admit_it", |s| s.on(&["b1"]).only_from(&["node-a"]), &[
            (LoadBalancer, "node-a",   Served(&["b1"], Node)),
            (LoadBalancer, "client-a", Dropped),
        ]),
        case("source_ranges_come_before_the_answers_of_an_empty_service", |s| s.only_from(&["outside"]), &[
            (LoadBalancer, "outside",  Refused),
            (LoadBalancer, "client-a", Dropped),
        ]),
        case("source_ranges_hold_under_policy_local", |s| s.on(&["a1", "b1"]).external_local().only_from(&["outside"]), &[
            (LoadBalancer, "outside",  Served(&["a1"], Client)),
            (LoadBalancer, "client-a", Dropped),
        ]),
    ]
}

/// A case's rows of one kind of frontend, in one protocol and family.
struct Job<'c> {
    case: &'c Case,
    asked: Asked,
}

/// One column of the matrix.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) kind: FrontendKind,
    pub(super) protocol: Protocol,
    pub(super) family: IpFamily,
}

/// SCTP is another protocol number and nothing else to a rule: some cases will do.
const WITH_SCTP: [&str; 4] =
    ["backend_here", "backend_elsewhere", "no_endpoints_rejects", "external_local_keeps_the_client_address"];

impl Case {
    fn protocols(&self) -> impl Iterator<Item = Protocol> + use<> {
        let sctp = WITH_SCTP.contains(&self.name);
        Protocol::ALL.into_iter().filter(move |protocol| sctp || *protocol != Protocol::Sctp)
    }

    /// The rows that are about frontends of this kind. What holds for the node port holds for every external
    /// frontend; hosts of the other node have no way to the addresses of Services.
    fn rows(&self, kind: FrontendKind) -> impl Iterator<Item = (&'static str, &'static Expect)> {
        let own = self.rows.iter().any(|(k, ..)| *k == kind);
        let like = if own || kind == ClusterIp { kind } else { NodePort };
        let near = move |from: &str| kind == NodePort || node_of(&place(from)) != Some(HERE.other());
        let rows = self.rows.iter().filter(move |(k, from, _)| *k == like && near(from));
        rows.map(|(_, from, expect)| (*from, expect))
    }
}

pub(super) fn run(world: &dyn World, datapath: &Arc<dyn Datapath>) -> Vec<CaseReport> {
    let cases = cases();
    let services: Vec<Svc> = cases.iter().map(|case| case.svc.clone()).collect();
    let programmed = table(world, Revision(1), &services, |node| node)
        .and_then(|table| block_on(datapath.replace(Arc::new(table))).map_err(|e| e.to_string()))
        .map(|report| report.failed);
    let mut jobs = Vec::new();
    for case in &cases {
        for kind in FrontendKind::ALL.into_iter().filter(|kind| case.rows(*kind).next().is_some()) {
            for protocol in case.protocols() {
                for family in IpFamily::ALL {
                    jobs.push(Job { case, asked: Asked { kind, protocol, family } });
                }
            }
        }
    }
    let capabilities = datapath.capabilities();
    let next = AtomicUsize::new(0);
    let done: Vec<Mutex<Vec<CaseReport>>> = jobs.iter().map(|_| Mutex::default()).collect();
    let work = || {
        while let index = next.fetch_add(1, Ordering::Relaxed)
            && let Some(job) = jobs.get(index)
        {
            *done[index].lock() = job.report(world, capabilities, &programmed);
        }
    };
    // Most of the time is spent waiting for packets that are dropped.
    let threads = if world.simulated() { 1 } else { 6 };
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    done.into_iter().flat_map(Mutex::into_inner).collect()
}

impl Job<'_> {
    fn name(&self) -> String {
        let Asked { kind, protocol, family } = self.asked;
        let kind = match kind {
            ClusterIp => "cluster-ip",
            NodePort => "node-port",
            ExternalIp => "external-ip",
            _ => "load-balancer",
        };
        format!("{}/{kind}/{protocol}/{family}", self.case.name)
    }

    /// Rows of clients that are not served are reported apart, so that the others count.
    fn report(
        &self,
        world: &dyn World,
        capabilities: &Capabilities,
        programmed: &Result<Vec<FailedRoute>, String>,
    ) -> Vec<CaseReport> {
        let began = Instant::now();
        let case = |name, outcome| CaseReport { name, outcome, took: began.elapsed() };
        let mut reports = Vec::new();
        let rows: BTreeSet<Origin> =
            self.case.rows(self.asked.kind).map(|(from, _)| origin(&place(from))).collect();
        if rows.iter().any(|origin| capabilities.clients.contains(origin)) {
            reports.push(case(self.name(), self.run(world, capabilities, programmed)));
        }
        for other in rows.difference(&capabilities.clients) {
            let why = format!("not in its capabilities: flows of {}", other.as_str());
            let name = format!("{} of {}", self.name(), other.as_str());
            reports.push(case(name, Outcome::NotSupported(why)));
        }
        reports
    }

    fn run(
        &self,
        world: &dyn World,
        capabilities: &Capabilities,
        programmed: &Result<Vec<FailedRoute>, String>,
    ) -> Outcome {
        let Asked { kind, protocol, family } = self.asked;
        if let Some(why) = unsupported(world, capabilities, self.asked, self.case.svc.needs(kind)) {
            return Outcome::NotSupported(why);
        }
        let failed = match programmed {
            Ok(failed) => failed,
            Err(why) => return Outcome::Failed(format!("the table was not programmed: {why}")),
        };
        let frontend = self.case.svc.frontend(kind, family, protocol);
        if let Some(failed) = failed.iter().find(|failed| failed.frontend == frontend) {
            return Outcome::Failed(format!("the route was not programmed: {}", failed.error));
        }
        let wrong: Vec<String> = (self.case.rows(kind))
            .filter(|(from, _)| capabilities.clients.contains(&origin(&place(from))))
            .filter_map(|(from, expect)| {
                let why = self.row(world, capabilities, &place(from), expect).err()?;
                Some(format!("from {from}: {why}"))
            })
            .collect();
        if wrong.is_empty() { Outcome::Passed } else { Outcome::Failed(wrong.join("; ")) }
    }

    fn row(
        &self,
        world: &dyn World,
        capabilities: &Capabilities,
        from: &Place,
        expect: &Expect,
    ) -> Result<(), String> {
        let Asked { kind, protocol, family } = self.asked;
        let to = self.case.svc.dial(kind, family);
        let (backends, sees) = match expect {
            Served(backends, sees) => (*backends, *sees),
            Refused => return wanted(&Got::Refused, world.ask(from, to, protocol, ANSWER), to),
            Dropped => {
                let got = world.ask(from, to, protocol, DROPPED);
                // A datapath at the node's own sockets cannot be silent: it must fail the call.
                let told = *from == HERE.into() && got == Got::Unreachable;
                return if told { Ok(()) } else { wanted(&Got::Silence, got, to) };
            }
        };
        let mut missing: BTreeSet<&str> = backends.iter().copied().collect();
        // At least twice, as the first packet may take another path than the others.
        for question in 0..QUESTIONS {
            if missing.is_empty() && question > 1 {
                break;
            }
            let (backend, peer) = match world.ask(from, to, protocol, ANSWER) {
                Got::Answer { backend, peer } => (backend, peer),
                other => return Err(format!("{to}: expected an answer of {backends:?}, got {other}")),
            };
            if !backends.contains(&backend.as_str()) {
                return Err(format!("{to}: expected an answer of {backends:?}, got one of {backend}"));
            }
            missing.remove(backend.as_str());
            let right = self.peers(world, capabilities, from, &place(&backend), sees)?;
            if !right.contains(&peer) {
                return Err(format!("{to}: {backend} saw {peer}, expected {right:?}"));
            }
        }
        if missing.is_empty() {
            Ok(())
        } else {
            Err(format!("{to}: {missing:?} never answered {QUESTIONS} requests"))
        }
    }

    /// Whom the backend may see.
    fn peers(
        &self,
        world: &dyn World,
        capabilities: &Capabilities,
        from: &Place,
        backend: &Place,
        sees: Sees,
    ) -> Result<Vec<IpAddr>, String> {
        let client = world.address(from, self.asked.family)?;
        let node = world.address(&HERE.into(), self.asked.family)?;
        let spared = capabilities.local_backends_see_client && node_of(backend) == Some(HERE);
        Ok(if from == backend {
            vec![node]
        } else if *backend == HERE.into() {
            // Its reply comes through here in any case; kube-proxy's rules never get to mask it.
            vec![client, node]
        } else if sees == Client || spared {
            vec![client]
        } else {
            vec![node]
        })
    }
}

/// Why a datapath cannot be asked for this, by its own account.
pub(super) fn unsupported(
    world: &dyn World,
    capabilities: &Capabilities,
    Asked { kind, protocol, family }: Asked,
    mut features: impl Iterator<Item = Feature>,
) -> Option<String> {
    if !world.protocols().contains(&protocol) {
        Some(format!("the clients and servers here have no {protocol}"))
    } else if !world.families().contains(&family) {
        Some(format!("this machine has no {family}"))
    } else if !capabilities.families.contains(&family) {
        Some(format!("{family} is not in its capabilities"))
    } else if !capabilities.protocols.contains(&protocol) {
        Some(format!("{protocol} is not in its capabilities"))
    } else if !capabilities.frontends.contains(&kind) {
        Some(format!("{kind:?} is not in its capabilities"))
    } else {
        let missing = features.find(|feature| !capabilities.has(*feature))?;
        Some(format!("not in its capabilities: {missing}"))
    }
}

fn wanted(wanted: &Got, got: Got, to: SocketAddr) -> Result<(), String> {
    if got == *wanted { Ok(()) } else { Err(format!("{to}: expected {wanted}, got {got}")) }
}
