//! What others do to our rules: seen, repaired, and nothing of theirs lost. Needs root.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step fails the test")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use common::{programs::Programs, *};
use futures::executor::block_on;
use kubenet_core::{
    datapath::{Close, Datapath, DatapathExt, ErrorKind},
    model::IpFamily,
};
use kubenet_iptables::Variant;

const V4: IpFamily = IpFamily::V4;
/// The chain of the Service that the world has, for TCP.
const SET: &str = "KUBE-SVC-XRY76EGRC3BSCIIJ";

fn flush(world: &World) {
    for table in ["mangle", "nat", "filter"] {
        world.iptables(&["-t", table, "-F"]);
        world.iptables(&["-t", table, "-X"]);
    }
}

#[test]
fn jumps_that_were_moved_are_put_back_in_their_place() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let datapath = world.start();
        let table = world.table(1, world.service(&["a2", "b1"]));
        block_on(datapath.replace(Arc::clone(&table))).unwrap();
        let drifted = || block_on(datapath.drift(&table)).unwrap().is_some();
        let others = ["-s", "192.0.2.0/24", "-j", "ACCEPT"];
        // A rule before ours that some packets pass is somebody's right.
        world.iptables(&[&["-t", "nat", "-I", "PREROUTING"][..], &others].concat());
        assert!(!drifted());
        let in_order = world.rules();
        // One that no packet passes is not.
        for (table, chain) in [("nat", "PREROUTING"), ("filter", "FORWARD")] {
            world.iptables(&["-t", table, "-I", chain, "-j", "ACCEPT"]);
        }
        assert!(drifted());
        block_on(datapath.replace(Arc::clone(&table))).unwrap();
        assert!(!drifted());
        assert_eq!(world.ask("a1", cluster_ip(V4)).1, world.address("a1", V4));
        let has = |line: &str| world.rules().lines().any(|l| l == line);
        assert!(has("-A PREROUTING -j ACCEPT") && has("-A FORWARD -j ACCEPT"), "they stay");
        assert!(has("-A PREROUTING -s 192.0.2.0/24 -j ACCEPT"));
        for (table, chain) in [("nat", "PREROUTING"), ("filter", "FORWARD")] {
            world.iptables(&["-t", table, "-D", chain, "-j", "ACCEPT"]);
        }
        // The order among ours counts: established flows are accepted first.
        let forward = ["-m", "comment", "--comment", "kubernetes forwarding rules", "-j", "KUBE-FORWARD"];
        world.iptables(&[&["-D", "FORWARD"][..], &forward].concat());
        world.iptables(&[&["-A", "FORWARD"][..], &forward].concat());
        assert!(drifted());
        block_on(datapath.replace(Arc::clone(&table))).unwrap();
        assert!(!drifted());
        let forward = |rules: &str| -> Vec<String> {
            rules.lines().filter(|l| l.starts_with("-A FORWARD")).map(str::to_owned).collect()
        };
        assert_eq!(forward(&world.rules()), forward(&in_order));
        block_on(datapath.close(Close::Remove)).unwrap();
        assert!(!world.rules().contains("KUBE"));
    }
}

#[test]
fn a_flush_is_told_by_the_canary_and_the_next_update_repairs_it() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let datapath = world.start();
        assert_eq!(block_on(datapath.is_intact()).unwrap_err().kind(), ErrorKind::Conflict);
        let mut table = world.table(1, world.service(&["a2", "b1"]));
        block_on(datapath.replace(Arc::clone(&table))).unwrap();
        for (n, pods) in [(2, ["a2"].as_slice()), (3, &["b1"])] {
            assert!(block_on(datapath.is_intact()).unwrap());
            flush(&world);
            assert!(!block_on(datapath.is_intact()).unwrap());
            assert!(world.lab.http_get("a1", cluster_ip(V4), SHORT).is_err());
            let next = world.table(n, world.service(pods));
            block_on(datapath.apply(Arc::new(table.diff(&next)))).unwrap();
            assert_eq!(block_on(datapath.read()).unwrap(), *next);
            assert_eq!(world.ask("a1", cluster_ip(V4)).0, pods[0]);
            table = next;
        }
        assert!(block_on(datapath.is_intact()).unwrap());
        block_on(datapath.close(Close::Remove)).unwrap();
        assert!(!world.rules().contains("KUBE"), "the canary goes, too");
    }
}

#[test]
fn a_canary_that_could_not_be_set_is_set_by_the_next_update() {
    let Some(world) = world(Variant::Nft) else { return };
    let programs = Programs::new(world.word());
    let datapath = world.builder().program_directory(programs.path()).build().unwrap();
    let mut table = world.table(1, world.service(&["b1"]));
    // The rules first, then the canary.
    programs.count("iptables-restore", "[ $n -eq 1 ] && exit 1");
    block_on(datapath.replace(Arc::clone(&table))).unwrap();
    assert_eq!(block_on(datapath.is_intact()).unwrap_err().kind(), ErrorKind::Unavailable);
    for (n, calls) in [(2, 4), (3, 5), (4, 6)] {
        let next = world.table(n, world.service(if n % 2 == 0 { &["a2"] } else { &["b1"] }));
        block_on(datapath.apply(Arc::new(table.diff(&next)))).unwrap();
        assert!(block_on(datapath.is_intact()).unwrap());
        assert_eq!(programs.calls("iptables-restore"), calls, "once set it is not set again");
        table = next;
    }
    block_on(datapath.close(Close::Remove)).unwrap();
    assert!(!world.rules().contains("KUBE"));
}

#[test]
fn flushes_under_load_are_repaired_and_flows_live_on() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let datapath = world.start();
        let mut table = world.table(1, world.service(&["a2", "b1"]));
        block_on(datapath.replace(Arc::clone(&table))).unwrap();
        let mut connection = world.lab.connect("a1", cluster_ip(V4), SECOND).unwrap();
        let (done, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            let client = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let answer = world.lab.http_get("a2", cluster_ip(V4), SHORT);
                    answered.fetch_add(usize::from(answer.is_ok()), Ordering::Relaxed);
                }
            });
            for n in 2..8 {
                let before = answered.load(Ordering::Relaxed);
                flush(&world);
                let next = world.table(n, world.service(if n % 2 == 0 { &["a2"] } else { &["a2", "b1"] }));
                // Both ways of noticing: an update that meets the flushed tables, and an audit.
                match n % 3 {
                    0 => drop(block_on(datapath.replace(Arc::clone(&next))).unwrap()),
                    _ => {
                        assert!(!block_on(datapath.is_intact()).unwrap());
                        block_on(datapath.apply(Arc::new(table.diff(&next)))).unwrap();
                    }
                }
                table = next;
                assert_eq!(block_on(datapath.read()).unwrap(), *table);
                assert!(block_on(datapath.is_intact()).unwrap());
                while answered.load(Ordering::Relaxed) < before + 3 {
                    thread::yield_now();
                }
                connection.ask(SECOND).unwrap();
            }
            done.store(true, Ordering::Relaxed);
            client.join().unwrap();
        });
        block_on(datapath.close(Close::Remove)).unwrap();
        assert!(!world.rules().contains("KUBE"));
    }
}

#[test]
fn rules_of_others_in_our_chains_are_seen_and_go() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let datapath = world.start();
        let table = world.table(1, world.service(&["a2", "b1"]));
        block_on(datapath.replace(Arc::clone(&table))).unwrap();
        let whole = world.rules();
        for (chain, rule) in [
            (SET, ["-I", SET, "-p", "tcp", "-j", "RETURN"].as_slice()),
            (SET, &["-A", SET, "-m", "limit", "--limit", "1/s", "-j", "RETURN"]),
            ("KUBE-SERVICES", &["-I", "KUBE-SERVICES", "-p", "tcp", "-j", "ACCEPT"]),
            ("KUBE-POSTROUTING", &["-I", "KUBE-POSTROUTING", "-j", "RETURN"]),
        ] {
            world.iptables(&[&["-t", "nat"][..], rule].concat());
            assert!(block_on(datapath.drift(&table)).unwrap().is_some(), "{chain}: {rule:?}");
            block_on(datapath.replace(Arc::clone(&table))).unwrap();
            assert_eq!(world.rules(), whole, "{chain}: {rule:?}");
        }
        block_on(datapath.close(Close::Remove)).unwrap();
    }
}

#[test]
fn a_chain_of_somebody_else_with_our_name_is_taken_and_given_back_empty() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let datapath = world.start();
        let one = world.table(1, world.service(&["b1"]));
        block_on(datapath.replace(Arc::clone(&one))).unwrap();
        for rule in [
            ["-N", SET].as_slice(),
            &["-A", SET, "-p", "tcp", "-j", "DNAT", "--to-destination", "192.0.2.1:80"],
            &["-N", "OTHER"],
            &["-A", "OTHER", "-j", SET],
        ] {
            world.iptables(&[&["-t", "nat"][..], rule].concat());
        }
        let several = world.table(2, world.service(&["a2", "b1"]));
        block_on(datapath.apply(Arc::new(one.diff(&several)))).unwrap();
        assert_eq!(block_on(datapath.read()).unwrap(), *several);
        assert!(!world.rules().contains("192.0.2.1"));
        // Back to one endpoint: the chain cannot go while somebody leads to it.
        let again = world.table(3, world.service(&["a2"]));
        block_on(datapath.apply(Arc::new(several.diff(&again)))).unwrap();
        assert_eq!(world.ask("a1", cluster_ip(V4)).0, "a2");
        assert_eq!(block_on(datapath.drift(&again)).unwrap(), None);
        let rules = world.rules();
        assert!(rules.contains(&format!(":{SET} ")) && rules.contains(&format!("-A OTHER -j {SET}")));
        let error = block_on(datapath.close(Close::Remove)).unwrap_err();
        assert!(error.message().contains(SET), "{error}");
        world.iptables(&["-t", "nat", "-F", "OTHER"]);
        block_on(datapath.close(Close::Remove)).unwrap();
        assert!(!world.rules().contains("KUBE"));
    }
}

#[test]
fn a_kernel_without_a_match_is_served_without_or_told_by_name() {
    let Some(world) = world(Variant::Nft) else { return };
    let programs = Programs::new(world.word());
    let builder = || world.builder().program_directory(programs.path());
    programs.lack("bpf");
    let datapath = builder().build().unwrap();
    let limits = &datapath.capabilities().limitations;
    assert!(limits.iter().any(|limit| limit.why.contains("xt_bpf")), "{limits:?}");
    let table = world.table(1, world.service(&["a1", "a2"]));
    block_on(datapath.replace(Arc::clone(&table))).unwrap();
    assert!(world.rules().contains("KUBE-SEP-") && !world.rules().contains("bpf"));
    assert_eq!(block_on(datapath.drift(&table)).unwrap(), None);
    // One that can compare takes over in place.
    block_on(datapath.close(Close::Keep)).unwrap();
    programs.heal();
    let datapath = builder().build().unwrap();
    assert!(!datapath.capabilities().limitations.iter().any(|limit| limit.why.contains("xt_bpf")));
    block_on(datapath.replace(Arc::clone(&table))).unwrap();
    assert!(!world.rules().contains("KUBE-SEP-") && world.rules().contains("bpf"));
    block_on(datapath.close(Close::Remove)).unwrap();
    programs.lack("statistic");
    let error = builder().build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.message().contains("statistic"), "{error}");
    // Lost while it serves: the update fails by name, what served goes on, and it heals without a restart.
    programs.heal();
    let datapath = builder().build().unwrap();
    let one = world.table(1, world.service(&["b1"]));
    block_on(datapath.replace(Arc::clone(&one))).unwrap();
    programs.lack("statistic");
    let delta = Arc::new(one.diff(&world.table(2, world.service(&["a2", "b1"]))));
    let error = block_on(datapath.apply(Arc::clone(&delta))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert_eq!(world.ask("a1", cluster_ip(V4)).0, "b1");
    programs.heal();
    block_on(datapath.apply(delta)).unwrap();
    block_on(datapath.close(Close::Remove)).unwrap();
}
