//! The conformance suite with real packets, on both variants. Needs root.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step fails the test")]

mod common;

use std::{process::Command, sync::Arc};

use common::programs::Programs;

use kubenet_core::datapath::{Datapath, DatapathError};
use kubenet_iptables::{IptablesDatapath, Variant};
use kubenet_testkit::{
    conformance::{self, Subject},
    lab::{Lab, Node},
};

struct Iptables {
    variant: Variant,
    word: &'static str,
    /// Stand-ins for the programs.
    programs: Option<Programs>,
}

impl Iptables {
    fn new(variant: Variant, word: &'static str) -> Self {
        Self { variant, word, programs: None }
    }
}

impl Subject for Iptables {
    fn start(&self, lab: &Lab) -> Result<Arc<dyn Datapath>, DatapathError> {
        let namespace = lab.node(Node::A).netns();
        let builder = IptablesDatapath::builder().variant(self.variant).network_namespace(namespace.path());
        let builder = match &self.programs {
            Some(programs) => builder.program_directory(programs.path()),
            None => builder,
        };
        Ok(Arc::new(builder.build()?))
    }

    fn leftovers(&self, lab: &Lab) -> Vec<String> {
        let node = lab.node(Node::A).netns();
        let save = |base: &str| {
            let program = format!("{base}-{}-save", self.word);
            let output = node.run(|| Command::new(&program).output()).unwrap().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let text = save("iptables") + &save("ip6tables");
        text.lines().filter(|line| line.contains("KUBE-")).map(str::to_owned).collect()
    }
}

fn conforms(subject: &Iptables) {
    match conformance::run_in_lab(subject) {
        Ok(report) => {
            println!("{report}");
            report.assert_all_passed();
        }
        Err(error) => conformance::skip_or_fail(&error),
    }
}

#[test]
fn the_nf_tables_variant_conforms() {
    conforms(&Iptables::new(Variant::Nft, "nft"));
}

#[test]
fn the_legacy_variant_conforms() {
    conforms(&Iptables::new(Variant::Legacy, "legacy"));
}

#[test]
fn the_rules_for_a_kernel_that_compares_no_addresses_conform() {
    let programs = Programs::new("nft");
    programs.lack("bpf");
    conforms(&Iptables { programs: Some(programs), ..Iptables::new(Variant::Nft, "nft") });
}
