//! What services and backends are charged with, packet by packet.

use std::net::SocketAddr;

use aya::maps::Array;

use crate::{
    bench::{Bench, Hook, LOCAL, for_each_kind, on_bench},
    frame::{Flags, Frame, Proto},
    nets::{Net, V4, V6, at},
};

/// Connections, packets, bytes, and those of replies; `struct traffic` behind its two words.
pub type Numbers = [u64; 5];

impl Bench {
    fn traffic_map(&mut self, name: &str) -> Array<&mut aya::maps::MapData, [u8; 48]> {
        Array::try_from(self.map_mut(name)).expect("array")
    }

    /// Whoever has the id from now on.
    pub fn hand_out(&mut self, map: &str, id: u32, generation: u32) {
        let mut value = [0; 48];
        value[..4].copy_from_slice(&generation.to_ne_bytes());
        self.traffic_map(map).set(id, value, 0).expect("set");
    }

    pub fn traffic(&mut self, map: &str, id: u32) -> Numbers {
        let value = self.traffic_map(map).get(&id, 0).expect("get");
        let mut numbers = value[8..].as_chunks::<8>().0.iter().map(|bytes| u64::from_ne_bytes(*bytes));
        [(); 5].map(|()| numbers.next().expect("five numbers"))
    }
}

struct Flow {
    client: SocketAddr,
    frontend: SocketAddr,
    backend: SocketAddr,
    service: u32,
    id: u32,
    /// The map of backends.
    map: &'static str,
}

impl Flow {
    fn new(bench: &mut Bench, net: Net, proto: Proto) -> Self {
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        let service = bench.serve(frontend, proto, 0, &[id], &[]);
        let map = if net.vip.is_ipv4() { "backend_traffic4" } else { "backend_traffic6" };
        bench.hand_out("service_traffic", service, 7);
        bench.hand_out(map, id, 1);
        Self { client, frontend, backend, service, id, map }
    }

    fn there(&self, bench: &mut Bench, proto: Proto, flags: Flags, payload: usize) -> u64 {
        let frame = Frame::new(proto, self.client, self.frontend).flags(flags).payload(vec![1; payload]);
        let length = frame.bytes().len() as u64 - 14;
        bench.expect_forwarded(Hook::FromPod, frame, self.client, self.backend);
        length
    }

    fn back(&self, bench: &mut Bench, proto: Proto, flags: Flags, payload: usize) -> u64 {
        let frame = Frame::new(proto, self.backend, self.client).flags(flags).payload(vec![1; payload]);
        let length = frame.bytes().len() as u64 - 14;
        bench.expect_forwarded(Hook::FromExternal, frame, self.frontend, self.client);
        length
    }

    #[track_caller]
    fn expect(&self, bench: &mut Bench, numbers: Numbers) {
        assert_eq!(bench.traffic("service_traffic", self.service), numbers, "service");
        assert_eq!(bench.traffic(self.map, self.id), numbers, "backend");
    }
}

#[test]
fn every_packet_is_charged_once_a_tick_and_when_the_flow_ends() {
    for_each_kind(|bench, net, proto| {
        let flow = Flow::new(bench, net, proto);
        let mut bytes = flow.there(bench, proto, Flags::Syn, 0);
        flow.expect(bench, [1, 1, bytes, 0, 0]);
        let mut back = flow.back(bench, proto, Flags::SynAck, 0);
        flow.expect(bench, [1, 1, bytes, 1, back]);

        // In the flow's entry first, and added when it is older than the clock.
        bytes += flow.there(bench, proto, Flags::Ack, 100) + flow.there(bench, proto, Flags::Ack, 200);
        back += flow.back(bench, proto, Flags::Ack, 300);
        bench.age(2);
        bytes += flow.there(bench, proto, Flags::Ack, 400);
        back += flow.back(bench, proto, Flags::Ack, 500);
        flow.expect(bench, [1, 4, bytes, 3, back]);

        if proto == Proto::Udp {
            return;
        }
        bytes += flow.there(bench, proto, Flags::Ack, 100) + flow.there(bench, proto, Flags::Fin, 0);
        back += flow.back(bench, proto, Flags::Fin, 0);
        bytes += flow.there(bench, proto, Flags::Ack, 0);
        flow.expect(bench, [1, 7, bytes, 4, back]);
    });
}

#[test]
fn whoever_gets_an_id_next_is_not_charged_with_the_flows_of_the_last_owner() {
    for_each_kind(|bench, net, proto| {
        let flow = Flow::new(bench, net, proto);
        flow.there(bench, proto, Flags::Syn, 0);
        flow.back(bench, proto, Flags::SynAck, 0);
        flow.there(bench, proto, Flags::Ack, 100);
        bench.hand_out("service_traffic", flow.service, 8);
        bench.hand_out(flow.map, flow.id, 0);
        bench.age(2);
        flow.there(bench, proto, Flags::Ack, 100);
        flow.back(bench, proto, Flags::Ack, 100);
        bench.age(2);
        flow.there(bench, proto, Flags::Ack, 100);
        flow.expect(bench, [0; 5]);
    });
}

#[test]
fn what_a_flow_counted_is_charged_before_another_takes_its_place() {
    for_each_kind(|bench, net, proto| {
        if proto == Proto::Udp {
            return;
        }
        let flow = Flow::new(bench, net, proto);
        let mut bytes = flow.there(bench, proto, Flags::Syn, 0);
        let back = flow.back(bench, proto, Flags::SynAck, 0);
        bytes += flow.there(bench, proto, Flags::Ack, 100);
        // It was reset on a way that is not ours, and the client uses its port again.
        flow.back(bench, proto, Flags::Rst, 0);
        bytes += flow.there(bench, proto, Flags::Syn, 0);
        let numbers = bench.traffic("service_traffic", flow.service);
        assert_eq!((numbers[0], numbers[1], numbers[2]), (2, 3, bytes));
        assert!(numbers[4] > back);
    });
}

/// What XDP looks at first and leaves to TC is one packet.
#[test]
fn a_packet_that_xdp_passes_on_is_charged_once() {
    on_bench(|bench| {
        bench.load_xdp();
        for net in [V4, V6] {
            for proto in [Proto::Tcp, Proto::Udp] {
                for here in [true, false] {
                    bench.clear();
                    let pod = if here { net.pod_here } else { net.pod_there };
                    let (client, frontend, backend) =
                        (at(net.outside, 40000), at(net.vip, 80), at(pod, 8080));
                    let id = bench.backend(backend, if here { LOCAL } else { 0 });
                    let service = bench.serve(frontend, proto, 0, &[id], &[id]);
                    let map = if net.vip.is_ipv4() { "backend_traffic4" } else { "backend_traffic6" };
                    bench.hand_out("service_traffic", service, 7);
                    bench.hand_out(map, id, 1);
                    let flow = Flow { client, frontend, backend, service, id, map };
                    let send = |bench: &mut Bench, flags, payload| {
                        let frame =
                            Frame::new(proto, client, frontend).flags(flags).payload(vec![1; payload]);
                        if here {
                            bench.expect_xdp_passed(frame.clone());
                            bench.expect_forwarded(Hook::FromExternal, frame.clone(), client, backend);
                        } else {
                            bench.expect_transmitted(frame.clone(), client, backend);
                        }
                        frame.bytes().len() as u64 - 14
                    };
                    let mut bytes = send(bench, Flags::Syn, 0);
                    bytes += send(bench, Flags::Ack, 100);
                    bench.age(2);
                    bytes += send(bench, Flags::Ack, 200);
                    flow.expect(bench, [1, 3, bytes, 0, 0]);
                }
            }
        }
    });
}
