//! A datapath that fails, stalls or dies where told, around any other.
//!
//! ```
//! use std::sync::Arc;
//! use futures::executor::block_on;
//! use kubenet_core::{datapath::{Datapath, ErrorKind}, route::{RouteDelta, Revision}};
//! use kubenet_testkit::{faults::{Call, FaultyDatapath}, memory::MemoryDatapath};
//!
//! let datapath = FaultyDatapath::new(Arc::new(MemoryDatapath::new()));
//! datapath.fail_next(Call::Apply, 1, ErrorKind::Unavailable);
//! let delta = Arc::new(RouteDelta::empty(Revision(0), Revision(1)));
//! assert_eq!(block_on(datapath.apply(delta.clone())).unwrap_err().kind(), ErrorKind::Unavailable);
//! assert_eq!(block_on(datapath.apply(delta)).unwrap().revision, Revision(1));
//! assert_eq!(datapath.calls(Call::Apply), 2);
//! ```

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use futures::{
    FutureExt,
    channel::oneshot,
    future::Shared,
    stream::{BoxStream, StreamExt},
};
use kubenet_core::{
    datapath::{
        ApplyReport, Capabilities, Close, Counters, Datapath, DatapathError, DatapathEvent, DrainStatus,
        ErrorKind, EventHub,
    },
    route::{RouteDelta, RouteTable},
};
use parking_lot::Mutex;

/// A call of [`Datapath`] that may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// [`Datapath::replace`].
    Replace,
    /// [`Datapath::apply`].
    Apply,
    /// [`Datapath::read`].
    Read,
    /// [`Datapath::is_intact`].
    IsIntact,
    /// [`Datapath::counters`].
    Counters,
    /// [`Datapath::drain`].
    Drain,
    /// [`Datapath::close`].
    Close,
}

impl Call {
    /// All of them.
    pub const ALL: [Call; 7] =
        [Call::Replace, Call::Apply, Call::Read, Call::IsIntact, Call::Counters, Call::Drain, Call::Close];

    const fn operation(self) -> &'static str {
        match self {
            Call::Replace => "replace",
            Call::Apply => "apply",
            Call::Read => "read",
            Call::IsIntact => "is_intact",
            Call::Counters => "counters",
            Call::Drain => "drain",
            Call::Close => "close",
        }
    }
}

/// Wraps a datapath. A call that is told to fail never reaches it, so nothing changes.
#[derive(Debug)]
pub struct FaultyDatapath {
    inner: Arc<dyn Datapath>,
    faults: Mutex<BTreeMap<Call, Fault>>,
    events: EventHub,
}

#[derive(Debug, Default)]
struct Fault {
    calls: usize,
    /// The next this many calls fail.
    failures: Option<(usize, ErrorKind)>,
    stalled: Option<Shared<oneshot::Receiver<()>>>,
}

/// Holds calls back until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it releases the calls"]
pub struct Stall(#[expect(dead_code, reason = "dropping it wakes the receivers")] oneshot::Sender<()>);

impl Stall {
    /// Lets the calls go on.
    pub fn release(self) {}
}

impl FaultyDatapath {
    /// Wraps a datapath, without faults yet.
    pub fn new(inner: Arc<dyn Datapath>) -> Self {
        Self { inner, faults: Mutex::default(), events: EventHub::default() }
    }

    /// The wrapped datapath.
    pub fn inner(&self) -> &Arc<dyn Datapath> {
        &self.inner
    }

    /// The next `times` calls fail. [`ErrorKind::Conflict`] makes the datapath look moved by somebody else.
    pub fn fail_next(&self, call: Call, times: usize, kind: ErrorKind) {
        self.fault(call, |fault| fault.failures = Some((times, kind)));
    }

    /// Every call fails from now on: it died.
    pub fn kill(&self) {
        for call in Call::ALL {
            self.fail_next(call, usize::MAX, ErrorKind::Unavailable);
        }
    }

    /// Ends all failures. Stalls end with their [`Stall`].
    pub fn heal(&self) {
        self.faults.lock().values_mut().for_each(|fault| fault.failures = None);
    }

    /// Holds calls back until the guard is dropped. They then go on, or fail where they are told to.
    pub fn stall(&self, call: Call) -> Stall {
        let (guard, released) = oneshot::channel();
        self.fault(call, |fault| fault.stalled = Some(released.shared()));
        Stall(guard)
    }

    /// How often it was called, failures included.
    pub fn calls(&self, call: Call) -> usize {
        self.fault(call, |fault| fault.calls)
    }

    /// Emits an event as if the wrapped datapath had.
    pub fn emit(&self, event: &DatapathEvent) {
        self.events.emit(event);
    }

    fn fault<R>(&self, call: Call, job: impl FnOnce(&mut Fault) -> R) -> R {
        job(self.faults.lock().entry(call).or_default())
    }

    async fn pass(&self, call: Call) -> Result<(), DatapathError> {
        let stalled = self.fault(call, |fault| {
            fault.calls += 1;
            fault.stalled.clone()
        });
        if let Some(released) = stalled {
            // Ends with an error when the guard is dropped, which is what it is for.
            let _ = released.await;
        }
        let fails = self.fault(call, |fault| match &mut fault.failures {
            Some((0, _)) | None => None,
            Some((left, kind)) => {
                *left = left.saturating_sub(1);
                Some(*kind)
            }
        });
        match fails {
            None => Ok(()),
            Some(kind) => Err(DatapathError::new(
                self.inner.name(),
                call.operation(),
                kind,
                "this call was told to fail",
            )),
        }
    }
}

#[async_trait]
impl Datapath for FaultyDatapath {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    async fn replace(&self, table: Arc<RouteTable>) -> Result<ApplyReport, DatapathError> {
        self.pass(Call::Replace).await?;
        self.inner.replace(table).await
    }

    async fn apply(&self, delta: Arc<RouteDelta>) -> Result<ApplyReport, DatapathError> {
        self.pass(Call::Apply).await?;
        self.inner.apply(delta).await
    }

    async fn read(&self) -> Result<RouteTable, DatapathError> {
        self.pass(Call::Read).await?;
        self.inner.read().await
    }

    async fn is_intact(&self) -> Result<bool, DatapathError> {
        self.pass(Call::IsIntact).await?;
        self.inner.is_intact().await
    }

    async fn counters(&self) -> Result<Counters, DatapathError> {
        self.pass(Call::Counters).await?;
        self.inner.counters().await
    }

    async fn drain(&self) -> Result<DrainStatus, DatapathError> {
        self.pass(Call::Drain).await?;
        self.inner.drain().await
    }

    async fn close(&self, how: Close) -> Result<(), DatapathError> {
        self.pass(Call::Close).await?;
        self.events.end();
        self.inner.close(how).await
    }

    fn events(&self) -> BoxStream<'static, DatapathEvent> {
        futures::stream::select(self.inner.events(), self.events.subscribe()).boxed()
    }
}

#[cfg(test)]
mod tests {
    use futures::{executor::block_on, poll};
    use kubenet_core::route::Revision;

    use super::*;
    use crate::memory::MemoryDatapath;

    fn faulty() -> FaultyDatapath {
        FaultyDatapath::new(Arc::new(MemoryDatapath::new()))
    }

    fn step(from: u64) -> Arc<RouteDelta> {
        Arc::new(RouteDelta::empty(Revision(from), Revision(from + 1)))
    }

    #[test]
    fn a_failed_call_changes_nothing_and_others_work() {
        let datapath = faulty();
        datapath.fail_next(Call::Apply, 2, ErrorKind::Conflict);
        for _ in 0..2 {
            assert_eq!(block_on(datapath.apply(step(0))).unwrap_err().kind(), ErrorKind::Conflict);
            assert_eq!(block_on(datapath.read()).unwrap().revision(), Revision(0));
        }
        assert_eq!(block_on(datapath.apply(step(0))).unwrap().revision, Revision(1));
        assert_eq!((datapath.calls(Call::Apply), datapath.calls(Call::Read)), (3, 2));
    }

    #[test]
    fn a_stalled_call_goes_on_when_released() {
        let datapath = faulty();
        let stall = datapath.stall(Call::Apply);
        block_on(async {
            let mut apply = datapath.apply(step(0));
            assert!(poll!(&mut apply).is_pending());
            assert_eq!(datapath.read().await.unwrap().revision(), Revision(0));
            stall.release();
            assert_eq!(apply.await.unwrap().revision, Revision(1));
            assert_eq!(datapath.apply(step(1)).await.unwrap().revision, Revision(2));
        });
    }

    #[test]
    fn a_killed_datapath_fails_until_it_is_healed() {
        let datapath = faulty();
        datapath.kill();
        for _ in 0..3 {
            assert_eq!(block_on(datapath.drain()).unwrap_err().kind(), ErrorKind::Unavailable);
        }
        datapath.heal();
        assert!(block_on(datapath.drain()).is_ok());
    }
}
