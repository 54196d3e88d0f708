//! Answers for health checks.

use std::num::NonZeroU16;

use crate::model::ObjectName;

/// The health check of one Service on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceHealth {
    /// The Service.
    pub service: ObjectName,
    /// Its `healthCheckNodePort`.
    pub port: NonZeroU16,
    /// Ready endpoints here: distinct addresses over all ports.
    pub local_endpoints: usize,
}
