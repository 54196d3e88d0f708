//! Packets in, packets out: the programs of the committed object run on single frames, and every byte of what
//! comes out is compared with a frame built from scratch.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]
#![cfg(target_os = "linux")]

mod bench;
mod frame;

mod flows;
