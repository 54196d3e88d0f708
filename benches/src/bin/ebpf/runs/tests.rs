use std::{fs, net::Ipv4Addr, process::Command};

use etherparse::{Ipv4HeaderSlice, PacketHeaders, TransportHeader};
use kubenet_testkit::{
    conformance,
    lab::{Lab, LabConfig, LabError},
};

use super::*;

fn on_runs(test: impl FnOnce(&mut Runs)) {
    let lab = match Lab::new(LabConfig::new()) {
        Ok(lab) => lab,
        Err(LabError::Unsupported(why)) => return conformance::skip(why),
        Err(error) => panic!("{error}"),
    };
    let mut runs = Runs::new(lab.node(Node::A).netns().clone(), "eth0", 64).unwrap();
    runs.fill_floor(0..32).unwrap();
    test(&mut runs);
}

/// What a program makes of a frame, one time.
fn out(runs: &mut Runs, name: &str, frame: &[u8]) -> Vec<u8> {
    let mut out = vec![0; frame.len() + 256];
    let options =
        TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
    let result = tc(&mut runs.ebpf, name).unwrap().test_run(options).unwrap();
    out.truncate(result.data_size_out as usize);
    out
}

#[test]
fn the_committed_object_is_what_the_source_gives() {
    let is_there = |tool: &str| Command::new(tool).arg("--version").output().is_ok();
    if !["clang-19", "llvm-strip-19"].into_iter().all(is_there) {
        return conformance::skip("clang-19 and llvm-19 are not installed");
    }
    let directory = tempfile::tempdir().unwrap();
    let built = directory.path().join("bench.bpf.o");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/build.sh");
    let output = Command::new(script).arg(&built).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(fs::read(built).unwrap() == OBJECT, "run benches/bpf/build.sh and commit the object");
}

#[test]
fn the_floor_translates_with_checksums_that_are_right() {
    on_runs(|runs| {
        let service = Ipv4Addr::from(routes::service_address(5));
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 9, 9], runs.mac)
            .ipv4([10, 128, 0, 1], service.octets(), 64)
            .tcp(4711, 80, 1, 64_000)
            .write(&mut frame, b"an odd payload for checksums")
            .unwrap();
        let frame = out(runs, "tc_floor", &frame);
        let ip = Ipv4HeaderSlice::from_slice(&frame[14..]).unwrap();
        assert_eq!(ip.destination_addr(), Ipv4Addr::from(routes::ENDPOINTS + 3 * 5 + 1));
        assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
        let headers = PacketHeaders::from_ethernet_slice(&frame).unwrap();
        let Some(TransportHeader::Tcp(tcp)) = headers.transport else { panic!("no TCP header") };
        let payload = headers.payload.slice();
        assert_eq!(tcp.checksum, tcp.calc_checksum_ipv4(&ip.to_header(), payload).unwrap());
    });
}

#[test]
fn a_driver_makes_the_flows_of_its_plan_in_both_directions() {
    on_runs(|runs| {
        runs.aim(Hook::Tc, Target::Nobody).unwrap();
        let plan = Plan { flows: 10_000, services: 32, next: 4_097, ..Plan::default() };
        let mut seen = Vec::new();
        for plan in [plan, Plan { reply: true, ..plan }] {
            let map = runs.ebpf.map_mut("plan").unwrap();
            Array::<_, Words>::try_from(map).unwrap().set(0, plan.words(runs.mac), 0).unwrap();
            let frame = runs.frame(Family::V4).unwrap();
            let frame = out(runs, "tc_driver", &frame);
            let ip = Ipv4HeaderSlice::from_slice(&frame[14..]).unwrap();
            let ports = [&frame[34..36], &frame[36..38]].map(|p| u16::from_be_bytes([p[0], p[1]]));
            seen.push((ip.source_addr(), ports[0], ip.destination_addr(), ports[1]));
        }
        // Flow 4,097 is the second of the second client.
        let client = Ipv4Addr::from(routes::PODS + 1);
        let (from, port, service, to) = seen[0];
        assert_eq!((from, port, to), (client, 16_385, 80));
        let number = u32::from(service) - routes::service_address(0);
        assert!(number < 32, "{service}");
        assert_eq!(seen[1], (Ipv4Addr::from(routes::ENDPOINTS + 3 * number + 1), 80, client, 16_385));
    });
}

#[test]
fn every_round_is_restored() {
    on_runs(|runs| {
        let plan = Plan { flows: 10_000, services: 32, ..Plan::default() };
        for random in [false, true] {
            let plan = Plan { random, ..plan };
            for (hook, answer) in [(Hook::Tc, REDIRECT), (Hook::Xdp, XDP_TX)] {
                // The floor would not find its own output, and drop it.
                let (_, answered) = runs.run(hook, Family::V4, Target::Floor, &plan, 1_000).unwrap();
                assert_eq!(answered, answer, "{hook:?}");
            }
        }
    });
}
