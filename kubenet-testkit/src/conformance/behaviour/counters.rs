//! What is counted, and for whom.

use futures::executor::block_on;
use kubenet_core::{
    datapath::{Counters, ErrorKind, Traffic},
    model::Protocol::Tcp,
    route::FrontendKind::{self, ClusterIp, NodePort},
};

use super::{Case, TCP};
use crate::conformance::{
    bench::{Bench, Step, Stop, check, eventually, fail},
    fixture::Svc,
    world::Got,
};

pub(super) const CASES: &[Case] = &[
    Case::new("counters_count_connections_by_route_and_by_backend", TCP, connections),
    Case::new("counters_count_packets_and_bytes_of_both_directions", TCP, packets),
    Case::new("counters_of_a_route_go_with_it", TCP, removed),
];

fn needs_counters(bench: &mut Bench<'_>) -> Step {
    if bench.datapath()?.capabilities().counters {
        return Ok(());
    }
    match block_on(bench.datapath()?.counters()) {
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            Err(Stop::NotSupported("counters are not in its capabilities".into()))
        }
        Err(error) => fail(format!("expected unsupported, got {error}")),
        Ok(_) => fail("it counts, but its capabilities do not say so"),
    }
}

fn read(bench: &mut Bench<'_>) -> Step<Counters> {
    Ok(block_on(bench.datapath()?.counters())?)
}

fn of_route(bench: &mut Bench<'_>, svc: &Svc, kind: FrontendKind) -> Step<Traffic> {
    let frontend = svc.frontend(kind, bench.family, Tcp);
    Ok(read(bench)?.routes.get(&frontend).copied().unwrap_or_default())
}

/// All backends of the Service together, and how many there are that have served anything.
fn of_backends(bench: &mut Bench<'_>, svc: &Svc) -> Step<(Traffic, usize)> {
    let frontend = svc.frontend(ClusterIp, bench.family, Tcp);
    let table = bench.table();
    let Some(route) = table.get(&frontend) else { return Ok(Default::default()) };
    let counters = read(bench)?;
    let (mut all, mut count) = (Traffic::default(), 0);
    for (name, traffic) in &counters.backends {
        let is_ours = |b: &&kubenet_core::route::Backend| b.socket_addr() == name.address;
        if name.service_port == route.service_port
            && name.protocol == Tcp
            && route.internal.backends.iter().any(|b| is_ours(&b))
        {
            all += *traffic;
            count += usize::from(traffic.connections > 0);
        }
    }
    Ok((all, count))
}

fn connections(bench: &mut Bench<'_>) -> Step {
    needs_counters(bench)?;
    let svc = bench.service().on(&["a1", "b1"]);
    bench.program(std::slice::from_ref(&svc))?;
    let mut made = 0;
    for (from, kind) in [("client-a", ClusterIp), ("outside", NodePort), ("node-a", ClusterIp)] {
        let before = of_route(bench, &svc, kind)?.connections;
        for _ in 0..5 {
            bench.served((from, &svc, kind, Tcp), &["a1", "b1"])?;
        }
        made += 5;
        let counted = of_route(bench, &svc, kind)?.connections - before;
        check(counted == 5, || format!("{from} to {kind:?}: 5 connections were made, {counted} counted"))?;
        let (all, _) = of_backends(bench, &svc)?;
        check(all.connections == made, || format!("{made} connections were made, {all:?} of the backends"))?;
    }
    let (_, used) = of_backends(bench, &svc)?;
    check(used > 0, || "no backend was counted".to_owned())
}

fn packets(bench: &mut Bench<'_>) -> Step {
    needs_counters(bench)?;
    if !bench.datapath()?.capabilities().packet_counters {
        return Err(Stop::NotSupported("packet counters are not in its capabilities".into()));
    }
    let svc = bench.service().on(&["a1", "b1"]);
    bench.program(std::slice::from_ref(&svc))?;
    for (from, kind) in [("client-a", ClusterIp), ("outside", NodePort)] {
        let before = of_route(bench, &svc, kind)?;
        for _ in 0..5 {
            bench.served((from, &svc, kind, Tcp), &["a1", "b1"])?;
        }
        // SYN, ACK, question, FIN; SYN-ACK, answer, FIN. Each has the headers of IP and TCP. The last ones may
        // come a moment after the answer.
        let plausible = |now: &Traffic| {
            let (packets, bytes) = (now.packets - before.packets, now.bytes - before.bytes);
            let (replies, reply_bytes) =
                (now.reply_packets - before.reply_packets, now.reply_bytes - before.reply_bytes);
            (5 * 4..5 * 20).contains(&packets)
                && (5 * 3..5 * 20).contains(&replies)
                && bytes > 40 * packets
                && reply_bytes > 40 * replies
        };
        let mut last = None;
        let seen = eventually(
            || match of_route(bench, &svc, kind) {
                Ok(now) if plausible(&now) => Got::Cut,
                now => {
                    last = now.ok();
                    Got::Silence
                }
            },
            |got| *got == Got::Cut,
        );
        seen.or_else(|_| fail(format!("{from} to {kind:?}: from {before:?} to {last:?}")))?;
    }
    // Each packet was some backend's.
    let routes = [ClusterIp, NodePort].map(|kind| of_route(bench, &svc, kind));
    let mut sum = Traffic::default();
    for route in routes {
        sum += route?;
    }
    let (all, _) = of_backends(bench, &svc)?;
    check(all.bytes >= sum.bytes && all.reply_bytes >= sum.reply_bytes, || format!("{all:?}, routes {sum:?}"))
}

fn removed(bench: &mut Bench<'_>) -> Step {
    needs_counters(bench)?;
    let svc = bench.service().on(&["a1"]);
    let other = bench.service().on(&["a1"]);
    bench.program(&[svc.clone(), other.clone()])?;
    let mut open = bench.open(("client-a", &svc, ClusterIp, Tcp), &["a1"])?;
    bench.served(("client-a", &other, ClusterIp, Tcp), &["a1"])?;
    bench.update(std::slice::from_ref(&other))?;
    let frontend = svc.frontend(ClusterIp, bench.family, Tcp);
    check(!read(bench)?.routes.contains_key(&frontend), || format!("{frontend} is gone, and counted"))?;
    check(of_route(bench, &other, ClusterIp)?.connections == 1, || {
        "another route lost its counters".to_owned()
    })?;
    // The old connection goes on, and whoever gets the ids of its Service next is not charged with it.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    bench.update(&[other, svc.clone()])?;
    for _ in 0..3 {
        open.lives()?;
        std::thread::sleep(std::time::Duration::from_millis(1100));
    }
    drop(open);
    let traffic = of_route(bench, &svc, ClusterIp)?;
    check(traffic == Traffic::default(), || format!("nobody asked for it: {traffic:?}"))?;
    let (traffic, _) = of_backends(bench, &svc)?;
    check(traffic == Traffic::default(), || format!("nobody asked its backend: {traffic:?}"))?;
    bench.served(("client-a", &svc, ClusterIp, Tcp), &["a1"])?;
    check(of_route(bench, &svc, ClusterIp)?.connections == 1, || "the new one is not counted".to_owned())
}
