//! The kernel runs the same packets, with the same maps.

use kubenet_testkit::{conformance, lab::LabError};

use super::*;
use crate::runs::ACK;

/// A helper.
const SPIN_LOCK: i32 = 93;
const XDP_PASS: u32 = 2;

fn on_bench(test: impl FnOnce(&mut Bench)) {
    if let Some(why) = xdp::why_not().unwrap_or_else(|error| Some(error.to_string())) {
        return conformance::skip(why);
    }
    let lab = match Lab::new(LabConfig::new()) {
        Ok(lab) => lab,
        Err(LabError::Unsupported(why)) => return conformance::skip(why),
        Err(error) => panic!("{error}"),
    };
    test(&mut Bench::new(&lab).unwrap());
}

/// What the kernel makes of a packet: the verdict and the frame.
fn in_kernel(bench: &mut Bench, kind: &Kind, target: Target<'_>, plan: &Plan) -> (u32, Vec<u8>) {
    let mut out = Vec::new();
    let (_, verdict) = bench.runs.test(kind.hook, kind.family, target, plan, 1, &mut out).unwrap();
    (verdict, out)
}

/// Where in a frame the addresses and the ports are, and the checksums of IP (if there is one) and TCP.
struct Places {
    addresses: (usize, usize),
    ports: usize,
    ip_check: Option<usize>,
    check: usize,
}

fn places(family: Family) -> Places {
    match family {
        Family::V4 => Places { addresses: (26, 8), ports: 34, ip_check: Some(24), check: 50 },
        Family::V6 => Places { addresses: (22, 32), ports: 54, ip_check: None, check: 70 },
    }
}

/// One's complement sums that a translation does not change: of what TCP's checksum covers and of the header of IPv4,
/// each with its checksum.
fn sums(frame: &[u8], family: Family) -> [u32; 2] {
    let at = places(family);
    let sum = |begin: usize, len: usize| {
        frame[begin..begin + len]
            .chunks(2)
            .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
            .sum::<u32>()
    };
    let tcp = sum(at.addresses.0, at.addresses.1) + sum(at.ports, 4) + sum(at.check, 2);
    let ip = at.ip_check.map_or(0, |_| sum(14, 20));
    [tcp % 0xffff, ip % 0xffff]
}

/// Without what is drawn by lot: backend and port, and the checksums that depend on them.
fn without_lots(frame: &[u8], family: Family) -> Vec<u8> {
    let (at, mut frame) = (places(family), frame.to_vec());
    let half = at.addresses.1 / 2;
    frame[at.addresses.0 + half..at.addresses.0 + 2 * half].fill(0);
    frame[at.ports..at.ports + 2].fill(0);
    frame[at.check..at.check + 2].fill(0);
    at.ip_check.into_iter().for_each(|at| frame[at..at + 2].fill(0));
    frame
}

fn assert_same(kind: &Kind, what: &str, input: &[u8], ours: (u32, &[u8]), kernel: (u32, &[u8])) {
    let (name, family) = (kind.name, kind.family);
    assert_eq!(ours.0, kernel.0, "{name}, {what}: the verdict");
    for (who, frame) in [("here", ours.1), ("in the kernel", kernel.1)] {
        assert_ne!(frame, input, "{name}, {what}: nothing was translated {who}");
        assert_eq!(sums(frame, family), sums(input, family), "{name}, {what}: checksums {who}");
    }
    if name.starts_with("node_port_new") {
        assert_eq!(without_lots(ours.1, family), without_lots(kernel.1, family), "{name}, {what}");
    } else {
        assert_eq!(ours.1, kernel.1, "{name}, {what}");
    }
}

#[test]
fn what_is_interpreted_ends_as_in_the_kernel() {
    on_bench(|bench| {
        let mut left = 0;
        for (number, kind) in (0..).zip(kinds()) {
            bench.begin(&kind).unwrap();
            let program = bench.kubenet.program(kind.program.1).unwrap();
            for n in 0..4 {
                // No kind knows the flows of another.
                let plan = Plan { next: (kind.plan.next + 8 * number + n) % kind.plan.flows, ..kind.plan };
                // New flows go on, as others of before do.
                let mut plans = vec![("first", plan)];
                if plan.flags == SYN && plan.clients == routes::PODS {
                    plans.push(("next", Plan { flags: ACK, ..plan }));
                    plans.push(("after that", Plan { flags: ACK, ..plan }));
                    if kind.hook == Hook::Xdp {
                        plans.push(("answer", Plan { flags: ACK, reply: true, ..plan }));
                    }
                }
                let mut subject = bench.subject(&kind).unwrap();
                for (what, plan) in plans {
                    let (_, input) = in_kernel(bench, &kind, Target::Nobody, &plan);
                    let ours = subject.run(&kind, &input).unwrap();
                    let before = bench.kubenet.counted().unwrap();
                    let kernel = in_kernel(bench, &kind, Target::Program(&program), &plan);
                    let after = bench.kubenet.counted().unwrap();
                    // Every ten seconds, XDP leaves one to the stack; the two may not agree on when they are over.
                    if kind.hook == Hook::Xdp && [ours.verdict, kernel.0].contains(&XDP_PASS) {
                        left += 1;
                        break;
                    }
                    // New flows, and those that are known, are counted apart; the new ones take locks.
                    let is_new = plan.flags == SYN;
                    let grew = [after[0] - before[0], after[1] - before[1]];
                    assert_eq!(grew, if is_new { [0, 1] } else { [1, 0] }, "{}, {what}", kind.name);
                    assert_eq!(ours.trace.calls.contains_key(&SPIN_LOCK), is_new, "{}, {what}", kind.name);
                    let (ours, kernel) = ((ours.verdict, &ours.frame[..]), (kernel.0, &kernel.1[..]));
                    assert_same(&kind, what, &input, ours, kernel);
                    assert_eq!(ours.0, kind.sent_on(), "{}, {what}", kind.name);
                }
            }
        }
        assert!(left < 8, "{left} packets were left to the stack");
    });
}

#[test]
fn the_floor_ends_as_in_the_kernel() {
    on_bench(|bench| {
        for kind in kinds().into_iter().filter(|kind| !kind.plan.reply) {
            let plan = kind.plan;
            let (_, input) = in_kernel(bench, &kind, Target::Nobody, &plan);
            let ours = bench.own(&kind, "floor").unwrap().run(&kind, &input).unwrap();
            let kernel = in_kernel(bench, &kind, Target::Floor, &plan);
            assert_eq!((ours.verdict, ours.frame), kernel, "{}", kind.name);
        }
    });
}

#[test]
fn the_driver_makes_the_frames_that_it_makes_in_the_kernel() {
    on_bench(|bench| {
        for kind in kinds() {
            let frames = bench.frames(&kind, &kind.plan, 3).unwrap();
            for (n, frame) in (0..).zip(frames) {
                let plan = Plan { next: (kind.plan.next + n) % kind.plan.flows, ..kind.plan };
                let (_, kernel) = in_kernel(bench, &kind, Target::Nobody, &plan);
                assert_eq!(frame, kernel, "{}, packet {n}", kind.name);
            }
        }
    });
}

#[test]
fn known_flows_find_every_line_where_it_was_and_new_ones_do_not() {
    on_bench(|bench| {
        for kind in kinds() {
            let (ours, floor) = bench.count(&kind).unwrap();
            assert!(
                floor.instructions > 50.0 && floor.instructions < ours.instructions,
                "{}: {ours:?}",
                kind.name
            );
            assert_eq!(floor.calls, if kind.hook == Hook::Xdp { 1.0 } else { 2.0 }, "{}", kind.name);
            if kind.plan.flags == SYN {
                // Two halves of a pair, and a bucket for each.
                assert!(ours.cold >= 4.0, "{}: {ours:?}", kind.name);
            } else {
                assert_eq!(ours.cold, 0.0, "{}: {ours:?}", kind.name);
            }
        }
    });
}
