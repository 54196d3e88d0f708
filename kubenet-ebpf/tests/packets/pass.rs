//! What is none of our business goes on untouched.

use crate::{
    bench::{DRAINING, Hook, UNSPEC, for_each_kind},
    frame::{Flags, Frame, Proto},
    nets::at,
};

const HOOKS: [Hook; 3] = [Hook::FromPod, Hook::FromExternal, Hook::ToDevice];

#[test]
fn traffic_to_no_service_passes() {
    for_each_kind(|bench, net, proto| {
        let id = bench.backend(at(net.pod_there, 8080), 0);
        bench.serve(at(net.vip, 80), proto, 0, &[id], &[id]);
        for hook in HOOKS {
            for to in [at(net.pod_there, 8080), at(net.vip, 81), at(net.node, 80), at(net.outside, 443)] {
                bench.expect_passed(hook, Frame::new(proto, at(net.pod, 40000), to));
            }
        }
        let other = if proto == Proto::Tcp { Proto::Udp } else { Proto::Tcp };
        bench.expect_passed(Hook::FromPod, Frame::new(other, at(net.pod, 40000), at(net.vip, 80)));
        assert_eq!(bench.entries(), 0);
    });
}

#[test]
fn established_tcp_of_another_datapath_passes() {
    for_each_kind(|bench, net, proto| {
        if proto == Proto::Udp {
            return;
        }
        let id = bench.backend(at(net.pod_there, 8080), 0);
        bench.serve(at(net.vip, 80), proto, 0, &[id], &[id]);
        bench.serve(at(net.vip, 81), proto, 0, &[], &[]);
        for flags in [Flags::SynAck, Flags::Ack, Flags::Fin, Flags::Rst] {
            for port in [80, 81] {
                let frame = Frame::new(proto, at(net.pod, 40000), at(net.vip, port)).flags(flags);
                bench.expect_passed(Hook::FromPod, frame);
            }
        }
        assert_eq!(bench.entries(), 0);
    });
}

#[test]
fn draining_serves_known_flows_and_takes_no_new_ones() {
    for_each_kind(|bench, net, proto| {
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[]);
        bench.expect_forwarded(Hook::FromPod, Frame::new(proto, client, frontend), client, backend);
        bench.configure(DRAINING, 20000..=29999);

        let known = Frame::new(proto, client, frontend).flags(Flags::Ack);
        bench.expect_forwarded(Hook::FromPod, known, client, backend);
        let answer = Frame::new(proto, backend, client).flags(Flags::Ack);
        bench.expect_forwarded(Hook::FromExternal, answer, frontend, client);
        bench.expect_passed(Hook::FromPod, Frame::new(proto, at(net.pod, 40001), frontend));

        if proto != Proto::Udp {
            // The port is used again: this is a new connection, and no longer ours.
            bench.expect_passed(Hook::FromPod, Frame::new(proto, client, frontend));
            assert_eq!(bench.entries(), 0);
        }
    });
}

#[test]
fn frames_for_others_pass() {
    for_each_kind(|bench, net, proto| {
        let id = bench.backend(at(net.pod_there, 8080), 0);
        bench.serve(at(net.vip, 80), proto, 0, &[id], &[]);
        let mut frame = Frame::new(proto, at(net.pod, 40000), at(net.vip, 80));
        for mac in [[2, 0, 0, 0, 7, 7], [0xff; 6], [0x33, 0x33, 0, 0, 0, 1]] {
            frame.mac_to = mac;
            let bytes = frame.bytes();
            let outcome = bench.send_bytes(Hook::FromPod, &bytes, 0);
            assert_eq!((outcome.action, outcome.bytes), (UNSPEC, bytes));
        }
    });
}

#[test]
fn other_protocols_pass() {
    for_each_kind(|bench, net, proto| {
        let id = bench.backend(at(net.pod_there, 8080), 0);
        bench.serve(at(net.vip, 80), proto, 0, &[id], &[]);
        let mut frame = Frame::new(proto, at(net.pod, 40000), at(net.vip, 80));
        frame.mac_to = bench.mac(Hook::FromPod);
        let at_proto = if net.vip.is_ipv4() { 14 + 9 } else { 14 + 6 };
        for number in [1, 2, 47, 50, 51, 58, 59, 132, 255] {
            if number == proto.number() {
                continue;
            }
            let mut bytes = frame.bytes();
            bytes[at_proto] = number;
            let outcome = bench.send_bytes(Hook::FromPod, &bytes, 0);
            assert_eq!((outcome.action, outcome.bytes), (UNSPEC, bytes));
        }
        for ethertype in [[0x08, 0x06], [0x81, 0x00], [0x88, 0x47]] {
            let mut bytes = frame.bytes();
            bytes[12..14].copy_from_slice(&ethertype);
            let outcome = bench.send_bytes(Hook::FromPod, &bytes, 0);
            assert_eq!(outcome.action, UNSPEC);
        }
        assert_eq!(bench.entries(), 0);
    });
}
