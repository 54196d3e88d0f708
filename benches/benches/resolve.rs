//! What it costs to resolve a cluster, and one change in it. The baseline of a change is the same change in a
//! cluster of 100 Services.
#![allow(missing_docs, clippy::expect_used, reason = "a benchmark with fixed input")]

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use kubenet_benches::{cluster, slice};
use kubenet_core::cluster::Change;

const ENDPOINTS: u32 = 10;

fn first_resolution(c: &mut Criterion) {
    let mut group = c.benchmark_group("first_resolution");
    group.sample_size(10);
    for services in [100, 1_000, 20_000] {
        group.bench_function(BenchmarkId::from_parameter(services), |b| {
            b.iter_batched(
                || cluster(services, ENDPOINTS).expect("valid"),
                |mut cluster| cluster.take_delta(),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn one_change(c: &mut Criterion) {
    let mut group = c.benchmark_group("one_change");
    for services in [100, 1_000, 20_000] {
        let mut cluster = cluster(services, ENDPOINTS).expect("valid");
        cluster.take_delta();
        let mut generation = 0;
        group.bench_function(BenchmarkId::from_parameter(services), |b| {
            b.iter_batched(
                || {
                    generation += 1;
                    Change::EndpointSlice(slice(services / 2, ENDPOINTS, generation).expect("valid"))
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

criterion_group!(benches, first_resolution, one_change);
criterion_main!(benches);
