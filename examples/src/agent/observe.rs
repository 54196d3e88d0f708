use std::sync::Arc;

use futures::{Stream, StreamExt};
use k8s_openapi::{api::core::v1::ObjectReference, jiff::Timestamp};
use kubenet_core::{
    cluster::FrontendConflict, datapath::FailedRoute, route::ServicePortName, router::RouterEvent,
};
use tracing::{debug, info, warn};

use super::{
    metrics::Metrics,
    progress::{Progress, Subject},
    reports::{Report, Reports},
};

/// Turns what happens in the router into metrics and Kubernetes Events.
pub(super) struct Observer {
    pub(super) metrics: Metrics,
    pub(super) progress: Arc<Progress>,
    pub(super) reports: Reports,
}

impl Observer {
    /// Runs until the router ends.
    pub(super) async fn run(self, mut events: impl Stream<Item = RouterEvent> + Unpin) {
        while let Some(event) = events.next().await {
            self.take(event);
        }
    }

    fn take(&self, event: RouterEvent) {
        match event {
            RouterEvent::Applied { revision, changes, upserted, removed, full, waited, took } => {
                debug!(%revision, changes, upserted, removed, full, ?waited, ?took, "applied");
                self.metrics.updated(full, took);
                self.programmed(&self.progress.applied(changes));
            }
            RouterEvent::Failed { .. } => self.metrics.failed_updates.inc(),
            RouterEvent::RouteFailed(failed) => self.reports.tell(failed_route(&failed)),
            RouterEvent::Conflict(conflict) => self.reports.tell(self::conflict(&conflict)),
            RouterEvent::Drift { .. } => self.metrics.drifts.inc(),
            RouterEvent::Missed { count } => warn!(count, "the agent is too slow for the router's events"),
            other => info!(event = ?other, "router"),
        }
    }

    fn programmed(&self, subjects: &[Subject]) {
        let now = Timestamp::now();
        for subject in subjects {
            if let Subject::Slice { triggered: Some((time, family)) } = subject {
                let seconds = now.duration_since(*time).as_secs_f64().max(0.0);
                self.metrics.programming.with_label_values(&[family.as_str()]).observe(seconds);
            }
        }
    }
}

fn failed_route(failed: &FailedRoute) -> Report {
    let FailedRoute { frontend, service_port, error } = failed;
    Report {
        regarding: service(service_port),
        related: None,
        reason: "RouteFailed",
        action: "Route",
        note: format!("{frontend} ({service_port}) cannot be served: {error}"),
    }
}

fn conflict(conflict: &FrontendConflict) -> Report {
    let FrontendConflict { frontend, winner, loser } = conflict;
    Report {
        regarding: service(loser),
        related: Some(service(winner)),
        reason: "FrontendConflict",
        action: "Route",
        note: format!("{frontend} is not served for {loser}: {winner} claimed it before"),
    }
}

fn service(name: &ServicePortName) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Service".into()),
        namespace: Some(name.namespace.to_string()),
        name: Some(name.service.to_string()),
        field_path: Some(format!("spec.ports{{{}}}", name.port)).filter(|_| !name.port.is_empty()),
        ..ObjectReference::default()
    }
}
