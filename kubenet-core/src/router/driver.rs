//! The router's thread: one loop, one decision at a time.

mod audit;

use std::{
    collections::BTreeSet,
    iter, mem,
    ops::ControlFlow,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use futures::{channel::oneshot, executor::block_on};
use parking_lot::Mutex;
use tracing::{debug, info, warn};

use super::{
    RouterError, RouterEvent, RouterOptions, RouterStatus, SwapReport, news::News, retirement::Retirement,
};
use crate::{
    cluster::{Change, Cluster},
    datapath::{ApplyReport, Close, Datapath, DatapathError, ErrorKind, EventHub},
    health::{HealthBoard, Moment},
    model::{IpFamily, NodeInfo},
    route::{Revision, RouteDelta, RouteTable},
};

type Answer<T> = oneshot::Sender<Result<T, RouterError>>;

/// Who asked it to close, and what came of it.
type Closing = (Answer<()>, Result<(), RouterError>);

type Look = Box<dyn FnOnce(&RouteTable) + Send>;

pub(super) enum Command {
    Changes { changes: Vec<Change>, submitted: Instant },
    Synced,
    Flush(Answer<RouterStatus>),
    Audit(Answer<Option<String>>),
    Inspect(Look),
    Swap { next: Arc<dyn Datapath>, drain_for: Duration, answer: Answer<SwapReport> },
    Close { how: Close, answer: Answer<()> },
}

pub(super) struct Driver {
    options: RouterOptions,
    cluster: Cluster,
    synced: bool,
    datapath: Arc<dyn Datapath>,
    /// How the kernel gets from what it has to the cluster's table.
    pending: Pending,
    /// The end of the quiet time after the last update.
    not_before: Instant,
    /// Of an update that failed.
    retry: Backoff,
    /// Of routes that failed alone. It holds up nothing else.
    retry_routes: Backoff,
    next_audit: Instant,
    next_canary: Instant,
    retirement: Retirement,
    news: News,
    health: Arc<HealthBoard>,
    status: Arc<Mutex<RouterStatus>>,
}

/// What the kernel lacks.
#[derive(Debug)]
enum Pending {
    Nothing,
    Delta(Arc<RouteDelta>),
    /// The kernel's state is unknown: the whole table.
    Everything,
}

/// When a failed update is tried again.
struct Backoff {
    wait: Duration,
    at: Option<Instant>,
}

/// So many commands are taken before the kernel has its turn.
const BURST: usize = 4096;

impl Driver {
    pub(super) fn new(node: NodeInfo, datapath: Arc<dyn Datapath>, options: RouterOptions) -> Self {
        let status = RouterStatus {
            datapath: datapath.name(),
            synced: false,
            revision: Revision::default(),
            applied: Revision::default(),
            services: 0,
            routes: 0,
            updates: 0,
            pending_since: None,
            last_error: None,
            failed: Vec::new(),
            conflicts: Vec::new(),
            last_drift: None,
            retiring: Vec::new(),
        };
        Self {
            cluster: Cluster::new(node),
            synced: false,
            datapath,
            pending: Pending::Everything,
            not_before: Instant::now(),
            retry: Backoff::new(&options),
            retry_routes: Backoff::new(&options),
            next_audit: after(Instant::now(), options.audit_interval),
            next_canary: after(Instant::now(), options.canary_interval),
            retirement: Retirement::default(),
            news: News::default(),
            health: Arc::new(HealthBoard::new(options.sync_period)),
            status: Arc::new(Mutex::new(status)),
            options,
        }
    }

    pub(super) fn status(&self) -> Arc<Mutex<RouterStatus>> {
        Arc::clone(&self.status)
    }

    pub(super) fn events(&self) -> EventHub<RouterEvent> {
        self.news.hub()
    }

    pub(super) fn run(mut self, inbox: mpsc::Receiver<Command>) {
        let closing = self.serve(&inbox);
        // Whoever hears that it is closed must not be able to hand in more, which nobody would see.
        drop(inbox);
        if let Some((answer, closed)) = closing {
            let _ = answer.send(closed);
        }
    }

    /// Until it is closed, or nobody is left who could.
    fn serve(&mut self, inbox: &mpsc::Receiver<Command>) -> Option<Closing> {
        loop {
            let command = match self.next_deadline() {
                None => inbox.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
                Some(at) => inbox.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            let burst = match command {
                Ok(command) => iter::once(command).chain(inbox.try_iter().take(BURST)),
                Err(mpsc::RecvTimeoutError::Disconnected) => return None,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    self.act(Instant::now());
                    continue;
                }
            };
            for command in burst {
                if let ControlFlow::Break(closing) = self.handle(command) {
                    return Some(closing);
                }
            }
            self.act(Instant::now());
        }
    }

    fn handle(&mut self, command: Command) -> ControlFlow<Closing> {
        match command {
            Command::Changes { changes, submitted } => self.declare(changes, submitted),
            Command::Synced => {
                self.synced = true;
                self.status.lock().synced = true;
            }
            Command::Flush(answer) => {
                let result = self.require_synced().and_then(|()| {
                    self.update()?;
                    Ok(self.status.lock().clone())
                });
                let _ = answer.send(result);
            }
            Command::Audit(answer) => {
                let result = self.require_synced().and_then(|()| Ok(self.audit()?));
                let _ = answer.send(result);
            }
            Command::Inspect(look) => look(self.cluster.table()),
            Command::Swap { next, drain_for, answer } => {
                let _ = answer.send(self.swap(next, drain_for));
            }
            Command::Close { how, answer } => {
                if how == Close::Keep && !self.datapath.capabilities().keep_on_close {
                    let refusal = DatapathError::new(
                        self.datapath.name(),
                        "close",
                        ErrorKind::Unsupported,
                        "it cannot leave the kernel forwarding (Capabilities::keep_on_close); nothing was closed",
                    );
                    let _ = answer.send(Err(refusal.into()));
                    return ControlFlow::Continue(());
                }
                let closed = self.close(how);
                self.news.emit(&RouterEvent::Closed);
                return ControlFlow::Break((answer, closed));
            }
        }
        ControlFlow::Continue(())
    }

    pub(super) fn health(&self) -> Arc<HealthBoard> {
        Arc::clone(&self.health)
    }

    /// The families that this node serves: those that the datapath has and the node has an address of.
    fn families(&self) -> Vec<IpFamily> {
        let node = self.cluster.node().addresses();
        let on_node = |family: &IpFamily| node.is_empty() || node.iter().any(|a| IpFamily::of(*a) == *family);
        self.datapath.capabilities().families.iter().copied().filter(on_node).collect()
    }

    /// The kernel has everything that was declared before `covers`.
    fn up_to_date(&mut self, covers: Instant) {
        for (service, health) in self.cluster.take_health_changes() {
            match health {
                Some(health) => self.health.upsert_service(health),
                None => self.health.remove_service(&service),
            }
        }
        for family in self.families() {
            self.health.updated(family, covers, Moment::now());
        }
    }

    fn declare(&mut self, changes: Vec<Change>, submitted: Instant) {
        self.news.submitted(changes.len(), submitted);
        for change in changes {
            self.synced |= matches!(change, Change::Snapshot { .. });
            self.cluster.change(change);
        }
        if self.cluster.is_dirty() {
            for family in self.families() {
                self.health.update_queued(family, submitted);
            }
        }
        let mut status = self.status.lock();
        status.synced = self.synced;
        status.services = self.cluster.service_count();
        if self.cluster.is_dirty() {
            status.pending_since.get_or_insert_with(Instant::now);
        }
    }

    fn require_synced(&self) -> Result<(), RouterError> {
        if self.synced { Ok(()) } else { Err(RouterError::NotSynced) }
    }

    /// When an update is due: at once after quiet, later within a burst or after a failure.
    fn update_due(&self) -> Option<Instant> {
        let behind =
            self.cluster.is_dirty() || self.news.is_due() || !matches!(self.pending, Pending::Nothing);
        (self.synced && behind).then(|| self.retry.at.map_or(self.not_before, |at| at.max(self.not_before)))
    }

    fn next_deadline(&self) -> Option<Instant> {
        let look = self.synced.then(|| self.next_audit.min(self.next_canary));
        let wanted = [self.update_due(), self.retry_routes.at, look, self.retirement.next_poll()];
        wanted.into_iter().flatten().min()
    }

    fn act(&mut self, now: Instant) {
        if self.retry_routes.at.is_some_and(|due| due <= now) {
            self.ask_for_failed_routes();
        }
        if self.update_due().is_some_and(|due| due <= now) {
            // Reported in the status, and tried again.
            let _ = self.update();
        }
        if self.synced && self.next_audit <= now {
            let _ = self.audit();
        } else if self.synced && self.next_canary <= now {
            let _ = self.look_at_canary();
        }
        self.poll_retired(now);
    }

    /// Resolves what changed, and adds it to what the kernel lacks.
    fn resolve(&mut self) {
        if let Some(delta) = self.cluster.take_delta() {
            self.add(delta);
        }
        let conflicts = self.cluster.conflicts();
        let mut status = self.status.lock();
        status.revision = self.cluster.table().revision();
        status.routes = self.cluster.table().len();
        let before = mem::replace(&mut status.conflicts, conflicts.clone());
        drop(status);
        self.news.conflicts(&before, &conflicts);
    }

    fn add(&mut self, delta: RouteDelta) {
        self.pending = match mem::replace(&mut self.pending, Pending::Nothing) {
            Pending::Nothing => Pending::Delta(Arc::new(delta)),
            Pending::Delta(earlier) => Pending::Delta(Arc::new(Arc::unwrap_or_clone(earlier).then(delta))),
            Pending::Everything => Pending::Everything,
        };
    }

    /// Routes that failed alone are tried once more, at the table's own revision.
    fn ask_for_failed_routes(&mut self) {
        self.resolve();
        let table = self.cluster.table();
        let mut again = RouteDelta::empty(table.revision(), table.revision());
        again.upserts =
            self.status.lock().failed.iter().filter_map(|f| table.get(&f.frontend)).cloned().collect();
        self.retry_routes.at = None;
        self.add(again);
    }

    /// Resolves what changed and brings the kernel there.
    fn update(&mut self) -> Result<(), DatapathError> {
        let began = Instant::now();
        self.resolve();
        let result = match &self.pending {
            Pending::Nothing => {
                self.status.lock().pending_since = None;
                self.news.nothing_to_apply(self.cluster.table().revision(), began);
                self.up_to_date(began);
                return Ok(());
            }
            Pending::Everything => self.replace(),
            Pending::Delta(delta) => match block_on(self.datapath.apply(Arc::clone(delta))) {
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    info!(%error, "resynchronising");
                    self.pending = Pending::Everything;
                    self.replace()
                }
                result => result,
            },
        };
        self.not_before = after(Instant::now(), self.options.min_interval);
        match result {
            Ok(report) => {
                self.applied(&report, began);
                Ok(())
            }
            Err(error) => {
                self.failed(&error);
                Err(error)
            }
        }
    }

    fn replace(&self) -> Result<ApplyReport, DatapathError> {
        block_on(self.datapath.replace(Arc::clone(self.cluster.table())))
    }

    fn applied(&mut self, report: &ApplyReport, began: Instant) {
        debug!(revision = %report.revision, took = ?report.took, "applied");
        let touched = match mem::replace(&mut self.pending, Pending::Nothing) {
            Pending::Delta(delta) => Some(delta.touched()),
            Pending::Nothing | Pending::Everything => None,
        };
        let mut status = self.status.lock();
        status.applied = report.revision;
        status.updates += 1;
        status.pending_since = None;
        status.last_error = None;
        // A delta says nothing about routes that failed before and that it does not touch.
        let settled = match &touched {
            Some(touched) => {
                status.failed.extract_if(.., |failed| touched.contains(&failed.frontend)).collect()
            }
            None => mem::take(&mut status.failed),
        };
        status.failed.extend(report.failed.iter().cloned());
        let transient = status.failed.iter().any(|failed| failed.error.kind().is_transient());
        drop(status);
        self.news.applied(report, touched.is_none(), began);
        self.up_to_date(began);
        self.news.routes(settled, &report.failed);
        self.retry.reset(&self.options);
        if !transient {
            self.retry_routes.reset(&self.options);
        } else if self.retry_routes.at.is_none() {
            self.retry_routes.later(&self.options);
        }
    }

    fn failed(&mut self, error: &DatapathError) {
        warn!(%error, "update failed; the kernel keeps the last good state");
        if error.kind() == ErrorKind::Conflict {
            self.pending = Pending::Everything;
        }
        self.retry.later(&self.options);
        self.news.emit(&RouterEvent::Failed { error: error.clone() });
        let mut status = self.status.lock();
        status.last_error = Some(error.clone());
        status.pending_since.get_or_insert_with(Instant::now);
    }

    fn swap(&mut self, next: Arc<dyn Datapath>, drain_for: Duration) -> Result<SwapReport, RouterError> {
        self.require_synced()?;
        self.resolve();
        let started = Instant::now();
        let report = block_on(next.replace(Arc::clone(self.cluster.table())))?;
        let unserved_before: BTreeSet<_> = self.status.lock().failed.iter().map(|f| f.frontend).collect();
        let newly = report.failed.iter().filter(|failed| !unserved_before.contains(&failed.frontend));
        let newly: Vec<_> = newly.cloned().collect();
        if !newly.is_empty() && !Arc::ptr_eq(&next, &self.datapath) {
            return Err(RouterError::Unserved(newly));
        }
        let old = mem::replace(&mut self.datapath, next);
        self.pending = Pending::Everything;
        self.applied(&report, started);
        self.not_before = after(Instant::now(), self.options.min_interval);
        self.status.lock().datapath = self.datapath.name();
        // The same datapath may come back before it was gone, or have never left.
        self.retirement.call_back(&self.datapath);
        let (from, to) = (old.name(), self.datapath.name());
        let draining_flows = if Arc::ptr_eq(&old, &self.datapath) {
            Some(0)
        } else {
            self.retirement.add(old, drain_for, self.options.drain_poll)
        };
        self.status.lock().retiring = self.retirement.list();
        let took = started.elapsed();
        info!(from, to, ?took, "swapped");
        self.news.emit(&RouterEvent::Swapped { from, to, took, draining_flows });
        Ok(SwapReport { from, to, took, failed: report.failed, draining_flows })
    }

    fn poll_retired(&mut self, now: Instant) {
        if self.retirement.next_poll().is_some_and(|due| due <= now) {
            self.retirement.poll(now, self.options.drain_poll);
            self.status.lock().retiring = self.retirement.list();
        }
    }

    fn close(&mut self, how: Close) -> Result<(), RouterError> {
        let mut errors = self.retirement.close(how);
        errors.extend(block_on(self.datapath.close(how)).err());
        if errors.is_empty() { Ok(()) } else { Err(RouterError::Close(errors)) }
    }
}

/// An instant that is far away where the sum would leave the clock's range.
pub(super) fn after(now: Instant, wait: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
    now.checked_add(wait).unwrap_or(now + FAR)
}

impl Backoff {
    fn new(options: &RouterOptions) -> Self {
        Self { wait: options.retry_min, at: None }
    }

    fn later(&mut self, options: &RouterOptions) {
        self.at = Some(after(Instant::now(), self.wait));
        self.wait = self.wait.saturating_mul(2).min(options.retry_max);
    }

    fn reset(&mut self, options: &RouterOptions) {
        *self = Self::new(options);
    }
}
