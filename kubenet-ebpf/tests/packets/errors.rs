//! ICMP errors about translated packets: they reach the socket whose packet it was ([L4]).

use std::net::{IpAddr, SocketAddr};

use crate::{
    bench::{Bench, Hook, LOCAL, MASQ_OUTSIDE, Metric, REDIRECT, SHOT, UNSPEC, for_each_kind},
    frame::{Flags, Frame, L3, Proto},
    icmp::{IcmpError, kinds, too_big},
    nets::{Net, at},
};

/// A router on the way.
fn router(net: Net) -> IpAddr {
    if net.vip.is_ipv4() { "203.0.113.77" } else { "2001:db8:77::77" }.parse().unwrap()
}

impl Bench {
    /// Sends an error and expects another one to leave by another device.
    #[track_caller]
    fn expect_error(&mut self, hook: Hook, mut error: IcmpError, from: IpAddr, about: &Frame) {
        error.mac_to = self.mac(hook);
        let forwarded = self.metric(Metric::Forwarded);
        let outcome = self.send_bytes(hook, &error.bytes(), 0);
        assert_eq!((outcome.action, outcome.bytes), (REDIRECT, error.forwarded(from, about).bytes()));
        assert_eq!(self.metric(Metric::Forwarded), forwarded + 1);
    }

    /// Sends an error and expects it to go on as it is.
    #[track_caller]
    fn expect_error_passed(&mut self, hook: Hook, mut error: IcmpError) {
        error.mac_to = self.mac(hook);
        let outcome = self.send_bytes(hook, &error.bytes(), 0);
        assert_eq!((outcome.action, outcome.bytes), (UNSPEC, error.bytes()));
    }

    /// Sends an error and expects it to be dropped and counted: nobody is told about it.
    #[track_caller]
    fn expect_error_lost(&mut self, hook: Hook, mut error: IcmpError) {
        error.mac_to = self.mac(hook);
        let before = self.metric(Metric::Route);
        assert_eq!(self.send_bytes(hook, &error.bytes(), 0).action, SHOT);
        assert_eq!(self.metric(Metric::Route), before + 1);
    }
}

/// A flow as each side knows its packets.
struct Flow {
    /// What the client sent, and what went on to the backend.
    sent: [Frame; 2],
    /// What the backend answered, and what went on to the client.
    answered: [Frame; 2],
    /// Where packets of the client, and of the backend, come in.
    hooks: [Hook; 2],
}

impl Flow {
    fn open(
        bench: &mut Bench,
        hooks: [Hook; 2],
        sent: Frame,
        source: SocketAddr,
        backend: SocketAddr,
    ) -> Self {
        let answer = Frame { flags: Flags::SynAck, ..sent.with(backend, source) };
        let answered = [answer.clone(), answer.with(sent.to, sent.from)];
        bench.expect_forwarded(hooks[0], sent.clone(), source, backend);
        bench.expect_forwarded(hooks[1], answer, sent.to, sent.from);
        Self { sent: [sent.clone(), sent.with(source, backend)], answered, hooks }
    }

    /// From a pod to a pod on another node.
    fn plain(bench: &mut Bench, net: Net, proto: Proto) -> Self {
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[]);
        let hooks = [Hook::FromPod, Hook::FromExternal];
        Self::open(bench, hooks, Frame::new(proto, client, frontend), client, backend)
    }

    /// From outside to a pod on another node, in the name of this node.
    fn masqueraded(bench: &mut Bench, net: Net, proto: Proto) -> Self {
        let (client, frontend, backend) = (at(net.outside, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
        bench.configure(0, 20000..=20000);
        let hooks = [Hook::FromExternal, Hook::FromExternal];
        let port = if proto == Proto::Sctp { client.port() } else { 20000 };
        Self::open(bench, hooks, Frame::new(proto, client, frontend), at(net.node, port), backend)
    }

    fn flows(bench: &mut Bench, net: Net, proto: Proto) -> [(Self, bool); 2] {
        let plain = Self::plain(bench, net, proto);
        [(plain, false), (Self::masqueraded(bench, net, proto), true)]
    }
}

#[test]
fn l4_an_error_about_a_request_reaches_the_client() {
    for_each_kind(|bench, net, proto| {
        for (flow, _) in Flow::flows(bench, net, proto) {
            let [sent, seen] = &flow.sent;
            for kind in kinds(net.vip.is_ipv4()) {
                // Also when it comes from the backend itself, it comes from the frontend.
                for from in [router(net), net.pod_there] {
                    let error = IcmpError::new(from, seen.clone()).kind(*kind);
                    bench.expect_error(flow.hooks[1], error, net.vip, sent);
                }
            }
        }
    });
}

#[test]
fn l4_an_error_about_an_answer_reaches_the_backend() {
    for_each_kind(|bench, net, proto| {
        for (flow, masqueraded) in Flow::flows(bench, net, proto) {
            let [answered, seen] = &flow.answered;
            for kind in kinds(net.vip.is_ipv4()) {
                for from in [router(net), seen.to.ip()] {
                    let error = IcmpError::new(from, seen.clone()).kind(*kind);
                    // The backend knows the client as this node, if at all.
                    let from = if masqueraded { net.node } else { from };
                    bench.expect_error(flow.hooks[0], error, from, answered);
                }
            }
        }
    });
}

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

#[test]
fn l4_an_error_by_this_node_about_a_process_of_it_is_translated_on_its_way_out() {
    for_each_kind(|bench, net, proto| {
        let (client, frontend, backend) = (at(net.outside, 40000), at(net.vip, 80), at(net.node, 8080));
        let id = bench.backend(backend, LOCAL);
        bench.serve(frontend, proto, 0, &[id], &[id]);
        let mut sent = Frame::new(proto, client, frontend);
        let seen = sent.with(client, backend);
        bench.send(Hook::FromExternal, &mut sent);

        for kind in kinds(net.vip.is_ipv4()) {
            let mut error = IcmpError::new(net.node, seen.clone()).kind(*kind);
            error.mac_to = bench.mac(Hook::ToDevice);
            error.ttl = 1;
            let outcome = bench.send_bytes(Hook::ToDevice, &error.bytes(), 0);
            assert_eq!((outcome.action, outcome.bytes), (UNSPEC, error.with(net.vip, &sent).bytes()));
        }
        // What the other side says about its answer goes to the process, not on.
        let answered = Frame::new(proto, backend, client).flags(Flags::SynAck);
        let mut error = IcmpError::new(router(net), answered.with(frontend, client));
        error.mac_to = bench.mac(Hook::FromExternal);
        error.ttl = 1;
        let outcome = bench.send_bytes(Hook::FromExternal, &error.bytes(), 0);
        let expected = error.with(router(net), &answered).bytes();
        assert_eq!((outcome.action, outcome.bytes), (crate::bench::OK, expected));
    });
}

#[test]
fn l4_an_error_by_this_node_about_an_answer_goes_to_the_backend_wherever_it_was_leaving() {
    for_each_kind(|bench, net, proto| {
        let flow = Flow::plain(bench, net, proto);
        let [answered, seen] = &flow.answered;
        bench.expect_error(Hook::ToDevice, IcmpError::new(net.node, seen.clone()), net.node, answered);
    });
}

#[test]
fn l4_an_error_at_the_end_of_its_hops_is_dropped_and_counted() {
    for_each_kind(|bench, net, proto| {
        let flow = Flow::plain(bench, net, proto);
        let mut error = IcmpError::new(router(net), flow.sent[1].clone());
        error.ttl = 1;
        bench.expect_error_lost(flow.hooks[1], error);
        // By this node, as it leaves, for a backend elsewhere.
        let mut error = IcmpError::new(net.node, flow.answered[1].clone());
        error.ttl = 1;
        bench.expect_error_lost(Hook::ToDevice, error);
    });
}

#[test]
fn l4_an_error_too_big_for_its_way_is_dropped_and_counted() {
    for_each_kind(|bench, net, proto| {
        // The client, and then the backend, is behind a narrow way.
        let (frontend, payload) = (at(net.vip, 80), vec![7; 1400]);
        let [client, backend] = [at(net.narrow, 40000), at(net.pod_here, 8080)];
        let id = bench.backend(backend, LOCAL);
        bench.serve(frontend, proto, 0, &[id], &[id]);
        let hooks = [Hook::FromExternal, Hook::FromPod];
        let flow = Flow::open(bench, hooks, Frame::new(proto, client, frontend), client, backend);
        let mut error = IcmpError::new(router(net), flow.sent[1].clone().payload(payload.clone()));
        error.quoted = 1200;
        bench.expect_error(
            Hook::FromPod,
            error.clone(),
            net.vip,
            &flow.sent[0].clone().payload(payload.clone()),
        );
        error.quoted = 1400;
        bench.expect_error_lost(Hook::FromPod, error);

        let [client, backend] = [at(net.pod, 40000), at(net.narrow, 8080)];
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[id]);
        let hooks = [Hook::FromPod, Hook::FromExternal];
        let flow = Flow::open(bench, hooks, Frame::new(proto, client, frontend), client, backend);
        for hook in [Hook::FromPod, Hook::ToDevice] {
            let mut error = IcmpError::new(net.node, flow.answered[1].clone().payload(payload.clone()));
            error.quoted = 1400;
            bench.expect_error_lost(hook, error);
        }
    });
}

#[test]
fn l4_errors_about_no_known_flow_pass() {
    for_each_kind(|bench, net, proto| {
        let flow = Flow::plain(bench, net, proto);
        for hook in [Hook::FromPod, Hook::FromExternal, Hook::ToDevice] {
            for about in [
                Frame::new(proto, at(net.pod, 40001), at(net.pod_there, 8080)),
                Frame::new(proto, at(net.pod, 40000), at(net.vip, 80)),
                Frame::new(proto, at(net.vip, 80), at(net.pod, 40001)),
                Frame::new(proto, at(net.node, 40000), at(net.outside, 443)),
            ] {
                bench.expect_error_passed(hook, IcmpError::new(router(net), about));
            }
            // Told to somebody else than who sent the packet.
            let mut stray = IcmpError::new(router(net), flow.sent[1].clone());
            stray.to = net.pod_here;
            bench.expect_error_passed(hook, stray);
        }
        let other = if proto == Proto::Tcp { Proto::Udp } else { Proto::Tcp };
        let about = Frame { proto: other, ..flow.sent[1].clone() };
        bench.expect_error_passed(Hook::FromExternal, IcmpError::new(router(net), about));
    });
}

#[test]
fn l4_an_error_about_a_udp_flow_that_ended_long_ago_passes() {
    for_each_kind(|bench, net, proto| {
        let flow = Flow::plain(bench, net, proto);
        bench.age(121);
        let error = IcmpError::new(router(net), flow.sent[1].clone());
        if proto == Proto::Udp {
            bench.expect_error_passed(flow.hooks[1], error);
        } else {
            bench.expect_error(flow.hooks[1], error, net.vip, &flow.sent[0]);
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

/// Its checksum cannot be known, and no such fragment was ever sent on.
#[test]
fn l4_an_error_that_quotes_a_fragment_of_sctp_with_other_ports_is_dropped() {
    for_each_kind(|bench, net, proto| {
        if proto != Proto::Sctp || net.vip.is_ipv6() {
            return;
        }
        let flow = Flow::plain(bench, net, proto);
        let mut error = IcmpError::new(router(net), flow.sent[1].clone());
        error.mac_to = bench.mac(Hook::FromExternal);
        let mut bytes = error.bytes();
        // More fragments follow.
        bytes[L3 + 20 + 8 + 6] = 0x20;
        let before = bench.metric(Metric::Malformed);
        let outcome = bench.send_bytes(Hook::FromExternal, &bytes, 0);
        assert_eq!((outcome.action, bench.metric(Metric::Malformed)), (SHOT, before + 1));
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
    });
}

#[test]
fn other_icmp_passes() {
    for_each_kind(|bench, net, proto| {
        let flow = Flow::plain(bench, net, proto);
        let wanted: Vec<u8> = kinds(net.vip.is_ipv4()).iter().map(|kind| kind.0).collect();
        for kind in (0..=255).filter(|kind| !wanted.contains(kind)) {
            let error = IcmpError::new(router(net), flow.sent[1].clone()).kind((kind, 0, 0));
            bench.expect_error_passed(flow.hooks[1], error);
        }
    });
}

/// Also when all its lengths are right, an error that quotes less than the ports and four bytes tells nothing.
#[test]
fn l4_errors_cut_at_any_length_pass_or_are_translated_whole() {
    for_each_kind(|bench, net, proto| {
        let flow = Flow::plain(bench, net, proto);
        let mut error = IcmpError::new(router(net), flow.sent[1].clone()).kind(too_big(net.vip.is_ipv4()));
        error.mac_to = bench.mac(flow.hooks[1]);
        error.quoted = usize::MAX;
        let bytes = error.bytes();
        let shortest = if net.vip.is_ipv4() { L3 + 20 } else { L3 + 40 };
        for len in shortest..bytes.len() {
            let outcome = bench.send_bytes(flow.hooks[1], &bytes[..len], 0);
            assert_eq!((outcome.action, &outcome.bytes[..]), (UNSPEC, &bytes[..len]), "cut to {len}");
        }
        for quoted in 0..flow.sent[1].l4() - L3 + 8 {
            error.quoted = quoted;
            bench.expect_error_passed(flow.hooks[1], error.clone());
        }
    });
}

#[test]
fn l4_padding_behind_a_short_error_is_not_part_of_it() {
    for_each_kind(|bench, net, proto| {
        let flow = Flow::plain(bench, net, proto);
        let mut error = IcmpError::new(router(net), flow.sent[1].clone());
        error.mac_to = bench.mac(flow.hooks[1]);
        let padded = |error: &IcmpError| [&error.bytes()[..], &[0xaa; 40]].concat();
        let outcome = bench.send_bytes(flow.hooks[1], &padded(&error), 0);
        let expected = padded(&error.forwarded(net.vip, &flow.sent[0]));
        assert_eq!((outcome.action, outcome.bytes), (REDIRECT, expected));
    });
}
