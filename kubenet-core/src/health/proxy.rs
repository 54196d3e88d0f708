use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use serde_json::{Map, Value, json};

use super::{Answer, NodeEligibility};
use crate::model::IpFamily;

/// The sync period of kube-proxy, and so of [`HealthBoard::default`](super::HealthBoard).
pub const DEFAULT_SYNC_PERIOD: Duration = Duration::from_secs(30);

/// What stands for the time of an update that never was, as in kube-proxy's answers.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// One moment on two clocks. Waiting is measured on the one that never jumps; the other is only shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The monotonic clock.
    pub instant: Instant,
    /// The wall clock.
    pub time: SystemTime,
}

impl Moment {
    /// This moment.
    pub fn now() -> Self {
        Self { instant: Instant::now(), time: SystemTime::now() }
    }

    /// The moment that comes later by this much; this one where a clock cannot say it.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        match (self.instant.checked_add(wait), self.time.checked_add(wait)) {
            (Some(instant), Some(time)) => Self { instant, time },
            _ => self,
        }
    }
}

/// Whether updates reach the kernel in time, by address family ([H2]).
///
/// Healthy means: no update has waited for twice the sync period. So it is healthy at the start. An update that
/// waits for the first success counts from when it was queued; kube-proxy does not count it.
///
/// [H2]: crate::health
#[derive(Clone, Debug)]
pub struct ProxyHealth {
    patience: Duration,
    families: BTreeMap<IpFamily, Family>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Family {
    updated: Option<Moment>,
    waiting: Option<Waiting>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// When the oldest was queued.
    oldest: Instant,
    /// When the latest was queued.
    latest: Instant,
}

impl Family {
    fn is_healthy(&self, patience: Duration, now: Instant) -> bool {
        self.waiting.is_none_or(|waiting| now.saturating_duration_since(waiting.oldest) < patience)
    }
}

impl ProxyHealth {
    /// Healthy, with nothing queued. With a sync period of zero every update that waits is late.
    pub fn new(sync_period: Duration) -> Self {
        Self { patience: sync_period.saturating_mul(2), families: BTreeMap::new() }
    }

    /// Something of this family must get into the kernel.
    pub fn update_queued(&mut self, family: IpFamily, at: Instant) {
        let waiting = &mut self.families.entry(family).or_default().waiting;
        *waiting = Some(match *waiting {
            None => Waiting { oldest: at, latest: at },
            Some(known) => Waiting { oldest: known.oldest.min(at), latest: known.latest.max(at) },
        });
    }

    /// The kernel has everything of this family that was queued until `covers`. What was queued later still
    /// waits.
    pub fn updated(&mut self, family: IpFamily, covers: Instant, at: Moment) {
        let family = self.families.entry(family).or_default();
        family.updated = Some(at);
        // Of those after `covers` only the latest is known exactly: the oldest came after `covers`.
        family.waiting = family
            .waiting
            .filter(|waiting| waiting.latest > covers)
            .map(|waiting| Waiting { oldest: waiting.oldest.max(covers), ..waiting });
    }

    /// Whether all families are healthy, whatever the node's state.
    pub fn is_healthy(&self, now: Instant) -> bool {
        self.families.values().all(|family| family.is_healthy(self.patience, now))
    }

    /// The answer at `/livez`.
    pub fn livez(&self, now: Moment) -> Answer {
        self.answer(None, now)
    }

    /// The answer at `/healthz`. Its field `healthy` is the proxy's health alone, as in kube-proxy's answer; the
    /// status is of both.
    pub fn healthz(&self, node: NodeEligibility, now: Moment) -> Answer {
        self.answer(Some(node), now)
    }

    fn answer(&self, node: Option<NodeEligibility>, now: Moment) -> Answer {
        let healthy = self.is_healthy(now.instant);
        let good = healthy && node.is_none_or(NodeEligibility::is_eligible);
        // A wall clock that was set back must not show an update in the future.
        let shown =
            |updated: Option<Moment>| updated.map_or(NEVER.into(), |at| rfc3339(at.time.min(now.time)));
        let last = self.families.values().filter_map(|family| family.updated).max_by_key(|at| at.instant);
        let status: Map<String, Value> = self
            .families
            .iter()
            .map(|(name, family)| {
                let healthy = family.is_healthy(self.patience, now.instant);
                (name.to_string(), json!({ "lastUpdated": shown(family.updated), "healthy": healthy }))
            })
            .collect();
        let mut body = json!({
            // Recent in every good answer, even when there was nothing to update: monitors rely on it.
            "lastUpdated": if good { rfc3339(now.time) } else { shown(last) },
            "currentTime": rfc3339(now.time),
            "healthy": healthy,
        });
        if let Some(node) = node {
            body["nodeEligible"] = node.is_eligible().into();
        }
        if !status.is_empty() {
            body["status"] = status.into();
        }
        Answer::new(good, &body)
    }
}

fn rfc3339(time: SystemTime) -> String {
    // Out of range only thousands of years from now.
    jiff::Timestamp::try_from(time).map_or_else(|_| NEVER.to_owned(), |time| time.to_string())
}

#[cfg(test)]
mod tests;
