//! Rules that keep clients on their backends.

use super::*;
use crate::rule::{ChainName, Does, Recent};

fn sticky(backends: &[Backend], seconds: u32) -> Arc<Route> {
    let mut route = (*cluster_ip("10.96.0.10", "web", backends)).clone();
    route.affinity = Affinity::new(seconds);
    Arc::new(route)
}

fn text_of(context: &Arc<Context>, table: &RouteTable, family: IpFamily) -> String {
    let planner = Planner::new(Arc::clone(context), table.clone());
    let all = changes(&Chains::new(), planner.chains(family).unwrap());
    restore::transaction(family, &Chains::new(), &all, &[])
}

#[test]
fn a1_clients_are_looked_for_before_one_is_picked_and_noted() {
    let weighs = |address, weight, local| Backend { weight: port(weight), ..backend(address, local) };
    let backends = [weighs("10.244.1.2", 1, true), weighs("10.244.2.2", 3, false)];
    let text = text(&table(1, vec![sticky(&backends, 600)]), IpFamily::V4);
    let expected = r#"
-A KUBE-SERVICES -d 10.96.0.10/32 -m comment --comment "demo/web:http cluster IP port=tcp/80 masq=node,outside empty=reject affinity=600" -g KUBE-NO-PORT
-A KUBE-SVC-XRY76EGRC3BSCIIJ -p tcp -m comment --comment "demo/web:http" -m recent --update --seconds 600 --name KUBE-SEP-PPQSH3RHU5NVL3F3 --mask 255.255.255.255 --rsource -j DNAT --to-destination 10.244.1.2:8080
-A KUBE-SVC-XRY76EGRC3BSCIIJ -p tcp -m recent --update --seconds 600 --name KUBE-SEP-X77QEHRBAUGFM3SK --mask 255.255.255.255 --rsource -j DNAT --to-destination 10.244.2.2:8080
-A KUBE-SVC-XRY76EGRC3BSCIIJ -p tcp -m comment --comment "demo/web:http -> 10.244.1.2:8080 local" -m statistic --mode random --probability 0.2500000000 -m recent --set --name KUBE-SEP-PPQSH3RHU5NVL3F3 --mask 255.255.255.255 --rsource -j DNAT --to-destination 10.244.1.2:8080
-A KUBE-SVC-XRY76EGRC3BSCIIJ -p tcp -m comment --comment "demo/web:http -> 10.244.2.2:8080 weight=3" -m recent --set --name KUBE-SEP-X77QEHRBAUGFM3SK --mask 255.255.255.255 --rsource -j DNAT --to-destination 10.244.2.2:8080
"#;
    let rules: Vec<_> = rules_of(&text, &["KUBE-SVC-", "KUBE-SERVICES"])
        .into_iter()
        .filter(|rule| rule.contains("affinity") || rule.contains("recent"))
        .collect();
    assert_eq!(rules, expected.trim().lines().collect::<Vec<_>>());
}

#[test]
fn without_the_match_on_addresses_every_backend_has_its_chain() {
    let context = Arc::new(Context { hairpin: false, ..(*context()).clone() });
    let backends = [backend("fd00:244:1::2", true), backend("fd00:244:2::2", false)];
    let mut route = (*sticky(&backends, 10_800)).clone();
    route.frontend = Frontend::node_port(IpFamily::V6, port(30080), Protocol::Tcp);
    route.kind = FrontendKind::NodePort;
    let text = text_of(&context, &table(1, vec![Arc::new(route)]), IpFamily::V6);
    let expected = r#"
-A KUBE-SEP-4W5PFXHJNWXV5TIX -s fd00:244:1::2/128 -m comment --comment "demo/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-4W5PFXHJNWXV5TIX -p tcp -m comment --comment "demo/web:http" -m recent --set --name KUBE-SEP-4W5PFXHJNWXV5TIX --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource -j DNAT --to-destination [fd00:244:1::2]:8080
-A KUBE-SEP-V3C7V3E24KTKHCLV -s fd00:244:2::2/128 -m comment --comment "demo/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-V3C7V3E24KTKHCLV -p tcp -m comment --comment "demo/web:http" -m recent --set --name KUBE-SEP-V3C7V3E24KTKHCLV --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource -j DNAT --to-destination [fd00:244:2::2]:8080
-A KUBE-SVC-XRY76EGRC3BSCIIJ -m comment --comment "demo/web:http" -m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-4W5PFXHJNWXV5TIX --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource -j KUBE-SEP-4W5PFXHJNWXV5TIX
-A KUBE-SVC-XRY76EGRC3BSCIIJ -m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-V3C7V3E24KTKHCLV --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource -j KUBE-SEP-V3C7V3E24KTKHCLV
-A KUBE-SVC-XRY76EGRC3BSCIIJ -m comment --comment "demo/web:http -> [fd00:244:1::2]:8080 local" -m statistic --mode random --probability 0.5000000000 -j KUBE-SEP-4W5PFXHJNWXV5TIX
-A KUBE-SVC-XRY76EGRC3BSCIIJ -m comment --comment "demo/web:http -> [fd00:244:2::2]:8080" -j KUBE-SEP-V3C7V3E24KTKHCLV
"#;
    let rules = rules_of(&text, &["KUBE-SVC-", "KUBE-SEP-"]);
    assert_eq!(rules, expected.trim().lines().collect::<Vec<_>>());
}

#[test]
fn the_only_backend_notes_its_clients_in_place() {
    let text = text(&table(1, vec![sticky(&[backend("10.244.2.2", false)], 600)]), IpFamily::V4);
    assert!(rules_of(&text, &["KUBE-SVC-"]).is_empty());
    let rule = rules_of(&text, &["KUBE-SERVICES -d 10.96.0.10/32 -p tcp"]);
    let expected = "-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -m recent --set --name \
                    KUBE-SEP-X77QEHRBAUGFM3SK --mask 255.255.255.255 --rsource -j DNAT --to-destination 10.244.2.2:8080";
    assert_eq!(rule, [expected]);
}

/// The lists that rules have, with the backend of each.
fn lists(table: &RouteTable) -> BTreeSet<(ChainName, String)> {
    let planner = Planner::new(context(), table.clone());
    let chains = planner.chains(IpFamily::V4).unwrap();
    let of_rule = |rule: &Rule| match (&rule.recent, &rule.target) {
        (Some(recent), Some(Target::Dnat(to))) => Some((recent.list.clone(), to.to_string())),
        (Some(_), target) => panic!("{target:?}"),
        (None, _) => None,
    };
    chains.values().flat_map(|rules| rules.iter()).filter_map(of_rule).collect()
}

#[test]
fn a1_frontends_of_a_port_share_lists_and_ports_do_not() {
    let backends = [backend("10.244.1.2", true), backend("10.244.2.2", false)];
    let cluster_ip = sticky(&backends, 600);
    let mut node_port = (*cluster_ip).clone();
    node_port.frontend = Frontend::node_port(IpFamily::V4, port(30080), Protocol::Tcp);
    node_port.kind = FrontendKind::NodePort;
    // The local set, whose only backend is on a rule in place.
    node_port.external = target(&backends[..1], WhenEmpty::Drop);
    let one = lists(&table(1, vec![Arc::clone(&cluster_ip), Arc::new(node_port)]));
    assert_eq!(one.len(), 2, "{one:?}");
    let mut other = (*cluster_ip).clone();
    other.frontend = Frontend::ip("10.96.0.10".parse().unwrap(), port(81), Protocol::Tcp);
    other.service_port.port = "admin".into();
    let mut udp = (*cluster_ip).clone();
    udp.frontend.protocol = Protocol::Udp;
    let both = lists(&table(1, vec![cluster_ip, Arc::new(other), Arc::new(udp)]));
    assert_eq!(both.iter().filter(|list| one.contains(list)).count(), 2);
    let names: BTreeSet<_> = both.iter().map(|(list, _)| list).collect();
    assert_eq!(names.len(), 6, "{both:?}");
}

#[test]
fn a3_a_changed_timeout_changes_the_rules_that_look_and_no_list() {
    let backends = [backend("10.244.1.2", true), backend("10.244.2.2", false)];
    let (old, new) = (table(1, vec![sticky(&backends, 600)]), table(2, vec![sticky(&backends, 1)]));
    let planner = Planner::new(context(), old.clone());
    let step = planner.step(Arc::new(old.diff(&new)));
    let changed = step.changes[&IpFamily::V4].iter().filter(|((_, name), _)| name.as_str().contains("SVC"));
    assert_eq!(changed.count(), 1);
    assert_eq!(lists(&old), lists(&new));
}

#[test]
fn a_large_set_looks_first_and_picks_in_its_tree() {
    let backends: Vec<_> = (0..200).map(|n| backend(&format!("10.244.2.{n}"), false)).collect();
    let planner = Planner::new(context(), table(1, vec![sticky(&backends, 600)]));
    let chains = planner.chains(IpFamily::V4).unwrap();
    let looks = |rules: &Arc<[Rule]>| {
        rules.iter().filter(|r| r.recent.as_ref().is_some_and(|r| r.does != Does::Set)).count()
    };
    for ((_, name), rules) in chains {
        let expected = if name.as_str().contains("-SVC-") { 200 } else { 0 };
        assert_eq!(looks(rules), expected, "{name}");
    }
    let noted = chains.values().flat_map(|rules| rules.iter());
    let noted = noted.filter(|r| r.recent.as_ref().is_some_and(|r| r.does == Does::Set)).count();
    assert_eq!(noted, 200);
}

#[test]
fn rules_of_kube_proxy_with_affinity_are_understood() {
    let list = "KUBE-SEP-SXIVWICOYRO3J4NJ";
    let text = format!(
        r#"*nat
:KUBE-SVC-XPGD46QRK7WJZT7O - [0:0]
:{list} - [0:0]
-A {list} -s 10.180.0.1/32 -m comment --comment "ns1/svc1:p80" -j KUBE-MARK-MASQ
-A {list} -p tcp -m comment --comment "ns1/svc1:p80" -m recent --set --name {list} --mask 255.255.255.255 --rsource -m tcp -j DNAT --to-destination 10.180.0.1:80
-A KUBE-SVC-XPGD46QRK7WJZT7O -m comment --comment "ns1/svc1:p80 -> 10.180.0.1:80" -m recent --rcheck --seconds 10800 --reap --name {list} --mask 255.255.255.255 --rsource -j {list}
COMMIT
"#
    );
    let known = Saved::parse(&text, &context().names).known();
    let recent = |chain: &str, n: usize| {
        let rules = &known[&(Table::Nat, ChainName::new(chain))];
        rules[n].recent.clone().unwrap()
    };
    let named = ChainName::new(list);
    let seconds = 10_800.try_into().unwrap();
    assert_eq!(recent(list, 1), Recent { list: named.clone(), does: Does::Set });
    let looks = recent("KUBE-SVC-XPGD46QRK7WJZT7O", 0);
    assert_eq!(looks, Recent { list: named, does: Does::Check(seconds) });
}

#[test]
fn a_rule_that_notes_before_it_matches_is_not_ours() {
    let good = "-m statistic --mode random --probability 0.5 -m recent --set --name X --mask 255.255.255.255 --rsource";
    let bad = [
        "-m recent --set --name X --mask 255.255.255.255 --rsource -m statistic --mode random --probability 0.5",
        "-p tcp -m recent --set --name X --mask 255.255.255.255 --rsource -m tcp --dport 80",
        "-m recent --set --name X --mask 255.255.255.0 --rsource",
        "-m recent --set --name X --mask 255.255.255.255 --rdest",
        "-m recent --rcheck --seconds 5 --hitcount 3 --name X --mask 255.255.255.255 --rsource",
        "-m recent ! --update --seconds 5 --name X --mask 255.255.255.255 --rsource",
        "-m recent --update --seconds 0 --name X --mask 255.255.255.255 --rsource",
    ];
    let is_known = |rule: &str| {
        let saved = Saved::parse(&format!("*nat\n-A KUBE-SERVICES {rule} -j ACCEPT\n"), &context().names);
        saved.chains.values().next().unwrap().is_some()
    };
    assert!(is_known(good));
    for rule in bad {
        assert!(!is_known(rule), "{rule}");
    }
}
