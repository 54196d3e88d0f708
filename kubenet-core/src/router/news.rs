//! What the router tells: each thing once, when it begins and when it ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use tracing::{debug, warn};

use super::RouterEvent;
use crate::{
    cluster::FrontendConflict,
    datapath::{ApplyReport, EventHub, FailedRoute},
    route::Revision,
};

#[derive(Debug, Default)]
pub(super) struct News {
    hub: EventHub<RouterEvent>,
    /// Changes since the start.
    submitted: u64,
    /// So many of them are applied.
    applied: u64,
    /// When the oldest was submitted that is not applied.
    oldest: Option<Instant>,
}

impl News {
    pub(super) fn hub(&self) -> EventHub<RouterEvent> {
        self.hub.clone()
    }

    pub(super) fn emit(&self, event: &RouterEvent) {
        self.hub.emit(event);
    }

    pub(super) fn submitted(&mut self, changes: usize, at: Instant) {
        if changes > 0 {
            self.submitted += changes as u64;
            self.oldest.get_or_insert(at);
        }
    }

    /// Whether a change waits to be told as applied.
    pub(super) fn is_due(&self) -> bool {
        self.submitted > self.applied
    }

    /// The kernel has all that was submitted, by an update that began then.
    pub(super) fn applied(&mut self, report: &ApplyReport, full: bool, began: Instant) {
        let now = Instant::now();
        self.applied = self.submitted;
        let oldest = self.oldest.take();
        self.hub.emit(&RouterEvent::Applied {
            revision: report.revision,
            changes: self.applied,
            upserted: report.upserted,
            removed: report.removed,
            full,
            waited: oldest.map_or(Duration::ZERO, |oldest| now.saturating_duration_since(oldest)),
            took: now.saturating_duration_since(began),
        });
    }

    /// The kernel has all that was submitted, without an update.
    pub(super) fn nothing_to_apply(&mut self, revision: Revision, began: Instant) {
        if self.is_due() {
            self.applied(&ApplyReport::new(revision), false, began);
        }
    }

    /// Of the routes that an update touched: those that failed `before` it, and those that fail `now`.
    pub(super) fn routes(&self, before: Vec<FailedRoute>, now: &[FailedRoute]) {
        let mut before: BTreeMap<_, _> = before.into_iter().map(|failed| (failed.frontend, failed)).collect();
        for failed in now {
            let FailedRoute { frontend, service_port, error } = failed;
            let known = before.remove(frontend);
            if known.is_some_and(|k| k.service_port == *service_port && k.error.message() == error.message())
            {
                debug!(%frontend, service = %service_port, %error, "route still not served");
                continue;
            }
            warn!(%frontend, service = %service_port, %error, "route not served");
            self.hub.emit(&RouterEvent::RouteFailed(failed.clone()));
        }
        for FailedRoute { frontend, service_port, .. } in before.into_values() {
            self.hub.emit(&RouterEvent::RouteRecovered { frontend, service_port });
        }
    }

    /// Of the whole table: the conflicts before, and those now.
    pub(super) fn conflicts(&self, before: &[FrontendConflict], now: &[FrontendConflict]) {
        if before == now {
            return;
        }
        let (before, now) = (BTreeSet::from_iter(before), BTreeSet::from_iter(now));
        for &ended in before.difference(&now) {
            self.hub.emit(&RouterEvent::ConflictEnded(ended.clone()));
        }
        for &begun in now.difference(&before) {
            let FrontendConflict { frontend, winner, loser } = begun;
            warn!(%frontend, %winner, %loser, "two Services claim one frontend");
            self.hub.emit(&RouterEvent::Conflict(begun.clone()));
        }
    }
}

impl Drop for News {
    fn drop(&mut self) {
        self.hub.end();
    }
}
