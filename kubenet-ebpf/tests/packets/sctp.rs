//! SCTP: its checksum goes over the whole packet, and is changed without looking at it.

use crate::{
    bench::{Bench, Hook, MASQ_OUTSIDE, Metric, REDIRECT, SHOT, for_each_kind},
    frame::{Flags, Frame, Proto},
    nets::{Net, at},
};

/// Runs a test for SCTP in each family.
fn for_each_family(test: impl Fn(&mut Bench, Net) + Send + Sync) {
    for_each_kind(|bench, net, proto| {
        if proto == Proto::Sctp {
            test(bench, net);
        }
    });
}

#[test]
fn a_checksum_is_right_at_every_length_with_other_ports_and_with_the_same() {
    for_each_family(|bench, net| {
        let client = at(net.pod, 40000);
        for (port, target) in [(80, 8080), (8080, 8080), (1, 65535)] {
            let (frontend, backend) = (at(net.vip, port), at(net.pod_there, target));
            bench.forget_flows();
            let id = bench.backend(backend, 0);
            bench.serve(frontend, Proto::Sctp, 0, &[id], &[]);
            bench.expect_forwarded(Hook::FromPod, Frame::new(Proto::Sctp, client, frontend), client, backend);
            for len in (0..300).chain([1020, 1024, 1400, 2048, 3000]) {
                let payload: Vec<u8> = (0..len).map(|i| (i * 7 + len) as u8).collect();
                let mut frame = Frame::new(Proto::Sctp, client, frontend).flags(Flags::Ack).payload(payload);
                frame.mac_to = bench.mac(Hook::FromPod);
                let outcome = bench.send_bytes(Hook::FromPod, &frame.bytes(), 1000);
                let expected = frame.forwarded(client, backend).bytes();
                assert_eq!(outcome.action, REDIRECT);
                assert!(outcome.bytes == expected, "{len} bytes");
            }
        }
    });
}

#[test]
fn the_powers_are_those_of_another_implementation() {
    const HEADER: &str = include_str!("../../bpf/crc32c.h");
    let table = HEADER.split("crc32c_powers[CRC32C_DIGITS][16] = {").nth(1).expect("the table");
    let numbers = table.split("};").next().expect("its end").split(|c: char| !c.is_ascii_alphanumeric());
    let found: Vec<u32> =
        numbers.filter_map(|n| u32::from_str_radix(n.strip_prefix("0x")?, 16).ok()).collect();
    let power = |i: usize| crc32c::crc32c_combine(1 << 31, 0, (i % 16) << (i / 16 * 4));
    assert_eq!(found, (0..64).map(power).collect::<Vec<_>>());
}

#[test]
fn a_checksum_that_the_device_is_to_fill_in_is_left_to_it() {
    for_each_family(|bench, net| {
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, Proto::Sctp, 0, &[id], &[]);
        bench.serve(at(net.vip, 81), Proto::Sctp, 0, &[], &[]);
        let mut frame = Frame::new(Proto::Sctp, client, frontend);
        frame.no_checksum = true;
        bench.expect_forwarded(Hook::FromPod, frame.clone(), client, backend);
        bench.expect_answered(Hook::FromPod, frame.with(client, at(net.vip, 81)), Frame::abort);
    });
}

#[test]
fn only_an_init_begins_an_association() {
    for_each_family(|bench, net| {
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, Proto::Sctp, 0, &[id], &[]);
        for flags in [Flags::SynAck, Flags::Ack, Flags::Fin, Flags::Rst] {
            bench.expect_passed(Hook::FromPod, Frame::new(Proto::Sctp, client, frontend).flags(flags));
        }
        assert_eq!(bench.entries(), 0);
    });
}

/// Whoever sends the last chunk of a shutdown, or an abort.
#[test]
fn an_association_that_has_ended_gives_its_port_free_for_a_new_choice() {
    for_each_family(|bench, net| {
        let (client, frontend) = (at(net.pod, 40000), at(net.vip, 80));
        let [old, new] = [8080, 9090].map(|port| at(net.pod_there, port));
        let there = |flags| Frame::new(Proto::Sctp, client, frontend).flags(flags);
        let back = |flags| Frame::new(Proto::Sctp, old, client).flags(flags);
        for end in [Flags::Fin, Flags::Rst] {
            for by_client in [true, false] {
                bench.forget_flows();
                let [first, second] = [old, new].map(|to| bench.backend(to, 0));
                bench.serve(frontend, Proto::Sctp, 0, &[first], &[]);
                bench.expect_forwarded(Hook::FromPod, there(Flags::Syn), client, old);
                bench.expect_forwarded(Hook::FromExternal, back(Flags::SynAck), frontend, client);
                bench.replace_set(frontend, Proto::Sctp, &[second]);
                // An INIT that is sent again is no new association.
                bench.expect_forwarded(Hook::FromPod, there(Flags::Syn), client, old);
                if by_client {
                    bench.expect_forwarded(Hook::FromPod, there(end), client, old);
                } else {
                    bench.expect_forwarded(Hook::FromExternal, back(end), frontend, client);
                }
                bench.expect_forwarded(Hook::FromPod, there(Flags::Ack), client, old);
                bench.expect_forwarded(Hook::FromPod, there(Flags::Syn), client, new);
                assert_eq!(bench.entries(), 2);
            }
        }
    });
}

#[test]
fn s6_a_masqueraded_association_keeps_its_port_where_it_is_free() {
    for_each_family(|bench, net| {
        let (frontend, backend) = (at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, Proto::Sctp, MASQ_OUTSIDE, &[id], &[id]);
        let client = at(net.outside, 40000);
        let source = at(net.node, 40000);
        bench.expect_forwarded(
            Hook::FromExternal,
            Frame::new(Proto::Sctp, client, frontend),
            source,
            backend,
        );
        let answer = Frame::new(Proto::Sctp, backend, source).flags(Flags::SynAck);
        bench.expect_forwarded(Hook::FromExternal, answer, frontend, client);
        // Another client with the same port gets another one.
        bench.configure(0, 20000..=20000);
        let second = at(crate::nets::next(net.outside), 40000);
        let frame = Frame::new(Proto::Sctp, second, frontend);
        bench.expect_forwarded(Hook::FromExternal, frame, at(net.node, 20000), backend);
    });
}

#[test]
fn l4_fragments_are_followed_where_ports_stay_and_else_dropped() {
    for_each_family(|bench, net| {
        let (client, backend) = (at(net.pod, 40000), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        let mut large = Frame::new(Proto::Sctp, client, at(net.vip, 80)).payload(vec![7; 300]);
        large.mac_to = bench.mac(Hook::FromPod);
        for port in [80, 8080] {
            bench.serve(at(net.vip, port), Proto::Sctp, 0, &[id], &[]);
            large.to = at(net.vip, port);
            large.id = port;
            let expected = large.forwarded(client, backend);
            for (sent, expected) in large.fragments(64).iter().zip(expected.fragments(64)) {
                let dropped = bench.metric(Metric::Fragment);
                let outcome = bench.send_bytes(Hook::FromPod, sent, 0);
                if port == 8080 {
                    assert_eq!((outcome.action, outcome.bytes), (REDIRECT, expected));
                } else {
                    assert_eq!(outcome.action, SHOT);
                    assert_eq!(bench.metric(Metric::Fragment), dropped + 1);
                }
            }
            bench.forget_flows();
        }
    });
}
