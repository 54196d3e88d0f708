//! Node ports on loopback addresses.

use super::*;

fn loopback(loopback: &[&str]) -> RouteTable {
    let frontend = Frontend::node_port(IpFamily::V4, port(30080), Protocol::Tcp);
    let all = target(&[backend("10.244.2.2", false)], WhenEmpty::Reject);
    let route = Route::new(frontend, FrontendKind::NodePort, name("web"), all, Masquerade::ALWAYS);
    let mut node = node();
    node.loopback_node_ports = loopback.iter().map(|net| net.parse().unwrap()).collect();
    RouteTable::new(Revision(1), Arc::new(node), [Arc::new(route)])
}

#[test]
fn n1_what_comes_from_outside_for_loopback_is_dropped_before_anything_else() {
    let table = loopback(&["127.0.0.1/32"]);
    let text = text(&table, IpFamily::V4);
    let expected = r#"
-A KUBE-EXTERNAL-SERVICES -d 10.0.0.1/32 -m comment --comment "kubernetes service nodeports" -j KUBE-NODEPORTS
-A KUBE-EXTERNAL-SERVICES -d 127.0.0.1/32 -m addrtype --src-type LOCAL -m comment --comment "kubernetes service nodeports" -j KUBE-NODEPORTS
-A KUBE-LOCALNET -i "lo" -j RETURN
-A KUBE-LOCALNET -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
-A KUBE-LOCALNET -m conntrack --ctstate DNAT -j RETURN
-A KUBE-LOCALNET -m comment --comment "block incoming localnet connections" -j DROP
-A KUBE-SERVICES -d 10.0.0.1/32 -m comment --comment "kubernetes service nodeports" -j KUBE-NODEPORTS
-A KUBE-SERVICES -d 127.0.0.1/32 -m addrtype --src-type LOCAL -m comment --comment "kubernetes service nodeports" -j KUBE-NODEPORTS
"#;
    let rules = rules_of(&text, &["KUBE-EXTERNAL-SERVICES", "KUBE-LOCALNET", "KUBE-SERVICES"]);
    assert_eq!(rules, expected.trim().lines().collect::<Vec<_>>());
    let jumps = context().jumps(table.node());
    let first = jumps.iter().find(|jump| jump.chain == "INPUT").unwrap();
    assert_eq!(first.rule.target, Some(Target::Jump(context().names.localnet.clone())));
    assert_eq!(first.rule.destination, Some("127.0.0.0/8".parse().unwrap()));
    assert!(first.is_for(IpFamily::V4) && !first.is_for(IpFamily::V6));
}

#[test]
fn it_is_read_back_and_is_of_one_family() {
    for nets in [&[][..], &["127.0.0.0/8"], &["127.0.0.1/32", "127.1.0.0/16"]] {
        let table = loopback(nets);
        assert!(!text(&table, IpFamily::V6).contains("-d 127."), "{nets:?}");
        let whole = saved_table(&context(), &table);
        assert_eq!(read::table(&context(), &whole), table);
        let mut open = whole;
        let chains = &mut open.get_mut(&IpFamily::V4).unwrap();
        chains.jumps.retain(|jump| jump.to != context().names.localnet);
        assert_eq!(read::table(&context(), &open).is_empty(), !nets.is_empty(), "the guard belongs to it");
    }
}
