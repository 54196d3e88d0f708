use std::collections::BTreeMap;

use kubenet_core::{
    model::Protocol,
    route::{FrontendAddress, Revision, RouteTable},
};
use proptest::prelude::*;

use super::*;
use crate::{
    plan::{Context, Planner, changes},
    restore::{self, JumpEdit},
    rule::Chains,
};

#[path = "../../../tests/common/kube_proxy.rs"]
mod fixture;

const V4: IpFamily = IpFamily::V4;

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

fn read(texts: &[(IpFamily, &str)]) -> RouteTable {
    let context = context();
    let saved: BTreeMap<_, _> =
        texts.iter().map(|(family, text)| (*family, Saved::parse(text, &context.names))).collect();
    super::super::table(&context, &saved)
}

fn expected(families: &[IpFamily]) -> RouteTable {
    let mut node = NodeRouting::default();
    let pods = families.iter().map(|family| fixture::pods(*family).parse().unwrap());
    node.local_detector = LocalDetector::Cidrs(pods.collect());
    let routes = families.iter().flat_map(|family| fixture::routes(*family, fixture::told_by_rules));
    RouteTable::new(Revision::default(), Arc::new(node), routes)
}

#[test]
fn a_kube_proxys_rules_are_its_routes() {
    for families in [&[IpFamily::V4][..], &[IpFamily::V6], &IpFamily::ALL] {
        let texts: Vec<_> = families.iter().map(|family| (*family, fixture::saved(*family))).collect();
        let (found, expected) = (read(&texts), expected(families));
        for route in expected.routes() {
            assert_eq!(found.get(&route.frontend), Some(route));
        }
        assert_eq!(found, expected);
    }
}

/// The fixture with a change, which must be one.
fn changed(from: &str, to: &str) -> RouteTable {
    let text = fixture::saved(V4);
    assert!(text.contains(from), "{from}");
    read(&[(V4, &text.replace(from, to))])
}

fn at(table: &RouteTable, frontend: &str) -> Option<Route> {
    let found = table.routes().find(|route| route.frontend.to_string().starts_with(frontend));
    found.map(|route| Route::clone(route))
}

#[test]
fn whoever_has_no_name_is_told_by_the_chains() {
    let bare = changed(" -m comment --comment \"demo/web:http cluster IP\"", "");
    let route = at(&bare, "10.96.0.10:80").unwrap();
    let hash = NameHash::of(&["demo/web:http", "tcp"]);
    assert_eq!(route.service_port, nameless(hash.as_str()));
    assert_eq!((route.internal.backends.len(), route.kind), (5, FrontendKind::ClusterIp));
    assert_eq!(at(&bare, "node port 30080").unwrap().service_port.to_string(), "demo/web:http");

    // A comment that says another name, and one that looks like rules.
    for strange in ["demo/other:http cluster IP", "x\\\" -j ACCEPT", "cluster IP", "demo/web:http", ""] {
        let read = changed(
            "-p tcp -m comment --comment \"demo/web:http cluster IP\" -m tcp --dport 80 -j KUBE-SVC",
            &format!("-p tcp -m comment --comment \"{strange}\" -m tcp --dport 80 -j KUBE-SVC"),
        );
        let mut found = at(&read, "10.96.0.10:80").unwrap();
        let name = found.service_port.to_string();
        assert_eq!(name == "demo/web:http", strange == "demo/web:http", "{strange:?}: {name}");
        found.service_port.clone_from(&route.service_port);
        assert_eq!(found, route);
    }
    // Nobody but the comment says which of the two it is.
    let external = changed("demo/open:http loadbalancer IP", "demo/open:http");
    assert_eq!(at(&external, "203.0.113.81:80").unwrap().kind, FrontendKind::ExternalIp);
    let nobodys = changed("demo/empty:http has no endpoints", "");
    assert_eq!(&*at(&nobodys, "10.96.0.99:80").unwrap().service_port.service, "10.96.0.99:80/TCP");
}

#[test]
fn rules_that_no_packet_gets_to_are_not_read() {
    let whole = expected(&[V4]);
    for from in ["PREROUTING", "OUTPUT"] {
        let jump =
            format!("-A {from} -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n");
        assert!(changed(&jump, "").is_empty(), "no jump from {from}");
        assert!(changed(&jump, &format!("-A {from} -j ACCEPT\n{jump}")).is_empty(), "{from} ends before it");
    }
    let no_answers = changed("-j KUBE-EXTERNAL-SERVICES\n", "-j DROP\n");
    assert_eq!(at(&no_answers, "node port 30099"), None);
    assert_eq!(no_answers.len(), whole.len() - 2);
    let no_node_ports = changed("-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS", "-j DROP");
    let of_nat = |route: &&Arc<Route>| {
        matches!(route.frontend.address, FrontendAddress::NodePort(_)) && !route.internal.backends.is_empty()
    };
    assert!(!no_node_ports.routes().any(|route| of_nat(&route)));
    assert_eq!(
        at(
            &changed(
                "-A KUBE-SERVICES -d 10.96.0.53",
                "-A KUBE-SERVICES -j RETURN\n-A KUBE-SERVICES -d 10.96.0.53"
            ),
            "10.96.0.53:53"
        ),
        None
    );
}

#[test]
fn endpoints_are_where_the_rules_translate_to() {
    // Whatever comments say.
    let moved =
        changed("-j DNAT --to-destination 10.244.2.40:8080", "-j DNAT --to-destination 10.244.2.41:81");
    let route = at(&moved, "203.0.113.80:80").unwrap();
    assert_eq!(route.internal.backends[0].socket_addr(), "10.244.2.41:81".parse().unwrap());
    // Whom no packet gets to.
    let certain = changed(" -m statistic --mode random --probability 0.20000000019", "");
    assert_eq!(at(&certain, "10.96.0.10:80").unwrap().internal.backends.len(), 1);
    let never = changed("--probability 0.20000000019", "--probability 0.00000000000");
    assert_eq!(at(&never, "10.96.0.10:80").unwrap().internal.backends.len(), 4);
    // Of another family, without a port, for some clients only.
    for (from, to) in [
        ("10.244.2.40:8080", "[fd00::1]:8080"),
        ("10.244.2.40:8080", "10.244.2.40"),
        ("-> 10.244.2.40:8080\"", "-> 10.244.2.40:8080\" -s 10.0.0.0/8"),
    ] {
        let to = at(&changed(from, to), "203.0.113.80:80");
        assert!(to.unwrap().internal.backends.is_empty());
    }
}

#[test]
fn what_older_and_newer_kube_proxies_write_is_read_alike() {
    let counted = changed(
        "-A KUBE-NODEPORTS -p tcp -m comment --comment \"demo/web:http\" -m tcp --dport 30080",
        "-A KUBE-NODEPORTS -d 127.0.0.0/8 -p tcp -m comment --comment \"demo/web:http\" -m tcp --dport 30080 -m nfacct \
         --nfacct-name localhost_nps_accepted_pkts -j KUBE-EXT-5UHY76W7KATZR4JZ\n\
         -A KUBE-NODEPORTS -p tcp -m comment --comment \"demo/web:http\" -m tcp --dport 30080",
    );
    assert_eq!(counted, expected(&[V4]));
    assert_eq!(changed("! -d 127.0.0.0/8 -m comment", "-m comment"), expected(&[V4]));

    let chosen = changed(
        "! -d 127.0.0.0/8 -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" \
         -m addrtype --dst-type LOCAL",
        "-d 192.0.2.1/32 -m comment --comment \"kubernetes service nodeports\"",
    );
    assert_eq!(chosen.node().node_port_addresses, [IpAddr::from([192, 0, 2, 1])]);
    assert!(chosen.routes().eq(expected(&[V4]).routes()));

    // Pods are told by their interface, or not at all, or all flows are masqueraded.
    let text = fixture::saved(V4);
    for (option, detector) in [
        ("-i cbr0 ", LocalDetector::Bridge("cbr0".into())),
        ("-i veth+ ", LocalDetector::InterfacePrefix("veth".into())),
    ] {
        let text = text.replace("-s 10.244.0.0/16 ", option);
        let read = read(&[(V4, &text)]);
        assert_eq!(read.node().local_detector, detector);
        assert!(read.routes().eq(expected(&[V4]).routes()));
    }
    let all = changed("! -s 10.244.0.0/16 ", "");
    assert_eq!(at(&all, "10.96.0.10:80").unwrap().masquerade, Masquerade::ALWAYS);
    let lines = text.lines().filter(|line| !line.contains("10.244.0.0/16")).map(|line| format!("{line}\n"));
    let undetected = read(&[(V4, &lines.collect::<String>())]);
    assert_eq!(undetected.node().local_detector, LocalDetector::None);
    assert_eq!(at(&undetected, "10.96.0.10:80").unwrap().masquerade, Masquerade::NEVER);
    assert_eq!(at(&undetected, "203.0.113.5:443"), at(&expected(&[V4]), "203.0.113.5:443"));
}

#[test]
fn source_ranges_are_what_the_rules_admit() {
    let of = |table: &RouteTable| at(table, "203.0.113.5:443").unwrap().source_ranges;
    let no_node = changed("-s 203.0.113.5/32 ", "-s 203.0.113.6/32 ");
    assert_eq!(of(&no_node).unwrap().cidrs.len(), 3);
    assert!(!of(&no_node).unwrap().node);
    assert_eq!(of(&changed("-s 192.0.2.0/25 ", "")), None);
    let text: Vec<_> = fixture::saved(V4).lines().collect();
    let nobody = text.iter().filter(|line| !(line.starts_with("-A KUBE-FW") && line.contains(" -s ")));
    let nobody = read(&[(V4, &(nobody.copied().collect::<Vec<_>>().join("\n") + "\n"))]);
    assert_eq!(of(&nobody).as_deref(), Some(&SourceRanges { cidrs: Vec::new(), node: false }));
}

/// What the kernel holds of a table of ours.
fn programmed(table: &RouteTable) -> Saved {
    let (context, none) = (context(), Chains::new());
    let planner = Planner::new(Arc::clone(&context), table.clone());
    let jumps = context.jumps(table.node());
    let edits: Vec<_> = jumps.iter().map(|jump| JumpEdit::insert(jump, V4)).collect();
    let all = changes(&none, planner.chains(V4).unwrap());
    let text = restore::transaction(V4, &none, &all, &edits);
    let lines = text.lines().map(|line| match line.strip_prefix("-I ").and_then(|l| l.split_once(" 1 ")) {
        Some((chain, rule)) => format!("-A {chain} {rule}\n"),
        None => format!("{line}\n"),
    });
    Saved::parse(&lines.collect::<String>(), &context.names)
}

#[test]
fn a_take_over_that_got_half_way_serves_what_both_say() {
    let table =
        RouteTable::new(Revision(7), Arc::clone(expected(&[V4]).node()), fixture::routes(V4, |_| false));
    let names = &context().names;
    let of = |saved| super::super::table(&context(), &BTreeMap::from([(V4, saved)]));
    assert_eq!(of(programmed(&table)), table);
    // Our dispatch, before the chains that pick followed.
    let theirs = |text: &str| {
        let mut saved = programmed(&table);
        let chains = Saved::parse(text, names).chains;
        saved.chains.extend(chains.into_iter().filter(|((_, name), _)| names.picks(name)));
        of(saved)
    };
    let text = fixture::saved(V4);
    assert_eq!(theirs(text), table);
    // A chain that picks otherwise is neither's.
    for (from, to) in [
        ("--to-destination 10.244.1.2:8080", "--to-destination 10.244.1.2:8081"),
        ("10.244.1.5:8080\" -m statistic", "10.244.1.5:8080\" -s 10.0.0.0/8 -m statistic"),
    ] {
        let left = theirs(&text.replace(from, to));
        assert_eq!(at(&left, "10.96.0.10:80"), None, "{to}");
        assert_eq!(left.len(), table.len() - 2);
    }
    let other = theirs(&text.replace("--seconds 3600", "--seconds 60"));
    assert_eq!(other.len(), table.len() - 1, "clients stay for another time");
}

#[test]
fn a_kube_proxy_that_wrote_over_our_rules_is_read_where_it_is_certain() {
    let state = "*nat\n-A KUBE-STATE -m comment --comment \"kubenet 1 revision=7\"\n";
    let written_over = |text: &str| read(&[(V4, &text.replace("*nat\n", state))]);
    assert_eq!(written_over(fixture::saved(V4)), expected(&[V4]));
    // A rule of the dispatch that does not say so might be what is left of ours.
    for comment in
        ["demo/web:http cluster IP", "demo/empty:http has no endpoints", "demo/open:http external IP"]
    {
        let lost = fixture::saved(V4).replace(comment, "demo/x:http");
        assert_eq!(
            written_over(&lost).len(),
            expected(&[V4]).len() - if comment.contains("empty") { 3 } else { 1 }
        );
        assert_eq!(read(&[(V4, &lost)]).len(), expected(&[V4]).len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Words of one line are lost, doubled, moved or replaced by those of another, or by anything.
    #[test]
    fn mangled_rules_never_panic_and_no_other_frontend_is_made_up(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..5u8, "\\PC{0,12}"), 1..40),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut lines: Vec<String> = fixture::saved(V4).lines().map(str::to_owned).collect();
        for (line, at, what, text) in edits {
            let n = line.index(lines.len());
            let mut words: Vec<_> = lines[n].split(' ').map(str::to_owned).collect();
            let at = at.index(words.len());
            match what {
                0 => drop(words.remove(at)),
                1 => words.insert(at, words[at].clone()),
                2 => words[at] = text,
                3 => words.swap(0, at),
                _ => words.truncate(at),
            }
            lines[n] = words.join(" ");
        }
        let mut text = lines.join("\n");
        if let Some(cut) = cut {
            let end = (cut.index(text.len())..).find(|end| text.is_char_boundary(*end)).unwrap();
            text.truncate(end);
        }
        for route in read(&[(V4, &text)]).routes() {
            prop_assert_eq!(route.frontend.family(), V4);
            prop_assert!(route.backends().all(|backend| backend.address.is_ipv4()));
            let port = route.frontend.port.to_string();
            prop_assert!(text.contains(&port) || route.frontend.protocol == Protocol::Sctp);
        }
    }
}
