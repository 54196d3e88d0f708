//! Fragments of TCP and UDP: those without ports follow the first one ([L4]).

use std::net::SocketAddr;

use crate::{
    bench::{
        Bench, DRAINING, Hook, INTERNAL_DROP, LOCAL, MASQ_OUTSIDE, Metric, OK, REDIRECT, SHOT, SOURCE_RANGES,
        UNSPEC, for_tcp_and_udp,
    },
    frame::{Flags, Frame, L3, Proto},
    nets::{Net, at},
};

const SIZE: usize = 64;

fn large(proto: Proto, from: SocketAddr, to: SocketAddr) -> Frame {
    Frame::new(proto, from, to).payload((0..300u16).map(|i| i as u8).collect::<Vec<_>>())
}

impl Bench {
    /// Sends the fragments of a frame in order, and expects this action for each and these frames.
    #[track_caller]
    fn expect_fragments(&mut self, hook: Hook, mut frame: Frame, action: i32, expected: Frame) {
        frame.mac_to = self.mac(hook);
        let expected = Frame { mac_to: frame.mac_to, ..expected };
        for (i, (fragment, expected)) in
            frame.fragments(SIZE).iter().zip(expected.fragments(SIZE)).enumerate()
        {
            let outcome = self.send_bytes(hook, fragment, 0);
            assert_eq!((outcome.action, outcome.bytes), (action, expected), "fragment {i}");
        }
    }

    #[track_caller]
    fn expect_fragments_forwarded(&mut self, hook: Hook, frame: Frame, from: SocketAddr, to: SocketAddr) {
        let expected = frame.forwarded(from, to);
        self.expect_fragments(hook, frame, REDIRECT, expected);
    }

    /// Sends all fragments but the first, and expects each to be dropped and counted.
    #[track_caller]
    fn expect_rest_dropped(&mut self, hook: Hook, mut frame: Frame, metric: Metric) {
        frame.mac_to = self.mac(hook);
        let rest = &frame.fragments(SIZE)[1..];
        let before = self.metric(metric);
        for fragment in rest {
            assert_eq!(self.send_bytes(hook, fragment, 0).action, SHOT);
        }
        assert_eq!(self.metric(metric), before + rest.len() as u64);
    }

    /// Sends all fragments but the first, and expects each to go on as it is.
    #[track_caller]
    fn expect_rest_passed(&mut self, hook: Hook, mut frame: Frame) {
        frame.mac_to = self.mac(hook);
        for fragment in &frame.fragments(SIZE)[1..] {
            let outcome = self.send_bytes(hook, fragment, 0);
            assert_eq!((outcome.action, &outcome.bytes), (UNSPEC, fragment));
        }
    }
}

/// Client, frontend and backend of a Service on another node.
fn served(bench: &mut Bench, net: Net, proto: Proto) -> [SocketAddr; 3] {
    let ends = [at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080)];
    let id = bench.backend(ends[2], 0);
    bench.serve(ends[1], proto, 0, &[id], &[]);
    bench.cluster_ip(net.vip);
    ends
}

#[test]
fn l4_fragments_go_where_the_first_one_goes_there_and_back() {
    for_tcp_and_udp(|bench, net, proto| {
        let [client, frontend, backend] = served(bench, net, proto);
        let sent = large(proto, client, frontend);
        bench.expect_fragments_forwarded(Hook::FromPod, sent.clone(), client, backend);
        let answer = Frame { id: 1, ..large(proto, backend, client).flags(Flags::SynAck) };
        bench.expect_fragments_forwarded(Hook::FromExternal, answer, frontend, client);
        // One of a known flow.
        let more = Frame { id: 4712, ..sent.flags(Flags::Ack) };
        bench.expect_fragments_forwarded(Hook::FromPod, more, client, backend);
    });
}

#[test]
fn l4_masqueraded_fragments_go_where_the_first_one_goes_there_and_back() {
    for_tcp_and_udp(|bench, net, proto| {
        let (client, frontend, backend) = (at(net.outside, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
        bench.configure(0, 20000..=20000);
        let source = at(net.node, 20000);
        bench.expect_fragments_forwarded(Hook::FromExternal, large(proto, client, frontend), source, backend);
        let answer = large(proto, backend, source).flags(Flags::SynAck);
        bench.expect_fragments_forwarded(Hook::FromExternal, answer, frontend, client);
    });
}

#[test]
fn l4_fragments_of_a_process_of_this_node_are_renamed_on_their_way_out() {
    for_tcp_and_udp(|bench, net, proto| {
        let (client, frontend, backend) = (at(net.outside, 40000), at(net.vip, 80), at(net.node, 8080));
        let id = bench.backend(backend, LOCAL);
        bench.serve(frontend, proto, 0, &[id], &[id]);
        let sent = large(proto, client, frontend);
        bench.expect_fragments(Hook::FromExternal, sent.clone(), OK, sent.with(client, backend));
        let answer = large(proto, backend, client).flags(Flags::SynAck);
        bench.expect_fragments(Hook::ToDevice, answer.clone(), UNSPEC, answer.with(frontend, client));
    });
}

#[test]
fn l4_fragments_keep_options_extensions_and_absent_checksums() {
    for_tcp_and_udp(|bench, net, proto| {
        let [client, frontend, backend] = served(bench, net, proto);
        let mut frame = large(proto, client, frontend);
        frame.no_checksum = proto == Proto::Udp;
        bench.expect_fragments_forwarded(Hook::FromPod, frame.clone(), client, backend);
        frame.id += 1;
        frame.extensions = net.vip.is_ipv6();
        if net.vip.is_ipv4() {
            frame.ip_options = vec![1; 40];
        }
        bench.expect_fragments_forwarded(Hook::FromPod, frame, client, backend);
    });
}

#[test]
fn l4_a_fragment_before_the_first_is_dropped_at_a_cluster_ip_and_else_passes() {
    for_tcp_and_udp(|bench, net, proto| {
        let [client, frontend, backend] = served(bench, net, proto);
        let frame = large(proto, client, frontend);
        for hook in [Hook::FromPod, Hook::FromExternal] {
            bench.expect_rest_dropped(hook, frame.clone(), Metric::FragmentEarly);
            bench.expect_rest_passed(hook, frame.with(client, backend));
            bench.expect_rest_passed(hook, frame.with(client, at(net.node, 80)));
        }
        // The datagram is lost, the next one is not.
        bench.expect_fragments_forwarded(Hook::FromPod, Frame { id: 1, ..frame.clone() }, client, backend);
        bench.configure(DRAINING, 20000..=29999);
        bench.expect_rest_passed(Hook::FromPod, frame);
    });
}

#[test]
fn l4_a_fragment_before_the_first_is_dropped_at_an_external_address() {
    for_tcp_and_udp(|bench, net, proto| {
        let (client, frontend, backend) = (at(net.outside, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[id]);
        bench.external_ip(net.vip);
        let frame = large(proto, client, frontend);
        for hook in [Hook::FromPod, Hook::FromExternal] {
            bench.expect_rest_dropped(hook, frame.clone(), Metric::FragmentEarly);
        }
        let next = Frame { id: 1, ..frame.clone() };
        bench.expect_fragments_forwarded(Hook::FromExternal, next, client, backend);
        // A port that is no Service's is the stack's, with all fragments that come in order.
        let other = Frame { id: 2, ..large(proto, client, at(net.vip, 81)) };
        bench.expect_rest_dropped(Hook::FromExternal, other.clone(), Metric::FragmentEarly);
        bench.expect_fragments(Hook::FromExternal, other.clone(), UNSPEC, other);
        if proto == Proto::Tcp {
            // Without its flags nobody knows whose it is.
            let mut tiny = Frame { id: 3, ..large(proto, client, frontend) };
            tiny.mac_to = bench.mac(Hook::FromExternal);
            assert_eq!(bench.send_bytes(Hook::FromExternal, &tiny.fragments(8)[0], 0).action, SHOT);
        }
        bench.configure(DRAINING, 20000..=29999);
        bench.expect_rest_passed(Hook::FromExternal, Frame { id: 4, ..frame });
    });
}

#[test]
fn l4_an_early_fragment_to_an_external_address_that_is_the_nodes_own_waits_in_the_stack() {
    for_tcp_and_udp(|bench, net, proto| {
        let (client, frontend, backend) = (at(net.outside, 40000), at(net.node, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[id]);
        bench.external_ip(net.node);
        let frame = large(proto, client, frontend);
        bench.expect_rest_passed(Hook::FromExternal, frame.clone());
        // The first one does not follow it there.
        bench.expect_fragments_forwarded(Hook::FromExternal, frame, client, backend);
    });
}

#[test]
fn l4_a_fragment_of_another_datagram_is_not_mistaken() {
    for_tcp_and_udp(|bench, net, proto| {
        let [client, frontend, backend] = served(bench, net, proto);
        let frame = large(proto, client, frontend);
        bench.expect_fragments_forwarded(Hook::FromPod, frame.clone(), client, backend);
        let other = if proto == Proto::Tcp { Proto::Udp } else { Proto::Tcp };
        for stranger in [
            Frame { id: 1, ..frame.clone() },
            Frame { proto: other, ..frame.clone() },
            frame.with(at(net.pod_here, 40000), frontend),
        ] {
            bench.expect_rest_dropped(Hook::FromPod, stranger, Metric::FragmentEarly);
        }
        bench.expect_rest_passed(Hook::FromPod, frame.with(client, backend));
        // The number is used again after the kernel's half a minute: what came first does not count.
        bench.age(31);
        bench.expect_rest_dropped(Hook::FromPod, frame, Metric::FragmentEarly);
    });
}

#[test]
fn l4_where_the_first_fragment_is_dropped_so_are_the_others() {
    for_tcp_and_udp(|bench, net, proto| {
        let client = at(net.pod, 40000);
        let id = bench.backend(at(net.pod_there, 8080), 0);
        bench.serve(at(net.vip, 81), proto, INTERNAL_DROP, &[], &[]);
        bench.serve(at(net.vip, 82), proto, SOURCE_RANGES, &[id], &[id]);
        bench.serve(at(net.vip, 83), proto, 0, &[], &[]);
        for (port, metric) in
            [(81, Metric::NoLocalBackend), (82, Metric::SourceRange), (83, Metric::Rejected)]
        {
            let mut frame = Frame { id: port, ..large(proto, client, at(net.vip, port)) };
            frame.mac_to = bench.mac(Hook::FromPod);
            let before = bench.metric(metric);
            bench.send_bytes(Hook::FromPod, &frame.fragments(SIZE)[0], 0);
            assert_eq!(bench.metric(metric), before + 1);
            bench.expect_rest_dropped(Hook::FromPod, frame, Metric::Fragment);
        }
        // A process of this node, whose socket was let pass.
        let frame = Frame { id: 9, ..large(proto, at(net.node, 40000), at(net.vip, 81)) };
        let before = bench.metric(Metric::NoLocalBackend);
        assert_eq!(bench.send_bytes(Hook::ToDevice, &frame.fragments(SIZE)[0], 0).action, SHOT);
        assert_eq!(bench.metric(Metric::NoLocalBackend), before + 1);
        bench.expect_rest_dropped(Hook::ToDevice, frame, Metric::Fragment);
    });
}

/// A datagram of a socket that was connected before the hooks were there.
#[test]
fn l4_where_the_first_fragment_of_this_node_is_refused_the_others_are_dropped() {
    for_tcp_and_udp(|bench, net, proto| {
        served(bench, net, proto);
        let mut frame = large(proto, at(net.node, 40000), at(net.vip, 80));
        frame.mac_to = bench.mac(Hook::ToDevice);
        if proto == Proto::Tcp {
            bench.expect_fragments(Hook::ToDevice, frame.clone(), UNSPEC, frame);
            return;
        }
        let first = frame.fragments(SIZE).remove(0);
        let before = bench.metric(Metric::Rejected);
        let outcome = bench.send_bytes(Hook::ToDevice, &first, 0);
        // The header of the fragment is quoted, too.
        let quote = &first[L3..L3 + if net.vip.is_ipv4() { 20 } else { 40 + 8 } + 8];
        let sum = if net.vip.is_ipv4() { 0 } else { frame.pseudo_sum(58, 8 + quote.len()) };
        let expected = frame.icmp_about(quote, (3, 3), (1, 4), sum.into());
        assert_eq!((outcome.action, outcome.bytes), (REDIRECT, expected));
        assert_eq!(bench.metric(Metric::Rejected), before + 1);
        bench.expect_rest_dropped(Hook::ToDevice, frame, Metric::Fragment);
    });
}

#[test]
fn l4_where_the_first_fragment_passes_so_do_the_others() {
    for_tcp_and_udp(|bench, net, proto| {
        let [client, frontend, backend] = served(bench, net, proto);
        for hook in [Hook::FromPod, Hook::FromExternal, Hook::ToDevice] {
            let direct = large(proto, client, backend);
            bench.expect_fragments(hook, direct.clone(), UNSPEC, direct);
            if proto == Proto::Tcp {
                // Of a connection that another datapath may know.
                let known = large(proto, client, frontend).flags(Flags::Ack);
                bench.expect_fragments(hook, known.clone(), UNSPEC, known);
            }
        }
        bench.configure(DRAINING, 20000..=29999);
        let late = large(proto, at(net.pod, 40001), frontend);
        bench.expect_fragments(Hook::FromPod, late.clone(), UNSPEC, late);
    });
}

#[test]
fn l4_a_first_fragment_without_ports_does_not_reach_a_cluster_ip() {
    for_tcp_and_udp(|bench, net, proto| {
        let [client, frontend, backend] = served(bench, net, proto);
        // Eight bytes of TCP hide its flags in the second fragment.
        if proto == Proto::Udp {
            return;
        }
        for (to, expected) in [(frontend, SHOT), (backend, UNSPEC)] {
            let mut tiny = large(proto, client, to);
            tiny.mac_to = bench.mac(Hook::FromPod);
            let fragment = &tiny.fragments(8)[0];
            assert_eq!(bench.send_bytes(Hook::FromPod, fragment, 0).action, expected);
        }
        assert_eq!(bench.entries(), 0);
    });
}

#[test]
fn l4_fragments_cut_at_any_length_pass() {
    for_tcp_and_udp(|bench, net, proto| {
        let [client, frontend, backend] = served(bench, net, proto);
        let mut frame = large(proto, client, frontend);
        bench.expect_fragments_forwarded(Hook::FromPod, frame.clone(), client, backend);
        frame.mac_to = bench.mac(Hook::FromPod);
        let shortest = if net.vip.is_ipv4() { L3 + 20 } else { L3 + 40 };
        for fragment in frame.fragments(SIZE) {
            for len in shortest..fragment.len() {
                let outcome = bench.send_bytes(Hook::FromPod, &fragment[..len], 0);
                assert_eq!((outcome.action, &outcome.bytes[..]), (UNSPEC, &fragment[..len]), "cut to {len}");
            }
        }
    });
}

#[test]
fn l4_fragments_too_large_for_the_way_go_on_through_the_stack() {
    for_tcp_and_udp(|bench, net, proto| {
        if net.vip.is_ipv6() {
            return;
        }
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.narrow, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[]);
        let mut frame = Frame::new(proto, client, frontend).payload(vec![7; 2600]);
        frame.mac_to = bench.mac(Hook::FromPod);
        let expected = frame.with(client, backend);
        for (sent, expected) in frame.fragments(1400).iter().zip(expected.fragments(1400)) {
            let outcome = bench.send_bytes(Hook::FromPod, sent, 0);
            // The last one is small enough to be sent on.
            let action = if expected.len() > 1314 { OK } else { REDIRECT };
            assert_eq!(outcome.action, action);
            if action == OK {
                assert_eq!(outcome.bytes, expected);
            }
        }
    });
}

#[test]
fn l4_a_fragment_at_the_end_of_its_hops_is_dropped_and_counted() {
    for_tcp_and_udp(|bench, net, proto| {
        let [client, frontend, backend] = served(bench, net, proto);
        let frame = large(proto, client, frontend);
        bench.expect_fragments_forwarded(Hook::FromPod, frame.clone(), client, backend);
        bench.expect_rest_dropped(Hook::FromPod, frame.ttl(1), Metric::Route);
    });
}

/// Whole, but with the header of a fragment (RFC 6946).
#[test]
fn l4_an_atomic_fragment_is_a_whole_packet() {
    for_tcp_and_udp(|bench, net, proto| {
        if net.vip.is_ipv4() {
            return;
        }
        let [client, frontend, backend] = served(bench, net, proto);
        let mut frame = Frame::new(proto, client, frontend);
        frame.mac_to = bench.mac(Hook::FromPod);
        let [whole] = &frame.fragments(1000)[..] else { panic!("one fragment") };
        let outcome = bench.send_bytes(Hook::FromPod, whole, 0);
        let expected = frame.forwarded(client, backend).fragments(1000).remove(0);
        assert_eq!((outcome.action, outcome.bytes), (REDIRECT, expected));
    });
}
