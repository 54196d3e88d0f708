//! Connected UDP sockets of this node leave backends that their Service does not have for them any more.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    net::SocketAddr,
    os::fd::AsFd,
    sync::Arc,
    thread,
    time::Duration,
};

use aya::maps::IterableMap;

use kubenet_core::{
    model::Protocol,
    route::{Frontend, Route},
};

use super::{
    Engine,
    connected::{self, Connected, Given},
    membarrier, sys,
};
use crate::{layout::SocketFlow, state::State};

/// How many milliseconds to wait between looks at sockets that are perhaps just being connected.
const LOOKS: [u64; 5] = [1, 2, 4, 8, 16];

/// What sockets were given that is gone, by their cookies.
type Open = HashMap<u64, Given>;

/// What is not known yet of sockets.
///
/// Between the program that gives a socket its backend and the moment from which the kernel lists it as connected
/// there, it cannot be cut: a thread may be interrupted there for as long as it pleases the scheduler. Its entry in
/// `socket_flows` tells of it, once the program has ended.
#[derive(Debug, Default)]
pub(super) struct Undecided {
    /// An update took something away since the last look: a second one is due.
    again: bool,
    /// By their cookies, those that were given a backend that is gone, were not connected to it when that was looked at
    /// last, and what they were given. Most never will be: they were cut, connecting failed, or they left by themselves.
    known: Open,
}

impl Engine {
    /// Cuts the sockets that must choose again. One that cannot be cut stays where it is until the next update.
    /// Where something was `taken` away, [`cut_late`](Self::cut_late) must follow.
    pub(super) fn cut_sockets(&mut self, taken: bool) {
        if self.capabilities.node_udp_follows {
            self.undecided.again |= taken;
            self.cut_now();
        }
    }

    /// Cuts the sockets that were being connected during an update, and so not to be seen then. One that takes longer
    /// than the looks here is seen by the next update, or by [`is_intact`](Self::is_intact).
    pub(crate) fn cut_late(&mut self) {
        if !std::mem::take(&mut self.undecided.again) {
            return;
        }
        // Who read the table of before has left its entry by now; or has had the time for it.
        if !membarrier() {
            thread::sleep(Duration::from_millis(20));
        }
        let mut open = self.cut_now();
        for milliseconds in LOOKS {
            if open.iter().all(|(cookie, given)| self.undecided.known.get(cookie) == Some(given)) {
                break;
            }
            thread::sleep(Duration::from_millis(milliseconds));
            open = self.cut_now();
        }
        self.undecided.known.extend(open);
    }

    /// Looks once more at those of which nothing better is known.
    pub(super) fn cut_forgotten(&mut self) {
        if !self.undecided.known.is_empty() {
            let open = self.cut_now();
            self.undecided.known.extend(open);
        }
    }

    /// Cuts what can be seen. Returns those that were given a backend that is gone, and are not connected to it, by
    /// their cookies.
    fn cut_now(&mut self) -> Open {
        let (sockets, mut open) = match self.gone() {
            Ok(gone) => gone,
            Err(error) => {
                tracing::warn!(%error, "connected UDP sockets may stay with backends that are gone");
                return Open::new();
            }
        };
        self.undecided.known.retain(|cookie, given| open.get(cookie) == Some(given));
        for (socket, given) in sockets {
            match socket.destroy() {
                Ok(true) => {
                    tracing::debug!(?given, "a connected UDP socket chooses again");
                    self.undecided.known.insert(socket.cookie(), given);
                }
                // It is gone, or connected to something else, or about to be.
                Ok(false) => drop(open.insert(socket.cookie(), given)),
                Err(error) => {
                    tracing::warn!(%error, ?given, "a UDP socket stays with a backend that is gone");
                }
            }
        }
        open
    }

    /// The sockets that are connected to a backend that their Service does not have for them any more; and by their
    /// cookies, those that may be so soon.
    fn gone(&self) -> io::Result<(Vec<(Connected, Given)>, Open)> {
        let mut open = Open::new();
        sys::for_each(self.maps.socket_flows.map().fd().as_fd(), |cookie: u64, flow: SocketFlow| {
            let given = Given::by(&flow).filter(|given| !may_stay(&self.state, given));
            open.extend(given.map(|given| (cookie, given)));
        })?;
        let mut sockets = Vec::new();
        if !open.is_empty() {
            for socket in connected::list()? {
                if let Entry::Occupied(given) = open.entry(socket.cookie())
                    && given.get().backend == socket.peer
                {
                    let given = given.remove();
                    sockets.push((socket, given));
                }
            }
        }
        Ok((sockets, open))
    }
}

/// Whether sockets may have to choose again when these routes are written and these frontends removed.
pub(super) fn may_cut(state: &State, upserts: &[Arc<Route>], removals: &[Frontend]) -> bool {
    let is_udp = |frontend: &Frontend| frontend.protocol == Protocol::Udp;
    let loses = |new: &&Arc<Route>| {
        state.get(&new.frontend).is_some_and(|old| {
            old.route.service_port != new.service_port
                || admits_node(&old.route) && !admits_node(new)
                || old.route.internal.backends.iter().any(|backend| !picks(new, backend.socket_addr()))
        })
    };
    removals.iter().any(is_udp) || upserts.iter().filter(|new| is_udp(&new.frontend)).any(|new| loses(&new))
}

/// Whether the Service would give the socket that backend today.
fn may_stay(state: &State, given: &Given) -> bool {
    let programmed = state.get(&given.frontend).filter(|programmed| programmed.id == given.service);
    programmed.is_some_and(|p| admits_node(&p.route) && picks(&p.route, given.backend))
}

/// Whether processes of the node may dial the frontend ([R2]).
fn admits_node(route: &Route) -> bool {
    route.source_ranges.as_ref().is_none_or(|ranges| ranges.node)
}

/// Whether flows from here may get this backend.
fn picks(route: &Route, backend: SocketAddr) -> bool {
    // They are sorted by address and port.
    let place =
        |b: &kubenet_core::route::Backend| (b.address, b.port.get()).cmp(&(backend.ip(), backend.port()));
    route.internal.backends.binary_search_by(place).is_ok()
}

#[cfg(test)]
mod tests {
    use kubenet_core::route::{
        Backend, FrontendKind, Masquerade, ServicePortName, SourceRanges, Target, WhenEmpty,
    };

    use super::*;
    use crate::MapSizes;

    const ZERO: Duration = Duration::ZERO;

    fn frontend(protocol: Protocol) -> Frontend {
        Frontend::ip([10, 96, 0, 1].into(), 53.try_into().unwrap(), protocol)
    }

    fn route(service: &str, protocol: Protocol, backends: &[u8]) -> Arc<Route> {
        let backends = backends.iter().map(|&last| {
            let local = last % 2 == 0;
            Backend::new([10, 244, 0, last].into(), 53.try_into().unwrap(), local)
        });
        let name = ServicePortName { namespace: "demo".into(), service: service.into(), port: "".into() };
        let target = Target { backends: backends.collect(), when_empty: WhenEmpty::Reject };
        let masquerade = Masquerade { pods: false, node: false, outside: true };
        Arc::new(Route::new(frontend(protocol), FrontendKind::ClusterIp, name, target, masquerade))
    }

    fn state(route: &Arc<Route>) -> State {
        let mut state = State::new(MapSizes::default());
        let staged = state.stage(route, ZERO).unwrap();
        let _ = state.commit(staged, ZERO);
        state
    }

    #[test]
    fn only_what_takes_something_away_looks_at_sockets() {
        for (protocol, cuts) in [(Protocol::Udp, true), (Protocol::Tcp, false)] {
            let state = state(&route("dns", protocol, &[1, 2]));
            let asks = |new: &Arc<Route>| may_cut(&state, std::slice::from_ref(new), &[]);
            assert!(!asks(&route("dns", protocol, &[1, 2, 3])));
            assert_eq!(asks(&route("dns", protocol, &[2, 3])), cuts);
            assert_eq!(asks(&route("dns", protocol, &[])), cuts);
            assert_eq!(asks(&route("other", protocol, &[1, 2])), cuts);
            let with_ranges = |node| {
                let mut route = Route::clone(&route("dns", protocol, &[1, 2]));
                route.source_ranges = Some(SourceRanges { cidrs: Vec::new(), node }.into());
                Arc::new(route)
            };
            assert!(!asks(&with_ranges(true)));
            assert_eq!(asks(&with_ranges(false)), cuts);
            assert_eq!(may_cut(&state, &[], &[frontend(protocol)]), cuts);
        }
    }

    #[test]
    fn a_socket_stays_with_a_backend_that_its_own_service_has() {
        let state = state(&route("dns", Protocol::Udp, &[1, 2]));
        let service = state.routes().next().unwrap().id;
        let given = Given {
            frontend: frontend(Protocol::Udp),
            service,
            backend: SocketAddr::new([10, 244, 0, 2].into(), 53),
        };
        assert!(may_stay(&state, &given));
        let port = SocketAddr::new(given.backend.ip(), 54);
        assert!(!may_stay(&state, &Given { backend: port, ..given }));
        assert!(
            !may_stay(&state, &Given { service: service + 1, ..given }),
            "the address is another Service's"
        );
        assert!(!may_stay(&state, &Given { frontend: frontend(Protocol::Tcp), ..given }));
    }
}
