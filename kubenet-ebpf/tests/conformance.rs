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

struct Ebpf;

impl Subject for Ebpf {
    fn start(&self, lab: &Lab) -> Result<Arc<dyn Datapath>, DatapathError> {
        let datapath = support::builder(lab).build()?;
        for interface in lab.node(Node::A).pod_interfaces() {
            block_on(datapath.attach_pod(&interface))?;
        }
        Ok(Arc::new(datapath))
    }

    fn leftovers(&self, lab: &Lab) -> Vec<String> {
        support::attached(lab)
    }
}

#[test]
fn the_conformance_suite_passes() {
    match conformance::run_in_lab(&Ebpf) {
        Ok(report) => {
            println!("{report}");
            report.assert_all_passed();
        }
        Err(error) => conformance::skip_or_fail(&error),
    }
}
