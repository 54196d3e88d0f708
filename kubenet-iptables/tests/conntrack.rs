//! Flows are cut out of a connection tracking table that is full of others' ([L2]).
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "a failed step fails the test")]

mod common;

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{SECOND, VARIANTS, World, cluster_ip, name, port, world};
use futures::executor::block_on;
use kubenet_core::{
    datapath::{Close, Datapath},
    model::{IpFamily::V4, Protocol},
    route::{Frontend, FrontendKind, Masquerade, Route, Target, WhenEmpty},
};

const OTHERS: usize = 100_000;

/// As many UDP flows from pod to pod as there are to be, none of them of a Service.
fn crowd(world: &World) {
    let to = world.address("b1", V4);
    let pod = world.lab.pod("a1").unwrap();
    let sent = pod.netns().run(|| {
        let mut sent = 0;
        while sent < OTHERS {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            for port in 10_000..60_000 {
                // Refusals of earlier ones come back here.
                sent += usize::from(socket.send_to(b"?", (to, port)).is_ok());
            }
        }
        sent
    });
    assert!(sent.unwrap() >= OTHERS);
}

fn tracked(world: &World) -> usize {
    world.run("conntrack", &["-C"]).trim().parse().unwrap()
}

/// The Service, and so many others on UDP, all with this backend.
fn services(world: &World, pod: &str, more: u8) -> Vec<Route> {
    let target = Target { backends: [world.backend(pod, V4)].into(), when_empty: WhenEmpty::Reject };
    let others = (0..more).map(|n| {
        let frontend = Frontend::ip([10, 98, 0, n].into(), port(53), Protocol::Udp);
        Route::new(frontend, FrontendKind::ClusterIp, name(), target.clone(), Masquerade::NEVER)
    });
    world.service(&[pod]).into_iter().chain(others).collect()
}

/// Ends the client, also when a step failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn l2_cuts_touch_none_of_100_000_other_flows_and_stall_nobody() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let datapath = world.start();
        let table = world.table(1, world.service(&["a2"]));
        block_on(datapath.replace(Arc::clone(&table))).unwrap();
        crowd(&world);
        let before = tracked(&world);
        assert!(before >= OTHERS, "{before}");

        let flow = world.lab.udp_flow("a1", cluster_ip(V4)).unwrap();
        let mut connection = world.lab.connect("a1", cluster_ip(V4), SECOND).unwrap();
        assert_eq!(flow.ask(SECOND).unwrap().backend, "a2");
        let done = AtomicBool::new(false);
        let (longest, took) = thread::scope(|scope| {
            let client = scope.spawn(|| {
                let (mut longest, mut asked) = (Duration::ZERO, 0);
                while !done.load(Ordering::Relaxed) || asked < 20 {
                    let begin = Instant::now();
                    world.ask("a1", cluster_ip(V4));
                    longest = longest.max(begin.elapsed());
                    asked += 1;
                }
                longest
            });
            let stop = Stop(&done);
            let mut took = Vec::new();
            let mut now = Arc::clone(&table);
            // One Service changes, or many.
            for (revision, pod, more) in [(2, "b1", 0), (3, "a2", 0), (4, "b1", 30), (5, "a2", 30)] {
                let next = world.table(revision, services(&world, pod, more));
                let begin = Instant::now();
                block_on(datapath.apply(Arc::new(now.diff(&next)))).unwrap();
                took.push(begin.elapsed());
                assert_eq!(flow.ask(SECOND).unwrap().backend, pod, "the next datagram is routed anew");
                connection.ask(SECOND).unwrap();
                now = next;
            }
            drop(stop);
            (client.join().unwrap(), took)
        });
        eprintln!(
            "{variant:?}: {before} flows tracked; each change took {took:?}, the longest request {longest:?}"
        );
        assert!(tracked(&world) >= before, "others' flows are still there");
        block_on(datapath.close(Close::Remove)).unwrap();
    }
}
