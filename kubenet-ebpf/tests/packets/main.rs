//! Packets in, packets out: the programs of the committed object run on single frames, and every byte of what
//! comes out is compared with a frame built from scratch.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub
)]
#![cfg(target_os = "linux")]

mod bench;
mod expect;
mod facts;
mod frame;
mod icmp;
mod netns;
mod nets;
mod oracle;
mod room;
mod run;
mod table;
mod tap;

mod affinity;
mod choice;
mod claims;
mod clock;
mod direct;
mod edges;
mod errors;
mod events;
mod extensions;
mod flows;
mod fragments;
mod fuzz;
mod headers;
mod idle;
mod lifetime;
mod masquerade;
mod pass;
mod peers;
mod quotes;
mod refuse;
mod sctp;
mod size;
mod sources;
mod traffic;
mod wire;
mod xdp;
mod xdp_alone;
mod xdp_known;
