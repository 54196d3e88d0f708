//! Serves health answers over HTTP with threads of its own.
//!
//! | thread | what it does |
//! |---|---|
//! | one keeper | opens and closes listeners as the board's ports change, and retries those that failed |
//! | one acceptor per listener | hands connections over; never serves one itself |
//! | workers, as many as connections are allowed | one request each, then the connection ends |

mod acceptor;
mod connections;
mod exchange;
mod keeper;
mod problem;
mod socket;

use std::{
    collections::BTreeSet,
    fmt, io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::{NonZeroU16, NonZeroUsize},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use parking_lot::Mutex;

use self::{connections::Connections, keeper::Keeper};
use super::HealthBoard;

pub use self::problem::PortProblem;

/// The port of kube-proxy's `/healthz` and `/livez`.
pub const DEFAULT_HEALTHZ_PORT: u16 = 10256;

/// What a listener answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    /// `/healthz` and `/livez`.
    Proxy,
    /// The check of the Service that has this port.
    Service(NonZeroU16),
}

type OnProblem = Box<dyn Fn(&PortProblem) + Send + Sync>;
type OnAnswer = Box<dyn Fn(&'static str, u16) + Send + Sync>;

/// What the server and its threads share.
struct Shared {
    board: Arc<HealthBoard>,
    addresses: Mutex<BTreeSet<IpAddr>>,
    healthz: Option<SocketAddr>,
    retry_interval: Duration,
    on_problem: Option<OnProblem>,
    problems: Mutex<Vec<PortProblem>>,
    listening: Mutex<Vec<(Subject, SocketAddr)>>,
    stopping: AtomicBool,
}

/// Serves the health-check node ports of a [`HealthBoard`], and `/healthz` and `/livez`, over HTTP/1.
///
/// It needs no executor. Each connection serves one request and is closed. Their number and their life are
/// bounded; where a new one finds no room, the oldest of the peer that holds most of them is cut, so that slow
/// clients never stand in the way of others. Dropping the server closes all ports and ends all threads.
///
/// ```no_run
/// use std::sync::Arc;
/// use kubenet_core::health::{DEFAULT_HEALTHZ_PORT, HealthBoard, HealthServer};
/// # fn main() -> std::io::Result<()> {
/// let board = Arc::new(HealthBoard::default());
/// let server = HealthServer::builder(Arc::clone(&board))
///     .healthz(([0; 16], DEFAULT_HEALTHZ_PORT).into())
///     .on_problem(|problem| eprintln!("{problem}"))
///     .start()?;
/// # Ok(())
/// # }
/// ```
pub struct HealthServer {
    shared: Arc<Shared>,
    keeper: Option<JoinHandle<()>>,
}

/// Configuration of a [`HealthServer`].
#[must_use]
pub struct HealthServerBuilder {
    board: Arc<HealthBoard>,
    addresses: BTreeSet<IpAddr>,
    healthz: Option<SocketAddr>,
    max_connections: NonZeroUsize,
    connection_life: Duration,
    retry_interval: Duration,
    on_problem: Option<OnProblem>,
    on_answer: Option<OnAnswer>,
}

impl HealthServerBuilder {
    /// The addresses on which Services' health-check node ports listen. Default `::`, which is all of both
    /// families, or all of IPv4 where the system has no IPv6. With an IPv4 address beside it, `::` is all of
    /// IPv6 alone.
    pub fn addresses(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        self.addresses = addresses.into_iter().collect();
        self
    }

    /// Serves `/healthz` and `/livez` at this address, too; other paths are not found. `::` is all addresses of
    /// both families. Not served unless asked for; kube-proxy's port is [`DEFAULT_HEALTHZ_PORT`].
    pub fn healthz(mut self, address: SocketAddr) -> Self {
        self.healthz = Some(address);
        self
    }

    /// How many connections are served at the same time, over all ports. Default 32. Each has a thread while it
    /// lasts.
    pub fn max_connections(mut self, max: NonZeroUsize) -> Self {
        self.max_connections = max;
        self
    }

    /// After how long a connection is cut, whatever it is doing. Default 5 s.
    pub fn connection_life(mut self, life: Duration) -> Self {
        self.connection_life = life;
        self
    }

    /// After how long a port that could not be opened is tried again. Default 5 s.
    pub fn retry_interval(mut self, interval: Duration) -> Self {
        self.retry_interval = interval;
        self
    }

    /// Called with each new problem, on a thread of the server. It must neither block for long nor panic.
    pub fn on_problem(mut self, report: impl Fn(&PortProblem) + Send + Sync + 'static) -> Self {
        self.on_problem = Some(Box::new(report));
        self
    }

    /// Called with each answer about the proxy, on a thread of the server: the path, `/healthz` or `/livez`, and
    /// the status. For counters. It must neither block for long nor panic.
    pub fn on_answer(mut self, count: impl Fn(&'static str, u16) + Send + Sync + 'static) -> Self {
        self.on_answer = Some(Box::new(count));
        self
    }

    /// Opens what can be opened now, and starts to serve. A port that cannot be opened is no error: see
    /// [`HealthServer::problems`].
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(self) -> io::Result<HealthServer> {
        let connections = Connections::new(
            Arc::clone(&self.board),
            self.max_connections.get(),
            self.connection_life,
            self.on_answer,
        );
        let shared = Arc::new(Shared {
            board: self.board,
            addresses: Mutex::new(self.addresses),
            healthz: self.healthz,
            retry_interval: self.retry_interval,
            on_problem: self.on_problem,
            problems: Mutex::default(),
            listening: Mutex::default(),
            stopping: AtomicBool::new(false),
        });
        let mut keeper = Keeper::new(Arc::clone(&shared), connections);
        keeper.reconcile();
        let thread = thread::Builder::new().name("health-keeper".to_owned()).spawn(move || keeper.run())?;
        Ok(HealthServer { shared, keeper: Some(thread) })
    }
}

impl fmt::Debug for HealthServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthServerBuilder")
            .field("addresses", &self.addresses)
            .field("healthz", &self.healthz)
            .finish_non_exhaustive()
    }
}

impl HealthServer {
    /// Begins the configuration of a server of this board's answers.
    pub fn builder(board: Arc<HealthBoard>) -> HealthServerBuilder {
        HealthServerBuilder {
            board,
            addresses: BTreeSet::from([Ipv6Addr::UNSPECIFIED.into()]),
            healthz: None,
            max_connections: NonZeroUsize::MIN.saturating_add(31),
            connection_life: Duration::from_secs(5),
            retry_interval: Duration::from_secs(5),
            on_problem: None,
            on_answer: None,
        }
    }

    /// Changes the addresses on which Services' ports listen, as the node's change. Listeners that stay are not
    /// touched.
    pub fn set_addresses(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        *self.shared.addresses.lock() = addresses.into_iter().collect();
        self.shared.board.wake_waiting();
    }

    /// What does not listen, and why. Tried again without being asked.
    pub fn problems(&self) -> Vec<PortProblem> {
        self.shared.problems.lock().clone()
    }

    /// Where Services' ports listen now.
    pub fn listening(&self) -> Vec<SocketAddr> {
        let listening = self.shared.listening.lock();
        listening.iter().filter(|(subject, _)| *subject != Subject::Proxy).map(|(_, at)| *at).collect()
    }

    /// Where `/healthz` and `/livez` listen now.
    pub fn healthz_address(&self) -> Option<SocketAddr> {
        let listening = self.shared.listening.lock();
        listening.iter().find(|(subject, _)| *subject == Subject::Proxy).map(|(_, at)| *at)
    }
}

impl Drop for HealthServer {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.board.wake_waiting();
        if let Some(keeper) = self.keeper.take()
            && keeper.thread().id() != thread::current().id()
        {
            let _ = keeper.join();
        }
    }
}

impl fmt::Debug for HealthServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthServer")
            .field("listening", &*self.shared.listening.lock())
            .field("problems", &*self.shared.problems.lock())
            .finish_non_exhaustive()
    }
}
