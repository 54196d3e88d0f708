//! The suite that every datapath passes, with real packets.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fmt::Write,
    sync::{Arc, Mutex},
};

use futures::executor::block_on;
use kubenet_core::{
    datapath::{Datapath, DatapathError},
    model::IpFamily,
};
use kubenet_ebpf::{EbpfBuilder, XdpMode};
use kubenet_testkit::{
    conformance::{self, CaseReport, Outcome, Subject},
    lab::{Lab, Node},
};
use support::{bpffs::Bpffs, offload};

/// With pins, or without; with which hooks.
struct Ebpf {
    pins: Option<Bpffs>,
    hooks: fn(EbpfBuilder) -> EbpfBuilder,
    /// What lets the lab take what XDP sends; kept as long as the lab.
    xdp: Option<Mutex<Option<aya::Ebpf>>>,
}

impl Ebpf {
    fn new(hooks: fn(EbpfBuilder) -> EbpfBuilder) -> Self {
        Self { pins: None, hooks, xdp: None }
    }

    fn with_xdp(self) -> Self {
        Self { xdp: Some(Mutex::default()), ..self }
    }
}

impl Subject for Ebpf {
    fn start(&self, lab: &Lab) -> Result<Arc<dyn Datapath>, DatapathError> {
        let mut builder = (self.hooks)(support::builder(lab));
        if let Some(bpffs) = &self.pins {
            builder = builder.pin_dir(bpffs.pin_dir());
        }
        if let Some(bridge) = &self.xdp {
            bridge.lock().unwrap().get_or_insert_with(|| {
                // Else all frames would be TC's.
                offload::complete_checksums(lab);
                offload::let_xdp_send(lab)
            });
        }
        let datapath = builder.build()?;
        for interface in lab.node(Node::A).pod_interfaces() {
            block_on(datapath.attach_pod(&interface))?;
        }
        Ok(Arc::new(datapath))
    }

    fn leftovers(&self, lab: &Lab) -> Vec<String> {
        let pins = self.pins.iter().flat_map(Bpffs::tree).map(|path| path.display().to_string());
        support::attached(lab).into_iter().chain(pins).collect()
    }
}

fn run(subject: &Ebpf) {
    match conformance::run_in_lab(subject) {
        Ok(report) => {
            println!("{report}");
            report.assert_all_passed();
        }
        Err(error) => conformance::skip_or_fail(&error),
    }
}

#[test]
fn the_conformance_suite_passes() {
    run(&Ebpf::new(|builder| builder));
}

#[test]
fn the_conformance_suite_passes_with_pins() {
    if !nix::unistd::geteuid().is_root() {
        return support::skip("root is needed to mount a BPF file system");
    }
    run(&Ebpf { pins: Some(Bpffs::mount()), ..Ebpf::new(|builder| builder) });
}

/// What a set of hooks does not serve, it must say: then the rows of the suite are not supported.
#[test]
fn every_set_of_hooks_passes_what_it_claims() {
    let sets: [(&str, Ebpf); 6] = [
        ("sockets only", Ebpf::new(|b| b.pod_tc(false).external_tc(false).xdp(XdpMode::Off))),
        ("TC only", Ebpf::new(|b| b.socket_hooks(false).xdp(XdpMode::Off))),
        ("XDP and TC", Ebpf::new(|b| b.socket_hooks(false).xdp(XdpMode::Native)).with_xdp()),
        ("all", Ebpf::new(|b| b.xdp(XdpMode::Native)).with_xdp()),
        ("TC, into pods", Ebpf::new(|b| b.socket_hooks(false).xdp(XdpMode::Off).redirect_peer(true))),
        ("all, into pods", Ebpf::new(|b| b.xdp(XdpMode::Native).redirect_peer(true)).with_xdp()),
    ];
    let mut table =
        format!("{:14} {:6} {:>7} {:>7} {:>14}\n", "hooks", "family", "passed", "failed", "not supported");
    let mut reports = Vec::new();
    for (name, subject) in sets {
        let report = match conformance::run_in_lab(&subject) {
            Ok(report) => report,
            Err(error) => return conformance::skip_or_fail(&error),
        };
        for family in IpFamily::ALL {
            let count = |is: fn(&Outcome) -> bool| {
                let of_family = |case: &&CaseReport| case.name.contains(&family.to_string());
                report.cases.iter().filter(of_family).filter(|case| is(&case.outcome)).count()
            };
            let passed = count(|outcome| *outcome == Outcome::Passed);
            let failed = count(|outcome| matches!(outcome, Outcome::Failed(_)));
            let not_supported = count(|outcome| matches!(outcome, Outcome::NotSupported(_)));
            writeln!(table, "{name:14} {family:6} {passed:7} {failed:7} {not_supported:14}").unwrap();
        }
        reports.push((name, report));
    }
    println!("{table}");
    for (name, report) in &reports {
        println!("{name}:");
        report.assert_all_passed();
    }
    let passed = |name| reports.iter().find(|(n, _)| *n == name).unwrap().1.passed();
    assert!(passed("sockets only") < passed("TC only") && passed("TC only") < passed("all"), "{table}");
}
