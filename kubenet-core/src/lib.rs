//! Kubernetes Service routing as a library: what a Service means on this node, and who makes the kernel do it.
//!
//! This crate is the portable half of kubenet. It turns Services, EndpointSlices and facts about the node into
//! routes, and drives a [`Datapath`](datapath::Datapath) that makes the kernel serve them. The datapaths are
//! crates of their own: `kubenet-ebpf` and `kubenet-iptables`. They are interchangeable: code that uses one
//! uses the other by changing the line that builds it.
//!
//! ```text
//! Service, EndpointSlice, Node ─► model ─► cluster ─► resolve ─► route ─► Datapath ─► kernel
//!                                 └───────────── ServiceRouter drives ────────────┘
//! ```
//!
//! One direction, left to right; a module knows only what is to its left.
//!
//! | module | its subject |
//! |---|---|
//! | [`model`] | Validated objects. Construction is the only place that checks input |
//! | `kubernetes` | Conversion from the Kubernetes API's types, and manifest files (feature `kubernetes`) |
//! | [`cluster`] | The latest declared objects, and which Services a change touches |
//! | [`resolve`] | Pure functions: Service + slices + node → routes. The rules, by name |
//! | [`route`] | Frontends, backends, tables, deltas |
//! | [`datapath`] | The trait that the kernel mechanisms implement |
//! | [`router`] | [`ServiceRouter`](router::ServiceRouter): from changes to the kernel, with retries and audits |
//! | [`health`] | Answers to the health checks of load balancers and of the proxy itself; served with feature `health-server` |
//! | [`maglev`] | Consistent hashing: which backend serves which client, the same on every node |
//! | [`worker`] | A thread for blocking work, for authors of datapaths |
//!
//! No async runtime is needed: everything works under tokio, smol or a plain `block_on`.
//!
//! # Example
//! ```
//! use std::sync::Arc;
//! use kubenet_core::{datapath::Datapath, model::*, router::ServiceRouter};
//! use kubenet_testkit::memory::MemoryDatapath;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # futures::executor::block_on(async {
//! let datapath: Arc<dyn Datapath> = Arc::new(MemoryDatapath::new());
//! let node = NodeInfo::builder("node-a").address("10.0.0.1".parse()?).build()?;
//! let router = ServiceRouter::start(node, datapath)?;
//! router.submit(
//!     Service::builder("demo", "web")
//!         .cluster_ip("10.96.0.10".parse()?)
//!         .port(ServicePort::new("http", Protocol::Tcp, 80.try_into()?))
//!         .build()?,
//! )?;
//! router.submit(
//!     EndpointSlice::builder("demo", "web-1", "web", IpFamily::V4)
//!         .port(EndpointPort::new("http", Protocol::Tcp, 8080.try_into()?))
//!         .endpoint(Endpoint::new("10.244.1.2".parse()?).on_node("node-a"))
//!         .build()?,
//! )?;
//! router.synced()?;
//! assert!(router.flush().await?.is_healthy());
//! # Ok(())
//! # })
//! # }
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod cluster;
pub mod datapath;
pub mod health;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod maglev;
pub mod model;
pub mod resolve;
pub mod route;
pub mod router;
pub mod worker;
