//! Slots that are free in many pieces.

use super::*;

/// Distinct ones for each port, so that nothing is shared.
fn route_of(port: u16, backends: u8, affinity: bool) -> Arc<Route> {
    let mut route = Route::clone(&route_with(port, backends));
    route.service_port.service = format!("web-{port}").into();
    route.affinity = if affinity { Affinity::new(10) } else { None };
    Arc::new(route)
}

fn sizes(slots: u32) -> MapSizes {
    MapSizes { slots, ..MapSizes::default() }
}

/// Slots that sets have.
fn used(state: &State) -> u32 {
    state.routes().flat_map(|p| p.sets()).map(|set| set.range.count).sum()
}

/// Programs routes one by one, then removes those at odd places: every other piece is free.
fn riddled(lengths: &[u8], affinity: bool) -> (State, Memory, Vec<Arc<Route>>) {
    let sizes = sizes(lengths.iter().map(|n| u32::from(*n)).sum());
    let (mut state, mut memory) = (State::new(sizes.clone()), Memory::new(sizes));
    let all: Vec<_> = (1..).zip(lengths).map(|(port, n)| route_of(port, *n, affinity)).collect();
    assert!(apply(&mut state, &mut memory, &table(all.clone()), Duration::ZERO).failed.is_empty());
    let kept: Vec<_> = all.into_iter().skip(1).step_by(2).collect();
    assert!(apply(&mut state, &mut memory, &table(kept.clone()), Duration::ZERO).failed.is_empty());
    (state, memory, kept)
}

#[test]
fn a_set_that_finds_no_piece_has_others_moved_out_of_its_way() {
    for affinity in [false, true] {
        let (mut state, mut memory, mut routes) = riddled(&[3, 1, 3, 1, 3, 1, 3, 1], affinity);
        routes.push(route_of(99, 7, affinity));
        let outcome = apply(&mut state, &mut memory, &table(routes), REST);
        assert!(outcome.failed.is_empty(), "{:?}", outcome.failed);
        assert_eq!(
            (outcome.upserted, memory.grace_periods),
            (1, 2),
            "one for what rests, one for all that moved"
        );
        check(&state, &memory);
    }
}

#[test]
fn sets_that_fit_nowhere_else_move_together() {
    let (mut state, mut memory, mut routes) = riddled(&[2, 6, 2, 5, 2], false);
    routes.push(route_of(99, 6, false));
    let outcome = apply(&mut state, &mut memory, &table(routes.clone()), REST);
    assert!(outcome.failed.is_empty(), "{:?}", outcome.failed);
    assert_eq!(memory.grace_periods, 3, "one for what rests, one for each that moved");
    check(&state, &memory);
    assert_eq!(used(&state), 17);

    // Of clients that stay the ids are looked for in order: such a set moves as a whole or not at all.
    let (mut state, mut memory, mut routes) = riddled(&[2, 6, 2, 5, 2], true);
    routes.push(route_of(99, 6, true));
    let outcome = apply(&mut state, &mut memory, &table(routes), REST);
    let message = outcome.failed[0].error.to_string();
    assert!(message.contains("6 slots in one piece are needed, and of 17 there are 6 free"), "{message}");
    check(&state, &memory);
}

#[test]
fn many_that_find_no_piece_are_served_in_one_go() {
    let lengths: Vec<u8> = (0..400).map(|i| if i % 2 == 0 { 2 } else { 1 }).collect();
    let (mut state, mut memory, mut routes) = riddled(&lengths, false);
    routes.extend((0..10).map(|i| route_of(1000 + i, 40, false)));
    let outcome = apply(&mut state, &mut memory, &table(routes), REST);
    assert!(outcome.failed.is_empty(), "{:?}", outcome.failed);
    check(&state, &memory);
    assert_eq!(used(&state), 600);
}

#[test]
fn a_set_that_cannot_move_stays_and_nothing_leaks() {
    for lengths in [&[3, 1, 3, 1, 3, 1, 3, 1][..], &[2, 6, 2, 5, 2]] {
        let (mut state, mut memory, mut routes) = riddled(lengths, false);
        let before = routes.clone();
        routes.push(route_of(99, 6, false));
        memory.no_memory = true;
        let outcome = apply(&mut state, &mut memory, &table(routes.clone()), REST);
        let message = outcome.failed[0].error.to_string();
        assert!(message.contains("6 slots in one piece are needed"), "{message}");
        check(&state, &memory);
        assert_eq!(state.diff(&table(before)), (vec![], vec![]));
        memory.no_memory = false;
        assert!(apply(&mut state, &mut memory, &table(routes), 3 * REST).failed.is_empty());
        check(&state, &memory);
        // All slots come back.
        let all = route_of(100, lengths.iter().sum(), false);
        assert!(apply(&mut state, &mut memory, &table(vec![]), 5 * REST).failed.is_empty());
        assert!(apply(&mut state, &mut memory, &table(vec![all]), 7 * REST).failed.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_fits_in_the_slots_that_are_free_is_served(
        slots in 8u32..40,
        changes in prop::collection::vec((1u16..14, 0u8..9, 0u64..1200), 1..60),
    ) {
        let (mut state, mut memory) = (State::new(sizes(slots)), Memory::new(sizes(slots)));
        let mut routes: BTreeMap<u16, Arc<Route>> = BTreeMap::new();
        let mut now = Duration::ZERO;
        for (port, backends, wait) in changes {
            now += Duration::from_millis(wait);
            let before = used(&state);
            if backends == 0 {
                routes.remove(&port);
            } else {
                routes.insert(port, route_of(port, backends, false));
            }
            let outcome = apply(&mut state, &mut memory, &table(routes.values().cloned().collect()), now);
            check(&state, &memory);
            let fits = before + u32::from(backends) <= slots;
            // The old set has its slots until the new one is there.
            prop_assert!(outcome.failed.is_empty() || !fits, "{} of {slots} in use: {:?}", before, outcome.failed);
            routes.retain(|port, _| state.routes().any(|p| p.route.frontend.port.get() == *port));
            for programmed in state.routes() {
                let port = programmed.route.frontend.port.get();
                routes.insert(port, Arc::clone(&programmed.route));
            }
        }
    }

    #[test]
    fn whatever_moves_is_seen_whole_and_told_apart_after_a_restart(
        slots in 16u32..60,
        tables in prop::collection::vec(prop::collection::vec((1u16..9, 1u8..9, 0u8..4), 0..9), 1..16),
    ) {
        let (mut state, mut memory) = (State::new(sizes(slots)), Memory::new(sizes(slots)));
        for (turn, routes) in (0..).zip(tables) {
            let routes: BTreeMap<u16, Arc<Route>> = routes
                .into_iter()
                .map(|(port, backends, kind)| {
                    let mut route = Route::clone(&route_of(port, backends, kind == 0));
                    if kind == 1 {
                        route.external.backends = route.external.backends[1..].into();
                    }
                    if kind == 2 {
                        let weighted = |b: &Backend| Backend { weight: 2.try_into().unwrap(), ..*b };
                        route.internal.backends = route.internal.backends.iter().map(weighted).collect();
                        route.external = route.internal.clone();
                    }
                    (port, Arc::new(route))
                })
                .collect();
            apply(&mut state, &mut memory, &table(routes.into_values().collect()), turn * REST);
            check(&state, &memory);
            let (adopted, leftovers) = State::adopt(sizes(slots), &memory.snapshot(), &memory);
            prop_assert!(leftovers.strays.is_empty());
            let adopted: Vec<_> = adopted.routes().map(|p| (p.route.clone(), p.service())).collect();
            let mut kept: Vec<_> = state.routes().map(|p| (p.route.clone(), p.service())).collect();
            let mut adopted = adopted;
            adopted.sort_by_key(|(route, _)| route.frontend);
            kept.sort_by_key(|(route, _)| route.frontend);
            prop_assert_eq!(adopted, kept);
        }
    }
}
