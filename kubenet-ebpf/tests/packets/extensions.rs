//! IPv6 extension headers of every kind, order and length, and VLAN tags.

use crate::{
    bench::{Bench, Hook, Metric, REDIRECT, SHOT, UNSPEC, for_each_kind, for_each_kind_on_tap},
    frame::{Frame, L3, Proto},
    nets::{Net, at},
    tap::Offload,
};

/// An extension header: its number, and its bytes but for the next header's number.
type Extension = (u8, Vec<u8>);

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// One that counts its length in units of eight bytes, without the first.
fn options(number: u8, units: u8) -> Extension {
    (number, [&[units][..], &vec![0; 6 + 8 * usize::from(units)]].concat())
}

/// A routing header that has so many segments left.
fn routing(units: u8, left: u8) -> Extension {
    let (number, mut bytes) = options(ROUTING, units);
    bytes[2] = left;
    (number, bytes)
}

/// It counts in units of four bytes, without the first two.
fn authentication(units: u8) -> Extension {
    (AUTHENTICATION, [&[units][..], &vec![7; 6 + 4 * usize::from(units)]].concat())
}

/// The frame's bytes with extension headers.
fn extended(frame: &Frame, extensions: &[Extension]) -> Vec<u8> {
    let plain = frame.bytes();
    let mut chain = Vec::new();
    for (i, (_, bytes)) in extensions.iter().enumerate() {
        chain.push(extensions.get(i + 1).map_or(frame.proto.number(), |next| next.0));
        chain.extend(bytes);
    }
    let length = plain.len() - L3 - 40 + chain.len();
    let mut out = [&plain[..L3 + 40], &chain, &plain[L3 + 40..]].concat();
    out[L3 + 4..L3 + 6].copy_from_slice(&(length as u16).to_be_bytes());
    out[L3 + 6] = extensions[0].0;
    out
}

/// A frame to a cluster IP, and what becomes of it.
fn ends(bench: &mut Bench, net: Net, proto: Proto) -> [Frame; 2] {
    let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080));
    let id = bench.backend(backend, 0);
    bench.serve(frontend, proto, 0, &[id], &[]);
    bench.cluster_ip(net.vip);
    let mut frame = Frame::new(proto, client, frontend);
    frame.mac_to = bench.mac(Hook::FromPod);
    let forwarded = frame.forwarded(client, backend);
    [frame, forwarded]
}

#[test]
fn l4_extension_headers_of_every_kind_order_and_length_are_stepped_over() {
    for_each_kind(|bench, net, proto| {
        if net.vip.is_ipv4() {
            return;
        }
        let [frame, expected] = ends(bench, net, proto);
        let one = |i: usize, units: u8| match i % 4 {
            0 => options(DESTINATION, units),
            1 => routing(units, 0),
            2 => authentication(units | 1),
            _ => options(HOP_BY_HOP, units),
        };
        let mut chains: Vec<Vec<Extension>> =
            (0..4).flat_map(|i| [0, 1, 2, 31, 120].map(|units| vec![one(i, units)])).collect();
        for count in 2..=7 {
            for first in 0..4 {
                chains.push((0..count).map(|i| one(first + i, (i % 3) as u8)).collect());
            }
        }
        for chain in chains {
            let outcome = bench.send_bytes(Hook::FromPod, &extended(&frame, &chain), 0);
            assert_eq!((outcome.action, outcome.bytes), (REDIRECT, extended(&expected, &chain)));
        }
        assert_eq!(bench.entries(), 2);
    });
}

#[test]
fn l4_a_packet_that_is_not_at_its_destination_yet_passes() {
    for_each_kind(|bench, net, proto| {
        if net.vip.is_ipv4() {
            return;
        }
        let [frame, _] = ends(bench, net, proto);
        for chain in [vec![routing(2, 1)], vec![options(DESTINATION, 0), routing(4, 255)]] {
            let bytes = extended(&frame, &chain);
            let outcome = bench.send_bytes(Hook::FromPod, &bytes, 0);
            assert_eq!((outcome.action, outcome.bytes), (UNSPEC, bytes));
        }
        assert_eq!(bench.entries(), 0);
    });
}

#[test]
fn l4_too_many_extension_headers_do_not_reach_a_cluster_ip() {
    for_each_kind(|bench, net, proto| {
        if net.vip.is_ipv4() {
            return;
        }
        let [mut frame, _] = ends(bench, net, proto);
        for count in 8..=40 {
            let chain = vec![options(DESTINATION, 0); count];
            frame.to = at(net.vip, 80);
            let before = bench.metric(Metric::Malformed);
            assert_eq!(bench.send_bytes(Hook::FromPod, &extended(&frame, &chain), 0).action, SHOT);
            assert_eq!(bench.metric(Metric::Malformed), before + 1);
            frame.to = at(net.pod_there, 80);
            let bytes = extended(&frame, &chain);
            let outcome = bench.send_bytes(Hook::FromPod, &bytes, 0);
            assert_eq!((outcome.action, outcome.bytes), (UNSPEC, bytes));
        }
    });
}

#[test]
fn l4_extension_headers_that_end_nowhere_pass() {
    for_each_kind(|bench, net, proto| {
        if net.vip.is_ipv4() {
            return;
        }
        let [frame, _] = ends(bench, net, proto);
        // Longer than the packet; of a kind that hides what follows; cut anywhere.
        let good = extended(&frame, &[options(HOP_BY_HOP, 0), options(DESTINATION, 2), authentication(3)]);
        let mut broken = Vec::new();
        for (at, byte) in [(L3 + 41, 200), (L3 + 49, 255), (L3 + 40, 50), (L3 + 40, 59), (L3 + 48, 200)] {
            let mut bytes = good.clone();
            bytes[at] = byte;
            broken.push(bytes);
        }
        broken.extend((L3 + 40..good.len()).map(|len| good[..len].to_vec()));
        // The same with a length that is right.
        for len in L3 + 40..L3 + 40 + 8 + 24 + 20 {
            let mut bytes = good[..len].to_vec();
            bytes[L3 + 4..L3 + 6].copy_from_slice(&((len - L3 - 40) as u16).to_be_bytes());
            broken.push(bytes);
        }
        for bytes in broken {
            let outcome = bench.send_bytes(Hook::FromPod, &bytes, 0);
            assert_eq!((outcome.action, outcome.bytes), (UNSPEC, bytes));
        }
        assert_eq!(bench.entries(), 0);
    });
}

#[test]
fn l4_a_fragment_that_is_too_big_is_told_the_mtu() {
    for_each_kind(|bench, net, proto| {
        if net.vip.is_ipv4() || proto == Proto::Sctp {
            return;
        }
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.narrow, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[]);
        let mut frame = Frame::new(proto, client, frontend).payload(vec![7; 2600]);
        frame.mac_to = bench.mac(Hook::FromPod);
        let first = &frame.fragments(1400)[0];
        let outcome = bench.send_bytes(Hook::FromPod, first, 0);
        assert_eq!(outcome.action, REDIRECT);
        // The fragment's header and eight bytes are quoted.
        let quoted = &first[L3..L3 + 40 + 8 + 8];
        assert_eq!(outcome.bytes, frame.icmp_about(quoted, (3, 4), (2, 0), 1300));
    });
}

/// The frame's bytes behind a VLAN tag.
fn tagged(frame: &Frame, tag: u16) -> Vec<u8> {
    let bytes = frame.bytes();
    [&bytes[..12], &[0x81, 0x00], &tag.to_be_bytes(), &bytes[12..]].concat()
}

#[test]
fn l4_a_tag_that_is_still_in_the_frame_is_the_business_of_the_vlans_device() {
    for_each_kind(|bench, net, proto| {
        let [mut frame, expected] = ends(bench, net, proto);
        bench.send(Hook::FromPod, &mut frame);
        let answer = Frame::new(proto, expected.to, expected.from);
        for hook in [Hook::FromPod, Hook::FromExternal, Hook::ToDevice] {
            for tag in [0, 5, 0x6000, 0xffff] {
                for mut frame in [frame.clone(), answer.clone()] {
                    frame.mac_to = bench.mac(hook);
                    let once = tagged(&frame, tag);
                    let twice = [&once[..12], &[0x88, 0xa8, 0, 9], &once[12..]].concat();
                    for bytes in [once, twice] {
                        let outcome = bench.send_bytes(hook, &bytes, 0);
                        assert_eq!((outcome.action, outcome.bytes), (UNSPEC, bytes));
                    }
                }
            }
        }
    });
}

#[test]
fn l4_a_tag_with_a_priority_alone_is_no_vlan() {
    for_each_kind_on_tap(|bench, tap, net, proto| {
        const PORT: u16 = 0xbeef;
        let (client, frontend, backend) = (at(net.outside, PORT), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[id]);
        let mut frame = Frame::new(proto, client, frontend);
        frame.mac_to = bench.mac(Hook::FromExternal);
        frame.mac_from = crate::wire::GATEWAY;
        // Of a VLAN that has no device here: nobody's.
        tap.send(&tagged(&frame, 0x6005), Offload::default());
        assert_eq!(bench.entries(), 0);

        tap.send(&tagged(&frame, 0x6000), Offload::default());
        let mut expected = frame.forwarded(client, backend);
        (expected.mac_from, expected.mac_to) = (frame.mac_to, frame.mac_from);
        assert_eq!(tap.receive(PORT), Some(expected.bytes()));
        assert_eq!(bench.entries(), 2);
    });
}
