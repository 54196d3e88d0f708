//! The conformance suite with real packets, on both variants. Needs root.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step fails the test")]

use std::{process::Command, sync::Arc};

use kubenet_core::datapath::{Datapath, DatapathError};
use kubenet_iptables::{IptablesDatapath, Variant};
use kubenet_testkit::{
    conformance::{self, Subject},
    lab::{Lab, Node},
};

struct Iptables(Variant, &'static str);

impl Subject for Iptables {
    fn start(&self, lab: &Lab) -> Result<Arc<dyn Datapath>, DatapathError> {
        let namespace = lab.node(Node::A).netns();
        Ok(Arc::new(IptablesDatapath::builder().variant(self.0).network_namespace(namespace.path()).build()?))
    }

    fn leftovers(&self, lab: &Lab) -> Vec<String> {
        let node = lab.node(Node::A).netns();
        let save = |base: &str| {
            let program = format!("{base}-{}-save", self.1);
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
    conforms(&Iptables(Variant::Nft, "nft"));
}

#[test]
fn the_legacy_variant_conforms() {
    conforms(&Iptables(Variant::Legacy, "legacy"));
}
