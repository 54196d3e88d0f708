//! Kubernetes Service routing as a library: what a Service means on this node, and who makes the kernel do it.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod datapath;
pub mod model;
pub mod resolve;
pub mod route;
pub mod worker;
