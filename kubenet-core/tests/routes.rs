//! Tables and deltas, on random tables.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU16,
    sync::Arc,
};

use kubenet_core::{
    model::Protocol,
    route::{
        Backend, BackendState, Frontend, FrontendKind, Masquerade, NodeRouting, Revision, Route, RouteTable,
        ServicePortName, Target, WhenEmpty,
    },
};
use proptest::prelude::*;

fn address(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, last).into()
}

prop_compose! {
    fn any_target()(backends in prop::collection::btree_set((1..6u8, any::<bool>()), 0..4)) -> Target {
        let backends: BTreeSet<_> = backends.into_iter().map(|(last, local)| Backend {
            address: address(100 + last),
            port: NonZeroU16::new(8080).unwrap(),
            local,
            state: BackendState::Ready,
            weight: NonZeroU16::MIN,
        }).collect();
        Target { backends: backends.into_iter().collect(), when_empty: WhenEmpty::Reject }
    }
}

prop_compose! {
    // Few addresses, so that two tables often have the same frontends.
    fn any_route()(last in 1..8u8, internal in any_target(), external in any_target()) -> Arc<Route> {
        let service_port = ServicePortName { namespace: "ns".into(), service: "s".into(), port: "".into() };
        let frontend = Frontend::ip(address(last), NonZeroU16::new(80).unwrap(), Protocol::Tcp);
        let mut route =
            Route::new(frontend, FrontendKind::ClusterIp, service_port, internal, Masquerade::NEVER);
        route.external = external;
        Arc::new(route)
    }
}

fn any_table(revision: u64) -> impl Strategy<Value = RouteTable> {
    (prop::collection::vec(any_route(), 0..8), any::<bool>()).prop_map(move |(routes, other_node)| {
        let mut node = NodeRouting::default();
        node.addresses.extend(other_node.then(|| address(250)));
        RouteTable::new(Revision(revision), Arc::new(node), routes)
    })
}

/// What a frontend could pick and can no longer.
fn lost(a: &RouteTable, b: &RouteTable) -> BTreeSet<(Frontend, std::net::SocketAddr)> {
    let pairs = |table: &RouteTable| -> BTreeSet<_> {
        let of = |route: &Arc<Route>| -> Vec<_> {
            route.backends().map(|backend| (route.frontend, backend.socket_addr())).collect()
        };
        table.routes().flat_map(of).collect()
    };
    pairs(a).difference(&pairs(b)).copied().collect()
}

proptest! {
    #[test]
    fn a_diff_leads_from_one_table_to_the_other(a in any_table(1), b in any_table(2)) {
        let delta = a.diff(&b);
        let mut moved = a.clone();
        moved.apply(&delta).unwrap();
        prop_assert_eq!(&moved, &b);
        prop_assert_eq!(delta.is_empty(), a.same_routes(&b));
        let named: BTreeSet<_> = delta.removed_backends.iter().map(|r| (r.frontend, r.backend)).collect();
        prop_assert_eq!(named, lost(&a, &b));
    }

    #[test]
    fn two_steps_as_one_lead_to_the_same_table(a in any_table(1), b in any_table(2), c in any_table(3)) {
        let both = a.diff(&b).then(b.diff(&c));
        let mut moved = a.clone();
        moved.apply(&both).unwrap();
        prop_assert_eq!(&moved, &c);
        // A backend that was only there in between may be named, too: flows may have been pinned to it.
        let named: BTreeSet<_> = both.removed_backends.iter().map(|r| (r.frontend, r.backend)).collect();
        prop_assert!(named.is_superset(&lost(&a, &c)));
    }

    #[test]
    fn a_delta_from_elsewhere_changes_nothing(a in any_table(1), b in any_table(2), c in any_table(3)) {
        let mut table = a.clone();
        prop_assert!(table.apply(&b.diff(&c)).is_err());
        prop_assert_eq!(table, a);
    }
}
