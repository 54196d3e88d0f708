//! Finds and repairs what somebody changed behind the router's back: [K3].

use std::{collections::BTreeSet, time::Instant};

use futures::executor::block_on;
use tracing::warn;

use super::{Driver, Pending, RouterEvent, after};
use crate::{
    datapath::{DatapathError, DatapathExt},
    route::{Frontend, RouteDelta},
};

impl Driver {
    /// Compares the kernel with what was applied; repairs it with everything.
    pub(super) fn audit(&mut self) -> Result<Option<String>, DatapathError> {
        self.next_audit = after(Instant::now(), self.options.audit_interval);
        self.update()?;
        let drift = match block_on(self.datapath.drift(self.cluster.table())) {
            Ok(drift) => drift,
            Err(error) => {
                self.news.emit(&RouterEvent::Failed { error: error.clone() });
                self.status.lock().last_error = Some(error.clone());
                return Err(error);
            }
        };
        // The update before has succeeded, so an error is that of an earlier audit.
        self.status.lock().last_error = None;
        let unserved: BTreeSet<_> = self.status.lock().failed.iter().map(|failed| failed.frontend).collect();
        let found = drift.and_then(|delta| describe(&delta, &unserved));
        self.status.lock().last_drift.clone_from(&found);
        if let Some(found) = &found {
            self.repair(found)?;
        }
        Ok(found)
    }

    /// Repairs what somebody flushed, between audits. An update that failed is tried again anyway.
    pub(super) fn look_at_canary(&mut self) -> Result<(), DatapathError> {
        self.next_canary = after(Instant::now(), self.options.canary_interval);
        if !matches!(self.pending, Pending::Nothing) || block_on(self.datapath.is_intact())? {
            return Ok(());
        }
        let found = "what was programmed was flushed";
        self.status.lock().last_drift = Some(found.into());
        self.repair(found)
    }

    fn repair(&mut self, found: &str) -> Result<(), DatapathError> {
        warn!(found, "the kernel differs from what was programmed; repairing");
        self.news.emit(&RouterEvent::Drift { detail: found.into() });
        self.pending = Pending::Everything;
        self.update()
    }
}

/// In words, what would repair the kernel; `None` when only routes that it cannot serve are missing.
fn describe(delta: &RouteDelta, unserved: &BTreeSet<Frontend>) -> Option<String> {
    let mut found = Vec::new();
    if delta.node.is_some() {
        found.push("facts about the node differ".to_owned());
    }
    let changed = delta.upserts.iter().filter(|route| !unserved.contains(&route.frontend));
    found.extend(
        changed.map(|route| format!("{} ({}) is missing or differs", route.frontend, route.service_port)),
    );
    found.extend(delta.removals.iter().map(|frontend| format!("{frontend} is there but was not programmed")));
    if found.is_empty() {
        return None;
    }
    let more = found.len().saturating_sub(10);
    found.truncate(10);
    if more > 0 {
        found.push(format!("and {more} more"));
    }
    Some(found.join("; "))
}
