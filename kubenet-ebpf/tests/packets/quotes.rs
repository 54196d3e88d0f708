//! What ICMP errors quote of translated packets: their sender finds its own packet in them ([L4]).

use crate::{
    bench::{Hook, Metric, REDIRECT, SHOT, UNSPEC, for_each_kind},
    errors::{Flow, router},
    frame::{Frame, L3, Proto},
    icmp::IcmpError,
    nets::at,
};

#[test]
fn l4_whatever_of_the_packet_is_quoted_is_translated() {
    for_each_kind(|bench, net, proto| {
        for (flow, _) in Flow::flows(bench, net, proto) {
            for (hook, [known, seen]) in [(flow.hooks[1], &flow.sent), (flow.hooks[0], &flow.answered)] {
                let from = if known.from == flow.sent[0].from { Some(net.vip) } else { None };
                let least = known.l4() - L3 + 8;
                for quoted in least..known.bytes().len() - L3 + 1 {
                    // A part of a checksum cannot be made right.
                    let part = match proto {
                        Proto::Tcp => 17..18,
                        Proto::Udp => 0..0,
                        Proto::Sctp => 9..12,
                    };
                    if part.contains(&(quoted - (least - 8))) {
                        continue;
                    }
                    let mut error = IcmpError::new(net.node_inner, seen.clone());
                    error.quoted = quoted;
                    let kept = if known.to.ip() == net.node { net.node } else { net.node_inner };
                    bench.expect_error(hook, error, from.unwrap_or(kept), known);
                }
            }
        }
    });
}

#[test]
fn l4_options_and_extension_headers_of_the_quoted_packet_are_stepped_over() {
    for_each_kind(|bench, net, proto| {
        let flow = Flow::plain(bench, net, proto);
        for (hook, [known, seen]) in [(flow.hooks[1], &flow.sent), (flow.hooks[0], &flow.answered)] {
            let from = if known.from == flow.sent[0].from { net.vip } else { router(net) };
            let (mut known, mut seen) = (known.clone(), seen.clone());
            for options in (4..=40).step_by(4) {
                for frame in [&mut known, &mut seen] {
                    frame.extensions = net.vip.is_ipv6();
                    if net.vip.is_ipv4() {
                        frame.ip_options = vec![1; options];
                    }
                }
                for more in [0, 4, 12, 100] {
                    let mut error = IcmpError::new(router(net), seen.clone());
                    error.quoted += more;
                    bench.expect_error(hook, error, from, &known);
                }
            }
        }
    });
}

#[test]
fn l4_a_quoted_datagram_without_a_checksum_stays_without() {
    for_each_kind(|bench, net, proto| {
        if proto != Proto::Udp {
            return;
        }
        let flow = Flow::plain(bench, net, proto);
        for (hook, [known, seen]) in [(flow.hooks[1], &flow.sent), (flow.hooks[0], &flow.answered)] {
            let from = if known.from == flow.sent[0].from { net.vip } else { router(net) };
            let (mut known, mut seen) = (known.clone(), seen.clone());
            (known.no_checksum, seen.no_checksum) = (true, true);
            bench.expect_error(hook, IcmpError::new(router(net), seen), from, &known);
        }
    });
}

/// A packet that says that it ends before its checksum: what stands in its place is none.
#[test]
fn l4_a_checksum_behind_the_end_of_the_quoted_packet_is_left_alone() {
    for_each_kind(|bench, net, proto| {
        let (at, header) = if net.vip.is_ipv4() { (2, 20) } else { (4, 0) };
        let (offset, size) = match proto {
            Proto::Tcp => (16, 2),
            Proto::Udp => (6, 2),
            Proto::Sctp => (8, 4),
        };
        for (flow, _) in Flow::flows(bench, net, proto) {
            for length in [0, 4, offset, offset + size - 1, offset + size] {
                let [known, seen] = &flow.sent;
                let check = seen.l4() - L3 + offset;
                let mut error = IcmpError::new(router(net), seen.clone());
                error.quoted = usize::MAX;
                error.damage.push((at, ((header + length) as u16).to_be_bytes().to_vec()));
                let mut expected = error.clone();
                if length < offset + size {
                    // As it was on its way.
                    expected.damage.push((check, seen.bytes()[L3 + check..L3 + check + size].to_vec()));
                } else if proto == Proto::Sctp {
                    // Which depends on the length: nothing but the ports changes.
                    continue;
                }
                error.mac_to = bench.mac(flow.hooks[1]);
                expected.mac_to = error.mac_to;
                let outcome = bench.send_bytes(flow.hooks[1], &error.bytes(), 0);
                let expected = expected.forwarded(net.vip, known).bytes();
                assert_eq!((outcome.action, outcome.bytes), (REDIRECT, expected), "{length} bytes");
            }
        }
    });
}

/// SCTP's checksum depends on the length of the packet, of which most is not quoted.
#[test]
fn l4_the_quoted_packet_may_be_far_larger_than_the_quotation() {
    for_each_kind(|bench, net, proto| {
        let flow = Flow::plain(bench, net, proto);
        for len in [100, 4096, 20_000, 60_000] {
            let [known, seen] = flow.sent.clone().map(|frame| frame.payload(vec![7; len]));
            let mut error = IcmpError::new(router(net), seen);
            error.quoted += 12;
            bench.expect_error(flow.hooks[1], error, net.vip, &known);
        }
    });
}

/// Zero would say that there is none.
#[test]
fn l4_a_quoted_checksum_that_comes_to_zero_is_that_of_its_protocol() {
    for_each_kind(|bench, net, proto| {
        let offset = match proto {
            Proto::Tcp => 16,
            Proto::Udp => 6,
            Proto::Sctp => return,
        };
        for (flow, _) in Flow::flows(bench, net, proto) {
            let known = flow.sent[0].clone().payload([0, 0]);
            let check = known.l4() + offset..known.l4() + offset + 2;
            let payload = known.bytes()[check.clone()].to_vec();
            let [known, seen] = flow.sent.clone().map(|frame| frame.payload(payload.clone()));
            let zero = if proto == Proto::Tcp { [0, 0] } else { [0xff, 0xff] };
            assert_eq!(known.bytes()[check], zero);
            let mut error = IcmpError::new(router(net), seen);
            error.quoted = usize::MAX;
            bench.expect_error(flow.hooks[1], error, net.vip, &known);
        }
    });
}

/// The checksum of SCTP depends on the length of all fragments: no such one was ever sent on with other ports.
#[test]
fn l4_a_quoted_first_fragment_is_translated_and_a_later_one_tells_nothing() {
    for_each_kind(|bench, net, proto| {
        for (flow, _) in Flow::flows(bench, net, proto) {
            let [known, seen] = flow.sent.clone().map(|frame| frame.payload(vec![7; 300]));
            let mut error = IcmpError::new(router(net), seen);
            (error.quoted, error.fragment) = (usize::MAX, Some(1));
            bench.expect_error_passed(flow.hooks[1], error.clone());
            error.fragment = Some(0);
            if proto != Proto::Sctp {
                bench.expect_error(flow.hooks[1], error, net.vip, &known);
                continue;
            }
            error.mac_to = bench.mac(flow.hooks[1]);
            let before = bench.metric(Metric::Malformed);
            let outcome = bench.send_bytes(flow.hooks[1], &error.bytes(), 0);
            assert_eq!((outcome.action, bench.metric(Metric::Malformed)), (SHOT, before + 1));
        }
    });
}

/// A quoted fragment has no ports, nor has what is neither TCP, UDP nor SCTP; an error that is a fragment is not
/// whole.
#[test]
fn l4_errors_that_quote_no_ports_pass() {
    for_each_kind(|bench, net, proto| {
        let flow = Flow::plain(bench, net, proto);
        let mut error = IcmpError::new(router(net), flow.sent[1].clone());
        error.mac_to = bench.mac(Hook::FromExternal);
        let bytes = error.bytes();
        let v4 = net.vip.is_ipv4();
        let quote = L3 + if v4 { 20 } else { 40 } + 8;
        let mut broken = vec![(quote + if v4 { 9 } else { 6 }, if v4 { 1 } else { 58 })];
        if v4 {
            // A later fragment; of another version; with a header that is too short; longer than its packet.
            broken.extend([(quote + 7, 9), (quote, 0x65), (quote, 0x44), (quote + 3, 19), (L3 + 6, 0x20)]);
        } else {
            broken.push((quote, 0x40));
            // Itself a fragment.
            let mut first = [&bytes[..L3 + 40], &[58, 0, 0, 1, 0, 0, 0, 9], &bytes[L3 + 40..]].concat();
            first[L3 + 6] = 44;
            first[L3 + 5] += 8;
            let outcome = bench.send_bytes(Hook::FromExternal, &first, 0);
            assert_eq!((outcome.action, outcome.bytes), (UNSPEC, first));
        }
        for (at, value) in broken {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            if v4 && at == quote + 3 {
                bytes[quote + 2] = 0;
            }
            let outcome = bench.send_bytes(Hook::FromExternal, &bytes, 0);
            assert_eq!((outcome.action, outcome.bytes), (UNSPEC, bytes), "{at}: {value:#x}");
        }
        // Without all of an error's own header.
        let mut short = bytes[..quote - 1].to_vec();
        let at = L3 + if v4 { 2 } else { 4 };
        short[at..at + 2].copy_from_slice(&(if v4 { 27u16 } else { 7 }).to_be_bytes());
        let outcome = bench.send_bytes(Hook::FromExternal, &short, 0);
        assert_eq!((outcome.action, outcome.bytes), (UNSPEC, short));
    });
}

/// Of a packet whose ports stay, SCTP's checksum does, too.
#[test]
fn l4_a_quoted_sctp_packet_keeps_its_checksum_with_its_ports() {
    for_each_kind(|bench, net, proto| {
        if proto != Proto::Sctp {
            return;
        }
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 80));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[]);
        let sent = Frame::new(proto, client, frontend);
        let hooks = [Hook::FromPod, Hook::FromExternal];
        let flow = Flow::open(bench, hooks, sent, client, backend);
        for quoted in [usize::MAX, flow.sent[1].l4() - L3 + 8] {
            let mut error = IcmpError::new(router(net), flow.sent[1].clone());
            error.quoted = quoted;
            bench.expect_error(Hook::FromExternal, error, net.vip, &flow.sent[0]);
        }
        let [known, seen] = flow.sent.map(|frame| frame.payload(vec![7; 300]));
        let mut error = IcmpError::new(router(net), seen);
        (error.quoted, error.fragment) = (usize::MAX, Some(0));
        bench.expect_error(Hook::FromExternal, error, net.vip, &known);
    });
}
