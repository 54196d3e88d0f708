//! Which backend a new flow gets where it is not simply one of all: weights and Maglev.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use kubenet_core::maglev;

use crate::{
    bench::{Bench, Hook, MAGLEV, REDIRECT, for_each_kind, for_tcp_and_udp},
    frame::{Frame, Proto},
    nets::{Net, at},
};

/// Opens a flow and says which port of the backend it goes to.
pub fn dial(bench: &mut Bench, hook: Hook, proto: Proto, from: SocketAddr, to: SocketAddr) -> u16 {
    let mut frame = Frame::new(proto, from, to);
    let outcome = bench.send(hook, &mut frame);
    assert_eq!(outcome.action, REDIRECT);
    let at = frame.l4() + 2;
    u16::from_be_bytes([outcome.bytes[at], outcome.bytes[at + 1]])
}

/// The address so many behind this one.
fn behind(address: IpAddr, by: u32) -> IpAddr {
    match address {
        IpAddr::V4(a) => IpAddr::V4((a.to_bits() + by).into()),
        IpAddr::V6(a) => IpAddr::V6((a.to_bits() + u128::from(by)).into()),
    }
}

/// Clients outside the cluster, whose flows keep their address.
pub fn clients(net: Net) -> impl Iterator<Item = IpAddr> {
    (0..100).map(move |i| behind(net.outside, i))
}

#[test]
fn a_backend_with_more_slots_gets_more_flows() {
    for_each_kind(|bench, net, proto| {
        let [a, b] = [8080, 8081].map(|port| bench.backend(at(net.pod_there, port), 0));
        bench.serve(at(net.vip, 80), proto, 0, &[a, a, a, b], &[]);
        let mut share = BTreeMap::<u16, u32>::new();
        for port in 0..400 {
            let client = at(net.pod, 30_000 + port);
            *share.entry(dial(bench, Hook::FromPod, proto, client, at(net.vip, 80))).or_default() += 1;
        }
        // 300, within six times the standard deviation of 8.7.
        assert!((248..=352).contains(&share[&8080]), "{share:?}");
        assert_eq!(share.values().sum::<u32>(), 400);
    });
}

#[test]
fn maglev_gives_a_client_what_the_table_says_from_any_port() {
    for_each_kind(|bench, net, proto| {
        let backends: Vec<_> = (0..5).map(|i| at(net.pod_there, 8080 + i)).collect();
        let table = maglev::Table::new(backends.iter().map(|at| (*at, std::num::NonZeroU16::MIN)));
        let ids: Vec<u32> = table.backends().iter().map(|(at, _)| bench.backend(*at, 0)).collect();
        let slots: Vec<u32> = table.slots().iter().map(|owner| ids[usize::from(*owner)]).collect();
        // Slots are not where a table begins: the first ones are another Service's.
        bench.serve(at(net.vip, 81), proto, 0, &ids, &[]);
        bench.serve(at(net.vip, 80), proto, MAGLEV, &[], &slots);
        let mut seen = BTreeMap::<u16, u32>::new();
        for client in clients(net) {
            let expected = table.get(client).expect("a backend").port();
            for port in [1024, 40_000, 65_535] {
                let got = dial(bench, Hook::FromExternal, proto, at(client, port), at(net.vip, 80));
                assert_eq!(got, expected, "{client}");
            }
            *seen.entry(expected).or_default() += 1;
        }
        assert_eq!(seen.len(), 5, "all backends are somebody's");
    });
}

#[test]
fn maglev_takes_another_port_where_a_flow_with_the_clients_is_there_already() {
    for_tcp_and_udp(|bench, net, proto| {
        let [one, two] = [8080, 8081].map(|port| bench.backend(at(net.pod_there, port), 0));
        // Two frontends with one table; the client has the same backend behind both.
        let slots: Vec<u32> = (0..256).map(|slot| if slot % 2 == 0 { one } else { two }).collect();
        bench.serve(at(net.vip, 80), proto, MAGLEV, &slots, &[]);
        bench.serve(at(net.vip, 81), proto, MAGLEV, &slots, &[]);
        let client = at(net.pod, 40_000);
        let first = dial(bench, Hook::FromPod, proto, client, at(net.vip, 80));
        let mut frame = Frame::new(proto, client, at(net.vip, 81));
        let outcome = bench.send(Hook::FromPod, &mut frame);
        assert_eq!(outcome.action, REDIRECT);
        let l4 = frame.l4();
        let ports = [0, 2].map(|i| u16::from_be_bytes([outcome.bytes[l4 + i], outcome.bytes[l4 + i + 1]]));
        assert_eq!(ports[1], first, "the same backend");
        assert!((20_000..=29_999).contains(&ports[0]), "from a port that is free: {ports:?}");
        let told_apart = frame.forwarded(at(net.pod, ports[0]), at(net.pod_there, first));
        assert_eq!(outcome.bytes, told_apart.bytes());
    });
}
