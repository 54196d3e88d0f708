//! Health-check answers: may a load balancer send traffic to this node, and does the proxy keep up?
//!
//! | rule | answer |
//! |---|---|
//! | [H1] [`HealthBoard::service_answer`] | At the health-check node port of a Service: 200 while this node has a ready endpoint of it and the proxy is healthy, else 503. The node's own state does not count |
//! | [H2] [`HealthBoard::healthz`] | 200 while updates are applied in time and the node may take traffic ([`NodeEligibility`]), else 503 |
//! | [H2] [`HealthBoard::livez`] | The same without the node's state |
//! | [H3] [`ServiceHealth::local_endpoints`] | Distinct addresses over all ports; only endpoints that are ready count |
//!
//! Bodies and headers are those of kube-proxy 1.36. Answers are values ([`Answer`]), and the time is a parameter
//! ([`Moment`]): nothing here does I/O. The feature `health-server` adds `HealthServer`, which serves them over
//! HTTP.
//!
//! ```
//! use std::time::Duration;
//! use kubenet_core::{health::*, model::{IpFamily, ObjectName}};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let board = HealthBoard::new(Duration::from_secs(30));
//! let web = ObjectName::new("Service", "demo", "web")?;
//! board.upsert_service(ServiceHealth { service: web, port: 30123.try_into()?, local_endpoints: 2 });
//!
//! let start = Moment::now();
//! board.update_queued(IpFamily::V4, start.instant);
//! let answer = board.service_answer(30123.try_into()?, start).ok_or("no such port")?;
//! assert_eq!(answer.status, 200);
//!
//! // A minute later the update still waits.
//! let later = start.after(Duration::from_secs(60));
//! assert_eq!(board.livez(later).status, 503);
//! board.updated(IpFamily::V4, later.instant, later);
//! assert_eq!(board.livez(later).status, 200);
//! # Ok(())
//! # }
//! ```
//!
//! [H1]: crate::health
//! [H2]: crate::health
//! [H3]: crate::health

mod answer;
mod board;
mod node;
mod proxy;
#[cfg(feature = "health-server")]
mod server;
mod service;

pub use answer::Answer;
pub use board::HealthBoard;
pub use node::{NodeEligibility, TO_BE_DELETED_TAINT};
pub use proxy::{DEFAULT_SYNC_PERIOD, Moment, ProxyHealth};
#[cfg(feature = "health-server")]
pub use server::{DEFAULT_HEALTHZ_PORT, HealthServer, HealthServerBuilder, PortProblem};
pub use service::ServiceHealth;
