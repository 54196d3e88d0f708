//! Packets that nobody would send, many of them: none crashes anything, and none comes out with a checksum that is
//! more wrong than it was.
//!
//! `KUBENET_FUZZ_PACKETS` says how many random ones, `KUBENET_FUZZ_SEED` which.

use std::{collections::BTreeMap, env, net::SocketAddr, time::Instant};

use crate::{
    bench::{
        Bench, EXTERNAL_DROP, Hook, INTERNAL_DROP, LOCAL, MAGLEV, MASQ_OUTSIDE, MASQ_PODS, Metric, OK,
        REDIRECT, SHOT, SOURCE_RANGES, Setup, UNSPEC, on_bench_with,
    },
    direct::marked,
    frame::{Flags, Frame, L3, Proto},
    icmp::{IcmpError, kinds},
    nets::{Net, V4, V6, at, next},
    oracle::{Met, judge},
    peers::lead_into_pods,
    xdp::{DROP, PASS, TX},
};

/// XDP, and those of TC.
const HOOKS: &[Option<Hook>] = &[None, Some(Hook::FromPod), Some(Hook::FromExternal), Some(Hook::ToDevice)];

/// How the programs may be loaded, and which of them are in use then.
const SETUPS: [(Setup, &[Option<Hook>]); 4] = [
    (Setup::USUAL, HOOKS),
    (Setup { direct: true, ..Setup::USUAL }, HOOKS),
    (Setup { external_tc: false, ..Setup::USUAL }, &[None]),
    (Setup { peer: true, ..Setup::USUAL }, &[Some(Hook::FromPod), Some(Hook::FromExternal)]),
];

/// The maps of what services and backends are charged with.
const CHARGED: [&str; 3] = ["service_traffic", "backend_traffic4", "backend_traffic6"];

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
    let narrow = bench.backend(at(net.narrow, 8080), 0);
    let nobody = if net.vip.is_ipv4() { "0.0.0.0" } else { "::" }.parse().expect("address");
    for proto in Proto::ALL {
        bench.serve(at(net.vip, 80), proto, 0, &[here, there], &[here, there]);
        bench.serve(at(net.vip, 81), proto, 0, &[], &[]);
        bench.serve(at(net.vip, 82), proto, INTERNAL_DROP | EXTERNAL_DROP, &[], &[]);
        bench.serve(at(net.vip, 83), proto, SOURCE_RANGES, &[there], &[there]);
        bench.serve(at(net.vip, 84), proto, MASQ_OUTSIDE, &[there], &[there]);
        bench.serve(at(net.vip, 85), proto, 0, &[same_port], &[same_port]);
        bench.serve(at(net.vip, 86), proto, MASQ_OUTSIDE, &[narrow], &[narrow]);
        bench.affinity = (bench.next_service, 1);
        bench.serve(at(net.vip, 87), proto, MASQ_PODS, &[here, there], &[here, there]);
        bench.affinity = (0, 0);
        bench.serve_listed(at(net.vip, 88), proto, MAGLEV, &[here, there]);
        bench.serve(at(nobody, 30080), proto, 0x20, &[process], &[process]);
        bench.serve(at(nobody, 30081), proto, 0x20 | MASQ_OUTSIDE, &[there], &[there]);
    }
    bench.cluster_ip(net.vip);
}

/// For the next ticks, as nobody is believed to listen for longer.
fn listen(bench: &mut Bench) {
    bench.listen(Some(100), Some(100), u32::MAX);
}

/// As most tests are set up, with few ports to masquerade with, so that answers find a flow; somebody listens to
/// what becomes of the flows, and all is charged.
fn set_up(bench: &mut Bench) {
    bench.clear();
    bench.configure(0, 20000..=20031);
    serve(bench, V4);
    serve(bench, V6);
    listen(bench);
    if bench.setup.peer {
        lead_into_pods(bench);
    }
    for map in CHARGED {
        for id in 1..bench.next_service.max(bench.next_backend) {
            bench.hand_out(map, id, 1);
        }
    }
}

/// Who may talk to whom: to a Service, as a backend that answers, or about neither.
fn pairs(net: Net) -> Vec<(SocketAddr, SocketAddr)> {
    let mut all = Vec::new();
    for client in [at(net.pod, 40000), at(net.outside, 40000)] {
        for port in 80..=89 {
            all.push((client, at(net.vip, port)));
        }
        for backend in
            [at(net.pod_here, 8080), at(net.pod_there, 8080), at(net.pod_there, 85), at(net.node, 8080)]
        {
            all.push((backend, client));
        }
        for port in [30080, 30081] {
            all.push((client, at(net.node, port)));
        }
        all.push((client, at(net.pod_there, 8080)));
    }
    for port in 20000..20004 {
        all.push((at(net.pod_there, 8080), at(net.node, port)));
    }
    all
}

/// What another node marked for a backend here.
fn marks(net: Net) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for proto in Proto::ALL {
        for to in [at(net.pod_here, 8080), at(net.node, 8080), at(net.vip, 80)] {
            for frontend in [at(next(net.node_inner), 30080), at(net.vip, 80)] {
                let frame = Frame::new(proto, at(net.outside, 40000), to);
                all.push(marked(&frame, frontend));
                all.push(marked(&frame.flags(Flags::Ack), frontend));
            }
        }
    }
    all
}

/// Good packets, one of each kind.
fn corpus() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for net in [V4, V6] {
        all.extend(marks(net));
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

/// The kernel refuses to run a program on less than a network header, or an Ethernet header for XDP.
fn shortest(bytes: &[u8], hook: Option<Hook>) -> usize {
    match bytes[12..14] {
        _ if hook.is_none() => L3,
        [0x08, 0x00] => L3 + 20,
        [0x86, 0xdd] => L3 + 40,
        _ => L3,
    }
}

/// Runs packets and judges what comes of them.
struct Court<'a> {
    bench: &'a mut Bench,
    setup: Setup,
    out: Vec<u8>,
    /// How many came out with the mark of direct server return.
    marked: u64,
}

impl Court<'_> {
    /// The packet is given the device's MAC address. Returns what the program does.
    #[track_caller]
    fn check(&mut self, hook: Option<Hook>, bytes: &mut [u8], gso: u32) -> i32 {
        bytes[..6].copy_from_slice(&self.bench.mac(hook.unwrap_or(Hook::FromExternal)));
        let (action, len) = match hook {
            Some(hook) => self.bench.run_into(hook, bytes, gso, &mut self.out),
            None => self.bench.run_xdp_into(bytes, &mut self.out),
        };
        let after = &self.out[..len];
        let met = Met { hook, gso: gso != 0 && hook.is_some(), setup: self.setup };
        if let Err(why) = judge(met, action, bytes, after) {
            let Setup { direct, external_tc, peer, .. } = self.setup;
            eprintln!(
                "direct server return: {direct}, TC behind XDP: {external_tc}, into pods: {peer}, segments of {gso}"
            );
            panic!("{hook:?}, action {action}: {why}\nsent:     {bytes:02x?}\nreceived: {after:02x?}");
        }
        self.marked +=
            u64::from(self.setup.direct && len == bytes.len() + if bytes[12] == 8 { 8 } else { 24 });
        action
    }

    /// What was reported since the last time makes sense. Who reads goes on to listen.
    fn check_events(&mut self) -> usize {
        listen(self.bench);
        let events = self.bench.events("events");
        for event in &events {
            let [kind, family, proto, reason, ..] = event[..] else { panic!("{event:02x?}") };
            assert!(event.len() == 60 && matches!(family, 4 | 6), "{event:02x?}");
            assert!(matches!((kind, reason), (1, 0) | (2, 2..=14)), "{event:02x?}");
            // Also about what is at the end of its hops, whatever it is.
            assert!(kind == 2 || Proto::ALL.iter().any(|p| p.number() == proto), "{event:02x?}");
        }
        events.len()
    }

    /// Nothing is charged that did not go through, and backends get what their services get.
    fn check_charges(&mut self, before: [u64; 2]) {
        let ids = 1..self.bench.next_service.max(self.bench.next_backend);
        let [service, ipv4, ipv6] = CHARGED.map(|map| {
            ids.clone()
                .map(|id| self.bench.traffic(map, id))
                .fold([0; 5], |sum, numbers| std::array::from_fn(|i| sum[i] + numbers[i]))
        });
        let backends = [0, 1, 2, 3, 4].map(|i| ipv4[i] + ipv6[i]);
        let [forwarded, begun] = [Metric::Forwarded, Metric::NewFlow].map(|metric| self.bench.metric(metric));
        let (forwarded, begun) = (forwarded - before[0], begun - before[1]);
        assert!((1..=begun).contains(&service[0]), "{service:?}, {begun} begun");
        assert!(service[1] + service[3] <= forwarded + begun, "{service:?}, {forwarded} forwarded");
        if self.setup.direct {
            // What a mark began may be a service's, but it is no backend's.
            assert!(backends.iter().zip(service).all(|(backend, service)| *backend <= service));
        } else {
            assert_eq!(backends, service);
        }
    }
}

#[test]
fn every_good_packet_cut_or_bent_at_any_place_does_no_harm() {
    for (setup, hooks) in SETUPS {
        on_bench_with(setup, |bench| {
            bench.load_xdp();
            set_up(bench);
            let mut court = Court { bench, setup, out: vec![0; 4096], marked: 0 };
            // Each twelfth: the others differ little.
            for (i, good) in corpus().iter().enumerate() {
                let hook = hooks[i % hooks.len()];
                let mut bytes = good.clone();
                court.check(hook, &mut bytes, 0);
                if i % 12 != 0 {
                    continue;
                }
                for len in shortest(&bytes, hook)..bytes.len() {
                    court.check(hook, &mut bytes[..len], 0);
                }
                for at in L3..bytes.len().min(L3 + 120) {
                    let old = bytes[at];
                    for new in [0, 1, 0x7f, 0x80, 0xff, old ^ 1, old ^ 0x10, old.wrapping_add(1)] {
                        bytes[at] = new;
                        court.check(hook, &mut bytes, 0);
                    }
                    bytes[at] = old;
                }
            }
        });
    }
}

/// Makes a packet worse.
fn mutate(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], hook: Option<Hook>, random: &mut Random) {
    match random.below(13) {
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
            let shortest = shortest(bytes, hook);
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
        // In a VLAN, or in one within another.
        11 => {
            for _ in 0..=random.below(2) {
                let tag = [[0x81, 0], [0x88, 0xa8]][random.below(2)];
                bytes.splice(12..12, [tag[0], tag[1], random.next() as u8, random.next() as u8]);
            }
        }
        // Noise, with or without a header in front.
        _ => {
            let from = if random.below(2) == 0 { L3 } else { L3 + 40 };
            for byte in bytes.iter_mut().skip(from) {
                *byte = random.next() as u8;
            }
        }
    }
    let shortest = shortest(bytes, hook);
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
    let mut random = Random(seed | 1 << 63);
    let begin = Instant::now();
    for ((setup, hooks), percent) in SETUPS.into_iter().zip([40, 30, 15, 15]) {
        on_bench_with(setup, |bench| {
            bench.load_xdp();
            set_up(bench);
            let court = Court { bench, setup, out: vec![0; 4096], marked: 0 };
            feed(court, hooks, count * percent / 100, &mut random);
        });
    }
    println!("{count} packets from seed {seed} in {:?}", begin.elapsed());
}

/// Feeds so many packets to the programs of these hooks.
fn feed(mut court: Court<'_>, hooks: &[Option<Hook>], count: u64, random: &mut Random) {
    let corpus = corpus();
    let before = [Metric::Forwarded, Metric::NewFlow].map(|metric| court.bench.metric(metric));
    let (mut bytes, mut events) = (Vec::new(), 0);
    // By hook, and by what the program does.
    let mut actions = vec![BTreeMap::new(); hooks.len()];
    for i in 0..count {
        let at = random.below(hooks.len());
        let hook = hooks[at];
        bytes.clone_from(random.one_of(&corpus));
        mutate(&mut bytes, &corpus, hook, random);
        let gso = if random.below(50) == 0 { 1 + random.below(1400) as u32 } else { 0 };
        *actions[at].entry(court.check(hook, &mut bytes, gso)).or_insert(0) += 1;
        if i % 500 == 0 {
            events += court.check_events();
        }
    }
    court.check_charges(before);
    let Setup { direct, external_tc, peer, .. } = court.setup;
    println!(
        "direct server return: {direct}, TC behind XDP: {external_tc}, into pods: {peer}, {events} events, {} marked",
        court.marked
    );
    for (hook, actions) in hooks.iter().zip(&actions) {
        let names: &[(i32, &str)] = match hook {
            Some(Hook::ToDevice) => &[(UNSPEC, "passed"), (SHOT, "dropped"), (REDIRECT, "answered")],
            Some(_) => &[(UNSPEC, "passed"), (OK, "stack"), (SHOT, "dropped"), (REDIRECT, "sent on")],
            // What begins is TC's, and what it drops.
            None if direct => &[(PASS, "passed"), (TX, "sent on")],
            None => &[(PASS, "passed"), (DROP, "dropped"), (TX, "sent on")],
        };
        let numbers = names.iter().map(|(action, name)| {
            let number = actions.get(action).copied().unwrap_or(0);
            // Otherwise nothing was tried.
            assert!(number > count / 10_000, "{hook:?}: {number} {name} of {count}");
            format!("{number} {name}")
        });
        let hook = hook.map_or("XDP".into(), |hook| format!("{hook:?}"));
        println!("  {hook}: {}", numbers.collect::<Vec<_>>().join(", "));
    }
    assert!(!direct || court.marked > count / 1000, "{} marked", court.marked);
    assert!(events as u64 > count / 1000, "{events} events");
}
