//! Packets that are too large for the way to the backend, and the size of the programs themselves.

use std::net::SocketAddr;

use crate::{
    bench::{Bench, Hook, REDIRECT, Setup, for_each_kind, on_bench, on_bench_with, on_direct_bench},
    frame::{Flags, Frame, Proto},
    icmp::IcmpError,
    nets::{V4, V6, at},
};

#[test]
fn the_sender_learns_the_mtu_in_its_own_terms() {
    for_each_kind(|bench, net, proto| {
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.narrow, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[]);
        bench.expect_forwarded(Hook::FromPod, Frame::new(proto, client, frontend), client, backend);

        let headers = if net.vip.is_ipv4() { 20 } else { 40 }
            + match proto {
                Proto::Tcp => 20,
                Proto::Udp => 8,
                // With the header of a chunk of data. Its packets are made of words.
                Proto::Sctp => 12 + 16,
            };
        let fits = Frame::new(proto, client, frontend).flags(Flags::Ack).payload(vec![1; 1300 - headers]);
        bench.expect_forwarded(Hook::FromPod, fits.clone(), client, backend);
        let exceeds = fits.payload(vec![1; 1301 - headers]);
        bench.expect_answered(Hook::FromPod, exceeds, |frame| frame.icmp((3, 4), (2, 0), 1300));
    });
}

#[test]
fn packets_to_be_segmented_are_measured_by_their_segments() {
    for_each_kind(|bench, net, proto| {
        if proto != Proto::Tcp {
            return;
        }
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.narrow, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[]);
        bench.expect_forwarded(Hook::FromPod, Frame::new(proto, client, frontend), client, backend);

        let mut frame = Frame::new(proto, client, frontend).flags(Flags::Ack).payload(vec![1; 3000]);
        frame.tcp_options = vec![1; 12];
        frame.mac_to = bench.mac(Hook::FromPod);
        let headers = if net.vip.is_ipv4() { 20 } else { 40 } + 32;
        let outcome = bench.send_bytes(Hook::FromPod, &frame.bytes(), 1300 - headers);
        assert_eq!((outcome.action, outcome.bytes), (REDIRECT, frame.forwarded(client, backend).bytes()));
        let outcome = bench.send_bytes(Hook::FromPod, &frame.bytes(), 1301 - headers);
        assert_eq!((outcome.action, outcome.bytes), (REDIRECT, frame.icmp((3, 4), (2, 0), 1300)));
    });
}

#[test]
fn the_programs_stay_far_below_the_verifiers_limit() {
    on_bench(|bench| check_instructions(bench, ""));
    on_direct_bench(|bench| check_instructions(bench, ", with direct server return"));
    on_bench_with(Setup { peer: true, ..Setup::USUAL }, |bench| {
        check_instructions(bench, ", straight into pods");
    });
    on_bench_with(Setup { peer: true, direct: true, ..Setup::USUAL }, |bench| {
        check_instructions(bench, ", with both");
    });
}

fn check_instructions(bench: &mut Bench, how: &str) {
    // Kernel 5.16 tells.
    for (name, count) in bench.verified_instructions() {
        println!("{name}{how}: {count} instructions verified");
        assert!(count < 200_000, "{name}{how} has grown to {count} verified instructions of 1,000,000");
    }
}

/// What a packet costs: run with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_packet() {
    on_bench(|bench| {
        for (net, name) in [(V4, "IPv4"), (V6, "IPv6")] {
            bench.clear();
            // A test run sees its own output in the next round. Two Services that lead to each other send a
            // packet to and fro, so that each round is a translation of a known flow.
            let (client, one, two) = (at(net.pod, 40000), at(net.pod_there, 80), at(net.pod_here, 81));
            let ids = [bench.backend(one, 0), bench.backend(two, 0)];
            bench.serve(one, Proto::Tcp, 0, &[ids[1]], &[]);
            bench.serve(two, Proto::Tcp, 0, &[ids[0]], &[]);
            bench.expect_forwarded(Hook::FromPod, Frame::new(Proto::Tcp, client, one), client, two);
            bench.expect_forwarded(Hook::FromPod, Frame::new(Proto::Tcp, client, two), client, one);

            let mut frame = Frame::new(Proto::Tcp, client, one).flags(Flags::Ack).ttl(255);
            frame.mac_to = bench.mac(Hook::FromPod);
            println!("{name}, known flow: {:?}", bench.cost(&frame.bytes(), 200));
            rare_costs(bench, name, &frame, two);
            frame.to = at(net.outside, 443);
            println!("{name}, not ours: {:?}", bench.cost(&frame.bytes(), 200));
            frame.mac_to = [2; 6];
            println!("{name}, not even for this device: {:?}", bench.cost(&frame.bytes(), 200));
        }
    });
}

/// The same with what needs a closer look.
fn rare_costs(bench: &mut Bench, name: &str, known: &Frame, two: SocketAddr) {
    let one = known.to;
    let ids = [bench.backend(one, 0), bench.backend(two, 0)];
    for (frontend, backend) in [(one, ids[1]), (two, ids[0])] {
        bench.serve(frontend, Proto::Sctp, 0, &[backend], &[]);
        bench.serve(frontend, Proto::Udp, 0, &[backend], &[]);
    }
    for len in [0, 1000] {
        let frame = Frame { proto: Proto::Sctp, ..known.clone() }.payload(vec![7; len]);
        for to in [one, two] {
            bench.send(Hook::FromPod, &mut frame.with(known.from, to).flags(Flags::Syn));
        }
        println!("{name}, SCTP with {len} bytes: {:?}", bench.cost(&frame.bytes(), 200));
    }
    let large = Frame { proto: Proto::Udp, ..known.clone() }.payload(vec![7; 2000]);
    let [first, later] = &large.fragments(1400)[..] else { panic!("two fragments") };
    bench.send_bytes(Hook::FromPod, first, 0);
    bench.send_bytes(Hook::FromPod, &large.with(known.from, two).fragments(1400)[0], 0);
    println!("{name}, first fragment: {:?}", bench.cost(first, 200));
    println!("{name}, later fragment: {:?}", bench.cost(later, 200));
    let about = Frame::new(Proto::Tcp, known.from, at(known.to.ip(), 443));
    let error = IcmpError { mac_to: known.mac_to, ..IcmpError::new(known.to.ip(), about) };
    println!("{name}, ICMP error about no flow: {:?}", bench.cost(&error.bytes(), 200));
}
