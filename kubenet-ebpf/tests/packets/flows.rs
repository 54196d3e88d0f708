//! New and known flows, there and back.

use std::collections::HashSet;

use crate::{
    bench::{Bench, Hook, LOCAL, Metric, REDIRECT, UNSPEC, for_each_kind, for_tcp_and_udp},
    frame::{Flags, Frame, L3, Proto},
    netns::ip,
    nets::{Net, at},
};

#[test]
fn a_pod_reaches_a_backend_and_gets_the_answer_from_the_frontend() {
    for_each_kind(|bench, net, proto| {
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[]);
        let (new, known) = (bench.metric(Metric::NewFlow), bench.metric(Metric::Forwarded));

        let syn = Frame::new(proto, client, frontend);
        bench.expect_forwarded(Hook::FromPod, syn, client, backend);
        let syn_ack = Frame::new(proto, backend, client).flags(Flags::SynAck);
        bench.expect_forwarded(Hook::FromExternal, syn_ack, frontend, client);
        let ack = Frame::new(proto, client, frontend).flags(Flags::Ack);
        bench.expect_forwarded(Hook::FromPod, ack, client, backend);

        assert_eq!(bench.entries(), 2);
        assert_eq!(bench.metric(Metric::NewFlow), new + 1);
        assert_eq!(bench.metric(Metric::Forwarded), known + 2);
    });
}

#[test]
fn outside_traffic_uses_the_external_set_and_keeps_its_address_for_backends_here() {
    for_each_kind(|bench, net, proto| {
        let (client, frontend) = (at(net.outside, 40000), at(net.vip, 80));
        let (here, there) = (at(net.pod_here, 8080), at(net.pod_there, 8080));
        let (internal, external) = (bench.backend(there, 0), bench.backend(here, LOCAL));
        bench.serve(frontend, proto, crate::bench::MASQ_OUTSIDE, &[internal], &[external]);

        bench.expect_forwarded(Hook::FromExternal, Frame::new(proto, client, frontend), client, here);
        let answer = Frame::new(proto, here, client).flags(Flags::SynAck);
        bench.expect_forwarded(Hook::FromPod, answer, frontend, client);
    });
}

#[test]
fn a_node_port_answers_on_node_port_addresses_only() {
    for_each_kind(|bench, net, proto| {
        let nobody = if net.vip.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
        let backend = at(net.pod_here, 8080);
        let id = bench.backend(backend, LOCAL);
        bench.serve(at(nobody, 30080), proto, 0x20, &[id], &[id]);
        let client = at(net.outside, 40000);

        let (port, inner) = (at(net.node, 30080), at(net.node_inner, 30080));
        bench.expect_forwarded(Hook::FromExternal, Frame::new(proto, client, port), client, backend);
        let answer = Frame::new(proto, backend, client).flags(Flags::SynAck);
        bench.expect_forwarded(Hook::FromPod, answer, port, client);
        bench.expect_passed(Hook::FromExternal, Frame::new(proto, client, inner));
        bench.expect_passed(Hook::FromExternal, Frame::new(proto, client, at(net.pod_there, 30080)));
        bench.expect_passed(Hook::FromExternal, Frame::new(proto, client, at(nobody, 30080)));
    });
}

#[test]
fn a_frontend_on_the_address_itself_wins_over_a_node_port() {
    for_each_kind(|bench, net, proto| {
        let nobody = if net.vip.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
        let (exact, other) = (at(net.pod_here, 8080), at(net.pod_here, 9090));
        let (a, b) = (bench.backend(exact, LOCAL), bench.backend(other, LOCAL));
        bench.serve(at(nobody, 443), proto, 0x20, &[b], &[b]);
        bench.serve(at(net.node, 443), proto, 0, &[a], &[a]);
        let client = at(net.outside, 40000);
        let frame = Frame::new(proto, client, at(net.node, 443));
        bench.expect_forwarded(Hook::FromExternal, frame, client, exact);
    });
}

#[test]
fn every_backend_gets_a_share() {
    for_each_kind(|bench, net, proto| {
        let ids: Vec<_> = (0..4).map(|i| bench.backend(at(net.pod_there, 8080 + i), 0)).collect();
        bench.serve(at(net.vip, 80), proto, 0, &ids, &[]);
        let seen: HashSet<u16> = (0..200).map(|i| dial(bench, net, proto, 30000 + i)).collect();
        assert_eq!(seen.len(), 4);
    });
}

/// Opens a flow from a port of the client pod and says which port of a backend it goes to.
fn dial(bench: &mut Bench, net: Net, proto: Proto, port: u16) -> u16 {
    let mut frame = Frame::new(proto, at(net.pod, port), at(net.vip, 80));
    let outcome = bench.send(Hook::FromPod, &mut frame);
    assert_eq!(outcome.action, REDIRECT);
    let at = frame.l4() + 2;
    u16::from_be_bytes([outcome.bytes[at], outcome.bytes[at + 1]])
}

#[test]
fn a_flow_stays_with_its_backend() {
    for_each_kind(|bench, net, proto| {
        let ids: Vec<_> = (0..16).map(|i| bench.backend(at(net.pod_there, 8080 + i), 0)).collect();
        bench.serve(at(net.vip, 80), proto, 0, &ids, &[]);
        let first = dial(bench, net, proto, 30000);
        assert!((0..50).all(|_| dial(bench, net, proto, 30000) == first));
    });
}

#[test]
fn a_backend_that_is_a_process_of_this_node_gets_packets_through_the_stack() {
    for_each_kind(|bench, net, proto| {
        let (client, frontend, backend) = (at(net.outside, 40000), at(net.vip, 80), at(net.node, 8080));
        let id = bench.backend(backend, LOCAL);
        bench.serve(frontend, proto, 0, &[id], &[id]);

        // Nobody forwards it, so that the TTL stays.
        let mut frame = Frame::new(proto, client, frontend).ttl(1);
        let outcome = bench.send(Hook::FromExternal, &mut frame);
        assert_eq!((outcome.action, outcome.bytes), (crate::bench::OK, frame.with(client, backend).bytes()));

        // The stack's answer is renamed on its way out, and goes on to other programs.
        let mut answer = Frame::new(proto, backend, client).flags(Flags::SynAck);
        let outcome = bench.send(Hook::ToDevice, &mut answer);
        assert_eq!((outcome.action, outcome.bytes), (UNSPEC, answer.with(frontend, client).bytes()));
    });
}

#[test]
fn translated_packets_pass_the_egress_program_as_they_are() {
    for_each_kind(|bench, net, proto| {
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[]);
        bench.expect_forwarded(Hook::FromPod, Frame::new(proto, client, frontend), client, backend);
        bench.expect_passed(Hook::ToDevice, Frame::new(proto, client, backend));
        bench.expect_passed(Hook::ToDevice, Frame::new(proto, client, frontend));
        bench.expect_passed(Hook::ToDevice, Frame::new(proto, frontend, client).flags(Flags::SynAck));
    });
}

#[test]
fn a_route_is_kept_for_a_second_and_then_looked_up_again() {
    for_tcp_and_udp(|bench, net, proto| {
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[]);
        bench.expect_forwarded(Hook::FromPod, Frame::new(proto, client, frontend), client, backend);
        let known = Frame::new(proto, client, frontend).flags(Flags::Ack);
        let (prefix, back) = if net.vip.is_ipv4() {
            ("10.2.0.0/24", "via 192.0.2.2")
        } else {
            ("fd02::/64", "via 2001:db8::2")
        };
        // The second may be over in between, but not each time.
        let kept = (0..3).any(|_| {
            bench.expect_forwarded(Hook::FromPod, known.clone(), client, backend);
            ip(&format!("route replace blackhole {prefix}"));
            let outcome = bench.send(Hook::FromPod, &mut known.clone());
            bench.age(2);
            bench.expect_dropped(Hook::FromPod, known.clone(), Metric::Route);
            ip(&format!("route replace {prefix} {back}"));
            outcome.action == REDIRECT
        });
        assert!(kept);
        bench.expect_forwarded(Hook::FromPod, known, client, backend);
    });
}

/// An IPv4 route by an IPv6 router: the entry of a flow has no room for that.
#[test]
fn a_way_by_a_gateway_of_the_other_family_is_looked_up_each_time() {
    for_each_kind(|bench, net, proto| {
        if net.vip.is_ipv6() {
            return;
        }
        let (client, frontend, backend) =
            (at(net.pod, 40000), at(net.vip, 80), at([10, 5, 0, 10].into(), 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[]);
        bench.expect_forwarded(Hook::FromPod, Frame::new(proto, client, frontend), client, backend);
        let known = Frame::new(proto, client, frontend).flags(Flags::Ack);
        for _ in 0..2 {
            bench.expect_forwarded(Hook::FromPod, known.clone(), client, backend);
        }
        ip("route replace blackhole 10.5.0.0/24");
        bench.expect_dropped(Hook::FromPod, known.clone(), Metric::Route);
        ip("route replace 10.5.0.0/24 via inet6 2001:db8::2 dev ext0");
        bench.expect_forwarded(Hook::FromPod, known, client, backend);
    });
}

#[test]
fn udp_without_a_checksum_stays_without_over_ipv4() {
    crate::bench::on_bench(|bench| {
        let net = crate::nets::V4;
        bench.clear();
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 53), at(net.pod_there, 53));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, Proto::Udp, 0, &[id], &[]);
        let mut frame = Frame::new(Proto::Udp, client, frontend);
        frame.no_checksum = true;
        bench.expect_forwarded(Hook::FromPod, frame, client, backend);
    });
}

#[test]
fn a_udp_checksum_that_comes_to_zero_is_written_as_all_ones() {
    for_each_kind(|bench, net, proto| {
        if proto != Proto::Udp {
            return;
        }
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 53), at(net.pod_there, 53));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[]);
        // Choose the payload so that the translated datagram sums up to nothing.
        let mut frame = Frame::new(proto, client, frontend).payload(vec![0, 0]);
        let plain = frame.with(client, backend).bytes();
        let at = frame.l4() + 6;
        frame.payload = plain[at..at + 2].to_vec();
        assert_eq!(frame.with(client, backend).bytes()[at..at + 2], [0xff, 0xff]);
        assert!(at > L3);
        bench.expect_forwarded(Hook::FromPod, frame, client, backend);
    });
}
