use std::time::{Duration, Instant};

use crate::{
    cluster::FrontendConflict,
    datapath::{DatapathError, FailedRoute},
    route::Revision,
};

/// How a [`ServiceRouter`](super::ServiceRouter) stands.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RouterStatus {
    /// Name of the active datapath.
    pub datapath: &'static str,
    /// Whether everything that exists was declared once.
    pub synced: bool,
    /// The revision that the declared objects mean.
    pub revision: Revision,
    /// The revision that the kernel has.
    pub applied: Revision,
    /// Number of Services declared.
    pub services: usize,
    /// Number of routes resolved.
    pub routes: usize,
    /// Updates that succeeded since the start.
    pub updates: u64,
    /// Since when an update has been waiting, if one is.
    pub pending_since: Option<Instant>,
    /// The failure of the last attempt, if it failed. The kernel has the last good state.
    pub last_error: Option<DatapathError>,
    /// Routes that the datapath cannot serve. All others are served.
    pub failed: Vec<FailedRoute>,
    /// Frontends that more than one Service claims.
    pub conflicts: Vec<FrontendConflict>,
    /// What the last audit, or a look between audits, found to differ from what was programmed, if anything.
    pub last_drift: Option<String>,
    /// Datapaths that were swapped out and still serve old flows.
    pub retiring: Vec<Retiring>,
}

impl RouterStatus {
    /// Whether the kernel has everything that was declared. Not before the first update.
    pub fn is_healthy(&self) -> bool {
        self.updates > 0
            && self.pending_since.is_none()
            && self.last_error.is_none()
            && self.failed.is_empty()
            && self.revision == self.applied
    }
}

/// A datapath that was swapped out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retiring {
    /// Its name.
    pub datapath: &'static str,
    /// Flows that it still serves, as of the last question; `None` when it could not say.
    pub flows: Option<u64>,
    /// When it is removed at the latest.
    pub deadline: Instant,
}

/// What a swap did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SwapReport {
    /// The datapath before.
    pub from: &'static str,
    /// The datapath now.
    pub to: &'static str,
    /// From the first write to the new one until the old one took no new flows.
    pub took: Duration,
    /// Routes that the new datapath cannot serve.
    pub failed: Vec<FailedRoute>,
    /// Flows that the old one keeps serving for now; `None` when it could not say, and goes at the deadline.
    pub draining_flows: Option<u64>,
}
