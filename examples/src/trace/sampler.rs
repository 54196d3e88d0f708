//! Tries flows with fresh connections, again and again, and notes what becomes of each.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use kubenet_core::model::Protocol;
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};

use super::{
    Dialled, TraceError,
    frame::{self, Mac},
    own,
    pace::Pace,
    places::Home,
    seen::Seen,
    sight::{Mark, Sight},
    stage::Stage,
    wire::{Ears, Heard, Mouths},
};

/// Connections that are under way at a time: no queue of the kernel that they pass is shorter.
const BATCH: usize = 256;

/// Ports that clients use. Each once, so that no two connections of a client are alike.
const PORTS: std::ops::RangeInclusive<u16> = 1024..=u16::MAX;

/// A marker packet that does not come back was lost, and is sent again; after so many the stage is broken.
const MARKER_WAIT: Duration = Duration::from_millis(500);
const MARKERS: u32 = 8;

/// What is left to come after the marker has passed: nothing, where it could follow the same way.
const QUIET: Duration = Duration::from_millis(100);

/// One flow, and what a datapath may be expected to do with it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) dialled: Dialled,
    pub(super) pace: Pace,
    /// The backends that are allowed. Trying may end when they have all been seen.
    pub(super) allowed: BTreeSet<SocketAddr>,
}

/// One connection.
struct Shot {
    asked: usize,
    client: SocketAddr,
    fate: Option<Fate>,
}

/// What became of it. A packet that arrived tells more than what was answered to it.
#[derive(Clone, Debug)]
enum Fate {
    /// A packet came to this address from that one.
    Arrived {
        to: SocketAddr,
        from: SocketAddr,
    },
    Refused,
    /// The node's own socket failed.
    Failed(String),
}

/// How to tell a captured packet's connection.
#[derive(Default)]
struct Batch {
    shots: Vec<Shot>,
    by_mark: HashMap<u32, usize>,
    by_segment_size: HashMap<u16, usize>,
    by_addresses: HashMap<(Protocol, SocketAddr, SocketAddr), usize>,
}

/// Sends and listens. Lives on a thread inside the node's namespace.
pub(super) struct Sampler<'a> {
    stage: &'a Stage,
    mouths: Mouths,
    ears: Ears,
    ports: HashMap<(Option<IpAddr>, Protocol, bool), u16>,
    mark: u32,
    segment_size: u16,
    marker: (SocketAddr, SocketAddr),
    /// Whether all packets pass one CPU, in order.
    in_order: bool,
}

impl<'a> Sampler<'a> {
    /// `marker` is an address that is nobody's.
    pub(super) fn new(stage: &'a Stage, marker: Ipv4Addr) -> Result<Self, TraceError> {
        let [a, b, c, d] = marker.octets();
        let other = Ipv4Addr::new(a, b, c, d ^ 1);
        Ok(Self {
            stage,
            mouths: Mouths::open(stage)?,
            ears: Ears::open(stage)?,
            ports: HashMap::new(),
            mark: 1,
            segment_size: 0,
            marker: ((other, 9).into(), (marker, 9).into()),
            in_order: stay_on_one_cpu(),
        })
    }

    /// Tries all flows as often as their pace wants. The answers have the order of the flows.
    pub(super) fn run(&mut self, asked: &[Asked]) -> Result<Vec<Seen>, TraceError> {
        let mut seen = vec![Seen::default(); asked.len()];
        loop {
            let wanted = |(i, (asked, seen)): (usize, (&Asked, &Seen))| {
                std::iter::repeat_n(i, asked.pace.next(&asked.allowed, seen) as usize)
            };
            let round: Vec<usize> = asked.iter().zip(&seen).enumerate().flat_map(wanted).collect();
            if round.is_empty() {
                break;
            }
            for some in round.chunks(BATCH) {
                self.batch(asked, some, &mut seen)?;
            }
        }
        self.look_again(asked, &mut seen)?;
        Ok(seen)
    }

    /// Tells silence from packets that were only slow: one more connection of each flow is waited for.
    fn look_again(&mut self, asked: &[Asked], seen: &mut [Seen]) -> Result<(), TraceError> {
        let silent = |i: &usize| seen[*i].silent > seen[*i].errors.values().sum();
        let silent: Vec<usize> = (0..asked.len()).filter(silent).collect();
        let in_order = std::mem::replace(&mut self.in_order, false);
        let result = silent.chunks(BATCH).try_for_each(|some| self.batch(asked, some, seen));
        self.in_order = in_order;
        result
    }

    /// Makes one connection for each of these flows, and waits until nothing more can be heard of them.
    fn batch(&mut self, asked: &[Asked], which: &[usize], seen: &mut [Seen]) -> Result<(), TraceError> {
        let mut batch = Batch::default();
        for &i in which {
            self.shoot(&asked[i].dialled, i, &mut batch)?;
        }
        self.settle(&mut batch)?;
        for shot in batch.shots {
            let (asked, seen) = (&asked[shot.asked], &mut seen[shot.asked]);
            let own = self.stage.places().home(asked.dialled.from) == Home::Node;
            note(seen, asked, &shot, own);
        }
        Ok(())
    }

    fn shoot(&mut self, flow: &Dialled, asked: usize, batch: &mut Batch) -> Result<(), TraceError> {
        let to = flow.destination();
        let home = self.stage.places().home(flow.from);
        let (mut client, mut fate) = (SocketAddr::new(flow.from, self.port(flow)), None);
        self.mark = self.mark.wrapping_add(1);
        let index = batch.shots.len();
        match home {
            Home::Node => {
                // Where the port is taken by somebody, the next one does.
                for _ in 0..PORTS.len() {
                    self.segment_size = own::next_segment_size(self.segment_size);
                    match own::dial(&mut client, flow, self.mark, self.segment_size) {
                        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                            client.set_port(self.port(flow));
                        }
                        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                            fate = Some(Fate::Refused);
                            break;
                        }
                        Err(e) => {
                            fate = Some(Fate::Failed(e.to_string()));
                            break;
                        }
                        Ok(()) => break,
                    }
                }
                if flow.protocol == Protocol::Tcp {
                    batch.by_segment_size.insert(self.segment_size, index);
                }
            }
            Home::Pod(_) | Home::World => {
                let pod = if let Home::Pod(pod) = home { Some(pod) } else { None };
                let device = pod.and_then(|pod| self.stage.pods().get(pod));
                let macs = device.unwrap_or(self.stage.world()).macs;
                self.send(pod, macs, client, to, flow.protocol)?;
            }
        }
        batch.by_mark.insert(self.mark, index);
        batch.by_addresses.insert((flow.protocol, client, to), index);
        batch.shots.push(Shot { asked, client, fate });
        Ok(())
    }

    fn send(
        &self,
        pod: Option<usize>,
        macs: (Mac, Mac),
        from: SocketAddr,
        to: SocketAddr,
        protocol: Protocol,
    ) -> Result<(), TraceError> {
        let frame = frame::first(macs, from, to, protocol, self.mark);
        let sent = frame.map_err(io::Error::other).and_then(|frame| self.mouths.send(pod, &frame));
        sent.map_err(|e| TraceError::io("send a frame", e))
    }

    /// A port that this client has not used, as long as there are any. All addresses of the node are one client.
    fn port(&mut self, flow: &Dialled) -> u16 {
        let node = self.stage.places().home(flow.from) == Home::Node;
        let client = Some(flow.from).filter(|_| !node);
        let next = self.ports.entry((client, flow.protocol, flow.from.is_ipv4())).or_insert(*PORTS.start());
        let port = *next;
        *next = if port == *PORTS.end() { *PORTS.start() } else { port + 1 };
        port
    }

    /// Listens until a packet that was sent after all others has passed the node.
    fn settle(&mut self, batch: &mut Batch) -> Result<(), TraceError> {
        for _ in 0..MARKERS {
            self.mark = self.mark.wrapping_add(1);
            let (marker, (from, to)) = (self.mark, self.marker);
            self.send(None, self.stage.world().macs, from, to, Protocol::Udp)?;
            let deadline = Instant::now() + MARKER_WAIT;
            let mut passed = false;
            while !passed && Instant::now() < deadline {
                passed = self.listen(batch, marker)?;
                if !passed {
                    self.ears.wait(10).map_err(|e| TraceError::io("wait for packets", e))?;
                }
            }
            if passed {
                return if self.in_order { self.listen(batch, marker).map(drop) } else { self.linger(batch) };
            }
        }
        Err(TraceError::Missing("packets that the node only has to forward get lost".into()))
    }

    /// Waits for stragglers, where some connections have no fate yet.
    fn linger(&self, batch: &mut Batch) -> Result<(), TraceError> {
        let deadline = Instant::now() + QUIET;
        while batch.shots.iter().any(|shot| shot.fate.is_none()) {
            let left = deadline.saturating_duration_since(Instant::now()).as_millis();
            if left == 0 {
                break;
            }
            self.ears.wait(left as u16).map_err(|e| TraceError::io("wait for packets", e))?;
            self.listen(batch, 0)?;
        }
        Ok(())
    }

    /// Whether the marker has come.
    fn listen(&self, batch: &mut Batch, marker: u32) -> Result<bool, TraceError> {
        let mut passed = false;
        let marker = Mark::Made(marker);
        let heard = self.ears.listen(|heard, sight| match sight {
            Sight::First { mark, .. } if mark == marker => passed |= heard == Heard::Far,
            sight => batch.hear(sight),
        });
        heard.map_err(|e| TraceError::io("listen", e))?;
        Ok(passed)
    }
}

impl Batch {
    fn hear(&mut self, sight: Sight) {
        let (index, fate) = match sight {
            Sight::First { from, to, mark, .. } => {
                let index = match mark {
                    Mark::Made(mark) => self.by_mark.get(&mark),
                    Mark::SegmentSize(size) => self.by_segment_size.get(&size),
                };
                (index, Fate::Arrived { to, from })
            }
            Sight::Refusal { protocol, client, dialled } => {
                (self.by_addresses.get(&(protocol, client, dialled)), Fate::Refused)
            }
        };
        let Some(shot) = index.and_then(|index| self.shots.get_mut(*index)) else { return };
        let tells_more = match (&shot.fate, &fate) {
            (None, _) => true,
            (Some(Fate::Arrived { .. }), _) => false,
            (Some(_), Fate::Arrived { .. }) | (Some(Fate::Failed(_)), Fate::Refused) => true,
            (Some(_), _) => false,
        };
        if tells_more {
            shot.fate = Some(fate);
        }
    }
}

fn note(seen: &mut Seen, asked: &Asked, shot: &Shot, own: bool) {
    match &shot.fate {
        None => seen.silent += 1,
        Some(Fate::Refused) => seen.refused += 1,
        Some(Fate::Failed(why)) => {
            seen.silent += 1;
            *seen.errors.entry(why.clone()).or_default() += 1;
        }
        // A backend that is dialled by its own address and port looks like nobody's business.
        Some(Fate::Arrived { to, .. })
            if *to == asked.dialled.destination() && !asked.allowed.contains(to) =>
        {
            seen.passed += 1;
        }
        Some(Fate::Arrived { to, from }) => {
            let reached = seen.reached.entry(*to).or_default();
            reached.connections += 1;
            reached.sees.insert(from.ip());
            let replaced = from.ip() != shot.client.ip() || (own && from.port() != shot.client.port());
            reached.masquerade |= replaced;
        }
    }
}

/// What one thread sends passes the queues of its CPU in order. Where that cannot be had, time must do.
fn stay_on_one_cpu() -> bool {
    let pin = || {
        let mut one = CpuSet::new();
        one.set(sched_getcpu()?)?;
        sched_setaffinity(Pid::from_raw(0), &one)
    };
    pin().is_ok()
}
