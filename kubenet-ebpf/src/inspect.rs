use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use kubenet_core::{
    datapath::{Counters, DatapathError, DatapathEvent},
    model::Protocol,
    route::{Backend, RouteTable, ServicePortName},
};

use crate::{
    Metrics,
    engine::{Follower, Inspection},
};

/// Looks into what a datapath has pinned ([`EbpfBuilder::pin_dir`](crate::EbpfBuilder::pin_dir)), from any process and
/// without disturbing it: whether its own process runs or not.
///
/// ```no_run
/// let inspector = kubenet_ebpf::Inspector::open(kubenet_ebpf::DEFAULT_PIN_DIR)?;
/// for route in inspector.table()?.routes() {
///     println!("{} {}: {} backends", route.frontend, route.service_port, route.internal.backends.len());
/// }
/// for connection in inspector.connections()? {
///     println!("{} to {} through {}", connection.client, connection.backend, connection.frontend);
/// }
/// # Ok::<(), kubenet_core::datapath::DatapathError>(())
/// ```
///
/// Needs `CAP_BPF` and a kernel that this library runs on. What it reads is read piece by piece: a change meanwhile
/// may be seen in part.
#[derive(Debug)]
pub struct Inspector(Inspection);

/// What happens to flows; see [`Inspector::follow`].
#[derive(Debug)]
pub struct Followed(Follower);

impl Followed {
    /// The next event: [`FlowStarted`](DatapathEvent::FlowStarted), [`PacketDropped`](DatapathEvent::PacketDropped) or
    /// [`Missed`](DatapathEvent::Missed). Blocks for so long at most; `None` when nothing happened meanwhile. Call it at
    /// least once a second: what happens later than three seconds after the last call is not reported.
    ///
    /// # Errors
    /// The ring cannot be read.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<DatapathEvent>, DatapathError> {
        self.0.next(timeout)
    }
}

/// A place in the table of backends.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackendEntry {
    /// Its id, of its address family.
    pub id: u32,
    /// How often the id was handed out.
    pub generation: u32,
    /// What it stands for, or stood for last.
    pub backend: Backend,
    /// Whether a route has it. Connections may still go to one that none has.
    pub in_use: bool,
}

/// A flow whose packets are translated. Those of this node's own processes are not among them: their sockets are
/// connected to the backend itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Connection {
    /// Its protocol.
    pub protocol: Protocol,
    /// Who opened it.
    pub client: SocketAddr,
    /// What the client dialled.
    pub frontend: SocketAddr,
    /// Whom the backend sees: the client, or this node where it is masqueraded.
    pub source: SocketAddr,
    /// Where it goes.
    pub backend: SocketAddr,
    /// Whose it is, as far as the frontend still is that Service's.
    pub service_port: Option<ServicePortName>,
    /// Since when the client has been silent, to a second.
    pub idle: Duration,
    /// The backend answered.
    pub is_answered: bool,
    /// The client closed it, or somebody reset it.
    pub is_closing: bool,
}

/// A client that stays with its backend.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StickyClient {
    /// Its address.
    pub client: IpAddr,
    /// Of which Service port, if that still has affinity.
    pub service_port: Option<ServicePortName>,
    /// With which backend, if that is still in use.
    pub backend: Option<Backend>,
    /// Time since its last new connection.
    pub idle: Duration,
}

impl Inspector {
    /// Opens the maps that are pinned in a directory.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`](kubenet_core::datapath::ErrorKind) when none are there,
    /// [`ErrorKind::Unsupported`](kubenet_core::datapath::ErrorKind) when they are of another layout.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, DatapathError> {
        Inspection::open(directory.as_ref()).map(Self)
    }

    /// All routes, and the facts about the node. The revision is only in the datapath's process: here it is 0.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn table(&self) -> Result<RouteTable, DatapathError> {
        self.0.table()
    }

    /// Every backend that has or had an id, IPv4 first, by id.
    pub fn backends(&self) -> Vec<BackendEntry> {
        self.0.backends()
    }

    /// All flows, in no order. On a node with many it takes a while, and is a lot.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn connections(&self) -> Result<Vec<Connection>, DatapathError> {
        self.0.connections()
    }

    /// All clients of Services with affinity, in no order.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn clients(&self) -> Result<Vec<StickyClient>, DatapathError> {
        self.0.clients()
    }

    /// What the programs counted since the maps were made.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn metrics(&self) -> Result<Metrics, DatapathError> {
        self.0.metrics()
    }

    /// What routes and backends have served; see [`Datapath::counters`](kubenet_core::datapath::Datapath::counters)
    /// of the datapath.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn counters(&self) -> Result<Counters, DatapathError> {
        self.0.counters()
    }

    /// Flows that begin and packets that are dropped, from now on, whether the datapath's process runs or not.
    ///
    /// There is one such reader at a time, apart from the datapath's own process, which has a ring of its own. It is
    /// the one thing that an inspector writes: a word that says until when somebody listens, so that the programs
    /// report nothing once it is gone.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`](kubenet_core::datapath::ErrorKind) when somebody follows already.
    pub fn follow(&self) -> Result<Followed, DatapathError> {
        self.0.follow().map(Followed)
    }

    /// Whether it serves known flows only.
    pub fn is_draining(&self) -> bool {
        self.0.is_draining()
    }
}
