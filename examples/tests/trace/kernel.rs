//! What the datapaths of the kernel do with every kind of frontend, as scripts ask for it.

use std::{
    collections::BTreeSet, net::IpAddr, os::unix::fs::PermissionsExt, process::Command, thread,
    time::Duration,
};

use kubenet_testkit::{
    conformance::skip,
    lab::{Ground, LabError},
};
use serde_json::{Value, json};

use crate::{Cluster, backends, text, why};

/// node-a, which is asked, is in zone a, and has two IPv4 addresses.
const MANIFEST: &str = include_str!("kernel.yaml");

const ARGUMENTS: [&str; 2] = ["--node-port-addresses", "10.89.0.0/24,fd00:89::/64"];

/// Whether this machine can be asked through this datapath; else the test is skipped.
pub(crate) fn can_ask(datapath: &str) -> bool {
    match Ground::new(true) {
        Err(LabError::Unsupported(why)) => {
            skip(why);
            return false;
        }
        other => drop(other.unwrap()),
    }
    let lacks = match datapath {
        "ebpf" => kubenet_ebpf::probe().err(),
        "iptables-legacy" => iptables(kubenet_iptables::Variant::Legacy),
        _ => iptables(kubenet_iptables::Variant::Nft),
    };
    if let Some(error) = &lacks {
        skip(error);
    }
    lacks.is_none()
}

fn iptables(variant: kubenet_iptables::Variant) -> Option<kubenet_core::datapath::DatapathError> {
    kubenet_iptables::IptablesDatapath::builder().variant(variant).probe().err()
}

type Flow = (&'static str, &'static str, u16, &'static str);

/// Every client dials everything of its family.
fn flows() -> Vec<Flow> {
    const CLIENTS: [&str; 14] = [
        "10.244.1.77",   // a pod here
        "10.244.1.9",    // a pod here that is a backend
        "10.244.3.77",   // a pod elsewhere
        "10.89.0.1",     // the node
        "10.89.0.2",     // another node, a backend on its own network
        "198.51.100.7",  // outside, inside the source ranges
        "203.0.113.7",   // outside, not inside them
        "192.0.2.200",   // the node by its second address
        "fd00:244:1::7", // and the same once more
        "fd00:244:1::9",
        "fd00:244:3::7",
        "fd00:89::1",
        "fd00:5::7",
        "2001:db8::7",
    ];
    const DIALLED: [(&str, u16, &str); 44] = [
        ("10.96.0.1", 80, "TCP"),
        ("10.96.0.1", 53, "UDP"),
        ("10.96.0.1", 81, "TCP"),
        ("10.96.0.1", 81, "UDP"),
        ("10.89.0.1", 30_001, "TCP"),
        ("10.89.0.1", 30_002, "UDP"),
        ("192.0.2.200", 30_001, "TCP"),
        ("192.0.2.1", 80, "TCP"),
        ("192.0.2.1", 53, "UDP"),
        ("192.0.2.2", 80, "TCP"),
        ("192.0.2.2", 53, "UDP"),
        ("192.0.2.2", 81, "UDP"),
        ("fd00:96::1", 80, "TCP"),
        ("fd00:96::1", 53, "UDP"),
        ("fd00:96::1", 81, "TCP"),
        ("fd00:96::1", 81, "UDP"),
        ("fd00:89::1", 30_001, "TCP"),
        ("fd00:89::1", 30_002, "UDP"),
        ("fd00:1b::1", 80, "TCP"),
        ("fd00:1b::2", 53, "UDP"),
        ("10.96.0.2", 80, "TCP"),
        ("10.89.0.1", 30_003, "TCP"),
        ("192.0.2.3", 80, "TCP"),
        ("fd00:96::2", 80, "TCP"),
        ("fd00:89::1", 30_003, "TCP"),
        ("10.96.0.3", 80, "TCP"),
        ("10.96.0.3", 53, "UDP"),
        ("10.89.0.1", 30_004, "TCP"),
        ("fd00:96::3", 80, "TCP"),
        ("fd00:96::3", 53, "UDP"),
        ("10.96.0.4", 80, "TCP"),
        ("10.89.0.1", 30_006, "TCP"),
        ("192.0.2.4", 80, "TCP"),
        ("10.96.0.5", 80, "TCP"),
        ("10.96.0.6", 80, "TCP"),
        ("10.96.0.7", 80, "TCP"),
        ("10.96.0.7", 53, "UDP"),
        ("10.89.0.1", 30_007, "TCP"),
        ("10.89.0.1", 30_008, "UDP"),
        ("10.89.0.1", 9, "TCP"),
        ("10.89.0.1", 9, "UDP"),
        ("192.0.2.77", 80, "TCP"),
        ("10.244.1.9", 8080, "TCP"),
        ("2001:db8::77", 53, "UDP"),
    ];
    let family = |text: &str| text.contains(':');
    CLIENTS
        .iter()
        .flat_map(|from| {
            let same = DIALLED.iter().filter(|(to, ..)| family(to) == family(from));
            same.map(|(to, port, protocol)| (*from, *to, *port, *protocol))
        })
        .collect()
}

fn is_node(address: &str) -> bool {
    ["10.89.0.1", "192.0.2.200", "fd00:89::1"].contains(&address)
}

fn host(backend: &str) -> String {
    let address: std::net::SocketAddr = backend.parse().unwrap();
    address.ip().to_string()
}

/// The backends that do not see the client.
fn masqueraded(answer: &Value) -> BTreeSet<String> {
    let list =
        if answer["masquerade"] == true { &answer["backends"] } else { &answer["masqueradedBackends"] };
    list.as_array().into_iter().flatten().map(|backend| backend.as_str().unwrap().to_owned()).collect()
}

/// The same, from what the reference says and what the datapath is known to do in another way.
fn expected_masqueraded(datapath: &str, from: &str, reference: &Value) -> BTreeSet<String> {
    let mut expected = masqueraded(reference);
    expected.retain(|backend| {
        let backend = host(backend);
        let local =
            is_node(&backend) || backend.starts_with("10.244.1.") || backend.starts_with("fd00:244:1:");
        match datapath {
            // Capabilities::local_backends_see_client. A socket that is bound to an address keeps it.
            "ebpf" => backend == from || !(local || from == "192.0.2.200"),
            // What comes from elsewhere and stays on the node, netfilter never masquerades.
            _ => is_node(from) || !is_node(&backend),
        }
    });
    expected
}

fn agrees_with_the_reference(datapath: &str) {
    if !can_ask(datapath) {
        return;
    }
    let cluster = Cluster::new(MANIFEST);
    let flows = flows();
    let reference = cluster.answers(&ARGUMENTS, &flows);
    let answers = cluster.answers(&[&ARGUMENTS[..], &["--datapath", datapath]].concat(), &flows);
    let mut wrong = Vec::new();
    for ((flow, reference), answer) in flows.iter().zip(&reference).zip(&answers) {
        let said = why(answer);
        assert!(said.contains(&format!("seen through {datapath}, ")), "{flow:?}: {said}");
        assert!(!said.contains("refused by"), "{flow:?}: {said}");
        let same = answer["verdict"] == reference["verdict"]
            && answer["backends"] == reference["backends"]
            && answer["servicePort"] == reference["servicePort"]
            && masqueraded(answer) == expected_masqueraded(datapath, flow.0, reference);
        if !same || said.contains("unlike that") {
            wrong.push(format!("{reference:#}\nand {datapath}: {answer:#}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}: {}", wrong.len(), flows.len(), wrong.join("\n\n"));
    let verdicts: BTreeSet<_> = answers.iter().map(|answer| answer["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["drop", "forward", "pass", "reject"].into());
}

#[test]
fn iptables_nft_agrees_with_the_reference() {
    agrees_with_the_reference("iptables-nft");
}

#[test]
fn iptables_legacy_agrees_with_the_reference() {
    agrees_with_the_reference("iptables-legacy");
}

#[test]
fn ebpf_agrees_with_the_reference() {
    agrees_with_the_reference("ebpf");
}

const SPECIAL: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: sticky, namespace: demo }
spec: { clusterIP: 10.96.0.10, sessionAffinity: ClientIP, ports: [{ port: 80 }] }
---
apiVersion: v1
kind: Service
metadata: { name: hashed, namespace: demo, annotations: { kubenet.dev/algorithm: maglev } }
spec: { clusterIP: 10.96.0.11, ports: [{ port: 80 }] }
---
apiVersion: v1
kind: Service
metadata: { name: signals, namespace: demo }
spec: { clusterIP: 10.96.0.12, ports: [{ name: s, port: 3868, protocol: SCTP }, { name: t, port: 80 }] }
---
apiVersion: v1
kind: Service
metadata: { name: weighted, namespace: demo }
spec: { clusterIP: 10.96.0.13, ports: [{ port: 80 }] }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: sticky-1, namespace: demo, labels: { kubernetes.io/service-name: sticky } }
addressType: IPv4
ports: [{ name: '', port: 8080 }]
endpoints: [{ addresses: [10.244.1.2], nodeName: node-a }, { addresses: [10.244.2.2] }, { addresses: [10.244.2.3] }]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: hashed-1, namespace: demo, labels: { kubernetes.io/service-name: hashed } }
addressType: IPv4
ports: [{ name: '', port: 8080 }]
endpoints: [{ addresses: [10.244.1.2], nodeName: node-a }, { addresses: [10.244.2.2] }, { addresses: [10.244.2.3] }]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: signals-1, namespace: demo, labels: { kubernetes.io/service-name: signals } }
addressType: IPv4
ports: [{ name: s, port: 3868, protocol: SCTP }, { name: t, port: 8080 }]
endpoints: [{ addresses: [10.244.1.2], nodeName: node-a }]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: weighted-1
  namespace: demo
  labels: { kubernetes.io/service-name: weighted }
  annotations: { kubenet.dev/weights: "10.244.1.2=200,10.244.2.2=1" }
addressType: IPv4
ports: [{ name: '', port: 8080 }]
endpoints: [{ addresses: [10.244.1.2], nodeName: node-a }, { addresses: [10.244.2.2] }]
"#;

#[test]
fn what_a_datapath_does_not_serve_is_named_and_seen_all_the_same() {
    let cluster = Cluster::new(SPECIAL);
    let flows = [
        ("10.244.1.77", "10.96.0.10", 80, "TCP"),
        ("10.244.1.77", "10.96.0.11", 80, "TCP"),
        ("10.244.1.77", "10.96.0.12", 3868, "SCTP"),
        ("10.89.0.1", "10.96.0.12", 3868, "SCTP"),
        ("10.244.1.77", "10.96.0.10", 81, "TCP"),
        ("10.244.1.77", "10.96.0.12", 80, "TCP"),
        ("203.0.113.7", "10.244.1.2", 3868, "SCTP"),
    ];
    // An unknown port is refused with the ports that are not.
    for (datapath, refused) in [("iptables-nft", &[1][..]), ("ebpf", &[])] {
        if !can_ask(datapath) {
            continue;
        }
        let answers = cluster.answers(&["--datapath", datapath, "--node-ip", "10.89.0.1"], &flows);
        for (i, (flow, answer)) in flows.iter().zip(&answers).enumerate() {
            let is_refused = refused.contains(&i);
            assert_eq!(why(answer).contains("refused by"), is_refused, "{flow:?}: {answer:#}");
            if is_refused {
                assert_eq!(answer["verdict"], "pass", "{flow:?}: {answer:#}");
            }
        }
        assert_eq!(answers[2]["servicePort"], "demo/signals:s");
        assert_eq!(backends(&answers[5]), ["10.244.1.2:8080"]);
        assert_eq!(answers[6]["verdict"], "pass", "SCTP that is nobody's business arrives");
    }
}

#[test]
fn affinity_hides_no_backend_and_rare_ones_are_waited_for() {
    for datapath in ["iptables-nft", "iptables-legacy", "ebpf"] {
        if !can_ask(datapath) {
            continue;
        }
        let cluster = Cluster::new(SPECIAL);
        let arguments = ["--datapath", datapath, "--node-ip", "10.89.0.1", "--samples", "8"];
        let answers = cluster.answers(
            &arguments,
            &[("10.244.1.77", "10.96.0.10", 80, "TCP"), ("10.244.1.77", "10.96.0.13", 80, "TCP")],
        );
        assert_eq!(backends(&answers[0]), ["10.244.1.2:8080", "10.244.2.2:8080", "10.244.2.3:8080"]);
        assert!(why(&answers[0]).contains("the client stayed with its first backend"), "{:#}", answers[0]);
        assert_eq!(backends(&answers[1]), ["10.244.1.2:8080", "10.244.2.2:8080"]);
    }
}

#[test]
fn one_flow_is_seen_for_a_person() {
    if !can_ask("iptables-nft") {
        return;
    }
    let cluster = Cluster::new(MANIFEST);
    let output = cluster.trace(
        &["--datapath", "iptables-nft", "--from", "203.0.113.7", "--to", "10.89.0.1", "--port", "30007"],
        "",
    );
    let said = text(&output.stdout);
    assert!(said.contains("forward to one of 2 backends of demo/host:t\n"), "{said}");
    assert!(said.contains("  10.89.0.1:8080, which sees 203.0.113.7, on this node\n"), "{said}");
    assert!(said.contains("  10.89.0.2:8080, which sees 10.89.0.1\n"), "{said}");
    assert!(said.contains("keeps the client's address where the backend is the node itself"), "{said}");
}

#[test]
fn node_ports_on_loopback_are_seen() {
    let cluster = Cluster::new(MANIFEST);
    let flows = [("127.0.0.1", "127.0.0.1", 30007, "TCP")];
    for datapath in ["iptables-nft", "iptables-legacy", "ebpf"] {
        if !can_ask(datapath) {
            continue;
        }
        let arguments = ["--datapath", datapath, "--node-ip", "10.89.0.1", "--localhost-node-ports"];
        let answers = cluster.answers(&arguments, &flows);
        assert_eq!(
            backends(&answers[0]),
            ["10.89.0.1:8080", "10.89.0.2:8080"],
            "{datapath}: {:#}",
            answers[0]
        );
        let without = cluster.answers(&["--datapath", datapath, "--node-ip", "10.89.0.1"], &flows);
        assert_eq!(without[0]["verdict"], "pass", "{datapath}: {:#}", without[0]);
    }
}

/// Stands for iptables on a machine that has no room for the routes: whatever names one of them fails.
const NO_ROOM: &str = "#!/bin/sh
input=$(mktemp)
cat >$input
if grep -q 10.96.0.1/32 $input; then rm $input; echo 'iptables-restore: no room for rules' >&2; exit 1; fi
/usr/sbin/iptables-nft-restore \"$@\" <$input
code=$?
rm $input
exit $code
";

#[test]
fn a_table_that_cannot_be_served_at_all_is_an_error() {
    if !can_ask("iptables-nft") {
        return;
    }
    let programs = tempfile::tempdir().unwrap();
    let path = programs.path().join("iptables-nft-restore");
    std::fs::write(&path, NO_ROOM).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    let cluster = Cluster::new(MANIFEST);
    let flow = json!({ "from": "10.244.1.77", "to": "10.96.0.1", "port": 80, "protocol": "TCP" }).to_string();
    let arguments = ["--datapath", "iptables-nft", "--node-ip", "10.89.0.1", "--flows", "-"];
    let others = std::env::var("PATH").unwrap_or_default();
    let output =
        cluster.trace_in(&[("PATH", &format!("{}:{others}", programs.path().display()))], &arguments, &flow);
    let said = text(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty(), "{said}{}", text(&output.stdout));
    assert!(
        said.starts_with("trace: iptables-nft: replace: ") && said.contains("no room for rules"),
        "{said}"
    );
    // It was the table: with the programs of the machine the same is answered.
    assert_eq!(cluster.trace(&arguments, &flow).status.code(), Some(0));
}

#[test]
fn nothing_is_left_behind_by_an_interrupt() {
    if !can_ask("ebpf") {
        return;
    }
    let cluster = Cluster::new(MANIFEST);
    let mut child = Command::new(env!("CARGO_BIN_EXE_trace"))
        .args(["--datapath", "ebpf", "--node-name", "node-a", "--samples", "1000000", "--manifests"])
        .arg(cluster.manifests())
        .args(["--from", "10.244.1.77", "--to", "10.96.0.5", "--port", "80"])
        .spawn()
        .unwrap();
    let pid = child.id();
    let left = || {
        let entries = std::fs::read_dir("/run/netns").unwrap().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.starts_with(&format!("kubenet-{pid:x}n"))).count()
    };
    for _ in 0..2000 {
        if left() == 2 {
            break;
        }
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(left(), 2);
    let signalled = Command::new("kill").args(["-INT", &pid.to_string()]).status().unwrap();
    assert!(signalled.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(left(), 0);
}

/// That the flows above mean what their comments say.
#[test]
fn clients_and_destinations_are_addresses() {
    for (from, to, ..) in flows() {
        assert_eq!(from.parse::<IpAddr>().unwrap().is_ipv4(), to.parse::<IpAddr>().unwrap().is_ipv4());
    }
}
