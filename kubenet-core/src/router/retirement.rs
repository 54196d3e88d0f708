//! Datapaths that were swapped out: they serve the flows that they own, then they are removed.

use std::{
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::executor::block_on;
use tracing::{debug, info, warn};

use super::{Retiring, driver::after};
use crate::datapath::{Close, Datapath, DatapathError};

/// So often a datapath is asked to remove itself, when it fails.
const REMOVALS: u32 = 10;

#[derive(Default)]
pub(super) struct Retirement {
    datapaths: Vec<Retired>,
    /// Why some could not be removed.
    failures: Vec<DatapathError>,
}

struct Retired {
    datapath: Arc<dyn Datapath>,
    flows: Option<u64>,
    deadline: Instant,
    next_poll: Instant,
    removals: u32,
}

impl Retirement {
    /// Lets a datapath take no new flows, and removes it later. Says how many flows it still serves, if it
    /// knows.
    pub(super) fn add(
        &mut self,
        datapath: Arc<dyn Datapath>,
        drain_for: Duration,
        poll: Duration,
    ) -> Option<u64> {
        let flows = match block_on(datapath.drain()) {
            Ok(status) => Some(status.flows),
            Err(error) => {
                warn!(%error, "the flows of the old datapath are not known; it goes at the deadline");
                None
            }
        };
        let now = Instant::now();
        let wait = if flows == Some(0) { Duration::ZERO } else { poll.min(drain_for) };
        let (deadline, next_poll) = (after(now, drain_for), after(now, wait));
        self.datapaths.push(Retired { datapath, flows, deadline, next_poll, removals: 0 });
        flows
    }

    /// A datapath is in use again.
    pub(super) fn call_back(&mut self, datapath: &Arc<dyn Datapath>) {
        self.datapaths.retain(|retired| !Arc::ptr_eq(&retired.datapath, datapath));
    }

    /// When [`Retirement::poll`] has something to do.
    pub(super) fn next_poll(&self) -> Option<Instant> {
        self.datapaths.iter().map(|retired| retired.next_poll).min()
    }

    /// Asks those whose turn it is for their flows, and removes those that have none or whose time is up.
    pub(super) fn poll(&mut self, now: Instant, interval: Duration) {
        let failures = &mut self.failures;
        self.datapaths.retain_mut(|retired| {
            retired.next_poll > now
                || match retired.is_done(now, interval) {
                    Ok(done) => !done,
                    Err(error) => {
                        warn!(%error, "the old datapath could not be removed completely");
                        failures.push(error);
                        false
                    }
                }
        });
    }

    pub(super) fn list(&self) -> Vec<Retiring> {
        let entry = |retired: &Retired| Retiring {
            datapath: retired.datapath.name(),
            flows: retired.flows,
            deadline: retired.deadline,
        };
        self.datapaths.iter().map(entry).collect()
    }

    /// Ends them all. Returns what failed, now or before.
    pub(super) fn close(&mut self, how: Close) -> Vec<DatapathError> {
        let mut failures = mem::take(&mut self.failures);
        for Retired { datapath, .. } in mem::take(&mut self.datapaths) {
            // What can stay, stays with its flows.
            let how = if datapath.capabilities().keep_on_close { how } else { Close::Remove };
            failures.extend(block_on(datapath.close(how)).err());
        }
        failures
    }
}

impl Retired {
    /// Whether it is removed. An error is final.
    fn is_done(&mut self, now: Instant, interval: Duration) -> Result<bool, DatapathError> {
        if self.removals == 0
            && let Ok(status) = block_on(self.datapath.drain())
        {
            self.flows = Some(status.flows);
        }
        if self.flows != Some(0) && self.deadline > now {
            self.next_poll = after(now, interval).min(self.deadline);
            return Ok(false);
        }
        self.removals += 1;
        match block_on(self.datapath.close(Close::Remove)) {
            Ok(()) => {
                info!(datapath = self.datapath.name(), flows = self.flows, "old datapath removed");
                Ok(true)
            }
            Err(error) if error.kind().is_transient() && self.removals < REMOVALS => {
                debug!(%error, "the old datapath cannot be removed yet");
                self.next_poll = after(now, interval);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}
