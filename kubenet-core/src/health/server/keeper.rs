use std::{
    collections::BTreeMap,
    io, mem,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, atomic::Ordering},
};

use tracing::{debug, warn};

use super::{PortProblem, Shared, Subject, acceptor::Acceptor, connections::Connections, socket};
use crate::model::ObjectName;

/// Keeps the listeners equal to what the board has.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    connections: Arc<Connections>,
    open: BTreeMap<Place, Acceptor>,
    problems: Vec<PortProblem>,
    seen: u64,
}

/// What is to be answered, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    subject: Subject,
    address: SocketAddr,
    /// Both families.
    dual: bool,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, connections: Arc<Connections>) -> Self {
        Self { shared, connections, open: BTreeMap::new(), problems: Vec::new(), seen: 0 }
    }

    pub(super) fn run(mut self) {
        loop {
            let retry = (!self.problems.is_empty()).then_some(self.shared.retry_interval);
            self.shared.board.wait_for_ports(self.seen, retry);
            if self.shared.stopping.load(Ordering::SeqCst) {
                return;
            }
            self.reconcile();
        }
    }

    /// Closes what nobody wants any more, and opens what is not open yet.
    pub(super) fn reconcile(&mut self) {
        // Read before the ports: a change in between is seen next time.
        self.seen = self.shared.board.ports_version();
        let claims = self.shared.board.ports();
        let mut wanted: BTreeMap<Place, Option<ObjectName>> = BTreeMap::new();
        if let Some(address) = self.shared.healthz {
            wanted.insert(Place { subject: Subject::Proxy, address, dual: true }, None);
        }
        let mut problems = Vec::new();
        let addresses = self.shared.addresses.lock().clone();
        for (port, services) in claims {
            let mut services = services.into_iter();
            let Some(owner) = services.next() else { continue };
            for address in &addresses {
                let dual = !addresses.iter().any(IpAddr::is_ipv4);
                let address = SocketAddr::new(*address, port.get());
                wanted.insert(Place { subject: Subject::Service(port), address, dual }, Some(owner.clone()));
            }
            problems.extend(services.map(|late| contested(late, port.get(), &owner)));
        }

        let closed = self.open.extract_if(.., |place, _| !wanted.contains_key(place));
        for (place, acceptor) in closed {
            debug!(address = %place.address, "closing a health check port");
            drop(acceptor);
        }
        for (place, service) in wanted {
            if self.open.contains_key(&place) {
                continue;
            }
            match self.open_at(place) {
                Ok(acceptor) => {
                    debug!(address = %acceptor.address(), "listening for health checks");
                    self.open.insert(place, acceptor);
                }
                Err(error) => {
                    problems.push(PortProblem { service, address: place.address, error: Arc::new(error) });
                }
            }
        }
        *self.shared.listening.lock() =
            self.open.iter().map(|(place, acceptor)| (place.subject, acceptor.address())).collect();
        self.report(problems);
    }

    fn open_at(&self, place: Place) -> io::Result<Acceptor> {
        let listener = socket::listen(place.address, place.dual)?;
        Acceptor::start(listener, place.subject, Arc::clone(&self.connections))
    }

    /// Tells of the problems that were not there before.
    fn report(&mut self, problems: Vec<PortProblem>) {
        let before = mem::replace(&mut self.problems, problems);
        self.shared.problems.lock().clone_from(&self.problems);
        for problem in self.problems.iter().filter(|problem| !before.iter().any(|known| known.is(problem))) {
            warn!("{problem}");
            if let Some(report) = &self.shared.on_problem {
                report(problem);
            }
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.open.clear();
        self.connections.stop();
    }
}

fn contested(service: ObjectName, port: u16, owner: &ObjectName) -> PortProblem {
    let error = format!("it is the health check port of Service {owner}");
    PortProblem {
        service: Some(service),
        address: (Ipv6Addr::UNSPECIFIED, port).into(),
        error: Arc::new(io::Error::new(io::ErrorKind::AddrInUse, error)),
    }
}
