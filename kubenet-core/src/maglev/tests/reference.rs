//! The numbers that every machine and every later version must agree on. They come from a program in another
//! language that follows the documentation of the module.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use super::{Backends, ipv6_pods, pods, weight};
use crate::maglev::{Table, TableSize, client_hash, contest::Contest, preference::Preference};

#[test]
fn client_hashes_are_those_of_the_specification() {
    for (client, hash, slot) in [
        ("0.0.0.0", 0x9774_6414, 9_693),
        ("10.0.0.1", 0x0d72_cb1c, 860),
        ("192.0.2.7", 0x3a2e_1fec, 3_723),
        ("255.255.255.255", 0x8123_0c63, 8_264),
        ("::ffff:192.0.2.7", 0x3a2e_1fec, 3_723),
        ("::", 0, 0),
        ("::1", 0x5692_161d, 5_540),
        ("2001:db8::7", 0x936d_3540, 9_435),
        ("fe80::1:2:3:4", 0xcc81_9269, 13_088),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 0xd6bd_f754, 13_743),
    ] {
        assert_eq!(client_hash(client.parse().unwrap()), hash, "{client}");
        assert_eq!(TableSize::DEFAULT.slot(hash), slot, "{client}");
        assert_eq!((u64::from(hash) * TableSize::DEFAULT.slots() as u64) >> 32, slot as u64, "{client}");
    }
}

/// FNV-1a over the slots, low byte first.
fn fingerprint(table: &Table) -> u64 {
    let bytes = table.slots().iter().flat_map(|slot| slot.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn weighted(mut backends: Backends, weights: &[u16]) -> Backends {
    backends.iter_mut().zip(weights.iter().cycle()).for_each(|(backend, &w)| backend.1 = weight(w));
    backends
}

#[test]
fn tables_are_those_of_the_specification() {
    let table = Table::new(pods(100));
    assert_eq!(table.slots()[..8], [49, 60, 73, 20, 67, 54, 3, 40]);
    assert_eq!(fingerprint(&table), 0x7613_d332_2cc9_5c73);

    let table = Table::with_size(TableSize::at_least(1 << 10), weighted(ipv6_pods(10), &[1, 2, 3]));
    assert_eq!(table.slots()[..8], [4, 8, 2, 1, 1, 2, 7, 3]);
    assert_eq!(fingerprint(&table), 0x5980_c120_cac2_debd);

    let address = |last: u8| SocketAddr::from(([10, 244, 0, last], 80));
    let six: Backends = (2..8).map(|last| (address(last), weight(1))).collect();
    let table = Table::with_size(TableSize::at_least(1 << 9), weighted(six, &[1, 2, 3, 5, 8, 13]));
    assert_eq!(fingerprint(&table), 0xba5a7edc5192aca9);
}

#[test]
fn ties_are_those_of_the_specification() {
    let address = |i: u16| SocketAddr::from(([10, (i / 200) as u8, (i % 200) as u8, 1], 53));
    let crowd: Backends = (0..600).map(|i| (address(i), weight(1))).collect();
    let table = Table::with_size(TableSize::MIN, weighted(crowd, &[1, 2, 3]));
    assert_eq!(table.slots()[..8], [481, 443, 178, 458, 438, 244, 341, 23]);
    assert_eq!(fingerprint(&table), 0x0ecb_f88e_7b66_8749);
}

fn any_size() -> impl Strategy<Value = TableSize> {
    (8..=17u32).prop_map(|bits| TableSize::at_least(1 << bits))
}

fn any_backend() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(SocketAddr::from)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_preference_holds_every_slot_once(backend in any_backend(), size in any_size()) {
        let preference = Preference::new(backend, size);
        let mut seen = vec![false; size.slots()];
        for rank in 0..size.slots() as u32 {
            let slot = preference.slot(rank);
            prop_assert_eq!(preference.rank(slot), rank);
            prop_assert!(!std::mem::replace(&mut seen[slot as usize], true));
        }
    }

    #[test]
    fn each_slot_goes_to_the_best_of_all_backends(
        backends in prop::collection::vec((any_backend(), 1..=u16::MAX, any::<bool>()), 1..60),
    ) {
        let weight_of = |(backend, heavy, light)| (backend, weight(if light { 1 + heavy % 4 } else { heavy }));
        let backends: Backends = backends.into_iter().map(weight_of).collect();
        let contest = Contest::new(TableSize::MIN, &backends);
        for (slot, owner) in (0..).zip(contest.settle()) {
            prop_assert_eq!(usize::from(owner), contest.best(slot));
        }
    }
}
