//! Stamps of another clock: from a time that is yet to come, or from so long ago that their age runs over.

use std::{collections::BTreeSet, net::SocketAddr};

use crate::{
    bench::{Bench, Hook, MASQ_OUTSIDE, for_each_kind, for_tcp_and_udp},
    choice::dial,
    frame::{Flags, Frame, Proto},
    nets::at,
};

/// Ticks by which stamps are made older: ages that a clock of years has, and all others are of no clock.
const ELSEWHERE: [u32; 4] = [0_u32.wrapping_sub(10), 0_u32.wrapping_sub(1 << 20), 1 << 31, (1 << 31) + 100];

#[test]
fn a_connection_that_goes_on_outlives_any_stamp() {
    for_each_kind(|bench, net, proto| {
        if proto == Proto::Udp {
            return;
        }
        for ticks in ELSEWHERE {
            bench.clear();
            let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080));
            let id = bench.backend(backend, 0);
            bench.serve(frontend, proto, 0, &[id], &[]);
            let there = |flags| Frame::new(proto, client, frontend).flags(flags);
            let back = |flags| Frame::new(proto, backend, client).flags(flags);
            bench.expect_forwarded(Hook::FromPod, Frame::new(proto, client, frontend), client, backend);
            bench.expect_forwarded(Hook::FromExternal, back(Flags::SynAck), frontend, client);
            for _ in 0..2 {
                bench.age(ticks);
                bench.expect_forwarded(Hook::FromExternal, back(Flags::Ack), frontend, client);
                bench.expect_forwarded(Hook::FromPod, there(Flags::Ack), client, backend);
            }
        }
    });
}

#[test]
fn a_datagram_after_a_jump_is_answered_and_keeps_its_backend_from_then_on() {
    for_each_kind(|bench, net, proto| {
        if proto != Proto::Udp {
            return;
        }
        for ticks in ELSEWHERE {
            bench.clear();
            let (client, frontend) = (at(net.pod, 40000), at(net.vip, 80));
            let ports = 8080..8096;
            let ids: Vec<u32> = ports.clone().map(|port| bench.backend(at(net.pod_there, port), 0)).collect();
            bench.serve(frontend, proto, 0, &ids, &[]);
            dial(bench, Hook::FromPod, proto, client, frontend);
            bench.age(ticks);
            let port = dial(bench, Hook::FromPod, proto, client, frontend);
            for _ in 0..8 {
                bench.expect_forwarded(
                    Hook::FromExternal,
                    Frame::new(proto, at(net.pod_there, port), client),
                    frontend,
                    client,
                );
                assert_eq!(dial(bench, Hook::FromPod, proto, client, frontend), port);
            }
        }
    });
}

#[test]
fn a_stamp_from_elsewhere_holds_no_port_for_ever() {
    for_tcp_and_udp(|bench, net, proto| {
        for ticks in ELSEWHERE {
            bench.clear();
            let (frontend, backend) = (at(net.vip, 80), at(net.pod_there, 8080));
            let id = bench.backend(backend, 0);
            bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
            bench.configure(0, 20000..=20000);
            let open = |bench: &mut Bench, port| {
                let frame = Frame::new(proto, at(net.outside, port), frontend);
                bench.expect_forwarded(Hook::FromExternal, frame, at(net.node, 20000), backend);
            };
            open(bench, 1);
            bench.age(ticks);
            open(bench, 2);
            let answer = Frame::new(proto, backend, at(net.node, 20000)).flags(Flags::SynAck);
            bench.expect_forwarded(Hook::FromExternal, answer, frontend, at(net.outside, 2));
            assert_eq!(bench.entries(), 2);
        }
    });
}

#[test]
fn a_clients_choice_from_elsewhere_is_made_again_and_then_stands() {
    for_each_kind(|bench, net, proto| {
        let ids: Vec<u32> = (8080..8096).map(|port| bench.backend(at(net.pod_there, port), 0)).collect();
        bench.affinity = (1, 10);
        bench.serve(at(net.vip, 80), proto, 0, &ids, &[]);
        let dial = |bench: &mut Bench, port: u16| -> u16 {
            let client: SocketAddr = at(net.pod, port);
            dial(bench, Hook::FromPod, proto, client, at(net.vip, 80))
        };
        let mut later = BTreeSet::new();
        for round in 0..24_u16 {
            let first = dial(bench, 1024 + 2 * round);
            assert_eq!(dial(bench, 1025 + 2 * round), first);
            later.insert(first);
            // An hour ahead, and the end of the clock.
            bench.age_affinity(if round % 2 == 0 { 0_u64.wrapping_sub(3600) } else { 1 << 33 });
        }
        assert!(later.len() > 1, "{later:?}");
    });
}
