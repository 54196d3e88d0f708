use std::time::Duration;

use super::RouterError;
use crate::health::DEFAULT_SYNC_PERIOD;

/// Intervals of a [`ServiceRouter`](super::ServiceRouter).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RouterOptions {
    /// At most one update per this time; the first change after quiet goes at once. Default 50 ms.
    pub min_interval: Duration,
    /// Wait before the first retry of a failed update; it doubles with each failure. Default 100 ms.
    pub retry_min: Duration,
    /// Longest wait between retries. Default 30 s.
    pub retry_max: Duration,
    /// An update that waits longer than twice this time makes [`ServiceRouter::health`] unhealthy. Default 30 s,
    /// as kube-proxy's.
    ///
    /// [`ServiceRouter::health`]: super::ServiceRouter::health
    pub sync_period: Duration,
    /// How often the kernel is read back and compared. Default 10 minutes; `Duration::MAX` is never.
    pub audit_interval: Duration,
    /// How often a cheap look tells whether somebody flushed what was programmed: [`Datapath::is_intact`].
    /// Default 10 s; `Duration::MAX` is never.
    ///
    /// [`Datapath::is_intact`]: crate::datapath::Datapath::is_intact
    pub canary_interval: Duration,
    /// How often a retiring datapath is asked for its remaining flows. Default 1 s.
    pub drain_poll: Duration,
}

impl Default for RouterOptions {
    fn default() -> Self {
        Self {
            min_interval: Duration::from_millis(50),
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(30),
            sync_period: DEFAULT_SYNC_PERIOD,
            audit_interval: Duration::from_secs(600),
            canary_interval: Duration::from_secs(10),
            drain_poll: Duration::from_secs(1),
        }
    }
}

impl RouterOptions {
    pub(super) fn check(&self) -> Result<(), RouterError> {
        let rule = |option, holds: bool, rule| {
            if holds { Ok(()) } else { Err(RouterError::InvalidOption { option, rule }) }
        };
        rule("retry_min", !self.retry_min.is_zero(), "must be above zero")?;
        rule("retry_max", self.retry_max >= self.retry_min, "must not be below retry_min")?;
        rule("sync_period", !self.sync_period.is_zero(), "must be above zero")?;
        rule("audit_interval", !self.audit_interval.is_zero(), "must be above zero")?;
        rule("canary_interval", !self.canary_interval.is_zero(), "must be above zero")?;
        rule("drain_poll", !self.drain_poll.is_zero(), "must be above zero")
    }
}
