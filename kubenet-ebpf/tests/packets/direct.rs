//! Direct server return: what this node marks for others, and what it learns from their marks.

use std::net::SocketAddr;

use crate::{
    bench::{
        Bench, DRAINING, Hook, LOCAL, MASQ_OUTSIDE, MASQ_PODS, Metric, OK, Outcome, REDIRECT, SHOT, UNSPEC,
        for_each_kind, for_each_kind_directly, octets, on_direct_bench,
    },
    frame::{Flags, Frame, Proto, without_length},
    netns::switch_forwarding_off,
    nets::{Net, V4, V6, at},
};

/// The frame as the first node sends it on: with the frontend in an option behind the fixed header.
pub fn marked(frame: &Frame, frontend: SocketAddr) -> Vec<u8> {
    let (address, port) = (octets(frontend.ip()), frontend.port().to_be_bytes());
    if frontend.is_ipv4() {
        let mut frame = frame.clone();
        frame.ip_options = [&[0x9e, 8][..], &port, &address, &frame.ip_options].concat();
        return frame.bytes();
    }
    const LENGTH: usize = 14 + 4;
    const NEXT: usize = 14 + 6;
    let mut bytes = frame.bytes();
    let header = [&[bytes[NEXT], 2, 0x1e, 18][..], &address, &port, &[1, 0]].concat();
    let length = u16::from_be_bytes([bytes[LENGTH], bytes[LENGTH + 1]]) + 24;
    bytes[LENGTH..LENGTH + 2].copy_from_slice(&length.to_be_bytes());
    bytes[NEXT] = 60;
    bytes.splice(54..54, header);
    bytes
}

impl Bench {
    fn expect_marked(&mut self, mut frame: Frame, frontend: SocketAddr, to: SocketAddr) {
        let outcome = self.send(Hook::FromExternal, &mut frame);
        let expected = marked(&frame.forwarded(frame.from, to), frontend);
        assert_eq!(outcome, Outcome { action: REDIRECT, bytes: expected });
    }

    /// Sends what another node has marked.
    fn send_marked(&mut self, hook: Hook, mut frame: Frame, frontend: SocketAddr) -> i32 {
        frame.mac_to = self.mac(hook);
        let bytes = marked(&frame, frontend);
        let outcome = self.send_bytes(hook, &bytes, 0);
        assert!(outcome.action == SHOT || outcome.bytes == bytes, "it is the stack's as it is");
        outcome.action
    }
}

struct Case {
    client: SocketAddr,
    frontend: SocketAddr,
    backend: SocketAddr,
}

fn elsewhere(bench: &mut Bench, net: Net, proto: Proto, flags: u32) -> Case {
    let (client, frontend) = (at(net.outside, 40000), at(net.vip, 80));
    let backend = at(net.pod_there, 8080);
    let id = bench.backend(backend, 0);
    bench.serve(frontend, proto, flags, &[id], &[id]);
    Case { client, frontend, backend }
}

#[test]
fn first_packets_from_outside_are_marked_and_not_masqueraded() {
    for_each_kind_directly(|bench, net, proto| {
        let Case { client, frontend, backend } = elsewhere(bench, net, proto, MASQ_OUTSIDE);
        let ask = |flags| Frame::new(proto, client, frontend).flags(flags);
        // Again if it is sent again.
        for _ in 0..2 {
            bench.expect_marked(ask(Flags::Syn), frontend, backend);
        }
        for flags in [Flags::Ack, Flags::Fin, Flags::Ack] {
            match proto {
                Proto::Udp => bench.expect_marked(ask(flags), frontend, backend),
                _ => bench.expect_forwarded(Hook::FromExternal, ask(flags), client, backend),
            }
        }
        assert_eq!(bench.metric(Metric::Malformed), 0);
    });
}

#[test]
fn a_mark_stands_before_other_options() {
    for_each_kind_directly(|bench, net, proto| {
        let Case { client, frontend, backend } = elsewhere(bench, net, proto, MASQ_OUTSIDE);
        let mut frame = Frame::new(proto, client, frontend);
        if net.vip.is_ipv4() {
            frame.ip_options = vec![1; 8];
            bench.expect_marked(frame.clone(), frontend, backend);
            // There is no room for more.
            frame.ip_options = vec![1; 36];
            bench.expect_dropped(Hook::FromExternal, frame, Metric::Malformed);
        } else if proto == Proto::Tcp {
            // What every hop looks at must come first.
            frame.extensions = true;
            bench.expect_dropped(Hook::FromExternal, frame, Metric::Malformed);
        }
    });
}

#[test]
fn pods_and_policy_local_know_nothing_of_it() {
    for_each_kind_directly(|bench, net, proto| {
        let Case { client, frontend, backend } = elsewhere(bench, net, proto, MASQ_PODS);
        bench.expect_forwarded(Hook::FromExternal, Frame::new(proto, client, frontend), client, backend);
        bench.forget_flows();
        let mut frame = Frame::new(proto, at(net.pod, 40000), frontend);
        let outcome = bench.send(Hook::FromPod, &mut frame);
        let port = u16::from_be_bytes([outcome.bytes[frame.l4()], outcome.bytes[frame.l4() + 1]]);
        let masqueraded = frame.forwarded(at(net.node, port), backend).bytes();
        assert_eq!(outcome, Outcome { action: REDIRECT, bytes: masqueraded });
    });
}

#[test]
fn backends_here_get_no_mark() {
    for_each_kind_directly(|bench, net, proto| {
        let (client, frontend, backend) = (at(net.outside, 40000), at(net.vip, 80), at(net.pod_here, 8080));
        let id = bench.backend(backend, LOCAL);
        bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
        bench.expect_forwarded(Hook::FromExternal, Frame::new(proto, client, frontend), client, backend);
    });
}

#[test]
fn a_datagram_that_is_too_large_with_its_mark_is_answered_with_what_is_left() {
    for_each_kind_directly(|bench, net, proto| {
        if proto != Proto::Udp {
            return;
        }
        let (client, frontend, backend) = (at(net.outside, 40000), at(net.vip, 80), at(net.narrow, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
        let (headers, mark) = if net.vip.is_ipv4() { (28, 8) } else { (48, 24) };
        let frame = |length: usize| Frame::new(proto, client, frontend).payload(vec![1; length - headers]);
        bench.expect_marked(frame(1300 - mark), frontend, backend);
        let exceeds = frame(1301 - mark);
        bench.expect_answered(Hook::FromExternal, exceeds, |frame| {
            frame.icmp((3, 4), (2, 0), 1300 - mark as u32)
        });
        // A pod's gets no mark.
        let pod = at(net.pod, 40000);
        bench.expect_forwarded(Hook::FromPod, frame(1300).with(pod, frontend), pod, backend);
        let exceeds = frame(1301).with(pod, frontend);
        bench.expect_answered(Hook::FromPod, exceeds, |frame| frame.icmp((3, 4), (2, 0), 1300));
    });
}

#[test]
fn what_is_marked_and_has_no_way_is_the_stacks_with_its_mark() {
    on_direct_bench(|bench| {
        switch_forwarding_off();
        for net in [V4, V6] {
            for proto in Proto::ALL {
                bench.clear();
                let Case { client, frontend, backend } = elsewhere(bench, net, proto, MASQ_OUTSIDE);
                let mut frame = Frame::new(proto, client, frontend);
                let outcome = bench.send(Hook::FromExternal, &mut frame);
                let bytes = marked(&frame.with(client, backend), frontend);
                assert_eq!(outcome, Outcome { action: OK, bytes });
            }
        }
    });
}

/// A client outside, a frontend of another node, and a backend here.
fn here(net: Net) -> Case {
    Case {
        client: at(net.outside, 40000),
        // A node port of the other node, and so of no Service here.
        frontend: at(crate::nets::next(net.node_inner), 30080),
        backend: at(net.pod_here, 8080),
    }
}

#[test]
fn answers_to_what_another_node_marked_come_from_the_frontend() {
    for_each_kind_directly(|bench, net, proto| {
        let Case { client, frontend, backend } = here(net);
        let ask = Frame::new(proto, client, backend);
        assert_eq!(bench.send_marked(Hook::FromExternal, ask.clone(), frontend), UNSPEC);
        let answer = |flags| Frame::new(proto, backend, client).flags(flags);
        bench.expect_forwarded(Hook::FromPod, answer(Flags::SynAck), frontend, client);
        bench.expect_passed(Hook::FromExternal, ask.clone().flags(Flags::Ack));
        bench.expect_forwarded(Hook::FromPod, answer(Flags::Ack), frontend, client);
        // The same of a backend that is a process of the node: its answers leave through the device.
        let mut frame = answer(Flags::Ack);
        let outcome = bench.send(Hook::ToDevice, &mut frame);
        assert_eq!(outcome, Outcome { action: UNSPEC, bytes: frame.with(frontend, client).bytes() });
        assert_eq!(bench.entries(), 2);

        // It is sent again, and goes on for long.
        for _ in 0..3 {
            bench.age(100);
            if proto == Proto::Udp {
                assert_eq!(bench.send_marked(Hook::FromExternal, ask.clone(), frontend), UNSPEC);
            }
            bench.expect_forwarded(Hook::FromPod, answer(Flags::Ack), frontend, client);
        }
        assert_eq!(bench.entries(), 2);
    });
}

/// More than 64 KiB, to be cut by the device: its header has no length.
#[test]
fn the_mark_of_a_packet_without_a_length_is_read() {
    for_each_kind_directly(|bench, net, proto| {
        let Case { client, frontend, backend } = here(net);
        let mut frame = Frame::new(proto, client, backend).payload(vec![7; 3000]);
        frame.mac_to = bench.mac(Hook::FromExternal);
        let bytes = without_length(marked(&frame, frontend));
        // Without segments it contradicts itself.
        for (segment, entries) in [(0, 0), (1000, 2)] {
            let outcome = bench.send_bytes(Hook::FromExternal, &bytes, segment);
            assert_eq!(outcome, Outcome { action: UNSPEC, bytes: bytes.clone() });
            assert_eq!(bench.entries(), entries);
        }
        let answer = Frame::new(proto, backend, client).flags(Flags::SynAck);
        bench.expect_forwarded(Hook::FromPod, answer, frontend, client);
    });
}

/// Another flow has taken its room.
#[test]
fn a_flow_that_was_lost_is_learned_again_from_its_next_mark() {
    for_each_kind_directly(|bench, net, proto| {
        let Case { client, frontend, backend } = here(net);
        let ask = Frame::new(proto, client, backend);
        assert_eq!(bench.send_marked(Hook::FromExternal, ask.clone(), frontend), UNSPEC);
        bench.evict(client, frontend, proto);
        assert_eq!(bench.send_marked(Hook::FromExternal, ask, frontend), UNSPEC);
        let answer = Frame::new(proto, backend, client).flags(Flags::SynAck);
        bench.expect_forwarded(Hook::FromPod, answer, frontend, client);
        assert_eq!(bench.entries(), 2);
    });
}

/// The client was dialled from there itself, by way of a Service here.
#[test]
fn a_mark_counts_more_than_an_answer_between_the_same_ends() {
    for_each_kind_directly(|bench, net, proto| {
        let Case { client, backend, .. } = here(net);
        let (service, caller) = (at(net.vip, 80), at(net.pod, 30080));
        let id = bench.backend(client, 0);
        bench.serve(service, proto, 0, &[id], &[]);
        bench.expect_forwarded(Hook::FromPod, Frame::new(proto, caller, service), caller, client);
        assert!(bench.has(client, caller, proto));
        let ask = Frame::new(proto, client, backend);
        assert_eq!(bench.send_marked(Hook::FromExternal, ask, caller), UNSPEC);
        let answer = Frame::new(proto, backend, client).flags(Flags::SynAck);
        bench.expect_forwarded(Hook::FromPod, answer, caller, client);
    });
}

/// Its frontend is a Service's here, too: it is charged with the connection.
#[test]
fn a_mark_of_a_service_that_is_known_here_is_that_services() {
    for_each_kind_directly(|bench, net, proto| {
        let case = Case { frontend: at(net.vip, 80), ..here(net) };
        let id = bench.backend(case.backend, LOCAL);
        bench.serve(case.frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
        let ask = Frame::new(proto, case.client, case.backend);
        for _ in 0..2 {
            assert_eq!(bench.send_marked(Hook::FromExternal, ask.clone(), case.frontend), UNSPEC);
        }
        let answer = Frame::new(proto, case.backend, case.client).flags(Flags::SynAck);
        bench.expect_forwarded(Hook::FromPod, answer.clone(), case.frontend, case.client);
        assert_eq!(bench.entries(), 2);

        // The other node has given the client's port to another backend since.
        let other = at(case.backend.ip(), 9090);
        let ask = Frame::new(proto, case.client, other);
        assert_eq!(bench.send_marked(Hook::FromExternal, ask, case.frontend), UNSPEC);
        bench.expect_forwarded(Hook::FromPod, answer.with(other, case.client), case.frontend, case.client);
    });
}

#[test]
fn xdp_leaves_to_tc_what_is_to_be_marked_and_sends_on_the_rest() {
    on_direct_bench(|bench| {
        bench.load_xdp();
        for net in [V4, V6] {
            for proto in [Proto::Tcp, Proto::Udp] {
                bench.clear();
                let Case { client, frontend, backend } = elsewhere(bench, net, proto, MASQ_OUTSIDE);
                let ask = |flags| Frame::new(proto, client, frontend).flags(flags);
                for _ in 0..2 {
                    bench.expect_xdp_passed(ask(Flags::Syn));
                    bench.expect_marked(ask(Flags::Syn), frontend, backend);
                }
                match proto {
                    Proto::Udp => bench.expect_xdp_passed(ask(Flags::Ack)),
                    _ => bench.expect_transmitted(ask(Flags::Ack), client, backend),
                }
                // An answer that comes this way, in its time and too late.
                let answer = Frame::new(proto, backend, client).flags(Flags::SynAck);
                bench.expect_transmitted(answer.clone(), frontend, client);
                bench.age(121);
                bench.expect_xdp_passed(answer);
                assert_eq!(bench.entries(), 0);
            }
        }
    });
}

#[test]
fn flows_that_come_back_this_way_go_on_as_without_it() {
    for_each_kind_directly(|bench, net, proto| {
        let Case { frontend, backend, .. } = elsewhere(bench, net, proto, MASQ_OUTSIDE);
        let client = at(net.pod, 40000);
        for (there, back) in [(Flags::Syn, Flags::SynAck), (Flags::Ack, Flags::Ack), (Flags::Fin, Flags::Fin)]
        {
            let ask = Frame::new(proto, client, frontend).flags(there);
            bench.expect_forwarded(Hook::FromPod, ask, client, backend);
            let answer = Frame::new(proto, backend, client).flags(back);
            bench.expect_forwarded(Hook::FromExternal, answer, frontend, client);
            bench.age(2);
        }
    });
}

#[test]
fn a_mark_on_what_is_for_another_host_teaches_nothing() {
    for_each_kind_directly(|bench, net, proto| {
        let case = here(net);
        let mut frame = Frame::new(proto, case.client, case.backend);
        frame.mac_to = [2, 0, 0, 0, 9, 1];
        let bytes = marked(&frame, case.frontend);
        let outcome = bench.send_bytes(Hook::FromExternal, &bytes, 0);
        assert_eq!(outcome, Outcome { action: UNSPEC, bytes });
        // Nor does a frame of another type.
        frame.mac_to = bench.mac(Hook::FromExternal);
        let mut bytes = marked(&frame, case.frontend);
        bytes[12..14].copy_from_slice(&[0x08, 0x06]);
        let outcome = bench.send_bytes(Hook::FromExternal, &bytes, 0);
        assert_eq!(outcome, Outcome { action: UNSPEC, bytes });
        nothing_was_learned(bench, proto, &case);
    });
}

/// The backend refuses a connection, or ends it, and the client dials again from the same port.
#[test]
fn a_port_that_is_used_again_is_learned_again() {
    for_each_kind_directly(|bench, net, proto| {
        if proto == Proto::Udp {
            return;
        }
        let Case { client, frontend, backend } = here(net);
        let ask = Frame::new(proto, client, backend);
        let answer = |flags| Frame::new(proto, backend, client).flags(flags);
        for end in [Flags::Rst, Flags::Fin] {
            assert_eq!(bench.send_marked(Hook::FromExternal, ask.clone(), frontend), UNSPEC);
            bench.expect_forwarded(Hook::FromPod, answer(Flags::SynAck), frontend, client);
            bench.expect_forwarded(Hook::FromPod, answer(end), frontend, client);
        }
        assert_eq!(bench.send_marked(Hook::FromExternal, ask.clone(), frontend), UNSPEC);
        bench.expect_forwarded(Hook::FromPod, answer(Flags::SynAck), frontend, client);
        assert_eq!(bench.entries(), 2);
    });
}

#[test]
fn one_port_of_a_client_serves_one_frontend_of_a_backend() {
    for_each_kind_directly(|bench, net, proto| {
        let Case { client, frontend, backend } = here(net);
        let ask = Frame::new(proto, client, backend);
        assert_eq!(bench.send_marked(Hook::FromExternal, ask.clone(), frontend), UNSPEC);
        let other = at(frontend.ip(), 30081);
        let before = bench.metric(Metric::SnatExhausted);
        assert_eq!(bench.send_marked(Hook::FromExternal, ask, other), SHOT);
        assert_eq!(bench.metric(Metric::SnatExhausted), before + 1);
        let answer = Frame::new(proto, backend, client).flags(Flags::Ack);
        bench.expect_forwarded(Hook::FromPod, answer, frontend, client);
    });
}

/// Whether answers of the backend keep its own name.
#[track_caller]
fn nothing_was_learned(bench: &mut Bench, proto: Proto, case: &Case) {
    assert_eq!(bench.entries(), 0);
    bench.expect_passed(Hook::FromPod, Frame::new(proto, case.backend, case.client).flags(Flags::Ack));
}

#[test]
fn marks_that_nobody_may_set_teach_nothing() {
    for_each_kind_directly(|bench, net, proto| {
        let case = here(net);
        let ask = |flags| Frame::new(proto, case.client, case.backend).flags(flags);
        // A pod's.
        assert_eq!(bench.send_marked(Hook::FromPod, ask(Flags::Syn), case.frontend), UNSPEC);
        nothing_was_learned(bench, proto, &case);
        if proto != Proto::Udp {
            for flags in [Flags::SynAck, Flags::Ack, Flags::Fin, Flags::Rst] {
                assert_eq!(bench.send_marked(Hook::FromExternal, ask(flags), case.frontend), UNSPEC);
            }
            nothing_was_learned(bench, proto, &case);
        }
        // The successor's.
        bench.configure(DRAINING, 20000..=29999);
        assert_eq!(bench.send_marked(Hook::FromExternal, ask(Flags::Syn), case.frontend), UNSPEC);
        nothing_was_learned(bench, proto, &case);
    });
}

#[test]
fn a_broken_mark_teaches_nothing() {
    for_each_kind_directly(|bench, net, proto| {
        let case = here(net);
        let mut frame = Frame::new(proto, case.client, case.backend);
        frame.mac_to = bench.mac(Hook::FromExternal);
        let bytes = marked(&frame, case.frontend);
        let option = if net.vip.is_ipv4() { 34 } else { 56 };
        let header = if net.vip.is_ipv4() { vec![] } else { vec![(option - 1, 3), (option + 1, 16)] };
        for (at, value) in [(option, 1), (option + 1, 4)].into_iter().chain(header) {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            assert_eq!(bench.send_bytes(Hook::FromExternal, &bytes, 0).action, UNSPEC);
        }
        // Cut anywhere.
        for length in option..bytes.len() - 1 {
            bench.send_bytes(Hook::FromExternal, &bytes[..length], 0);
        }
        nothing_was_learned(bench, proto, &case);
    });
}

#[test]
fn where_it_is_off_nothing_is_marked_or_learned() {
    for_each_kind(|bench, net, proto| {
        let case = here(net);
        let ask = Frame::new(proto, case.client, case.backend);
        assert_eq!(bench.send_marked(Hook::FromExternal, ask, case.frontend), UNSPEC);
        nothing_was_learned(bench, proto, &case);
    });
}
