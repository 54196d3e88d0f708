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
