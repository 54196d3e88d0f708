//! The XDP program: what leaves by the device that it came in by, and what it leaves to others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use aya::{
    maps::Array,
    programs::{TestRun, TestRunOptions, Xdp, XdpMode},
};

use crate::{
    bench::{
        Bench, Hook, LOCAL, MASQ_OUTSIDE, Metric, Outcome, REDIRECT, SOURCE_RANGES, Setup, on_bench,
        on_bench_with, without_signals,
    },
    frame::{Flags, Frame, L3, Proto},
    netns::ip,
    nets::{Net, V4, V6, at},
};

/// XDP's answers.
pub const DROP: i32 = 1;
pub const PASS: i32 = 2;
pub const TX: i32 = 3;

/// The MAC address of the next hop outside.
pub const GATEWAY: [u8; 6] = [2, 0, 0, 0, 2, 2];

impl Bench {
    fn xdp(&mut self) -> &mut Xdp {
        self.ebpf.program_mut("kubenet_xdp").and_then(|program| program.try_into().ok()).expect("kubenet_xdp")
    }

    /// Loads the program and attaches it, without which the device has no queues to run it on.
    pub fn load_xdp(&mut self) {
        without_signals(|| self.xdp().load());
        self.xdp().attach("ext0", XdpMode::Driver).expect("attach");
        self.xdp_devices(&[self.ext0]);
    }

    /// The devices with an XDP program, all with the same MAC address.
    pub fn xdp_devices(&mut self, indices: &[u32]) {
        let mac = self.mac(Hook::FromExternal);
        let mut devices = [0; 16 * 12];
        for (device, index) in devices.as_chunks_mut::<12>().0.iter_mut().zip(indices) {
            device[..4].copy_from_slice(&index.to_ne_bytes());
            device[4..10].copy_from_slice(&mac);
        }
        let map = self.map_mut("xdp_devices");
        Array::<_, [u8; 16 * 12]>::try_from(map).expect("array").set(0, devices, 0).expect("set");
    }

    pub fn send_xdp_bytes(&mut self, bytes: &[u8]) -> Outcome {
        let mut out = vec![0; bytes.len() + 256];
        let (action, len) = self.run_xdp_into(bytes, &mut out);
        out.truncate(len);
        Outcome { action, bytes: out }
    }

    /// The same into a buffer, for many frames. Returns the action, and the length of what comes out.
    pub fn run_xdp_into(&mut self, bytes: &[u8], out: &mut [u8]) -> (i32, usize) {
        // Fields of struct xdp_md: data, data_end, data_meta, ingress_ifindex.
        let mut context = [0; 24];
        context[4..8].copy_from_slice(&(bytes.len() as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&self.ext0.to_ne_bytes());
        let mut context_out = [0; 24];
        let options = TestRunOptions {
            data_in: Some(bytes),
            data_out: Some(out),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_out),
            ..Default::default()
        };
        let result = self.xdp().test_run(options).expect("test run");
        (result.return_value as i32, result.data_size_out as usize)
    }

    /// Sends a frame to the device's own address.
    pub fn send_xdp(&mut self, frame: &mut Frame) -> Outcome {
        frame.mac_to = self.mac(Hook::FromExternal);
        self.send_xdp_bytes(&frame.bytes())
    }

    #[track_caller]
    pub fn expect_xdp_passed(&mut self, mut frame: Frame) {
        let outcome = self.send_xdp(&mut frame);
        assert_eq!(outcome, Outcome { action: PASS, bytes: frame.bytes() });
    }

    /// It leaves by the same device, towards the gateway, one hop on.
    #[track_caller]
    pub fn expect_transmitted(&mut self, mut frame: Frame, from: SocketAddr, to: SocketAddr) {
        let outcome = self.send_xdp(&mut frame);
        let mut expected = frame.forwarded(from, to);
        (expected.mac_from, expected.mac_to) = (frame.mac_to, GATEWAY);
        assert_eq!(outcome, Outcome { action: TX, bytes: expected.bytes() });
    }
}

const NODE_PORT: u16 = 30080;

/// A node port with one backend, masqueraded. Client, frontend and backend.
pub fn serve(bench: &mut Bench, net: Net, proto: Proto, backend: IpAddr, flags: u16) -> [SocketAddr; 3] {
    let nobody = match net.node {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let backend = at(backend, 8080);
    let id = bench.backend(backend, flags);
    bench.serve(at(nobody, NODE_PORT), proto, MASQ_OUTSIDE, &[id], &[id]);
    [at(net.outside, 40000), at(net.node, NODE_PORT), backend]
}

/// Begins a flow, and says what it is masqueraded with.
pub fn begin(bench: &mut Bench, proto: Proto, [client, frontend, backend]: [SocketAddr; 3]) -> SocketAddr {
    let mut syn = Frame::new(proto, client, frontend);
    let outcome = bench.send_xdp(&mut syn);
    assert_eq!(outcome.action, TX);
    let l4 = syn.l4();
    let port = u16::from_be_bytes([outcome.bytes[l4], outcome.bytes[l4 + 1]]);
    assert!((20000..=29999).contains(&port), "{port}");
    let node = at(frontend.ip(), port);
    let mut expected = syn.forwarded(node, backend);
    (expected.mac_from, expected.mac_to) = (syn.mac_to, GATEWAY);
    assert_eq!(outcome.bytes, expected.bytes());
    node
}

pub fn for_each(test: impl Fn(&mut Bench, Net, Proto) + Send + Sync) {
    for_each_with(Setup::USUAL, test);
}

/// The same without the programs of TC behind it.
pub fn for_each_alone(test: impl Fn(&mut Bench, Net, Proto) + Send + Sync) {
    for_each_with(Setup { external_tc: false, ..Setup::USUAL }, test);
}

fn for_each_with(setup: Setup, test: impl Fn(&mut Bench, Net, Proto) + Send + Sync) {
    on_bench_with(setup, |bench| {
        bench.load_xdp();
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
fn a_flow_to_a_backend_elsewhere_leaves_at_once_and_so_do_its_answers() {
    for_each(|bench, net, proto| {
        let ends @ [client, frontend, backend] = serve(bench, net, proto, net.pod_there, 0);
        let node = begin(bench, proto, ends);
        // The second packet looks the way up, the others remember it.
        for ttl in [64, 64, 2] {
            let ack = Frame::new(proto, client, frontend).flags(Flags::Ack).ttl(ttl);
            bench.expect_transmitted(ack, node, backend);
            let answer = Frame::new(proto, backend, node).flags(Flags::Ack).ttl(ttl);
            bench.expect_transmitted(answer, frontend, client);
        }
        // Though the way is known.
        bench.expect_xdp_passed(Frame::new(proto, client, frontend).flags(Flags::Ack).ttl(1));
        assert_eq!(bench.entries(), 2);
    });
}

#[test]
fn a_cluster_ip_is_served_to_clients_outside_too() {
    for_each(|bench, net, proto| {
        let (client, frontend, backend) = (at(net.outside, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, MASQ_OUTSIDE, &[id], &[id]);
        begin_at(bench, proto, [client, frontend, backend], net.node);
    });
}

/// As [`begin`], of a frontend that is not the node's own address.
fn begin_at(bench: &mut Bench, proto: Proto, [client, frontend, backend]: [SocketAddr; 3], node: IpAddr) {
    let mut syn = Frame::new(proto, client, frontend);
    let outcome = bench.send_xdp(&mut syn);
    assert_eq!(outcome.action, TX);
    let port = u16::from_be_bytes([outcome.bytes[syn.l4()], outcome.bytes[syn.l4() + 1]]);
    let mut expected = syn.forwarded(at(node, port), backend);
    (expected.mac_from, expected.mac_to) = (syn.mac_to, GATEWAY);
    assert_eq!(outcome.bytes, expected.bytes());
}

#[test]
fn what_stays_here_is_left_to_tc_which_knows_the_flow() {
    for_each(|bench, net, proto| {
        // Also when its neighbour is known, so that the way is.
        if proto == Proto::Udp {
            ip(&format!("neigh replace {} lladdr 02:00:00:00:01:02 dev pod0", net.pod_here));
        }
        let [client, frontend, backend] = serve(bench, net, proto, net.pod_here, LOCAL);
        let syn = Frame::new(proto, client, frontend);
        bench.expect_xdp_passed(syn.clone());
        bench.expect_forwarded(Hook::FromExternal, syn.clone(), client, backend);
        let ack = syn.flags(Flags::Ack);
        bench.expect_xdp_passed(ack.clone());
        bench.expect_forwarded(Hook::FromExternal, ack, client, backend);
        assert_eq!(bench.entries(), 2, "one flow");
    });
}

/// The same flow by turns: each has its own way, and none is sent to the other's.
#[test]
fn tc_and_xdp_take_turns() {
    for_each(|bench, net, proto| {
        let ends @ [client, frontend, backend] = serve(bench, net, proto, net.pod_there, 0);
        let node = begin(bench, proto, ends);
        for _ in 0..3 {
            let ack = Frame::new(proto, client, frontend).flags(Flags::Ack);
            bench.expect_transmitted(ack.clone(), node, backend);
            bench.expect_transmitted(ack.clone(), node, backend);
            bench.expect_forwarded(Hook::FromExternal, ack.clone(), node, backend);
            bench.expect_forwarded(Hook::FromExternal, ack, node, backend);
        }
    });
}

#[test]
fn what_is_rare_passes_untouched() {
    for_each(|bench, net, proto| {
        let ends @ [client, frontend, _] = serve(bench, net, proto, net.pod_there, 0);
        begin(bench, proto, ends);
        let ack = Frame::new(proto, client, frontend).flags(Flags::Ack);
        bench.expect_xdp_passed(ack.clone().ttl(1));
        bench.expect_xdp_passed(ack.clone().ttl(0));
        let mut rare = ack.clone();
        rare.extensions = true;
        if net.node.is_ipv4() {
            rare.ip_options = vec![1; 4];
            rare.extensions = false;
        }
        bench.expect_xdp_passed(rare);
        let mut large = Frame::new(Proto::Udp, client, frontend).payload(vec![7; 2000]);
        large.mac_to = bench.mac(Hook::FromExternal);
        for fragment in large.fragments(1400) {
            let outcome = bench.send_xdp_bytes(&fragment);
            assert_eq!(outcome, Outcome { action: PASS, bytes: fragment });
        }
        // Not the node's business: unknown, without a Service, of an established connection.
        bench.expect_xdp_passed(Frame::new(proto, client, at(net.node, 443)));
        if proto == Proto::Tcp {
            bench.expect_xdp_passed(ack.with(at(net.outside, 40001), frontend));
        }
        // A frame with a VLAN's tag, or with two, one for everybody, and one for somebody else.
        let mut frame = ack.clone();
        frame.mac_to = bench.mac(Hook::FromExternal);
        let bytes = frame.bytes();
        for tag in [[0, 7], [0xe0, 0]] {
            let tagged = [&bytes[..12], &[0x81, 0][..], &tag, &bytes[12..]].concat();
            let twice = [&bytes[..12], &[0x88, 0xa8, 0, 9][..], &tagged[12..]].concat();
            for tagged in [tagged, twice] {
                assert_eq!(bench.send_xdp_bytes(&tagged), Outcome { action: PASS, bytes: tagged });
            }
        }
        for mac in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [2, 0, 0, 0, 2, 2], [2, 0, 0, 0, 3, 1]] {
            frame.mac_to = mac;
            assert_eq!(bench.send_xdp_bytes(&frame.bytes()), Outcome { action: PASS, bytes: frame.bytes() });
        }
    });
}

/// What a sender on this machine leaves to its device: only the part for the addresses is there.
#[test]
fn a_checksum_that_is_yet_to_be_completed_is_left_to_tc() {
    for_each(|bench, net, proto| {
        let ends @ [client, frontend, _] = serve(bench, net, proto, net.pod_there, 0);
        begin(bench, proto, ends);
        let mut frame = Frame::new(proto, client, frontend).flags(Flags::Ack);
        frame.mac_to = bench.mac(Hook::FromExternal);
        let mut bytes = frame.bytes();
        let sum = frame.pseudo_sum(proto.number(), bytes.len() - frame.l4());
        let at = frame.l4() + if proto == Proto::Tcp { 16 } else { 6 };
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(bench.send_xdp_bytes(&bytes), Outcome { action: PASS, bytes: bytes.clone() });
    });
}

#[test]
fn a_datagram_without_a_checksum_keeps_none() {
    for_each(|bench, net, proto| {
        if proto == Proto::Tcp {
            return;
        }
        let ends @ [client, frontend, backend] = serve(bench, net, proto, net.pod_there, 0);
        let node = begin(bench, proto, ends);
        let mut frame = Frame::new(proto, client, frontend);
        frame.no_checksum = true;
        bench.expect_transmitted(frame, node, backend);
    });
}

/// Many payloads, so that checksums of every shape come by, 0 and 0xffff among them.
#[test]
fn checksums_stay_right_whatever_they_are() {
    for_each(|bench, net, proto| {
        let ends @ [client, frontend, backend] = serve(bench, net, proto, net.pod_there, 0);
        let node = begin(bench, proto, ends);
        let mut passed = 0;
        // Of UDP all, as 0 is no checksum there.
        let step = if proto == Proto::Udp { 1 } else { 7 };
        for word in (0..=u16::MAX).step_by(step).chain([0xffff]) {
            let mut frame = Frame::new(proto, client, frontend).flags(Flags::Ack).payload(word.to_be_bytes());
            let outcome = bench.send_xdp(&mut frame);
            // One that looks like one that is to be completed.
            if outcome.action == PASS {
                passed += 1;
                continue;
            }
            let mut expected = frame.forwarded(node, backend);
            (expected.mac_from, expected.mac_to) = (frame.mac_to, GATEWAY);
            assert_eq!(outcome, Outcome { action: TX, bytes: expected.bytes() }, "{word:#x}");
        }
        // Two words are zero to a sum.
        assert!(passed <= 3, "{passed}");
    });
}

#[test]
fn packets_cut_at_any_length_pass_untouched() {
    for_each(|bench, net, proto| {
        let ends @ [client, frontend, _] = serve(bench, net, proto, net.pod_there, 0);
        begin(bench, proto, ends);
        let mut frame = Frame::new(proto, client, frontend).flags(Flags::Ack);
        frame.mac_to = bench.mac(Hook::FromExternal);
        let bytes = frame.bytes();
        for len in L3 + 1..bytes.len() {
            let outcome = bench.send_xdp_bytes(&bytes[..len]);
            assert_eq!(outcome, Outcome { action: PASS, bytes: bytes[..len].to_vec() }, "cut to {len}");
        }
        // The network header says that there is less than the transport header needs, or that says so itself.
        let length_at = L3 + if net.node.is_ipv4() { 2 } else { 4 };
        let shortest = frame.l4() - L3 + 7 - if net.node.is_ipv4() { 0 } else { 40 };
        let mut broken = vec![(length_at, (shortest as u16).to_be_bytes().to_vec())];
        if proto == Proto::Tcp {
            broken.extend([0x40, 0xf0].map(|words| (frame.l4() + 12, vec![words])));
        }
        for (at, value) in broken {
            let mut bytes = bytes.clone();
            bytes[at..at + value.len()].copy_from_slice(&value);
            assert_eq!(bench.send_xdp_bytes(&bytes), Outcome { action: PASS, bytes });
        }
        // Padding is not part of the packet.
        let mut padded = bytes.clone();
        padded.extend([0xaa; 9]);
        let outcome = bench.send_xdp_bytes(&padded);
        assert_eq!((outcome.action, outcome.bytes.len()), (TX, padded.len()));
        assert_eq!(outcome.bytes[bytes.len()..], [0xaa; 9]);
    });
}

#[test]
fn too_large_for_the_way_is_left_to_tc_which_answers() {
    for_each(|bench, net, proto| {
        let ends @ [client, frontend, backend] = serve(bench, net, proto, net.narrow, 0);
        let node = begin(bench, proto, ends);
        let headers = if net.node.is_ipv4() { 20 } else { 40 } + if proto == Proto::Tcp { 20 } else { 8 };
        for _ in 0..2 {
            let frame = Frame::new(proto, client, frontend).flags(Flags::Ack);
            let fits = frame.clone().payload(vec![1; 1300 - headers]);
            bench.expect_transmitted(fits, node, backend);
            let exceeds = frame.payload(vec![1; 1301 - headers]);
            bench.expect_xdp_passed(exceeds.clone());
            bench.expect_answered(Hook::FromExternal, exceeds, |frame| frame.icmp((3, 4), (2, 0), 1300));
        }
    });
}

#[test]
fn a_service_without_backends_is_answered_by_tc() {
    for_each(|bench, net, proto| {
        bench.serve(at(net.vip, 80), proto, 0, &[], &[]);
        let frame = Frame::new(proto, at(net.outside, 40000), at(net.vip, 80));
        bench.expect_xdp_passed(frame.clone());
        bench.expect_answered(Hook::FromExternal, frame, Frame::refusal);
    });
}

#[test]
fn who_may_not_reach_a_service_is_dropped_by_xdp_already() {
    for_each(|bench, net, proto| {
        let id = bench.backend(at(net.pod_there, 8080), 0);
        bench.serve(at(net.vip, 80), proto, SOURCE_RANGES, &[id], &[id]);
        let before = bench.metric(Metric::SourceRange);
        let outcome = bench.send_xdp(&mut Frame::new(proto, at(net.outside, 40000), at(net.vip, 80)));
        assert_eq!(outcome.action, DROP);
        assert_eq!(bench.metric(Metric::SourceRange), before + 1);
    });
}

#[test]
fn an_answer_of_a_flow_that_has_ended_is_the_stacks() {
    for_each(|bench, net, proto| {
        let ends @ [_, _, backend] = serve(bench, net, proto, net.pod_there, 0);
        let node = begin(bench, proto, ends);
        bench.age(121);
        // To a SYN of long ago, or to a datagram.
        bench.expect_xdp_passed(Frame::new(proto, backend, node).flags(Flags::SynAck));
        assert_eq!(bench.entries(), 0);
    });
}

/// It is the kernel's own packets that ask whether a neighbour is still there.
#[test]
fn every_ten_ticks_a_packet_of_a_next_hop_is_the_stacks() {
    for_each(|bench, net, proto| {
        if proto == Proto::Udp {
            return;
        }
        let ends @ [client, frontend, backend] = serve(bench, net, Proto::Tcp, net.pod_there, 0);
        let node = begin(bench, Proto::Tcp, ends);
        let ack = Frame::new(Proto::Tcp, client, frontend).flags(Flags::Ack);
        let answer = Frame::new(Proto::Tcp, backend, node).flags(Flags::Ack);
        bench.expect_transmitted(answer.clone(), frontend, client);
        // A tick may pass meanwhile: how many it is exactly, see clock.rs.
        bench.age(8);
        bench.age_hops(8);
        bench.expect_transmitted(ack.clone(), node, backend);
        bench.age(2);
        bench.age_hops(2);
        bench.expect_xdp_passed(ack.clone());
        bench.expect_forwarded(Hook::FromExternal, ack.clone(), node, backend);
        bench.expect_transmitted(ack, node, backend);
        // The client has another one.
        bench.expect_xdp_passed(answer.clone());
        bench.expect_forwarded(Hook::FromExternal, answer.clone(), frontend, client);
        bench.expect_transmitted(answer, frontend, client);
    });
}

#[test]
fn without_a_neighbour_a_packet_is_left_to_tc() {
    on_bench(|bench| {
        bench.load_xdp();
        bench.clear();
        let [client, frontend, _] = serve(bench, V4, Proto::Udp, [10, 4, 0, 10].into(), 0);
        let frame = Frame::new(Proto::Udp, client, frontend);
        bench.expect_xdp_passed(frame.clone());
        let mut frame = frame;
        assert_eq!(bench.send(Hook::FromExternal, &mut frame).action, REDIRECT, "which asks for it");
        ip("neigh add 192.0.2.77 lladdr 02:00:00:00:02:02 dev ext0");
        assert_eq!(bench.send_xdp(&mut frame).action, TX);
    });
}

#[test]
fn at_the_end_of_its_hops_and_from_nobody_a_packet_goes_no_further() {
    for_each(|bench, net, proto| {
        let [client, frontend, _] = serve(bench, net, proto, net.pod_there, 0);
        let last = Frame::new(proto, client, frontend).ttl(1);
        bench.expect_xdp_passed(last.clone());
        let answer = |frame: &Frame| {
            let quoted = &frame.bytes()[L3..frame.l4() + 8];
            frame.icmp_about(quoted, (11, 0), (3, 0), 0)
        };
        bench.expect_answered(Hook::FromExternal, last, answer);
        for nobody in if net.node.is_ipv4() { ["127.0.0.1", "0.0.0.0"] } else { ["::1", "::"] } {
            let before = bench.metric(Metric::Spoofed);
            let from = at(nobody.parse().unwrap(), 40001);
            let outcome = bench.send_xdp(&mut Frame::new(proto, from, frontend));
            assert_eq!((outcome.action, bench.metric(Metric::Spoofed)), (DROP, before + 1));
        }
    });
}

#[test]
fn a_device_is_served_wherever_it_stands_among_the_others_and_not_without() {
    for_each(|bench, net, proto| {
        let ends @ [client, frontend, _] = serve(bench, net, proto, net.pod_there, 0);
        let (ext0, pod0) = (bench.ext0, bench.pod0);
        bench.xdp_devices(&[pod0, ext0]);
        begin(bench, proto, ends);
        for others in [&[][..], &[pod0], &[pod0; 16]] {
            bench.xdp_devices(others);
            bench.expect_xdp_passed(Frame::new(proto, client, frontend));
        }
        bench.xdp_devices(&[ext0]);
    });
}
