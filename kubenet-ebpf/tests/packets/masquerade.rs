//! Flows that are made to come from this node. Those of SCTP keep their port, see there.

use std::net::{IpAddr, SocketAddr};

use crate::{
    bench::{Bench, Hook, LOCAL, MASQ_OUTSIDE, MASQ_PODS, Metric, REDIRECT, SNAT6_SECOND, for_tcp_and_udp},
    frame::{Flags, Frame, Proto},
    nets::{Net, at},
};

/// Sends a first packet and returns the port that the node uses for it.
#[track_caller]
fn open(bench: &mut Bench, net: Net, hook: Hook, frame: Frame, backend: SocketAddr) -> u16 {
    open_from(bench, net.node, hook, frame, backend)
}

/// The same, with another address than the node's.
#[track_caller]
fn open_from(bench: &mut Bench, source: IpAddr, hook: Hook, mut frame: Frame, backend: SocketAddr) -> u16 {
    let outcome = bench.send(hook, &mut frame);
    assert_eq!(outcome.action, REDIRECT);
    let port = u16::from_be_bytes([outcome.bytes[frame.l4()], outcome.bytes[frame.l4() + 1]]);
    assert_eq!(outcome.bytes, frame.forwarded(at(source, port), backend).bytes());
    port
}

/// Opens, answers, goes on.
fn round_trip(
    bench: &mut Bench,
    net: Net,
    proto: Proto,
    hooks: [Hook; 2],
    client: SocketAddr,
    to: [SocketAddr; 2],
) {
    let [frontend, backend] = to;
    let port = open(bench, net, hooks[0], Frame::new(proto, client, frontend), backend);
    assert!((20000..30000).contains(&port));
    let source = at(net.node, port);
    let answer = Frame::new(proto, backend, source).flags(Flags::SynAck);
    bench.expect_forwarded(hooks[1], answer, frontend, client);
    let more = Frame::new(proto, client, frontend).flags(Flags::Ack);
    bench.expect_forwarded(hooks[0], more, source, backend);
}

#[test]
fn outside_traffic_to_another_node_comes_from_this_one() {
    for_tcp_and_udp(|bench, net, proto| {
        let (frontend, backend) = (at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
        let hooks = [Hook::FromExternal, Hook::FromExternal];
        round_trip(bench, net, proto, hooks, at(net.outside, 40000), [frontend, backend]);
        // So it does when the address is in the other place.
        bench.configure(SNAT6_SECOND, 20000..=29999);
        round_trip(bench, net, proto, hooks, at(net.outside, 40001), [frontend, backend]);
        // Pods are not meant.
        let client = at(net.pod, 40000);
        bench.expect_forwarded(Hook::FromPod, Frame::new(proto, client, frontend), client, backend);
    });
}

#[test]
fn s3_what_comes_in_where_pods_are_is_a_pods() {
    for_tcp_and_udp(|bench, net, proto| {
        let (frontend, backend) = (at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
        // No pod has this address, and the other interface's packets are nobody's.
        let client = at(net.outside, 40000);
        bench.pods_behind(Hook::FromPod);
        bench.expect_forwarded(Hook::FromPod, Frame::new(proto, client, frontend), client, backend);
        let other = Frame::new(proto, at(net.outside, 40001), frontend);
        open(bench, net, Hook::FromExternal, other, backend);
        // Fragments, too.
        let size = 64;
        let mut large = Frame::new(proto, at(net.outside, 40002), frontend).payload(vec![7; 300]);
        large.mac_to = bench.mac(Hook::FromPod);
        let expected = large.forwarded(at(net.outside, 40002), backend);
        let outcome = bench.send_bytes(Hook::FromPod, &large.fragments(size)[0], 0);
        assert_eq!((outcome.action, outcome.bytes), (REDIRECT, expected.fragments(size).remove(0)));
    });
}

#[test]
fn pods_are_masqueraded_when_told_so() {
    for_tcp_and_udp(|bench, net, proto| {
        let (frontend, backend) = (at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, MASQ_PODS, &[id], &[id]);
        let hooks = [Hook::FromPod, Hook::FromExternal];
        round_trip(bench, net, proto, hooks, at(net.pod, 40000), [frontend, backend]);
    });
}

#[test]
fn a_backend_reaches_itself() {
    for_tcp_and_udp(|bench, net, proto| {
        let (frontend, backend) = (at(net.vip, 80), at(net.pod_here, 8080));
        let id = bench.backend(backend, LOCAL);
        bench.serve(frontend, proto, 0, &[id], &[id]);
        let hooks = [Hook::FromPod, Hook::FromPod];
        round_trip(bench, net, proto, hooks, at(net.pod_here, 40000), [frontend, backend]);
    });
}

#[test]
fn s6_no_free_port_is_a_counted_drop_and_ports_of_ended_flows_are_used_again() {
    for_tcp_and_udp(|bench, net, proto| {
        let (frontend, backend) = (at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
        bench.configure(0, 20000..=20001);
        let client = |port| Frame::new(proto, at(net.outside, port), frontend);
        let first = open(bench, net, Hook::FromExternal, client(1), backend);
        let second = open(bench, net, Hook::FromExternal, client(2), backend);
        assert_ne!(first, second);
        bench.expect_dropped(Hook::FromExternal, client(3), Metric::SnatExhausted);
        assert_eq!(bench.entries(), 4);

        match proto {
            // Closed by a reset.
            Proto::Tcp => {
                let reset = Frame::new(proto, backend, at(net.node, first)).flags(Flags::Rst);
                bench.expect_forwarded(Hook::FromExternal, reset, frontend, at(net.outside, 1));
            }
            // Silent for long.
            _ => bench.age(31),
        }
        bench.age(2);
        bench.configure(0, first..=first);
        let third = open(bench, net, Hook::FromExternal, client(3), backend);
        assert_eq!(third, first);
        assert_eq!(bench.entries(), 4);
    });
}

/// Better one that may be refused for a second than none.
#[test]
fn s6_the_only_port_is_given_to_another_as_soon_as_its_connection_has_ended() {
    for_tcp_and_udp(|bench, net, proto| {
        if proto == Proto::Udp {
            return;
        }
        let (frontend, backend) = (at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
        bench.configure(0, 20000..=20000);
        let client = |port| Frame::new(proto, at(net.outside, port), frontend);
        open(bench, net, Hook::FromExternal, client(1), backend);
        let reset = Frame::new(proto, backend, at(net.node, 20000)).flags(Flags::Rst);
        bench.expect_forwarded(Hook::FromExternal, reset, frontend, at(net.outside, 1));
        open(bench, net, Hook::FromExternal, client(2), backend);
    });
}

#[test]
fn s6_the_port_of_a_connection_that_ended_a_moment_ago_is_the_last_to_be_taken() {
    let proto = Proto::Tcp;
    for_tcp_and_udp(|bench, net, each| {
        if each != proto {
            return;
        }
        let mut taken = 0;
        for round in 0..32 {
            let (frontend, backend) = (at(net.vip, 80 + round), at(net.pod_there, 8080 + round));
            let id = bench.backend(backend, 0);
            bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
            let client = |port| Frame::new(proto, at(net.outside, port), frontend);
            let [before, just_now] = [(1, 20000), (2, 20001)].map(|(i, port)| {
                bench.configure(0, port..=port);
                open(bench, net, Hook::FromExternal, client(i), backend)
            });
            bench.configure(0, before..=just_now);
            let end = |bench: &mut Bench, i, port| {
                let fin = Frame::new(proto, backend, at(net.node, port)).flags(Flags::Fin);
                bench.expect_forwarded(Hook::FromExternal, fin, frontend, at(net.outside, i));
                let fin = client(i).flags(Flags::Fin);
                bench.expect_forwarded(Hook::FromExternal, fin, at(net.node, port), backend);
            };
            // Two ticks ago, and one.
            end(bench, 1, before);
            bench.age(1);
            end(bench, 2, just_now);
            bench.age(1);
            taken += u32::from(open(bench, net, Hook::FromExternal, client(3), backend) == just_now);
        }
        // Each of seven random tries has to miss the other port for that.
        assert!(taken < 8, "{taken} of 32");
    });
}

#[test]
fn s6_exhausted_ports_drop_new_flows_and_leave_the_others_alone() {
    for_tcp_and_udp(|bench, net, proto| {
        let (frontend, backend) = (at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
        bench.configure(0, 20000..=20001);
        let client = |port| at(net.outside, port);
        let ports: Vec<u16> = (1..=2)
            .map(|i| open(bench, net, Hook::FromExternal, Frame::new(proto, client(i), frontend), backend))
            .collect();
        for port in 100..200 {
            bench.expect_dropped(
                Hook::FromExternal,
                Frame::new(proto, client(port), frontend),
                Metric::SnatExhausted,
            );
        }
        for (i, port) in (1..).zip(ports) {
            let answer = Frame::new(proto, backend, at(net.node, port)).flags(Flags::SynAck);
            bench.expect_forwarded(Hook::FromExternal, answer, frontend, client(i));
            let more = Frame::new(proto, client(i), frontend).flags(Flags::Ack);
            bench.expect_forwarded(Hook::FromExternal, more, at(net.node, port), backend);
        }
        // To another backend the same ports are free, and so they are when nobody is to be masqueraded.
        let other = at(net.pod_there, 9090);
        let id = bench.backend(other, 0);
        bench.serve(at(net.vip, 81), proto, MASQ_OUTSIDE, &[id], &[id]);
        let frame = Frame::new(proto, client(3), at(net.vip, 81));
        assert!((20000..=20001).contains(&open(bench, net, Hook::FromExternal, frame, other)));
        let pod = at(net.pod, 20000);
        bench.expect_forwarded(Hook::FromPod, Frame::new(proto, pod, frontend), pod, backend);
        assert_eq!(bench.entries(), 8);
    });
}

#[test]
fn one_port_of_a_client_on_the_way_to_one_backend_by_two_frontends() {
    for_tcp_and_udp(|bench, net, proto| {
        let (one, two, backend) = (at(net.vip, 80), at(net.vip, 81), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(one, proto, 0, &[id], &[id]);
        bench.serve(two, proto, 0, &[id], &[id]);
        let client = at(net.pod, 40000);
        bench.expect_forwarded(Hook::FromPod, Frame::new(proto, client, one), client, backend);
        // The address is the client's still: it need not be another.
        let port = open_from(bench, net.pod, Hook::FromPod, Frame::new(proto, client, two), backend);

        let answer = |to| Frame::new(proto, backend, to).flags(Flags::Ack);
        bench.expect_forwarded(Hook::FromExternal, answer(client), one, client);
        bench.expect_forwarded(Hook::FromExternal, answer(at(net.pod, port)), two, client);
    });
}

#[test]
fn a_second_frontend_takes_over_the_clients_port_when_the_first_flow_has_ended() {
    for_tcp_and_udp(|bench, net, proto| {
        let (one, two, backend) = (at(net.vip, 80), at(net.vip, 81), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(one, proto, 0, &[id], &[id]);
        bench.serve(two, proto, 0, &[id], &[id]);
        let client = at(net.pod, 40000);
        bench.expect_forwarded(Hook::FromPod, Frame::new(proto, client, one), client, backend);
        match proto {
            Proto::Tcp => {
                let fin = Frame::new(proto, client, one).flags(Flags::Fin);
                bench.expect_forwarded(Hook::FromPod, fin, client, backend);
                let fin = Frame::new(proto, backend, client).flags(Flags::Fin);
                bench.expect_forwarded(Hook::FromExternal, fin, one, client);
            }
            _ => bench.age(121),
        }
        bench.expect_forwarded(Hook::FromPod, Frame::new(proto, client, two), client, backend);
        let answer = Frame::new(proto, backend, client).flags(Flags::SynAck);
        bench.expect_forwarded(Hook::FromExternal, answer, two, client);
        assert_eq!(bench.entries(), 2);
    });
}

#[test]
fn ports_of_all_instances_serve_when_the_own_ones_run_out() {
    for_tcp_and_udp(|bench, net, proto| {
        let (frontend, backend) = (at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
        bench.configure_shared(0, 20000..=20000, 25000..=25999);
        let client = |port| Frame::new(proto, at(net.outside, port), frontend);
        assert_eq!(open(bench, net, Hook::FromExternal, client(1), backend), 20000);
        for i in 2..10 {
            assert!((25000..=25999).contains(&open(bench, net, Hook::FromExternal, client(i), backend)));
        }
    });
}
