//! How evenly the slots are shared.

use super::{Backends, ipv6_pods, pods, ports, scattered, weight};
use crate::maglev::{Table, TableSize};

/// Slots of each backend over the slots that its weight is due.
fn shares(table: &Table) -> Vec<f64> {
    let mut slots = vec![0.0; table.backends().len()];
    table.slots().iter().for_each(|&owner| slots[usize::from(owner)] += 1.0);
    let total: f64 = table.backends().iter().map(|(_, weight)| f64::from(weight.get())).sum();
    let due = |weight: f64| weight / total * table.slots().len() as f64;
    slots.iter().zip(table.backends()).map(|(slots, (_, weight))| slots / due(weight.get().into())).collect()
}

fn assert_within(backends: Backends, size: TableSize, bound: f64) {
    let shares = shares(&Table::with_size(size, backends));
    let least = shares.iter().copied().fold(f64::MAX, f64::min);
    let most = shares.iter().copied().fold(0.0, f64::max);
    assert!(least > 1.0 - bound && most < 1.0 + bound, "{size:?}: {least:.3} to {most:.3}");
}

/// Five standard deviations, which are sqrt(backends / 2 slots).
#[test]
fn equal_weights_have_equal_shares() {
    for (count, slots, bound) in [
        (2, 1 << 14, 0.04),
        (3, 1 << 14, 0.05),
        (10, 1 << 14, 0.09),
        (100, 1 << 14, 0.28),
        (100, 1 << 16, 0.14),
        (100, 1 << 17, 0.10),
        (1_000, 1 << 17, 0.31),
    ] {
        for backends in [pods(count), ipv6_pods(count), ports(count), scattered(5, count)] {
            assert_within(backends, TableSize::at_least(slots), bound);
        }
    }
}

#[test]
fn shares_are_proportional_to_weights() {
    for weights in [&[1, 3][..], &[1, 1, 8], &[1, 2, 3, 4, 5, 6], &[500, 1_000, 50_000, 65_535]] {
        for seed in 10..15 {
            let mut backends = scattered(seed, weights.len() as u32);
            backends.iter_mut().zip(weights).for_each(|(backend, &w)| backend.1 = weight(w));
            assert_within(backends, TableSize::MAX, 0.10);
        }
    }
}

#[test]
fn a_hundred_weighted_backends_have_their_shares() {
    let mut backends = scattered(16, 100);
    (0..).zip(&mut backends).for_each(|(i, backend)| backend.1 = weight(1 + i % 4));
    assert_within(backends, TableSize::MAX, 0.18);
}

#[test]
fn every_backend_has_a_slot_at_ten_slots_each() {
    for seed in 20..30 {
        let shares = shares(&Table::with_size(TableSize::at_least(1 << 12), scattered(seed, 400)));
        assert!(shares.iter().all(|&share| share > 0.0));
    }
}
