use std::time::Duration;

use crate::{
    cluster::FrontendConflict,
    datapath::{DatapathError, FailedRoute, HubEvent},
    route::{Frontend, Revision, ServicePortName},
};

/// What happens in a [`ServiceRouter`](super::ServiceRouter), for logs, metrics and reports.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RouterEvent {
    /// The kernel has what was submitted, or differs from it in routes that failed alone.
    Applied {
        /// The revision that the kernel has.
        revision: Revision,
        /// How many of the changes submitted since the start this and earlier updates cover. A
        /// [`Change`](crate::cluster::Change) counts once, whatever it holds.
        changes: u64,
        /// Routes written. None when the changes mean nothing that a packet could see.
        upserted: usize,
        /// Routes removed.
        removed: usize,
        /// Whether everything was written: at the start, after a conflict or drift, and at a swap.
        full: bool,
        /// Since the oldest change that it covers was submitted; zero when it covers none that is new.
        waited: Duration,
        /// From resolving the changes until the kernel had them.
        took: Duration,
    },
    /// An attempt failed. The kernel keeps the last good state, and the router tries again.
    Failed {
        /// Why.
        error: DatapathError,
    },
    /// A route cannot be served, or now for another reason. Not repeated while it stays so.
    RouteFailed(FailedRoute),
    /// A route that failed before is served, or is no longer wanted.
    RouteRecovered {
        /// Its frontend.
        frontend: Frontend,
        /// Whose it is, or was.
        service_port: ServicePortName,
    },
    /// Two Services claim one frontend from now on.
    Conflict(FrontendConflict),
    /// They do so no more.
    ConflictEnded(FrontendConflict),
    /// The kernel was found to hold something else than was programmed. It is repaired next.
    Drift {
        /// What was found.
        detail: String,
    },
    /// Another datapath serves all new flows.
    Swapped {
        /// Name of the datapath before.
        from: &'static str,
        /// Name of the datapath now.
        to: &'static str,
        /// From the first write to the new one until the old one took no new flows.
        took: Duration,
        /// Flows that the old one keeps serving for now; `None` when it could not say.
        draining_flows: Option<u64>,
    },
    /// Events that this reader does not get, because it was too slow. Older than the events that follow.
    Missed {
        /// How many.
        count: u64,
    },
    /// The router was closed.
    Closed,
}

impl HubEvent for RouterEvent {
    fn missed(count: u64) -> Self {
        Self::Missed { count }
    }

    fn missed_count(&self) -> Option<u64> {
        match self {
            Self::Missed { count } => Some(*count),
            _ => None,
        }
    }
}
