//! Random clusters and flows: each datapath does what the reference says.
//!
//! `KUBENET_TRACE_SECONDS` is how long each datapath is tried, 20 without it; `KUBENET_TRACE_SEED` is where to
//! begin, 1 without it.

use std::{
    env,
    time::{Duration, Instant},
};

use fastrand::Rng;
use kubenet_examples::trace::{Dialled, Kind, Seen, observe};
use kubenet_iptables::Variant;
use kubenet_testkit::memory::Verdict;

use crate::{kernel::can_ask, random::Random};

const FLOWS: usize = 300;
const SAMPLES: u32 = 64;

fn setting(name: &str, otherwise: u64) -> u64 {
    env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// What is not as it should be.
fn disagreement(seen: &Seen, expected: &Verdict) -> Option<String> {
    let word = match expected {
        Verdict::Forward(_) => "forward",
        Verdict::Reject => "reject",
        Verdict::Drop => "drop",
        Verdict::Pass => "pass",
    };
    if seen.verdict().as_str() != word || seen.is_mixed() {
        return Some(format!("not always {word}"));
    }
    if seen.stays == Some(false) {
        return Some("the client does not stay".into());
    }
    let Verdict::Forward(choices) = expected else { return None };
    if choices.len() != seen.reached.len() {
        return Some(format!("{} backends and not {}", seen.reached.len(), choices.len()));
    }
    choices.iter().find_map(|choice| {
        let backend = choice.backend.socket_addr();
        let Some(reached) = seen.reached.get(&backend) else {
            return Some(format!("{backend} is not reached"));
        };
        if reached.masquerade != choice.masquerade {
            return Some(format!("{backend}: masquerade is not {}", choice.masquerade));
        }
        if !reached.sees.iter().eq([&choice.sees]) {
            return Some(format!("{backend} does not see {}", choice.sees));
        }
        None
    })
}

/// The first of the flows for which they disagree.
fn first_wrong(kind: Kind, cluster: &Random, flows: &[Dialled]) -> Option<(Dialled, String)> {
    let table = cluster.table();
    let observed = observe(kind, &table, &[], flows, SAMPLES).unwrap_or_else(|error| {
        panic!("{error}\n{cluster}");
    });
    let mut all = flows.iter().zip(observed.seen.iter().zip(&observed.expected));
    all.find_map(|(flow, (seen, expected))| {
        let what = disagreement(seen, expected)?;
        let json = serde_json::json!({
            "from": flow.from, "to": flow.to, "port": flow.port, "protocol": flow.protocol.to_string(),
        });
        Some((*flow, format!("{what}\n{json}\nexpected {expected:?}\nseen {seen:?}")))
    })
}

/// Leaves out what the disagreement does not need.
fn reduce(kind: Kind, mut cluster: Random, flow: Dialled) -> Option<(Random, String)> {
    let mut what = first_wrong(kind, &cluster, &[flow])?.1;
    for i in (0..cluster.objects.len()).rev() {
        let mut less = cluster.clone();
        less.objects.remove(i);
        if let Some((_, same)) = first_wrong(kind, &less, &[flow]) {
            (cluster, what) = (less, same);
        }
    }
    Some((cluster, what))
}

fn does_what_the_reference_says(datapath: &str, kind: Kind) {
    if !can_ask(datapath) {
        return;
    }
    let deadline = Instant::now() + Duration::from_secs(setting("KUBENET_TRACE_SECONDS", 20));
    let mut clusters = 0;
    for seed in setting("KUBENET_TRACE_SEED", 1).. {
        let mut random = Rng::with_seed(seed);
        let cluster = Random::new(&mut random);
        let flows = cluster.flows(&mut random, FLOWS);
        if let Some((flow, what)) = first_wrong(kind, &cluster, &flows) {
            match reduce(kind, cluster.clone(), flow) {
                Some((cluster, what)) => panic!("{datapath}, seed {seed}: {what}\n{cluster}"),
                None => panic!("{datapath}, seed {seed}, only together with other flows: {what}\n{cluster}"),
            }
        }
        clusters += 1;
        if Instant::now() > deadline {
            break;
        }
    }
    println!("{datapath}: {clusters} clusters of {FLOWS} flows");
}

#[test]
fn iptables_nft_does_what_the_reference_says() {
    does_what_the_reference_says("iptables-nft", Kind::Iptables(Variant::Nft));
}

#[test]
fn iptables_legacy_does_what_the_reference_says() {
    does_what_the_reference_says("iptables-legacy", Kind::Iptables(Variant::Legacy));
}

#[test]
fn ebpf_does_what_the_reference_says() {
    does_what_the_reference_says("ebpf", Kind::Ebpf);
}
