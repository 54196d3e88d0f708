//! How long what is known is believed, to the tick; and stamps of another clock: from a time that is yet to come, or
//! from so long ago that their age runs over.

use std::{collections::BTreeSet, net::SocketAddr};

use nix::time::{ClockId, clock_gettime};

use crate::{
    bench::{Bench, DRAINING, Hook, MASQ_OUTSIDE, REDIRECT, SHOT, for_each_kind, for_tcp_and_udp, on_bench},
    choice::dial,
    frame::{Flags, Frame, Proto},
    nets::{Net, V4, V6, at},
    xdp::{TX, begin},
};

/// The programs' clock.
pub fn ticks() -> u32 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
    ((now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64) >> 30) as u32
}

/// Waits until a tick begins: what is done in the next moment is done in one.
pub fn begin_tick() {
    let before = ticks();
    while ticks() == before {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// What is so many ticks old when a packet meets it: whether it is still believed. Each begins with an empty bench.
type Believed = fn(&mut Bench, Net, Proto, u32) -> bool;

/// From the beginning, in one tick.
fn believes(bench: &mut Bench, net: Net, proto: Proto, age: u32, case: Believed) -> bool {
    loop {
        let begun = ticks();
        bench.clear();
        let believed = case(bench, net, proto, age);
        if ticks() == begun {
            return believed;
        }
    }
}

/// A pod's flow to a backend elsewhere, so old: its client, its frontend, and the backend.
fn flow(bench: &mut Bench, net: Net, proto: Proto, age: u32, answered: bool) -> [SocketAddr; 3] {
    let ends @ [client, frontend, backend] = [at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080)];
    let id = bench.backend(backend, 0);
    bench.serve(frontend, proto, 0, &[id], &[]);
    dial(bench, Hook::FromPod, proto, client, frontend);
    if answered {
        answers(bench, proto, ends);
    }
    bench.age(age);
    ends
}

fn answers(bench: &mut Bench, proto: Proto, [client, _, backend]: [SocketAddr; 3]) -> bool {
    let mut answer = Frame::new(proto, backend, client).flags(Flags::SynAck);
    bench.send(Hook::FromExternal, &mut answer).action == REDIRECT
}

fn stays(bench: &mut Bench, net: Net, proto: Proto, age: u32) -> bool {
    let [client, frontend, backend] = flow(bench, net, proto, age, true);
    let other = bench.backend(at(net.pod_there, 9090), 0);
    bench.replace_set(frontend, proto, &[other]);
    dial(bench, Hook::FromPod, proto, client, frontend) == backend.port()
}

fn is_drained(bench: &mut Bench, net: Net, proto: Proto, age: u32) -> bool {
    let [client, frontend, _] = flow(bench, net, proto, age, true);
    bench.configure(DRAINING, 20000..=29999);
    bench.send(Hook::FromPod, &mut Frame::new(proto, client, frontend)).action == REDIRECT
}

/// The only port that there is.
fn holds_its_port(bench: &mut Bench, net: Net, proto: Proto, age: u32) -> bool {
    let frontend = at(net.vip, 80);
    let id = bench.backend(at(net.pod_there, 8080), 0);
    bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
    bench.configure(0, 20000..=20000);
    dial(bench, Hook::FromExternal, proto, at(net.outside, 1), frontend);
    bench.age(age);
    bench.send(Hook::FromExternal, &mut Frame::new(proto, at(net.outside, 2), frontend)).action == SHOT
}

fn fragments_follow(bench: &mut Bench, net: Net, proto: Proto, age: u32) -> bool {
    let id = bench.backend(at(net.pod_there, 8080), 0);
    bench.serve(at(net.vip, 80), proto, 0, &[id], &[]);
    let mut frame = Frame::new(proto, at(net.pod, 40000), at(net.vip, 80)).payload(vec![7; 200]);
    frame.mac_to = bench.mac(Hook::FromPod);
    let fragments = frame.fragments(64);
    bench.send_bytes(Hook::FromPod, &fragments[0], 0);
    bench.age(age);
    bench.send_bytes(Hook::FromPod, &fragments[1], 0).action == REDIRECT
}

#[test]
fn what_is_known_is_believed_for_so_many_ticks() {
    const BACK: Believed = |bench, net, proto, age| {
        let ends = flow(bench, net, proto, age, proto == Proto::Udp);
        answers(bench, proto, ends)
    };
    const AHEAD: Believed = |bench, net, proto, ahead| BACK(bench, net, proto, ahead.wrapping_neg());
    // The first number of ticks after which it is not.
    let cases: [(&str, Proto, u32, Believed); 10] = [
        ("a datagram of a backend", Proto::Udp, 120, BACK),
        ("a datagram of a client", Proto::Udp, 120, stays),
        ("an answer to a SYN", Proto::Tcp, 75, BACK),
        ("an answer to an INIT", Proto::Sctp, 75, BACK),
        ("a stamp of a clock that is ahead", Proto::Udp, 3, AHEAD),
        ("a SYN that is ahead", Proto::Tcp, 3, AHEAD),
        ("an answer that lets a datagram stay while draining", Proto::Udp, 30, is_drained),
        ("a port of UDP where there is no other", Proto::Udp, 30, holds_its_port),
        ("a port of TCP", Proto::Tcp, 3600, holds_its_port),
        ("a first fragment", Proto::Udp, 30, fragments_follow),
    ];
    on_bench(|bench| {
        for net in [V4, V6] {
            for (name, proto, end, case) in cases {
                for age in [0, end - 1, end, end + 1] {
                    let believed = believes(bench, net, proto, age, case);
                    assert_eq!(believed, age < end, "{name} of {age} ticks ago, from {}", net.pod);
                }
            }
        }
    });
}

#[test]
fn a_next_hop_is_asked_for_by_the_stack_after_so_many_ticks() {
    on_bench(|bench| {
        bench.load_xdp();
        for net in [V4, V6] {
            for (age, expected) in [(9, true), (10, false)] {
                let sent = believes(bench, net, Proto::Udp, age, |bench, net, proto, age| {
                    let ends @ [client, frontend, _] = crate::xdp::serve(bench, net, proto, net.pod_there, 0);
                    begin(bench, proto, ends);
                    bench.age_hops(age);
                    bench.send_xdp(&mut Frame::new(proto, client, frontend)).action == TX
                });
                assert_eq!(sent, expected, "{age} ticks ago");
            }
        }
    });
}

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
