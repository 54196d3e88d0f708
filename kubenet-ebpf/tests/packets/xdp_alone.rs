//! The XDP program without those of TC behind it: what stays on the node is the stack's, translated.

use crate::{
    bench::{Hook, LOCAL, MASQ_OUTSIDE, Metric, Outcome, REDIRECT},
    frame::{Flags, Frame, Proto},
    nets::at,
    xdp::{DROP, PASS, begin, for_each_alone, serve},
};

#[test]
fn what_stays_here_is_translated_and_passed_to_the_stack() {
    for_each_alone(|bench, net, proto| {
        let (client, frontend, backend) = (at(net.outside, 40000), at(net.vip, 80), at(net.pod_here, 8080));
        let id = bench.backend(backend, LOCAL);
        bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
        for (flags, ttl) in [(Flags::Syn, 64), (Flags::Ack, 64), (Flags::Ack, 64), (Flags::Ack, 1)] {
            let mut frame = Frame::new(proto, client, frontend).flags(flags).ttl(ttl);
            let outcome = bench.send_xdp(&mut frame);
            // A hop less is the stack's to count.
            let bytes = frame.with(client, backend).bytes();
            assert_eq!(outcome, Outcome { action: PASS, bytes });
        }
        assert_eq!(bench.entries(), 2);
    });
}

#[test]
fn what_leaves_again_is_sent_on_and_no_packet_of_a_next_hop_is_the_stacks() {
    for_each_alone(|bench, net, proto| {
        let ends @ [client, frontend, backend] = serve(bench, net, proto, net.pod_there, 0);
        let node = begin(bench, proto, ends);
        for _ in 0..3 {
            let ack = Frame::new(proto, client, frontend).flags(Flags::Ack);
            bench.expect_transmitted(ack, node, backend);
            bench.age(10);
            if proto == Proto::Tcp {
                let answer = Frame::new(proto, backend, node).flags(Flags::Ack);
                bench.expect_transmitted(answer, frontend, client);
            }
        }
    });
}

/// With its own address as the source, the stack would drop it without a word.
#[test]
fn what_is_masqueraded_and_cannot_leave_is_dropped_and_counted() {
    for_each_alone(|bench, net, proto| {
        let [client, frontend, _] = serve(bench, net, proto, net.lost, 0);
        let before = bench.metric(Metric::Route);
        let outcome = bench.send_xdp(&mut Frame::new(proto, client, frontend));
        assert_eq!((outcome.action, bench.metric(Metric::Route)), (DROP, before + 1));
    });
}

#[test]
fn a_service_without_backends_is_dropped_and_counted_as_refused() {
    for_each_alone(|bench, net, proto| {
        bench.serve(at(net.vip, 80), proto, 0, &[], &[]);
        bench.listen(Some(100), None, 0);
        bench.events("events");
        let before = bench.metric(Metric::Rejected);
        let outcome = bench.send_xdp(&mut Frame::new(proto, at(net.outside, 40000), at(net.vip, 80)));
        assert_eq!((outcome.action, bench.metric(Metric::Rejected)), (DROP, before + 1));
        let events = bench.events("events");
        assert_eq!(events.len(), 1);
        assert_eq!(events[0][..4], [2, if net.vip.is_ipv4() { 4 } else { 6 }, proto.number(), 2]);
    });
}

#[test]
fn with_another_device_as_its_way_a_packet_is_the_stacks() {
    for_each_alone(|bench, net, proto| {
        // A client whose answers leave by the pod's interface.
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[id]);
        let mut syn = Frame::new(proto, client, frontend);
        assert_eq!(bench.send(Hook::FromPod, &mut syn).action, REDIRECT);
        let mut answer = Frame::new(proto, backend, client).flags(Flags::SynAck);
        let outcome = bench.send_xdp(&mut answer);
        assert_eq!(outcome, Outcome { action: PASS, bytes: answer.with(frontend, client).bytes() });
    });
}
