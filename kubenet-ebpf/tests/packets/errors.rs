//! ICMP errors about translated packets: they reach the socket whose packet it was ([L4]).

use std::net::{IpAddr, SocketAddr};

use crate::{
    bench::{Bench, Hook, LOCAL, MASQ_OUTSIDE, Metric, REDIRECT, SHOT, UNSPEC, for_each_kind},
    frame::{Flags, Frame, L3, Proto},
    icmp::{IcmpError, kinds, too_big},
    nets::{Net, at},
};

/// A router on the way.
pub fn router(net: Net) -> IpAddr {
    if net.vip.is_ipv4() { "203.0.113.77" } else { "2001:db8:77::77" }.parse().unwrap()
}

impl Bench {
    /// Sends an error and expects another one to leave by another device.
    #[track_caller]
    pub fn expect_error(&mut self, hook: Hook, mut error: IcmpError, from: IpAddr, about: &Frame) {
        error.mac_to = self.mac(hook);
        let forwarded = self.metric(Metric::Forwarded);
        let outcome = self.send_bytes(hook, &error.bytes(), 0);
        assert_eq!((outcome.action, outcome.bytes), (REDIRECT, error.forwarded(from, about).bytes()));
        assert_eq!(self.metric(Metric::Forwarded), forwarded + 1);
    }

    /// Sends an error and expects it to go on as it is.
    #[track_caller]
    pub fn expect_error_passed(&mut self, hook: Hook, mut error: IcmpError) {
        error.mac_to = self.mac(hook);
        let outcome = self.send_bytes(hook, &error.bytes(), 0);
        assert_eq!((outcome.action, outcome.bytes), (UNSPEC, error.bytes()));
    }

    /// Sends an error and expects it to be dropped and counted: nobody is told about it.
    #[track_caller]
    pub fn expect_error_lost(&mut self, hook: Hook, mut error: IcmpError) {
        error.mac_to = self.mac(hook);
        let before = self.metric(Metric::Route);
        assert_eq!(self.send_bytes(hook, &error.bytes(), 0).action, SHOT);
        assert_eq!(self.metric(Metric::Route), before + 1);
    }
}

/// A flow as each side knows its packets.
pub struct Flow {
    /// What the client sent, and what went on to the backend.
    pub sent: [Frame; 2],
    /// What the backend answered, and what went on to the client.
    pub answered: [Frame; 2],
    /// Where packets of the client, and of the backend, come in.
    pub hooks: [Hook; 2],
}

impl Flow {
    pub fn open(
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
    pub fn plain(bench: &mut Bench, net: Net, proto: Proto) -> Self {
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

    pub fn flows(bench: &mut Bench, net: Net, proto: Proto) -> [(Self, bool); 2] {
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
