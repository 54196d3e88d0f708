//! Source ranges: who may reach a Service.

use crate::{
    bench::{Hook, Metric, SOURCE_NODE, SOURCE_RANGES, for_each_kind},
    frame::{Flags, Frame, Proto},
    nets::at,
};

#[test]
fn only_clients_in_a_range_are_served() {
    for_each_kind(|bench, net, proto| {
        let (frontend, backend) = (at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        let service = bench.serve(frontend, proto, SOURCE_RANGES, &[id], &[id]);
        let outside = Frame::new(proto, at(net.outside, 40_000), frontend);
        let pod = Frame::new(proto, at(net.pod, 40_000), frontend);

        // None at all admits nobody; one of another Service does not count.
        bench.source_range(service | 1 << 31, net.outside, 0);
        bench.expect_dropped(Hook::FromExternal, outside.clone(), Metric::SourceRange);
        bench.expect_dropped(Hook::FromPod, pod.clone(), Metric::SourceRange);
        assert_eq!(bench.entries(), 0);

        let all = if net.vip.is_ipv4() { 32 } else { 128 };
        bench.source_range(service, net.outside, all);
        bench.expect_forwarded(Hook::FromExternal, outside, at(net.outside, 40_000), backend);
        bench.expect_dropped(Hook::FromPod, pod.clone(), Metric::SourceRange);
        bench.source_range(service, net.pod, 16);
        bench.expect_forwarded(Hook::FromPod, pod, at(net.pod, 40_000), backend);
    });
}

#[test]
fn the_node_is_admitted_by_a_flag_and_nobody_else() {
    for_each_kind(|bench, net, proto| {
        let (frontend, backend) = (at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, SOURCE_RANGES | SOURCE_NODE, &[id], &[id]);
        let other = at(net.vip, 81);
        bench.serve(other, proto, SOURCE_RANGES, &[id], &[id]);
        for node in [net.node, net.node_inner] {
            let frame = Frame::new(proto, at(node, 40_000), frontend);
            bench.expect_forwarded(Hook::FromPod, frame, at(node, 40_000), backend);
            let without = Frame::new(proto, at(node, 40_001), other);
            bench.expect_dropped(Hook::FromPod, without, Metric::SourceRange);
        }
        let outside = Frame::new(proto, at(net.outside, 40_000), frontend);
        bench.expect_dropped(Hook::FromExternal, outside, Metric::SourceRange);
    });
}

#[test]
fn ranges_come_before_the_answers_of_an_empty_service() {
    for_each_kind(|bench, net, proto| {
        let frontend = at(net.vip, 80);
        let service = bench.serve(frontend, proto, SOURCE_RANGES, &[], &[]);
        bench.source_range(service, net.outside, 24);
        let pod = Frame::new(proto, at(net.pod, 40_000), frontend);
        bench.expect_dropped(Hook::FromPod, pod, Metric::SourceRange);
        let outside = Frame::new(proto, at(net.outside, 40_000), frontend);
        bench.expect_answered(Hook::FromExternal, outside, Frame::refusal);
    });
}

#[test]
fn a_client_that_is_no_longer_admitted_keeps_its_connections_and_opens_no_more() {
    for_each_kind(|bench, net, proto| {
        let (client, frontend, backend) = (at(net.outside, 40_000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        let service = bench.serve(frontend, proto, SOURCE_RANGES, &[id], &[id]);
        bench.source_range(service, net.outside, 24);
        bench.expect_forwarded(Hook::FromExternal, Frame::new(proto, client, frontend), client, backend);
        bench.remove_source_range(service, net.outside, 24);
        let more = Frame::new(proto, client, frontend).flags(Flags::Ack);
        if proto != Proto::Udp {
            bench.expect_forwarded(Hook::FromExternal, more, client, backend);
        } else {
            bench.expect_dropped(Hook::FromExternal, more, Metric::SourceRange);
            assert_eq!(bench.entries(), 0);
        }
        let again = Frame::new(proto, client, frontend);
        bench.expect_dropped(Hook::FromExternal, again, Metric::SourceRange);
    });
}
