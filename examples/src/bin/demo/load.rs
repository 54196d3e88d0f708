//! Requests from everywhere at once, counted.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use kubenet_core::model::Protocol;

use crate::{
    stage::Stage,
    world::{From, World},
};

/// What a load has seen.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) requests: u64,
    pub(crate) failures: u64,
    pub(crate) from: [u64; 3],
    pub(crate) backends: BTreeMap<String, u64>,
    /// Microseconds, unsorted; TCP only.
    pub(crate) connects: Vec<u32>,
    /// The first few failures, in words.
    pub(crate) errors: Vec<String>,
}

const ERRORS_SHOWN: usize = 5;

impl Stats {
    pub(crate) fn merge(&mut self, other: Stats) {
        self.requests += other.requests;
        self.failures += other.failures;
        for (mine, others) in self.from.iter_mut().zip(other.from) {
            *mine += others;
        }
        for (name, count) in other.backends {
            *self.backends.entry(name).or_default() += count;
        }
        self.connects.extend(other.connects);
        self.errors.extend(other.errors);
        self.errors.truncate(ERRORS_SHOWN);
    }
}

/// Clients in the pod, on the node and outside that ask one request after the other, each on a connection of
/// its own.
#[derive(Debug)]
pub(crate) struct Load {
    threads: Vec<JoinHandle<Stats>>,
    control: Arc<Control>,
}

#[derive(Debug, Default)]
struct Control {
    begun: AtomicU64,
    /// Go on past the quota until told otherwise.
    hold: AtomicBool,
    /// End now.
    stop: AtomicBool,
}

impl Load {
    /// Starts clients that send `requests` in all.
    pub(crate) fn exactly(world: &Arc<dyn World>, stage: &Stage, requests: u64) -> Self {
        Self::start(world, stage, requests, false)
    }

    /// Starts clients that send at least `requests`, and go on until [`Load::release`] is called.
    pub(crate) fn at_least(world: &Arc<dyn World>, stage: &Stage, requests: u64) -> Self {
        Self::start(world, stage, requests, true)
    }

    fn start(world: &Arc<dyn World>, stage: &Stage, requests: u64, hold: bool) -> Self {
        let control = Arc::new(Control { hold: AtomicBool::new(hold), ..Control::default() });
        let addresses = |from, protocol| -> Vec<SocketAddr> {
            stage.answering(protocol).filter_map(|target| world.dial(from, target)).collect()
        };
        let mut clients: Vec<_> = From::ALL
            .into_iter()
            .map(|from| Client {
                from,
                quota: 0,
                tcp: addresses(from, Protocol::Tcp),
                udp: addresses(from, Protocol::Udp),
                world: Arc::clone(world),
                control: Arc::clone(&control),
            })
            .filter(|client| !client.tcp.is_empty())
            .collect();
        let count = clients.len() as u64;
        for (i, client) in clients.iter_mut().enumerate() {
            client.quota = requests / count + u64::from((i as u64) < requests % count);
        }
        let threads = clients.into_iter().map(|client| thread::spawn(move || client.run())).collect();
        Self { threads, control }
    }

    /// How many requests were begun.
    pub(crate) fn begun(&self) -> u64 {
        self.control.begun.load(Ordering::Relaxed)
    }

    pub(crate) fn is_running(&self) -> bool {
        self.threads.iter().any(|thread| !thread.is_finished())
    }

    /// Lets clients end that have sent what they should.
    pub(crate) fn release(&self) {
        self.control.hold.store(false, Ordering::Relaxed);
    }

    /// Waits for the clients.
    pub(crate) fn join(mut self) -> Result<Stats, String> {
        let mut all = Stats::default();
        for thread in self.threads.drain(..) {
            all.merge(thread.join().map_err(|_| "a client panicked")?);
        }
        Ok(all)
    }
}

/// Where a step under load fails, the clients end before the lab that they are in.
impl Drop for Load {
    fn drop(&mut self) {
        self.control.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

struct Client {
    from: From,
    quota: u64,
    tcp: Vec<SocketAddr>,
    udp: Vec<SocketAddr>,
    world: Arc<dyn World>,
    control: Arc<Control>,
}

impl Client {
    fn run(self) -> Stats {
        let mut stats = Stats::default();
        let (mut tcp, mut udp) = (self.tcp.iter().cycle(), self.udp.iter().cycle());
        for round in 0usize.. {
            let done = stats.requests >= self.quota && !self.control.hold.load(Ordering::Relaxed);
            if done || self.control.stop.load(Ordering::Relaxed) {
                break;
            }
            self.control.begun.fetch_add(1, Ordering::Relaxed);
            // One in eight by UDP, where there is something to ask.
            let next_udp = if round % 8 == 7 { udp.next() } else { None };
            let (protocol, address) = match next_udp.map(|address| (Protocol::Udp, address)) {
                Some(asked) => asked,
                None => match tcp.next() {
                    Some(address) => (Protocol::Tcp, address),
                    None => break,
                },
            };
            stats.requests += 1;
            stats.from[self.from as usize] += 1;
            match self.world.request(self.from, protocol, *address) {
                Ok(answer) => {
                    *stats.backends.entry(answer.backend).or_default() += 1;
                    if protocol == Protocol::Tcp {
                        stats.connects.push(u32::try_from(answer.connect.as_micros()).unwrap_or(u32::MAX));
                    }
                }
                Err(error) => {
                    stats.failures += 1;
                    if stats.errors.len() < ERRORS_SHOWN {
                        stats.errors.push(error);
                    }
                }
            }
        }
        stats
    }
}
