//! What holds for every cluster, every order of events and every input, tried on random ones.
//!
//! `PROPTEST_CASES` scales all of them: 256 is what they run with by default.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod affinity;
mod datapath;
#[cfg(feature = "kubernetes")]
mod inputs;
#[cfg(feature = "kubernetes")]
mod objects;
mod oracle;
mod order;
mod routing;
mod world;

use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

/// So many cases by default. Failures are kept by writing a test, not in a file.
fn cases(by_default: u32) -> Config {
    let usual = Config::default();
    let cases = (u64::from(by_default) * u64::from(usual.cases)).div_ceil(256);
    Config { cases: u32::try_from(cases).unwrap_or(u32::MAX), failure_persistence: None, ..usual }
}

/// A source of the same values each time.
fn fixed() -> TestRunner {
    TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

fn sample<S: Strategy>(strategy: &S, runner: &mut TestRunner) -> S::Value {
    strategy.new_tree(runner).unwrap().current()
}
