//! [`ServiceRouter`]: takes declared changes and keeps a [`Datapath`] equal to what they mean.

mod driver;
mod event;
mod news;
mod options;
mod retirement;
mod status;

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt, channel::oneshot, stream::BoxStream};
use parking_lot::Mutex;

use self::driver::{Command, Driver};
pub use self::{
    event::RouterEvent,
    options::RouterOptions,
    status::{Retiring, RouterStatus, SwapReport},
};
use crate::{
    cluster::Change,
    datapath::{Close, Datapath, DatapathError, EventHub, FailedRoute},
    health::HealthBoard,
    model::NodeInfo,
    route::RouteTable,
};

/// Takes Services, EndpointSlices and facts about the node, and makes the kernel route them through the
/// datapath of the embedder's choice.
///
/// It owns one thread, which resolves and waits for the datapath, so it works under every executor and never
/// blocks the caller's. Changes come by calls ([`ServiceRouter::submit`]) or from a stream
/// ([`ServiceRouter::follow`]).
///
/// - **Nothing is programmed before everything was listed once**: call [`ServiceRouter::synced`], or submit a
///   [`Change::Snapshot`].
/// - The first change after quiet is applied at once; a burst is coalesced into one update per
///   [`RouterOptions::min_interval`].
/// - A failed update is retried with back-off and the kernel keeps the last good state. A conflict is
///   resolved by a full replacement. Routes that failed alone are retried alone.
/// - At [`RouterOptions::audit_interval`] the kernel is read back, compared and repaired; between, a cheap look
///   at [`RouterOptions::canary_interval`] notices that everything was flushed.
/// - [`ServiceRouter::swap`] moves to another datapath at run time.
///
/// Dropping the router stops its thread and leaves the datapath as it is; [`ServiceRouter::close`] closes
/// both.
///
/// ```
/// # use std::sync::Arc;
/// use kubenet_core::{datapath::{Close, Datapath}, model::*, router::ServiceRouter};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> { futures::executor::block_on(run()) }
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// # let datapath: Arc<dyn Datapath> = Arc::new(kubenet_testkit::memory::MemoryDatapath::new());
/// let node = NodeInfo::builder("node-a").address("10.0.0.1".parse()?).build()?;
/// let router = ServiceRouter::start(node, datapath)?;
/// router.submit(
///     Service::builder("demo", "web")
///         .cluster_ip("10.96.0.10".parse()?)
///         .port(ServicePort::new("http", Protocol::Tcp, 80.try_into()?))
///         .build()?,
/// )?;
/// router.synced()?;
/// let status = router.flush().await?;
/// assert_eq!(status.routes, 1);
/// router.close(Close::Remove).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ServiceRouter {
    commands: mpsc::Sender<Command>,
    status: Arc<Mutex<RouterStatus>>,
    health: Arc<HealthBoard>,
    events: EventHub<RouterEvent>,
}

/// Why a [`ServiceRouter`] could not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RouterError {
    /// The router was closed.
    #[error("the router is closed")]
    Closed,
    /// Services and slices were not yet declared complete: see [`ServiceRouter::synced`].
    #[error("nothing is programmed before synced() was called or a snapshot was submitted")]
    NotSynced,
    /// An option is out of its range.
    #[error("{option}: {rule}")]
    InvalidOption {
        /// Its name.
        option: &'static str,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// The datapath failed. What was programmed before stays programmed, and the router keeps trying.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The datapath that should take over cannot serve what the current one serves.
    #[error("the other datapath cannot serve {} routes; the first: {}", .0.len(), first(.0))]
    Unserved(Vec<FailedRoute>),
    /// One or more datapaths failed to close.
    #[error("{}", list(.0))]
    Close(Vec<DatapathError>),
    /// The thread could not be started.
    #[error("the router's thread could not be started")]
    Thread(#[source] Arc<io::Error>),
}

fn list(errors: &[DatapathError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn first(failed: &[FailedRoute]) -> String {
    failed.first().map_or_else(String::new, |f| format!("{} ({}): {}", f.frontend, f.service_port, f.error))
}

impl From<crate::model::Service> for Change {
    fn from(service: crate::model::Service) -> Self {
        Change::Service(service)
    }
}

impl From<crate::model::EndpointSlice> for Change {
    fn from(slice: crate::model::EndpointSlice) -> Self {
        Change::EndpointSlice(slice)
    }
}

impl From<NodeInfo> for Change {
    fn from(node: NodeInfo) -> Self {
        Change::Node(node)
    }
}

impl ServiceRouter {
    /// Starts with the default [`RouterOptions`].
    ///
    /// # Errors
    /// [`RouterError::Thread`].
    pub fn start(node: NodeInfo, datapath: Arc<dyn Datapath>) -> Result<Self, RouterError> {
        Self::start_with(node, datapath, RouterOptions::default())
    }

    /// Starts with these options.
    ///
    /// # Errors
    /// [`RouterError::InvalidOption`], [`RouterError::Thread`].
    pub fn start_with(
        node: NodeInfo,
        datapath: Arc<dyn Datapath>,
        options: RouterOptions,
    ) -> Result<Self, RouterError> {
        options.check()?;
        let (commands, inbox) = mpsc::channel();
        let driver = Driver::new(node, datapath, options);
        let (status, events, health) = (driver.status(), driver.events(), driver.health());
        thread::Builder::new()
            .name("kubenet-router".into())
            .spawn(move || driver.run(inbox))
            .map_err(|error| RouterError::Thread(Arc::new(error)))?;
        Ok(Self { commands, status, events, health })
    }

    fn send(&self, command: Command) -> Result<(), RouterError> {
        self.commands.send(command).map_err(|_| RouterError::Closed)
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, RouterError> {
        let (sender, answer) = oneshot::channel();
        self.send(command(sender))?;
        answer.await.map_err(|_| RouterError::Closed)
    }

    /// Declares a change. Returns at once.
    ///
    /// # Errors
    /// [`RouterError::Closed`].
    pub fn submit(&self, change: impl Into<Change>) -> Result<(), RouterError> {
        self.submit_all([change.into()])
    }

    /// Declares several changes that belong together: they are resolved in one step.
    ///
    /// # Errors
    /// [`RouterError::Closed`].
    pub fn submit_all(&self, changes: impl IntoIterator<Item = Change>) -> Result<(), RouterError> {
        let changes = changes.into_iter().collect();
        self.send(Command::Changes { changes, submitted: Instant::now() })
    }

    /// Declares that all Services and slices that exist have been submitted: from now on the kernel is
    /// written.
    ///
    /// # Errors
    /// [`RouterError::Closed`].
    pub fn synced(&self) -> Result<(), RouterError> {
        self.send(Command::Synced)
    }

    /// Submits everything that a stream yields, until it ends.
    ///
    /// # Errors
    /// [`RouterError::Closed`].
    pub async fn follow(
        &self,
        changes: impl Stream<Item = impl Into<Change>> + Send,
    ) -> Result<(), RouterError> {
        let mut changes = std::pin::pin!(changes);
        while let Some(change) = changes.next().await {
            self.submit(change)?;
        }
        Ok(())
    }

    /// Applies everything submitted before, at once, and waits until the kernel has it.
    ///
    /// # Errors
    /// That of the attempt; the router keeps trying. [`RouterError::NotSynced`].
    pub async fn flush(&self) -> Result<RouterStatus, RouterError> {
        self.ask(Command::Flush).await?
    }

    /// Reads the kernel back, compares it, and repairs it where it differs. Returns what was found.
    ///
    /// # Errors
    /// That of reading or repairing. [`RouterError::NotSynced`].
    pub async fn audit(&self) -> Result<Option<String>, RouterError> {
        self.ask(Command::Audit).await?
    }

    /// Looks at all routes, as resolved last. The router does nothing else meanwhile, so be quick.
    ///
    /// # Errors
    /// [`RouterError::Closed`].
    pub async fn inspect<R: Send + 'static>(
        &self,
        look: impl FnOnce(&RouteTable) -> R + Send + 'static,
    ) -> Result<R, RouterError> {
        self.ask(|answer| Command::Inspect(Box::new(|table| drop(answer.send(look(table)))))).await
    }

    /// Moves to another datapath while traffic flows: `next` is programmed first, then the current one takes
    /// no new flows. It keeps serving the flows that it owns and is removed when they have ended, or after
    /// `drain_for`.
    ///
    /// Returns once `next` serves all new flows. The old one is listed in [`RouterStatus::retiring`] until it
    /// is gone.
    ///
    /// # Errors
    /// `next` could not be programmed, or cannot serve a route that the current one serves
    /// ([`RouterError::Unserved`]): the current one goes on, and `next` is the caller's to close.
    pub async fn swap(
        &self,
        next: Arc<dyn Datapath>,
        drain_for: Duration,
    ) -> Result<SwapReport, RouterError> {
        self.ask(|answer| Command::Swap { next, drain_for, answer }).await?
    }

    /// What health checks ask about, kept up to date: the Services that have a health check, and whether
    /// updates are applied in time. Whether the node may take traffic is the embedder's to say
    /// ([`HealthBoard::set_node`]). The feature `health-server` serves it over HTTP.
    pub fn health(&self) -> Arc<HealthBoard> {
        Arc::clone(&self.health)
    }

    /// How things stand now.
    pub fn status(&self) -> RouterStatus {
        self.status.lock().clone()
    }

    /// What happens from now on. The stream ends when the router is closed or dropped. A reader that is too
    /// slow loses the oldest of 1,024 events, and is told how many by [`RouterEvent::Missed`];
    /// [`ServiceRouter::status`] has the current state.
    pub fn events(&self) -> BoxStream<'static, RouterEvent> {
        self.events.subscribe()
    }

    /// Stops, and closes the datapath and those that are retiring. With [`Close::Keep`], a retiring one that
    /// cannot stay by itself is removed.
    ///
    /// # Errors
    /// All failures of closing, those of datapaths that were swapped out before included. Where the datapath
    /// cannot keep the kernel forwarding, [`Close::Keep`] is refused and the router goes on.
    pub async fn close(&self, how: Close) -> Result<(), RouterError> {
        self.ask(|answer| Command::Close { how, answer }).await?
    }
}
