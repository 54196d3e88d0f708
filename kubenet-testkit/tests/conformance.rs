//! The suite, run against the oracle: both must agree on every rule.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use kubenet_core::datapath::Capabilities;
use kubenet_testkit::{conformance::run_simulated, memory::MemoryDatapath};

#[test]
fn the_oracle_conforms() {
    run_simulated(MemoryDatapath::new).unwrap().assert_all_passed();
}

#[test]
fn an_oracle_whose_local_backends_see_the_client_conforms() {
    let start = || {
        let mut capabilities = Capabilities::basic();
        capabilities.local_backends_see_client = true;
        MemoryDatapath::with_capabilities(capabilities)
    };
    run_simulated(start).unwrap().assert_all_passed();
}
