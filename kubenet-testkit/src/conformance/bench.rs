//! What the cases over time have at hand: a datapath, its table, and clients.

use std::{
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::executor::block_on;
use kubenet_core::{
    datapath::{ApplyReport, Datapath, DatapathError},
    model::{IpFamily, Protocol},
    route::{FrontendKind, Revision, RouteDelta, RouteTable},
};

use super::{
    fixture::{NodeOptions, Svc, place, table},
    world::{Got, Live, World},
};

/// How long an answer may take: less than a lost SYN takes to be sent again, so that losses show.
pub(super) const ANSWER: Duration = Duration::from_millis(900);
/// How long nothing must be heard to count as dropped.
pub(super) const DROPPED: Duration = Duration::from_millis(300);

/// Why a case did not pass.
pub(super) enum Stop {
    Failed(String),
    NotSupported(String),
}

impl Stop {
    /// The same with where it happened.
    pub(super) fn at(self, place: impl fmt::Display) -> Self {
        match self {
            Stop::Failed(why) => Stop::Failed(format!("{place}: {why}")),
            other => other,
        }
    }
}

impl From<String> for Stop {
    fn from(why: String) -> Self {
        Stop::Failed(why)
    }
}

impl From<DatapathError> for Stop {
    fn from(error: DatapathError) -> Self {
        Stop::Failed(error.to_string())
    }
}

pub(super) type Step<T = ()> = Result<T, Stop>;

/// Fails the case with a text.
pub(super) fn fail<T>(why: impl Into<String>) -> Step<T> {
    Err(Stop::Failed(why.into()))
}

/// Fails the case unless the condition holds.
pub(super) fn check(holds: bool, why: impl FnOnce() -> String) -> Step {
    if holds { Ok(()) } else { fail(why()) }
}

pub(super) struct Bench<'w> {
    pub(super) world: &'w dyn World,
    pub(super) family: IpFamily,
    slot: &'w mut Option<Arc<dyn Datapath>>,
    number: u16,
    table: Arc<RouteTable>,
    options: NodeOptions,
}

impl<'w> Bench<'w> {
    /// `first` is the number of the case's first Service; no other case has it.
    pub(super) fn new(
        world: &'w dyn World,
        slot: &'w mut Option<Arc<dyn Datapath>>,
        family: IpFamily,
        first: u16,
    ) -> Self {
        Self { world, family, slot, number: first, table: Arc::default(), options: |node| node }
    }

    /// The datapath under test, started when the last one was closed.
    pub(super) fn datapath(&mut self) -> Step<Arc<dyn Datapath>> {
        if let Some(datapath) = &*self.slot {
            return Ok(Arc::clone(datapath));
        }
        let datapath = self.world.start()?;
        *self.slot = Some(Arc::clone(&datapath));
        Ok(datapath)
    }

    /// Takes the datapath away: the next case gets a new one.
    pub(super) fn take(&mut self) -> Step<Arc<dyn Datapath>> {
        let datapath = self.datapath()?;
        self.slot.take();
        Ok(datapath)
    }

    /// A Service of its own address, without endpoints.
    pub(super) fn service(&mut self) -> Svc {
        self.number += 1;
        Svc::new(self.number)
    }

    pub(super) fn table(&self) -> Arc<RouteTable> {
        Arc::clone(&self.table)
    }

    /// Changes the node, from the next table on.
    pub(super) fn set_node(&mut self, options: NodeOptions) {
        self.options = options;
    }

    fn resolve(&self, services: &[Svc]) -> Step<Arc<RouteTable>> {
        Ok(Arc::new(table(self.world, self.table.revision().next(), services, self.options)?))
    }

    /// Replaces the whole table by these Services.
    pub(super) fn program(&mut self, services: &[Svc]) -> Step<ApplyReport> {
        self.table = self.resolve(services)?;
        self.replace()
    }

    /// Hands the datapath the table once more.
    pub(super) fn replace(&mut self) -> Step<ApplyReport> {
        Ok(block_on(self.datapath()?.replace(self.table()))?)
    }

    /// Moves to these Services by a delta.
    pub(super) fn update(&mut self, services: &[Svc]) -> Step<ApplyReport> {
        let (delta, next) = self.delta(services)?;
        let report = block_on(self.datapath()?.apply(Arc::new(delta)))?;
        self.table = next;
        check(report.revision == self.table.revision(), || {
            format!("the report says {}, the delta ended at {}", report.revision, self.table.revision())
        })?;
        Ok(report)
    }

    /// The delta to these Services, and where it ends. Nothing is applied.
    pub(super) fn delta(&self, services: &[Svc]) -> Step<(RouteDelta, Arc<RouteTable>)> {
        let next = self.resolve(services)?;
        Ok((self.table.diff(&next), next))
    }

    /// Takes note that the datapath has been brought to a table.
    pub(super) fn moved_to(&mut self, table: Arc<RouteTable>) {
        self.table = table;
    }

    pub(super) fn revision(&self) -> Revision {
        self.table.revision()
    }

    /// One question to any address.
    pub(super) fn ask_at(&self, from: &str, to: SocketAddr, protocol: Protocol) -> Got {
        self.world.ask(&place(from), to, protocol, ANSWER)
    }

    pub(super) fn ask_within(&self, (from, svc, kind, protocol): Way<'_>, timeout: Duration) -> Got {
        self.world.ask(&place(from), svc.dial(kind, self.family), protocol, timeout)
    }

    pub(super) fn ask(&self, way: Way<'_>) -> Got {
        self.ask_within(way, ANSWER)
    }

    /// A new connection must be answered by one of these.
    pub(super) fn served(&self, way: Way<'_>, by: &[&str]) -> Step<String> {
        answered(self.ask(way), by).map_err(|stop| stop.at(describe(way)))
    }

    /// A new connection must be refused at once.
    pub(super) fn refused(&self, way: Way<'_>) -> Step {
        let got = self.ask(way);
        check(got == Got::Refused, || format!("{}: expected refused, got {got}", describe(way)))
    }

    /// A new connection must not be answered, however that shows.
    pub(super) fn not_served(&self, way: Way<'_>) -> Step {
        let got = self.ask_within(way, DROPPED);
        check(!matches!(got, Got::Answer { .. }), || {
            format!("{}: expected no answer, got {got}", describe(way))
        })
    }

    /// None of these may be answered. Asked all at once: silence takes its time.
    pub(super) fn none_served<'a>(&self, ways: &[Way<'a>]) -> Step {
        std::thread::scope(|scope| {
            let (world, family) = (self.world, self.family);
            let ask = |way: Way<'a>| {
                scope.spawn(move || {
                    let (from, svc, kind, protocol) = way;
                    (way, world.ask(&place(from), svc.dial(kind, family), protocol, DROPPED))
                })
            };
            let asked: Vec<_> = ways.iter().map(|&way| ask(way)).collect();
            asked.into_iter().try_for_each(|thread| match thread.join() {
                Ok((way, got)) => check(!matches!(got, Got::Answer { .. }), || {
                    format!("{}: expected no answer, got {got}", describe(way))
                }),
                Err(_) => fail("a client panicked"),
            })
        })
    }

    /// Opens a connection that lives on, and asks it once.
    pub(super) fn open(&self, way: Way<'_>, by: &[&str]) -> Step<Open> {
        self.open_from_port(0, way, by)
    }

    /// The same from a port of the client's own; 0 is any.
    pub(super) fn open_from_port(&self, port: u16, way: Way<'_>, by: &[&str]) -> Step<Open> {
        let (from, svc, kind, protocol) = way;
        let opened = self.world.open((&place(from), port), svc.dial(kind, self.family), protocol, ANSWER);
        let way = describe(way);
        let mut live = opened.or_else(|got| fail(format!("{way}: expected a connection, got {got}")))?;
        let backend = answered(live.ask(ANSWER), by).map_err(|stop| stop.at(&way))?;
        Ok(Open { live, backend, way })
    }

    /// A UDP socket that has not asked yet.
    pub(super) fn udp_socket(&self, (from, svc, kind, _): Way<'_>) -> Step<Box<dyn Live>> {
        let to = svc.dial(kind, self.family);
        let opened = self.world.open((&place(from), 0), to, Protocol::Udp, ANSWER);
        opened.or_else(|got| fail(format!("expected a socket, got {got}")))
    }
}

/// Client, Service, kind of frontend, protocol.
pub(super) type Way<'a> = (&'a str, &'a Svc, FrontendKind, Protocol);

fn describe((from, _, kind, protocol): Way<'_>) -> String {
    format!("{protocol} from {from} to {kind:?}")
}

/// An established connection, or a UDP flow.
pub(super) struct Open {
    live: Box<dyn Live>,
    pub(super) backend: String,
    way: String,
}

impl Open {
    pub(super) fn ask(&mut self) -> Got {
        self.live.ask(ANSWER)
    }

    pub(super) fn ask_within(&mut self, timeout: Duration) -> Got {
        self.live.ask(timeout)
    }

    /// A question and an answer of this many bytes each.
    pub(super) fn ask_at_length(&mut self, length: usize, timeout: Duration) -> Got {
        self.live.ask_at_length(length, timeout)
    }

    /// It must still be on its backend.
    pub(super) fn lives(&mut self) -> Step {
        match self.ask() {
            Got::Answer { backend, .. } if backend == self.backend => Ok(()),
            got => fail(format!("{}: the connection to {} should live, got {got}", self.way, self.backend)),
        }
    }
}

pub(super) fn answered(got: Got, by: &[&str]) -> Step<String> {
    match got {
        Got::Answer { backend, .. } if by.contains(&backend.as_str()) => Ok(backend),
        got => fail(format!("expected an answer of {by:?}, got {got}")),
    }
}

/// Asks until an answer satisfies, for at most a second: for what the kernel may do a moment later.
pub(super) fn eventually(mut ask: impl FnMut() -> Got, satisfies: impl Fn(&Got) -> bool) -> Result<(), Got> {
    let began = Instant::now();
    loop {
        let got = ask();
        if satisfies(&got) {
            return Ok(());
        }
        if began.elapsed() > Duration::from_secs(1) {
            return Err(got);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
