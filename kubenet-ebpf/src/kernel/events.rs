//! Reads what the programs report of flows, from a ring that has one reader.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use aya::maps::{Map, MapData, MapError, PerCpuArray, RingBuf};
use kubenet_core::{
    datapath::{DatapathEvent, EventHub},
    model::Protocol,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;

use super::{clock, maps::Maps, mmap::Mapped};
use crate::{
    Metric,
    layout::{EVENT_DROP, EVENT_FLOW, Event, Listeners},
};

/// How often a reader says that it is there, and for how many ticks it is believed:
/// fewer than `LEASE_MOST` in `bpf/events.h`.
pub(super) const RENEWAL: Duration = Duration::from_millis(500);
const LEASE: u32 = 3;

/// Who reads: each has a ring of its own.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reader {
    /// The datapath's own process.
    Own,
    /// One that looks in from outside.
    Follower,
}

/// A ring, for its one reader. The programs stop to report when it is dropped, or soon after its process died.
pub(super) struct Ring {
    ring: RingBuf<MapData>,
    listeners: Arc<Mapped<Listeners>>,
    metrics: PerCpuArray<MapData, u64>,
    reader: Reader,
    /// Events that never came to the ring, as far as they were told.
    missed: u64,
}

fn copy(map: &MapData) -> Result<MapData, MapError> {
    MapData::from_fd(map.fd().as_fd().try_clone_to_owned()?)
}

impl Ring {
    /// Begins to listen: to what happens from now on.
    pub(super) fn open(maps: &Maps, reader: Reader) -> Result<Self, MapError> {
        let ring = match reader {
            Reader::Own => &maps.events,
            Reader::Follower => &maps.followed,
        };
        let mut ring = Self {
            ring: RingBuf::try_from(Map::from_map_data(copy(ring)?)?)?,
            listeners: Arc::clone(&maps.listeners),
            metrics: PerCpuArray::try_from(Map::from_map_data(copy(maps.metrics_map())?)?)?,
            reader,
            missed: 0,
        };
        // Of an earlier reader.
        while ring.ring.next().is_some() {}
        ring.missed = ring.lost()?;
        ring.renew()?;
        Ok(ring)
    }

    /// Goes on listening.
    pub(super) fn renew(&self) -> io::Result<()> {
        // 0 is nobody.
        let until = clock::ticks()?.wrapping_add(LEASE).max(1);
        self.listeners.store_word(0, self.reader as usize, until);
        Ok(())
    }

    /// Waits until there is something to read here or at `other`, or for so long.
    pub(super) fn wait(&self, other: Option<BorrowedFd<'_>>, time: Duration) -> io::Result<()> {
        let mut fds = vec![PollFd::new(self.ring.as_fd(), PollFlags::POLLIN)];
        fds.extend(other.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let milliseconds = u16::try_from(time.as_millis()).unwrap_or(u16::MAX);
        match poll(&mut fds, PollTimeout::from(milliseconds)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Hands over what there is, and how many events there was no room for.
    pub(super) fn read(&mut self, mut visit: impl FnMut(DatapathEvent)) -> Result<(), MapError> {
        while let Some(item) = self.ring.next() {
            if let Some(event) = Event::read(&item).and_then(|event| decode(&event)) {
                visit(event);
            }
        }
        let lost = self.lost()?;
        let count = lost.saturating_sub(self.missed);
        self.missed = lost;
        if count > 0 {
            visit(DatapathEvent::Missed { count });
        }
        Ok(())
    }

    /// Events that were over the budget, or for which the ring was full.
    fn lost(&self) -> Result<u64, MapError> {
        let full = match self.reader {
            Reader::Own => Metric::EventLost,
            Reader::Follower => Metric::EventLostToFollower,
        };
        let mut sum = 0;
        for metric in [Metric::EventOverBudget, full] {
            sum += self.metrics.get(&(metric as u32), 0)?.iter().sum::<u64>();
        }
        Ok(sum)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.listeners.store_word(0, self.reader as usize, 0);
    }
}

fn decode(event: &Event) -> Option<DatapathEvent> {
    let address = |words: [u8; 16]| -> IpAddr {
        let [a, b, c, d, ..] = words;
        if event.family == 4 { Ipv4Addr::new(a, b, c, d).into() } else { Ipv6Addr::from(words).into() }
    };
    let at = |words, port: crate::layout::Be16| SocketAddr::new(address(words), port.into());
    let client = Some(at(event.client, event.client_port)).filter(|at| !at.ip().is_unspecified());
    let protocol = Protocol::from_number(event.proto);
    let frontend = at(event.frontend, event.frontend_port);
    match event.kind {
        EVENT_FLOW => Some(DatapathEvent::FlowStarted {
            protocol: protocol?,
            client,
            frontend,
            backend: at(event.backend, event.backend_port),
        }),
        EVENT_DROP => Some(DatapathEvent::PacketDropped {
            reason: Metric::ALL.get(usize::from(event.reason))?.as_str(),
            protocol,
            client,
            destination: frontend,
        }),
        _ => None,
    }
}

/// Hands the events of the programs to whoever listens, from a thread that lives as long as somebody does.
#[derive(Debug, Default)]
pub(super) struct Reporter(Option<Running>);

#[derive(Debug)]
struct Running {
    /// Closed when the thread is to end.
    wake: UnixStream,
    /// False once it has seen that nobody listens: another one is needed for the next who does.
    goes_on: Arc<Mutex<bool>>,
    thread: Option<JoinHandle<()>>,
}

impl Reporter {
    /// Somebody listens.
    pub(super) fn listen(&mut self, maps: &Maps, hub: &EventHub) -> Result<(), MapError> {
        if self.0.as_ref().is_some_and(|running| *running.goes_on.lock()) {
            return Ok(());
        }
        self.0 = None;
        let ring = Ring::open(maps, Reader::Own)?;
        let (wake, end) = UnixStream::pair()?;
        let goes_on = Arc::new(Mutex::new(true));
        let (hub, flag) = (hub.clone(), Arc::clone(&goes_on));
        let work = move || {
            if let Err(error) = report(ring, &end, &hub, &flag) {
                tracing::warn!(%error, "events of flows are reported no more");
            }
            *flag.lock() = false;
        };
        let thread = Some(thread::Builder::new().name("kubenet-events".to_owned()).spawn(work)?);
        self.0 = Some(Running { wake, goes_on, thread });
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended by itself has closed its side.
        let _ = self.wake.shutdown(Shutdown::Both);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("the thread that reports flows panicked");
        }
    }
}

fn report(mut ring: Ring, end: &UnixStream, hub: &EventHub, goes_on: &Mutex<bool>) -> Result<(), MapError> {
    end.set_nonblocking(true)?;
    loop {
        {
            let mut goes_on = goes_on.lock();
            *goes_on = hub.has_readers();
            if !*goes_on {
                return Ok(());
            }
        }
        ring.renew()?;
        ring.wait(Some(end.as_fd()), RENEWAL)?;
        ring.read(|event| hub.emit(&event))?;
        // Nobody writes to it: all that comes is its end.
        match io::Read::read(&mut &*end, &mut [0]) {
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            _ => return Ok(()),
        }
    }
}
