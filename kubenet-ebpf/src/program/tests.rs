use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    num::NonZeroU16,
    time::Duration,
};

use kubenet_core::{
    datapath::Feature,
    maglev,
    model::{Affinity, Algorithm, Protocol},
    route::{
        BackendState, FrontendAddress, FrontendKind, Masquerade, NodeRouting, Revision, RouteTable,
        ServicePortName, SourceRanges, Target, WhenEmpty,
    },
};
use proptest::prelude::*;

mod crash;
mod memory;
mod room;

use self::memory::{Memory, Seen, Shared};
use super::*;
use crate::{MapSizes, rest::REST};

fn arbitrary_set(family: IpFamily) -> impl Strategy<Value = Target> {
    let weight = prop_oneof![3 => Just(1), 1 => 1u16..5];
    let backend =
        (1u8..6, any::<bool>(), any::<bool>(), weight).prop_map(move |(last, local, ready, weight)| {
            Backend {
                address: match family {
                    IpFamily::V4 => [10, 244, 0, last].into(),
                    IpFamily::V6 => std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()).into(),
                },
                port: 8080.try_into().unwrap(),
                local,
                state: if ready { BackendState::Ready } else { BackendState::Terminating },
                weight: weight.try_into().unwrap(),
            }
        });
    (prop::collection::vec(backend, 0..6), any::<bool>()).prop_map(|(mut backends, drop)| {
        backends.sort_unstable();
        backends.dedup_by_key(|b| b.address);
        let when_empty = if drop { WhenEmpty::Drop } else { WhenEmpty::Reject };
        Target { backends: backends.into(), when_empty }
    })
}

fn arbitrary_sources(family: IpFamily) -> impl Strategy<Value = Option<Arc<SourceRanges>>> {
    let cidr = (1u8..5).prop_map(move |n| match family {
        IpFamily::V4 => IpNet::new([10, n, 0, 0].into(), 16).unwrap(),
        IpFamily::V6 => format!("fd0{n}::/32").parse().unwrap(),
    });
    let ranges = (prop::collection::btree_set(cidr, 0..4), any::<bool>())
        .prop_map(|(cidrs, node)| Arc::new(SourceRanges { cidrs: cidrs.into_iter().collect(), node }));
    prop::option::of(ranges)
}

fn arbitrary_route() -> impl Strategy<Value = Arc<Route>> {
    let family = prop_oneof![Just(IpFamily::V4), Just(IpFamily::V6)];
    let name = prop_oneof![Just("web"), Just("api")];
    (family, any::<bool>(), 1u16..6, name, any::<bool>()).prop_flat_map(|(family, node, port, name, masq)| {
        (arbitrary_set(family), arbitrary_set(family), any::<bool>(), arbitrary_sources(family)).prop_map(
            move |(internal, external, same, sources)| {
                let port = port.try_into().unwrap();
                let address = match family {
                    IpFamily::V4 => [10, 96, 0, 1].into(),
                    IpFamily::V6 => "fd00:96::1".parse().unwrap(),
                };
                let (frontend, kind) = if node {
                    (Frontend::node_port(family, port, Protocol::Tcp), FrontendKind::NodePort)
                } else {
                    (Frontend::ip(address, port, Protocol::Udp), FrontendKind::ClusterIp)
                };
                let service_port =
                    ServicePortName { namespace: "demo".into(), service: name.into(), port: "".into() };
                let masquerade = if masq { Masquerade::ALWAYS } else { Masquerade::NEVER };
                let mut route = Route::new(frontend, kind, service_port, internal, masquerade);
                if !same {
                    route.external = external;
                }
                route.source_ranges = sources;
                route.affinity = if masq { Affinity::new(port.get().into()) } else { None };
                Arc::new(route)
            },
        )
    })
}

fn table(routes: Vec<Arc<Route>>) -> RouteTable {
    RouteTable::new(Revision(1), Arc::new(NodeRouting::default()), routes)
}

fn view_of(route: &Route) -> (Seen, Seen, u32, BTreeSet<IpNet>) {
    let share = |b: &Backend| (Backend { weight: NonZeroU16::MIN, ..*b }, b.weight.get().into());
    let set = |t: &Target| match route.algorithm {
        Algorithm::Maglev => {
            let table = maglev::Table::new(t.backends.iter().map(|b| (b.socket_addr(), b.weight)));
            let mut seen = Seen::new();
            for owner in table.slots() {
                let (at, _) = table.backends()[usize::from(*owner)];
                let backend = t.backends.iter().find(|b| b.socket_addr() == at).unwrap();
                *seen.entry(share(backend).0).or_default() += 1;
            }
            seen
        }
        _ => t.backends.iter().map(share).collect(),
    };
    let programmed = crate::state::Programmed {
        route: Arc::new(route.clone()),
        id: 1,
        port: 0,
        affinity: 0,
        cuts: 0,
        internal: Default::default(),
        external: None,
    };
    let sources = crate::state::source_ranges(route).iter().copied().collect();
    (set(&route.internal), set(&route.external), programmed.service().flags, sources)
}

fn apply(state: &mut State, memory: &mut Memory, table: &RouteTable, now: Now) -> Outcome {
    if !memory.is_damaged {
        memory.allowed[0] = memory.view();
    }
    // What was replaced before has rested, or rests still: that is for the tests of those who let it.
    memory.old.clear();
    memory.allowed[1] = table.routes().map(|r| (r.frontend, view_of(r))).collect();
    let work = state.diff(table);
    let mut capabilities = Capabilities::basic();
    capabilities.features = Feature::ALL.into();
    program(state, &Shared::new(memory), &capabilities, "replace", work, now)
}

/// What must hold between changes.
fn check(state: &State, memory: &Memory) {
    let kept: BTreeMap<Frontend, layout::Service> =
        state.routes().map(|p| (p.route.frontend, p.service())).collect();
    assert_eq!(kept, memory.services);
    let view = memory.view();
    for programmed in state.routes() {
        assert_eq!(view[&programmed.route.frontend], view_of(&programmed.route));
    }
    for family in IpFamily::ALL {
        let alive = memory.backends.iter().filter(|((f, _), (_, _, alive))| *f == family && *alive).count();
        assert_eq!(alive, state.backends(family).in_use() as usize, "no backend leaks");
        for (handle, identity) in state.backends(family).iter() {
            let (known, written, alive) = memory.backends[&(family, handle.id)];
            assert_eq!(
                (known, Backend { weight: NonZeroU16::MIN, ..written }, alive),
                (handle, identity.backend, true)
            );
        }
    }
    let cluster_ips: BTreeSet<IpAddr> = state.routes().filter_map(|p| cluster_ip(&p.route)).collect();
    assert_eq!(memory.cluster_ips, cluster_ips, "each cluster IP that is served, and no other");
    let sticky = state.routes().filter(|p| p.route.affinity.is_some());
    let by_port: BTreeMap<_, u32> =
        sticky.map(|p| ((p.route.service_port.clone(), p.route.frontend.protocol), p.affinity)).collect();
    for p in state.routes() {
        let port = (p.route.service_port.clone(), p.route.frontend.protocol);
        let expected = if p.route.affinity.is_some() { by_port[&port] } else { 0 };
        assert_eq!(p.affinity, expected, "one id for each Service port");
    }
    assert_eq!(by_port.values().collect::<BTreeSet<_>>().len(), by_port.len());
    assert!(by_port.values().all(|id| *id != 0));
    assert_eq!(by_port.len(), state.affinities() as usize, "no id leaks");
    let ports: HashSet<_> =
        state.routes().map(|p| (&p.route.service_port, p.route.frontend.protocol)).collect();
    assert_eq!(ports.len(), state.ports(), "no port leaks");
    assert_eq!(memory.names.len(), memory.services.len(), "one name for each service");
    for p in state.routes() {
        if let FrontendAddress::Ip(address) = p.route.frontend.address {
            let on_it =
                state.routes().filter(|other| other.route.frontend.address == p.route.frontend.address);
            let any = on_it.filter(|other| !other.route.on_cluster_ip).count() > 0;
            assert_eq!(state.has_other(address), any);
        }
    }
    let sources: BTreeSet<(u32, IpNet)> = state
        .routes()
        .flat_map(|p| crate::state::source_ranges(&p.route).iter().map(|cidr| (p.id, *cidr)))
        .collect();
    assert_eq!(memory.sources, sources, "no source range leaks");
}

proptest! {
    #[test]
    fn packets_see_the_old_route_or_the_new_one_and_nothing_leaks(
        tables in prop::collection::vec((prop::collection::vec(arbitrary_route(), 0..12), 0u64..1500), 1..12),
    ) {
        let sizes = MapSizes::default();
        let mut state = State::new(sizes.clone());
        let mut memory = Memory::new(sizes);
        let mut now = Duration::ZERO;
        for (routes, wait) in tables {
            now += Duration::from_millis(wait);
            let table = table(routes);
            let outcome = apply(&mut state, &mut memory, &table, now);
            prop_assert!(outcome.failed.is_empty());
            prop_assert_eq!(&memory.refused, &[], "a cluster IP comes after all of its ports");
            prop_assert_eq!(memory.services.len(), table.len());
            check(&state, &memory);
            prop_assert_eq!(state.diff(&table), (vec![], vec![]));
        }
    }

    #[test]
    fn full_maps_fail_routes_by_name_and_leave_the_others_whole(
        tables in prop::collection::vec((prop::collection::vec(arbitrary_route(), 0..12), 0u64..1500), 1..12),
        (slots, backends, services, source_ranges) in (4u32..20, 4u32..12, 1u32..6, 1u32..8),
    ) {
        let sizes = MapSizes {
            slots,
            backends4: backends,
            backends6: backends,
            services,
            source_ranges,
            ..MapSizes::default()
        };
        let mut state = State::new(sizes.clone());
        let mut memory = Memory::new(sizes);
        let mut now = Duration::ZERO;
        for (routes, wait) in tables {
            now += Duration::from_millis(wait);
            let table = table(routes);
            let outcome = apply(&mut state, &mut memory, &table, now);
            check(&state, &memory);
            let (missing, strangers) = state.diff(&table);
            prop_assert_eq!(strangers, vec![]);
            let mut failed: Vec<Frontend> = outcome.failed.iter().map(|f| f.frontend).collect();
            failed.sort_unstable();
            prop_assert_eq!(failed, missing.iter().map(|r| r.frontend).collect::<Vec<_>>());
            for failure in outcome.failed {
                prop_assert_eq!(failure.error.kind(), ErrorKind::Capacity);
            }
        }
    }
}

fn route_with(port: u16, backends: u8) -> Arc<Route> {
    let backends: Vec<Backend> = (1..=backends)
        .map(|last| Backend {
            address: [10, 244, 0, last].into(),
            port: 80.try_into().unwrap(),
            local: true,
            state: BackendState::Ready,
            weight: NonZeroU16::MIN,
        })
        .collect();
    Arc::new(Route::new(
        Frontend::ip([10, 96, 0, 1].into(), port.try_into().unwrap(), Protocol::Tcp),
        FrontendKind::ClusterIp,
        ServicePortName { namespace: "demo".into(), service: "web".into(), port: "".into() },
        Target { backends: backends.into(), when_empty: WhenEmpty::Reject },
        Masquerade::NEVER,
    ))
}

#[test]
fn a_table_that_is_full_of_what_rests_waits_for_a_grace_period() {
    let sizes = MapSizes { slots: 5, ..MapSizes::default() };
    let mut state = State::new(sizes.clone());
    let mut memory = Memory::new(sizes);
    let now = Duration::ZERO;
    assert!(apply(&mut state, &mut memory, &table(vec![route_with(1, 3)]), now).failed.is_empty());
    assert!(apply(&mut state, &mut memory, &table(vec![]), now).failed.is_empty());
    assert_eq!(memory.grace_periods, 0);
    assert!(apply(&mut state, &mut memory, &table(vec![route_with(1, 4)]), now).failed.is_empty());
    assert_eq!(memory.grace_periods, 1);
    let outcome = apply(&mut state, &mut memory, &table(vec![route_with(1, 5)]), now + REST);
    let message = outcome.failed[0].error.to_string();
    assert!(
        message.contains("map slots is full: 5 slots") && message.contains("MapSizes::slots"),
        "{message}"
    );
    check(&state, &memory);
}

#[test]
fn frontends_of_a_service_port_share_a_table_of_maglev() {
    const TABLE: u32 = 16_384 + 1 + 2 * 3;
    let sizes = MapSizes { slots: TABLE, ..MapSizes::default() };
    let mut state = State::new(sizes.clone());
    let mut memory = Memory::new(sizes);
    let hashed = |port| {
        let mut route = Route::clone(&route_with(port, 3));
        route.algorithm = Algorithm::Maglev;
        Arc::new(route)
    };
    let mut programmed = |routes: &[Arc<Route>], now| {
        let failed = apply(&mut state, &mut memory, &table(routes.to_vec()), now).failed;
        (failed.into_iter().map(|f| f.error.to_string()).collect::<Vec<_>>(), memory.services.clone())
    };
    let (failed, services) = programmed(&[hashed(1), hashed(2)], Duration::ZERO);
    assert_eq!(failed, Vec::<String>::new());
    let ranges: Vec<_> = services.values().map(|s| (s.internal_base, s.internal_count, s.flags)).collect();
    let flags = layout::SVC_MAGLEV | layout::SVC_LISTED;
    assert_eq!(ranges, [(0, 16_384, flags), (0, 16_384, flags)]);
    // Another set needs a table of its own.
    let mut other = Route::clone(&hashed(3));
    other.internal.backends = other.internal.backends[..2].into();
    let (failed, services) = programmed(&[hashed(1), hashed(2), Arc::new(other)], REST);
    assert!(failed[0].contains("map slots is full") && failed[0].contains("MapSizes::slots"), "{failed:?}");
    assert_eq!((failed.len(), services.len()), (1, 2));
}

#[test]
fn a_frontend_that_changes_its_owner_gets_another_service_id() {
    let mut state = State::new(MapSizes::default());
    let mut memory = Memory::new(MapSizes::default());
    let mine = route_with(1, 2);
    let mut theirs = Route::clone(&mine);
    theirs.service_port.service = "api".into();
    apply(&mut state, &mut memory, &table(vec![Arc::clone(&mine)]), Duration::ZERO);
    let before = memory.services[&mine.frontend].id;
    apply(&mut state, &mut memory, &table(vec![Arc::new(theirs)]), Duration::ZERO);
    assert_ne!(memory.services[&mine.frontend].id, before);
    check(&state, &memory);
}

#[test]
fn what_a_table_must_not_hold_fails_by_name() {
    let mut state = State::new(MapSizes::default());
    let mut memory = Memory::new(MapSizes::default());
    let good = route_with(1, 1);
    let mut long = Route::clone(&route_with(2, 1));
    long.service_port.service = "x".repeat(200).into();
    let mut wild = Route::clone(&route_with(3, 1));
    wild.frontend = Frontend::ip([0, 0, 0, 0].into(), wild.frontend.port, Protocol::Tcp);
    let mut sctp = Route::clone(&route_with(4, 1));
    sctp.frontend.protocol = Protocol::Sctp;
    let mut mixed = Route::clone(&route_with(5, 1));
    mixed.frontend = Frontend::node_port(IpFamily::V6, mixed.frontend.port, Protocol::Tcp);
    let routes = [long, wild, sctp, mixed].map(Arc::new);
    let all: Vec<Arc<Route>> = routes.into_iter().chain([Arc::clone(&good)]).collect();
    let outcome = apply(&mut state, &mut memory, &table(all), Duration::ZERO);
    assert_eq!((outcome.upserted, outcome.failed.len()), (1, 4));
    let kinds: Vec<ErrorKind> = outcome.failed.iter().map(|f| f.error.kind()).collect();
    assert_eq!(kinds.iter().filter(|k| **k == ErrorKind::Unsupported).count(), 1);
    assert_eq!(kinds.iter().filter(|k| **k == ErrorKind::InvalidInput).count(), 3);
    check(&state, &memory);
}

#[test]
fn udp_flows_look_again_when_a_backend_leaves_their_frontend_and_at_no_other_change() {
    let mut state = State::new(MapSizes::default());
    let mut memory = Memory::new(MapSizes::default());
    let with = |protocol, port: u16, backends: &[u8], outside: &[u8]| {
        let target = |backends: &[u8]| {
            let all = route_with(port, 9).internal.backends.to_vec();
            let backends = backends.iter().map(|n| all[usize::from(*n)]).collect();
            Target { backends, when_empty: WhenEmpty::Reject }
        };
        let mut route = Route::clone(&route_with(port, 0));
        (route.internal, route.external) = (target(backends), target(outside));
        route.frontend.protocol = protocol;
        Arc::new(route)
    };
    for (protocol, counts) in [(Protocol::Udp, [0, 0, 1, 1, 2, 3]), (Protocol::Tcp, [0; 6])] {
        let other = with(protocol, 1, &[1, 2, 3], &[1, 2, 3]);
        // Each loses nothing of what the one before had, or something for flows from inside or from outside.
        let sets: [(&[u8], &[u8]); 6] = [
            (&[1, 2], &[1, 2]),
            (&[1, 2, 3], &[1, 2, 3]),
            (&[1, 3], &[1, 3]),
            (&[1, 2, 3], &[1, 3]),
            (&[1], &[1, 3]),
            (&[1], &[1]),
        ];
        for ((inside, outside), count) in sets.into_iter().zip(counts) {
            let one = with(protocol, 2, inside, outside);
            apply(
                &mut state,
                &mut memory,
                &table(vec![Arc::clone(&other), Arc::clone(&one)]),
                Duration::ZERO,
            );
            let cuts = |route: &Route| memory.services[&route.frontend].flags >> layout::SVC_CUTS_SHIFT;
            assert_eq!((cuts(&other), cuts(&one)), (0, count), "{protocol}: {inside:?}, {outside:?}");
        }
        // The next process counts on.
        let snapshot = memory.snapshot();
        let (adopted, leftovers) = State::adopt(memory.sizes.clone(), &snapshot, &memory);
        assert!(leftovers.strays.is_empty());
        let number = with(protocol, 2, &[], &[]).frontend;
        assert_eq!(u32::from(adopted.get(&number).unwrap().cuts), counts[5]);
    }
}
