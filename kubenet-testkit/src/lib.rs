//! Tools to test a kubenet datapath.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

pub mod conformance;
pub mod faults;
#[cfg(all(feature = "lab", target_os = "linux"))]
#[cfg_attr(docsrs, doc(cfg(all(feature = "lab", target_os = "linux"))))]
pub mod lab;
pub mod memory;
pub mod place;
