//! The fast path of established TCP in XDP: what it leaves to the full path comes out as from there, bit by bit.

use std::net::SocketAddr;

use crate::{
    bench::{Bench, Hook, Outcome, on_direct_bench},
    frame::{Flags, Frame, L3, Proto},
    netns::ip,
    nets::{Net, V4, V6, at},
    table::{Entry, Word},
    xdp::{GATEWAY, PASS, TX, begin, for_each, serve},
};

/// `CT_*` and `ROUTE_XDP`.
const SEEN_REPLY: u32 = 0x02;
const FIN: u32 = 0x04;
const RST: u32 = 0x08;
const SNAT: u32 = 0x10;
const DIRECT: u32 = 0x40;
const ROUTE_XDP: u32 = 1 << 31;

/// Packets of one side of a connection, and what they become.
#[derive(Clone, Copy)]
struct Side {
    from: SocketAddr,
    to: SocketAddr,
    source: SocketAddr,
    target: SocketAddr,
}

impl Side {
    fn frame(self, bench: &Bench) -> Frame {
        let mut frame = Frame::new(Proto::Tcp, self.from, self.to).flags(Flags::Ack);
        frame.mac_to = bench.mac(Hook::FromExternal);
        frame
    }

    /// What leaves by the same device.
    fn sent(self, frame: &Frame) -> Outcome {
        let mut sent = frame.forwarded(self.source, self.target);
        (sent.mac_from, sent.mac_to) = (frame.mac_to, GATEWAY);
        Outcome { action: TX, bytes: sent.bytes() }
    }

    fn entry(self, bench: &mut Bench) -> Entry {
        bench.entry(self.from, self.to, Proto::Tcp).expect("a known flow")
    }

    /// Sends the same to both paths: to the fast one, and to the full one, which is all that is left when the way is
    /// forgotten. Both must do the same and leave the same entry, which has `flags` then.
    #[track_caller]
    fn by_both(self, bench: &mut Bench, before: &Entry, bytes: &[u8]) -> (Outcome, Entry) {
        bench.set_entry(before);
        let fast = bench.send_xdp_bytes(bytes);
        let known = self.entry(bench);
        bench.set_entry(&before.with(Word::Device, 0));
        let full = bench.send_xdp_bytes(bytes);
        assert_eq!(fast, full);
        let found = self.entry(bench);
        if fast.action == TX && found.get(Word::LastSeen) == known.get(Word::LastSeen) {
            assert_eq!(known, found);
        }
        (fast, known)
    }

    #[track_caller]
    fn expect_sent(self, bench: &mut Bench, before: &Entry, frame: &Frame) -> Entry {
        let (outcome, after) = self.by_both(bench, before, &frame.bytes());
        assert_eq!(outcome, self.sent(frame));
        after
    }

    #[track_caller]
    fn expect_passed(self, bench: &mut Bench, before: &Entry, bytes: Vec<u8>) {
        let (outcome, after) = self.by_both(bench, before, &bytes);
        assert_eq!(outcome, Outcome { action: PASS, bytes });
        assert_eq!(&after, before, "and not counted: TC does");
    }
}

/// A connection whose way is known in both directions, and the entries of the client's side and of the backend's.
fn known(bench: &mut Bench, net: Net, there: std::net::IpAddr) -> [(Side, Entry); 2] {
    let ends @ [client, frontend, backend] = serve(bench, net, Proto::Tcp, there, 0);
    let node = begin(bench, Proto::Tcp, ends);
    let sides = [
        Side { from: client, to: frontend, source: node, target: backend },
        Side { from: backend, to: node, source: frontend, target: client },
    ];
    for side in sides.into_iter().cycle().take(4) {
        let frame = side.frame(bench);
        assert_eq!(bench.send_xdp_bytes(&frame.bytes()), side.sent(&frame));
    }
    sides.map(|side| {
        let entry = side.entry(bench);
        assert_eq!(entry.get(Word::Device), bench.ext0 | ROUTE_XDP);
        (side, entry)
    })
}

/// What the entry says of the flow.
fn said(entry: &Entry) -> u32 {
    entry.get(Word::Flags) & 0xff
}

/// The same entry, if it said this.
fn saying(entry: &Entry, flags: u32) -> Entry {
    entry.with(Word::Flags, entry.get(Word::Flags) & !0xff | flags)
}

fn for_both_sides(test: impl Fn(&mut Bench, Net, Side, &Entry) + Send + Sync) {
    for_each(|bench, net, proto| {
        if proto == Proto::Tcp {
            for (side, entry) in known(bench, net, net.pod_there) {
                test(bench, net, side, &entry);
                bench.set_entry(&entry);
            }
        }
    });
}

#[test]
fn segments_of_every_size_and_with_options_are_sent_on_and_counted() {
    for_both_sides(|bench, _, side, entry| {
        let mut frame = side.frame(bench);
        for words in 0..=10 {
            frame.tcp_options = vec![1; 4 * words];
            for payload in [0, 1, 536, 1400] {
                frame.payload = vec![7; payload];
                for ttl in [2, 64, 255] {
                    let frame = frame.clone().ttl(ttl);
                    let after = side.expect_sent(bench, entry, &frame);
                    if after.get(Word::LastSeen) == entry.get(Word::LastSeen) {
                        let length = frame.bytes().len() - L3;
                        assert_eq!(after.get(Word::Bytes), entry.get(Word::Bytes) + length as u32);
                    }
                }
            }
        }
    });
}

#[test]
fn a_segment_that_begins_or_ends_a_connection_is_sent_on_and_noted() {
    for_both_sides(|bench, _, side, entry| {
        for (sent, noted) in [(Flags::Syn, 0), (Flags::SynAck, 0), (Flags::Fin, FIN), (Flags::Rst, RST)] {
            // A backend that dials is taken for one that answers; the client's SYN-ACK is odd, and no beginning.
            let frame = side.frame(bench).flags(sent);
            let after = side.expect_sent(bench, entry, &frame);
            assert_eq!(said(&after), said(entry) | noted, "{sent:?}");
        }
        // What comes behind is charged at once.
        for noted in [FIN, RST] {
            let ending = entry.with(Word::Flags, entry.get(Word::Flags) | noted);
            let frame = side.frame(bench);
            let after = side.expect_sent(bench, &ending, &frame);
            assert_eq!(after.get(Word::Bytes), 0);
        }
    });
}

#[test]
fn a_segment_in_another_tick_is_sent_on_and_charged() {
    for_both_sides(|bench, _, side, entry| {
        let frame = side.frame(bench);
        for ticks in [1, 2, 1000] {
            let aged = entry.with(Word::LastSeen, entry.get(Word::LastSeen) - ticks);
            let after = side.expect_sent(bench, &aged, &frame);
            assert!(after.get(Word::LastSeen) >= entry.get(Word::LastSeen));
            assert_eq!(after.get(Word::Bytes), 0);
        }
    });
}

#[test]
fn a_flow_that_counts_two_gigabytes_in_a_tick_is_charged_before_there_is_no_room() {
    for_both_sides(|bench, _, side, entry| {
        let frame = side.frame(bench);
        let length = (frame.bytes().len() - L3) as u32;
        for (before, after) in [(0x7fff_ffff - length, 0x7fff_ffff), (0x8000_0000 - length, 0)] {
            let much = entry.with(Word::Bytes, before);
            let found = side.expect_sent(bench, &much, &frame);
            if found.get(Word::LastSeen) == entry.get(Word::LastSeen) {
                assert_eq!(found.get(Word::Bytes), after, "{before:#x}");
            }
        }
    });
}

#[test]
fn a_way_by_another_device_or_of_tc_is_not_this_ones() {
    for_both_sides(|bench, _, side, entry| {
        let frame = side.frame(bench);
        let peer = bench.ext0 | ROUTE_XDP >> 1;
        for device in [bench.ext0, bench.pod0, bench.pod0 | ROUTE_XDP, ROUTE_XDP, peer] {
            let after = side.expect_sent(bench, &entry.with(Word::Device, device), &frame);
            assert_eq!(after.get(Word::Device), bench.ext0 | ROUTE_XDP, "it was looked up");
        }
    });
}

#[test]
fn a_segment_larger_than_the_way_is_looked_at_again() {
    for_both_sides(|bench, _, side, entry| {
        let frame = side.frame(bench);
        let length = (frame.bytes().len() - L3) as u32;
        assert_eq!(entry.get(Word::Mtu), 1500);
        for (mtu, found) in [(length + 1, length + 1), (length, length), (length - 1, 1500)] {
            bench.set_entry(&entry.with(Word::Mtu, mtu));
            assert_eq!(bench.send_xdp_bytes(&frame.bytes()), side.sent(&frame));
            let after = side.entry(bench);
            if after.get(Word::LastSeen) == entry.get(Word::LastSeen) {
                assert_eq!(after.get(Word::Mtu), found);
            }
        }
        // One that fits nowhere is answered by TC.
        let large = side.frame(bench).payload(vec![7; 1500]);
        side.expect_passed(bench, entry, large.bytes());
        bench.expect_answered(Hook::FromExternal, large, |frame| frame.icmp((3, 4), (2, 0), 1500));
    });
}

/// The kernel has such a frame in pieces, of which the program sees the first.
#[test]
fn a_frame_of_more_than_a_page_is_sent_on_by_the_full_path() {
    for_each(|bench, net, proto| {
        if proto == Proto::Udp {
            return;
        }
        for device in ["ext0p", "ext0"] {
            ip(&format!("link set {device} mtu 9000"));
        }
        for (side, entry) in known(bench, net, net.pod_there) {
            assert_eq!(entry.get(Word::Mtu), 9000);
            for payload in [3000, 4096, 8000] {
                let frame = side.frame(bench).payload((0..payload).map(|i| i as u8).collect::<Vec<_>>());
                side.expect_sent(bench, &entry, &frame);
                // Not all of it is there.
                let bytes = frame.bytes();
                side.expect_passed(bench, &entry, bytes[..bytes.len() - 1].to_vec());
            }
        }
    });
}

#[test]
fn the_first_answer_is_noted_though_the_way_is_known() {
    for_each(|bench, net, proto| {
        if proto == Proto::Udp {
            return;
        }
        let [(asking, asked), (answering, answered)] = known(bench, net, net.pod_there);
        assert_eq!(said(&asked), SNAT | SEEN_REPLY);
        bench.set_entry(&saying(&asked, SNAT));
        let unanswered = answered.with(Word::Flags, answered.get(Word::Flags) & !SEEN_REPLY);
        let frame = answering.frame(bench);
        let after = answering.expect_sent(bench, &unanswered, &frame);
        assert_eq!(after.get(Word::Flags) & SEEN_REPLY, SEEN_REPLY);
        assert_eq!(said(&asking.entry(bench)), SNAT | SEEN_REPLY);
    });
}

/// No answer comes by here: the client goes on as if there were one.
#[test]
fn the_first_segment_of_a_client_that_is_answered_directly_is_noted_though_the_way_is_known() {
    on_direct_bench(|bench| {
        bench.load_xdp();
        for net in [V4, V6] {
            bench.clear();
            let [client, frontend, backend] = serve(bench, net, Proto::Tcp, net.pod_there, 0);
            let mut syn = Frame::new(Proto::Tcp, client, frontend);
            bench.send(Hook::FromExternal, &mut syn);
            let side = Side { from: client, to: frontend, source: client, target: backend };
            let frame = side.frame(bench);
            assert_eq!(bench.send_xdp_bytes(&frame.bytes()), side.sent(&frame));
            let entry = side.entry(bench);
            assert_eq!(said(&entry), DIRECT | SEEN_REPLY);
            for known in [DIRECT, DIRECT | SEEN_REPLY] {
                let after = side.expect_sent(bench, &saying(&entry, known), &frame);
                assert_eq!(said(&after), DIRECT | SEEN_REPLY);
            }
        }
    });
}

#[test]
fn a_segment_of_a_flow_whose_room_was_taken_is_left_to_tc() {
    for_each(|bench, net, proto| {
        if proto != Proto::Tcp {
            return;
        }
        let [(side, _), (back, _)] = known(bench, net, net.pod_there);
        bench.evict(side.from, side.to, proto);
        for side in [side, back] {
            let bytes = side.frame(bench).bytes();
            assert_eq!(bench.send_xdp_bytes(&bytes), Outcome { action: PASS, bytes });
        }
    });
}

#[test]
fn what_is_no_plain_segment_is_passed_untouched_though_the_way_is_known() {
    for_both_sides(|bench, net, side, entry| {
        let frame = side.frame(bench);
        let whole = frame.bytes();
        let (v4, l4) = (net.vip.is_ipv4(), frame.l4());
        let edited = |edits: &[(usize, u8)]| {
            let mut bytes = whole.clone();
            edits.iter().for_each(|(at, byte)| bytes[*at] = *byte);
            bytes
        };
        let mut passed: Vec<Vec<u8>> = [0, 1].map(|ttl| frame.clone().ttl(ttl).bytes()).into();
        // IP options, extension headers.
        let mut rare = frame.clone();
        (rare.ip_options, rare.extensions) = if v4 { (vec![1; 4], false) } else { (vec![], true) };
        passed.push(rare.bytes());
        // Fragments, of which the last could be a segment by itself; the one that is none, in IPv6.
        let mut large = frame.clone();
        large.payload = vec![0x50; 300];
        passed.extend(large.fragments(64));
        if !v4 {
            passed.extend(frame.fragments(1000));
        }
        // VLANs; other types of frames; other MAC addresses.
        passed.push([&whole[..12], &[0x81, 0, 0, 7], &whole[12..]].concat());
        passed.extend([edited(&[(12, 0x88)]), edited(&[(0, 4)]), edited(&[(5, 9)])]);
        // The other version in the header, and the other family's type of frame.
        passed.push(edited(&[(L3, if v4 { 0x65 } else { 0x40 })]));
        passed.push(edited(&if v4 { [(12, 0x86), (13, 0xdd)] } else { [(12, 0x08), (13, 0x00)] }));
        // Headers of TCP that are too short, or longer than the packet.
        let last = ((whole.len() - l4) / 4) as u8;
        passed.extend([0, 4, last + 1, 15].map(|words| edited(&[(l4 + 12, words << 4)])));
        // A network header that leaves no room for it, or says that there is more than there is.
        let (field, header) = if v4 { (L3 + 2, 20) } else { (L3 + 4, 0) };
        for length in [0, header, header + 19, header + 21 + whole.len() - l4 - 20, 0xffff] {
            let [high, low] = (length as u16).to_be_bytes();
            passed.push(edited(&[(field, high), (field + 1, low)]));
        }
        // A checksum that is yet to be completed.
        let [high, low] = frame.pseudo_sum(6, whole.len() - l4).to_be_bytes();
        passed.push(edited(&[(l4 + 16, high), (l4 + 17, low)]));
        // Cut anywhere: a network header is the least that the kernel runs programs on.
        passed.extend((L3 + 1..whole.len()).map(|len| whole[..len].to_vec()));
        for bytes in passed {
            side.expect_passed(bench, entry, bytes);
        }
        // What fills the frame up is no part of the packet, and a packet may be all header.
        let words = edited(&[(l4 + 12, last << 4)]);
        for bytes in [[&whole[..], &[0xaa; 9]].concat(), words] {
            let (outcome, _) = side.by_both(bench, entry, &bytes);
            assert_eq!((outcome.action, outcome.bytes.len()), (TX, bytes.len()));
            assert_eq!(outcome.bytes[whole.len()..], bytes[whole.len()..]);
        }
        // Nobody's, with the same ports and another address.
        let stranger = Side { from: at(net.lost, side.from.port()), ..side }.frame(bench).bytes();
        assert_eq!(bench.send_xdp_bytes(&stranger), Outcome { action: PASS, bytes: stranger.clone() });
    });
}
