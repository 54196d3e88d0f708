//! What the reference in memory says.

use serde_json::{Value, json};

use crate::{Cluster, backends, text, why};

/// A cluster with a bit of everything. Zones and nodes: node-a in a, node-b in b.
const MANIFEST: &str = r#"
apiVersion: v1
kind: Node
metadata: { name: node-a, labels: { topology.kubernetes.io/zone: a } }
status: { addresses: [{ type: InternalIP, address: 10.89.0.1 }, { type: InternalIP, address: "fd00:89::1" }] }
---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: demo }
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.10, "fd00:96::10"]
  clusterIP: 10.96.0.10
  externalTrafficPolicy: Local
  externalIPs: [192.0.2.1]
  loadBalancerSourceRanges: [198.51.100.0/24]
  ports: [{ name: http, port: 80, nodePort: 30080 }]
status: { loadBalancer: { ingress: [{ ip: 192.0.2.2 }] } }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: web-1, namespace: demo, labels: { kubernetes.io/service-name: web } }
addressType: IPv4
ports: [{ name: http, port: 8080 }]
endpoints:
  - { addresses: [10.244.1.10], nodeName: node-a, hints: { forZones: [{ name: a }] } }
  - { addresses: [10.244.1.9], nodeName: node-a, hints: { forZones: [{ name: a }] } }
  - { addresses: [10.244.2.10], nodeName: node-b, hints: { forZones: [{ name: b }] } }
---
apiVersion: v1
kind: Service
metadata: { name: dns, namespace: demo, annotations: { kubenet.dev/algorithm: maglev } }
spec: { clusterIP: 10.96.0.53, ports: [{ port: 53, protocol: UDP }, { name: s, port: 53, protocol: SCTP }] }
---
apiVersion: v1
kind: Service
metadata: { name: empty, namespace: demo }
spec: { clusterIP: 10.96.0.20, ports: [{ port: 80 }] }
"#;

const POD: &str = "10.244.1.77";
const OUTSIDE: &str = "198.51.100.7";

#[test]
fn a_line_repeats_the_flow_and_adds_the_answer() {
    let cluster = Cluster::new(MANIFEST);
    let answer = cluster.answer(&[], (POD, "10.96.0.10", 80, "TCP"));
    assert_eq!(answer["from"], POD);
    assert_eq!(answer["to"], "10.96.0.10");
    assert_eq!(answer["port"], 80);
    assert_eq!(answer["protocol"], "TCP");
    assert_eq!(answer["verdict"], "forward");
    assert_eq!(
        backends(&answer),
        ["10.244.1.10:8080", "10.244.1.9:8080"],
        "those of our zone, sorted as text"
    );
    assert_eq!(answer["masquerade"], false);
    assert_eq!(answer["servicePort"], "demo/web:http");
    for rule in ["[F1]", "[E3]", "[E4]", "[S3]"] {
        assert!(why(&answer).contains(rule), "{rule} is not in: {}", why(&answer));
    }
}

#[test]
fn each_verdict_has_its_word() {
    let cluster = Cluster::new(MANIFEST);
    let answers = cluster.answers(
        &[],
        &[
            (POD, "10.96.0.10", 80, "TCP"),
            (POD, "10.96.0.20", 80, "TCP"),
            (POD, "10.96.0.10", 81, "TCP"),
            (POD, "10.96.0.10", 80, "UDP"),
            ("203.0.113.9", "192.0.2.2", 80, "TCP"),
            (POD, "192.0.2.77", 80, "TCP"),
            (POD, "10.89.0.2", 30080, "TCP"),
        ],
    );
    let verdicts: Vec<_> = answers.iter().map(|answer| answer["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["forward", "reject", "reject", "reject", "drop", "pass", "pass"]);
    for answer in &answers[1..] {
        assert!(answer.get("backends").is_none() && answer.get("masquerade").is_none(), "{answer}");
        assert!(!why(answer).is_empty());
    }
}

#[test]
fn external_frontends_follow_policy_ranges_and_origin() {
    let cluster = Cluster::new(MANIFEST);
    let answers = cluster.answers(
        &[],
        &[
            (OUTSIDE, "192.0.2.2", 80, "TCP"),
            (OUTSIDE, "10.89.0.1", 30080, "TCP"),
            ("10.89.0.1", "192.0.2.1", 80, "TCP"),
            (POD, "192.0.2.1", 80, "TCP"),
        ],
    );
    assert_eq!(backends(&answers[0]), ["10.244.1.10:8080", "10.244.1.9:8080"]);
    let masquerade: Vec<_> = answers.iter().map(|answer| answer["masquerade"].as_bool().unwrap()).collect();
    assert_eq!(masquerade, [false, false, true, false]);
    for (answer, rules) in
        answers.iter().zip([["[F3]", "[R1]"], ["[F4]", "[S2]"], ["[F2]", "[S5]"], ["[E5]", "[S5]"]])
    {
        for rule in rules {
            assert!(why(answer).contains(rule), "{rule} is not in: {}", why(answer));
        }
    }
}

#[test]
fn a_client_that_is_one_of_the_backends_is_masqueraded_for_that_one() {
    let cluster = Cluster::new(MANIFEST);
    let answer = cluster.answer(&[], ("10.244.1.9", "10.96.0.10", 80, "TCP"));
    assert_eq!(answer["masquerade"], false);
    assert_eq!(answer["masqueradedBackends"], json!(["10.244.1.9:8080"]));
    assert!(why(&answer).contains("[S4]"));
}

#[test]
fn options_of_the_node_count() {
    let cluster = Cluster::new(MANIFEST);
    let flow = (POD, "10.96.0.10", 80, "TCP");
    assert_eq!(cluster.answer(&["--masquerade-all"], flow)["masquerade"], true);
    let other_zone = cluster.answer(&["--node-labels", "a=b,topology.kubernetes.io/zone=b"], flow);
    assert_eq!(backends(&other_zone), ["10.244.2.10:8080"]);
    let node_port = (OUTSIDE, "10.89.0.1", 30080, "TCP");
    assert_eq!(cluster.answer(&["--node-port-addresses", "10.0.0.0/24"], node_port)["verdict"], "pass");
    assert_eq!(cluster.answer(&["--node-port-addresses", "primary"], node_port)["verdict"], "forward");
    assert_eq!(cluster.answer(&["--node-ip", "10.89.0.9"], node_port)["verdict"], "pass");
    let loopback = ("127.0.0.1", "127.0.0.1", 30080, "TCP");
    assert_eq!(cluster.answer(&[], loopback)["verdict"], "pass");
    assert_eq!(cluster.answer(&["--localhost-node-ports"], loopback)["masquerade"], true);
}

#[test]
fn maglev_leaves_one_backend_to_a_client_and_sctp_is_served() {
    let manifest = format!(
        "{MANIFEST}---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{ name: dns-1, namespace: demo, labels: {{ kubernetes.io/service-name: dns }} }}
addressType: IPv4
ports: [{{ name: '', port: 5353, protocol: UDP }}, {{ name: s, port: 5353, protocol: SCTP }}]
endpoints: [{{ addresses: [10.244.1.2] }}, {{ addresses: [10.244.1.3] }}, {{ addresses: [10.244.1.4] }}]
"
    )
    .replace("{ port: 53, protocol: UDP }", "{ name: u, port: 53, protocol: UDP }")
    .replace("{ name: '', port: 5353", "{ name: u, port: 5353");
    let cluster = Cluster::new(&manifest);
    let clients: Vec<String> = (1..=64).map(|n| format!("10.244.3.{n}")).collect();
    let flows: Vec<_> = clients.iter().map(|from| (from.as_str(), "10.96.0.53", 53, "SCTP")).collect();
    let answers = cluster.answers(&[], &flows);
    assert!(answers.iter().all(|answer| backends(answer).len() == 1));
    let picked: std::collections::BTreeSet<_> = answers.iter().map(|answer| backends(answer)[0]).collect();
    assert_eq!(picked.len(), 3, "64 clients reach each of three backends");
    assert_eq!(cluster.answers(&[], &flows), answers);
    assert!(why(&answers[0]).contains("maglev"));
}

#[test]
fn a_bad_flow_is_answered_in_its_place_by_what_is_wrong() {
    let cluster = Cluster::new(MANIFEST);
    let good = r#"{"from": "10.244.1.77", "to": "10.96.0.10", "port": 80, "protocol": "TCP", "id": 7}"#;
    let output = cluster.trace(&["--flows", "-"], &format!("{{}}\n\n{good}\nnot json\n"));
    assert!(!output.status.success());
    let lines: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0], json!({ "line": 1, "error": "port: must be set" }));
    assert_eq!(lines[1]["id"], 7, "fields of others are repeated, too");
    assert_eq!(lines[2]["line"], 4);
    assert!(text(&output.stderr).contains("line 4: must be an object of JSON"));
}

#[test]
fn a_bad_object_is_named_and_hides_no_other() {
    let bad = "---\napiVersion: v1\nkind: Service\nmetadata: { name: bad, namespace: demo }\n\
               spec: { clusterIP: 10.96.0.99, ports: [{ port: 0 }] }\n";
    let cluster = Cluster::new(&format!("{MANIFEST}{bad}"));
    let output = cluster.trace(&["--from", POD, "--to", "10.96.0.20", "--port", "80"], "");
    assert!(output.status.success());
    assert!(text(&output.stdout).contains("reject of demo/empty"));
    let told = text(&output.stderr);
    assert!(told.contains("refused: ") && told.contains("Service demo/bad: spec.ports[0].port"), "{told}");
}

#[test]
fn one_flow_is_answered_for_a_person() {
    let cluster = Cluster::new(MANIFEST);
    let output = cluster
        .trace(&["--from", "fd00:244::9", "--to", "fd00:96::10", "--port", "80", "--protocol", "tcp"], "");
    let said = text(&output.stdout);
    assert!(
        said.starts_with("fd00:244::9 -> [fd00:96::10]:80/TCP\nreject of demo/web:http\nwhy\n"),
        "{said}"
    );
}

#[test]
fn calls_that_cannot_be_are_refused() {
    let cluster = Cluster::new(MANIFEST);
    for (arguments, part) in [
        (&["--from", POD][..], "--to"),
        (&["--flows", "-", "--from", POD], "cannot be used with"),
        (&["--from", POD, "--to", "x", "--port", "80"], "--to: \"x\": must be an IPv4 or IPv6 address"),
        (
            &["--flows", "-", "--node-port-addresses", "all,primary"],
            "--node-port-addresses: \"all\": must be a CIDR",
        ),
        (&["--flows", "-", "--node-ip", "127.0.0.1"], "--node-ip: \"127.0.0.1\""),
        (&["--flows", "/nowhere/flows"], "/nowhere/flows: cannot be read"),
        (&["--flows", "-", "--manifests", "/nowhere"], "/nowhere: cannot be read"),
        (&["--flows", "-", "--cluster-cidr", "10.0.0.0/33"], "must be an IPv4 or IPv6 CIDR"),
        (&["--flows", "-", "--samples", "0"], "--samples"),
    ] {
        let output = cluster.trace(arguments, "");
        assert!(!output.status.success(), "{arguments:?}");
        assert!(text(&output.stderr).contains(part), "{arguments:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty());
    }
}
