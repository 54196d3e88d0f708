//! Taking over many rules of a kube-proxy, and what packets see of it. Needs root.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step fails the test")]

mod common;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{kube_proxy, programs::Programs, *};
use data_encoding::BASE32;
use futures::executor::block_on;
use kubenet_core::{
    datapath::{Close, Datapath, DatapathExt, ErrorKind},
    model::{IpFamily, LocalDetector, Protocol},
    route::{
        Backend, Frontend, FrontendAddress, FrontendKind, Masquerade, Route, RouteTable, ServicePortName,
        Target, WhenEmpty,
    },
};
use kubenet_iptables::Variant;
use kubenet_testkit::lab::{CLUSTER_CIDR_V4, Node, Place};
use sha2::{Digest, Sha256};

const V4: IpFamily = IpFamily::V4;
const PROGRAM: &str = "iptables-restore";

fn hash(text: &str) -> String {
    BASE32.encode(&Sha256::digest(text)[..10])
}

/// What a kube-proxy has for these routes: chains that nothing leads to, so many Services at a time, and last
/// what leads to them.
fn kube_proxys(table: &RouteTable) -> Vec<String> {
    let (mut texts, mut services, mut node_ports) = (Vec::new(), String::new(), String::new());
    let mut chains: BTreeSet<String> = BTreeSet::new();
    let (mut names, mut rules) = (String::new(), String::new());
    for route in table.routes().filter(|route| route.frontend.family() == V4) {
        let (name, protocol) = (&route.service_port, route.frontend.protocol.as_lower_str());
        let id = format!("{name}{protocol}");
        let (svc, ext) = (format!("KUBE-SVC-{}", hash(&id)), format!("KUBE-EXT-{}", hash(&id)));
        let (says, port) = (format!("-m comment --comment \"{name}"), route.frontend.port);
        let at = format!("{says} cluster IP\" -m {protocol} --dport {port}");
        match route.frontend.address {
            FrontendAddress::Ip(ip) => {
                writeln!(services, "-A KUBE-SERVICES -d {ip}/32 -p {protocol} {at} -j {svc}").unwrap();
                let off = format!("-A {svc} ! -s {CLUSTER_CIDR_V4} -d {ip}/32 -p {protocol}");
                rules = format!("{off} {at} -j KUBE-MARK-MASQ\n{rules}");
            }
            FrontendAddress::NodePort(_) => {
                writeln!(
                    node_ports,
                    "-A KUBE-NODEPORTS -p {protocol} {says}\" -m {protocol} --dport {port} -j {ext}"
                )
                .unwrap();
                writeln!(names, ":{ext} - [0:0]").unwrap();
                writeln!(
                    rules,
                    "-A {ext} -m comment --comment \"masquerade traffic for {name} external destinations\" -j \
                     KUBE-MARK-MASQ\n-A {ext} -j {svc}"
                )
                .unwrap();
            }
        }
        if !chains.insert(svc.clone()) {
            continue;
        }
        writeln!(names, ":{svc} - [0:0]").unwrap();
        let backends = &route.internal.backends;
        for (n, backend) in backends.iter().enumerate() {
            let (ip, to) = (backend.address, backend.socket_addr());
            let sep = format!("KUBE-SEP-{}", hash(&format!("{id}{to}")));
            let left = backends.len() - n;
            let chance = match left {
                1 => String::new(),
                _ => format!(" -m statistic --mode random --probability {:.10}", 1.0 / left as f64),
            };
            writeln!(names, ":{sep} - [0:0]").unwrap();
            writeln!(rules, "-A {svc} {says} -> {to}\"{chance} -j {sep}").unwrap();
            writeln!(rules, "-A {sep} -s {ip}/32 {says}\" -j KUBE-MARK-MASQ").unwrap();
            writeln!(rules, "-A {sep} -p {protocol} {says}\" -m {protocol} -j DNAT --to-destination {to}")
                .unwrap();
        }
        if names.lines().count() > 700 {
            texts.push(transaction(&mut names, &mut rules));
        }
    }
    texts.push(transaction(&mut names, &mut rules));
    texts.push(format!(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n{services}\
         -A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in \
         this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n{node_ports}\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0\n\
         -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE \
         --random-fully\n\
         -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\nCOMMIT\n\
         *filter\n:KUBE-FORWARD - [0:0]\n:KUBE-PROXY-FIREWALL - [0:0]\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         -A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
         -A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL\nCOMMIT\n"
    ));
    texts
}

fn transaction(names: &mut String, rules: &mut String) -> String {
    let text = format!(
        "*nat\n:KUBE-MARK-MASQ - [0:0]\n{names}-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n"
    );
    let text = format!("{text}{rules}COMMIT\n");
    names.clear();
    rules.clear();
    text
}

fn program(world: &World, texts: &[String]) {
    let file = tempfile::NamedTempFile::new().unwrap();
    for text in texts {
        fs::write(file.path(), text).unwrap();
        let (word, path) = (world.word(), file.path().display());
        world.run("sh", &["-c", &format!("iptables-{word}-restore --noflush -w 5 <{path}")]);
    }
}

/// The rules, whatever the order in which their chains were made and their matches are written.
fn sorted(world: &World) -> BTreeSet<String> {
    let sorted = |line: &str| {
        let mut words: Vec<_> = line.split_whitespace().collect();
        words.sort_unstable();
        words.join(" ")
    };
    world.rules().lines().map(sorted).collect()
}

/// Whether what was read of a kube-proxy's rules is this table, as far as they say it.
fn check_read(read: &RouteTable, table: &RouteTable) {
    let of_family = || table.routes().filter(|route| route.frontend.family() == V4);
    assert_eq!(read.len(), of_family().count());
    for route in of_family() {
        let found = read.get(&route.frontend).unwrap();
        let same = |a: &Route| (a.kind, a.service_port.clone(), a.affinity);
        assert_eq!(same(found), same(route));
        let backends = |route: &Route| route.backends().map(|b| b.socket_addr()).collect::<Vec<_>>();
        assert_eq!(backends(found), backends(route));
    }
}

#[test]
fn a_kube_proxys_rules_are_read_and_are_the_same_routes_once_taken_over() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        for (family, base) in [(IpFamily::V4, "iptables"), (IpFamily::V6, "ip6tables")] {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), kube_proxy::saved(family)).unwrap();
            let restore = format!("{base}-{}-restore --noflush -w 5", world.word());
            world.run("sh", &["-c", &format!("{restore} <{}", file.path().display())]);
        }
        let datapath = world.start();
        let routes =
            || IpFamily::ALL.into_iter().flat_map(|f| kube_proxy::routes(f, kube_proxy::told_by_rules));
        let read = block_on(datapath.read()).unwrap();
        let pods = IpFamily::ALL.map(|family| kube_proxy::pods(family).parse().unwrap());
        assert_eq!(read.node().local_detector, LocalDetector::Cidrs(pods.into()));
        let expected = RouteTable::new(read.revision(), Arc::clone(read.node()), routes());
        assert_eq!(read, expected, "{variant:?}");
        let rules = world.rules();
        let table = world.table(1, routes().map(|route| Route::clone(&route)).collect());
        let report = block_on(datapath.replace(Arc::clone(&table))).unwrap();
        assert_eq!((report.upserted, report.removed, report.failed.len()), (table.len(), 0, 0));
        assert_ne!(world.rules(), rules);
        assert_eq!(block_on(datapath.read()).unwrap(), *table, "{variant:?}");
        assert!(!world.rules().contains(":KUBE-PROXY") && !world.rules().contains(":KUBE-SEP"));
        block_on(datapath.close(Close::Remove)).unwrap();
        assert!(!world.rules().contains("KUBE"));
    }
}

#[test]
fn no_flow_fails_or_is_seen_otherwise_while_many_rules_of_a_kube_proxy_are_taken_over() {
    for variant in VARIANTS {
        let Some(world) = world(variant) else { return };
        let programs = Programs::new(world.word());
        let table = world.large(1, &["a2", "b1"], 100);
        program(&world, &kube_proxys(&table));
        let mut connection = world.lab.connect("a1", cluster_ip(V4), SECOND).unwrap();
        let node_port = (world.address(Node::A, V4), NODE_PORT).into();
        let ways: [(Place, _); 4] = [
            ("a1".into(), cluster_ip(V4)),
            // It reaches itself, half of the time.
            ("a2".into(), cluster_ip(V4)),
            (Node::A.into(), cluster_ip(V4)),
            (Place::Outside, node_port),
        ];
        let (done, asked) = (AtomicBool::new(false), ways.each_ref().map(|_| AtomicUsize::new(0)));
        let rounds = || asked.iter().map(|n| n.load(Ordering::Relaxed)).min().unwrap();
        let datapath = world.builder().program_directory(programs.path()).build().unwrap();
        check_read(&block_on(datapath.read()).unwrap(), &table);
        programs.count(PROGRAM, "");
        thread::scope(|scope| {
            for ((from, to), asked) in ways.iter().zip(&asked) {
                let (world, done) = (&world, &done);
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        let (answers, peer) = world.ask(from.clone(), *to);
                        assert!(["a2", "b1"].contains(&answers.as_str()));
                        match from {
                            // S3: a pod keeps its address; S4: unless it reaches itself.
                            Place::Pod(name) if *name != answers => {
                                assert_eq!(peer, world.address(from.clone(), V4))
                            }
                            // Whoever is not a pod is masqueraded.
                            _ => assert_ne!(peer, world.address(Place::Outside, V4)),
                        }
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            while rounds() < 2 {
                thread::yield_now();
            }
            block_on(datapath.replace(Arc::clone(&table))).unwrap();
            let after = rounds();
            while rounds() < after + 2 {
                thread::yield_now();
            }
            done.store(true, Ordering::Relaxed);
        });
        connection.ask(SECOND).unwrap();
        let calls = programs.calls(PROGRAM);
        assert_eq!(calls > 6, variant == Variant::Nft, "{calls} transactions");
        assert_eq!(block_on(datapath.drift(&table)).unwrap(), None);
        let rules = world.rules();
        assert!(!rules.contains("KUBE-SEP-") && !rules.contains("KUBE-PROXY") && !rules.contains("NOTE"));
        block_on(datapath.close(Close::Remove)).unwrap();
        assert!(!world.rules().contains("KUBE"));
    }
}

#[test]
fn a_take_over_that_is_killed_anywhere_leaves_the_kube_proxys_rules_or_serves() {
    let Some(world) = world(Variant::Nft) else { return };
    let programs = Programs::new(world.word());
    let table = world.large(1, &["b1"], 100);
    let texts = kube_proxys(&table);
    let start = || world.builder().program_directory(programs.path()).build().unwrap();
    let mut failed = 0;
    // Every other one: of each kind of transaction there are several.
    for n in (1..).step_by(2) {
        program(&world, &texts);
        let before = sorted(&world);
        let datapath = start();
        programs.kill(PROGRAM, n, 1);
        let result = block_on(datapath.replace(Arc::clone(&table)));
        let now = sorted(&world);
        programs.heal();
        assert_eq!(world.ask("a1", cluster_ip(V4)).0, "b1", "call {n}");
        let Err(error) = result else {
            // Only chains that nothing leads to were to go.
            assert!(now.iter().any(|line| line.contains("KUBE-STATE")));
            break;
        };
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        let differ: Vec<_> = now.symmetric_difference(&before).take(5).collect();
        assert!(differ.is_empty(), "call {n}: {error}: {differ:?}");
        block_on(datapath.close(Close::Remove)).unwrap();
        assert!(!world.rules().contains("KUBE"));
        failed += 1;
    }
    assert!(failed > 2, "{failed} calls");
}

/// Services of several endpoints each, beside the one that is dialled.
fn cluster(world: &World, services: u16, endpoints: u16) -> Arc<RouteTable> {
    let many = (0..services).map(|i| {
        let [high, low] = i.to_be_bytes();
        let frontend = Frontend::ip([10, 97, high, low].into(), port(80), Protocol::Tcp);
        let name = ServicePortName { service: format!("s{i}").into(), ..name() };
        let backend = |n| Backend::new([10, 245, high, low].into(), port(n), false);
        let target =
            Target { backends: (1..=endpoints).map(backend).collect(), when_empty: WhenEmpty::Reject };
        let not_pods = Masquerade { pods: false, node: true, outside: true };
        Route::new(frontend, FrontendKind::ClusterIp, name, target, not_pods)
    });
    world.table(1, world.service(&["a2", "b1"]).into_iter().chain(many).collect())
}

#[test]
#[ignore = "takes minutes: it measures"]
fn what_it_takes_to_take_over_5000_services_of_10_endpoints() {
    let Some(world) = world(Variant::Nft) else { return };
    let table = cluster(&world, 5_000, 10);
    let began = Instant::now();
    program(&world, &kube_proxys(&table));
    println!("programmed as a kube-proxy does in {:?}", began.elapsed());
    let datapath = world.start();
    let began = Instant::now();
    let read = block_on(datapath.read()).unwrap();
    println!("read in {:?}", began.elapsed());
    check_read(&read, &table);
    let node_port = (world.address(Node::A, V4), NODE_PORT).into();
    let ways: [(Place, _); 3] =
        [("a1".into(), cluster_ip(V4)), (Node::A.into(), cluster_ip(V4)), (Place::Outside, node_port)];
    let done = AtomicBool::new(false);
    let mut failed = 0;
    thread::scope(|scope| {
        let clients = ways.map(|(from, to)| {
            let (world, done) = (&world, &done);
            scope.spawn(move || {
                let (mut asked, mut failed, mut slowest) = (0_usize, 0_usize, Duration::ZERO);
                while !done.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let answer = world.lab.http_get(from.clone(), to, Duration::from_secs(5));
                    slowest = slowest.max(began.elapsed());
                    failed += usize::from(answer.is_err());
                    asked += 1;
                }
                (from, asked, failed, slowest)
            })
        });
        thread::sleep(SECOND);
        let began = Instant::now();
        let report = block_on(datapath.replace(Arc::clone(&table))).unwrap();
        println!("taken over in {:?}", began.elapsed());
        assert_eq!(report.failed.len(), 0);
        thread::sleep(SECOND);
        done.store(true, Ordering::Relaxed);
        for client in clients {
            let (from, asked, of_it, slowest) = client.join().unwrap();
            println!("{from}: {asked} connections, {of_it} failed, the slowest took {slowest:?}");
            failed += of_it;
        }
    });
    assert_eq!(failed, 0);
    assert_eq!(block_on(datapath.drift(&table)).unwrap(), None);
    assert!(!world.rules().contains("KUBE-SEP-"));
    block_on(datapath.close(Close::Remove)).unwrap();
}
