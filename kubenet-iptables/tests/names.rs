//! Names are data: whatever a Service is called, it never becomes a rule or an option.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step fails the test")]

mod common;
#[path = "common/naming.rs"]
mod naming;

use std::{
    io::Write as _,
    process::{Command, Stdio},
    sync::Arc,
};

use common::*;
use futures::executor::block_on;
use kubenet_core::{
    datapath::{Close, Datapath},
    model::IpFamily,
    route::{Revision, Route, RouteTable},
};
use kubenet_iptables::{IptablesDatapath, Variant};
use kubenet_testkit::lab::Node;
use naming::{check, named, routes, table};
use proptest::prelude::*;

const HOSTILE: &[&str] = &[
    "",
    "x\" -j ACCEPT",
    "x\n-A INPUT -j ACCEPT",
    "x\r\nCOMMIT\n*filter\n:INPUT ACCEPT [0:0]",
    "-j ACCEPT",
    "--flush",
    "*nat",
    ":KUBE-SERVICES - [0:0]",
    "# comment",
    "a b\tc",
    "\\\"\\",
    "$(reboot)`reboot`;reboot&",
    "%20%0A%22",
    "🦀🦀🦀",
    "\u{202e}\u{feff}\u{0}\u{7f}",
    "'single'",
    "a:b/c -> 10.0.0.1:80 local",
    "+continued",
    " from=0.0.0.0/0 empty=drop masq=none",
];

fn long() -> String {
    "kubernetes".repeat(30)
}

#[test]
fn hostile_names_change_comments_and_nothing_else() {
    let long = long();
    for part in HOSTILE.iter().copied().chain([long.as_str()]) {
        check(&named(part, "web", "http"));
        check(&named("demo", part, "http"));
        check(&named("demo", "web", part));
        check(&named(part, part, part));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_name_changes_comments_and_nothing_else(
        namespace in "\\PC{0,300}",
        service in any::<String>(),
        port in "[-\"\\\\ \n*:#A-z]{0,40}",
    ) {
        check(&named(&namespace, &service, &port));
    }
}

/// Hostile names in every place, each on addresses of its own.
fn hostile_routes() -> Vec<Arc<Route>> {
    let long = long();
    let parts: Vec<&str> = HOSTILE.iter().copied().chain([long.as_str()]).collect();
    let names = parts.iter().enumerate().map(|(n, part)| match n % 3 {
        0 => named(part, "web", "http"),
        1 => named("demo", part, "http"),
        _ => named("demo", "web", part),
    });
    names.zip(1..).flat_map(|(name, number)| routes(&name, number)).collect()
}

#[test]
fn both_variants_accept_hostile_names_in_test_mode() {
    let Some(world) = world(Variant::Nft) else { return };
    let preview = IptablesDatapath::builder().preview(&table(hostile_routes()), None).unwrap();
    for program in ["iptables-nft-restore", "iptables-legacy-restore"] {
        let text = &preview.texts[&IpFamily::V4];
        let node = world.lab.node(Node::A).netns();
        let output = node.run(|| {
            let mut child = Command::new(program)
                .args(["--noflush", "--test"])
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        });
        let output = output.unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn hostile_names_come_back_from_the_kernel_as_they_were() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let node = world.lab.node_info(Node::A).unwrap().routing();
        let table = Arc::new(RouteTable::new(Revision(1), Arc::new(node), hostile_routes()));
        let datapath = world.start();
        let report = block_on(datapath.replace(Arc::clone(&table))).unwrap();
        assert!(report.failed.is_empty(), "{variant:?}: {:?}", report.failed);
        let read = block_on(datapath.read()).unwrap();
        for (kernel, ours) in read.routes().zip(table.routes()) {
            assert_eq!(kernel, ours, "{variant:?}");
        }
        assert_eq!(read.len(), table.len());
        block_on(datapath.close(Close::Remove)).unwrap();
    }
}
