//! What a declared and resolved cluster holds in memory: bytes that were asked of the allocator, as it counts
//! them.
#![allow(missing_docs, clippy::expect_used, reason = "a benchmark with fixed input")]

use kubenet_benches::cluster;
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What a resolved cluster of this size holds.
fn held(services: u32, endpoints: u32) -> f64 {
    let before = MEMORY.current_usage();
    let mut cluster = cluster(services, endpoints).expect("valid");
    // As after the first update: the delta is gone.
    drop(cluster.take_delta());
    let after = MEMORY.current_usage();
    drop(cluster);
    after.saturating_sub(before) as f64
}

fn main() {
    const SERVICES: u32 = 20_000;
    const ENDPOINTS: u32 = 10;
    let empty = held(SERVICES, 0);
    let full = held(SERVICES, ENDPOINTS);
    let per_service = empty / f64::from(SERVICES);
    let per_endpoint = (full - empty) / f64::from(SERVICES * ENDPOINTS);
    println!("memory of {SERVICES} Services of {ENDPOINTS} endpoints, each in one slice");
    println!("  per Service, with its empty slice: {per_service:.0} bytes");
    println!("  per endpoint:                      {per_endpoint:.0} bytes");
    println!("  in all:                            {:.1} MiB", full / f64::from(1 << 20));
}
