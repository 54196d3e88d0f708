//! Real frames through an external device: what leaves it has whole checksums, whatever state they came in.

use std::net::SocketAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use crate::{
    bench::{Bench, Hook, for_each_kind_on_tap},
    frame::{Flags, Frame, L3, Proto},
    nets::{Net, at},
    tap::{Offload, Tap},
};

/// A port that no other traffic has.
const PORT: u16 = 0xbeef;

/// The gateway, where everybody is in these tests.
pub const GATEWAY: [u8; 6] = [2, 0, 0, 0, 2, 2];

/// The checksum as a sender leaves it that has the device complete it: the sum of the pseudo header.
fn partial(frame: &Frame) -> (Vec<u8>, Offload) {
    let mut bytes = frame.bytes();
    let offset = if frame.proto == Proto::Tcp { 16 } else { 6 };
    let l4 = frame.l4();
    let sum = frame.pseudo_sum(frame.proto.number(), bytes.len() - l4);
    bytes[l4 + offset..l4 + offset + 2].copy_from_slice(&sum.to_be_bytes());
    (bytes, Offload { checksum: Some((l4 as u16, offset as u16)), segments: None })
}

fn frame(bench: &Bench, proto: Proto, from: SocketAddr, to: SocketAddr) -> Frame {
    let mut frame = Frame::new(proto, from, to);
    (frame.mac_from, frame.mac_to) = (GATEWAY, bench.mac(Hook::FromExternal));
    frame
}

/// The same on its way out.
fn leaving(bench: &Bench, mut frame: Frame) -> Frame {
    (frame.mac_from, frame.mac_to) = (bench.mac(Hook::FromExternal), GATEWAY);
    frame
}

/// Sends a frame with a whole checksum, and with one to be completed, and returns what leaves.
fn exchange(tap: &mut Tap, frame: &Frame) -> [Option<Vec<u8>>; 2] {
    tap.send(&frame.bytes(), Offload::default());
    let whole = tap.receive(PORT);
    let (bytes, offload) = partial(frame);
    tap.send(&bytes, offload);
    [whole, tap.receive(PORT)]
}

fn ends(net: Net) -> [SocketAddr; 3] {
    [at(net.outside, PORT), at(net.vip, 80), at(net.pod_there, 8080)]
}

#[test]
fn a_translated_packet_leaves_with_a_whole_checksum() {
    for_each_kind_on_tap(|bench, tap, net, proto| {
        let [client, frontend, backend] = ends(net);
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[id]);

        let there = frame(bench, proto, client, frontend);
        let expected = Some(leaving(bench, there.forwarded(client, backend)).bytes());
        assert_eq!(exchange(tap, &there), [expected.clone(), expected]);

        let back = frame(bench, proto, backend, client).flags(Flags::SynAck);
        let expected = Some(leaving(bench, back.forwarded(frontend, client)).bytes());
        assert_eq!(exchange(tap, &back), [expected.clone(), expected]);
    });
}

#[test]
fn a_refusal_has_a_whole_checksum() {
    for_each_kind_on_tap(|bench, tap, net, proto| {
        let [client, frontend, _] = ends(net);
        bench.serve(frontend, proto, 0, &[], &[]);
        for options in [0, 8] {
            for payload in [0, 1, 700] {
                let mut refused = frame(bench, proto, client, frontend).payload(vec![7; payload]);
                if net.vip.is_ipv4() {
                    refused.ip_options = vec![1; options];
                }
                let [whole, completed] = exchange(tap, &refused);
                if proto == Proto::Tcp {
                    assert_eq!(whole, Some(refused.reset()));
                    assert_eq!(completed, whole);
                    continue;
                }
                assert_eq!(whole, Some(refused.port_unreachable()));
                // The quoted checksum is as it was, and zero may be written as all ones.
                let mut completed = completed.expect("an answer");
                assert!(icmp_checksum_is_right(&completed));
                if refused.from.is_ipv4() {
                    let unused = refused.l4() + 6..refused.l4() + 8;
                    assert_eq!(completed[unused.clone()], [0xff, 0xff]);
                    completed[unused].fill(0);
                }
                let (sent, _) = partial(&refused);
                let mut expected = refused.port_unreachable();
                let quoted = refused.l4() + 8 + (refused.l4() - L3) + 6;
                expected[quoted..quoted + 2].copy_from_slice(&sent[refused.l4() + 6..refused.l4() + 8]);
                let checksum = refused.l4() + 2..refused.l4() + 4;
                expected[checksum.clone()].copy_from_slice(&completed[checksum]);
                assert_eq!(completed, expected);
            }
        }
    });
}

fn icmp_checksum_is_right(frame: &[u8]) -> bool {
    let packet = SlicedPacket::from_ethernet(frame).expect("a packet");
    match (packet.net, packet.transport) {
        (Some(NetSlice::Ipv4(_)), Some(TransportSlice::Icmpv4(icmp))) => {
            icmp.icmp_type().calc_checksum(icmp.payload()) == icmp.checksum()
        }
        (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) => {
            icmp.is_checksum_valid(ip.header().source(), ip.header().destination())
        }
        _ => false,
    }
}

#[test]
fn segments_of_a_large_packet_have_whole_checksums() {
    for_each_kind_on_tap(|bench, tap, net, proto| {
        if proto == Proto::Udp {
            return;
        }
        let [client, frontend, backend] = ends(net);
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[id]);
        let syn = frame(bench, proto, client, frontend);
        tap.send(&syn.bytes(), Offload::default());
        assert!(tap.receive(PORT).is_some());

        let payload: Vec<u8> = (0..20_000u32).map(|i| (i * 31) as u8).collect();
        let mut large = frame(bench, proto, client, frontend).flags(Flags::Ack).payload(payload.clone());
        large.tcp_options = vec![1; 12];
        let (bytes, mut offload) = partial(&large);
        let kind = if net.vip.is_ipv4() { V4_SEGMENTS } else { V6_SEGMENTS };
        offload.segments = Some((kind, (large.l4() + 32) as u16, 1000));
        tap.send(&bytes, offload);

        let mut received: Vec<u8> = Vec::new();
        while received.len() < payload.len() {
            let segment = tap.receive(PORT).expect("a segment");
            let packet = SlicedPacket::from_ethernet(&segment).expect("a packet");
            let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("not TCP: {packet:?}") };
            let (sum, addresses) = match packet.net {
                Some(NetSlice::Ipv4(ip)) => {
                    let ip = ip.header();
                    assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
                    let (from, to) = (ip.source(), ip.destination());
                    (
                        tcp.calc_checksum_ipv4(from, to),
                        (ip.source_addr().into(), ip.destination_addr().into()),
                    )
                }
                Some(NetSlice::Ipv6(ip)) => {
                    let ip = ip.header();
                    let sum = tcp.calc_checksum_ipv6(ip.source(), ip.destination());
                    (sum, (ip.source_addr().into(), ip.destination_addr().into()))
                }
                _ => panic!("not IP"),
            };
            assert_eq!(addresses, (client.ip(), backend.ip()));
            assert_eq!(tcp.checksum(), sum.expect("a length"));
            assert_eq!(tcp.sequence_number() as usize, 1000 + received.len());
            received.extend(tcp.payload());
        }
        assert_eq!(received, payload);
    });
}

/// `VIRTIO_NET_HDR_GSO_TCPV4` and `_TCPV6`.
const V4_SEGMENTS: u8 = 1;
const V6_SEGMENTS: u8 = 4;

#[test]
fn a_packet_waits_for_a_neighbour_that_is_yet_to_be_found() {
    for_each_kind_on_tap(|bench, tap, net, proto| {
        if net.vip.is_ipv6() {
            return;
        }
        const NEIGHBOUR: [u8; 6] = [2, 0, 0, 0, 7, 7];
        let [client, frontend, _] = ends(net);
        let backend = at([10, 4, 0, 10].into(), 8080);
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[id]);
        let there = frame(bench, proto, client, frontend);
        tap.send(&there.bytes(), Offload::default());
        // The next protocol finds it in the neighbours already.
        if proto == Proto::Tcp {
            // Who has 192.0.2.77?
            let question = tap.receive_with(&[192, 0, 2, 77]).expect("a question");
            assert_eq!(question[12..22], [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
            let mut answer = question.clone();
            answer[..6].copy_from_slice(&question[6..12]);
            answer[6..12].copy_from_slice(&NEIGHBOUR);
            answer[21] = 2;
            answer[22..28].copy_from_slice(&NEIGHBOUR);
            answer[28..32].copy_from_slice(&question[38..42]);
            answer[32..42].copy_from_slice(&question[22..32]);
            tap.send(&answer, Offload::default());
        }
        let mut expected = leaving(bench, there.forwarded(client, backend));
        expected.mac_to = NEIGHBOUR;
        assert_eq!(tap.receive(PORT), Some(expected.bytes()));
    });
}

#[test]
fn the_external_device_is_not_left_for_packets_of_nobody() {
    for_each_kind_on_tap(|bench, tap, net, proto| {
        let [client, frontend, backend] = ends(net);
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[id]);
        // The stack forwards what is not ours, through the egress program, as it is.
        let passing = frame(bench, proto, client, backend);
        tap.send(&passing.bytes(), Offload::default());
        let out = tap.receive(PORT).expect("forwarded by the stack");
        assert_eq!(out, leaving(bench, passing.forwarded(client, backend)).bytes());
    });
}

#[test]
fn a_packet_goes_by_a_gateway_of_the_other_family() {
    for_each_kind_on_tap(|bench, tap, net, proto| {
        if net.vip.is_ipv6() {
            return;
        }
        let [client, frontend, _] = ends(net);
        let backend = at([10, 5, 0, 10].into(), 8080);
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[id]);
        let there = frame(bench, proto, client, frontend);
        let expected = Some(leaving(bench, there.forwarded(client, backend)).bytes());
        for _ in 0..2 {
            assert_eq!(exchange(tap, &there), [expected.clone(), expected.clone()]);
        }
    });
}
