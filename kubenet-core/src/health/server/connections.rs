use std::{
    cmp::Reverse,
    collections::{BTreeMap, VecDeque},
    mem,
    net::{IpAddr, Ipv6Addr, Shutdown, TcpStream},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use hyper::Response;
use parking_lot::{Condvar, Mutex};
use tracing::debug;

use super::{OnAnswer, Subject, exchange};
use crate::health::HealthBoard;

/// The connections of all ports, and the workers that serve them: one each, no more than allowed.
pub(super) struct Connections {
    board: Arc<HealthBoard>,
    max: usize,
    life: Duration,
    on_answer: Option<OnAnswer>,
    state: Mutex<State>,
    /// A connection waits for a worker, or the end has come.
    work: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Connection>,
    serving: BTreeMap<u64, Serving>,
    next_id: u64,
    workers: Vec<JoinHandle<()>>,
    stopping: bool,
}

struct Connection {
    stream: TcpStream,
    peer: IpAddr,
    subject: Subject,
    until: Option<Instant>,
}

struct Serving {
    stream: Arc<TcpStream>,
    peer: IpAddr,
    cut: bool,
}

impl Connections {
    pub(super) fn new(
        board: Arc<HealthBoard>,
        max: usize,
        life: Duration,
        on_answer: Option<OnAnswer>,
    ) -> Arc<Self> {
        Arc::new(Self { board, max, life, on_answer, state: Mutex::default(), work: Condvar::new() })
    }

    /// Hands a connection to a worker. Never blocks: where all are busy, another connection makes room.
    pub(super) fn admit(self: &Arc<Self>, stream: TcpStream, peer: IpAddr, subject: Subject) {
        let mut state = self.state.lock();
        if state.stopping {
            return;
        }
        let until = Instant::now().checked_add(self.life);
        state.waiting.push_back(Connection { stream, peer: network_of(peer), subject, until });
        // Those that serve nothing now take what waits.
        let free = state.workers.len().saturating_sub(state.serving.len());
        if state.waiting.len() <= free {
            self.work.notify_one();
            return;
        }
        if state.workers.len() < self.max {
            let this = Arc::clone(self);
            match thread::Builder::new().name("health-worker".to_owned()).spawn(move || this.work()) {
                Ok(worker) => {
                    state.workers.push(worker);
                    return;
                }
                Err(error) => debug!(%error, "no thread for a health check"),
            }
        }
        // A cut connection frees its worker at once.
        let cut = state.serving.values().filter(|serving| serving.cut).count();
        if state.waiting.len() > free + cut {
            state.cut_one();
        }
        // Where more wait than that, it is a flood.
        if state.waiting.len() > self.max || state.workers.is_empty() {
            state.refuse_one();
        }
    }

    fn work(&self) {
        let mut state = self.state.lock();
        while !state.stopping {
            let Some(connection) = state.waiting.pop_front() else {
                self.work.wait(&mut state);
                continue;
            };
            let id = state.next_id;
            state.next_id += 1;
            let Connection { stream, peer, subject, until } = connection;
            let stream = Arc::new(stream);
            state.serving.insert(id, Serving { stream: Arc::clone(&stream), peer, cut: false });
            drop(state);
            exchange::serve(&stream, until, |path| self.respond(subject, path));
            drop(stream);
            state = self.state.lock();
            state.serving.remove(&id);
        }
    }

    fn respond(&self, subject: Subject, path: &str) -> Response<String> {
        let response = exchange::respond(&self.board, subject, path);
        let known = ["/healthz", "/livez"].into_iter().find(|known| *known == path);
        if let (Some(told), Some(path), Subject::Proxy) = (&self.on_answer, known, subject) {
            told(path, response.status().as_u16());
        }
        response
    }

    /// Cuts all connections and waits for the workers.
    pub(super) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopping = true;
        state.waiting.clear();
        for serving in state.serving.values_mut() {
            serving.cut();
        }
        let workers = mem::take(&mut state.workers);
        drop(state);
        self.work.notify_all();
        for worker in workers {
            let _ = worker.join();
        }
    }
}

impl State {
    fn cut_one(&mut self) {
        let uncut = self.serving.iter().filter(|(_, serving)| !serving.cut);
        let victim = oldest_of_the_greediest(uncut.map(|(id, serving)| (*id, serving.peer)));
        if let Some(serving) = victim.and_then(|id| self.serving.get_mut(&id)) {
            serving.cut();
        }
    }

    fn refuse_one(&mut self) {
        let peers = self.waiting.iter().enumerate().map(|(at, waiting)| (at, waiting.peer));
        if let Some(victim) = oldest_of_the_greediest(peers) {
            self.waiting.remove(victim);
        }
    }
}

/// Of connections with their peers, oldest first: the first one of the peer that has most of them.
fn oldest_of_the_greediest<K>(connections: impl Iterator<Item = (K, IpAddr)>) -> Option<K> {
    let mut held: BTreeMap<IpAddr, (usize, Reverse<usize>, K)> = BTreeMap::new();
    for (age, (key, peer)) in connections.enumerate() {
        held.entry(peer).or_insert((0, Reverse(age), key)).0 += 1;
    }
    held.into_values().max_by_key(|(count, age, _)| (*count, *age)).map(|(_, _, key)| key)
}

impl Serving {
    fn cut(&mut self) {
        self.cut = true;
        // Ends the worker's wait. One that has gone already needs none.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Peers with one prefix of 64 bits count as one in IPv6: a host has as many addresses there as it likes.
fn network_of(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn victim(peers: &[&str]) -> Option<usize> {
        let peers = peers.iter().map(|peer| network_of(peer.parse().unwrap()));
        oldest_of_the_greediest(peers.enumerate())
    }

    #[test]
    fn h1_the_oldest_connection_of_the_peer_with_most_makes_room() {
        assert_eq!(victim(&[]), None);
        assert_eq!(victim(&["10.0.0.1", "10.0.0.2", "10.0.0.2", "10.0.0.3"]), Some(1));
        assert_eq!(victim(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]), Some(0));
        assert_eq!(victim(&["10.0.0.3", "10.0.0.1", "10.0.0.1", "10.0.0.3"]), Some(0));
    }

    #[test]
    fn h1_one_ipv6_network_is_one_peer() {
        assert_eq!(victim(&["2001:db8::1", "2001:db8:0:1::1", "2001:db8:0:1::2"]), Some(1));
        // IPv4 clients of a listener of both families.
        assert_eq!(victim(&["::ffff:10.0.0.1", "::ffff:10.0.0.2", "10.0.0.2"]), Some(1));
    }
}
