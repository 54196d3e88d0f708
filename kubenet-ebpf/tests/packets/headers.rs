//! Headers of every shape: options, extensions, and what is cut off.

use crate::{
    bench::{Hook, Metric, REDIRECT, SHOT, UNSPEC, for_each_kind},
    frame::{Flags, Frame, L3, Proto},
    nets::{Net, at},
};

#[test]
fn options_and_extension_headers_are_kept() {
    for_each_kind(|bench, net, proto| {
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[]);
        let mut frame = Frame::new(proto, client, frontend);
        frame.tcp_options = vec![2, 4, 5, 180, 4, 2, 1, 3, 3, 7, 1, 0];
        bench.expect_forwarded(Hook::FromPod, frame.clone(), client, backend);
        if net.vip.is_ipv6() {
            frame.extensions = true;
            bench.expect_forwarded(Hook::FromPod, frame, client, backend);
        } else {
            for len in (4..=40).step_by(4) {
                frame.ip_options = vec![1; len];
                bench.expect_forwarded(Hook::FromPod, frame.clone(), client, backend);
            }
        }
    });
}

/// The node is a router on the way: it answers in its own name, as the stack does.
#[test]
fn a_packet_at_the_end_of_its_hops_is_answered() {
    for_each_kind(|bench, net, proto| {
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[]);
        let frame = Frame::new(proto, client, frontend);
        for ttl in [1, 0, 1] {
            let before = bench.metric(Metric::Route);
            let quote = frame.clone().ttl(ttl);
            let expected = |frame: &Frame| {
                let quoted = &frame.bytes()[L3..frame.l4() + 8];
                frame.with(client, at(net.node, 80)).icmp_about(quoted, (11, 0), (3, 0), 0)
            };
            bench.expect_answered(Hook::FromPod, quote, expected);
            assert_eq!(bench.metric(Metric::Route), before + 1);
        }
        bench.expect_forwarded(Hook::FromPod, frame.clone().ttl(2), client, backend);
        bench.expect_forwarded(Hook::FromPod, frame.clone().ttl(255), client, backend);
        // Of a known flow, too.
        let ack = frame.flags(Flags::Ack).ttl(1);
        let outcome = bench.send(Hook::FromPod, &mut ack.clone());
        assert_eq!(outcome.action, REDIRECT);
        assert_eq!(outcome.bytes[..6], ack.mac_from);
    });
}

/// No reply could reach them, and the stack takes nothing from them, either.
#[test]
fn nobody_is_served_at_an_address_that_no_client_has() {
    for_each_kind(|bench, net, proto| {
        let nobodies: &[&str] = if net.vip.is_ipv4() {
            &[
                "0.0.0.0",
                "0.1.2.3",
                "127.0.0.1",
                "127.9.9.9",
                "224.0.0.1",
                "239.255.255.255",
                "255.255.255.255",
            ]
        } else {
            &["::", "::1", "ff02::1", "ff05::2", "::ffff:10.1.0.5"]
        };
        let somebodies: &[&str] = if net.vip.is_ipv4() {
            &["1.0.0.1", "126.255.255.255", "128.0.0.1", "223.255.255.255"]
        } else {
            &["::2", "::1:0:0", "0:0:1::1", "0:1::1", "2001:db8:ffff::1", "fe00::1"]
        };
        let (frontend, backend) = (at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[id]);
        bench.cluster_ip(net.vip);
        for hook in [Hook::FromPod, Hook::FromExternal] {
            for nobody in nobodies {
                let from = at(nobody.parse().unwrap(), 40000);
                bench.expect_dropped(hook, Frame::new(proto, from, frontend), Metric::Spoofed);
                // Neither are they told that there is no such port.
                bench.expect_dropped(hook, Frame::new(proto, from, at(net.vip, 81)), Metric::Spoofed);
                // What is not ours is the stack's.
                bench.expect_passed(hook, Frame::new(proto, from, at(net.outside, 80)));
            }
            assert_eq!(bench.entries(), 0);
        }
        for somebody in somebodies {
            let from = at(somebody.parse().unwrap(), 40000);
            bench.expect_forwarded(Hook::FromPod, Frame::new(proto, from, frontend), from, backend);
        }
    });
}

#[test]
fn a_backend_without_a_route_is_a_counted_drop() {
    for_each_kind(|bench, net, proto| {
        let id = bench.backend(at(net.lost, 8080), 0);
        bench.serve(at(net.vip, 80), proto, 0, &[id], &[]);
        let frame = Frame::new(proto, at(net.pod, 40000), at(net.vip, 80));
        bench.expect_dropped(Hook::FromPod, frame, Metric::Route);
    });
}

/// The kernel refuses to run a program on less than a network header.
fn shortest(net: Net) -> usize {
    if net.vip.is_ipv4() { L3 + 20 } else { L3 + 40 }
}

/// Whatever is cut off, a packet is passed as it is or translated with right checksums, at every hook.
#[test]
fn packets_cut_at_any_length_are_never_translated_wrongly() {
    for_each_kind(|bench, net, proto| {
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let empty = at(net.vip, 81);
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[]);
        bench.serve(empty, proto, 0, &[], &[]);
        bench.expect_forwarded(Hook::FromPod, Frame::new(proto, client, frontend), client, backend);

        for extended in [false, true] {
            for (hook, from, to) in [
                (Hook::FromPod, client, frontend),
                (Hook::FromPod, client, empty),
                (Hook::FromExternal, backend, client),
                (Hook::ToDevice, backend, client),
            ] {
                let mut frame = Frame::new(proto, from, to).flags(Flags::Ack);
                frame.tcp_options = vec![1; 12];
                if extended && net.vip.is_ipv4() {
                    frame.ip_options = vec![1; 40];
                }
                frame.extensions = extended;
                frame.mac_to = bench.mac(hook);
                let bytes = frame.bytes();
                for len in shortest(net)..bytes.len() {
                    let cut = &bytes[..len];
                    let outcome = bench.send_bytes(hook, cut, 0);
                    assert_eq!(outcome.action, UNSPEC, "{hook:?} cut to {len}");
                    assert_eq!(outcome.bytes, cut, "{hook:?} cut to {len}");
                }
            }
        }
    });
}

/// Padding after the packet is not part of it.
#[test]
fn padding_is_left_alone() {
    for_each_kind(|bench, net, proto| {
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[]);
        bench.serve(at(net.vip, 81), proto, 0, &[], &[]);
        let mut frame = Frame::new(proto, client, frontend).payload([]);
        frame.mac_to = bench.mac(Hook::FromPod);
        let padding = [0xaa; 9];
        let padded = |frame: &Frame| [&frame.bytes()[..], &padding].concat();

        let outcome = bench.send_bytes(Hook::FromPod, &padded(&frame), 0);
        assert_eq!((outcome.action, outcome.bytes), (REDIRECT, padded(&frame.forwarded(client, backend))));

        frame.to = at(net.vip, 81);
        let outcome = bench.send_bytes(Hook::FromPod, &padded(&frame), 0);
        let answer = frame.refusal();
        assert_eq!((outcome.action, outcome.bytes), (REDIRECT, answer));
    });
}

/// Headers that contradict themselves.
#[test]
fn broken_headers_pass_untouched() {
    for_each_kind(|bench, net, proto| {
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[]);
        let mut frame = Frame::new(proto, client, frontend);
        frame.mac_to = bench.mac(Hook::FromPod);
        let good = frame.bytes();
        let mut broken: Vec<(usize, u8)> = Vec::new();
        if net.vip.is_ipv4() {
            // Version, header length, total length.
            broken.extend([(14, 0x65), (14, 0x44), (14, 0x4f), (16, 0xff), (17, 19)]);
        } else {
            // Version, payload length, too many extension headers.
            broken.extend([(14, 0x40), (18, 0xff), (19, 3)]);
        }
        if proto == Proto::Tcp {
            // Data offset: too short, longer than the packet.
            broken.push((frame.l4() + 12, 0x40));
            broken.push((frame.l4() + 12, 0xf0));
        }
        for (at, byte) in broken {
            let mut bytes = good.clone();
            bytes[at] = byte;
            let outcome = bench.send_bytes(Hook::FromPod, &bytes, 0);
            assert_eq!((outcome.action, outcome.bytes), (UNSPEC, bytes), "byte {at} = {byte:#x}");
        }
        assert_eq!(bench.entries(), 0);
    });
}

/// Random bytes in every header: no crash, and nothing leaves by another device but whole packets.
#[test]
fn random_damage_is_survived() {
    for_each_kind(|bench, net, proto| {
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[id]);
        let mut frame = Frame::new(proto, client, frontend);
        frame.mac_to = bench.mac(Hook::FromPod);
        let good = frame.bytes();
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize
        };
        for _ in 0..3000 {
            let mut bytes = good.clone();
            for _ in 0..1 + random() % 4 {
                let at = L3 + random() % (bytes.len() - L3);
                bytes[at] = random() as u8;
            }
            let shortest = shortest(net);
            bytes.truncate(shortest + random() % (bytes.len() - shortest + 1));
            let outcome = bench.send_bytes(Hook::FromPod, &bytes, 0);
            match outcome.action {
                UNSPEC => assert_eq!(outcome.bytes, bytes),
                REDIRECT => assert_eq!(outcome.bytes.len(), bytes.len()),
                action => assert_eq!(action, SHOT),
            }
        }
    });
}
