//! A process whose clock is not that of the programs.

use std::{fs, path::Path};

use kubenet_core::datapath::{Close, Datapath};

use super::{child::Plan, *};

#[test]
fn a_process_in_a_time_namespace_knows_how_old_flows_are() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    if !Path::new("/proc/self/timens_offsets").exists() {
        return skip("this kernel has no time namespaces");
    }
    let plan = Plan::new(&lab, &bpffs.pin_dir(), AttachMode::Auto);
    let datapath = plan.datapath();
    replace(&datapath, &plan.table(1, plan.web(&["here"])));
    let mut known = CLIENTS.map(|client| lab.connect(place(client), target(&lab, client), SOON).unwrap());
    block_on(datapath.close(Close::Keep)).unwrap();
    // Before its own beginning no clock can be.
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    let uptime: i64 = uptime.split('.').next().unwrap().parse().unwrap();
    for ahead in [1_000_000, 0, -uptime / 2] {
        known.iter_mut().for_each(|connection| drop(connection.ask(SOON).unwrap()));
        let answer = plan.spawn_ahead("count", ahead).wait_for("flows");
        let (flows, idle) = answer.split_once(' ').unwrap();
        assert_eq!(flows, "2", "{ahead} seconds ahead: the node's own flow needs nobody");
        assert!(idle.parse::<u64>().unwrap() < 30, "{ahead} seconds ahead: {idle}");
        known.iter_mut().for_each(|connection| drop(connection.ask(SOON).unwrap()));
    }
    block_on(plan.datapath().close(Close::Remove)).unwrap();
}
