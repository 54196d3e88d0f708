//! The engine on its own: maps and programs are loaded, and mostly nothing is attached anywhere.

mod connecting;
mod peers;
mod upgrade;
mod vlans;

use std::{net::IpAddr, sync::Arc};

use super::{start::snat_slice, *};
use crate::{
    EbpfBuilder,
    program::{Tables, done},
};
use futures::{FutureExt, StreamExt, stream::BoxStream};
use kubenet_core::{
    datapath::Feature,
    model::{Affinity, Algorithm, Protocol},
    route::{
        Backend, BackendState, Frontend, FrontendAddress, FrontendKind, Masquerade, ServicePortName,
        SourceRanges, Target, WhenEmpty,
    },
};
use kubenet_testkit::lab::{Lab, LabConfig, LabError};

#[test]
fn instances_that_live_side_by_side_have_ports_of_their_own() {
    for ports in [1024..=29_999, 1..=65_535, 100..=115] {
        let slices: Vec<_> = (5..21).map(|instance| snat_slice(&ports, instance)).collect();
        let all: u32 = slices.iter().map(|s| u32::from(*s.end()) + 1 - u32::from(*s.start())).sum();
        assert_eq!(all, u32::from(*ports.end()) + 1 - u32::from(*ports.start()));
        for (i, one) in slices.iter().enumerate() {
            assert!(ports.contains(one.start()) && ports.contains(one.end()));
            for other in &slices[..i] {
                assert!(one.end() < other.start() || other.end() < one.start());
            }
        }
    }
    assert_eq!(snat_slice(&(7..=9), 1), 7..=9, "too few to share out");
}

/// An engine, or `None` where the kernel or the user does not allow one.
fn engine(sizes: MapSizes) -> Option<(Engine, BoxStream<'static, DatapathEvent>)> {
    let events = EventHub::default();
    let seen = events.subscribe();
    let builder = EbpfBuilder { sizes, ..EbpfBuilder::default() };
    let mut capabilities = Capabilities::basic();
    capabilities.features = Feature::ALL.into();
    match Engine::start(builder, None, capabilities, events) {
        Ok(engine) => Some((engine, seen)),
        Err(e) if matches!(e.kind(), ErrorKind::Permission | ErrorKind::Unsupported) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "skipped in CI: {e}");
            eprintln!("skipped: {e}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// A lab, or `None` where the kernel or the user does not allow one, or the kernel has no TCX.
fn lab(config: LabConfig) -> Option<Lab> {
    match Lab::new(config) {
        Ok(lab) if probe().is_ok_and(|found| found.tcx) => Some(lab),
        Ok(_) | Err(LabError::Unsupported(_)) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "skipped in CI");
            eprintln!("skipped: no root, or no TCX");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn source_ranges_are_written_together_and_a_full_map_fails_those_without_room() {
    let Some((engine, _)) = engine(MapSizes { source_ranges: 3, ..MapSizes::default() }) else { return };
    let v4 = |n: u8| (7, ipnet::IpNet::new([10, n, 0, 0].into(), 16).unwrap());
    let v6 = (8, "fd00::/64".parse().unwrap());
    let failed = engine.maps.write_sources(&[v4(1), v6, v4(2), v4(3), v4(4), v4(5)]);
    let failed: Vec<_> = failed.into_iter().map(|(place, error)| (place, error.kind())).collect();
    assert_eq!(failed, [(4, ErrorKind::Capacity), (5, ErrorKind::Capacity)]);
    let found = || {
        let mut found = engine.maps.sources().unwrap();
        found.sort_unstable();
        found
    };
    assert_eq!(found(), [v4(1), v4(2), v4(3), v6]);
    assert!(
        engine.maps.remove_sources(&[v4(1), v4(4), v6, v4(3)]).is_empty(),
        "what is not there is no failure"
    );
    assert_eq!(found(), [v4(2)]);
}

fn routes(count: u32, backends: u8) -> Vec<Arc<Route>> {
    let route = |i: u32| {
        let family = if i.is_multiple_of(2) { IpFamily::V4 } else { IpFamily::V6 };
        let [_, a, b, c] = i.to_be_bytes();
        let (vip, pod): (IpAddr, _) = match family {
            IpFamily::V4 => ([10, a, b, c].into(), IpAddr::from([172, 16, c, 0])),
            IpFamily::V6 => {
                let word = u16::from_be_bytes([b, c]);
                let address = std::net::Ipv6Addr::new(0xfd00, a.into(), word, 0, 0, 0, 0, 1);
                (address.into(), std::net::Ipv6Addr::new(0xfd01, 0, word, 0, 0, 0, 0, 0).into())
            }
        };
        let backend = |n: u8| Backend {
            address: match pod {
                IpAddr::V4(pod) => {
                    let [p, q, r, _] = pod.octets();
                    [p, q, r, n + 1].into()
                }
                IpAddr::V6(pod) => (pod.to_bits() | u128::from(n + 1)).to_be_bytes().into(),
            },
            port: 8080.try_into().unwrap(),
            local: n == 0,
            state: BackendState::Ready,
            weight: std::num::NonZeroU16::MIN,
        };
        Arc::new(Route::new(
            Frontend {
                address: FrontendAddress::Ip(vip),
                port: 80.try_into().unwrap(),
                protocol: if i % 4 < 2 { Protocol::Tcp } else { Protocol::Udp },
            },
            FrontendKind::ClusterIp,
            ServicePortName {
                namespace: "demo".into(),
                service: format!("web-{i}").into(),
                port: "http".into(),
            },
            Target { backends: (0..backends).map(backend).collect(), when_empty: WhenEmpty::Reject },
            Masquerade { pods: false, node: true, outside: true },
        ))
    };
    (1..=count).map(route).collect()
}

fn table(revision: u64, routes: impl IntoIterator<Item = Arc<Route>>) -> RouteTable {
    let mut node = NodeRouting::default();
    node.addresses = ["192.0.2.1", "2001:db8::1"].map(|a| a.parse().unwrap()).into();
    RouteTable::new(Revision(revision), Arc::new(node), routes)
}

fn next_drift(events: &mut BoxStream<'static, DatapathEvent>) -> Option<String> {
    while let Some(Some(event)) = events.next().now_or_never() {
        if let DatapathEvent::Drift { detail } = event {
            return Some(detail);
        }
    }
    None
}

#[test]
fn what_somebody_changed_is_found_and_put_right() {
    let Some((mut engine, mut events)) = engine(MapSizes::default()) else { return };
    let all = routes(8, 3);
    let table = table(1, all.clone());
    // What nobody serves goes, too.
    done(engine.maps.write_cluster_ips(&[[10, 9, 9, 9].into()])).unwrap();
    engine.replace(&table).unwrap();
    assert!(next_drift(&mut events).is_some_and(|drift| drift.contains("a foreign cluster IP 10.9.9.9")));
    assert!(engine.read().unwrap().same_routes(&table));
    engine.replace(&table).unwrap();
    assert_eq!(next_drift(&mut events), None);

    let first = engine.state.get(&all[1].frontend).unwrap().clone();
    // Each time something else is broken, seen by `read`, and repaired.
    type Breakage = Box<dyn Fn(&mut Engine)>;
    let foreign = Frontend::ip([10, 9, 9, 9].into(), all[0].frontend.port, Protocol::Tcp);
    let FrontendAddress::Ip(cluster_ip) = first.route.frontend.address else { panic!("no cluster IP") };
    let breakages: [(&str, bool, Breakage); 6] = [
        (
            "a deleted cluster IP",
            true,
            Box::new(move |e| done(e.maps.remove_cluster_ips(&[cluster_ip])).unwrap()),
        ),
        (
            "a deleted entry",
            true,
            Box::new({
                let frontend = first.route.frontend;
                move |e| done(e.maps.remove_services(&[frontend])).unwrap()
            }),
        ),
        (
            "a foreign entry",
            true,
            Box::new({
                let service = first.service();
                move |e| done(e.maps.write_services(&[(foreign, service)])).unwrap()
            }),
        ),
        ("a deleted name", true, Box::new(move |e| done(e.maps.remove_names(&[first.id])).unwrap())),
        ("slots", false, Box::new(move |e| e.maps.write_slots(first.internal.range.base, &[0, 0]))),
        (
            "a dead backend",
            false,
            Box::new({
                let id = first.internal.ids()[0];
                move |e| e.maps.kill_backend(IpFamily::V4, id)
            }),
        ),
    ];
    for (what, reported, damage) in breakages {
        damage(&mut engine);
        assert!(!engine.read().unwrap().same_routes(&table), "{what} is seen");
        engine.replace(&table).unwrap();
        let read = engine.read().unwrap();
        assert!(read.same_routes(&table), "{what} is repaired: {:?}", read.diff(&table));
        assert_eq!(next_drift(&mut events).is_some(), reported, "{what}");
    }
}

#[test]
fn sets_move_to_make_room_for_one_that_fits_in_what_is_free() {
    let sizes = MapSizes { slots: 24, ..MapSizes::default() };
    let Some((mut engine, mut events)) = engine(sizes) else { return };
    let replace = |engine: &mut Engine, routes: Vec<Arc<Route>>| {
        let table = table(1, routes);
        let report = engine.replace(&table).unwrap();
        assert!(report.failed.is_empty(), "{:?}", report.failed);
        let read = engine.read().unwrap();
        assert!(read.same_routes(&table), "{:?}", read.diff(&table));
    };
    replace(&mut engine, routes(8, 3));
    let mut left: Vec<_> = routes(8, 3).into_iter().step_by(2).collect();
    replace(&mut engine, left.clone());
    let before: Vec<u32> = engine.state.routes().map(|p| p.internal.range.base).collect();
    left.extend(routes(9, 12).pop());
    replace(&mut engine, left);
    let after = engine.state.routes().map(|p| p.internal.range.base);
    assert!(after.zip(before).any(|(after, before)| after != before), "nothing moved");
    assert_eq!(next_drift(&mut events), None);
}

#[test]
fn weights_maglev_and_affinity_are_read_back_and_what_is_changed_is_seen() {
    let Some((mut engine, mut events)) = engine(MapSizes::default()) else { return };
    let all: Vec<Arc<Route>> = (0..)
        .zip(routes(8, 5))
        .map(|(i, route)| {
            let mut route = Route::clone(&route);
            let weighted =
                |(n, b): (u16, &Backend)| Backend { weight: (40 * n + 1).try_into().unwrap(), ..*b };
            if i % 4 < 2 {
                route.algorithm = Algorithm::Maglev;
            }
            route.affinity = Affinity::new(i);
            if i % 3 > 0 {
                route.internal.backends = (0..).zip(&*route.internal.backends).map(weighted).collect();
            }
            if i % 3 == 2 {
                route.external.backends = [].into();
            }
            Arc::new(route)
        })
        .collect();
    let table = table(1, all.clone());
    let report = engine.replace(&table).unwrap();
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    let read = engine.read().unwrap();
    assert!(read.same_routes(&table), "{:?}", read.diff(&table));
    for route in &all {
        let programmed = engine.state.get(&route.frontend).unwrap();
        let (range, last) = (programmed.internal.range, programmed.internal.range.count - 1);
        for word in [0, last] {
            engine.maps.write_slots(range.base + word, &[0]);
            assert!(!engine.read().unwrap().same_routes(&table), "{}: word {word}", route.frontend);
            engine.replace(&table).unwrap();
            assert!(engine.read().unwrap().same_routes(&table));
        }
    }
    assert_eq!(next_drift(&mut events), None);
}

#[test]
fn source_ranges_are_read_back_changed_and_repaired() {
    let sizes = MapSizes { source_ranges: 3, ..MapSizes::default() };
    let Some((mut engine, mut events)) = engine(sizes) else { return };
    let ranged = |route: &Arc<Route>, cidrs: &[&str], node| {
        let mut route = Route::clone(route);
        let cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        route.source_ranges = Some(Arc::new(SourceRanges { cidrs, node }));
        Arc::new(route)
    };
    let all = routes(4, 1);
    let [v4, v6, empty] = [&all[1], &all[0], &all[3]];
    let empty = ranged(empty, &[], false);
    let one = table(
        1,
        [
            ranged(v4, &["10.0.0.0/8", "192.0.2.7/32"], true),
            ranged(v6, &["2001:db8::/32"], false),
            Arc::clone(&empty),
        ],
    );
    assert!(engine.replace(&one).unwrap().failed.is_empty());
    let read = engine.read().unwrap();
    assert!(read.same_routes(&one), "{:?}", read.diff(&one));

    // Somebody removes one and adds another.
    let id = engine.state.get(&v4.frontend).unwrap().id;
    done(engine.maps.remove_sources(&[(id, "10.0.0.0/8".parse().unwrap())])).unwrap();
    done(engine.maps.write_sources(&[(id, "0.0.0.0/0".parse().unwrap())])).unwrap();
    assert!(!engine.read().unwrap().same_routes(&one));
    engine.replace(&one).unwrap();
    assert!(engine.read().unwrap().same_routes(&one));
    let drift = next_drift(&mut events).unwrap();
    assert!(drift.contains("the source range 10.0.0.0/8") && drift.contains("a foreign"), "{drift}");

    // Others take their place, and what does not fit is refused by name and changes nothing.
    let two = table(2, [ranged(v4, &["192.0.2.7/32", "198.51.100.0/24"], false), Arc::clone(&empty)]);
    assert!(engine.apply(&one.diff(&two)).unwrap().failed.is_empty());
    assert!(engine.read().unwrap().same_routes(&two));
    let three = table(3, [ranged(v4, &["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16", "10.4.0.0/16"], false)]);
    let failed = engine.apply(&two.diff(&three)).unwrap().failed;
    let message = failed[0].error.to_string();
    assert_eq!((failed.len(), failed[0].error.kind()), (1, ErrorKind::Capacity));
    assert!(
        message.contains("source_ranges4 is full: it holds 3 entries: raise MapSizes::source_ranges"),
        "{message}"
    );
    assert_eq!(engine.read().unwrap().get(&v4.frontend), two.get(&v4.frontend));

    engine.replace(&table(4, [])).unwrap();
    assert_eq!(engine.maps.sources().unwrap(), []);
}

#[test]
fn thousands_of_routes_come_and_go_and_nothing_leaks() {
    let Some((mut engine, _)) = engine(MapSizes::default()) else { return };
    let all = routes(20_000, 10);
    let empty = table(0, []);
    for round in 0..3 {
        let full = table(2 * round + 1, all.clone());
        let report = engine.replace(&full).unwrap();
        assert!(report.failed.is_empty(), "{:?}", report.failed.first());
        eprintln!("{} routes of 10 backends in {:?}", report.upserted, report.took);
        assert!(engine.read().unwrap().same_routes(&full));
        let change = table(2 * round + 2, all.iter().skip(1).cloned());
        let report = engine.apply(&full.diff(&change)).unwrap();
        eprintln!("one of them removed in {:?}", report.took);
        assert_eq!(report.removed, 1);
        engine.replace(&empty).unwrap();
        assert!(engine.read().unwrap().is_empty());
        assert!(engine.maps.names().unwrap().is_empty());
        assert!(engine.maps.cluster_ips().unwrap().is_empty());
    }
    assert_eq!(engine.state.backends(IpFamily::V4).in_use(), 0);
}

#[test]
fn the_object_counts_what_this_library_knows() {
    let Some((mut engine, _)) = engine(MapSizes::default()) else { return };
    assert_eq!(engine.maps.metrics_len() as usize, Metric::ALL.len());
    assert!(engine.metrics().unwrap().values().all(|n| *n == 0));
}

#[test]
fn an_rcu_grace_period_can_be_waited_for() {
    if !membarrier() {
        eprintln!("skipped: this kernel has no membarrier for all processes");
    }
}
