//! Packets that go straight into the namespaces of pods. A test run does not say by which helper: such a frame has the
//! pod's MAC address, and that of the device that it came in by as its source.

use std::net::{IpAddr, SocketAddr};

use crate::{
    bench::{Bench, Hook, LOCAL, REDIRECT, Setup, on_bench_with},
    clock::{begin_tick, ticks},
    frame::{Flags, Frame, Proto},
    netns::ip,
    nets::{Net, V4, V6, at},
    table::Word,
};

/// Next to `ROUTE_XDP`.
const ROUTE_PEER: u32 = 1 << 30;
const ROUTE_XDP: u32 = 1 << 31;

pub const POD: [u8; 6] = [2, 0, 0, 0, 1, 0x10];
const OTHER: [u8; 6] = [2, 0, 0, 0, 1, 0x11];

/// A client outside, a frontend and a backend here, which is behind a device that leads into a pod, with a neighbour.
#[derive(Clone, Copy)]
struct Ends {
    client: SocketAddr,
    frontend: SocketAddr,
    backend: SocketAddr,
    proto: Proto,
}

impl Ends {
    fn serve(bench: &mut Bench, net: Net, proto: Proto) -> Self {
        let (client, frontend, backend) = (at(net.outside, 40000), at(net.vip, 80), at(net.pod_here, 8080));
        let id = bench.backend(backend, LOCAL);
        bench.serve(frontend, proto, 0, &[id], &[id]);
        bench.leads_into_pod();
        let ends = Self { client, frontend, backend, proto };
        ends.neighbour(POD);
        ends
    }

    fn neighbour(self, mac: [u8; 6]) {
        neighbour(self.backend.ip(), mac);
    }

    fn forget_neighbour(self) {
        ip(&format!("neigh del {} dev pod0", self.backend.ip()));
    }

    fn frame(self, flags: Flags) -> Frame {
        Frame::new(self.proto, self.client, self.frontend).flags(flags)
    }

    /// Sends a packet of the client, which is to come out for this MAC address; without one, with those that it had.
    #[track_caller]
    fn expect(self, bench: &mut Bench, mut frame: Frame, mac: Option<[u8; 6]>) {
        let outcome = bench.send(Hook::FromExternal, &mut frame);
        let mut expected = frame.forwarded(self.client, self.backend);
        if let Some(mac) = mac {
            (expected.mac_from, expected.mac_to) = (frame.mac_to, mac);
        }
        assert_eq!((outcome.action, outcome.bytes), (REDIRECT, expected.bytes()));
    }

    fn device(self, bench: &mut Bench) -> u32 {
        bench.entry(self.client, self.frontend, self.proto).expect("a known flow").get(Word::Device)
    }

    fn set_device(self, bench: &mut Bench, device: u32) {
        let entry = bench.entry(self.client, self.frontend, self.proto).expect("a known flow");
        bench.set_entry(&entry.with(Word::Device, device));
    }

    /// A flow with a kept route. All of it in one tick, so that it stays kept for a moment.
    #[track_caller]
    fn open(self, bench: &mut Bench) {
        begin_tick();
        self.expect(bench, self.frame(Flags::Syn), Some(POD));
        self.expect(bench, self.frame(Flags::Ack), Some(POD));
        assert_eq!(self.device(bench), bench.pod0 | ROUTE_PEER);
    }
}

fn neighbour(address: IpAddr, [a, b, c, d, e, f]: [u8; 6]) {
    let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    ip(&format!("neigh replace {address} lladdr {mac} dev pod0"));
}

/// All pods here get packets straight, and have the same MAC address.
pub fn lead_into_pods(bench: &mut Bench) {
    bench.leads_into_pod();
    for address in [V4, V6].iter().flat_map(|net| [net.pod, net.pod_here]) {
        neighbour(address, POD);
    }
}

impl Bench {
    fn leads_into_pod(&mut self) {
        let index = self.pod0.to_ne_bytes();
        self.insert::<4, 4>("pod_peers", &index, &[1, 0, 0, 0]);
    }
}

fn for_tcp_and_udp(peer: bool, test: impl Fn(&mut Bench, Net, Proto) + Send + Sync) {
    on_bench_with(Setup { peer, ..Setup::USUAL }, |bench| {
        for net in [V4, V6] {
            for proto in [Proto::Tcp, Proto::Udp] {
                eprintln!("{proto:?} from {}", net.outside);
                bench.clear();
                test(bench, net, proto);
            }
        }
    });
}

#[test]
fn a_packet_into_a_pod_is_addressed_to_it_and_takes_the_way_of_the_one_before() {
    for_tcp_and_udp(true, |bench, net, proto| {
        let ends = Ends::serve(bench, net, proto);
        ends.open(bench);
        // The second may be over in between, but not each time.
        let kept = (0..3).any(|_| {
            ends.neighbour(POD);
            bench.age(2);
            begin_tick();
            let begun = ticks();
            ends.expect(bench, ends.frame(Flags::Ack), Some(POD));
            ends.neighbour(OTHER);
            let mut frame = ends.frame(Flags::Ack);
            let outcome = bench.send(Hook::FromExternal, &mut frame);
            assert_eq!(outcome.action, REDIRECT);
            outcome.bytes[..6] == POD && ticks() == begun
        });
        assert!(kept);
        bench.age(2);
        ends.expect(bench, ends.frame(Flags::Ack), Some(OTHER));
        assert_eq!(ends.device(bench), bench.pod0 | ROUTE_PEER);
    });
}

#[test]
fn answers_of_a_pod_go_straight_into_another() {
    for_tcp_and_udp(true, |bench, net, proto| {
        // Here the client is a pod, too, and both are behind the same device.
        let ends = Ends { client: at(net.pod, 40000), ..Ends::serve(bench, net, proto) };
        neighbour(net.pod, OTHER);
        for flags in [Flags::Syn, Flags::Ack, Flags::Ack] {
            let mut frame = ends.frame(flags);
            let outcome = bench.send(Hook::FromPod, &mut frame);
            let mut expected = frame.forwarded(ends.client, ends.backend);
            (expected.mac_from, expected.mac_to) = (frame.mac_to, POD);
            assert_eq!((outcome.action, outcome.bytes), (REDIRECT, expected.bytes()));

            let mut answer = Frame::new(proto, ends.backend, ends.client).flags(match flags {
                Flags::Syn => Flags::SynAck,
                flags => flags,
            });
            let outcome = bench.send(Hook::FromPod, &mut answer);
            let mut expected = answer.forwarded(ends.frontend, ends.client);
            (expected.mac_from, expected.mac_to) = (answer.mac_to, OTHER);
            assert_eq!((outcome.action, outcome.bytes), (REDIRECT, expected.bytes()));
        }
    });
}

#[test]
fn without_a_neighbour_the_stack_asks_for_it() {
    for_tcp_and_udp(true, |bench, net, proto| {
        let ends = Ends::serve(bench, net, proto);
        ends.forget_neighbour();
        for flags in [Flags::Syn, Flags::Ack, Flags::Ack] {
            ends.expect(bench, ends.frame(flags), None);
        }
        ends.neighbour(POD);
        bench.age(2);
        for _ in 0..2 {
            ends.expect(bench, ends.frame(Flags::Ack), Some(POD));
        }
    });
}

#[test]
fn a_device_that_leads_into_no_pod_gets_packets_as_ever() {
    for_tcp_and_udp(true, |bench, net, proto| {
        let ends = Ends::serve(bench, net, proto);
        let mut map =
            aya::maps::HashMap::<_, u32, u32>::try_from(bench.ebpf.map_mut("pod_peers").unwrap()).unwrap();
        map.remove(&bench.pod0).unwrap();
        begin_tick();
        for flags in [Flags::Syn, Flags::Ack, Flags::Ack] {
            ends.expect(bench, ends.frame(flags), None);
        }
        assert_eq!(ends.device(bench), bench.pod0);
    });
}

#[test]
fn what_is_not_at_the_way_of_the_one_before_is_looked_at_again() {
    for_tcp_and_udp(true, |bench, net, proto| {
        let ends = Ends::serve(bench, net, proto);
        ends.open(bench);
        // XDP's, of whatever device.
        for device in [bench.pod0, bench.ext0].map(|device| device | ROUTE_XDP) {
            ends.set_device(bench, device);
            ends.expect(bench, ends.frame(Flags::Ack), Some(POD));
        }
        // At the end of its hops, and larger than the way.
        let mut last = ends.frame(Flags::Ack).ttl(1);
        let answer = bench.send(Hook::FromExternal, &mut last);
        assert_eq!((answer.action, &answer.bytes[..6]), (REDIRECT, &last.mac_from[..]));
        let large = ends.frame(Flags::Ack).payload(vec![7; 1500]);
        bench.expect_answered(Hook::FromExternal, large, |frame| frame.icmp((3, 4), (2, 0), 1500));
    });
}

/// As after an upgrade that switched it off.
#[test]
fn programs_without_it_do_not_go_the_way_of_those_with_it() {
    for_tcp_and_udp(false, |bench, net, proto| {
        let ends = Ends::serve(bench, net, proto);
        begin_tick();
        for flags in [Flags::Syn, Flags::Ack] {
            ends.expect(bench, ends.frame(flags), None);
        }
        assert_eq!(ends.device(bench), bench.pod0);
        ends.set_device(bench, bench.pod0 | ROUTE_PEER);
        ends.expect(bench, ends.frame(Flags::Ack), None);
        assert_eq!(ends.device(bench) & ROUTE_PEER, 0);
    });
}

#[test]
fn fragments_and_sctp_take_the_usual_way() {
    on_bench_with(Setup { peer: true, ..Setup::USUAL }, |bench| {
        for net in [V4, V6] {
            bench.clear();
            let ends = Ends::serve(bench, net, Proto::Sctp);
            for flags in [Flags::Syn, Flags::Ack] {
                ends.expect(bench, ends.frame(flags), None);
            }
            let ends = Ends::serve(bench, net, Proto::Udp);
            let mut large = ends.frame(Flags::Ack).payload(vec![7; 2000]);
            large.mac_to = bench.mac(Hook::FromExternal);
            let expected = large.forwarded(ends.client, ends.backend).fragments(1400);
            for (fragment, expected) in large.fragments(1400).iter().zip(expected) {
                let outcome = bench.send_bytes(Hook::FromExternal, fragment, 0);
                assert_eq!((outcome.action, outcome.bytes), (REDIRECT, expected));
            }
        }
    });
}
