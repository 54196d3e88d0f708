//! Connected UDP sockets of this node leave backends that their Service does not have for them any more.

use std::{collections::HashMap, io, net::SocketAddr, os::fd::AsFd, sync::Arc};

use aya::maps::IterableMap;

use kubenet_core::{
    model::Protocol,
    route::{Frontend, Route},
};

use super::{
    Engine,
    connected::{self, Connected, Given},
    sys,
};
use crate::{layout::SocketFlow, state::State};

impl Engine {
    /// Cuts the sockets that must choose again. One that cannot be cut stays where it is until the next update.
    pub(super) fn cut_sockets(&self) {
        if !self.capabilities.node_udp_follows {
            return;
        }
        let sockets = match self.translated() {
            Ok(sockets) => sockets,
            Err(error) => {
                tracing::warn!(%error, "connected UDP sockets may stay with backends that are gone");
                return;
            }
        };
        for (socket, given) in sockets.into_iter().filter(|(_, given)| !may_stay(&self.state, given)) {
            match socket.destroy() {
                Ok(cut) => tracing::debug!(?given, cut, "a connected UDP socket chooses again"),
                Err(error) => {
                    tracing::warn!(%error, ?given, "a UDP socket stays with a backend that is gone");
                }
            }
        }
    }

    /// The connected sockets that a Service gave their backend.
    fn translated(&self) -> io::Result<Vec<(Connected, Given)>> {
        let mut flows = HashMap::new();
        sys::for_each(self.maps.socket_flows.map().fd().as_fd(), |cookie: u64, flow: SocketFlow| {
            flows.insert(cookie, flow);
        })?;
        if flows.is_empty() {
            return Ok(Vec::new());
        }
        let given = |socket: Connected| {
            let given = socket.given(flows.get(&socket.cookie())?)?;
            Some((socket, given))
        };
        Ok(connected::list()?.into_iter().filter_map(given).collect())
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

    const ZERO: std::time::Duration = std::time::Duration::ZERO;

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
