//! Tools to test a kubenet datapath: a reference to compare with, a suite to pass, a place to send packets,
//! and faults.
//!
//! | module | what it is |
//! |---|---|
//! | [`memory`] | The reference datapath: what a packet meets, in plain Rust. Portable |
//! | [`conformance`] | One suite of named cases for every datapath, simulated or with real packets |
//! | [`faults`] | A datapath that fails, stalls or dies where told, around any other. Portable |
//! | `lab` | Two nodes, pods and an outside client as network namespaces (Linux, feature `lab`, root) |
//! | [`load`] | Clusters of as many Services as you like, with endless plausible churn, from a seed. Portable |
//! | [`place`] | Names and addresses that lab and simulation share |
//!
//! A datapath of your own passes the suite in a test like this:
//!
//! ```no_run
//! # #[cfg(all(feature = "lab", target_os = "linux"))] {
//! use std::sync::Arc;
//! use kubenet_core::datapath::{Datapath, DatapathError};
//! use kubenet_testkit::{conformance, lab::Lab};
//! # type MyDatapath = kubenet_testkit::memory::MemoryDatapath;
//!
//! let start = |lab: &Lab| -> Result<Arc<dyn Datapath>, DatapathError> { Ok(Arc::new(MyDatapath::new())) };
//! match conformance::run_in_lab(&start) {
//!     Ok(report) => report.assert_all_passed(),
//!     Err(error) => conformance::skip_or_fail(&error),
//! }
//! # }
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

pub mod conformance;
pub mod faults;
#[cfg(all(feature = "lab", target_os = "linux"))]
#[cfg_attr(docsrs, doc(cfg(all(feature = "lab", target_os = "linux"))))]
pub mod lab;
pub mod load;
pub mod memory;
pub mod place;
