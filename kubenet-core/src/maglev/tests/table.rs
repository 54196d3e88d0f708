//! Equal sets make equal tables, and no set is too strange.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};

use proptest::{collection::vec, prelude::*};

use super::{Backends, clients, pods, weight};
use crate::maglev::{Table, TableSize};

#[test]
fn an_empty_table_serves_nobody() {
    let mut table = Table::new([]);
    assert_eq!(table, Table::default());
    assert_eq!(table.get(Ipv4Addr::LOCALHOST.into()), None);
    assert!(table.slots().is_empty());

    let (backend, one) = pods(1)[0];
    assert_eq!(table.insert(backend, one), None);
    assert_eq!(table.slots().len(), table.size().slots());
    assert!(clients(1_000).into_iter().all(|client| table.get(client) == Some(backend)));
    assert_eq!(table.remove(backend), Some(one));
    assert_eq!(table.remove(backend), None);
    assert_eq!(table, Table::default());
}

#[test]
fn ipv4_mapped_clients_are_ipv4_clients() {
    let table = Table::new(pods(10));
    for i in 0..1_000 {
        let client = Ipv4Addr::from(i * 4_294_967);
        assert_eq!(table.get(client.into()), table.get(client.to_ipv6_mapped().into()));
    }
}

#[test]
fn a_backend_is_its_address_and_port() {
    let scoped =
        |flow, scope| SocketAddr::from(SocketAddrV6::new("fe80::1".parse().unwrap(), 80, flow, scope));
    let mapped: SocketAddr = "[::ffff:10.0.0.1]:80".parse().unwrap();
    let mut table = Table::new([(scoped(7, 2), weight(1)), (mapped, weight(1))]);
    let plain: SocketAddr = "10.0.0.1:80".parse().unwrap();
    assert_eq!(table, Table::new([(plain, weight(1)), (scoped(0, 0), weight(1))]));
    assert_eq!(table.insert(scoped(1, 1), weight(2)), Some(weight(1)));
    assert_eq!(table.remove(mapped), Some(weight(1)));
    assert_eq!(table.backends(), [(scoped(0, 0), weight(2))]);
}

#[test]
fn a_backend_given_twice_counts_once_with_its_largest_weight() {
    let backends = pods(3);
    let (first, _) = backends[0];
    let twice = [(first, weight(4)), (first, weight(7)), (first, weight(2))];
    let table = Table::new(backends.iter().copied().chain(twice));
    let mut once = Table::new(backends);
    once.insert(first, weight(7));
    assert_eq!(table, once);
    assert_eq!(table.backends().len(), 3);
}

#[test]
fn sizes_are_powers_of_two_within_limits() {
    assert_eq!(TableSize::at_least(0), TableSize::MIN);
    assert_eq!(TableSize::at_least(16_383), TableSize::DEFAULT);
    assert_eq!(TableSize::at_least(16_384), TableSize::DEFAULT);
    assert_eq!(TableSize::at_least(16_385).slots(), 32_768);
    assert_eq!(TableSize::at_least(usize::MAX), TableSize::MAX);
    assert_eq!(TableSize::for_backends(3).slots(), 512);
    assert_eq!(TableSize::for_backends(usize::MAX), TableSize::MAX);
    for size in [TableSize::MIN, TableSize::DEFAULT, TableSize::MAX] {
        assert_eq!([size.slot(0), size.slot(u32::MAX)], [0, size.slots() - 1]);
    }
}

#[test]
fn more_backends_than_slots_share_the_slots() {
    let table = Table::with_size(TableSize::MIN, pods(2_000));
    assert_eq!(table.backends().len(), 2_000);
    assert_eq!(table.slots().len(), 256);
    assert!(clients(1_000).into_iter().all(|client| table.get(client).is_some()));
}

#[test]
fn backends_beyond_the_most_own_no_slots_until_others_leave() {
    let most = Table::MAX_BACKENDS as u32;
    let port = |i: u32| (SocketAddr::from(([10, 0, 0, (i >> 16) as u8], i as u16)), weight(1));
    let table = |backends: std::ops::Range<u32>| Table::with_size(TableSize::MIN, backends.map(port));

    let full = table(0..most);
    let mut over = full.clone();
    let (first_over, _) = port(most);
    over.insert(first_over, weight(u16::MAX));
    over.insert(port(most + 1).0, weight(9));
    assert_eq!(over.backends().len(), Table::MAX_BACKENDS + 2);
    assert_eq!(over.slots(), full.slots());

    over.remove(port(most + 1).0);
    over.remove(port(0).0);
    let mut expected = table(1..most);
    expected.insert(first_over, weight(u16::MAX));
    assert_eq!(over, expected);
    assert!(over.slots().contains(&u16::MAX));

    over.remove(first_over);
    assert_eq!(over, table(1..most));
}

/// Few addresses and ports, so that the same backend comes up again, or any.
fn backend() -> impl Strategy<Value = (SocketAddr, std::num::NonZeroU16)> {
    let few = (0..4u8, 0..4u16).prop_map(|(last, port)| SocketAddr::from(([10, 0, 0, last], port)));
    let any = (any::<IpAddr>(), any::<u16>()).prop_map(SocketAddr::from);
    let weights = prop_oneof![Just(1), 1..4u16, 1..=u16::MAX];
    (prop_oneof![few, any], weights.prop_map(weight))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn order_does_not_matter(backends in vec(backend(), 0..40), seed in any::<prop::sample::Index>()) {
        let mut other = backends.clone();
        other.reverse();
        if !other.is_empty() {
            let middle = seed.index(other.len());
            other.rotate_left(middle);
        }
        prop_assert_eq!(
            Table::with_size(TableSize::MIN, backends),
            Table::with_size(TableSize::MIN, other)
        );
    }

    #[test]
    fn history_does_not_matter(
        start in vec(backend(), 0..20),
        changes in vec((backend(), any::<bool>()), 1..40),
        client in any::<IpAddr>(),
    ) {
        let mut table = Table::with_size(TableSize::MIN, start);
        for ((backend, weight), leaves) in changes {
            if leaves {
                table.remove(backend);
            } else {
                table.insert(backend, weight);
            }
            let scratch = Table::with_size(TableSize::MIN, table.backends().iter().copied());
            prop_assert_eq!(&table, &scratch);
            prop_assert_eq!(table.get(client).is_none(), table.backends().is_empty());
        }
    }

    #[test]
    fn slots_of_others_stay_when_a_backend_leaves(
        backends in vec(backend(), 2..40),
        leaving in any::<prop::sample::Index>(),
    ) {
        let before = Table::with_size(TableSize::MIN, backends);
        let mut after = before.clone();
        let (gone, _) = before.backends()[leaving.index(before.backends().len())];
        after.remove(gone);
        let owner = |table: &Table, slot: usize| table.backends()[usize::from(table.slots()[slot])].0;
        for slot in 0..after.slots().len() {
            let [before, after] = [owner(&before, slot), owner(&after, slot)];
            prop_assert!(before == gone || before == after);
        }
    }
}

/// What proptest shrinks to must stay readable.
#[test]
fn debug_output_leaves_the_slots_out() {
    let backends: Backends = pods(1);
    let text = format!("{:?}", Table::new(backends));
    assert_eq!(text, "Table { size: 16384 slots, backends: [(10.244.0.2:8080, 1)], .. }");
}
