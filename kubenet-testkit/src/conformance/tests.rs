//! The suite must notice a datapath that breaks a rule: a world that lies stands for it.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use kubenet_core::{
    datapath::Capabilities,
    model::{IpFamily, Protocol},
    route::Origin,
};

use super::{
    Outcome, Report, run,
    world::{Between, Got, Live, Simulation, World},
};
use crate::{
    memory::MemoryDatapath,
    place::{Node, Place},
};

/// Changes what clients get. `established` tells answers on connections that live on.
type Lie = fn(got: Got, from: &Place, established: bool) -> Got;

struct Liar<W> {
    world: W,
    lie: Lie,
}

struct LyingFlow {
    flow: Box<dyn Live>,
    from: Place,
    lie: Lie,
    asked: u32,
}

impl Live for LyingFlow {
    fn ask(&mut self, timeout: Duration) -> Got {
        self.asked += 1;
        (self.lie)(self.flow.ask(timeout), &self.from, self.asked > 1)
    }

    fn ask_at_length(&mut self, _: usize, timeout: Duration) -> Got {
        self.ask(timeout)
    }
}

impl<W: World> Between for Liar<W> {
    fn world(&self) -> &dyn World {
        &self.world
    }

    fn ask(&self, from: &Place, to: SocketAddr, protocol: Protocol, timeout: Duration) -> Got {
        (self.lie)(self.world.ask(from, to, protocol, timeout), from, false)
    }

    fn open(
        &self,
        from: (&Place, u16),
        to: SocketAddr,
        protocol: Protocol,
        timeout: Duration,
    ) -> Result<Box<dyn Live>, Got> {
        let flow = self.world.open(from, to, protocol, timeout)?;
        Ok(Box::new(LyingFlow { flow, from: from.0.clone(), lie: self.lie, asked: 0 }))
    }

    fn leftovers(&self) -> Vec<String> {
        vec!["a chain".into()]
    }
}

fn lied(lie: Lie) -> Report {
    run(&Liar { world: Simulation::new(MemoryDatapath::new), lie }).unwrap()
}

fn failed(report: &Report, case: &str) -> bool {
    report.failures().any(|failure| failure.name.starts_with(case))
}

#[test]
fn a_forgotten_masquerade_is_noticed() {
    let report = lied(|got, from, _| match (got, from) {
        (Got::Answer { backend, peer }, Place::Outside) if peer == IpAddr::from(Node::A.v4()) => {
            Got::Answer { backend, peer: crate::place::outside(IpFamily::V4) }
        }
        (got, _) => got,
    });
    for case in ["backend_here/node-port/TCP/IPv4", "backend_here/cluster-ip/UDP/IPv4"] {
        assert!(failed(&report, case), "{case}\n{report}");
    }
    assert!(!failed(&report, "external_local_keeps_the_client_address/node-port"), "{report}");
    assert!(!failed(&report, "backend_here/node-port/TCP/IPv6"), "{report}");
}

#[test]
fn silence_instead_of_a_refusal_is_noticed_and_the_other_way_round() {
    let report = lied(|got, _, _| match got {
        Got::Refused => Got::Silence,
        Got::Silence => Got::Refused,
        got => got,
    });
    for case in [
        "no_endpoints_rejects",
        "internal_local_without_local_endpoints_drops",
        "external_local_without_local_endpoints_drops_external",
        "endpoints_from_none_to_some_and_back",
        "udp_flow_is_refused_when_endpoints_are_gone",
    ] {
        assert!(failed(&report, case), "{case}\n{report}");
    }
}

#[test]
fn a_cut_connection_is_noticed() {
    let report = lied(|got, _, established| if established { Got::Cut } else { got });
    for case in [
        "adding_a_backend_moves_no_established_connection",
        "removed_backend_keeps_established",
        "drain_keeps_known_connections",
        "udp_flow_stays_on_its_backend",
    ] {
        assert!(failed(&report, case), "{case}\n{report}");
    }
}

#[test]
fn a_backend_that_is_never_picked_is_noticed_and_so_is_a_wrong_one() {
    let report = lied(|got, _, _| match got {
        Got::Answer { backend, peer } if backend == "a2" => Got::Answer { backend: "a1".into(), peer },
        got => got,
    });
    for case in ["backends_here_and_elsewhere", "every_backend_gets_some_tcp", "every_backend_gets_some_udp"]
    {
        assert!(failed(&report, case), "{case}\n{report}");
    }
    assert!(failed(&report, "external_local_with_backend_here"), "{report}");
}

#[test]
fn leftovers_are_noticed() {
    let report = lied(|got, _, _| got);
    let failures: Vec<_> = report.failures().map(|case| case.name.as_str()).collect();
    assert_eq!(failures, ["close_remove_leaves_nothing/IPv4", "close_remove_leaves_nothing/IPv6"]);
}

#[test]
fn clients_that_a_datapath_does_not_serve_are_told_and_never_pass() {
    let only_node = || {
        let mut capabilities = Capabilities::full();
        capabilities.clients = [Origin::Node].into();
        MemoryDatapath::with_capabilities(capabilities)
    };
    let report = run(&Simulation::new(only_node)).unwrap();
    assert_eq!(report.failures().count(), 0, "{report}");
    let outcome = |name: &str| {
        let case = report.cases.iter().find(|case| case.name == name);
        &case.unwrap_or_else(|| panic!("no case {name}\n{report}")).outcome
    };
    let told = |name: &str| matches!(outcome(name), Outcome::NotSupported(_));
    assert_eq!(outcome("backend_here/cluster-ip/TCP/IPv4"), &Outcome::Passed);
    for others in ["pods", "clients outside"] {
        assert!(told(&format!("backend_here/node-port/TCP/IPv4 of {others}")), "{others}");
    }
    // All of its rows, and some of its clients.
    assert!(!report.cases.iter().any(|case| case.name == "hairpin/cluster-ip/TCP/IPv4"), "{report}");
    assert!(told("hints_keep_cluster_traffic_in_the_zone/IPv6"));
    let all = run(&Simulation::new(MemoryDatapath::new)).unwrap();
    // A case without the clients it wants is named after them.
    let missing: Vec<_> =
        all.not_supported().map(|case| &case.name).filter(|name| name.contains(" of ")).collect();
    assert!(missing.is_empty(), "{missing:?}\n{all}");
    assert!(report.passed() > 20 && report.passed() < all.passed(), "{report}");
}
