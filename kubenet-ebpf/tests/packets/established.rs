//! Flows that last, and floods that would push them out of the connection table.

use std::net::SocketAddr;

use aya::maps::HashMap;

use crate::{
    bench::{Bench, Hook, LOCAL, MASQ_OUTSIDE, Metric, REDIRECT, for_each_kind, octets, on_bench},
    frame::{Flags, Frame, Proto},
    nets::{Net, V4, V6, at, next},
};

impl Bench {
    /// Whether a map has the entry for packets from one address to another.
    pub fn has(&mut self, map: &str, from: SocketAddr, to: SocketAddr, proto: Proto) -> bool {
        let mut key = [octets(from.ip()), octets(to.ip())].concat();
        key.extend([from.port().to_be_bytes(), to.port().to_be_bytes()].concat());
        key.extend([proto.number(), 0, 0, 0]);
        let map = self.map_mut(&format!("{map}{}", if from.is_ipv4() { 4 } else { 6 }));
        match <[u8; 16]>::try_from(&key[..]) {
            Ok(key) => HashMap::<_, _, [u8; 56]>::try_from(map).unwrap().get(&key, 0).is_ok(),
            Err(_) => {
                let key: [u8; 40] = key.try_into().unwrap();
                HashMap::<_, _, [u8; 92]>::try_from(map).unwrap().get(&key, 0).is_ok()
            }
        }
    }
}

/// A flow of a client outside to a backend here, both ways.
#[derive(Clone, Copy)]
struct Flow {
    proto: Proto,
    client: SocketAddr,
    frontend: SocketAddr,
    backend: SocketAddr,
}

impl Flow {
    fn ask(self, bench: &mut Bench, flags: Flags) {
        let frame = Frame::new(self.proto, self.client, self.frontend).flags(flags);
        bench.expect_forwarded(Hook::FromExternal, frame, self.client, self.backend);
    }

    fn answer(self, bench: &mut Bench, flags: Flags) {
        let frame = Frame::new(self.proto, self.backend, self.client).flags(flags);
        bench.expect_forwarded(Hook::FromPod, frame, self.frontend, self.client);
    }

    fn open(self, bench: &mut Bench) {
        self.ask(bench, Flags::Syn);
        self.answer(bench, Flags::SynAck);
        self.ask(bench, Flags::Ack);
    }

    /// Whether there are copies of its entries, of both or of none.
    #[track_caller]
    fn is_kept(self, bench: &mut Bench) -> bool {
        let there = bench.has("established", self.client, self.frontend, self.proto);
        let back = bench.has("established", self.backend, self.client, self.proto);
        assert_eq!(there, back);
        there
    }

    /// As the LRU may: whichever of its entries are there.
    fn push_out(self, bench: &mut Bench) {
        for (from, to) in [(self.client, self.frontend), (self.backend, self.client)] {
            if bench.has("conntrack", from, to, self.proto) {
                bench.evict(from, to, self.proto);
            }
        }
        assert_eq!(bench.entries(), 0);
    }
}

fn serve(bench: &mut Bench, net: Net, proto: Proto, port: u16) -> Flow {
    let (frontend, backend) = (at(net.vip, 80), at(net.pod_here, 8080));
    let id = bench.backend(backend, LOCAL);
    bench.serve(frontend, proto, 0, &[id], &[id]);
    Flow { proto, client: at(net.outside, port), frontend, backend }
}

#[test]
fn a_flow_that_was_answered_and_went_on_is_found_again_when_it_was_pushed_out() {
    for_each_kind(|bench, net, proto| {
        let flow = serve(bench, net, proto, 40000);
        flow.open(bench);
        assert!(!flow.is_kept(bench), "it may be a short one");
        bench.age(1);
        flow.ask(bench, Flags::Ack);
        assert!(flow.is_kept(bench));

        // The backend is out of use, so that nobody can have picked it again.
        let other = bench.backend(at(net.pod_there, 9090), 0);
        bench.replace_set(flow.frontend, proto, &[other]);
        flow.push_out(bench);
        flow.ask(bench, Flags::Ack);
        // Its answer finds the way back, too.
        flow.push_out(bench);
        flow.answer(bench, Flags::Ack);
        flow.ask(bench, Flags::Ack);
        assert_eq!(bench.entries(), 2);
    });
}

#[test]
fn a_flow_that_nobody_answered_or_the_client_left_is_not_kept() {
    for_each_kind(|bench, net, proto| {
        let silent = serve(bench, net, proto, 40000);
        let asked = |bench: &mut Bench, flags| {
            bench.age(1);
            silent.ask(bench, flags);
        };
        for _ in 0..3 {
            asked(bench, Flags::Syn);
        }
        assert!(!silent.is_kept(bench), "nobody answered");
        // As the backend of a forged SYN does.
        if proto != Proto::Udp {
            for _ in 0..3 {
                bench.age(1);
                silent.answer(bench, Flags::SynAck);
            }
            asked(bench, Flags::Syn);
            assert!(!silent.is_kept(bench), "the client heard none of it");
        }
        silent.answer(bench, Flags::SynAck);
        asked(bench, Flags::Ack);
        assert!(silent.is_kept(bench));
    });
}

#[test]
fn a_connection_that_ends_is_let_go() {
    for_each_kind(|bench, net, proto| {
        if proto != Proto::Tcp {
            return;
        }
        type End = fn(Flow, &mut Bench);
        let ends: [End; 3] = [
            |flow, bench| flow.ask(bench, Flags::Fin),
            |flow, bench| flow.answer(bench, Flags::Fin),
            |flow, bench| flow.answer(bench, Flags::Rst),
        ];
        let first = serve(bench, net, proto, 0);
        for (port, end) in (40000..).zip(ends) {
            let flow = Flow { client: at(net.outside, port), ..first };
            flow.open(bench);
            bench.age(1);
            flow.ask(bench, Flags::Ack);
            assert!(flow.is_kept(bench));
            end(flow, bench);
            assert!(!flow.is_kept(bench));
            bench.age(1);
            flow.ask(bench, Flags::Ack);
            assert!(!flow.is_kept(bench), "it ends all the same");
        }
    });
}

#[test]
fn the_port_of_a_flow_that_was_pushed_out_is_not_given_to_another() {
    for_each_kind(|bench, net, proto| {
        if proto == Proto::Sctp {
            return;
        }
        let (frontend, backend) = (at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
        bench.configure(0, 20000..=20000);
        let source = at(net.node, 20000);
        let [client, other] = [1, 2].map(|port| at(net.outside, port));
        let ask = |from, flags| Frame::new(proto, from, frontend).flags(flags);
        let answer = |flags| Frame::new(proto, backend, source).flags(flags);
        bench.expect_forwarded(Hook::FromExternal, ask(client, Flags::Syn), source, backend);
        bench.expect_forwarded(Hook::FromExternal, answer(Flags::SynAck), frontend, client);
        bench.age(1);
        bench.expect_forwarded(Hook::FromExternal, ask(client, Flags::Ack), source, backend);
        bench.evict(client, frontend, proto);
        bench.evict(backend, source, proto);

        bench.expect_dropped(Hook::FromExternal, ask(other, Flags::Syn), Metric::SnatExhausted);
        bench.expect_forwarded(Hook::FromExternal, answer(Flags::Ack), frontend, client);
        bench.expect_forwarded(Hook::FromExternal, ask(client, Flags::Ack), source, backend);
    });
}

/// SYNs or datagrams to the frontend, each from another address.
fn flood(bench: &mut Bench, flow: Flow, numbers: std::ops::Range<u32>) {
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

            let mut lost = 0;
            let round = clients / 10;
            for i in 0..10 {
                flood(bench, first, i * round..(i + 1) * round);
                for (n, flow) in flows.iter().enumerate() {
                    lost += u32::from(!bench.has("conntrack", flow.client, flow.frontend, proto));
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
            eprintln!("{clients} clients, {proto:?}: flows were taken back {lost} times");
            assert!(lost > 1000, "the flood was none: {lost}");
        }
    });
}
