//! What a consistent hashing table costs, and how good it is. The baseline is Maglev as published, on the next
//! smaller prime size.
#![allow(missing_docs, clippy::expect_used, reason = "a benchmark with fixed input")]

#[path = "../../kubenet-core/src/maglev/tests/plain.rs"]
mod plain;

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU16,
};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group};
use kubenet_core::maglev::{Table, TableSize, client_hash};
use plain::plain_maglev;

const BACKENDS: [usize; 4] = [3, 10, 100, 1_000];
const CLIENTS: u64 = 200_000;
const SETS: u32 = 20;

/// Sizes and the largest primes that are not above them.
const SIZES: [(usize, usize); 3] = [(4_096, 4_093), (16_384, 16_381), (65_536, 65_521)];

type Backend = (SocketAddr, NonZeroU16);

/// A set of backends, with other addresses than those of another set.
fn backends(set: u32, count: usize) -> Vec<Backend> {
    let address = |i| Ipv4Addr::from((10 << 24) + (set << 16) + (i as u32 / 100) * 256 + i as u32 % 100 + 2);
    (0..count).map(|i| (SocketAddr::from((address(i), 8080)), NonZeroU16::MIN)).collect()
}

/// Two random numbers of a backend.
fn numbers((backend, _): &Backend) -> (u64, u64) {
    let IpAddr::V4(address) = backend.ip() else { return (0, 0) };
    let id = random(u64::from(address.to_bits()));
    (id, random(id))
}

fn random(seed: u64) -> u64 {
    let x = (seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

fn build(c: &mut Criterion) {
    for (size, prime) in SIZES {
        let mut group = c.benchmark_group(format!("build_{size}_slots"));
        for count in BACKENDS {
            let set = backends(0, count);
            group.bench_function(BenchmarkId::new("table", count), |b| {
                b.iter(|| Table::with_size(TableSize::at_least(size), set.iter().copied()));
            });
            let numbers: Vec<_> = set.iter().map(numbers).collect();
            group.bench_function(BenchmarkId::new("plain", count), |b| {
                b.iter(|| plain_maglev(&numbers, prime));
            });
        }
        group.finish();
    }
}

fn one_backend(c: &mut Criterion) {
    let mut group = c.benchmark_group("one_backend");
    for count in BACKENDS {
        let set = backends(0, count);
        let (backend, weight) = set[count / 2];
        let all = Table::new(set.iter().copied());
        let mut rest = all.clone();
        rest.remove(backend).expect("in the table");
        group.bench_function(BenchmarkId::new("leaves", count), |b| {
            b.iter_batched_ref(|| all.clone(), |table| table.remove(backend), BatchSize::SmallInput);
        });
        group.bench_function(BenchmarkId::new("joins", count), |b| {
            b.iter_batched_ref(|| rest.clone(), |table| table.insert(backend, weight), BatchSize::SmallInput);
        });
    }
    group.finish();
}

fn lookup(c: &mut Criterion) {
    let table = Table::new(backends(0, 100));
    let clients: Vec<_> = clients().take(1_000).collect();
    let mut group = c.benchmark_group("lookup");
    group.throughput(Throughput::Elements(clients.len() as u64));
    group.bench_function("1000_clients", |b| {
        b.iter(|| clients.iter().for_each(|&client| _ = black_box(table.get(client))));
    });
    group.finish();
}

fn clients() -> impl Iterator<Item = IpAddr> {
    (0..CLIENTS).map(|i| Ipv4Addr::from(random(i) as u32).into())
}

/// Prints what one backend less moves, and how even the shares are. `independent` is rendezvous hashing with a
/// random number for each slot and backend.
fn figures() {
    println!(
        "| slots | backends | | moved / ideal, mean | worst | max / mean, mean of {SETS} sets | worst |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (size, prime) in SIZES {
        for count in BACKENDS {
            figure("plain", count, |set| plain_maglev(&set.iter().map(numbers).collect::<Vec<_>>(), prime));
            figure("independent", count, |set| independent(set, size));
            figure("table", count, |set| {
                Table::with_size(TableSize::at_least(size), set.iter().copied()).slots().to_vec()
            });
        }
    }
}

fn independent(set: &[Backend], size: usize) -> Vec<u16> {
    let seeds: Vec<_> = set.iter().map(|backend| numbers(backend).0).collect();
    let owner = |slot| (0..).zip(&seeds).min_by_key(|(_, seed)| random(*seed ^ random(slot)));
    (0..size as u64).filter_map(|slot| Some(owner(slot)?.0)).collect()
}

fn figure(name: &str, count: usize, slots: impl Fn(&[Backend]) -> Vec<u16>) {
    let ratios = moved_per_ideal(&backends(0, count), &slots);
    let largest: Vec<_> = (0..SETS).map(|set| largest_share(&slots(&backends(set, count)), count)).collect();
    let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len() as f64;
    let worst = |of: &[f64]| of.iter().copied().fold(0.0, f64::max);
    println!(
        "| {} | {count} | {name} | {:.3} | {:.3} | {:.3} | {:.3} |",
        slots(&backends(0, count)).len(),
        mean(&ratios),
        worst(&ratios),
        mean(&largest),
        worst(&largest),
    );
}

/// Clients that move over clients that must, for up to 100 of the backends that leave in turn.
fn moved_per_ideal(set: &[Backend], slots: impl Fn(&[Backend]) -> Vec<u16>) -> Vec<f64> {
    let before = slots(set);
    let mut clients_of = vec![0u64; before.len()];
    clients().for_each(|client| {
        clients_of[((u64::from(client_hash(client)) * before.len() as u64) >> 32) as usize] += 1;
    });
    let ratio = |gone: usize| {
        let mut rest = set.to_vec();
        rest.remove(gone);
        let (mut moved, mut ideal) = (0, 0);
        for ((&old, new), clients) in before.iter().zip(slots(&rest)).zip(&clients_of) {
            let (old, new) = (usize::from(old), usize::from(new));
            ideal += if old == gone { *clients } else { 0 };
            moved += if old != new + usize::from(new >= gone) { *clients } else { 0 };
        }
        (ideal > 0).then_some(moved as f64 / ideal as f64)
    };
    (0..set.len()).step_by(set.len().div_ceil(100)).filter_map(ratio).collect()
}

fn largest_share(slots: &[u16], backends: usize) -> f64 {
    let mut shares = vec![0; backends];
    slots.iter().for_each(|&owner| shares[usize::from(owner)] += 1);
    shares.into_iter().max().unwrap_or(0) as f64 * backends as f64 / slots.len() as f64
}

criterion_group!(benches, build, one_backend, lookup);

fn main() {
    if std::env::args().any(|argument| argument == "--bench") {
        figures();
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
