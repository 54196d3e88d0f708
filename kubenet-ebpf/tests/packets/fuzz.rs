//! Packets that nobody would send, many of them: none crashes anything, and none comes out with a checksum that is
//! more wrong than it was.
//!
//! `KUBENET_FUZZ_PACKETS` says how many random ones, `KUBENET_FUZZ_SEED` which.

use std::{env, net::SocketAddr, time::Instant};

use crate::{
    bench::{
        Bench, EXTERNAL_DROP, Hook, INTERNAL_DROP, LOCAL, MASQ_OUTSIDE, OK, REDIRECT, SHOT, SOURCE_RANGES,
        UNSPEC, on_bench,
    },
    frame::{Flags, Frame, L3, Proto},
    icmp::{IcmpError, kinds},
    nets::{Net, V4, V6, at},
    oracle::judge,
};

const HOOKS: [Hook; 3] = [Hook::FromPod, Hook::FromExternal, Hook::ToDevice];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// Services of every kind.
fn serve(bench: &mut Bench, net: Net) {
    let here = bench.backend(at(net.pod_here, 8080), LOCAL);
    let there = bench.backend(at(net.pod_there, 8080), 0);
    let same_port = bench.backend(at(net.pod_there, 85), 0);
    let process = bench.backend(at(net.node, 8080), LOCAL);
    let nobody = if net.vip.is_ipv4() { "0.0.0.0" } else { "::" }.parse().expect("address");
    for proto in Proto::ALL {
        bench.serve(at(net.vip, 80), proto, 0, &[here, there], &[here, there]);
        bench.serve(at(net.vip, 81), proto, 0, &[], &[]);
        bench.serve(at(net.vip, 82), proto, INTERNAL_DROP | EXTERNAL_DROP, &[], &[]);
        bench.serve(at(net.vip, 83), proto, SOURCE_RANGES, &[there], &[there]);
        bench.serve(at(net.vip, 84), proto, MASQ_OUTSIDE, &[there], &[there]);
        bench.serve(at(net.vip, 85), proto, 0, &[same_port], &[same_port]);
        bench.serve(at(nobody, 30080), proto, 0x20, &[process], &[process]);
    }
    bench.cluster_ip(net.vip);
}

/// Who may talk to whom: to a Service, as a backend that answers, or about neither.
fn pairs(net: Net) -> Vec<(SocketAddr, SocketAddr)> {
    let mut all = Vec::new();
    for client in [at(net.pod, 40000), at(net.outside, 40000)] {
        for port in 80..=86 {
            all.push((client, at(net.vip, port)));
        }
        for backend in
            [at(net.pod_here, 8080), at(net.pod_there, 8080), at(net.pod_there, 85), at(net.node, 8080)]
        {
            all.push((backend, client));
        }
        all.push((client, at(net.node, 30080)));
        all.push((client, at(net.pod_there, 8080)));
    }
    all.push((at(net.pod_there, 8080), at(net.node, 20000)));
    all
}

/// Good packets, one of each kind.
fn corpus() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for net in [V4, V6] {
        for proto in Proto::ALL {
            for (i, (from, to)) in pairs(net).into_iter().enumerate() {
                for flags in [Flags::Syn, Flags::SynAck, Flags::Ack, Flags::Fin, Flags::Rst] {
                    let mut frame = Frame::new(proto, from, to).flags(flags);
                    frame.id = i as u16;
                    all.push(frame.bytes());
                    frame.no_checksum = proto != Proto::Tcp;
                    frame.extensions = net.vip.is_ipv6();
                    if net.vip.is_ipv4() {
                        frame.ip_options = vec![1; 4 * (i % 11)];
                    }
                    all.push(frame.bytes());
                    if flags == Flags::Syn {
                        all.extend(frame.fragments(40));
                    }
                }
                // As somebody on the way of the answer to this frame would say it.
                for (kind, quoted) in kinds(net.vip.is_ipv4()).iter().zip([28, 32, 44, 48, 68, 100, 300, 52])
                {
                    let mut error = IcmpError::new(net.pod_there, Frame::new(proto, to, from)).kind(*kind);
                    error.quoted = quoted;
                    all.push(error.bytes());
                }
            }
        }
    }
    all
}

fn mac(bytes: &mut [u8], bench: &Bench, hook: Hook) {
    bytes[..6].copy_from_slice(&bench.mac(hook));
}

/// The kernel refuses to run a program on less than a network header.
fn shortest(bytes: &[u8]) -> usize {
    match bytes[12..14] {
        [0x08, 0x00] => L3 + 20,
        [0x86, 0xdd] => L3 + 40,
        _ => L3,
    }
}

/// Runs a packet and judges what comes of it.
#[track_caller]
fn check(bench: &mut Bench, hook: Hook, bytes: &[u8], gso: u32, out: &mut [u8]) -> i32 {
    let (action, len) = bench.run_into(hook, bytes, gso, out);
    if let Err(why) = judge(hook, gso != 0, action, bytes, &out[..len]) {
        panic!("{hook:?}, action {action}: {why}\nsent:     {bytes:02x?}\nreceived: {:02x?}", &out[..len]);
    }
    action
}

#[test]
fn every_good_packet_cut_or_bent_at_any_place_does_no_harm() {
    on_bench(|bench| {
        bench.clear();
        serve(bench, V4);
        serve(bench, V6);
        let mut out = vec![0; 4096];
        // Each twelfth: the others differ little.
        for (i, good) in corpus().iter().enumerate() {
            let hook = HOOKS[i % 3];
            let mut bytes = good.clone();
            mac(&mut bytes, bench, hook);
            check(bench, hook, &bytes, 0, &mut out);
            if i % 12 != 0 {
                continue;
            }
            for len in shortest(&bytes)..bytes.len() {
                check(bench, hook, &bytes[..len], 0, &mut out);
            }
            for at in L3..bytes.len().min(L3 + 120) {
                let old = bytes[at];
                for new in [0, 1, 0x7f, 0x80, 0xff, old ^ 1, old ^ 0x10, old.wrapping_add(1)] {
                    bytes[at] = new;
                    check(bench, hook, &bytes, 0, &mut out);
                }
                bytes[at] = old;
            }
        }
    });
}

/// Makes a packet worse.
fn mutate(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    match random.below(12) {
        // As it is.
        0..=2 => {}
        // A few bytes of the headers, or anywhere.
        3..=5 => {
            let reach = (bytes.len() - L3).min(96);
            for _ in 0..=random.below(4) {
                bytes[L3 + random.below(reach)] = random.next() as u8;
            }
        }
        6 => {
            let bit = random.below(8 * (bytes.len() - L3));
            bytes[L3 + bit / 8] ^= 1 << (bit % 8);
        }
        7 => {
            let shortest = shortest(bytes);
            bytes.truncate(shortest + random.below(bytes.len() - shortest + 1));
        }
        8 => bytes.extend((0..random.below(64)).map(|i| i as u8)),
        // The beginning of one and the end of another.
        9 => {
            let other = random.one_of(corpus);
            let at = L3 + random.below(bytes.len().min(other.len()) - L3);
            bytes.truncate(at);
            bytes.extend(&other[at..]);
        }
        // A piece of it again, somewhere.
        10 => {
            let from = L3 + random.below(bytes.len() - L3);
            let len = random.below(bytes.len() - from + 1).min(64);
            let piece = bytes[from..from + len].to_vec();
            let at = L3 + random.below(bytes.len() - L3);
            bytes.splice(at..at, piece);
        }
        // Noise, with or without a header in front.
        _ => {
            let from = if random.below(2) == 0 { L3 } else { L3 + 40 };
            for byte in bytes.iter_mut().skip(from) {
                *byte = random.next() as u8;
            }
        }
    }
    let shortest = shortest(bytes);
    if bytes.len() < shortest {
        bytes.resize(shortest, 0);
    }
}

fn setting(name: &str) -> Option<u64> {
    env::var(name)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name}: {value:?} is no number")))
}

#[test]
fn random_packets_do_no_harm() {
    let count = setting("KUBENET_FUZZ_PACKETS").unwrap_or(100_000);
    let seed = setting("KUBENET_FUZZ_SEED").unwrap_or(1);
    on_bench(|bench| {
        bench.clear();
        serve(bench, V4);
        serve(bench, V6);
        let corpus = corpus();
        let mut random = Random(seed | 1 << 63);
        let (mut bytes, mut out) = (Vec::new(), vec![0; 4096]);
        let mut actions = [0u64; 4];
        let begin = Instant::now();
        for i in 0..count {
            if i % 1_000_000 == 999_999 {
                println!("{} of {count} packets after {:?}", i + 1, begin.elapsed());
            }
            let hook = *random.one_of(&HOOKS);
            bytes.clone_from(random.one_of(&corpus));
            mutate(&mut bytes, &corpus, &mut random);
            mac(&mut bytes, bench, hook);
            let gso = if random.below(50) == 0 { 1 + random.below(1400) as u32 } else { 0 };
            match check(bench, hook, &bytes, gso, &mut out) {
                UNSPEC => actions[0] += 1,
                OK => actions[1] += 1,
                SHOT => actions[2] += 1,
                REDIRECT => actions[3] += 1,
                other => panic!("the program returns {other}"),
            }
        }
        let [passed, to_stack, dropped, sent_on] = actions;
        println!(
            "{count} packets from seed {seed} in {:?}: {passed} passed, {to_stack} for the stack, {dropped} dropped, \
             {sent_on} sent on",
            begin.elapsed()
        );
        // Otherwise nothing was tried.
        assert!(actions.iter().all(|n| *n > count / 1000), "{actions:?}");
    });
}
