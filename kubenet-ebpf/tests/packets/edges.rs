//! What few packets meet: sets without a living backend, a node without an address to masquerade with, headers that
//! are just too short.

use crate::{
    bench::{
        Bench, DRAINING, EXTERNAL_DROP, Hook, INTERNAL_DROP, LOCAL, MASQ_OUTSIDE, MASQ_PODS, Metric, OK,
        Outcome, REDIRECT, SHOT, SNAT6_SECOND, UNSPEC, for_each_kind, for_tcp_and_udp, on_bench,
    },
    direct::marked,
    frame::{Flags, Frame, L3, Proto, without_length},
    netns::switch_forwarding_off,
    nets::{V4, V6, at, next},
};

/// Its slots were emptied while the packet was on its way.
#[test]
fn a_set_of_nobody_is_a_counted_drop() {
    for_each_kind(|bench, net, proto| {
        let (client, frontend) = (at(net.pod, 40000), at(net.vip, 80));
        bench.serve(frontend, proto, 0, &[0, 0], &[]);
        bench.expect_dropped(Hook::FromPod, Frame::new(proto, client, frontend), Metric::Route);
        bench.affinity = (7, 60);
        bench.serve(at(net.vip, 81), proto, 0, &[0], &[]);
        bench.expect_dropped(Hook::FromPod, Frame::new(proto, client, at(net.vip, 81)), Metric::Route);
        assert_eq!((bench.entries(), bench.age_affinity(0)), (0, 0));
    });
}

impl Bench {
    /// No address to masquerade with.
    fn without_snat(&mut self) {
        self.configure(SNAT6_SECOND, 20000..=29999);
        let map = aya::maps::Array::<_, [u8; 72]>::try_from(self.map_mut("config"));
        let mut map = map.expect("array");
        let mut value = map.get(&0, 0).expect("config");
        value[..4].fill(0);
        value[8..40].fill(0);
        map.set(0, value, 0).expect("set");
    }
}

#[test]
fn s6_without_an_address_or_a_port_to_masquerade_with_new_flows_are_counted_drops() {
    for_each_kind(|bench, net, proto| {
        let id = bench.backend(at(net.pod_there, 8080), 0);
        let (client, frontend) = (at(net.outside, 40000), at(net.vip, 80));
        bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
        let frame = Frame::new(proto, client, frontend);
        bench.configure(0, std::ops::RangeInclusive::new(1, 0));
        bench.expect_dropped(Hook::FromExternal, frame.clone(), Metric::SnatExhausted);
        bench.without_snat();
        bench.expect_dropped(Hook::FromExternal, frame, Metric::SnatExhausted);
        assert_eq!(bench.entries(), 0);
        // Whoever needs none is served.
        let pod = at(net.pod, 40000);
        bench.expect_forwarded(Hook::FromPod, Frame::new(proto, pod, frontend), pod, at(net.pod_there, 8080));
        // And the end of its hops is told in the name that was dialled.
        let last = Frame::new(proto, pod, frontend).ttl(1);
        bench.expect_answered(Hook::FromPod, last, |frame| {
            frame.icmp_about(&frame.bytes()[L3..frame.l4() + 8], (11, 0), (3, 0), 0)
        });
    });
}

/// In the node's own name, the stack would drop what comes back to it.
#[test]
fn a_backend_with_an_address_of_the_node_is_here_whatever_its_endpoint_says() {
    for_each_kind(|bench, net, proto| {
        let (client, frontend, process) = (at(net.outside, 40000), at(net.vip, 80), at(net.node, 8080));
        let id = bench.backend(process, 0);
        bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
        let mut frame = Frame::new(proto, client, frontend);
        let outcome = bench.send(Hook::FromExternal, &mut frame);
        assert_eq!(outcome, Outcome { action: OK, bytes: frame.with(client, process).bytes() });

        // One on which node ports answer, and that is somebody else's.
        let (frontend, elsewhere) = (at(net.vip, 81), at(next(net.pod_there), 8080));
        bench.node_address(elsewhere.ip(), 0x02);
        bench.configure(0, 20000..=20000);
        let id = bench.backend(elsewhere, 0);
        bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
        let source = at(net.node, if proto == Proto::Sctp { client.port() } else { 20000 });
        bench.expect_forwarded(Hook::FromExternal, Frame::new(proto, client, frontend), source, elsewhere);
    });
}

/// Nor with a source of the node's own, which would tell two flows from one port apart.
#[test]
fn two_frontends_of_a_process_here_are_told_apart_by_the_clients_port() {
    for_tcp_and_udp(|bench, net, proto| {
        let (client, process) = (at(net.outside, 40000), at(net.node, 8080));
        let id = bench.backend(process, LOCAL);
        bench.configure(0, 20000..=20000);
        let frontends = [at(net.vip, 80), at(net.vip, 81)];
        for (frontend, source) in frontends.into_iter().zip([client, at(net.outside, 20000)]) {
            bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
            let mut frame = Frame::new(proto, client, frontend);
            let outcome = bench.send(Hook::FromExternal, &mut frame);
            assert_eq!(outcome, Outcome { action: OK, bytes: frame.with(source, process).bytes() });
        }
    });
}

#[test]
fn what_is_masqueraded_may_be_cut_by_the_next_router_and_is_not_given_to_the_stack() {
    for_each_kind(|bench, net, proto| {
        if net.vip.is_ipv6() || proto == Proto::Sctp {
            return;
        }
        let (client, frontend, backend) = (at(net.outside, 40000), at(net.vip, 80), at(net.narrow, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
        bench.configure(0, 20000..=20000);
        let node = at(net.node, 20000);
        bench.expect_forwarded(Hook::FromExternal, Frame::new(proto, client, frontend), node, backend);
        let mut large = Frame::new(proto, client, frontend).flags(Flags::Ack).payload(vec![1; 1350]);
        large.dont_fragment = false;
        bench.expect_forwarded(Hook::FromExternal, large.clone(), node, backend);
        // Its way is no way for one that may not be cut.
        large.dont_fragment = true;
        bench.expect_answered(Hook::FromExternal, large, |frame| frame.icmp((3, 4), (2, 0), 1300));
    });
}

#[test]
fn where_forwarding_is_off_what_is_masqueraded_is_dropped_and_the_rest_is_the_stacks() {
    on_bench(|bench| {
        switch_forwarding_off();
        for net in [V4, V6] {
            for proto in Proto::ALL {
                bench.clear();
                let (client, frontend, backend) =
                    (at(net.outside, 40000), at(net.vip, 80), at(net.pod_there, 8080));
                let id = bench.backend(backend, 0);
                bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
                bench.expect_dropped(Hook::FromExternal, Frame::new(proto, client, frontend), Metric::Route);
                let pod = at(net.pod, 40000);
                let mut frame = Frame::new(proto, pod, frontend);
                let outcome = bench.send(Hook::FromPod, &mut frame);
                assert_eq!(outcome, Outcome { action: OK, bytes: frame.with(pod, backend).bytes() });
            }
        }
    });
}

/// A datagram of a process of this node that was connected to a Service before the hooks were there.
#[test]
fn a_datagram_of_this_node_to_a_cluster_ip_is_refused_on_its_way_out() {
    for_each_kind(|bench, net, proto| {
        let (process, frontend) = (at(net.node, 40000), at(net.vip, 80));
        let id = bench.backend(at(net.pod_there, 8080), 0);
        bench.serve(frontend, proto, 0, &[id], &[]);
        let frame = Frame::new(proto, process, frontend);
        // Not an address of the cluster's.
        bench.expect_passed(Hook::ToDevice, frame.clone());
        bench.cluster_ip(net.vip);
        if proto != Proto::Udp {
            bench.expect_passed(Hook::ToDevice, frame);
            return;
        }
        let before = bench.metric(Metric::Rejected);
        bench.expect_answered(Hook::ToDevice, frame.clone(), Frame::refusal);
        assert_eq!(bench.metric(Metric::Rejected), before + 1);
        if net.vip.is_ipv6() {
            let mut extended = frame.clone();
            extended.extensions = true;
            // The answer has none of its headers.
            let outcome = bench.send(Hook::ToDevice, &mut extended);
            assert_eq!(outcome.action, REDIRECT);
            assert_eq!(outcome.bytes[L3 + 6], 58, "ICMPv6 at once");
        }
        bench.configure(DRAINING, 20000..=29999);
        bench.expect_passed(Hook::ToDevice, frame);
    });
}

#[test]
fn a_service_that_drops_still_does_so_by_side_where_the_other_has_backends() {
    for_each_kind(|bench, net, proto| {
        let id = bench.backend(at(net.pod_there, 8080), 0);
        let frontend = at(net.vip, 80);
        bench.serve(frontend, proto, INTERNAL_DROP | EXTERNAL_DROP, &[], &[id]);
        let pod = Frame::new(proto, at(net.pod, 40000), frontend);
        bench.expect_dropped(Hook::FromPod, pod, Metric::NoLocalBackend);
        let outside = at(net.outside, 40000);
        let frame = Frame::new(proto, outside, frontend);
        bench.expect_forwarded(Hook::FromExternal, frame, outside, at(net.pod_there, 8080));
    });
}

/// More than 64 KiB, to be cut by the device: its header has no length then.
#[test]
fn a_packet_whose_header_has_no_length_is_as_long_as_its_frame() {
    for_each_kind(|bench, net, proto| {
        if proto != Proto::Tcp {
            return;
        }
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, MASQ_PODS, &[id], &[]);
        bench.configure(0, 20000..=20000);
        let node = at(net.node, 20000);
        bench.expect_forwarded(Hook::FromPod, Frame::new(proto, client, frontend), node, backend);
        let mut frame = Frame::new(proto, client, frontend).flags(Flags::Ack).payload(vec![1; 3000]);
        frame.mac_to = bench.mac(Hook::FromPod);
        for extensions in [false, true] {
            frame.extensions = extensions && net.vip.is_ipv6();
            let outcome = bench.send_bytes(Hook::FromPod, &without_length(frame.bytes()), 1400);
            let expected = without_length(frame.forwarded(node, backend).bytes());
            assert_eq!((outcome.action, outcome.bytes), (REDIRECT, expected));
            // Without segments it contradicts itself.
            let bytes = without_length(frame.bytes());
            let outcome = bench.send_bytes(Hook::FromPod, &bytes, 0);
            assert_eq!((outcome.action, outcome.bytes), (UNSPEC, bytes));
        }
    });
}

/// Of the kind that is looked at more closely: behind extension headers, and SCTP.
#[test]
fn transport_headers_that_are_too_short_behind_others_pass() {
    for_each_kind(|bench, net, proto| {
        let (client, frontend) = (at(net.pod, 40000), at(net.vip, 80));
        let id = bench.backend(at(net.pod_there, 8080), 0);
        bench.serve(frontend, proto, 0, &[id], &[]);
        let mut frame = Frame::new(proto, client, frontend);
        frame.extensions = net.vip.is_ipv6();
        frame.mac_to = bench.mac(Hook::FromPod);
        let whole = frame.bytes();
        for keep in 0..8 {
            let mut bytes = whole[..frame.l4() + keep].to_vec();
            let length = (bytes.len() - L3 - if net.vip.is_ipv4() { 0 } else { 40 }) as u16;
            let at = if net.vip.is_ipv4() { L3 + 2 } else { L3 + 4 };
            bytes[at..at + 2].copy_from_slice(&length.to_be_bytes());
            let outcome = bench.send_bytes(Hook::FromPod, &bytes, 0);
            assert_eq!((outcome.action, outcome.bytes), (UNSPEC, bytes), "{keep} bytes");
        }
        if proto == Proto::Tcp {
            let mut bytes = whole;
            bytes[frame.l4() + 12] = 0x40;
            let outcome = bench.send_bytes(Hook::FromPod, &bytes, 0);
            assert_eq!((outcome.action, outcome.bytes), (UNSPEC, bytes), "four words");
        }
        assert_eq!(bench.entries(), 0);
    });
}

/// An answer that quotes it has room for so many extension headers only.
#[test]
fn what_is_refused_behind_many_extension_headers_is_a_counted_drop() {
    for_each_kind(|bench, net, proto| {
        if net.vip.is_ipv4() || proto != Proto::Udp {
            return;
        }
        let frontend = at(net.vip, 80);
        bench.serve(frontend, proto, 0, &[], &[]);
        let mut frame = Frame::new(proto, at(net.pod, 40000), frontend);
        frame.extensions = true;
        frame.mac_to = bench.mac(Hook::FromPod);
        let before = bench.metric(Metric::Malformed);
        // 24 bytes more.
        let outcome = bench.send_bytes(Hook::FromPod, &marked(&frame, frontend), 0);
        assert_eq!((outcome.action, bench.metric(Metric::Malformed)), (SHOT, before + 1));
    });
}
