//! Whose room a new flow takes when the table is full.

use std::net::SocketAddr;

use crate::{
    bench::{Bench, Hook, LOCAL, Metric, REDIRECT, Setup, on_bench, on_bench_with},
    clock::begin_tick,
    frame::{Flags, Frame, Proto},
    nets::{Net, V4, V6, at, next},
    table::{Bucket, SLOTS, Word},
};

/// A flow of a client outside to a backend here, both ways.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub proto: Proto,
    pub client: SocketAddr,
    pub frontend: SocketAddr,
    pub backend: SocketAddr,
}

impl Flow {
    pub fn ask(self, bench: &mut Bench, flags: Flags) {
        let frame = Frame::new(self.proto, self.client, self.frontend).flags(flags);
        bench.expect_forwarded(Hook::FromExternal, frame, self.client, self.backend);
    }

    pub fn answer(self, bench: &mut Bench, flags: Flags) {
        let frame = Frame::new(self.proto, self.backend, self.client).flags(flags);
        bench.expect_forwarded(Hook::FromPod, frame, self.frontend, self.client);
    }

    /// Whether the table has it. A packet might make it known again.
    pub fn is_known(self, bench: &mut Bench) -> bool {
        bench.has(self.client, self.frontend, self.proto)
    }

    /// The number of its pair.
    fn pair(self, bench: &mut Bench) -> u32 {
        bench.entry(self.client, self.frontend, self.proto).expect("a known flow").place >> 1
    }

    pub fn open(self, bench: &mut Bench) {
        self.ask(bench, Flags::Syn);
        self.answer(bench, Flags::SynAck);
        self.ask(bench, Flags::Ack);
    }
}

pub fn serve(bench: &mut Bench, net: Net, proto: Proto, port: u16) -> Flow {
    let (frontend, backend) = (at(net.vip, 80), at(net.pod_here, 8080));
    let id = bench.backend(backend, LOCAL);
    bench.serve(frontend, proto, 0, &[id], &[id]);
    Flow { proto, client: at(net.outside, port), frontend, backend }
}

/// SYNs or datagrams to the frontend, each from another address.
pub fn flood(bench: &mut Bench, flow: Flow, numbers: std::ops::Range<u32>) {
    let mut frame = Frame::new(flow.proto, flow.client, flow.frontend);
    frame.mac_to = bench.mac(Hook::FromExternal);
    let mut bytes = frame.bytes();
    let mut out = vec![0; bytes.len() + 256];
    // The last four bytes of the address. The checksums are wrong from here on, which is the receiver's affair.
    let at = if flow.client.is_ipv4() { 14 + 12 } else { 14 + 8 + 12 };
    for number in numbers {
        bytes[at..at + 4].copy_from_slice(&(0x2800_0000 + number).to_be_bytes());
        assert_eq!(bench.run_into(Hook::FromExternal, &bytes, 0, &mut out).0, REDIRECT, "{number}");
    }
}

#[test]
fn a_flood_of_a_million_clients_pushes_out_no_flow_that_lasts() {
    const FLOWS: u16 = 1000;
    on_bench(|bench| {
        for (net, proto, clients) in
            [(V4, Proto::Tcp, 1_000_000), (V6, Proto::Tcp, 50_000), (V4, Proto::Udp, 50_000)]
        {
            bench.clear();
            let first = serve(bench, net, proto, 0);
            let flows: Vec<Flow> =
                (0..FLOWS).map(|i| Flow { client: at(next(net.outside), 10_000 + i), ..first }).collect();
            for flow in &flows {
                flow.open(bench);
            }
            bench.age(1);
            flows.iter().for_each(|flow| flow.ask(bench, Flags::Ack));
            // New flows now go elsewhere.
            let other = at(net.pod_here, 9090);
            let id = bench.backend(other, LOCAL);
            bench.replace_set(first.frontend, proto, &[id]);

            let round = clients / 10;
            for i in 0..10 {
                flood(bench, first, i * round..(i + 1) * round);
                for (n, flow) in flows.iter().enumerate() {
                    // Whoever speaks first.
                    if n % 2 == 0 {
                        flow.ask(bench, Flags::Ack);
                        flow.answer(bench, Flags::Ack);
                    } else {
                        flow.answer(bench, Flags::Ack);
                        flow.ask(bench, Flags::Ack);
                    }
                }
                bench.age(1);
            }
            let given = bench.given(net.vip.is_ipv4());
            assert!(given > u64::from(clients), "the flood was none: {given} pairs were looked at");
        }
    });
}

/// A table with 31 places for flows.
pub const SMALL: Setup = Setup { pairs: 32, ..Setup::USUAL };

#[test]
fn a_full_table_gives_room_in_order() {
    on_bench_with(SMALL, |bench| {
        for net in [V4, V6] {
            bench.clear();
            let tcp = serve(bench, net, Proto::Tcp, 0);
            let udp = serve(bench, net, Proto::Udp, 0);
            let flow = |of: Flow, port| Flow { client: at(net.outside, port), ..of };
            let [unanswered, just_asked, closed, silent] = [1, 2, 3, 4].map(|port| flow(tcp, port));
            let one_way = flow(udp, 5);
            let lasting: Vec<Flow> = (10..36).map(|port| flow(tcp, port)).collect();

            unanswered.ask(bench, Flags::Syn);
            for flow in [closed, silent] {
                flow.open(bench);
            }
            closed.answer(bench, Flags::Rst);
            one_way.ask(bench, Flags::Syn);
            bench.age(5);
            one_way.ask(bench, Flags::Syn);
            for flow in &lasting {
                flow.open(bench);
            }
            assert_eq!(bench.entries(), 2 * 30, "each has a place, and one is free");
            begin_tick();
            for flow in [just_asked, flow(tcp, 100)] {
                flow.ask(bench, Flags::Syn);
            }
            // The first of all was nobody's.
            assert!(!unanswered.is_known(bench));
            let first = bench.pair(net.vip.is_ipv4(), 0);
            assert_eq!(Word::Flags.of(&first, net.vip.is_ipv4()), 0, "the first pair is never used");

            // One at a time, and then what takes the room is answered.
            flow(tcp, 100).answer(bench, Flags::SynAck);
            let victims = [closed, just_asked, one_way, silent];
            for (n, victim) in victims.into_iter().enumerate() {
                for (i, flow) in victims.into_iter().enumerate() {
                    assert_eq!(flow.is_known(bench), i >= n, "{i} of the victims, when {n} are gone");
                }
                assert!(victim.is_known(bench));
                let newcomer = flow(tcp, 200 + n as u16);
                newcomer.open(bench);
                assert!(!victim.is_known(bench), "victim {n}");
            }
            for flow in &lasting {
                assert!(flow.is_known(bench), "{flow:?}");
                flow.ask(bench, Flags::Ack);
                flow.answer(bench, Flags::Ack);
            }
            assert_eq!(bench.entries(), 2 * 31);
        }
    });
}

#[test]
fn a_datagram_that_was_not_answered_has_its_place_while_its_client_goes_on() {
    on_bench_with(SMALL, |bench| {
        for net in [V4, V6] {
            bench.clear();
            let flow = serve(bench, net, Proto::Udp, 5);
            flow.ask(bench, Flags::Syn);
            bench.age(3);
            flow.ask(bench, Flags::Syn);
            for round in 0..10 {
                flood(bench, flow, round * 100..(round + 1) * 100);
                bench.age(3);
                assert!(flow.is_known(bench));
            }
            bench.age(120);
            flood(bench, flow, 2000..2040);
            assert!(!flow.is_known(bench));
        }
    });
}

#[test]
fn a_cpu_that_was_idle_for_half_a_round_gives_up_what_it_had_to_look_through() {
    // The hand is pushed; nobody else takes what is in between.
    on_bench(|bench| {
        for net in [V4, V6] {
            bench.clear();
            let v4 = net.vip.is_ipv4();
            let first = serve(bench, net, Proto::Tcp, 1);
            let pairs = u64::from(bench.setup.pairs);
            let mut port = 0;
            let mut begin = |bench: &mut Bench| {
                port += 1;
                let flow = Flow { client: at(net.outside, port), ..first };
                flow.open(bench);
                flow.pair(bench)
            };
            on_one_cpu(|| {
                let number = begin(bench);
                bench.push_hand(v4, pairs / 2 - 8);
                // In the middle of a chunk, or at its end.
                let next = begin(bench);
                assert!(next == number + 1 || number % 8 == 7, "{number}, {next}");
                bench.push_hand(v4, pairs);
                let given = bench.given(v4);
                assert_eq!(u64::from(begin(bench)), given % pairs);
                assert_eq!(bench.given(v4), given + 8);
                assert_eq!(bench.entries(), 2 * 3);
            });
        }
    });
}

/// Has this thread stay where it is.
pub fn on_one_cpu<T>(what: impl FnOnce() -> T) -> T {
    use nix::{
        sched::{CpuSet, sched_getaffinity, sched_setaffinity},
        unistd::Pid,
    };
    let this = Pid::from_raw(0);
    let before = sched_getaffinity(this).expect("CPUs");
    let first = (0..CpuSet::count()).find(|cpu| before.is_set(*cpu).unwrap_or_default()).expect("a CPU");
    let mut one = CpuSet::new();
    one.set(first).expect("set");
    sched_setaffinity(this, &one).expect("on one CPU");
    let done = what();
    sched_setaffinity(this, &before).expect("as before");
    done
}

/// One pair of buckets, for 30 entries.
pub const TWO_BUCKETS: Setup = Setup { buckets: 2, ..Setup::USUAL };

fn slots(bucket: &Bucket) -> impl Iterator<Item = u32> {
    bucket[..SLOTS].iter().copied().filter(|slot| *slot != 0)
}

#[test]
fn a_full_bucket_has_its_neighbour_and_two_full_ones_take_no_flow() {
    on_bench_with(TWO_BUCKETS, |bench| {
        for net in [V4, V6] {
            // By lot, all may be at home.
            let outside: u32 = (0..8).map(|round| fill_two_buckets(bench, net, round * 100)).sum();
            assert!(outside > 0);
        }
    });
}

/// Fills both and empties them again. Says how many entries were in the other one than theirs.
fn fill_two_buckets(bench: &mut Bench, net: Net, base: u16) -> u32 {
    bench.clear();
    let v4 = net.vip.is_ipv4();
    let first = serve(bench, net, Proto::Udp, 0);
    let flow = |port| Flow { client: at(net.outside, base + port), ..first };
    let ends = |bench: &mut Bench, port| {
        // An answer that comes too late ends a flow.
        let late = Frame::new(Proto::Udp, first.backend, flow(port).client);
        bench.expect_passed(Hook::FromPod, late);
    };
    for port in 1..=15 {
        flow(port).ask(bench, Flags::Syn);
    }
    let buckets = [0, 1].map(|number| bench.bucket(v4, number));
    assert!(buckets.iter().all(|bucket| slots(bucket).count() == SLOTS));
    let outside = buckets.iter().map(|bucket| bucket[SLOTS] & 0xf).sum();
    assert_eq!(usize::from(bench.filled(v4, 0)), 2 * SLOTS);
    for port in 1..=15 {
        flow(port).answer(bench, Flags::Ack);
        flow(port).ask(bench, Flags::Ack);
    }
    let more = Frame::new(Proto::Udp, flow(16).client, first.frontend);
    bench.expect_dropped(Hook::FromExternal, more, Metric::ConntrackFull);
    assert_eq!(bench.entries(), 2 * 15, "nothing is left of it");

    bench.age(121);
    ends(bench, 7);
    flow(16).ask(bench, Flags::Syn);
    flow(16).answer(bench, Flags::Ack);
    for port in (1..=15).filter(|port| *port != 7) {
        ends(bench, port);
    }
    assert!(flow(16).is_known(bench));
    bench.age(121);
    ends(bench, 16);
    for number in [0, 1] {
        let bucket = bench.bucket(v4, number);
        assert_eq!((slots(&bucket).count(), bucket[SLOTS] & 0xf, bench.filled(v4, number)), (0, 0, 0));
    }
    outside
}

#[test]
fn flows_with_one_tag_in_one_bucket_are_told_apart() {
    on_bench_with(TWO_BUCKETS, |bench| {
        for net in [V4, V6] {
            let found = (0..100).any(|round| {
                bench.clear();
                let first = serve(bench, net, Proto::Tcp, 0);
                let flows: Vec<Flow> =
                    (1..=15).map(|i| Flow { client: at(net.outside, round * 15 + i), ..first }).collect();
                for flow in &flows {
                    flow.open(bench);
                }
                for flow in &flows {
                    flow.answer(bench, Flags::Ack);
                    flow.ask(bench, Flags::Ack);
                }
                [0, 1].iter().any(|number| {
                    let bucket = bench.bucket(net.vip.is_ipv4(), *number);
                    let tags: Vec<u32> = slots(&bucket).map(|slot| slot >> 24).collect();
                    (1..tags.len()).any(|i| tags[..i].contains(&tags[i]))
                })
            });
            assert!(found, "of 3,000 entries, none share a tag");
        }
    });
}

/// Every flow that is known has two slots, every slot has a flow and is counted, and no key is there twice.
fn check_index(bench: &mut Bench, v4: bool) {
    let mut places = std::collections::HashSet::new();
    for number in (0..bench.setup.buckets).step_by(2) {
        let both = [number, number + 1];
        let counted = bench.filled(v4, number);
        let filled: usize = both.iter().map(|number| slots(&bench.bucket(v4, *number)).count()).sum();
        assert_eq!(usize::from(counted), filled, "buckets {both:?}");
    }
    for number in 0..bench.setup.buckets {
        for slot in slots(&bench.bucket(v4, number)) {
            assert!(places.insert(slot & 0xff_ffff), "a place that is there twice");
        }
    }
    let mut keys = std::collections::HashSet::new();
    let mut halves = 0;
    for number in 0..bench.setup.pairs {
        let pair = bench.pair(v4, number);
        for (half, reply) in pair.chunks(pair.len() / 2).zip(0..) {
            let flags = Word::Flags.of(half, v4);
            if flags & 0xff00 == 0 {
                continue;
            }
            halves += 1;
            let key = if v4 { 12 } else { 36 };
            assert!(keys.insert((half[..key].to_vec(), flags & 0xff00)), "a key that is there twice");
            assert!(places.contains(&(number << 1 | reply)), "a flow that nobody finds: {number}, {reply}");
        }
    }
    assert_eq!(places.len(), halves, "a slot without a flow");
}

#[test]
fn cpus_that_begin_and_end_flows_in_one_bucket_leave_a_whole_table() {
    // A place for each of few flows, which take the room of each other all the time.
    let crowded = Setup { pairs: 64, buckets: 4, ..Setup::USUAL };
    on_bench_with(crowded, |bench| {
        for (net, proto) in [(V4, Proto::Tcp), (V6, Proto::Udp)] {
            bench.clear();
            let first = serve(bench, net, proto, 0);
            let frames: Vec<Vec<Vec<u8>>> = [1u16, 2]
                .map(|thread| {
                    (0..40)
                        .map(|i| {
                            // Some are of both threads.
                            let port = 1000 + if i < 10 { i } else { thread * 100 + i };
                            let client = at(net.outside, port);
                            let mut frame = Frame::new(proto, client, first.frontend);
                            frame.mac_to = bench.mac(Hook::FromExternal);
                            frame.bytes()
                        })
                        .collect()
                })
                .into();
            let bench_ref = &*bench;
            std::thread::scope(|scope| {
                for frames in &frames {
                    scope.spawn(move || {
                        for round in 0..5000 {
                            let bytes = &frames[round * 7 % frames.len()];
                            let action = bench_ref.run_beside(Hook::FromExternal, bytes);
                            assert!(action == REDIRECT || action == crate::bench::SHOT, "{action}");
                        }
                    });
                }
            });
            check_index(bench, net.vip.is_ipv4());
        }
    });
}
