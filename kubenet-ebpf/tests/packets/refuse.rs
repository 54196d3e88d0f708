//! Frontends without backends.

use crate::{
    bench::{Bench, DRAINING, EXTERNAL_DROP, Hook, INTERNAL_DROP, Metric, for_each_kind},
    frame::{Flags, Frame, Proto},
    nets::{Net, at},
};

#[track_caller]
fn expect_refused(bench: &mut Bench, hook: Hook, frame: Frame) {
    let before = bench.metric(Metric::Rejected);
    bench.expect_answered(hook, frame, Frame::refusal);
    assert_eq!(bench.metric(Metric::Rejected), before + 1);
}

fn clients(net: Net) -> [(Hook, std::net::SocketAddr); 2] {
    [(Hook::FromPod, at(net.pod, 40000)), (Hook::FromExternal, at(net.outside, 40000))]
}

#[test]
fn the_client_is_told_at_once() {
    for_each_kind(|bench, net, proto| {
        bench.serve(at(net.vip, 80), proto, 0, &[], &[]);
        for (hook, client) in clients(net) {
            let frame = Frame::new(proto, client, at(net.vip, 80));
            expect_refused(bench, hook, frame.clone());
            // Of every length, also one that is shorter than the answer.
            expect_refused(bench, hook, frame.clone().payload([]));
            expect_refused(bench, hook, frame.clone().payload([1]));
            if proto == Proto::Tcp {
                // Each of its flags counts in what is acknowledged.
                expect_refused(bench, hook, frame.clone().flags(Flags::SynFin));
            }
            expect_refused(bench, hook, frame.payload(vec![7; 1400]));
        }
        assert_eq!(bench.entries(), 0);
    });
}

#[test]
fn options_do_not_confuse_the_answer() {
    for_each_kind(|bench, net, proto| {
        bench.serve(at(net.vip, 80), proto, 0, &[], &[]);
        let mut frame = Frame::new(proto, at(net.pod, 40000), at(net.vip, 80));
        frame.tcp_options = vec![2, 4, 5, 180, 4, 2, 1, 3, 3, 7, 1, 0];
        expect_refused(bench, Hook::FromPod, frame.clone());
        if net.vip.is_ipv4() {
            for len in [4, 12, 40] {
                frame.ip_options = vec![1; len];
                expect_refused(bench, Hook::FromPod, frame.clone());
            }
        }
    });
}

#[test]
fn a_policy_that_drops_does_so_by_side() {
    for_each_kind(|bench, net, proto| {
        let [(pod_hook, pod), (outside_hook, outside)] = clients(net);
        bench.serve(at(net.vip, 80), proto, INTERNAL_DROP, &[], &[]);
        bench.serve(at(net.vip, 81), proto, EXTERNAL_DROP, &[], &[]);
        let frame = |client, port| Frame::new(proto, client, at(net.vip, port));

        bench.expect_dropped(pod_hook, frame(pod, 80), Metric::NoLocalBackend);
        expect_refused(bench, outside_hook, frame(outside, 80));
        expect_refused(bench, pod_hook, frame(pod, 81));
        bench.expect_dropped(outside_hook, frame(outside, 81), Metric::NoLocalBackend);
    });
}

#[test]
fn a_packet_with_extension_headers_is_refused_without_them() {
    for_each_kind(|bench, net, proto| {
        if net.vip.is_ipv4() {
            return;
        }
        bench.serve(at(net.vip, 80), proto, 0, &[], &[]);
        let mut frame = Frame::new(proto, at(net.pod, 40000), at(net.vip, 80));
        frame.extensions = true;
        expect_refused(bench, Hook::FromPod, frame);
    });
}

#[test]
fn what_this_node_sends_to_a_service_that_drops_does_not_leave() {
    for_each_kind(|bench, net, proto| {
        bench.serve(at(net.vip, 80), proto, INTERNAL_DROP, &[], &[]);
        bench.serve(at(net.vip, 81), proto, EXTERNAL_DROP, &[], &[]);
        let frame = |port| Frame::new(proto, at(net.node, 40000), at(net.vip, port));
        bench.expect_dropped(Hook::ToDevice, frame(80), Metric::NoLocalBackend);
        bench.expect_passed(Hook::ToDevice, frame(81));
        bench.expect_passed(Hook::ToDevice, frame(82));
    });
}

#[test]
fn ports_of_a_cluster_ip_that_nobody_serves_are_refused() {
    for_each_kind(|bench, net, proto| {
        let id = bench.backend(at(net.pod_there, 8080), 0);
        bench.serve(at(net.vip, 80), proto, 0, &[id], &[id]);
        let other = if proto == Proto::Tcp { Proto::Udp } else { Proto::Tcp };
        let asked =
            |client| [Frame::new(proto, client, at(net.vip, 81)), Frame::new(other, client, at(net.vip, 80))];
        for (hook, client) in clients(net) {
            for frame in asked(client) {
                bench.expect_passed(hook, frame);
            }
        }
        bench.cluster_ip(net.vip);
        for (hook, client) in clients(net) {
            for frame in asked(client) {
                expect_refused(bench, hook, frame);
            }
            bench.expect_forwarded(
                hook,
                Frame::new(proto, client, at(net.vip, 80)),
                client,
                at(net.pod_there, 8080),
            );
            // Not a new connection: another datapath may know it.
            let established = Frame::new(Proto::Tcp, client, at(net.vip, 81)).flags(Flags::Ack);
            bench.expect_passed(hook, established);
            // Other addresses are not ours.
            bench.expect_passed(hook, Frame::new(proto, client, at(net.node, 81)));
        }
        bench.configure(DRAINING, 20000..=29999);
        let late = Frame::new(proto, at(net.pod, 40001), at(net.vip, 81));
        bench.expect_passed(Hook::FromPod, late);
    });
}
