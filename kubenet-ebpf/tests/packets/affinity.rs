//! Clients that stay with a backend.

use std::collections::BTreeSet;

use crate::{
    bench::{ALIVE, Bench, Hook, LISTED, MAGLEV, for_each_kind},
    choice::dial,
    frame::Proto,
    nets::{Net, at},
};

fn backends(bench: &mut Bench, net: Net, count: u16) -> Vec<u32> {
    (0..count).map(|i| bench.backend(at(net.pod_there, 8080 + i), 0)).collect()
}

/// What new flows of the client pod get at a frontend: the only port of a backend, if there is only one.
fn only(bench: &mut Bench, net: Net, proto: Proto, vip_port: u16) -> Option<u16> {
    let first = 1024 + 100 * (vip_port - 80);
    let mut flows = (first..first + 20)
        .map(|port| dial(bench, Hook::FromPod, proto, at(net.pod, port), at(net.vip, vip_port)))
        .collect::<BTreeSet<u16>>();
    flows.pop_first().filter(|_| flows.is_empty())
}

#[test]
fn a_client_stays_from_every_port_and_clients_are_spread() {
    for_each_kind(|bench, net, proto| {
        let ids = backends(bench, net, 8);
        bench.affinity = (1, 10);
        bench.serve(at(net.vip, 80), proto, 0, &ids, &ids);
        assert!(only(bench, net, proto, 80).is_some());
        let seen: BTreeSet<u16> = crate::choice::clients(net)
            .map(|client| dial(bench, Hook::FromExternal, proto, at(client, 9), at(net.vip, 80)))
            .collect();
        assert_eq!(seen.len(), 8);
        assert_eq!(bench.age_affinity(0), 101);
    });
}

#[test]
fn frontends_of_a_port_share_the_choice_and_others_do_not() {
    for_each_kind(|bench, net, proto| {
        let ids = backends(bench, net, 16);
        bench.affinity = (1, 10);
        bench.serve(at(net.vip, 80), proto, 0, &ids, &[]);
        bench.serve(at(net.vip, 81), proto, 0, &ids, &[]);
        let first = only(bench, net, proto, 80);
        assert!(first.is_some());
        assert_eq!(only(bench, net, proto, 81), first);
        let others: BTreeSet<_> = (0..20)
            .map(|i| {
                bench.affinity = (2 + i, 10);
                bench.serve(at(net.vip, 82), proto, 0, &ids, &[]);
                bench.forget_flows();
                only(bench, net, proto, 82)
            })
            .collect();
        assert!(others.len() > 1 && !others.contains(&None), "{others:?}");
    });
}

#[test]
fn the_time_begins_anew_with_each_new_flow_and_ends() {
    for_each_kind(|bench, net, proto| {
        let ids = backends(bench, net, 16);
        bench.affinity = (1, 10);
        bench.serve(at(net.vip, 80), proto, 0, &ids, &[]);
        let first = only(bench, net, proto, 80);
        for _ in 0..3 {
            bench.age_affinity(9);
            bench.forget_flows();
            assert_eq!(only(bench, net, proto, 80), first);
        }
        let later: BTreeSet<_> = (0..20)
            .map(|_| {
                bench.age_affinity(11);
                bench.forget_flows();
                only(bench, net, proto, 80)
            })
            .collect();
        assert!(later.len() > 1 && !later.contains(&None), "{later:?}");
    });
}

#[test]
fn a_changed_timeout_counts_for_choices_that_were_made_before() {
    for_each_kind(|bench, net, proto| {
        let ids = backends(bench, net, 16);
        bench.affinity = (1, 1000);
        bench.serve(at(net.vip, 80), proto, 0, &ids, &[]);
        let first = only(bench, net, proto, 80);
        bench.age_affinity(500);
        bench.forget_flows();
        bench.affinity = (1, 1001);
        bench.serve(at(net.vip, 80), proto, 0, &ids, &[]);
        assert_eq!(only(bench, net, proto, 80), first);
        bench.affinity = (1, 10);
        bench.serve(at(net.vip, 80), proto, 0, &ids, &[]);
        let later: BTreeSet<_> = (0..20)
            .map(|_| {
                bench.age_affinity(11);
                bench.forget_flows();
                only(bench, net, proto, 80)
            })
            .collect();
        assert!(later.len() > 1, "{later:?}");
    });
}

#[test]
fn a_backend_that_is_gone_or_in_another_set_is_chosen_again_at_once() {
    for_each_kind(|bench, net, proto| {
        for flags in [0, LISTED, MAGLEV | LISTED] {
            let ids = backends(bench, net, 7);
            let port_of = |id: &u32| 8080 + (id - ids[0]) as u16;
            bench.affinity = (7, 10);
            // Every place that the search for a member can end at.
            for id in &ids {
                bench.forget_flows();
                bench.serve_listed(at(net.vip, 80), proto, flags, &[*id]);
                assert_eq!(only(bench, net, proto, 80), Some(port_of(id)));
                bench.forget_flows();
                bench.serve_listed(at(net.vip, 80), proto, flags, &ids);
                assert_eq!(only(bench, net, proto, 80), Some(port_of(id)), "still a member");
                bench.forget_flows();
                let others: Vec<u32> = ids.iter().filter(|other| *other != id).copied().collect();
                bench.serve_listed(at(net.vip, 80), proto, flags, &others);
                let other = only(bench, net, proto, 80);
                assert!(other.is_some_and(|port| port != port_of(id)), "{other:?}");
            }
        }
    });
}

#[test]
fn a_dead_backend_and_another_generation_do_not_count() {
    for_each_kind(|bench, net, proto| {
        let ids = backends(bench, net, 2);
        bench.affinity = (1, 10);
        bench.serve(at(net.vip, 80), proto, 0, &ids, &[]);
        for (flags, generation) in [(0, 1), (ALIVE, 2)] {
            let mut moved = BTreeSet::new();
            for _ in 0..20 {
                bench.forget_flows();
                let Some(port) = only(bench, net, proto, 80) else { panic!("not the same each time") };
                let id = ids[usize::from(port - 8080)];
                bench.set_backend(id, at(net.pod_there, port), flags, generation);
                bench.forget_flows();
                // It may be picked again, but not because it was before.
                moved.insert(dial(bench, Hook::FromPod, proto, at(net.pod, 7), at(net.vip, 80)) != port);
                bench.set_backend(id, at(net.pod_there, port), ALIVE, 1);
                bench.age_affinity(11);
            }
            assert!(moved.contains(&true), "flags {flags}, generation {generation}");
        }
    });
}
