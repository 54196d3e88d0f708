//! Pins that somebody removes, or a file system that goes, while a datapath runs.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{FutureExt, StreamExt, stream::BoxStream};
use kubenet_core::{
    datapath::{Close, Datapath, DatapathEvent, DatapathExt, ErrorKind},
    route::RouteTable,
};
use kubenet_ebpf::{Inspector, remove_pins};
use kubenet_testkit::lab::{Connection, Lab};
use nix::mount::{MntFlags, umount2};

use super::{support::bpffs::maps_in, *};

/// All that was reported as drift since the last time.
fn drift(events: &mut BoxStream<'static, DatapathEvent>) -> Vec<String> {
    let mut found = Vec::new();
    while let Some(Some(event)) = events.next().now_or_never() {
        if let DatapathEvent::Drift { detail } = event {
            found.push(detail);
        }
    }
    found
}

fn open(lab: &Lab) -> Vec<Connection> {
    CLIENTS.map(|client| lab.connect(place(client), target(lab, client), SOON).unwrap()).into()
}

/// A datapath that serves, what it tells, its table, and connections that it knows.
fn at_work(
    lab: &Lab,
    pins: &Path,
    mode: AttachMode,
) -> (EbpfDatapath, BoxStream<'static, DatapathEvent>, Arc<RouteTable>, Vec<Connection>) {
    let datapath = pinned(lab, pins, mode);
    let events = datapath.events();
    let table = table(lab, 1, routes(lab, &["here"]));
    replace(&datapath, &table);
    (datapath, events, table, open(lab))
}

/// Packets meet the programs, and changes reach them.
fn goes_on(
    lab: &Lab,
    datapath: &EbpfDatapath,
    known: &mut [Connection],
    now: &mut Arc<RouteTable>,
    to: &str,
) {
    known.iter_mut().for_each(|connection| drop(connection.ask(SOON).unwrap()));
    let next = table(lab, now.revision().0 + 1, routes(lab, &[to]));
    let report = block_on(datapath.apply(Arc::new(now.diff(&next)))).unwrap();
    assert!(report.failed.is_empty() && report.upserted > 0, "{report:?}");
    for client in CLIENTS {
        let answer = lab.http_get(place(client), target(lab, client), SOON);
        assert_eq!(answer.unwrap_or_else(|e| panic!("{client}: {e}")).backend, to, "{client}");
    }
    *now = next;
}

#[test]
fn pins_that_somebody_removes_are_put_back() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    for mode in modes() {
        let pins = bpffs.pin_dir();
        let (datapath, mut events, mut now, mut known) = at_work(&lab, &pins, mode);
        let tree = bpffs.tree();
        let maps = maps_in(&pins);
        let links: Vec<PathBuf> =
            ["links", "filters"].map(|name| pins.join(name)).into_iter().filter(|p| p.is_dir()).collect();
        assert!(!links.is_empty());
        drift(&mut events);
        let rm = |path: &Path| {
            if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
        };
        let gone: [Vec<PathBuf>; 4] = [vec![maps.join("services4")], vec![maps], links, vec![pins.clone()]];
        for (i, gone) in gone.iter().enumerate() {
            gone.iter().for_each(|path| rm(path));
            goes_on(&lab, &datapath, &mut known, &mut now, ["there", "here"][i % 2]);
            let inspector = Inspector::open(&pins).map(|_| ()).map_err(|e| e.to_string());
            if !gone.iter().all(|path| path.ends_with("links") || path.ends_with("filters")) {
                let why = inspector.unwrap_err();
                assert!(why.contains("kubenet-test/v"), "{why}");
            }
            // An audit.
            if i % 2 == 0 {
                assert!(block_on(datapath.drift(&now)).unwrap().is_none());
            } else {
                replace(&datapath, &now);
            }
            let said = drift(&mut events);
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(said[0].starts_with("somebody removed what was pinned: put right: "), "{said:?}");
            assert!(gone.iter().any(|path| said[0].contains(path.to_str().unwrap())), "{said:?}");
            assert_eq!(bpffs.tree(), tree);
            // The lock is that of the new directory.
            let error = builder(&lab).pin_dir(&pins).build().unwrap_err();
            assert!(error.message().contains("another datapath uses it"), "{error}");

            let inspected = Inspector::open(&pins).unwrap().table().unwrap();
            assert!(inspected.same_routes(&now), "{:?}", inspected.diff(&now));
        }
        // Nobody looks before it ends, one way or the other.
        fs::remove_dir_all(&pins).unwrap();
        block_on(datapath.close(Close::Keep)).unwrap();
        drop(datapath);
        known.iter_mut().for_each(|connection| drop(connection.ask(SOON).unwrap()));
        let datapath = pinned(&lab, &pins, mode);
        known.iter_mut().for_each(|connection| drop(connection.ask(SOON).unwrap()));
        let report = replace(&datapath, &now);
        assert_eq!((report.upserted, report.removed), (0, 0));
        fs::remove_dir_all(&pins).unwrap();
        drop(datapath);
        let datapath = pinned(&lab, &pins, mode);
        assert_eq!(replace(&datapath, &now).upserted, 0);
        known.iter_mut().for_each(|connection| drop(connection.ask(SOON).unwrap()));
        block_on(datapath.close(Close::Remove)).unwrap();
        assert_eq!(bpffs.tree(), Vec::<PathBuf>::new());
        assert_eq!(attached(&lab), Vec::<String>::new());
    }
}

#[test]
fn a_file_system_that_goes_or_cannot_be_written_is_named_and_nothing_is_lost() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    for mode in modes() {
        let pins = bpffs.pin_dir();
        let (datapath, mut events, mut now, mut known) = at_work(&lab, &pins, mode);
        for (unmounted, reason) in [(false, "is mounted read-only"), (true, "is not on a BPF file system")] {
            drift(&mut events);
            if unmounted {
                umount2(bpffs.path(), MntFlags::MNT_DETACH).unwrap();
            } else {
                // A directory that is locked cannot go before.
                fs::read_dir(&pins).unwrap().for_each(|e| fs::remove_dir_all(e.unwrap().path()).unwrap());
                bpffs.set_read_only(true);
            }
            goes_on(&lab, &datapath, &mut known, &mut now, "there");
            replace(&datapath, &now);
            // A pod comes meanwhile, and is served.
            lab.add_pod("late", Node::A).unwrap();
            let interfaces = lab.node(Node::A).pod_interfaces();
            let late = interfaces.iter().find(|name| name.contains("late")).unwrap();
            block_on(datapath.attach_pod(late)).unwrap();
            lab.http_get("late", service(V4, 1), SOON).unwrap();
            assert!(block_on(datapath.drift(&now)).unwrap().is_none());
            let said = drift(&mut events);
            assert_eq!(said.len(), 3, "{said:?}");
            for detail in &said {
                let path = bpffs.path().to_str().unwrap();
                assert!(detail.contains("as it is not pinned") && detail.contains(reason), "{detail}");
                assert!(detail.contains(path), "{detail}");
            }
            // It would not be kept, and goes on.
            let error = block_on(datapath.close(Close::Keep)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert!(error.message().contains(reason), "{error}");
            goes_on(&lab, &datapath, &mut known, &mut now, "here");
            let error = Inspector::open(&pins).unwrap_err();
            assert!(error.to_string().contains(pins.to_str().unwrap()), "{error}");

            if unmounted {
                bpffs.mount_again()
            } else {
                bpffs.set_read_only(false)
            }
            assert!(block_on(datapath.drift(&now)).unwrap().is_none());
            let said = drift(&mut events);
            assert!(said.len() == 1 && said[0].contains("put right"), "{said:?}");
            assert!(Inspector::open(&pins).unwrap().table().unwrap().same_routes(&now));
            block_on(datapath.detach_pod(late)).unwrap();
            lab.remove_pod("late").unwrap();
        }
        block_on(datapath.close(Close::Keep)).unwrap();
        drop(datapath);
        known.iter_mut().for_each(|connection| drop(connection.ask(SOON).unwrap()));
        let datapath = pinned(&lab, &pins, mode);
        assert_eq!(replace(&datapath, &now).upserted, 0);
        block_on(datapath.close(Close::Remove)).unwrap();
        assert_eq!(bpffs.tree(), Vec::<PathBuf>::new());
    }
}

#[test]
fn a_directory_that_another_datapath_took_is_left_to_it() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    let (pins, mode) = (bpffs.pin_dir(), AttachMode::Auto);
    let (datapath, mut events, mut now, mut known) = at_work(&lab, &pins, mode);
    fs::remove_dir_all(&pins).unwrap();
    let other = builder(&lab).pin_dir(&pins).build().unwrap();
    let tree = bpffs.tree();
    drift(&mut events);
    assert!(block_on(datapath.drift(&now)).unwrap().is_none());
    let said = drift(&mut events);
    assert!(said.len() == 1 && said[0].contains("another datapath uses it"), "{said:?}");
    replace(&other, &now);
    block_on(other.close(Close::Keep)).unwrap();
    drop(other);
    assert_ne!(bpffs.tree(), tree);
    let error = block_on(datapath.close(Close::Keep)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.message().contains("holds what another one pinned"), "{error}");
    goes_on(&lab, &datapath, &mut known, &mut now, "there");
    remove_pins(&pins).unwrap();
    block_on(datapath.close(Close::Keep)).unwrap();
    drop(datapath);
    known.iter_mut().for_each(|connection| drop(connection.ask(SOON).unwrap()));
    remove_pins(&pins).unwrap();
    assert_eq!(bpffs.tree(), Vec::<PathBuf>::new());
}
