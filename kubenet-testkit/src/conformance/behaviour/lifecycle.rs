//! Draining and closing. These cases use up the datapath.

use futures::executor::block_on;
use kubenet_core::{
    datapath::{Close, DatapathError, ErrorKind},
    model::Protocol::{Tcp, Udp},
    route::FrontendKind::{self, ClusterIp, NodePort},
};

use super::{Case, TCP};
use crate::conformance::{
    bench::{Bench, Open, Step, Stop, Way, check, fail},
    fixture::Svc,
};

pub(super) const CASES: &[Case] = &[
    Case::new("drain_keeps_known_connections_and_takes_no_new_ones", TCP, drain),
    Case::new("replace_ends_a_drain", TCP, replace_after_drain),
    Case::new("close_after_a_drain_to_zero_cuts_nothing", TCP, close_after_drain),
    Case::new("close_remove_leaves_nothing", TCP, close_remove),
    Case::new("close_keep_goes_on_forwarding", TCP, close_keep),
    Case::new("a_new_datapath_adopts_what_was_kept", TCP, adopt),
];

const WAYS: [(&str, FrontendKind); 3] =
    [("client-a", ClusterIp), ("node-a", ClusterIp), ("outside", NodePort)];
const BOTH: &[&str] = &["a1", "b1"];

fn open(bench: &Bench<'_>, svc: &Svc) -> Step<Vec<Open>> {
    WAYS.iter().map(|&(from, kind)| bench.open((from, svc, kind, Tcp), BOTH)).collect()
}

/// Every way of [`WAYS`], in both protocols.
fn everything(svc: &Svc) -> Vec<Way<'_>> {
    let both = |&(from, kind)| [(from, svc, kind, Tcp), (from, svc, kind, Udp)];
    WAYS.iter().flat_map(both).collect()
}

fn drain(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service().on(BOTH);
    bench.program(std::slice::from_ref(&svc))?;
    let mut known = open(bench, &svc)?;
    for _ in 0..2 {
        block_on(bench.datapath()?.drain())?;
        bench.none_served(&everything(&svc))?;
        known.iter_mut().try_for_each(Open::lives)?;
    }
    Ok(())
}

fn replace_after_drain(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service().on(BOTH);
    bench.program(std::slice::from_ref(&svc))?;
    block_on(bench.datapath()?.drain())?;
    bench.not_served(("client-a", &svc, ClusterIp, Tcp))?;
    bench.replace()?;
    for (from, kind) in WAYS {
        bench.served((from, &svc, kind, Tcp), BOTH)?;
    }
    Ok(())
}

fn close_after_drain(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service().on(BOTH);
    bench.program(std::slice::from_ref(&svc))?;
    let mut known = open(bench, &svc)?;
    let datapath = bench.take()?;
    let flows = block_on(datapath.drain())?.flows;
    if flows > 0 {
        block_on(datapath.close(Close::Remove))?;
        return Err(Stop::NotSupported(format!("it says that closing would cut {flows} flows")));
    }
    block_on(datapath.close(Close::Remove))?;
    known.iter_mut().try_for_each(Open::lives)
}

fn close_remove(bench: &mut Bench<'_>) -> Step {
    let svc = bench.service().on(BOTH);
    bench.program(std::slice::from_ref(&svc))?;
    let table = bench.table();
    let datapath = bench.take()?;
    block_on(datapath.close(Close::Remove))?;
    bench.none_served(&everything(&svc))?;
    let left = bench.world.leftovers();
    check(left.is_empty(), || format!("it left behind: {}", left.join("; ")))?;
    closed("read", block_on(datapath.read()))?;
    closed("replace", block_on(datapath.replace(table)))?;
    closed("drain", block_on(datapath.drain()))
}

/// A call after close must say that it is closed.
fn closed<T>(call: &str, result: Result<T, DatapathError>) -> Step {
    match result {
        Err(error) if error.kind() == ErrorKind::Unavailable => Ok(()),
        Err(error) => fail(format!("{call} after close: expected unavailable, got {error}")),
        Ok(_) => fail(format!("{call} after close: expected unavailable, it worked")),
    }
}

fn keeps(bench: &mut Bench<'_>) -> Step {
    if bench.datapath()?.capabilities().keep_on_close {
        Ok(())
    } else {
        Err(Stop::NotSupported("keep_on_close is not in its capabilities".into()))
    }
}

fn close_keep(bench: &mut Bench<'_>) -> Step {
    keeps(bench)?;
    let svc = bench.service().on(BOTH);
    bench.program(std::slice::from_ref(&svc))?;
    let mut known = open(bench, &svc)?;
    let datapath = bench.take()?;
    block_on(datapath.close(Close::Keep))?;
    drop(datapath);
    for (from, kind) in WAYS {
        bench.served((from, &svc, kind, Tcp), BOTH)?;
    }
    known.iter_mut().try_for_each(Open::lives)
}

fn adopt(bench: &mut Bench<'_>) -> Step {
    keeps(bench)?;
    if bench.world.simulated() {
        return Err(Stop::NotSupported("a simulation has no kernel that outlives it".into()));
    }
    let svc = bench.service();
    bench.program(&[svc.on(BOTH)])?;
    let mut known = open(bench, &svc)?;
    let datapath = bench.take()?;
    block_on(datapath.close(Close::Keep))?;
    drop(datapath);
    bench.datapath()?;
    for (from, kind) in WAYS {
        bench.served((from, &svc, kind, Tcp), BOTH)?;
    }
    bench.replace()?;
    known.iter_mut().try_for_each(Open::lives)?;
    bench.update(&[svc.on(&["b2"])])?;
    for (from, kind) in WAYS {
        bench.served((from, &svc, kind, Tcp), &["b2"])?;
    }
    known.iter_mut().try_for_each(Open::lives)
}
