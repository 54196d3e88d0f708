//! Routes of a Service of any name, and what its name must not change. The fuzz target has it, too.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each user uses a part; a failed step fails the test"
)]

use std::{num::NonZeroU16, sync::Arc};

use kubenet_core::{
    model::{Affinity, IpFamily, Protocol},
    route::{
        Backend, Frontend, FrontendKind, Masquerade, NodeRouting, Revision, Route, RouteTable,
        ServicePortName, SourceRanges, Target, WhenEmpty,
    },
};
use kubenet_iptables::{IptablesDatapath, Preview};

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

/// Every kind of rule that says a name: backends here and elsewhere, no backends, source ranges, policies.
pub fn routes(named: &ServicePortName, number: u8) -> Vec<Arc<Route>> {
    let mut routes = Vec::new();
    let mut push = |kind, last: u8, pods: &[(u8, bool)], change: fn(&mut Route)| {
        let backend = |&(pod, local): &(u8, bool)| Backend::new([10, 244, 1, pod].into(), port(8080), local);
        let target = Target { backends: pods.iter().map(backend).collect(), when_empty: WhenEmpty::Reject };
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let frontend = match kind {
                FrontendKind::NodePort => {
                    Frontend::node_port(IpFamily::V4, port(30_000 + u16::from(number)), protocol)
                }
                _ => Frontend::ip([10, 96, number, last].into(), port(80), protocol),
            };
            let mut route = Route::new(frontend, kind, named.clone(), target.clone(), Masquerade::ALWAYS);
            change(&mut route);
            routes.push(Arc::new(route));
        }
    };
    push(FrontendKind::ClusterIp, 1, &[(2, true), (3, false)], |_| ());
    push(FrontendKind::ClusterIp, 2, &[(4, true)], |_| ());
    push(FrontendKind::ClusterIp, 5, &[(2, true), (3, false)], |route| {
        route.affinity = Some(Affinity::default());
    });
    push(FrontendKind::ExternalIp, 3, &[], |_| ());
    push(FrontendKind::NodePort, 0, &[(2, true), (3, false)], |route| {
        route.external = Target { backends: Arc::default(), when_empty: WhenEmpty::Drop };
    });
    push(FrontendKind::LoadBalancer, 4, &[(2, true), (3, false)], |route| {
        let cidrs = vec!["192.0.2.0/24".parse().unwrap()];
        route.source_ranges = Some(Arc::new(SourceRanges { cidrs, node: true }));
    });
    routes
}

pub fn named(namespace: &str, service: &str, port: &str) -> ServicePortName {
    ServicePortName { namespace: namespace.into(), service: service.into(), port: port.into() }
}

pub fn table(routes: Vec<Arc<Route>>) -> RouteTable {
    RouteTable::new(Revision(1), Arc::new(NodeRouting::default()), routes)
}

pub fn preview(name: &ServicePortName) -> Preview {
    IptablesDatapath::builder().preview(&table(routes(name, 1)), None).unwrap()
}

/// The lines without comments, and with chains named after their kind alone. A record that is too long for one
/// comment begins in rules that do nothing; they are left out.
fn skeleton(preview: &Preview) -> Vec<String> {
    assert!(preview.failed.is_empty(), "{:?}", preview.failed);
    let text = &preview.texts[&IpFamily::V4];
    assert!(text.bytes().all(|b| b == b'\n' || (b' '..=b'~').contains(&b)), "{text:?}");
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut kept = String::new();
        for (n, part) in line.split('"').enumerate() {
            if n % 2 == 0 {
                kept += part;
            } else {
                assert!(part.len() <= 255, "the kernel keeps 255 bytes: {part}");
            }
        }
        assert!(line.matches('"').count() % 2 == 0, "{line}");
        let words = kept.split_whitespace().map(|word| match word.rsplit_once('-') {
            Some((kind, hash)) if hash.len() == 16 && kind.contains("KUBE") => kind.to_owned(),
            _ => word.to_owned(),
        });
        let words: Vec<_> = words.collect();
        let does_nothing = words[0] == "-A" && !words.iter().any(|word| word == "-j" || word == "-g");
        if !does_nothing {
            lines.push(words.join(" "));
        }
    }
    lines.sort_unstable();
    lines
}
/// The name must change comments and nothing else.
pub fn check(name: &ServicePortName) {
    let expected = skeleton(&preview(&named("demo", "web", "http")));
    assert_eq!(skeleton(&preview(name)), expected, "{name:?}");
}
