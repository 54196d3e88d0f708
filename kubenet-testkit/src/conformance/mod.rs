//! One suite of named cases that every datapath runs: the traffic matrix, and what happens over time.
//!
//! A datapath runs it with real packets from a test of its own, with this crate as dev-dependency (feature
//! `lab`). Node-a of the lab is the node under test:
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use kubenet_core::datapath::{Datapath, DatapathError};
//! # #[cfg(all(feature = "lab", target_os = "linux"))]
//! # fn main() {
//! use kubenet_testkit::{conformance, lab::{Lab, Node}};
//!
//! fn start(lab: &Lab) -> Result<Arc<dyn Datapath>, DatapathError> {
//!     let node = lab.node(Node::A);
//!     let _ = (node.netns().path(), node.external_interface(), node.pod_interfaces(), lab.cgroup());
//!     # /*
//!     Ok(Arc::new(MyDatapath::builder().netns(node.netns().path()).build()?))
//!     # */ Ok(Arc::new(kubenet_testkit::memory::MemoryDatapath::new()))
//! }
//!
//! match conformance::run_in_lab(&start) {
//!     Ok(report) => report.assert_all_passed(),
//!     Err(error) => conformance::skip_or_fail(&error),
//! }
//! # }
//! # #[cfg(not(all(feature = "lab", target_os = "linux")))] fn main() {}
//! ```
//!
//! `start` is called again after each case that closes the datapath. To have [`Close::Remove`] checked in the
//! kernel too, implement `Subject` with `Subject::leftovers` instead of giving a function. One run takes
//! some ten seconds. Cases for what the [`Capabilities`] do not claim are reported as not supported, never as
//! passed.
//!
//! [`Close::Remove`]: kubenet_core::datapath::Close::Remove
//! [`Capabilities`]: kubenet_core::datapath::Capabilities

mod behaviour;
mod bench;
mod clients;
mod fixture;
mod matrix;
#[cfg(all(feature = "lab", target_os = "linux"))]
mod real;
mod report;
#[cfg(test)]
mod tests;
mod world;

#[cfg(all(feature = "lab", target_os = "linux"))]
use std::sync::Arc;
use std::{fmt, time::Instant};

#[cfg(all(feature = "lab", target_os = "linux"))]
use kubenet_core::datapath::Datapath;
use kubenet_core::datapath::{Close, DatapathError, ErrorKind};

pub use self::report::{CaseReport, Outcome, Report};
use self::{
    clients::Clients,
    world::{Simulation, World},
};
#[cfg(all(feature = "lab", target_os = "linux"))]
use crate::lab::{Lab, LabError};
use crate::memory::MemoryDatapath;

/// A datapath that the suite is run against.
///
/// A function `Fn(&Lab) -> Result<Arc<dyn Datapath>, DatapathError>` is one, too.
#[cfg(all(feature = "lab", target_os = "linux"))]
#[cfg_attr(docsrs, doc(cfg(all(feature = "lab", target_os = "linux"))))]
pub trait Subject: Sync {
    /// Starts the datapath on node-a. It finds the kernel as the last one left it: after
    /// [`Close::Keep`] forwarding, after [`Close::Remove`] clean.
    ///
    /// # Errors
    /// Those of the datapath.
    fn start(&self, lab: &Lab) -> Result<Arc<dyn Datapath>, DatapathError>;

    /// What the datapath left in the kernel, one line for each thing. Asked after [`Close::Remove`].
    fn leftovers(&self, lab: &Lab) -> Vec<String> {
        let _ = lab;
        Vec::new()
    }
}

#[cfg(all(feature = "lab", target_os = "linux"))]
impl<F: Fn(&Lab) -> Result<Arc<dyn Datapath>, DatapathError> + Sync> Subject for F {
    fn start(&self, lab: &Lab) -> Result<Arc<dyn Datapath>, DatapathError> {
        self(lab)
    }
}

/// The suite could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CannotRun {
    /// There is no lab.
    #[cfg(all(feature = "lab", target_os = "linux"))]
    #[error("{0}")]
    Lab(#[from] LabError),
    /// The datapath did not start.
    #[error("{0}")]
    Start(#[from] DatapathError),
}

impl CannotRun {
    /// Whether this machine lacks something, rather than the code.
    pub fn is_unsupported(&self) -> bool {
        match self {
            #[cfg(all(feature = "lab", target_os = "linux"))]
            CannotRun::Lab(error) => matches!(error, LabError::Unsupported(_)),
            CannotRun::Start(error) => {
                matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Permission)
            }
        }
    }
}

/// For tests that need something of the machine: prints why the test is skipped. Where the environment says
/// `CI=true`, a skip is a failure.
///
/// # Panics
/// Under `CI=true`.
pub fn skip(reason: impl fmt::Display) {
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "may not be skipped in CI: {reason}");
    eprintln!("skipped: {reason}");
}

/// Skips the test when this machine lacks something, see [`skip`].
///
/// # Panics
/// On any other error, and under `CI=true`.
pub fn skip_or_fail(error: &CannotRun) {
    assert!(error.is_unsupported(), "the conformance suite could not run: {error}");
    skip(error);
}

/// Runs the suite with real packets, in a lab of its own.
///
/// # Errors
/// [`CannotRun`]; what goes wrong later is in the report.
#[cfg(all(feature = "lab", target_os = "linux"))]
#[cfg_attr(docsrs, doc(cfg(all(feature = "lab", target_os = "linux"))))]
pub fn run_in_lab(subject: &dyn Subject) -> Result<Report, CannotRun> {
    run(&real::Real::new(subject)?)
}

/// Runs the suite against a [`MemoryDatapath`]: the packets are only described.
///
/// # Errors
/// None that a [`MemoryDatapath`] causes.
pub fn run_simulated(start: impl Fn() -> MemoryDatapath + Sync) -> Result<Report, CannotRun> {
    run(&Simulation::new(start))
}

fn run(world: &dyn World) -> Result<Report, CannotRun> {
    let began = Instant::now();
    let datapath = world.start()?;
    let name = datapath.name().to_owned();
    let mut slot = Some(datapath.clone());
    let mut cases = matrix::run(world, &datapath);
    let clients = Clients::new(world, datapath.capabilities().clients.clone());
    drop(datapath);
    cases.extend(behaviour::run(&clients, &mut slot));
    if let Some(datapath) = slot {
        let _ = futures::executor::block_on(datapath.close(Close::Remove));
    }
    Ok(Report { datapath: name, simulated: world.simulated(), cases, took: began.elapsed() })
}
