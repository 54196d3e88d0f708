//! What the trait promises about updates: order, errors, reading back.

use std::sync::Arc;

use futures::{FutureExt, StreamExt, executor::block_on};
use kubenet_core::{
    datapath::{DatapathEvent, DatapathExt, ErrorKind},
    model::{
        IpFamily,
        Protocol::{self, Sctp, Tcp},
    },
    route::{
        FrontendKind::{ClusterIp, NodePort},
        Revision, RouteDelta, RouteTable,
    },
};

use super::{Case, TCP};
use crate::conformance::{
    bench::{Bench, Step, Stop, check, eventually, fail},
    fixture::TERMINATING,
    world::Got,
};

pub(super) const CASES: &[Case] = &[
    Case::new("endpoints_from_none_to_some_and_back", TCP, from_none_and_back),
    Case::new("changed_port_leaves_nothing_behind", TCP, changed_port),
    Case::new("wrong_base_is_a_conflict_and_changes_nothing", TCP, wrong_base),
    Case::new("replace_is_idempotent_and_removes_the_rest", TCP, replace),
    Case::new("read_gives_back_what_was_programmed", TCP, read),
    Case::new("read_gives_back_what_deltas_made", TCP, read_after_deltas),
    Case::new("empty_delta_moves_the_revision", TCP, empty_delta),
    Case::new("unsupported_route_fails_by_name_and_alone", TCP, unsupported_route),
    Case::new("dropped_future_leaves_a_whole_update", TCP, dropped_future),
    Case::new("node_ports_answer_on_the_chosen_addresses_only", TCP, chosen_addresses),
    Case::new("an_applied_revision_is_an_event", TCP, events),
    Case::new("a_slow_reader_of_events_learns_what_it_lost", TCP, slow_reader),
];

fn from_none_and_back(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service();
    let ways = [("client-a", ClusterIp), ("node-a", ClusterIp), ("outside", NodePort)];
    bench.program(std::slice::from_ref(&svc))?;
    for round in ["at first", "after some"] {
        for (from, kind) in ways {
            bench.refused((from, &svc, kind, Tcp)).map_err(|stop| stop.at(round))?;
        }
        bench.update(&[svc.on(&["a1", "b1"])])?;
        for (from, kind) in ways {
            bench.served((from, &svc, kind, Tcp), &["a1", "b1"]).map_err(|stop| stop.at(round))?;
        }
        bench.update(std::slice::from_ref(&svc))?;
    }
    for (from, kind) in ways {
        bench.refused((from, &svc, kind, Tcp)).map_err(|stop| stop.at("at last"))?;
    }
    Ok(())
}

fn changed_port(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service().on(&["a1"]);
    let moved = svc.with_port(81);
    bench.program(std::slice::from_ref(&svc))?;
    bench.served(("client-a", &svc, ClusterIp, Tcp), &["a1"])?;
    bench.update(std::slice::from_ref(&moved))?;
    bench.served(("client-a", &moved, ClusterIp, Tcp), &["a1"])?;
    bench.not_served(("client-a", &svc, ClusterIp, Tcp))
}

fn wrong_base(bench: &mut Bench<'_>) -> Step {
    let (svc, other) = (bench.service().on(&["a1"]), bench.service().on(&["b1"]));
    bench.program(std::slice::from_ref(&svc))?;
    let before = block_on(bench.datapath()?.read())?;
    let (mut delta, _) = bench.delta(std::slice::from_ref(&other))?;
    delta.base = Revision(bench.revision().0 + 7);
    delta.revision = delta.base.next();
    match block_on(bench.datapath()?.apply(Arc::new(delta))) {
        Err(error) if error.kind() == ErrorKind::Conflict => {}
        Err(error) => return fail(format!("expected a conflict, got {error}")),
        Ok(_) => return fail("expected a conflict, the delta was applied"),
    }
    let after = block_on(bench.datapath()?.read())?;
    check(before.same_routes(&after), || "the routes changed".into())?;
    bench.served(("client-a", &svc, ClusterIp, Tcp), &["a1"])?;
    bench.not_served(("client-a", &other, ClusterIp, Tcp))?;
    // The right delta is still welcome.
    bench.update(&[svc.on(&["a2"])])?;
    bench.served(("client-a", &svc, ClusterIp, Tcp), &["a2"]).map(drop)
}

fn replace(bench: &mut Bench<'_>) -> Step {
    let (svc, other) = (bench.service().on(&["a1", "b1"]), bench.service().on(&["b1"]));
    bench.program(&[svc.clone(), other.clone()])?;
    for _ in 0..3 {
        bench.replace()?;
        bench.served(("client-a", &svc, ClusterIp, Tcp), &["a1", "b1"])?;
        bench.served(("outside", &other, NodePort, Tcp), &["b1"])?;
    }
    same(bench)?;
    bench.program(std::slice::from_ref(&svc))?;
    bench.served(("client-a", &svc, ClusterIp, Tcp), &["a1", "b1"])?;
    bench.not_served(("outside", &other, NodePort, Tcp))?;
    same(bench)
}

/// The kernel must hold the bench's table.
fn same(bench: &mut Bench<'_>) -> Step {
    let (datapath, table) = (bench.datapath()?, bench.table());
    let supported = table.routes().filter(|r| datapath.capabilities().check(r).is_ok()).cloned();
    let expected = RouteTable::new(table.revision(), Arc::clone(table.node()), supported);
    let Some(delta) = block_on(datapath.drift(&expected))? else { return Ok(()) };
    let actual = block_on(datapath.read())?;
    if let Some(route) = delta.upserts.first() {
        return fail(match actual.get(&route.frontend) {
            Some(found) => {
                format!("of {} routes that differ: {found:?}, expected {route:?}", delta.upserts.len())
            }
            None => format!("{} routes are missing: {}", delta.upserts.len(), route.frontend),
        });
    }
    if let Some(frontend) = delta.removals.first() {
        return fail(format!("{} routes too many: {frontend}", delta.removals.len()));
    }
    fail(format!("the node differs: {:?}, expected {:?}", actual.node(), expected.node()))
}

fn read(bench: &mut Bench<'_>) -> Step {
    let services = [
        bench.service(),
        bench.service().on(&["a1", "b1", "node-a", "node-b"]),
        bench.service().on(&["a1", "b1"]).internal_local(),
        bench.service().on(&["b1"]).internal_local(),
        bench.service().on(&["a1", "b1"]).external_local(),
        bench.service().on(&["b1"]).external_local(),
        bench.service().and("a1", TERMINATING).and("b1", TERMINATING),
    ];
    bench.program(&services)?;
    same(bench)
}

fn read_after_deltas(bench: &mut Bench<'_>) -> Step {
    let (svc, other, third) = (bench.service(), bench.service(), bench.service());
    bench.program(&[svc.on(&["a1"]), other.on(&["b1"])])?;
    bench.update(&[svc.on(&["a1", "b1"]), other.on(&["b1"]).external_local()])?;
    same(bench)?;
    bench.update(&[svc.on(&["b1"]), third.on(&["a2"])])?;
    same(bench)?;
    bench.update(&[])?;
    same(bench)
}

fn empty_delta(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service().on(&["a1"]);
    bench.program(std::slice::from_ref(&svc))?;
    let report = bench.update(std::slice::from_ref(&svc))?;
    check(report.upserted == 0 && report.removed == 0, || format!("something changed: {report:?}"))?;
    bench.update(&[svc.on(&["a2"])])?;
    bench.served(("client-a", &svc, ClusterIp, Tcp), &["a2"]).map(drop)
}

fn unsupported_route(bench: &mut Bench<'_>) -> Step {
    let capabilities = bench.datapath()?.capabilities().clone();
    let Some(&missing) = Protocol::ALL.iter().find(|p| !capabilities.protocols.contains(p)) else {
        return Err(Stop::NotSupported("it serves every protocol".into()));
    };
    debug_assert_eq!(missing, Sctp);
    let plain = bench.service().on(&["a1"]);
    let svc = plain.clone().with_protocol(missing);
    let other = bench.service().on(&["b1"]);
    for programmed in ["replace", "apply"] {
        let report = if programmed == "replace" {
            bench.program(&[svc.clone(), other.clone()])?
        } else {
            bench.program(std::slice::from_ref(&other))?;
            bench.update(&[svc.clone(), other.clone()])?
        };
        let wanted = svc.frontend(ClusterIp, bench.family, missing);
        let named =
            report.failed.iter().any(|f| f.frontend == wanted && f.error.kind() == ErrorKind::Unsupported);
        check(named, || format!("{programmed}: the report does not name {wanted}: {:?}", report.failed))?;
        let only = report.failed.iter().all(|f| f.frontend.protocol == missing);
        check(only, || format!("{programmed}: other routes failed, too: {:?}", report.failed))?;
        bench.served(("client-a", &svc, ClusterIp, Tcp), &["a1"])?;
        bench.served(("outside", &other, NodePort, Tcp), &["b1"])?;
    }
    Ok(())
}

fn dropped_future(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service();
    bench.program(&[svc.on(&["a1"])])?;
    let (delta, next) = bench.delta(&[svc.on(&["b1"])])?;
    let datapath = bench.datapath()?;
    // Polled once, so that it has begun, then dropped.
    let _ = datapath.apply(Arc::new(delta)).now_or_never();
    let (before, now) = (bench.table(), block_on(datapath.read())?);
    check(now.same_routes(&before) || now.same_routes(&next), || "half an update is left".into())?;
    if now.same_routes(&next) {
        bench.moved_to(next);
    }
    let by = if now.same_routes(&before) { "a1" } else { "b1" };
    bench.served(("client-a", &svc, ClusterIp, Tcp), &[by])?;
    bench.program(&[svc.on(&["a2"])])?;
    bench.served(("client-a", &svc, ClusterIp, Tcp), &["a2"]).map(drop)
}

fn chosen_addresses(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service().on(&["a1"]);
    bench.program(std::slice::from_ref(&svc))?;
    bench.served(("outside", &svc, NodePort, Tcp), &["a1"])?;
    let all = bench.table();
    let mut node = (**all.node()).clone();
    node.node_port_addresses.retain(|address| IpFamily::of(*address) != bench.family);
    let fewer = RouteTable::new(all.revision().next(), Arc::new(node), all.routes().cloned());
    block_on(bench.datapath()?.apply(Arc::new(all.diff(&fewer))))?;
    bench.moved_to(Arc::new(fewer));
    bench.not_served(("outside", &svc, NodePort, Tcp))?;
    bench.not_served(("node-a", &svc, NodePort, Tcp))?;
    bench.served(("client-a", &svc, ClusterIp, Tcp), &["a1"])?;
    same(bench)?;
    bench.update(std::slice::from_ref(&svc))?;
    bench.served(("outside", &svc, NodePort, Tcp), &["a1"]).map(drop)
}

fn events(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service().on(&["a1"]);
    let mut events = bench.datapath()?.events();
    bench.program(std::slice::from_ref(&svc))?;
    let revision = bench.revision();
    // An event may come a moment after the call returns.
    let seen = eventually(
        || match events.next().now_or_never() {
            Some(Some(DatapathEvent::Applied { revision: r })) if r == revision => Got::Cut,
            _ => Got::Silence,
        },
        |got| *got == Got::Cut,
    );
    seen.or_else(|_| fail(format!("no event says that {revision} was applied")))?;
    let delta = RouteDelta::empty(revision, revision.next());
    block_on(bench.datapath()?.apply(Arc::new(delta)))?;
    Ok(())
}

/// Whether it gets all events or loses some is the datapath's to choose.
fn slow_reader(bench: &mut Bench<'_>) -> Step {
    const UPDATES: u64 = 1100;
    let svc = bench.service().on(&["a1"]);
    bench.program(std::slice::from_ref(&svc))?;
    let mut events = bench.datapath()?.events();
    let mut revision = bench.revision();
    for _ in 0..UPDATES {
        let delta = RouteDelta::empty(revision, revision.next());
        revision = block_on(bench.datapath()?.apply(Arc::new(delta)))?.revision;
    }
    let mut told = 0;
    let all_told = eventually(
        || {
            while let Some(Some(event)) = events.next().now_or_never() {
                told += match event {
                    DatapathEvent::Missed { count } => count,
                    DatapathEvent::Applied { .. } => 1,
                    _ => 0,
                };
            }
            if told >= UPDATES { Got::Cut } else { Got::Silence }
        },
        |got| *got == Got::Cut,
    );
    all_told.or_else(|_| fail(format!("{UPDATES} updates, and its reader heard of {told}")))
}
