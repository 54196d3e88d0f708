//! What cannot be adopted is refused, by name and with what helps.

use std::fs;

use aya::maps::{HashMap, MapData};
use kubenet_core::datapath::{Close, Datapath, ErrorKind};
use kubenet_ebpf::{EbpfBuilder, MapSizes, Metric, remove_pins};

use super::{support::bpffs::maps_in, *};

fn refused(builder: EbpfBuilder) -> (ErrorKind, String) {
    let error = builder.build().unwrap_err();
    (error.kind(), error.message().to_owned())
}

#[test]
fn two_at_one_place_are_refused() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    let pins = bpffs.pin_dir();
    let datapath = pinned(&lab, &pins, AttachMode::Auto);
    replace(&datapath, &table(&lab, 1, routes(&lab, &["here"])));
    let before = bpffs.tree();
    let (kind, message) = refused(builder(&lab).pin_dir(&pins).pin_if_possible());
    assert_eq!(kind, ErrorKind::Unavailable);
    assert!(message.contains("another datapath uses it") && message.contains("kubenet-test"), "{message}");
    assert_eq!(remove_pins(&pins).unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(bpffs.tree(), before);
    // Another place is another datapath.
    let other = builder(&lab).pin_dir(bpffs.path().join("kubenet-other")).build().unwrap();
    block_on(other.close(Close::Remove)).unwrap();
    block_on(datapath.close(Close::Keep)).unwrap();
    drop(pinned(&lab, &pins, AttachMode::Auto));
    remove_pins(&pins).unwrap();
    remove_pins(&pins).unwrap();
    assert_eq!(bpffs.tree(), Vec::<std::path::PathBuf>::new());
    assert_eq!(attached(&lab), Vec::<String>::new());
}

/// Leaves a datapath pinned, in use.
fn leave(lab: &Lab, pins: &Path, mode: AttachMode) {
    let datapath = pinned(lab, pins, mode);
    replace(&datapath, &table(lab, 1, routes(lab, &["here", "there"])));
    block_on(datapath.close(Close::Keep)).unwrap();
}

/// It goes on serving, and can be removed.
fn still_serves(lab: &Lab) {
    for client in CLIENTS {
        lab.http_get(place(client), target(lab, client), SOON).unwrap_or_else(|e| panic!("{client}: {e}"));
    }
}

#[test]
fn another_layout_is_refused_and_goes_on_serving() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    for mode in modes() {
        let pins = bpffs.pin_dir();
        leave(&lab, &pins, mode);
        fs::rename(maps_in(&pins), pins.join("v999")).unwrap();
        let (kind, message) = refused(builder(&lab).pin_dir(&pins).attach_mode(mode));
        assert_eq!(kind, ErrorKind::Unsupported);
        assert!(message.contains("kubenet-test/v999") && message.contains("layout 999"), "{message}");
        assert!(message.contains("remove_pins"), "{message}");
        still_serves(&lab);
        lab.node(Node::A).netns().run(|| remove_pins(&pins)).unwrap().unwrap();
        assert_eq!(bpffs.tree(), Vec::<std::path::PathBuf>::new());
        assert!(lab.http_get("client", target(&lab, "client"), SOON / 8).is_err(), "nobody translates");
    }
}

#[test]
fn another_layout_hands_over_to_a_directory_beside_it() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    for mode in modes() {
        let (pins, beside) = (bpffs.pin_dir(), bpffs.path().join("kubenet-next"));
        let routes = table(&lab, 1, routes(&lab, &["here", "there"]));
        let old = pinned(&lab, &pins, mode);
        replace(&old, &routes);
        fs::rename(maps_in(&pins), pins.join("v999")).unwrap();
        let known = CLIENTS.map(|client| lab.connect(place(client), target(&lab, client), SOON).unwrap());
        under_load(&lab, &format!("{mode:?}, hand-over"), || {
            let new = pinned(&lab, &beside, mode);
            replace(&new, &routes);
            block_on(old.drain()).unwrap();
            let before = block_on(new.metrics()).unwrap()[&Metric::NewFlow];
            still_serves(&lab);
            assert!(block_on(new.metrics()).unwrap()[&Metric::NewFlow] > before, "it takes the new flows");
            for (client, mut connection) in CLIENTS.iter().zip(known) {
                connection.ask(SOON).unwrap_or_else(|e| panic!("{mode:?}, {client}: {e}"));
            }
            // The flows that are known to the old one have ended.
            block_on(old.close(Close::Keep)).unwrap();
            drop(old);
            lab.node(Node::A).netns().run(|| remove_pins(&pins)).unwrap().unwrap();
            still_serves(&lab);
            block_on(new.close(Close::Keep)).unwrap();
        });
        assert!(!pins.exists());
        lab.node(Node::A).netns().run(|| remove_pins(&beside)).unwrap().unwrap();
        assert_eq!(bpffs.tree(), Vec::<std::path::PathBuf>::new());
    }
}

#[test]
fn a_part_that_is_missing_is_named() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    let pins = bpffs.pin_dir();
    leave(&lab, &pins, AttachMode::Auto);
    fs::remove_file(maps_in(&pins).join("backends6")).unwrap();
    let (kind, message) = refused(builder(&lab).pin_dir(&pins));
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(message.contains("map backends6 is missing") && message.contains("remove_pins"), "{message}");
    fs::remove_dir_all(maps_in(&pins)).unwrap();
    let (_, message) = refused(builder(&lab).pin_dir(&pins));
    assert!(message.contains("programs are pinned, but not their maps"), "{message}");
    still_serves(&lab);
    remove_pins(&pins).unwrap();
    assert_eq!(bpffs.tree(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn another_shape_is_named_with_its_difference() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    let pins = bpffs.pin_dir();
    leave(&lab, &pins, AttachMode::Auto);
    let mut sizes = MapSizes::default();
    sizes.services *= 2;
    let (kind, message) = refused(builder(&lab).pin_dir(&pins).map_sizes(sizes));
    assert_eq!(kind, ErrorKind::Unsupported);
    let expected = "the map has entries 131072 instead of 262144: keep the MapSizes that it was made with";
    assert!(message.contains("/cluster_ips4") && message.contains(expected), "{message}");

    let pin = maps_in(&pins).join("services4");
    let away = maps_in(&pins).join("kept");
    fs::rename(&pin, &away).unwrap();
    let small: HashMap<MapData, u32, u32> = HashMap::create(65_536, 1).unwrap();
    small.pin(&pin).unwrap();
    let (_, message) = refused(builder(&lab).pin_dir(&pins));
    assert!(message.contains("/services4: the map has a key size of 4 instead of 8"), "{message}");
    still_serves(&lab);
    fs::rename(&away, &pin).unwrap();
    still_serves(&lab);
    drop(pinned(&lab, &pins, AttachMode::Auto));
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    let pins = bpffs.pin_dir();
    fs::create_dir(&pins).unwrap();
    fs::create_dir(pins.join("theirs")).unwrap();
    let (kind, message) = refused(builder(&lab).pin_dir(&pins));
    assert_eq!(kind, ErrorKind::InvalidInput);
    assert!(message.contains("theirs: is none of ours"), "{message}");
    assert!(pins.join("theirs").exists());
}

#[test]
fn a_place_that_cannot_hold_pins_is_refused_or_done_without() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    let nowhere = std::env::temp_dir().join("kubenet-no-bpffs");
    let (kind, message) = refused(builder(&lab).pin_dir(&nowhere));
    assert_eq!(kind, ErrorKind::Unavailable);
    assert!(message.contains("is not on a BPF file system: mount one with `mount -t bpf bpf"), "{message}");
    assert!(!nowhere.exists());
    assert_eq!(refused(builder(&lab).pin_dir("kubenet")).0, ErrorKind::InvalidInput);

    let pins = bpffs.pin_dir();
    leave(&lab, &pins, AttachMode::Auto);
    bpffs.set_read_only(true);
    let (kind, message) = refused(builder(&lab).pin_dir(&pins));
    assert_eq!(kind, ErrorKind::Unavailable);
    assert!(message.contains("is mounted read-only: mount it read-write"), "{message}");
    still_serves(&lab);
    bpffs.set_read_only(false);
    remove_pins(&pins).unwrap();

    bpffs.set_read_only(true);
    for place in [&nowhere, &pins] {
        let datapath = builder(&lab).pin_dir(place).pin_if_possible().build().unwrap();
        assert!(!datapath.capabilities().keep_on_close);
        assert!(datapath.capabilities().limitations.iter().any(|l| l.what == "restarts"));
        replace(&datapath, &table(&lab, 1, []));
        assert_eq!(block_on(datapath.close(Close::Keep)).unwrap_err().kind(), ErrorKind::Unsupported);
        drop(datapath);
        assert_eq!(attached(&lab), Vec::<String>::new());
    }
    bpffs.set_read_only(false);
    assert_eq!(bpffs.tree(), Vec::<std::path::PathBuf>::new());
}
