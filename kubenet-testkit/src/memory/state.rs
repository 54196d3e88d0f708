use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use kubenet_core::{
    datapath::{BackendName, Counters},
    model::Protocol,
    route::{Route, RouteDelta, RouteTable, ServicePortName},
};

use super::oracle::{Choice, Flow, may_stay};

/// What the datapath remembers.
#[derive(Debug)]
pub(super) struct State {
    pub(super) table: RouteTable,
    /// Flows that were translated, TCP and SCTP until they end, UDP while their backend may be picked.
    pub(super) flows: HashMap<Flow, Choice>,
    /// The backend of a client, and when it last began a flow.
    affinity: HashMap<(ServicePortName, IpAddr), (SocketAddr, Duration)>,
    pub(super) counters: Counters,
    pub(super) draining: bool,
    /// Whether the table was taken away behind the datapath's back.
    pub(super) flushed: bool,
    pub(super) closed: bool,
    pub(super) random: u64,
    /// The time, since the start.
    pub(super) now: Duration,
}

/// Every backend of a route, as it is counted.
fn names(route: &Route) -> impl Iterator<Item = BackendName> {
    let all = route.internal.backends.iter().chain(&*route.external.backends);
    all.map(|backend| BackendName {
        service_port: route.service_port.clone(),
        protocol: route.frontend.protocol,
        address: backend.socket_addr(),
    })
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            table: RouteTable::default(),
            flows: HashMap::new(),
            affinity: HashMap::new(),
            counters: Counters::default(),
            draining: false,
            flushed: false,
            closed: false,
            random: 1,
            now: Duration::ZERO,
        }
    }

    /// Moves the table along a delta that starts from it, and forgets what the table no longer allows.
    pub(super) fn step(&mut self, delta: &RouteDelta) {
        for route in &delta.upserts {
            if self.table.get(&route.frontend).is_some_and(|old| old.service_port != route.service_port) {
                self.counters.routes.remove(&route.frontend);
            }
        }
        let moved = self.table.apply(delta);
        debug_assert!(moved.is_ok(), "the delta starts from this table");
        let table = &self.table;
        // [L2]: a datagram never goes where its Service would not send a new one.
        self.flows.retain(|flow, kept| {
            flow.protocol != Protocol::Udp || may_stay(table, flow, kept.backend.socket_addr())
        });
        for frontend in &delta.removals {
            self.counters.routes.remove(frontend);
        }
        if !self.counters.backends.is_empty() {
            let served: HashSet<BackendName> = table.routes().flat_map(|route| names(route)).collect();
            self.counters.backends.retain(|name, _| served.contains(name));
        }
        if !delta.removals.is_empty() {
            let now = self.now;
            let longest = Duration::from_secs(kubenet_core::model::Affinity::MAX_TIMEOUT_SECONDS.into());
            self.affinity.retain(|_, (_, last)| now.saturating_sub(*last) <= longest);
        }
    }

    /// Picks one of the choices: the client's own where it has one ([A1] to [A3]), else by weight.
    pub(super) fn pick(&mut self, route: &Route, client: IpAddr, choices: &[Choice]) -> Choice {
        let Some(affinity) = route.affinity else { return self.pick_by_weight(choices) };
        let timeout = Duration::from_secs(affinity.timeout_seconds().into());
        let key = (route.service_port.clone(), client);
        let known = self.affinity.get(&key).filter(|(_, last)| self.now.saturating_sub(*last) <= timeout);
        let known = known.and_then(|(at, _)| choices.iter().find(|c| c.backend.socket_addr() == *at));
        let choice = match known {
            Some(choice) => *choice,
            None => self.pick_by_weight(choices),
        };
        self.affinity.insert(key, (choice.backend.socket_addr(), self.now));
        choice
    }

    fn pick_by_weight(&mut self, choices: &[Choice]) -> Choice {
        let weight = |choice: &Choice| u64::from(choice.backend.weight.get());
        let mut at = self.below(choices.iter().map(weight).sum());
        for choice in choices {
            match at.checked_sub(weight(choice)) {
                Some(rest) => at = rest,
                None => return *choice,
            }
        }
        choices[choices.len() - 1]
    }

    /// A number below `n`, from SplitMix64.
    fn below(&mut self, n: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        ((u128::from(z) * u128::from(n)) >> 64) as u64
    }
}
