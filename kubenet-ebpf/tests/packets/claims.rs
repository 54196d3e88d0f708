//! Pairs of the table of flows that are nobody's, or that somebody else has in hand.

use crate::{
    bench::{
        Bench, Hook, LOCAL, MASQ_OUTSIDE, Metric, Outcome, REDIRECT, SHOT, Setup, for_each_kind_directly,
        octets, on_bench, on_bench_with,
    },
    clock::begin_tick,
    direct::marked,
    frame::{Flags, Frame, Proto},
    nets::{Net, V4, V6, at, next},
    room::{Flow, SMALL, TWO_BUCKETS, flood, on_one_cpu, serve},
    table::{Bucket, Word},
};

/// Of another CPU.
const CLAIMED: u32 = 0x80;
const SEEN_REPLY: u32 = 0x02;
const TCP: u32 = 6 << 8;
const UDP: u32 = 17 << 8;

fn with_port(flow: Flow, port: u16) -> Flow {
    Flow { client: at(flow.client.ip(), port), ..flow }
}

/// Gives every pair that has no flow these flags, as if it was last touched some seconds before `like` was.
fn set_flags_of_free_pairs(bench: &mut Bench, like: Flow, flags: u32) {
    let v4 = like.client.is_ipv4();
    let now = bench
        .entry(like.client, like.frontend, like.proto)
        .expect("a flow")
        .get(Word::LastSeen)
        .wrapping_sub(5);
    for number in 1..bench.setup.pairs {
        let mut pair = bench.pair(v4, number);
        if Word::Flags.of(&pair, v4) & 0xff00 == 0 || !has_port(&pair, v4) {
            pair[Word::Flags.at(v4)].copy_from_slice(&flags.to_ne_bytes());
            pair[Word::LastSeen.at(v4)].copy_from_slice(&now.to_ne_bytes());
            bench.set_pair(v4, number, &pair);
        }
    }
}

fn claim_all(bench: &mut Bench, net: Net) {
    let v4 = net.vip.is_ipv4();
    for number in 1..bench.setup.pairs {
        let mut pair = bench.pair(v4, number);
        pair[Word::Flags.at(v4)].copy_from_slice(&CLAIMED.to_ne_bytes());
        bench.set_pair(v4, number, &pair);
    }
}

fn has_port(pair: &[u8], v4: bool) -> bool {
    let at = if v4 { 8 } else { 32 };
    pair[at..at + 4] != [0; 4]
}

fn full(bench: &mut Bench, flow: Flow) {
    let frame = Frame::new(flow.proto, flow.client, flow.frontend);
    bench.expect_dropped(Hook::FromExternal, frame, Metric::ConntrackFull);
}

/// A packet that was on its way when its flow ended writes the flags back.
#[test]
fn what_a_late_packet_left_of_a_flow_holds_its_room_for_a_minute() {
    on_bench_with(SMALL, |bench| {
        for net in [V4, V6] {
            bench.clear();
            let flow = serve(bench, net, Proto::Tcp, 1);
            flow.open(bench);
            // The hand is to have been everywhere.
            for port in 100..131 {
                with_port(flow, port).ask(bench, Flags::Syn);
            }
            flow.ask(bench, Flags::Ack);
            for port in (100..131).rev() {
                let of = with_port(flow, port);
                if of.is_known(bench) {
                    bench.evict(of.client, of.frontend, Proto::Tcp);
                }
            }
            set_flags_of_free_pairs(bench, flow, TCP | SEEN_REPLY);
            full(bench, with_port(flow, 2));
            bench.age(61);
            with_port(flow, 2).open(bench);
            flow.ask(bench, Flags::Ack);
        }
    });
}

#[test]
fn a_pair_that_another_cpu_has_claimed_is_left_to_it() {
    on_bench_with(SMALL, |bench| {
        for net in [V4, V6] {
            bench.clear();
            let flow = serve(bench, net, Proto::Tcp, 1);
            flow.open(bench);
            set_flags_of_free_pairs(bench, flow, CLAIMED);
            // Here is one left to take, if there must be: that of a flow that was answered.
            with_port(flow, 2).open(bench);
            assert!(!flow.is_known(bench));
            let last = with_port(flow, 2);
            bench.evict(last.client, last.frontend, Proto::Tcp);
            claim_all(bench, net);
            full(bench, with_port(flow, 3));
        }
    });
}

#[test]
fn what_another_node_marked_is_dropped_where_there_is_no_room_for_it() {
    on_bench_with(Setup { direct: true, ..SMALL }, |bench| {
        for net in [V4, V6] {
            bench.clear();
            claim_all(bench, net);
            let mut frame = Frame::new(Proto::Tcp, at(net.outside, 1), at(net.pod_here, 8080));
            frame.mac_to = bench.mac(Hook::FromExternal);
            let before = bench.metric(Metric::ConntrackFull);
            let bytes = marked(&frame, at(net.vip, 80));
            assert_eq!(bench.send_bytes(Hook::FromExternal, &bytes, 0).action, SHOT);
            assert_eq!(bench.metric(Metric::ConntrackFull), before + 1);
        }
    });
}

/// It has no slot yet, so that nobody can empty it.
#[test]
fn a_pair_whose_flow_is_being_made_is_not_taken() {
    on_bench_with(SMALL, |bench| {
        for net in [V4, V6] {
            bench.clear();
            let v4 = net.vip.is_ipv4();
            let flow = serve(bench, net, Proto::Tcp, 0);
            for port in 1..SMALL.pairs {
                with_port(flow, port as u16).ask(bench, Flags::Syn);
            }
            let index: Vec<Bucket> = (0..SMALL.buckets).map(|number| bench.bucket(v4, number)).collect();
            for number in 0..SMALL.buckets {
                bench.set_bucket(v4, number, Bucket::default());
            }
            full(bench, with_port(flow, 1000));
            for (number, bucket) in (0..).zip(index) {
                bench.set_bucket(v4, number, bucket);
            }
            for port in 1..SMALL.pairs {
                assert!(with_port(flow, port as u16).is_known(bench));
            }
            with_port(flow, 1000).ask(bench, Flags::Syn);
        }
    });
}

#[test]
fn an_entry_of_another_protocol_is_no_packets_of_this_one() {
    on_bench(|bench| {
        for net in [V4, V6] {
            bench.clear();
            let flow = serve(bench, net, Proto::Tcp, 1);
            flow.open(bench);
            let entry = bench.entry(flow.client, flow.frontend, Proto::Tcp).expect("a flow");
            bench.set_entry(&entry.with(Word::Flags, entry.get(Word::Flags) ^ TCP ^ UDP));
            let ack = Frame::new(Proto::Tcp, flow.client, flow.frontend).flags(Flags::Ack);
            bench.expect_passed(Hook::FromExternal, ack);
            bench.set_entry(&entry);
            flow.ask(bench, Flags::Ack);
        }
    });
}

#[test]
fn a_connection_that_ended_gives_its_room_in_time() {
    on_bench_with(SMALL, |bench| {
        for net in [V4, V6] {
            bench.clear();
            let first = serve(bench, net, Proto::Tcp, 0);
            let flow = |port| with_port(first, port);
            for port in 1..30 {
                flow(port).open(bench);
            }
            let (closed, asked) = (flow(100), flow(101));
            closed.open(bench);
            closed.answer(bench, Flags::Rst);
            asked.ask(bench, Flags::Syn);
            assert_eq!(bench.entries(), 2 * 31);

            // Its last packets may be on their way.
            flow(200).open(bench);
            assert!(closed.is_known(bench) && !asked.is_known(bench));
            flow(201).open(bench);
            assert!(!closed.is_known(bench));
            assert_eq!(bench.entries(), 2 * 31);

            let closed = flow(1);
            closed.answer(bench, Flags::Rst);
            bench.age(61);
            flow(202).open(bench);
            assert!(!closed.is_known(bench));
            // Before one that somebody may answer yet.
            let closed = flow(2);
            closed.ask(bench, Flags::Rst);
            bench.age(61);
            let entry = bench.entry(flow(3).client, first.frontend, Proto::Tcp).expect("a flow");
            bench.set_entry(&entry.with(Word::Flags, entry.get(Word::Flags) & !SEEN_REPLY));
            begin_tick();
            flow(3).ask(bench, Flags::Ack);
            flow(203).open(bench);
            assert!(!closed.is_known(bench) && flow(3).is_known(bench));
        }
    });
}

#[test]
fn a_flow_of_which_one_side_speaks_is_not_silent() {
    on_bench_with(SMALL, |bench| {
        for net in [V4, V6] {
            bench.clear();
            let first = serve(bench, net, Proto::Tcp, 0);
            let flow = |port| with_port(first, port);
            for port in 1..32 {
                flow(port).open(bench);
            }
            bench.age(10);
            flow(1).answer(bench, Flags::Ack);
            flow(2).ask(bench, Flags::Ack);
            for port in 4..32 {
                flow(port).ask(bench, Flags::Ack);
            }
            flow(100).open(bench);
            let known: Vec<u16> = (1..32).filter(|port| flow(*port).is_known(bench)).collect();
            assert_eq!(known, (1..32).filter(|port| *port != 3).collect::<Vec<_>>());

            // Nor does it overflow.
            bench.age(1 << 25);
            flow(101).open(bench);
            assert_eq!(bench.entries(), 2 * 31);
        }
    });
}

/// Only the CPU that was given it to look through may take a free pair.
#[test]
fn a_free_pair_that_is_drawn_by_lot_is_not_taken() {
    let larger = Setup { pairs: 96, ..SMALL };
    on_bench_with(larger, |bench| {
        on_one_cpu(|| {
            for net in [V4, V6] {
                bench.clear();
                let v4 = net.vip.is_ipv4();
                let first = serve(bench, net, Proto::Tcp, 0);
                for port in 1..96 {
                    with_port(first, port).open(bench);
                }
                for port in 1..96 {
                    let flow = with_port(first, port);
                    let entry = bench.entry(flow.client, flow.frontend, Proto::Tcp).expect("a flow");
                    if entry.place >> 1 > 40 {
                        bench.evict(flow.client, flow.frontend, Proto::Tcp);
                    }
                }
                let (given, entries) = (bench.given(v4), bench.entries());
                assert_eq!((given % 96, entries), (0, 2 * 40), "the hand has gone round");
                with_port(first, 1000).open(bench);
                assert_eq!(bench.entries(), entries, "it has the room of another");
            }
        });
    });
}

#[test]
fn an_answers_tuple_is_taken_also_where_its_entry_is_in_the_neighbour() {
    on_bench_with(TWO_BUCKETS, |bench| {
        for net in [V4, V6] {
            let outside: u32 = (0..8u16).map(|round| clash_in_two_buckets(bench, net, round * 100)).sum();
            assert!(outside > 0);
        }
    });
}

/// Says how many entries were in the neighbour.
fn clash_in_two_buckets(bench: &mut Bench, net: Net, base: u16) -> u32 {
    bench.clear();
    let first = serve(bench, net, Proto::Udp, 0);
    let other = at(next(net.vip), 80);
    let id = bench.backend(first.backend, LOCAL);
    bench.serve(other, Proto::Udp, 0, &[id], &[id]);
    for port in 1..=15 {
        with_port(first, base + port).ask(bench, Flags::Syn);
    }
    let entries = bench.entries();
    for port in 1..=15 {
        let mut frame = Frame::new(Proto::Udp, with_port(first, base + port).client, other);
        assert_eq!(bench.send(Hook::FromExternal, &mut frame).action, SHOT);
    }
    assert_eq!(bench.entries(), entries);
    for port in 1..=15 {
        with_port(first, base + port).answer(bench, Flags::Ack);
    }
    [0, 1].map(|number| bench.bucket(net.vip.is_ipv4(), number)).iter().map(|b| b[b.len() - 1] & 0xf).sum()
}

/// It cannot answer the client in two names at one port.
#[test]
fn a_client_whose_port_another_frontends_flow_has_directly_is_masqueraded() {
    for_each_kind_directly(|bench, net, proto| {
        let (client, backend) = (at(net.outside, 40000), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        let frontends = [at(net.vip, 80), at(next(net.vip), 80)];
        for frontend in frontends {
            bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
        }
        let mut frame = Frame::new(proto, client, frontends[0]);
        let outcome = bench.send(Hook::FromExternal, &mut frame);
        let bytes = marked(&frame.forwarded(client, backend), frontends[0]);
        assert_eq!(outcome, Outcome { action: REDIRECT, bytes });
        let mut frame = Frame::new(proto, client, frontends[1]);
        let outcome = bench.send(Hook::FromExternal, &mut frame);
        let port = u16::from_be_bytes([outcome.bytes[frame.l4()], outcome.bytes[frame.l4() + 1]]);
        let masqueraded = frame.forwarded(at(net.node, port), backend).bytes();
        assert_eq!(outcome, Outcome { action: REDIRECT, bytes: masqueraded });
    });
}

/// With a seed for which the sums of neighbours differ in no bit that a bucket is chosen by.
#[test]
fn flows_of_neighbours_are_all_over_the_index_whatever_the_seed() {
    let word = |address| u32::from_ne_bytes(octets(address).try_into().expect("a word"));
    let worst = |address| (1u64 << 20).wrapping_sub(word(address).into());
    let mut seed = [0x1234_5678_9abc_def1; 11];
    (seed[0], seed[1]) = (worst(V4.pod_here), worst(V4.vip));
    on_bench_with(Setup { seed: Some(seed), ..Setup::USUAL }, |bench| {
        let first = serve(bench, V4, Proto::Tcp, 1);
        flood(bench, first, 0..256);
        assert_eq!(bench.entries(), 2 * 256);
    });
}
