//! What happens when the programs fail. Needs root.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step fails the test")]

mod common;

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::{Child, Command},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use common::{programs::Programs, *};
use futures::executor::block_on;
use kubenet_core::{
    datapath::{Close, Datapath, ErrorKind},
    model::IpFamily,
    route::RouteTable,
};
use kubenet_iptables::{IptablesDatapath, Variant};

const V4: IpFamily = IpFamily::V4;

/// A lab, stand-in programs and a datapath that serves a table with b1.
fn serving(variant: Variant) -> Option<(World, Programs, IptablesDatapath, Arc<RouteTable>)> {
    let world = world(variant)?;
    let programs = Programs::new(world.word());
    let datapath = world.builder().program_directory(programs.path()).build().unwrap();
    let table = world.table(1, world.service(&["b1"]));
    block_on(datapath.replace(Arc::clone(&table))).unwrap();
    Some((world, programs, datapath, table))
}

#[test]
fn a_failing_program_leaves_the_last_good_rules_and_the_next_call_works() {
    let faults = [
        ("exit 1", ErrorKind::Internal, "status 1"),
        ("kill -9 $$", ErrorKind::Unavailable, "killed by signal 9"),
        (
            "echo 'line 4 failed: Permission denied (you must be root)' >&2; exit 4",
            ErrorKind::Permission,
            "root",
        ),
        (
            "echo 'Another app is currently holding the xtables lock.' >&2; exit 4",
            ErrorKind::Unavailable,
            "lock_wait",
        ),
    ];
    for variant in VARIANTS {
        let Some((world, programs, datapath, table)) = serving(variant) else { return };
        let mut table = table;
        // The second family's program fails, after the first has passed; then the first's.
        for (n, (script, kind, says)) in faults.into_iter().enumerate() {
            for program in ["ip6tables-restore", "iptables-restore"] {
                let before = world.rules();
                let pods: &[&str] = if n % 2 == 0 { &["a2"] } else { &["b1"] };
                let next = world.table(table.revision().0 + 1, world.service(pods));
                programs.fail(program, script);
                let delta = Arc::new(table.diff(&next));
                let error = block_on(datapath.apply(Arc::clone(&delta))).unwrap_err();
                assert_eq!(error.kind(), kind, "{error}");
                assert!(error.message().contains(says), "{error}");
                assert_eq!(world.rules(), before, "{variant:?} {program}: {script}");
                let error = block_on(datapath.replace(Arc::clone(&next))).unwrap_err();
                assert_eq!(error.kind(), kind, "{error}");
                assert_eq!(world.rules(), before, "{variant:?} {program}: {script}");
                programs.heal();
                if program == "iptables-restore" {
                    block_on(datapath.apply(delta)).unwrap();
                    assert_eq!(block_on(datapath.read()).unwrap(), *next);
                    assert_eq!(world.ask("a1", cluster_ip(V4)).0, pods[0]);
                    table = next;
                }
            }
        }
        block_on(datapath.close(Close::Remove)).unwrap();
    }
}

#[test]
fn a_program_killed_between_two_tables_is_taken_back_or_set_right_by_the_next_call() {
    for variant in VARIANTS {
        let Some((world, programs, datapath, table)) = serving(variant) else { return };
        // All endpoints go: the answers are in `filter`, the first table; `nat` never comes.
        let next = world.table(2, world.service(&[]));
        let delta = Arc::new(table.diff(&next));
        let before = world.rules();
        let half = format!(
            "sed '/^\\*nat/,$d' | /usr/sbin/iptables-{}-restore --noflush; rm {}/fail-iptables-restore; exit 1",
            world.word(),
            programs.path().display()
        );
        programs.fail("iptables-restore", &format!("touch {}/used; {half}", programs.path().display()));
        // Tried once more at once, from what is there.
        block_on(datapath.apply(Arc::clone(&delta))).unwrap();
        assert!(programs.path().join("used").exists());
        assert_eq!(block_on(datapath.read()).unwrap(), *next);
        block_on(datapath.replace(Arc::clone(&table))).unwrap();
        assert_eq!(world.rules(), before);

        // The same without a second try, as the program was killed: taken back.
        programs.fail("iptables-restore", &half.replace("exit 1", "kill -9 $$"));
        let error = block_on(datapath.apply(Arc::clone(&delta))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(world.rules(), before);
        assert_eq!(world.ask("a1", cluster_ip(V4)).0, "b1");

        // And where taking back fails too: the error says so, Services are served, the next call repairs.
        let once = programs.path().join("once");
        let half = half.split("; rm").next().unwrap();
        let script = format!("if [ ! -e {0} ]; then touch {0}; {half}; fi; kill -9 $$", once.display());
        programs.fail("iptables-restore", &script);
        let error = block_on(datapath.apply(Arc::clone(&delta))).unwrap_err();
        assert!(error.message().contains("IPv4 could not be put back"), "{error}");
        assert_ne!(world.rules(), before);
        assert_eq!(world.ask("a1", cluster_ip(V4)).0, "b1");
        programs.heal();
        block_on(datapath.apply(delta)).unwrap();
        assert_eq!(block_on(datapath.read()).unwrap(), *next);
        assert!(world.lab.http_get("a1", cluster_ip(V4), SECOND).unwrap_err().is_refused());
        block_on(datapath.close(Close::Remove)).unwrap();
    }
}

#[test]
fn a_lock_that_is_held_is_waited_for_and_then_reported() {
    let Some(world) = world(Variant::Legacy) else { return };
    let directory = tempfile::tempdir().unwrap();
    let lock = directory.path().join("lock");
    let datapath = world.builder().lock_file(&lock).lock_wait(Duration::from_secs(1)).build().unwrap();
    let table = world.table(1, world.service(&["b1"]));
    block_on(datapath.replace(Arc::clone(&table))).unwrap();
    let hold = |seconds: &str| -> Child {
        let mut flock = Command::new("flock");
        // exec, so that the process that is ended is the one that holds the lock.
        let child =
            flock.arg("--no-fork").arg(&lock).args(["sleep", seconds]).process_group(0).spawn().unwrap();
        thread::sleep(Duration::from_millis(200));
        child
    };
    let before = world.rules();
    let next = world.table(2, world.service(&["a2"]));
    let delta = Arc::new(table.diff(&next));
    let mut holder = hold("30");
    let error = block_on(datapath.apply(Arc::clone(&delta))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.message().contains("lock"), "{error}");
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(world.rules(), before);
    let mut holder = hold("0.5");
    block_on(datapath.apply(delta)).unwrap();
    holder.wait().unwrap();
    assert_eq!(block_on(datapath.read()).unwrap(), *next);
    block_on(datapath.close(Close::Remove)).unwrap();
}

#[test]
fn a_program_that_hangs_is_killed_and_the_last_good_rules_stay() {
    let Some(world) = world(Variant::Nft) else { return };
    let programs = Programs::new(world.word());
    let limit = Duration::from_secs(2);
    let datapath = world.builder().program_directory(programs.path()).time_limit(limit);
    let datapath = datapath.lock_wait(Duration::ZERO).build().unwrap();
    let table = world.table(1, world.service(&["b1"]));
    block_on(datapath.replace(Arc::clone(&table))).unwrap();
    let before = world.rules();
    let next = world.table(2, world.service(&["a2"]));
    let delta = Arc::new(table.diff(&next));
    for hangs in ["exec sleep 600", "sleep 600", "sleep 600 & wait"] {
        let begun = Instant::now();
        programs.fail("iptables-restore", hangs);
        let error = block_on(datapath.apply(Arc::clone(&delta))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.message().contains("time_limit"), "{error}");
        // Taking back asks the same program, for nothing or within the same limit.
        assert!(begun.elapsed() < Duration::from_secs(30), "{hangs}: {:?}", begun.elapsed());
        programs.heal();
        assert_eq!(world.rules(), before);
    }
    block_on(datapath.apply(delta)).unwrap();
    assert_eq!(block_on(datapath.read()).unwrap(), *next);
    block_on(datapath.close(Close::Remove)).unwrap();
}

#[test]
fn closing_carries_on_after_a_failure_and_can_be_repeated() {
    for variant in VARIANTS {
        let Some((world, programs, datapath, _)) = serving(variant) else { return };
        programs.fail("iptables-restore", "exit 3");
        let error = block_on(datapath.close(Close::Remove)).unwrap_err();
        assert!(error.message().starts_with("IPv4: "), "{error}");
        let left = world.rules();
        assert!(!left.contains("fd00:96"), "IPv6 is removed all the same: {left}");
        programs.heal();
        block_on(datapath.close(Close::Remove)).unwrap();
        assert!(!world.rules().contains("KUBE"));
    }
}

#[test]
fn a_machine_without_iptables_is_named_by_the_probe() {
    let nothing = tempfile::tempdir().unwrap();
    for variant in [Variant::Auto, Variant::Legacy, Variant::Nft] {
        let builder = IptablesDatapath::builder().variant(variant).program_directory(nothing.path());
        let error = builder.probe().unwrap_err();
        if error.kind() == ErrorKind::Permission {
            return kubenet_testkit::conformance::skip(error);
        }
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains("install iptables"), "{error}");
        assert_eq!(builder.build().unwrap_err().kind(), ErrorKind::Unsupported);
    }
}

#[test]
fn a_program_that_disappears_is_unsupported_and_one_that_comes_back_works() {
    let Some((world, programs, datapath, table)) = serving(Variant::Nft) else { return };
    let program = programs.path().join("iptables-nft-restore");
    let away = programs.path().join("away");
    fs::rename(&program, &away).unwrap();
    let next = world.table(2, world.service(&["a2"]));
    let delta = Arc::new(table.diff(&next));
    let error = block_on(datapath.apply(Arc::clone(&delta))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.message().contains("iptables-nft-restore"), "{error}");
    fs::rename(&away, &program).unwrap();
    block_on(datapath.apply(delta)).unwrap();
    block_on(datapath.close(Close::Remove)).unwrap();
}

#[test]
fn a_user_without_privileges_is_told_so_by_the_probe() {
    // The test binary runs itself as nobody.
    if std::env::var_os("KUBENET_TEST_UNPRIVILEGED").is_some() {
        let error = IptablesDatapath::probe().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
        assert!(error.message().contains("CAP_NET_ADMIN"), "{error}");
        return;
    }
    if world(Variant::Nft).is_none() {
        return;
    }
    // A copy in a place that nobody can read.
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = directory.path().join("faults");
    fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let output = Command::new(&copy)
        .args(["--exact", "a_user_without_privileges_is_told_so_by_the_probe"])
        .env("KUBENET_TEST_UNPRIVILEGED", "1")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn the_variant_in_use_is_detected() {
    let Some(world) = world(Variant::Auto) else { return };
    let auto = || world.builder().probe().unwrap().datapath;
    let default =
        String::from_utf8(Command::new("iptables-restore").arg("--version").output().unwrap().stdout);
    let default = if default.unwrap().contains("legacy") { "iptables-legacy" } else { "iptables-nft" };
    assert_eq!(auto(), default);
    world.run("iptables-legacy", &["-w", "5", "-t", "mangle", "-N", "KUBE-KUBELET-CANARY"]);
    assert_eq!(auto(), "iptables-legacy");
    world.run("iptables-nft", &["-t", "mangle", "-N", "KUBE-IPTABLES-HINT"]);
    assert_eq!(auto(), "iptables-nft");
    // Nothing was touched: no table of ours, in either variant.
    for save in ["iptables-legacy-save", "iptables-nft-save"] {
        let text = world.run(save, &[]);
        assert!(!text.contains("*nat") && !text.contains("*filter"), "{text}");
    }
}
