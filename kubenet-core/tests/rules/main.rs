//! The rules of [`kubenet_core::resolve`] as executable text, each by its bracketed name.
//!
//! A test goes the whole way: Kubernetes objects as users write them, `Intake`, `ServiceRouter`, a datapath,
//! and then described packets, of which it asserts the verdict, the backends, and whom a backend sees. What
//! `World::dial` and `World::seen` say holds in both families and for TCP, UDP and SCTP.
//!
//! | rules | file | subject |
//! |---|---|---|
//! | \[O1\] to \[O4\] | `objects` | Which objects are ours, and how they are read |
//! | \[O5\] | `changes` | A changed frontend is a removal and an addition |
//! | \[F1\] to \[F4\], \[N1\] | `frontends` | What clients dial |
//! | \[F5\] | `conflicts` | Two Services claim one frontend |
//! | \[E1\] \[E2\] \[E4\] to \[E7\] | `endpoints` | Which endpoints serve which traffic |
//! | \[E3\] | `topology` | Hints |
//! | \[S1\] to \[S5\] | `source_address` | Who is masqueraded |
//! | \[R1\] to \[R3\] | `source_ranges` | Who may reach a load balancer's address |
//! | \[A1\] to \[A3\] | `affinity` | A client stays with a backend |
//! | \[L1\] to \[L3\] | `lifetime` | What becomes of flows |
//! | \[N4\] | `unknown_ports` | Ports of a cluster IP that are no Service ports |
//! | \[H1\] \[H3\] | `health` | What a health check counts |
//! | \[K0\] to \[K3\] | `keeping_up` | When the kernel is written |
//!
//! A described packet has no port of its own to allocate, no fragments and no ICMP errors, and no packet
//! filter is in its way. \[S6\] and \[L4\] are shown by real packets, in the conformance suite's cases on errors
//! and fragments; \[N2\] and \[N3\] are rules of a packet filter, and tested where there is one. \[H1\] and \[H2\]
//! as answers over HTTP are for the tests of [`kubenet_core::health`].
#![cfg(feature = "kubernetes")]
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod manifest;
mod world;

mod affinity;
mod changes;
mod conflicts;
mod endpoints;
mod frontends;
mod health;
mod keeping_up;
mod lifetime;
mod objects;
mod source_address;
mod source_ranges;
mod topology;
mod unknown_ports;

#[test]
fn every_rule_has_a_test() {
    const RULES: [(&str, &str); 13] = [
        ("o1 o2 o3 o4", include_str!("objects.rs")),
        ("o5", include_str!("changes.rs")),
        ("f1 f2 f3 f4 n1", include_str!("frontends.rs")),
        ("f5", include_str!("conflicts.rs")),
        ("e1 e2 e4 e5 e6 e7", include_str!("endpoints.rs")),
        ("e3", include_str!("topology.rs")),
        ("s1 s2 s3 s4 s5", include_str!("source_address.rs")),
        ("r1 r2 r3", include_str!("source_ranges.rs")),
        ("a1 a2 a3", include_str!("affinity.rs")),
        ("l1 l2 l3", include_str!("lifetime.rs")),
        ("n4", include_str!("unknown_ports.rs")),
        ("h1 h3", include_str!("health.rs")),
        ("k0 k1 k2 k3", include_str!("keeping_up.rs")),
    ];
    for (rules, file) in RULES {
        for rule in rules.split(' ') {
            assert!(file.contains(&format!("#[test]\nfn {rule}_")), "no test of {rule}");
        }
    }
}
