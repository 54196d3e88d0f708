use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::FutureExt;
use kubenet_core::{
    model::IpFamily,
    route::{Route, RouteTable, Target, WhenEmpty},
    router::ServiceRouter,
};
use tokio::time::timeout;

use super::{http::Render, metrics::Metrics, progress::Progress};

/// How long a scrape waits for a router that is busy. What it would have said is then as it was last time.
const PATIENCE: Duration = Duration::from_secs(1);

/// Brings what the router knows into the metrics, then renders them.
pub(super) fn render(metrics: Metrics, router: Arc<ServiceRouter>, progress: Arc<Progress>) -> Render {
    Arc::new(move || {
        let (metrics, router, pending) = (metrics.clone(), Arc::clone(&router), progress.pending());
        async move {
            metrics.service_changes_pending.set(number(pending.services));
            metrics.endpoint_changes_pending.set(number(pending.slices));
            let status = router.status();
            metrics.services.set(number(status.services));
            metrics.routes.set(number(status.routes));
            metrics.failed_routes.set(number(status.failed.len()));
            metrics.conflicts.set(number(status.conflicts.len()));
            if let Ok(Ok(unserved)) = timeout(PATIENCE, router.inspect(without_local_endpoints)).await {
                for (policy, family, count) in unserved {
                    let labels = &[policy, family.as_str()];
                    metrics.no_local_endpoints.with_label_values(labels).set(number(count));
                }
            }
            metrics.render().map_err(|error| error.to_string())
        }
        .boxed()
    })
}

fn number(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// How many Service ports have a Local policy, endpoints, and none here; by policy and family.
fn without_local_endpoints(table: &RouteTable) -> Vec<(&'static str, IpFamily, usize)> {
    let dropped = |target: &Target| target.backends.is_empty() && target.when_empty == WhenEmpty::Drop;
    let internal = |route: &Route| !route.kind.is_external() && dropped(&route.internal);
    let external = |route: &Route| route.kind.is_external() && dropped(&route.external);
    let count = |family, concerned: &dyn Fn(&Route) -> bool| {
        let routes = table.routes().filter(|route| route.frontend.family() == family && concerned(route));
        routes.map(|route| &route.service_port).collect::<BTreeSet<_>>().len()
    };
    let both = |family| {
        [("internal", family, count(family, &internal)), ("external", family, count(family, &external))]
    };
    IpFamily::ALL.into_iter().flat_map(both).collect()
}
