//! Packets through the planned rules, without a kernel: what becomes of them is what the route says.

use std::net::{IpAddr, SocketAddr};

use kubenet_core::route::{FrontendAddress, SourceRanges};

use super::*;
use crate::rule::{ChainName, Does, Interface, Recent};

/// A new flow.
#[derive(Clone, Copy, Debug)]
struct Packet {
    source: IpAddr,
    source_is_local: bool,
    /// The name of the one that it came in through; empty for what the node sends.
    interface: &'static str,
    to: SocketAddr,
    protocol: Protocol,
    /// Whose list of clients the source is on.
    known: Option<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    To(SocketAddr),
    Dropped,
    Refused,
    /// Accepted in this table, untranslated.
    Accepted,
    /// No rule took it.
    Fell,
}

/// A fate, and whether the packet has the mark then.
type End = (Fate, bool);

/// All ends that chance may have for a packet in a chain.
fn walk(chains: &Chains, table: Table, chain: &ChainName, packet: &Packet, marked: bool) -> BTreeSet<End> {
    from_rule(chains, table, &chains[&(table, chain.clone())], packet, marked)
}

fn from_rule(chains: &Chains, table: Table, rules: &[Rule], packet: &Packet, marked: bool) -> BTreeSet<End> {
    let Some(i) = rules.iter().position(|rule| matches(chains, rule, packet)) else {
        return [(Fate::Fell, marked)].into();
    };
    let go_on = |marked| from_rule(chains, table, &rules[i + 1..], packet, marked);
    let mut ends = BTreeSet::new();
    if rules[i].chance.is_some() {
        ends.append(&mut go_on(marked));
    }
    let mut end = |fate| ends.extend([(fate, marked)]);
    match rules[i].target.as_ref() {
        None | Some(Target::Masquerade { .. } | Target::Foreign { .. }) => ends.append(&mut go_on(marked)),
        Some(Target::SetMark) => ends.append(&mut go_on(true)),
        Some(Target::ClearMark | Target::Unmark) => ends.append(&mut go_on(false)),
        Some(Target::Jump(to)) => {
            for (fate, marked) in walk(chains, table, to, packet, marked) {
                match fate {
                    Fate::Fell => ends.append(&mut go_on(marked)),
                    fate => ends.extend([(fate, marked)]),
                }
            }
        }
        Some(Target::Goto(to)) => ends.append(&mut walk(chains, table, to, packet, marked)),
        Some(Target::Dnat(to)) => end(Fate::To(*to)),
        Some(Target::Accept) => end(Fate::Accepted),
        Some(Target::Drop) => end(Fate::Dropped),
        Some(Target::Return) => end(Fate::Fell),
        Some(Target::RejectWithReset | Target::RejectUnreachable) => end(Fate::Refused),
    }
    ends
}

/// What the rules call the list of a backend's clients. Each chain that picks has the rules of one Service port, so
/// the backend of the rule says whose list it is.
fn is_listed(chains: &Chains, rule: &Rule, packet: &Packet) -> bool {
    let Some(Recent { list, does }) = &rule.recent else { return true };
    let backend = match &rule.target {
        Some(Target::Dnat(to)) => Some(*to),
        Some(Target::Jump(chain)) => {
            assert_eq!(chain, list);
            let rules = chains[&(Table::Nat, chain.clone())].iter();
            rules.clone().find_map(|rule| match &rule.target {
                Some(Target::Dnat(to)) => Some(*to),
                _ => None,
            })
        }
        _ => None,
    };
    *does == Does::Set || backend == packet.known
}

fn matches(chains: &Chains, rule: &Rule, packet: &Packet) -> bool {
    is_listed(chains, rule, packet)
        && rule.source.is_none_or(|source| source.net.contains(&packet.source) != source.inverted)
        && rule.destination.is_none_or(|net| net.contains(&packet.to.ip()))
        && rule.protocol.is_none_or(|protocol| protocol == packet.protocol)
        && rule.port.is_none_or(|port| port.get() == packet.to.port())
        && rule.not_port.is_none_or(|port| port.get() != packet.to.port())
        && rule.ports.is_none_or(|(first, last)| (first..=last).contains(&packet.to.port()))
        && (!rule.source_is_local || packet.source_is_local)
        && rule.interface.as_ref().is_none_or(|interface| match interface {
            Interface::Named(name) => **name == *packet.interface,
            Interface::Prefix(prefix) => packet.interface.starts_with(&**prefix),
        })
}

/// The ends of a new flow; the mark says whether it is masqueraded.
fn fates(context: &Context, chains: &Chains, packet: &Packet) -> BTreeSet<End> {
    let names = &context.names;
    let mut ends = BTreeSet::new();
    let mut untranslated = false;
    for (fate, marked) in walk(chains, Table::Nat, &names.services, packet, false) {
        match fate {
            // Both end the way through nat.
            Fate::Fell | Fate::Accepted => {
                assert!(!marked, "{packet:?} would pass FORWARD unrejected");
                untranslated = true;
            }
            Fate::To(backend) => {
                let itself = context.hairpin && backend.ip() == packet.source;
                ends.insert((Fate::To(backend), marked || itself));
            }
            fate => ends.extend([(fate, marked)]),
        }
    }
    if untranslated {
        for chain in [&names.services, &names.external_services] {
            let mut answers = walk(chains, Table::Filter, chain, packet, false);
            let fell = answers.remove(&(Fate::Fell, false));
            ends.append(&mut answers);
            if !fell {
                return ends;
            }
        }
        ends.insert((Fate::Fell, false));
    }
    ends
}

/// Two of the node's or of pods' addresses, and others, inside and outside the ranges below; the last is a
/// backend's.
fn sources(family: IpFamily) -> Vec<IpAddr> {
    let texts = match family {
        IpFamily::V4 => ["10.0.0.1", "10.244.5.9", "10.244.200.1", "192.0.2.7", "203.0.113.5", "10.96.0.101"],
        IpFamily::V6 => {
            ["fd00::1", "fd00:244::5:9", "fd00:244:0:1::1", "2001:db8::7", "2001:db8:1::5", "fd00::65"]
        }
    };
    texts.map(|text| text.parse().unwrap()).into()
}

pub(super) fn any_detector() -> impl Strategy<Value = LocalDetector> {
    prop_oneof![
        Just(node().local_detector),
        Just(LocalDetector::None),
        Just(LocalDetector::Bridge("veth2".into())),
        Just(LocalDetector::InterfacePrefix("veth".into())),
    ]
}

pub(super) fn any_ranges() -> impl Strategy<Value = Option<Arc<SourceRanges>>> {
    let cidrs = [
        "10.244.0.0/17",
        "10.244.5.0/24",
        "10.244.200.1/32",
        "10.0.0.0/24",
        "192.0.2.0/24",
        "0.0.0.0/0",
        "10.0.0.0/8",
        "fd00:244::/64",
        "fd00:244::5:9/128",
        "2001:db8::/48",
        "fd00::/8",
        "::/0",
    ];
    let cidrs = proptest::sample::subsequence(cidrs.to_vec(), 0..4);
    let ranges = (cidrs, any::<bool>()).prop_map(|(cidrs, node)| {
        let cidrs = cidrs.into_iter().map(|cidr| cidr.parse().unwrap()).collect();
        Arc::new(SourceRanges { cidrs, node })
    });
    proptest::option::of(ranges)
}

proptest! {
    #[test]
    fn a_packet_gets_what_its_route_says(
        table in any_table(1), detector in any_detector(), hairpin in any::<bool>(), choice in 0usize..4,
    ) {
        let context = Arc::new(Context { hairpin, ..(*context()).clone() });
        let mut node = node();
        node.local_detector = detector;
        let table = RouteTable::new(Revision(1), Arc::new(node), table.routes().cloned());
        let planner = Planner::new(Arc::clone(&context), table.clone());
        let node = table.node();
        for route in table.routes() {
            let family = route.frontend.family();
            let to = match route.frontend.address {
                FrontendAddress::Ip(address) => address,
                FrontendAddress::NodePort(_) => node.primary_address(family).unwrap(),
            };
            let Frontend { port, protocol, .. } = route.frontend;
            // Another route may have the address of a node port.
            let route = table.lookup(to, port, protocol).unwrap();
            let to = SocketAddr::new(to, port.get());
            for source in sources(family) {
                let source_is_local = node.addresses.contains(&source);
                let interface = match (source_is_local, table.node().local_detector.is_pod(source, None)) {
                    (true, _) => "",
                    (false, true) => "veth1",
                    (false, false) if source.to_string().ends_with('7') => "veth2",
                    _ => "eth0",
                };
                let origin = node.origin(source, Some(interface));
                let target = route.target(origin);
                // A client of one of the backends that the packet may not get, too.
                let known = route.backends().nth(choice).map(Backend::socket_addr);
                let packet = Packet { source, source_is_local, interface, to, protocol, known };
                let to_backend = |backend: &Backend| {
                    let marked = route.masquerade.applies_to(origin) || backend.address == source;
                    (Fate::To(backend.socket_addr()), marked)
                };
                // Without the match, a backend that is not known to be here may be left out for its own flows.
                let left_out = |(n, backend): &(usize, &Backend)| {
                    let last = n + 1 == target.backends.len();
                    let chain = backend.local || route.affinity.is_some();
                    !hairpin && backend.address == source && !chain && !last
                };
                let expected: BTreeSet<_> = match target.when_empty {
                    _ if !route.admits(origin, source) => [(Fate::Dropped, false)].into(),
                    _ if !target.backends.is_empty() => {
                        let all = target.backends.iter();
                        let its = all.clone().find(|b| Some(b.socket_addr()) == known);
                        let its = its.filter(|_| route.affinity.is_some());
                        let backends = all.enumerate().filter(|b| match its {
                            Some(its) => b.1 == its,
                            None => !left_out(b),
                        });
                        backends.map(|(_, backend)| to_backend(backend)).collect()
                    }
                    WhenEmpty::Reject => [(Fate::Refused, false)].into(),
                    WhenEmpty::Drop => [(Fate::Dropped, false)].into(),
                };
                let got = fates(&context, planner.chains(family).unwrap(), &packet);
                prop_assert_eq!(got, expected, "{:?} to {:#?}", packet, route);
            }
        }
    }
}

#[test]
fn where_all_services_have_one_port_no_other_port_leads_to_their_backends() {
    let address = |n: u8| format!("10.96.0.{n}");
    let backend = |n: u8| backend(&format!("10.244.2.{n}"), false);
    let mut routes: Vec<_> =
        (1..=100).map(|n| cluster_ip(&address(n), &format!("s{n}"), &[backend(n)])).collect();
    let ends = |routes: &[Arc<Route>], to: &str, protocol| {
        let packet = Packet {
            source: "10.244.5.9".parse().unwrap(),
            source_is_local: false,
            interface: "veth1",
            to: to.parse().unwrap(),
            protocol,
            known: None,
        };
        let planner = Planner::new(context(), table(1, routes.to_vec()));
        fates(&context(), planner.chains(IpFamily::V4).unwrap(), &packet)
    };
    let refused: BTreeSet<_> = [(Fate::Refused, false)].into();
    for more in [false, true] {
        for n in [1, 40, 100] {
            let to = format!("{}:80", address(n));
            assert_eq!(
                ends(&routes, &to, Protocol::Tcp),
                [(Fate::To(backend(n).socket_addr()), false)].into()
            );
            assert_eq!(ends(&routes, &to, Protocol::Udp), refused);
            let other = if more { "10.96.0.1:82" } else { "10.96.0.1:81" };
            assert_eq!(ends(&routes, other, Protocol::Tcp), refused);
        }
        // One of them with another port.
        let mut other = (*routes[0]).clone();
        other.frontend.port = port(81);
        other.service_port.port = "other".into();
        routes.push(Arc::new(other));
    }
    assert_eq!(
        ends(&routes, "10.96.0.1:81", Protocol::Tcp),
        [(Fate::To(backend(1).socket_addr()), false)].into()
    );
}

#[test]
fn a_pods_interface_decides_and_the_nodes_own_packets_have_none() {
    let mut node = node();
    node.local_detector = LocalDetector::InterfacePrefix("veth".into());
    let masquerade = Masquerade { pods: false, node: true, outside: true };
    let chain = |node: &NodeRouting| {
        let (_, rules) = context().masquerade_chain(masquerade, node, IpFamily::V6);
        rules.iter().fold(String::new(), |mut text, rule| {
            restore::write_rule(&mut text, rule, IpFamily::V6);
            text + "\n"
        })
    };
    assert_eq!(chain(&node), " -i \"veth+\" -j RETURN\n -g KUBE-MARK-MASQ\n");
    node.local_detector = LocalDetector::Bridge("cni0".into());
    assert_eq!(chain(&node), " -i \"cni0\" -j RETURN\n -g KUBE-MARK-MASQ\n");
    // A whole name: with a plus sign it would be longer than the kernel takes.
    node.local_detector = LocalDetector::InterfacePrefix("fifteen-letters".into());
    assert_eq!(chain(&node), " -i \"fifteen-letters\" -j RETURN\n -g KUBE-MARK-MASQ\n");
}

#[test]
fn an_interfaces_name_never_becomes_an_option() {
    let name = "x\" -j ACCEPT\n-A";
    let rule = Rule { interface: Some(Interface::Named(name.into())), ..Rule::to(Target::Drop) };
    let mut line = String::new();
    restore::write_rule(&mut line, &rule, IpFamily::V4);
    let saved = Saved::parse(&format!("*nat\n-A KUBE-SERVICES{line}\n"), &context().names);
    let rules = saved.chains.values().next().unwrap().as_ref().unwrap();
    let plain = Interface::Named(name.replace('\n', " ").into());
    assert_eq!(rules[..], [Rule { interface: Some(plain), ..Rule::to(Target::Drop) }]);
}

fn guarded(backends: &[Backend], ranges: &[&str], node: bool) -> Arc<Route> {
    let mut route = (*cluster_ip("10.0.0.1", "web", backends)).clone();
    route.kind = FrontendKind::LoadBalancer;
    route.on_cluster_ip = false;
    let cidrs = ranges.iter().map(|cidr| cidr.parse().unwrap()).collect();
    route.source_ranges = Some(Arc::new(SourceRanges { cidrs, node }));
    Arc::new(route)
}

#[test]
fn r1_a_guarded_load_balancer_is_one_more_chain_and_a_drop() {
    let route = guarded(&[backend("10.244.2.2", false)], &["192.0.2.0/24", "198.51.100.7/32"], true);
    let text = text(&table(1, vec![route]), IpFamily::V4);
    let expected = r#"
-A KUBE-SERVICES -d 10.0.0.1/32 -p tcp -m tcp --dport 80 -m comment --comment "demo/web:http is not for this source" -j DROP
-A KUBE-FW-XRY76EGRC3BSCIIJ -s 192.0.2.0/24 -p tcp -m comment --comment "demo/web:http" -j DNAT --to-destination 10.244.2.2:8080
-A KUBE-FW-XRY76EGRC3BSCIIJ -s 198.51.100.7/32 -p tcp -m comment --comment "demo/web:http" -j DNAT --to-destination 10.244.2.2:8080
-A KUBE-FW-XRY76EGRC3BSCIIJ -p tcp -m addrtype --src-type LOCAL -m comment --comment "demo/web:http" -j DNAT --to-destination 10.244.2.2:8080
-A KUBE-FW-XRY76EGRC3BSCIIJ -m comment --comment "demo/web:http" -j MARK --set-xmark 0x0/0x4000
-A KUBE-FW-XRY76EGRC3BSCIIJ -m comment --comment "demo/web:http" -j ACCEPT
-A KUBE-SERVICES -m comment --comment "kubernetes masquerade unless from a pod" -j KUBE-MASQ-NO
-A KUBE-SERVICES -d 10.0.0.1/32 -p tcp -m tcp --dport 80 -m comment --comment "demo/web:http load-balancer address masq=node,outside empty=reject from=192.0.2.0/24,198.51.100.7/32,node" -j KUBE-FW-XRY76EGRC3BSCIIJ
-A KUBE-SERVICES -m comment --comment "kubernetes no service portal" -j MARK --set-xmark 0x0/0x4000
-A KUBE-SERVICES -d 10.0.0.1/32 -m comment --comment "kubernetes service nodeports" -j KUBE-NODEPORTS
"#;
    let rules = rules_of(&text, &["KUBE-SERVICES", "KUBE-FW-"]);
    assert_eq!(rules, expected.trim().lines().collect::<Vec<_>>());
}

#[test]
fn r3_the_drop_comes_before_the_refusal_of_an_empty_service() {
    let text = text(&table(1, vec![guarded(&[], &["192.0.2.0/24"], false)]), IpFamily::V4);
    let expected = r#"
-A KUBE-SERVICES -s 192.0.2.0/24 -d 10.0.0.1/32 -p tcp -m tcp --dport 80 -m comment --comment "demo/web:http load-balancer address masq=node,outside empty=reject from=192.0.2.0/24" -j REJECT --reject-with tcp-reset
-A KUBE-SERVICES -d 10.0.0.1/32 -p tcp -m tcp --dport 80 -m comment --comment "demo/web:http" -j DROP
"#;
    let filter = text.split("*nat").next().unwrap();
    assert_eq!(rules_of(filter, &["KUBE-SERVICES"]), expected.trim().lines().collect::<Vec<_>>());
}

#[test]
fn r1_whoever_is_shut_out_does_not_get_a_node_port_instead() {
    let frontend = Frontend::node_port(IpFamily::V4, port(80), Protocol::Tcp);
    let to = target(&[backend("10.244.2.3", false)], WhenEmpty::Reject);
    let node_port = Route::new(frontend, FrontendKind::NodePort, name("other"), to, NOT_PODS);
    let route = guarded(&[backend("10.244.2.2", false)], &[], false);
    let table = table(1, vec![route, Arc::new(node_port)]);
    let source = "192.0.2.7".parse().unwrap();
    let to = "10.0.0.1:80".parse().unwrap();
    let packet = Packet {
        source,
        source_is_local: false,
        interface: "eth0",
        to,
        protocol: Protocol::Tcp,
        known: None,
    };
    let planner = Planner::new(context(), table);
    let ends = fates(&context(), planner.chains(IpFamily::V4).unwrap(), &packet);
    assert_eq!(ends, [(Fate::Dropped, false)].into());
}
