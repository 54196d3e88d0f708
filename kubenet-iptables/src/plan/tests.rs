mod affinity;
mod loopback;
mod packets;

use std::{num::NonZeroU16, sync::Arc};

use kubenet_core::{
    model::{Affinity, IpFamily, LocalDetector, Protocol},
    route::{
        Backend, BackendState, Frontend, FrontendKind, Masquerade, NodeRouting, Revision, Route, RouteDelta,
        RouteTable, ServicePortName, Target as RouteTarget, WhenEmpty,
    },
};
use proptest::{collection, prelude::*};

use super::*;
use crate::{
    names::Names,
    read,
    restore::{self, JumpEdit},
    rule::Target,
    save::Saved,
};

fn port(n: u16) -> NonZeroU16 {
    NonZeroU16::new(n).unwrap()
}

fn context() -> Arc<Context> {
    Arc::new(Context {
        names: Names::new("KUBE"),
        random_fully: true,
        hairpin: true,
        sctp: true,
        accept_invalid: false,
        families: IpFamily::ALL.to_vec(),
    })
}

fn node() -> NodeRouting {
    let mut node = NodeRouting::default();
    node.addresses = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
    node.node_port_addresses = node.addresses.clone();
    node.local_detector =
        LocalDetector::Cidrs(vec!["10.244.0.0/16".parse().unwrap(), "fd00:244::/48".parse().unwrap()]);
    node
}

fn name(service: &str) -> ServicePortName {
    ServicePortName { namespace: "demo".into(), service: service.into(), port: "http".into() }
}

fn backend(address: &str, local: bool) -> Backend {
    Backend {
        address: address.parse().unwrap(),
        port: port(8080),
        local,
        state: BackendState::Ready,
        weight: NonZeroU16::MIN,
    }
}

fn target(backends: &[Backend], when_empty: WhenEmpty) -> RouteTarget {
    RouteTarget { backends: backends.into(), when_empty }
}

const NOT_PODS: Masquerade = Masquerade { pods: false, node: true, outside: true };

fn cluster_ip(address: &str, service: &str, backends: &[Backend]) -> Arc<Route> {
    let frontend = Frontend::ip(address.parse().unwrap(), port(80), Protocol::Tcp);
    let target = target(backends, WhenEmpty::Reject);
    Arc::new(Route::new(frontend, FrontendKind::ClusterIp, name(service), target, NOT_PODS))
}

fn table(revision: u64, routes: Vec<Arc<Route>>) -> RouteTable {
    RouteTable::new(Revision(revision), Arc::new(node()), routes)
}

/// The transaction that makes the chains of a family from nothing.
fn text(table: &RouteTable, family: IpFamily) -> String {
    let planner = Planner::new(context(), table.clone());
    let all = changes(&Chains::new(), planner.chains(family).unwrap());
    restore::transaction(family, &Chains::new(), &all, &[])
}

fn rules_of<'a>(text: &'a str, chains: &[&str]) -> Vec<&'a str> {
    let of = |line: &&str| chains.iter().any(|chain| line.starts_with(&format!("-A {chain}")));
    text.lines().filter(of).collect()
}

#[test]
fn a_cluster_ip_is_one_rule_and_a_chain_only_where_it_picks() {
    let backends = [backend("10.244.1.2", true), backend("10.244.2.2", false), backend("10.244.2.3", false)];
    let one = cluster_ip("10.96.0.12", "one", &backends[1..2]);
    let text = text(&table(7, vec![cluster_ip("10.96.0.10", "web", &backends), one]), IpFamily::V4);
    let expected = r#"
*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NO-PORT - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
-A KUBE-EXTERNAL-SERVICES -d 10.0.0.1/32 -m comment --comment "kubernetes service nodeports" -j KUBE-NODEPORTS
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "kubernetes forwarding conntrack rule" -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate INVALID -m comment --comment "kubernetes invalid packets" -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -m comment --comment "kubernetes forwarding rules" -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate DNAT -m bpf --bytecode "6,32 0 0 12,7 0 0 0,32 0 0 16,29 0 1 0,6 0 0 65535,6 0 0 0" -m comment --comment "kubernetes backend that reaches itself" -j ACCEPT
-A KUBE-NO-PORT -p tcp -m comment --comment "no such port of the cluster IP" -j REJECT --reject-with tcp-reset
-A KUBE-NO-PORT -p udp -m comment --comment "no such port of the cluster IP" -j REJECT --reject-with icmp-port-unreachable
-A KUBE-NO-PORT -p sctp -m comment --comment "no such port of the cluster IP" -j REJECT --reject-with icmp-port-unreachable
-A KUBE-SERVICES -d 10.96.0.10/32 -m comment --comment "demo/web:http cluster IP port=tcp/80 masq=node,outside empty=reject" -g KUBE-NO-PORT
-A KUBE-SERVICES -d 10.96.0.12/32 -m comment --comment "demo/one:http cluster IP port=tcp/80 masq=node,outside empty=reject" -g KUBE-NO-PORT
COMMIT
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-MASQ-NO - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-STATE - [0:0]
:KUBE-SVC-XRY76EGRC3BSCIIJ - [0:0]
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-MASQ-NO -s 10.244.0.0/16 -j RETURN
-A KUBE-MASQ-NO -g KUBE-MARK-MASQ
-A KUBE-POSTROUTING -m conntrack --ctstate DNAT -m bpf --bytecode "6,32 0 0 12,7 0 0 0,32 0 0 16,29 0 1 0,6 0 0 65535,6 0 0 0" -m comment --comment "kubernetes backend that reaches itself" -j KUBE-MARK-MASQ
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -p tcp -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --to-ports 32768-65535 --random-fully
-A KUBE-POSTROUTING -p udp -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --to-ports 32768-65535 --random-fully
-A KUBE-POSTROUTING -p sctp -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --to-ports 32768-65535 --random-fully
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-SERVICES -m comment --comment "kubernetes masquerade unless from a pod" -j KUBE-MASQ-NO
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-XRY76EGRC3BSCIIJ
-A KUBE-SERVICES -d 10.96.0.12/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.2.2:8080
-A KUBE-SERVICES -m comment --comment "kubernetes no service portal" -j MARK --set-xmark 0x0/0x4000
-A KUBE-SERVICES -d 10.0.0.1/32 -m comment --comment "kubernetes service nodeports" -j KUBE-NODEPORTS
-A KUBE-STATE -m comment --comment "kubenet 1 revision=7"
-A KUBE-STATE -m comment --comment "address 10.0.0.1"
-A KUBE-STATE -m comment --comment "address fd00::1"
-A KUBE-STATE -m comment --comment "node-port-address 10.0.0.1"
-A KUBE-STATE -m comment --comment "node-port-address fd00::1"
-A KUBE-STATE -m comment --comment "detector cluster-cidrs"
-A KUBE-STATE -m comment --comment "pods 10.244.0.0/16"
-A KUBE-STATE -m comment --comment "pods fd00:244::/48"
-A KUBE-SVC-XRY76EGRC3BSCIIJ -p tcp -m comment --comment "demo/web:http -> 10.244.1.2:8080 local" -m statistic --mode random --probability 0.3333333333 -j DNAT --to-destination 10.244.1.2:8080
-A KUBE-SVC-XRY76EGRC3BSCIIJ -p tcp -m statistic --mode random --probability 0.5000000000 -j DNAT --to-destination 10.244.2.2:8080
-A KUBE-SVC-XRY76EGRC3BSCIIJ -p tcp -j DNAT --to-destination 10.244.2.3:8080
COMMIT
"#;
    assert_eq!(text, expected.trim_start());
}

#[test]
fn weights_are_shares_of_what_the_rules_before_leave() {
    let weighs = |address, weight| Backend { weight: port(weight), ..backend(address, false) };
    let backends = [weighs("10.244.2.2", 3), weighs("10.244.2.3", 1), weighs("10.244.2.4", 4)];
    let text = text(&table(1, vec![cluster_ip("10.96.0.10", "web", &backends)]), IpFamily::V4);
    let expected = r#"
-A KUBE-SVC-XRY76EGRC3BSCIIJ -p tcp -m comment --comment "demo/web:http -> 10.244.2.2:8080 weight=3" -m statistic --mode random --probability 0.3750000000 -j DNAT --to-destination 10.244.2.2:8080
-A KUBE-SVC-XRY76EGRC3BSCIIJ -p tcp -m statistic --mode random --probability 0.2000000000 -j DNAT --to-destination 10.244.2.3:8080
-A KUBE-SVC-XRY76EGRC3BSCIIJ -p tcp -m comment --comment "demo/web:http -> 10.244.2.4:8080 weight=4" -j DNAT --to-destination 10.244.2.4:8080
"#;
    let rules = rules_of(&text, &["KUBE-SVC-"]);
    assert_eq!(rules, expected.trim().lines().collect::<Vec<_>>());
}

#[test]
fn a_node_port_with_local_policy_decides_by_origin() {
    let frontend = Frontend::node_port(IpFamily::V6, port(30080), Protocol::Udp);
    let (here, there) = (backend("fd00:244:1::2", true), backend("fd00:244:2::2", false));
    let masquerade = Masquerade { pods: false, node: true, outside: false };
    let all = target(&[here, there], WhenEmpty::Reject);
    let mut route = Route::new(frontend, FrontendKind::NodePort, name("web"), all, masquerade);
    route.external = target(&[here], WhenEmpty::Drop);
    let text = text(&table(1, vec![Arc::new(route)]), IpFamily::V6);
    let expected = r#"
-A KUBE-EXT-XEAXRXNGUXT62T3N -s fd00:244::/48 -m comment --comment "demo/web:http" -j KUBE-SVC-XEAXRXNGUXT62T3N
-A KUBE-EXT-XEAXRXNGUXT62T3N -m addrtype --src-type LOCAL -m comment --comment "demo/web:http" -j KUBE-MARK-MASQ
-A KUBE-EXT-XEAXRXNGUXT62T3N -m addrtype --src-type LOCAL -m comment --comment "demo/web:http" -j KUBE-SVC-XEAXRXNGUXT62T3N
-A KUBE-EXT-XEAXRXNGUXT62T3N -p udp -m comment --comment "demo/web:http -> [fd00:244:1::2]:8080 local" -j DNAT --to-destination [fd00:244:1::2]:8080
-A KUBE-NODEPORTS -p udp -m udp --dport 30080 -m comment --comment "demo/web:http node port masq=node empty=reject/drop" -j KUBE-EXT-XEAXRXNGUXT62T3N
"#;
    assert_eq!(
        rules_of(&text, &["KUBE-EXT-", "KUBE-NODEPORTS"]),
        expected.trim().lines().collect::<Vec<_>>()
    );
}

#[test]
fn empty_routes_are_answered_in_filter_and_take_no_chain() {
    let mut drop_outside = Route::new(
        Frontend::node_port(IpFamily::V4, port(30080), Protocol::Udp),
        FrontendKind::NodePort,
        name("quiet"),
        target(&[backend("10.244.2.2", false)], WhenEmpty::Reject),
        Masquerade::NEVER,
    );
    drop_outside.external = target(&[], WhenEmpty::Drop);
    let mut by_origin = (*cluster_ip("10.96.0.12", "both", &[])).clone();
    by_origin.external.when_empty = WhenEmpty::Drop;
    let routes = vec![cluster_ip("10.96.0.11", "none", &[]), Arc::new(drop_outside), Arc::new(by_origin)];
    let text = text(&table(1, routes), IpFamily::V4);
    let filter = text.split("*nat").next().unwrap();
    let expected = r#"
-A KUBE-NODEPORTS -p udp -m udp --dport 30080 -m comment --comment "demo/quiet:http has no endpoints" -j DROP
-A KUBE-SERVICES -d 10.96.0.11/32 -p tcp -m tcp --dport 80 -m comment --comment "demo/none:http" -j REJECT --reject-with tcp-reset
-A KUBE-SERVICES -d 10.96.0.11/32 -m comment --comment "demo/none:http cluster IP port=tcp/80 masq=node,outside empty=reject" -g KUBE-NO-PORT
-A KUBE-SERVICES -s 10.244.0.0/16 -d 10.96.0.12/32 -p tcp -m tcp --dport 80 -m comment --comment "demo/both:http" -j REJECT --reject-with tcp-reset
-A KUBE-SERVICES -d 10.96.0.12/32 -p tcp -m tcp --dport 80 -m addrtype --src-type LOCAL -m comment --comment "demo/both:http" -j REJECT --reject-with tcp-reset
-A KUBE-SERVICES -d 10.96.0.12/32 -p tcp -m tcp --dport 80 -m comment --comment "demo/both:http" -j DROP
-A KUBE-SERVICES -d 10.96.0.12/32 -m comment --comment "demo/both:http cluster IP port=tcp/80 masq=node,outside empty=reject/drop" -g KUBE-NO-PORT
"#;
    assert_eq!(
        rules_of(filter, &["KUBE-NODEPORTS", "KUBE-SERVICES"]),
        expected.trim().lines().collect::<Vec<_>>()
    );
    let external = rules_of(&text, &["KUBE-EXT-"]);
    assert!(
        external.last().unwrap().contains("--src-type LOCAL"),
        "nothing may be taken from outside: {external:?}"
    );
}

#[test]
fn a_node_address_inside_the_pods_range_is_the_nodes() {
    let mut node = node();
    node.addresses.push("10.244.1.1".parse().unwrap());
    let masquerade = Masquerade { pods: false, node: true, outside: false };
    let (_, rules) = context().masquerade_chain(masquerade, &node, IpFamily::V4);
    let mut text = String::new();
    for rule in rules.iter() {
        restore::write_rule(&mut text, rule, IpFamily::V4);
        text.push('\n');
    }
    let expected = " -s 10.244.1.1/32 -g KUBE-MARK-MASQ\n -s 10.244.0.0/16 -j RETURN\n \
                    -m addrtype --src-type LOCAL -g KUBE-MARK-MASQ\n";
    assert_eq!(text, expected);
}

#[test]
fn a_change_of_endpoints_rewrites_one_chain() {
    let backends: Vec<_> = (1..5).map(|n| backend(&format!("10.244.2.{n}"), n == 4)).collect();
    let sets = [&backends[..1], &backends[..2], &backends[1..3], &backends[3..]];
    for (old, new) in sets.into_iter().flat_map(|old| sets.map(|new| (old, new))).filter(|(a, b)| a != b) {
        let routes = |changed| {
            vec![cluster_ip("10.96.0.1", "a", changed), cluster_ip("10.96.0.2", "b", &backends[..1])]
        };
        let (old_table, new_table) = (table(1, routes(old)), table(2, routes(new)));
        let planner = Planner::new(context(), old_table.clone());
        let step = planner.step(Arc::new(old_table.diff(&new_table)));
        assert_eq!(step.changes.keys().collect::<Vec<_>>(), [&IpFamily::V4]);
        let changed: Vec<_> = step.changes[&IpFamily::V4]
            .iter()
            .map(|((table, name), rules)| (*table, &name.as_str()[..9], rules.is_some()))
            .collect();
        // A change between one and several takes the dispatch chain, too.
        let mut expected = vec![(Table::Nat, "KUBE-STAT", true)];
        if old.len() == 1 || new.len() == 1 {
            expected.insert(0, (Table::Nat, "KUBE-SERV", true));
        }
        if old.len() > 1 || new.len() > 1 {
            expected.push((Table::Nat, "KUBE-SVC-", new.len() > 1));
        }
        assert_eq!(changed, expected, "{old:?} {new:?}");
    }
}

#[test]
fn a_service_that_loses_all_endpoints_is_answered_before_it_is_cut_off() {
    let full = table(1, vec![cluster_ip("10.96.0.1", "a", &[backend("10.244.2.2", false)])]);
    let empty = table(2, vec![cluster_ip("10.96.0.1", "a", &[])]);
    let order = |old: &RouteTable, new: &RouteTable| {
        let planner = Planner::new(context(), old.clone());
        let step = planner.step(Arc::new(old.diff(new)));
        let old = planner.chains(IpFamily::V4).unwrap();
        let text = restore::transaction(IpFamily::V4, old, &step.changes[&IpFamily::V4], &[]);
        text.lines().filter(|l| l.starts_with('*')).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(order(&full, &empty), ["*filter", "*nat"]);
    assert_eq!(order(&empty, &full), ["*nat", "*filter"]);
}

/// Parses what `transaction` wrote, as if the kernel had taken it.
fn saved(text: &str) -> Saved {
    let built_in = text.replace("-I PREROUTING 1", "-A PREROUTING");
    let mut out = built_in;
    for chain in ["INPUT", "FORWARD", "OUTPUT", "POSTROUTING"] {
        out = out.replace(&format!("-I {chain} 1"), &format!("-A {chain}"));
    }
    Saved::parse(&out, &context().names)
}

fn saved_table(context: &Arc<Context>, table: &RouteTable) -> BTreeMap<IpFamily, Saved> {
    let planner = Planner::new(Arc::clone(context), table.clone());
    IpFamily::ALL
        .into_iter()
        .map(|family| {
            let jumps = context.jumps(table.node());
            let jumps = jumps.iter().filter(|jump| jump.is_for(family));
            let edits: Vec<_> = jumps.map(|jump| JumpEdit::insert(jump, family)).collect();
            let all = changes(&Chains::new(), planner.chains(family).unwrap());
            (family, saved(&restore::transaction(family, &Chains::new(), &all, &edits)))
        })
        .collect()
}

#[test]
fn a_route_whose_rules_were_changed_is_not_read_back() {
    let backends = [backend("10.244.2.2", false), backend("10.244.1.2", true)];
    let table =
        table(3, vec![cluster_ip("10.96.0.1", "a", &backends), cluster_ip("10.96.0.2", "b", &backends)]);
    let whole = saved_table(&context(), &table);
    assert_eq!(read::table(&context(), &whole), table);
    let planner = Planner::new(context(), table.clone());
    let group = |service: &str| table.routes().find(|r| &*r.service_port.service == service).unwrap().clone();
    let chain =
        planner.chains_of(&group("a")).into_iter().find(|(_, n)| n.as_str().starts_with("KUBE-SVC")).unwrap();
    for broken in [Some(Arc::from([])), None] {
        let mut changed = whole.clone();
        changed.get_mut(&IpFamily::V4).unwrap().chains.insert(chain.clone(), broken);
        let left = read::table(&context(), &changed);
        assert_eq!(left.routes().map(|r| &*r.service_port.service).collect::<Vec<_>>(), ["b"]);
    }
    let ports = (Table::Nat, context().names.services.clone());
    for (first, served) in [(Rule::to(Target::Return), 0), (Rule::default().comment("counts"), 0)] {
        let mut changed = whole.clone();
        let chains = &mut changed.get_mut(&IpFamily::V4).unwrap().chains;
        let rules = chains[&ports].as_ref().unwrap().iter().cloned();
        let rules = std::iter::once(first).chain(rules).collect();
        chains.insert(ports.clone(), Some(rules));
        assert_eq!(read::table(&context(), &changed).len(), served, "a rule for all frontends was put first");
    }
    let mut no_jumps = whole;
    no_jumps.get_mut(&IpFamily::V4).unwrap().jumps.clear();
    assert!(read::table(&context(), &no_jumps).is_empty());
}

// Few values, so that names, addresses and sets collide often.
fn any_route() -> impl Strategy<Value = Arc<Route>> {
    let words = prop_oneof![Just("a"), Just("b"), Just("a/b"), Just("x \"y\" -j ACCEPT\n-A INPUT -j DROP")];
    let empty = || prop_oneof![Just(WhenEmpty::Reject), Just(WhenEmpty::Drop)];
    let weight = prop_oneof![Just(1u16), Just(1), 2u16..=u16::MAX];
    let backends = || {
        let state = (any::<bool>(), any::<bool>(), weight.clone());
        collection::btree_map((1u8..5, 1u16..3), state, 0..4)
    };
    let family = prop_oneof![Just(IpFamily::V4), Just(IpFamily::V6)];
    let frontend = (family, 0u8..4, 1u16..3, prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)]);
    let affinity = proptest::option::of(prop_oneof![Just(1), Just(10_800)]);
    let more = (any::<[bool; 4]>(), (empty(), empty()), packets::any_ranges(), affinity);
    (frontend, (words.clone(), words), backends(), backends(), more).prop_map(
        |(
            (family, host, frontend_port, protocol),
            (namespace, service),
            internal,
            external,
            (bits, empties, ranges, affinity),
        )| {
            let address = |host: u8| match family {
                IpFamily::V4 => std::net::IpAddr::from([10, 96, 0, host]),
                IpFamily::V6 => std::net::IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host)]),
            };
            let backends = |map: BTreeMap<(u8, u16), (bool, bool, u16)>| -> Vec<Backend> {
                map.into_iter()
                    .map(|((host, n), (local, ready, weight))| Backend {
                        address: address(host + 100),
                        port: port(n),
                        local,
                        state: if ready { BackendState::Ready } else { BackendState::Terminating },
                        weight: port(weight),
                    })
                    .collect()
            };
            let (frontend, kind) = match host {
                0 => (Frontend::node_port(family, port(frontend_port), protocol), FrontendKind::NodePort),
                _ => (Frontend::ip(address(host), port(frontend_port), protocol), FrontendKind::ClusterIp),
            };
            let name =
                ServicePortName { namespace: namespace.into(), service: service.into(), port: "".into() };
            let masquerade = Masquerade { pods: bits[0], node: bits[1], outside: bits[2] };
            let internal = target(&backends(internal), empties.0);
            let mut route = Route::new(frontend, kind, name, internal, masquerade);
            if bits[3] {
                route.external = target(&backends(external), empties.1);
            }
            route.source_ranges = ranges;
            route.affinity = affinity.and_then(Affinity::new);
            Arc::new(route)
        },
    )
}

fn any_table(revision: u64) -> impl Strategy<Value = RouteTable> {
    collection::vec(any_route(), 0..8).prop_map(move |routes| table(revision, routes))
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        table in any_table(5), detector in packets::any_detector(), hairpin in any::<bool>(),
    ) {
        let context = Arc::new(Context { hairpin, ..(*context()).clone() });
        let mut node = node();
        node.local_detector = detector;
        let table = RouteTable::new(Revision(5), Arc::new(node), table.routes().cloned());
        let read = read::table(&context, &saved_table(&context, &table));
        prop_assert_eq!(read.revision(), table.revision());
        prop_assert_eq!(read.node(), table.node());
        prop_assert!(read.same_routes(&table), "{:#?}\nis not\n{:#?}", read, table);
    }

    #[test]
    fn steps_end_where_planning_anew_does(
        first in any_table(0), second in any_table(1), third in any_table(2), move_node in any::<bool>(),
    ) {
        let mut planner = Planner::new(context(), first.clone());
        let mut moved = node();
        moved.node_port_addresses.clear();
        let third = match move_node {
            true => RouteTable::new(third.revision(), Arc::new(moved), third.routes().cloned()),
            false => third,
        };
        let mut chains: BTreeMap<_, _> =
            IpFamily::ALL.into_iter().map(|f| (f, planner.chains(f).unwrap().clone())).collect();
        let mut before = first;
        for next in [second, third] {
            let step = planner.step(Arc::new(before.diff(&next)));
            for (family, changes) in &step.changes {
                let chains = chains.get_mut(family).unwrap();
                for (key, rules) in changes {
                    match rules {
                        Some(rules) => chains.insert(key.clone(), Arc::clone(rules)),
                        None => {
                            prop_assert!(chains.contains_key(key), "{key:?} is deleted but never was");
                            chains.remove(key)
                        }
                    };
                }
            }
            planner.commit(step);
            before = next;
        }
        let anew = Planner::new(context(), before.clone());
        prop_assert_eq!(planner.table(), &before);
        let state = (Table::Nat, context().names.state.clone());
        for family in IpFamily::ALL {
            // The revision is written to the families that change.
            let (mut left, mut right) = (chains[&family].clone(), anew.chains(family).unwrap().clone());
            left.remove(&state);
            right.remove(&state);
            prop_assert_eq!(&left, &right);
            let mut kept = planner.chains(family).unwrap().clone();
            kept.remove(&state);
            prop_assert_eq!(left, kept);
        }
    }

    #[test]
    fn no_text_becomes_a_rule_or_an_option(comment in any::<String>()) {
        let mut line = String::new();
        restore::write_rule(&mut line, &Rule::to(Target::Accept).comment(comment.clone()), IpFamily::V4);
        prop_assert!(!line.contains(['\n', '\r', '\0']));
        let saved = Saved::parse(&format!("*nat\n-A KUBE-SERVICES{line}\n"), &context().names);
        let rules = saved.chains.values().next().unwrap().as_ref().unwrap();
        let plain = comment.replace(['\n', '\r', '\0'], " ");
        prop_assert_eq!(&rules[..], &[Rule::to(Target::Accept).comment(plain)]);
    }
}

#[test]
fn an_empty_delta_moves_the_revision() {
    let planner = Planner::new(context(), table(1, vec![]));
    let step = planner.step(Arc::new(RouteDelta::empty(Revision(1), Revision(2))));
    assert_eq!(step.changes[&IpFamily::V4].len(), 1);
}
