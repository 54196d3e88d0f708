//! Kept, adopted, removed.

use std::{sync::Arc, time::Instant};

use futures::executor::block_on;
use kubenet_core::{
    datapath::{Close, Datapath, DatapathExt, ErrorKind},
    model::{Affinity, Algorithm},
    route::{Revision, Route},
};
use kubenet_testkit::lab::{Connection, Lab};

use super::{support::bpffs::Objects, *};

/// One open connection of each client.
fn open(lab: &Lab) -> Vec<(&'static str, String, Connection)> {
    let open = |client| {
        let mut connection = lab.connect(place(client), target(lab, client), SOON).unwrap();
        let answer = connection.ask(SOON).unwrap();
        (client, answer.backend, connection)
    };
    CLIENTS.map(open).into()
}

fn all_live(open: &mut [(&'static str, String, Connection)]) {
    for (client, backend, connection) in open {
        let answer = connection.ask(SOON).unwrap_or_else(|e| panic!("{client}: {e}"));
        assert_eq!(answer.backend, *backend, "{client}");
    }
}

fn all_served(lab: &Lab, backends: &[&str]) {
    for client in CLIENTS {
        let answer = lab.http_get(place(client), target(lab, client), SOON);
        let answer = answer.unwrap_or_else(|e| panic!("{client}: {e}"));
        assert!(backends.contains(&answer.backend.as_str()), "{client}: {answer:?}");
    }
}

/// The kernel frees after a grace period.
fn gone(objects: &Objects) {
    let begin = Instant::now();
    while objects.left() != Objects::default() {
        assert!(begin.elapsed() < SOON, "{:?}", objects.left());
        std::thread::yield_now();
    }
}

#[test]
fn what_is_kept_is_adopted_and_then_removed_without_a_trace() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    for mode in modes() {
        let pins = bpffs.pin_dir();
        let first = table(&lab, 7, routes(&lab, &["here", "there"]));
        let datapath = pinned(&lab, &pins, mode);
        assert!(datapath.capabilities().keep_on_close);
        replace(&datapath, &first);
        let mut known = open(&lab);
        block_on(datapath.close(Close::Keep)).unwrap();
        assert_eq!(block_on(datapath.read()).unwrap_err().kind(), ErrorKind::Unavailable);
        drop(datapath);
        all_live(&mut known);
        all_served(&lab, &["here", "there"]);

        // The next one knows everything before anybody tells it.
        let before = Objects::of(&pins);
        let datapath = pinned(&lab, &pins, mode);
        let read = block_on(datapath.read()).unwrap();
        assert!(read.same_routes(&first), "{:?}", read.diff(&first));
        assert_eq!(read.node(), first.node());
        all_live(&mut known);
        let next = table(&lab, 8, routes(&lab, &["there"]));
        let delta = Arc::new(table(&lab, 0, []).diff(&next));
        let conflict = block_on(datapath.apply(delta)).unwrap_err();
        assert_eq!(conflict.kind(), ErrorKind::Conflict, "what is there must not be taken for nothing");
        let report = replace(&datapath, &first);
        assert_eq!((report.upserted, report.removed), (0, 0), "nothing differs");
        assert!(block_on(datapath.drift(&first)).unwrap().is_none());
        assert_eq!(before.maps, Objects::of(&pins).maps);
        gone(&Objects { maps: Vec::new(), ..before });
        let after = Objects::of(&pins);
        all_live(&mut known);
        all_served(&lab, &["here", "there"]);

        // And goes on as if it had been there always.
        let report = block_on(datapath.apply(Arc::new(first.diff(&next)))).unwrap();
        assert_eq!((report.upserted, report.revision), (4, Revision(8)));
        all_served(&lab, &["there"]);
        all_live(&mut known);

        block_on(datapath.close(Close::Remove)).unwrap();
        assert_eq!(attached(&lab), Vec::<String>::new());
        assert_eq!(bpffs.tree(), Vec::<std::path::PathBuf>::new());
        drop(datapath);
        gone(&after);
        for client in CLIENTS {
            assert!(lab.http_get(place(client), target(&lab, client), SOON / 8).is_err(), "{client}");
        }
    }
}

#[test]
fn what_was_never_in_use_stays_nowhere() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    let datapath = pinned(&lab, &bpffs.pin_dir(), AttachMode::Auto);
    assert!(bpffs.tree().len() > 20, "{:?}", bpffs.tree());
    drop(datapath);
    assert_eq!(bpffs.tree(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn every_kind_of_route_is_adopted_as_it_was() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    let pins = bpffs.pin_dir();
    let mut all = Vec::new();
    for &family in lab.families() {
        for (last, pods) in (1..).zip([&["here", "there"][..], &["there"], &[], &["client", "here", "there"]])
        {
            all.extend(on_cluster_ip(&lab, family, last, pods));
            all.extend(on_node_port(&lab, family, NODE_PORT + u16::from(last), pods));
        }
    }
    let all: Vec<Arc<Route>> = (0..)
        .zip(all)
        .map(|(i, route)| {
            let mut route = Route::clone(&route);
            if i % 2 == 0 {
                route.affinity = Affinity::new(600);
            }
            if i % 3 == 0 {
                route.algorithm = Algorithm::Maglev;
            }
            if i % 5 == 0 {
                route.external.backends = [].into();
            }
            let weighted = |(n, b): (u16, &kubenet_core::route::Backend)| kubenet_core::route::Backend {
                weight: (3 * n + 1).try_into().unwrap(),
                ..*b
            };
            if i % 7 == 0 {
                route.internal.backends = (0..).zip(&*route.internal.backends).map(weighted).collect();
            }
            Arc::new(route)
        })
        .collect();
    let table = table(&lab, 1, all);
    let datapath = pinned(&lab, &pins, AttachMode::Auto);
    replace(&datapath, &table);
    drop(datapath);
    for _ in 0..2 {
        let datapath = pinned(&lab, &pins, AttachMode::Auto);
        let read = block_on(datapath.read()).unwrap();
        assert!(read.same_routes(&table), "{:?}", read.diff(&table));
        let report = replace(&datapath, &table);
        assert_eq!((report.upserted, report.removed), (0, 0));
        assert!(block_on(datapath.drift(&table)).unwrap().is_none());
    }
}

#[test]
fn a_restart_under_load_loses_no_connection() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    for mode in modes() {
        let pins = bpffs.pin_dir();
        let table = table(&lab, 1, routes(&lab, &["here", "there"]));
        let mut datapath = Some(pinned(&lab, &pins, mode));
        datapath.iter().for_each(|datapath| drop(replace(datapath, &table)));
        let mut known = open(&lab);
        under_load(&lab, &format!("{mode:?}"), || {
            for round in 0..10 {
                if let Some(datapath) = datapath.take()
                    && round % 2 == 0
                {
                    block_on(datapath.close(Close::Keep)).unwrap();
                }
                all_live(&mut known);
                let next = pinned(&lab, &pins, mode);
                all_live(&mut known);
                replace(&next, &table);
                datapath = Some(next);
            }
        });
        all_live(&mut known);
        block_on(datapath.unwrap().close(Close::Remove)).unwrap();
    }
}

#[test]
fn a_client_stays_with_its_backend_and_a_datagram_on_its_flow_through_a_restart() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    let pins = bpffs.pin_dir();
    let sticky = |route: &Arc<Route>| {
        let mut route = Route::clone(route);
        route.affinity = Affinity::new(600);
        Arc::new(route)
    };
    let all = on_cluster_ip(&lab, V4, 1, &["here", "there"]);
    let plain = on_cluster_ip(&lab, V4, 2, &["here", "there"]);
    let table = table(&lab, 1, all.iter().map(sticky).chain(plain));
    let mut datapath = pinned(&lab, &pins, AttachMode::Auto);
    replace(&datapath, &table);
    let chosen = lab.http_get("client", service(V4, 1), SOON).unwrap().backend;
    let flow = lab.udp_flow("client", service(V4, 2)).unwrap();
    let answered = flow.ask(SOON).unwrap().backend;
    for _ in 0..5 {
        drop(datapath);
        datapath = pinned(&lab, &pins, AttachMode::Auto);
        replace(&datapath, &table);
        for _ in 0..5 {
            assert_eq!(lab.http_get("client", service(V4, 1), SOON).unwrap().backend, chosen);
            assert_eq!(flow.ask(SOON).unwrap().backend, answered);
        }
    }
}

#[test]
fn a_udp_flow_leaves_a_backend_that_left_its_frontend_with_a_restart() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    let pins = bpffs.pin_dir();
    // One Service port with two frontends: its backends stay in use when one of them has them no more.
    let with = |on_ip: &[&str]| {
        let shared = |route: Arc<Route>| {
            let mut route = Route::clone(&route);
            route.service_port = service_port("shared");
            Arc::new(route)
        };
        let on_node = on_node_port(&lab, V4, NODE_PORT, &["here", "there"]);
        table(&lab, 1, on_cluster_ip(&lab, V4, 1, on_ip).into_iter().chain(on_node).map(shared))
    };
    let datapath = pinned(&lab, &pins, AttachMode::Auto);
    replace(&datapath, &with(&["there"]));
    let flow = lab.udp_flow("client", service(V4, 1)).unwrap();
    assert_eq!(flow.ask(SOON).unwrap().backend, "there");
    // The next table comes from the next process.
    drop(datapath);
    let datapath = pinned(&lab, &pins, AttachMode::Auto);
    replace(&datapath, &with(&["here"]));
    assert_eq!(flow.ask(SOON).unwrap().backend, "here");
}

#[test]
fn interfaces_that_came_or_went_meanwhile_are_served_or_forgotten() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    for mode in modes() {
        let pins = bpffs.pin_dir();
        let table = table(&lab, 1, routes(&lab, &["there"]));
        let datapath = pinned(&lab, &pins, mode);
        replace(&datapath, &table);
        drop(datapath);
        // Made anew under its old name, and one more.
        lab.remove_pod("client").unwrap();
        lab.add_pod("client", Node::A).unwrap();
        lab.add_pod("late", Node::A).unwrap();
        let datapath = pinned(&lab, &pins, mode);
        replace(&datapath, &table);
        assert!(block_on(datapath.drift(&table)).unwrap().is_none());
        for client in ["client", "late", "node"] {
            lab.http_get(place(client), service(V4, 1), SOON).unwrap_or_else(|e| panic!("{client}: {e}"));
        }
        drop(datapath);

        // A pod that nobody names again is served as before, until somebody says that it is gone.
        let datapath = builder(&lab).pin_dir(&pins).attach_mode(mode).build().unwrap();
        replace(&datapath, &table);
        lab.http_get("late", service(V4, 1), SOON).unwrap();
        let late = lab.node(Node::A).pod_interfaces().into_iter().find(|name| name.contains("late")).unwrap();
        block_on(datapath.detach_pod(&late)).unwrap();
        assert!(lab.http_get("late", service(V4, 1), SOON / 8).is_err(), "nobody translates");
        lab.http_get("client", service(V4, 1), SOON).unwrap();
        drop(datapath);

        // An external interface and a cgroup are the builder's: what it does not name, nobody serves.
        let datapath = EbpfDatapath::builder()
            .network_namespace(lab.node(Node::A).netns().path())
            .pin_dir(&pins)
            .attach_mode(mode)
            .build()
            .unwrap();
        lab.http_get(place("outside"), target(&lab, "outside"), SOON).unwrap();
        replace(&datapath, &table);
        for client in ["outside", "node"] {
            assert!(lab.http_get(place(client), target(&lab, client), SOON / 8).is_err(), "{client}");
        }
        block_on(datapath.close(Close::Remove)).unwrap();
        assert_eq!(bpffs.tree(), Vec::<std::path::PathBuf>::new());
        assert_eq!(attached(&lab), Vec::<String>::new());
        lab.remove_pod("late").unwrap();
    }
}

#[test]
fn one_hands_over_to_another_with_pins_of_its_own() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    for mode in modes() {
        let table = table(&lab, 1, routes(&lab, &["here", "there"]));
        let mut old = pinned(&lab, &bpffs.path().join("kubenet-0"), mode);
        replace(&old, &table);
        under_load(&lab, &format!("{mode:?}"), || {
            for round in 1..5 {
                let mut open = open(&lab);
                let new = if round % 2 == 0 {
                    pinned(&lab, &bpffs.path().join(format!("kubenet-{round}")), mode)
                } else {
                    let datapath = builder(&lab).attach_mode(mode).build().unwrap();
                    for interface in lab.node(Node::A).pod_interfaces() {
                        block_on(datapath.attach_pod(&interface)).unwrap();
                    }
                    datapath
                };
                replace(&new, &table);
                block_on(old.drain()).unwrap();
                all_live(&mut open);
                drop(open);
                let begin = Instant::now();
                while block_on(old.drain()).unwrap().flows > 0 {
                    assert!(begin.elapsed() < 2 * SOON, "{:?}", block_on(old.drain()));
                    std::thread::sleep(SOON / 100);
                }
                block_on(old.close(Close::Remove)).unwrap();
                old = new;
            }
        });
        block_on(old.close(Close::Remove)).unwrap();
        assert_eq!(bpffs.tree(), Vec::<std::path::PathBuf>::new());
    }
}

#[test]
fn one_that_was_left_draining_serves_again_with_the_next_table() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    let pins = bpffs.pin_dir();
    let table = table(&lab, 1, routes(&lab, &["there"]));
    let datapath = pinned(&lab, &pins, AttachMode::Auto);
    replace(&datapath, &table);
    let mut known = open(&lab);
    block_on(datapath.drain()).unwrap();
    block_on(datapath.close(Close::Keep)).unwrap();
    drop(datapath);
    all_live(&mut known);
    assert!(lab.http_get("client", service(V4, 1), SOON / 8).is_err(), "it takes nothing new");
    let datapath = pinned(&lab, &pins, AttachMode::Auto);
    assert_eq!(block_on(datapath.drain()).unwrap().flows, 2, "the node's own flow needs nobody");
    replace(&datapath, &table);
    all_served(&lab, &["there"]);
    all_live(&mut known);
}
