//! Flows that last, and floods that would push them out of the connection table.

use std::net::SocketAddr;

use crate::{
    bench::{Bench, Hook, LOCAL, MASQ_OUTSIDE, Metric, REDIRECT, for_each_kind, for_tcp_and_udp, on_bench},
    frame::{Flags, Frame, Proto},
    nets::{Net, V4, V6, at, next},
};

impl Bench {
    /// Whether a map has the entry for packets from one address to another.
    pub fn has(&mut self, map: &str, from: SocketAddr, to: SocketAddr, proto: Proto) -> bool {
        self.entry(map, from, to, proto).is_some()
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

/// A flow that is kept, masqueraded with the only port that there is.
struct OnePort {
    proto: Proto,
    client: SocketAddr,
    /// Who would have the port.
    other: SocketAddr,
    frontend: SocketAddr,
    source: SocketAddr,
    backend: SocketAddr,
}

impl OnePort {
    fn open(bench: &mut Bench, net: Net, proto: Proto) -> Self {
        let (frontend, backend) = (at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
        bench.configure(0, 20000..=20000);
        let [client, other] = [1, 2].map(|port| at(net.outside, port));
        let flow = Self { proto, client, other, frontend, source: at(net.node, 20000), backend };
        flow.ask(bench, client, Flags::Syn);
        flow.answer(bench, Flags::SynAck);
        bench.age(1);
        flow.ask(bench, client, Flags::Ack);
        assert_eq!(flow.kept(bench), [true; 2]);
        flow
    }

    fn asking(&self, from: SocketAddr, flags: Flags) -> Frame {
        Frame::new(self.proto, from, self.frontend).flags(flags)
    }

    #[track_caller]
    fn ask(&self, bench: &mut Bench, from: SocketAddr, flags: Flags) {
        bench.expect_forwarded(Hook::FromExternal, self.asking(from, flags), self.source, self.backend);
    }

    #[track_caller]
    fn answer(&self, bench: &mut Bench, flags: Flags) {
        self.answer_to(bench, self.client, flags);
    }

    #[track_caller]
    fn answer_to(&self, bench: &mut Bench, client: SocketAddr, flags: Flags) {
        let frame = Frame::new(self.proto, self.backend, self.source).flags(flags);
        bench.expect_forwarded(Hook::FromExternal, frame, self.frontend, client);
    }

    /// Whether there are copies of the entries of the client, and of the backend.
    fn kept(&self, bench: &mut Bench) -> [bool; 2] {
        [(self.client, self.frontend), (self.backend, self.source)]
            .map(|(from, to)| bench.has("established", from, to, self.proto))
    }
}

#[test]
fn the_port_of_a_flow_that_was_pushed_out_is_not_given_to_another() {
    for_tcp_and_udp(|bench, net, proto| {
        let flow = OnePort::open(bench, net, proto);
        bench.evict(flow.client, flow.frontend, proto);
        bench.evict(flow.backend, flow.source, proto);

        let other = flow.asking(flow.other, Flags::Syn);
        bench.expect_dropped(Hook::FromExternal, other, Metric::SnatExhausted);
        flow.answer(bench, Flags::Ack);
        flow.ask(bench, flow.client, Flags::Ack);
    });
}

#[test]
fn a_flow_whose_port_was_given_to_another_is_kept_no_longer() {
    for_tcp_and_udp(|bench, net, proto| {
        // Silent for so long, and pushed out or not.
        let idle = if proto == Proto::Tcp { 3600 } else { 30 };
        for pushed_out in [false, true] {
            bench.clear();
            let flow = OnePort::open(bench, net, proto);
            bench.age(idle - 10);
            let other = flow.asking(flow.other, Flags::Syn);
            bench.expect_dropped(Hook::FromExternal, other, Metric::SnatExhausted);
            bench.age(10);
            if pushed_out {
                bench.evict(flow.client, flow.frontend, proto);
                bench.evict(flow.backend, flow.source, proto);
            }
            flow.ask(bench, flow.other, Flags::Syn);
            assert_eq!(flow.kept(bench), [false; 2]);
            flow.answer_to(bench, flow.other, Flags::SynAck);
            // Who had it is not mistaken for who has it now.
            let late = flow.asking(flow.client, Flags::Ack);
            if proto == Proto::Tcp {
                bench.expect_passed(Hook::FromExternal, late);
            } else {
                bench.expect_dropped(Hook::FromExternal, late, Metric::SnatExhausted);
            }
            assert_eq!(bench.entries(), 2);
        }
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
