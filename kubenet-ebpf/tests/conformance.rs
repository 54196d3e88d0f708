//! The suite that every datapath passes, with real packets.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use futures::executor::block_on;
use kubenet_core::datapath::{Datapath, DatapathError};
use kubenet_testkit::{
    conformance::{self, Subject},
    lab::{Lab, Node},
};
use support::bpffs::Bpffs;

/// With pins, or without.
struct Ebpf(Option<Bpffs>);

impl Subject for Ebpf {
    fn start(&self, lab: &Lab) -> Result<Arc<dyn Datapath>, DatapathError> {
        let mut builder = support::builder(lab);
        if let Some(bpffs) = &self.0 {
            builder = builder.pin_dir(bpffs.pin_dir());
        }
        let datapath = builder.build()?;
        for interface in lab.node(Node::A).pod_interfaces() {
            block_on(datapath.attach_pod(&interface))?;
        }
        Ok(Arc::new(datapath))
    }

    fn leftovers(&self, lab: &Lab) -> Vec<String> {
        let pins = self.0.iter().flat_map(Bpffs::tree).map(|path| path.display().to_string());
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
    run(&Ebpf(None));
}

#[test]
fn the_conformance_suite_passes_with_pins() {
    if !nix::unistd::geteuid().is_root() {
        return support::skip("root is needed to mount a BPF file system");
    }
    run(&Ebpf(Some(Bpffs::mount())));
}
