//! The [`Datapath`] trait: whoever makes the kernel equal to a [`RouteTable`].

mod capabilities;
mod error;
mod events;

use std::{collections::BTreeMap, fmt::Debug, net::SocketAddr, ops::AddAssign, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;

pub use self::{
    capabilities::{Capabilities, Feature, Limitation},
    error::{DatapathError, ErrorKind},
    events::{DatapathEvent, EventHub, HubEvent},
};
use crate::{
    model::Protocol,
    route::{Frontend, Revision, RouteDelta, RouteTable, ServicePortName},
};

/// Makes the kernel route Services.
///
/// Object-safe: hold it as `Arc<dyn Datapath>`. All methods may be called from any thread and any executor;
/// blocking work runs on a thread that the datapath owns ([`Worker`](crate::worker::Worker)).
///
/// # Rules for implementations
/// - A packet never sees a half-made update, and a failed update leaves the last good state.
/// - Cancel-safe: dropping a returned future never leaves half an update. The work ends in the background.
/// - A route that cannot be served fails by name and alone ([`ApplyReport::failed`]).
/// - Established connections survive updates of other routes.
#[async_trait]
pub trait Datapath: Debug + Send + Sync + 'static {
    /// Short name, for messages and metrics: `iptables-nft`, `ebpf`.
    fn name(&self) -> &'static str;

    /// What it can serve, and how.
    fn capabilities(&self) -> &Capabilities;

    /// Makes the kernel equal to `table`, whatever it holds now. Idempotent. A draining datapath serves new
    /// flows again afterwards.
    ///
    /// # Errors
    /// Nothing was changed that a packet can see.
    async fn replace(&self, table: Arc<RouteTable>) -> Result<ApplyReport, DatapathError>;

    /// Moves from `delta.base` to `delta.revision`.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] when the datapath is at another revision; [`Datapath::replace`] resolves it.
    /// On any error nothing was changed that a packet can see.
    async fn apply(&self, delta: Arc<RouteDelta>) -> Result<ApplyReport, DatapathError>;

    /// What the kernel holds now, read back from the kernel: for audits, inspection and take-over.
    async fn read(&self) -> Result<RouteTable, DatapathError>;

    /// Whether what was programmed is still there: a look that costs the same for any number of routes, and
    /// notices that somebody flushed tables or took programs away. Smaller changes are found by
    /// [`Datapath::read`]. True where a datapath has no such look.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    async fn is_intact(&self) -> Result<bool, DatapathError> {
        Ok(true)
    }

    /// Counters by route and by backend, where [`Capabilities::counters`] says so.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where it does not.
    async fn counters(&self) -> Result<Counters, DatapathError>;

    /// Takes no new flows from now on, keeps serving the flows that it owns, and says how many those are.
    /// Call it again to ask again; 0 means that [`Close::Remove`] cuts nothing. Idempotent.
    async fn drain(&self) -> Result<DrainStatus, DatapathError>;

    /// Ends the datapath. Later calls fail with [`ErrorKind::Unavailable`].
    ///
    /// # Errors
    /// Carries on after a failure and reports all of them.
    async fn close(&self, how: Close) -> Result<(), DatapathError>;

    /// What happens in the datapath, from now on. A reader that is too slow loses the oldest events, and is told how
    /// many by [`DatapathEvent::Missed`]; [`EventHub`] does so for a datapath.
    fn events(&self) -> BoxStream<'static, DatapathEvent>;
}

/// Conveniences for every [`Datapath`].
#[async_trait]
pub trait DatapathExt: Datapath {
    /// Compares the kernel with `expected`: `None` when they agree, else what would repair the kernel.
    ///
    /// # Errors
    /// Those of [`Datapath::read`].
    async fn drift(&self, expected: &RouteTable) -> Result<Option<RouteDelta>, DatapathError> {
        let actual = self.read().await?;
        let delta = actual.diff(expected);
        Ok(if delta.is_empty() { None } else { Some(delta) })
    }
}

impl<D: Datapath + ?Sized> DatapathExt for D {}

/// How to end a datapath.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// Leave the kernel forwarding: for an upgrade or a hand-over to another process.
    Keep,
    /// Remove every trace.
    Remove,
}

/// Answer of [`Datapath::drain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainStatus {
    /// Flows whose translation would end with the datapath.
    pub flows: u64,
}

/// What [`Datapath::replace`] and [`Datapath::apply`] did.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ApplyReport {
    /// The revision that the kernel is at now.
    pub revision: Revision,
    /// Routes written.
    pub upserted: usize,
    /// Routes removed.
    pub removed: usize,
    /// Routes that could not be served. Everything else was. A failed route serves nothing, or what it
    /// served before.
    pub failed: Vec<FailedRoute>,
    /// Time that the datapath's thread spent on it.
    pub took: Duration,
}

impl ApplyReport {
    /// A report about reaching `revision`.
    pub fn new(revision: Revision) -> Self {
        Self { revision, ..Self::default() }
    }
}

/// A route that a datapath could not serve.
#[derive(Clone, Debug)]
pub struct FailedRoute {
    /// Its frontend.
    pub frontend: Frontend,
    /// Whose it is.
    pub service_port: ServicePortName,
    /// Why.
    pub error: DatapathError,
}

/// Counters since each route was programmed, or a backend became one of the table's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// By route of the table, and for no others; one that has served nothing may be missing. A route of another
    /// Service under the same frontend starts at zero.
    pub routes: BTreeMap<Frontend, Traffic>,
    /// By backend of the table, and for no others; one that has served nothing may be missing.
    pub backends: BTreeMap<BackendName, Traffic>,
}

/// Which backend is counted: an endpoint of a Service port. The frontends of the Service port share it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendName {
    /// Whose it is.
    pub service_port: ServicePortName,
    /// Of which protocol.
    pub protocol: Protocol,
    /// Where it is.
    pub address: SocketAddr,
}

/// What a route or a backend has served.
///
/// Packets and bytes are 0 where [`Capabilities::packet_counters`] says that they are not counted. Both directions
/// are apart, as they cost different devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Flows for which a backend was picked.
    pub connections: u64,
    /// Packets from clients to backends.
    pub packets: u64,
    /// Bytes of those packets, network header included.
    pub bytes: u64,
    /// Packets from backends to clients.
    pub reply_packets: u64,
    /// Bytes of those packets, network header included.
    pub reply_bytes: u64,
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.connections += other.connections;
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.reply_packets += other.reply_packets;
        self.reply_bytes += other.reply_bytes;
    }
}
