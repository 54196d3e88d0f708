//! The process ends anywhere, and another one goes on with what it left.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{
    memory::{Crash, Memory, Shared},
    *,
};
use crate::{decode::Snapshot, settle, state::Leftovers};

type Tables = Vec<(Vec<Arc<Route>>, u64)>;

fn arbitrary_tables() -> impl Strategy<Value = Tables> {
    prop::collection::vec((prop::collection::vec(arbitrary_route(), 0..10), 0u64..1500), 2..6)
}

/// The first table of a process that found the maps in use.
fn adopt_and_apply(memory: &mut Memory, table: &RouteTable, now: Now) -> (State, Outcome) {
    let (mut state, leftovers, snapshot) = adopt(memory);
    settle::before(&state, &Shared::new(memory), &leftovers, &snapshot).unwrap();
    let outcome = apply(&mut state, memory, table, now);
    settle::after(&state, &Shared::new(memory), &leftovers, &snapshot).unwrap();
    leftovers.release(&mut state, now);
    (state, outcome)
}

fn adopt(memory: &Memory) -> (State, Leftovers, Snapshot) {
    let snapshot = memory.snapshot();
    let (state, leftovers) = State::adopt(memory.sizes.clone(), &snapshot, memory);
    (state, leftovers, snapshot)
}

proptest! {
    #[test]
    fn a_process_that_ends_between_any_two_writes_leaves_what_the_next_one_goes_on_with(
        tables in arbitrary_tables(), ends in any::<prop::sample::Index>(),
    ) {
        let mut memory = Memory::new(sizes());
        let mut state = State::new(sizes());
        let mut now = Duration::ZERO;
        let tables: Vec<(RouteTable, u64)> =
            tables.into_iter().map(|(routes, wait)| (table(routes), wait)).collect();
        let (last, earlier) = tables.split_last().unwrap();
        for (table, wait) in earlier {
            now += Duration::from_millis(*wait);
            apply(&mut state, &mut memory, table, now);
        }
        // How many writes the last table takes.
        let mut dry = Memory { sizes: memory.sizes.clone(), ..copy(&memory) };
        let mut dry_state = adopt(&dry).0;
        apply(&mut dry_state, &mut dry, &last.0, now);
        let writes = usize::MAX - dry.writes_left;

        memory.writes_left = ends.index(writes + 1);
        let end = catch_unwind(AssertUnwindSafe(|| apply(&mut state, &mut memory, &last.0, now)));
        prop_assert!(end.is_ok() || end.is_err_and(|e| e.is::<Crash>()), "no other panic");
        memory.writes_left = usize::MAX;
        drop(state);

        // Whatever the next table is: the one that was begun, or one of before.
        let first = if ends.index(2) == 0 { &last.0 } else { &tables[0].0 };
        let (adopted, leftovers, _) = adopt(&memory);
        prop_assert!(leftovers.strays.is_empty(), "{:?}", leftovers.strays);
        prop_assert_eq!(adopted.routes().count(), memory.services.len());
        let (mut state, outcome) = adopt_and_apply(&mut memory, first, now);
        prop_assert!(outcome.failed.is_empty());
        check(&state, &memory);
        prop_assert_eq!(state.diff(first), (vec![], vec![]));
        for (table, wait) in &tables {
            now += Duration::from_millis(*wait);
            let outcome = apply(&mut state, &mut memory, table, now);
            prop_assert!(outcome.failed.is_empty());
            check(&state, &memory);
        }
    }

    #[test]
    fn a_restart_without_a_change_writes_nothing(routes in prop::collection::vec(arbitrary_route(), 0..12)) {
        let mut memory = Memory::new(sizes());
        let mut state = State::new(sizes());
        let table = table(routes);
        apply(&mut state, &mut memory, &table, Duration::ZERO);
        let before = copy(&memory);
        memory.writes_left = 0;
        let (mut adopted, leftovers, snapshot) = adopt(&memory);
        settle::before(&adopted, &Shared::new(&mut memory), &leftovers, &snapshot).unwrap();
        prop_assert_eq!(apply(&mut adopted, &mut memory, &table, Duration::ZERO).upserted, 0);
        memory.writes_left = usize::MAX;
        settle::after(&adopted, &Shared::new(&mut memory), &leftovers, &snapshot).unwrap();
        check(&adopted, &memory);
        prop_assert_eq!(memory.services, before.services);
        prop_assert_eq!(memory.backends, before.backends);
    }

    #[test]
    fn whatever_stands_in_the_maps_the_first_table_puts_it_right(
        tables in arbitrary_tables(),
        damage in prop::collection::vec((0u8..9, any::<prop::sample::Index>(), 0u32..40), 1..8),
    ) {
        let mut memory = Memory::new(sizes());
        let mut state = State::new(sizes());
        for (routes, _) in &tables {
            apply(&mut state, &mut memory, &table(routes.clone()), Duration::ZERO);
        }
        memory.is_damaged = true;
        for (kind, which, value) in damage {
            break_something(&mut memory, kind, which, value);
        }
        let first = table(tables[0].0.clone());
        let (mut state, outcome) = adopt_and_apply(&mut memory, &first, Duration::ZERO);
        prop_assert!(outcome.failed.is_empty());
        memory.is_damaged = false;
        check(&state, &memory);
        prop_assert_eq!(state.diff(&first), (vec![], vec![]));
        for (routes, wait) in tables {
            let outcome = apply(&mut state, &mut memory, &table(routes), Duration::from_millis(wait));
            prop_assert!(outcome.failed.is_empty());
            check(&state, &memory);
        }
    }
}

/// Room enough, and little to read at each adoption.
fn sizes() -> MapSizes {
    MapSizes { backends4: 256, backends6: 256, ..MapSizes::default() }
}

fn copy(memory: &Memory) -> Memory {
    Memory {
        backends: memory.backends.clone(),
        slots: memory.slots.clone(),
        names: memory.names.clone(),
        services: memory.services.clone(),
        sources: memory.sources.clone(),
        cluster_ips: memory.cluster_ips.clone(),
        allowed: memory.allowed.clone(),
        ..Memory::new(memory.sizes.clone())
    }
}

fn break_something(memory: &mut Memory, kind: u8, which: prop::sample::Index, value: u32) {
    let frontends: Vec<Frontend> = memory.services.keys().copied().collect();
    if frontends.is_empty() {
        return;
    }
    let frontend = *which.get(&frontends);
    let other = memory.services[&frontends[value as usize % frontends.len()]];
    let service = memory.services.get_mut(&frontend).unwrap();
    match kind {
        0 => service.id = other.id,
        1 => service.id = value * 10_000,
        2 => (service.internal_base, service.internal_count) = (other.internal_base, value),
        3 => (service.external_base, service.external_count) = (u32::MAX - value, 1 + value),
        4 => service.flags ^= 1 << (value % 32),
        5 => service.affinity = value,
        6 => drop(memory.names.remove(&service.id)),
        7 => drop(memory.slots.insert(service.internal_base, value)),
        _ => {
            let id = memory.slots.get(&service.internal_base).copied().unwrap_or_default();
            if let Some(entry) = memory.backends.get_mut(&(frontend.family(), id)) {
                entry.2 = false;
            }
        }
    }
}
