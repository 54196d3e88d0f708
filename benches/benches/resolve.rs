//! What it costs to resolve a cluster, one change in it, and a burst. The baseline of a change is the same
//! change in a cluster of 100 Services.
#![allow(missing_docs, clippy::expect_used, reason = "a benchmark with fixed input")]

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use kubenet_benches::{cluster, slice};
use kubenet_core::cluster::{Change, Cluster};

const ENDPOINTS: u32 = 10;
const SIZES: [u32; 4] = [100, 1_000, 20_000, 100_000];
const BURST: u32 = 1_000;

fn first_resolution(c: &mut Criterion) {
    let mut group = c.benchmark_group("first_resolution");
    group.sample_size(10);
    for services in SIZES {
        group.bench_function(BenchmarkId::from_parameter(services), |b| {
            b.iter_batched_ref(
                || cluster(services, ENDPOINTS).expect("valid"),
                Cluster::take_delta,
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// A cluster that is resolved.
fn resolved(services: u32) -> Cluster {
    let mut cluster = cluster(services, ENDPOINTS).expect("valid");
    cluster.take_delta();
    cluster
}

/// Another endpoint for one Service.
fn change(service: u32, generation: u32) -> Change {
    Change::EndpointSlice(slice(service, ENDPOINTS, generation).expect("valid"))
}

fn one_change(c: &mut Criterion) {
    let mut group = c.benchmark_group("one_change");
    for services in SIZES {
        let mut cluster = resolved(services);
        let mut generation = 0;
        group.bench_function(BenchmarkId::from_parameter(services), |b| {
            b.iter_batched(
                || {
                    generation += 1;
                    // Not always the same one: what a change touches must not be in the caches already.
                    change(generation * 7919 % services, generation)
                },
                |change| {
                    cluster.change(change);
                    cluster.take_delta()
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn burst(c: &mut Criterion) {
    let mut group = c.benchmark_group("burst_of_1000_changes");
    group.sample_size(20);
    for services in SIZES.into_iter().filter(|services| *services >= BURST) {
        let mut cluster = resolved(services);
        let mut generation = 0;
        group.bench_function(BenchmarkId::from_parameter(services), |b| {
            b.iter_batched(
                || {
                    generation += 1;
                    let step = services / BURST;
                    (0..BURST).map(|i| change(i * step, generation)).collect::<Vec<_>>()
                },
                |changes| {
                    changes.into_iter().for_each(|change| cluster.change(change));
                    cluster.take_delta()
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, first_resolution, one_change, burst);
criterion_main!(benches);
