//! Updates that take several transactions, and what packets see of them. Needs root.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step fails the test")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use common::{programs::Programs, *};
use futures::executor::block_on;
use kubenet_core::{
    datapath::{Close, Datapath, ErrorKind},
    model::IpFamily,
};
use kubenet_iptables::Variant;

const V4: IpFamily = IpFamily::V4;
const PROGRAM: &str = "iptables-restore";

#[test]
fn a_first_programming_that_is_killed_anywhere_serves_nothing_and_leaves_nothing() {
    let Some(world) = world(Variant::Nft) else { return };
    let programs = Programs::new(world.word());
    let table = world.large(1, &["b1"], 100);
    let start = || world.builder().program_directory(programs.path()).build().unwrap();
    let datapath = start();
    programs.count(PROGRAM, "");
    block_on(datapath.replace(Arc::clone(&table))).unwrap();
    // The last one sets the canary: rules serve without.
    let calls = programs.calls(PROGRAM) - 1;
    assert!(calls > 3, "{calls} transactions");
    let (whole, read) = (world.rules(), block_on(datapath.read()).unwrap());
    assert!(read.same_routes(&table));
    block_on(datapath.close(Close::Remove)).unwrap();
    let nothing = world.rules();
    assert!(!nothing.contains("KUBE"));
    for n in 0..calls {
        programs.heal();
        let datapath = start();
        // Once: what was made is taken away. Ever after: that fails, too.
        for times in [1, 1_000] {
            programs.kill(PROGRAM, n, times);
            let error = block_on(datapath.replace(Arc::clone(&table))).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            assert!(error.message().contains("killed by signal 9"), "{error}");
            assert!(world.lab.http_get("a1", cluster_ip(V4), SHORT).is_err());
            assert!(block_on(datapath.read()).unwrap().is_empty());
            if times == 1 {
                assert_eq!(world.rules(), nothing, "call {n}");
            }
        }
        programs.heal();
        block_on(datapath.replace(Arc::clone(&table))).unwrap();
        assert_eq!(world.rules(), whole, "call {n}");
        assert_eq!(world.ask("a1", cluster_ip(V4)).0, "b1");
        block_on(datapath.close(Close::Remove)).unwrap();
        assert_eq!(world.rules(), nothing);
    }
}

#[test]
fn a_large_replacement_that_is_killed_anywhere_leaves_what_served_or_serves() {
    let Some(world) = world(Variant::Nft) else { return };
    let programs = Programs::new(world.word());
    let datapath = world.builder().program_directory(programs.path()).build().unwrap();
    let tables = [world.table(1, world.service(&["a2"])), world.large(2, &["b1"], 100)];
    let serves = ["a2", "b1"];
    let mut whole = Vec::new();
    for table in &tables {
        block_on(datapath.replace(Arc::clone(table))).unwrap();
        whole.push(world.rules());
    }
    // From the large one to the small one, which deletes chains afterwards, and back.
    for (from, to) in [(1, 0), (0, 1)] {
        programs.count(PROGRAM, "");
        block_on(datapath.replace(Arc::clone(&tables[to]))).unwrap();
        // The last one sets the canary: rules serve without.
        let calls = programs.calls(PROGRAM) - 1;
        assert!(calls > 3, "{calls} transactions");
        programs.heal();
        let mut after_the_switch = 0;
        for n in 0..calls {
            block_on(datapath.replace(Arc::clone(&tables[from]))).unwrap();
            assert_eq!(world.rules(), whole[from]);
            programs.kill(PROGRAM, n, 1_000);
            let result = block_on(datapath.replace(Arc::clone(&tables[to])));
            let now = if result.is_ok() { to } else { from };
            after_the_switch += usize::from(result.is_ok());
            assert_eq!(world.ask("a1", cluster_ip(V4)).0, serves[now], "{from} to {to}, call {n}");
            programs.heal();
            // An update tidies up, and so does writing everything.
            if result.is_ok() {
                let delta = tables[to].diff(&tables[from]);
                block_on(datapath.apply(Arc::new(delta))).unwrap();
                assert_eq!(world.rules(), whole[from], "{from} to {to}, call {n}");
            }
            block_on(datapath.replace(Arc::clone(&tables[to]))).unwrap();
            assert_eq!(world.rules(), whole[to], "{from} to {to}, call {n}");
        }
        assert_eq!(after_the_switch > 0, to == 0, "only deletions come afterwards");
    }
    block_on(datapath.close(Close::Remove)).unwrap();
    assert!(!world.rules().contains("KUBE"));
}

#[test]
fn new_flows_never_fail_while_much_changes() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let datapath = world.start();
        let small = |n| world.table(n, world.service(&["a2", "b1"]));
        block_on(datapath.replace(small(1))).unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let client = scope.spawn(|| {
                let mut asked = 0;
                while !done.load(Ordering::Relaxed) {
                    world.ask("a1", cluster_ip(V4));
                    asked += 1;
                }
                asked
            });
            let steps: [&dyn Fn(u64) -> _; 4] = [
                &|n| world.large(n, &["a2"], 1_100),
                &|n| world.large(n, &["a2", "b1"], 0),
                &|n| world.large(n, &["b1"], 700),
                &small,
            ];
            let mut table = small(1);
            for (n, step) in (2..).zip(steps.into_iter().cycle().take(12)) {
                let next = step(n);
                match n % 3 {
                    0 => drop(block_on(datapath.replace(Arc::clone(&next))).unwrap()),
                    _ => drop(block_on(datapath.apply(Arc::new(table.diff(&next)))).unwrap()),
                }
                table = next;
            }
            done.store(true, Ordering::Relaxed);
            assert!(client.join().unwrap() > 20);
        });
        block_on(datapath.close(Close::Remove)).unwrap();
        assert!(!world.rules().contains("KUBE"));
    }
}
