//! Small random clusters as manifests, dense enough that the interesting cases are common, and flows to them.

use std::{fmt, sync::Arc};

use fastrand::Rng;
use kubenet_core::{
    cluster::{Change, Cluster},
    kubernetes::Manifests,
    model::{NodeInfo, NodePortAddresses},
    route::RouteTable,
};
use kubenet_examples::trace::Dialled;
use serde_json::{Value, json};

/// Objects as manifests have them, and the node as `trace` is told of it.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    pub(crate) objects: Vec<Value>,
    addresses: Vec<&'static str>,
    cluster_cidrs: &'static str,
    node_ports: &'static str,
    masquerade_all: bool,
    localhost_node_ports: bool,
}

const V4: usize = 0;
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];
const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];
const CIDRS: &str = "10.244.0.0/16,fd00:244::/32";
/// Of our node in each family; the second may be missing.
const OURS: [[&str; 2]; 2] = [["10.89.0.1", "192.0.2.1"], ["fd00:89::1", "fd00:89::101"]];
const RANGES: [&[&str]; 8] = [
    &[],
    &[],
    &["198.51.100.0/24", "fd00:5::/64"],
    &["10.244.1.0/24", "fd00:244:1::/64"],
    &["10.89.0.0/24", "fd00:89::/64"],
    &["10.89.0.1/32", "203.0.113.7/32", "2001:db8::/32"],
    &["0.0.0.0/0", "::/0"],
    &["192.0.2.1/32", "10.244.2.0/24", "fd00:89::101/128"],
];

fn of<T: Copy>(random: &mut Rng, all: &[T]) -> T {
    all[random.usize(0..all.len())]
}

fn percent(random: &mut Rng, share: u32) -> bool {
    random.u32(0..100) < share
}

fn cluster_ip(family: usize, n: usize) -> String {
    if family == V4 { format!("10.96.0.{n}") } else { format!("fd00:96::{n:x}") }
}

/// Few, so that some are claimed twice, and our node has some of them.
fn outside_ip(random: &mut Rng, family: usize) -> String {
    let n = random.u32(1..24);
    if family == V4 { format!("192.0.2.{n}") } else { format!("fd00:89::{:x}", 0x100 + n) }
}

fn pod(random: &mut Rng, family: usize, node: usize) -> String {
    let (node, n) = (node + 1, random.u32(2..14));
    if family == V4 { format!("10.244.{node}.{n}") } else { format!("fd00:244:{node}::{n:x}") }
}

fn node_address(family: usize, node: usize) -> String {
    if family == V4 { format!("10.89.0.{}", node + 1) } else { format!("fd00:89::{:x}", node + 1) }
}

impl Random {
    pub(crate) fn new(random: &mut Rng) -> Self {
        let second = |random: &mut Rng| if percent(random, 50) { 2 } else { 1 };
        let mut addresses = OURS[0][..second(random)].to_vec();
        addresses.extend(&OURS[1][..second(random)]);
        let mut objects = Vec::new();
        for number in 1..=random.usize(4..24) {
            service(random, number, &mut objects);
        }
        Self {
            objects,
            addresses,
            cluster_cidrs: of(random, &[CIDRS, CIDRS, CIDRS, "10.244.1.0/24,fd00:244:1::/64", ""]),
            node_ports: of(random, &["all", "all", "primary", "10.89.0.0/24,fd00:89::101/128"]),
            masquerade_all: percent(random, 15),
            localhost_node_ports: percent(random, 50),
        }
    }

    pub(crate) fn node(&self) -> NodeInfo {
        let mut builder = NodeInfo::builder(NODES[0]).zone("a").masquerade_all(self.masquerade_all);
        builder = builder.localhost_node_ports(self.localhost_node_ports);
        for address in &self.addresses {
            builder = builder.address(address.parse().unwrap());
        }
        let cidrs =
            |text: &str| text.split(',').filter(|t| !t.is_empty()).map(|t| t.parse().unwrap()).collect();
        let cluster: Vec<ipnet::IpNet> = cidrs(self.cluster_cidrs);
        for cidr in cluster {
            builder = builder.cluster_cidr(cidr);
        }
        let chosen = match self.node_ports {
            "all" => NodePortAddresses::All,
            "primary" => NodePortAddresses::Primary,
            ranges => NodePortAddresses::Cidrs(cidrs(ranges)),
        };
        builder.node_port_addresses(chosen).build().unwrap()
    }

    pub(crate) fn table(&self) -> Arc<RouteTable> {
        let text = json!({ "apiVersion": "v1", "kind": "List", "items": self.objects }).to_string();
        let manifests = Manifests::parse("random.json", &text).unwrap_or_else(|error| panic!("{error}"));
        let mut cluster = Cluster::new(self.node());
        cluster.change(Change::from(manifests));
        cluster.take_delta();
        Arc::clone(cluster.table())
    }

    /// Mostly to frontends.
    pub(crate) fn flows(&self, random: &mut Rng, count: usize) -> Vec<Dialled> {
        let mut dialled: [Vec<(String, u16, String)>; 2] = Default::default();
        let push = |dialled: &mut [Vec<_>; 2], to: &str, port: u16, protocol: &str| {
            dialled[usize::from(to.contains(':'))].push((to.to_owned(), port, protocol.to_owned()));
        };
        let list = |value: &Value| -> Vec<String> {
            let texts = value.as_array().into_iter().flatten();
            texts.map(|text| text.as_str().unwrap().to_owned()).collect()
        };
        for service in self.objects.iter().filter(|object| object["kind"] == "Service") {
            let spec = &service["spec"];
            let ingress = service["status"]["loadBalancer"]["ingress"].as_array();
            let ingress = ingress.into_iter().flatten().map(|i| i["ip"].as_str().unwrap().to_owned());
            let mut at = list(&spec["clusterIPs"]);
            at.extend(list(&spec["externalIPs"]));
            at.extend(ingress);
            for port in spec["ports"].as_array().unwrap() {
                let (number, protocol) = (port["port"].as_u64().unwrap(), port["protocol"].as_str().unwrap());
                for to in &at {
                    push(&mut dialled, to, number as u16, protocol);
                    if random.u8(..) < 40 {
                        push(&mut dialled, to, 81, of(random, &["TCP", "UDP"]));
                    }
                }
                let loopback = of(random, &["127.0.0.1", "127.0.0.1", "127.8.0.3"]);
                for to in self.addresses.iter().chain([&loopback]).filter(|_| !port["nodePort"].is_null()) {
                    push(&mut dialled, to, port["nodePort"].as_u64().unwrap() as u16, protocol);
                }
            }
        }
        push(&mut dialled, "192.0.2.99", 80, "TCP");
        push(&mut dialled, "fd00:77::1", 80, "UDP");
        (0..count)
            .map(|_| {
                let family = random.usize(0..2);
                let (to, port, protocol) = &dialled[family][random.usize(0..dialled[family].len())];
                let client = match to.starts_with("127.") {
                    true if percent(random, 60) => "127.0.0.1".to_owned(),
                    true if percent(random, 50) => self.own(random, family),
                    _ => self.client(random, family),
                };
                Dialled::new(&client, to, *port, protocol).unwrap()
            })
            .collect()
    }

    fn own(&self, random: &mut Rng, family: usize) -> String {
        let ours: Vec<_> = self.addresses.iter().filter(|a| a.contains(':') == (family != V4)).collect();
        (*ours[random.usize(0..ours.len())]).to_owned()
    }

    fn client(&self, random: &mut Rng, family: usize) -> String {
        let ours: Vec<_> = self.addresses.iter().filter(|a| a.contains(':') == (family != V4)).collect();
        match random.u32(0..10) {
            0 => (*ours[0]).to_owned(),
            1 => ["127.0.0.1", "::1"][family].to_owned(),
            2 => self.own(random, family),
            3..=5 => pod(random, family, 0),
            6 => pod(random, family, 1),
            7 => node_address(family, 1),
            8 => of(random, &[["198.51.100.7", "fd00:5::7"], ["203.0.113.7", "2001:db8::7"]])[family]
                .to_owned(),
            _ => ["203.0.113.9", "2001:db9::7"][family].to_owned(),
        }
    }

    /// What `trace` must be told to try the same.
    pub(crate) fn arguments(&self) -> String {
        let mut text = format!(
            "--node-name node-a --node-labels topology.kubernetes.io/zone=a --node-ip {}",
            self.addresses.join(",")
        );
        if !self.cluster_cidrs.is_empty() {
            text += &format!(" --cluster-cidr {}", self.cluster_cidrs);
        }
        text += &format!(" --node-port-addresses {}", self.node_ports);
        if self.masquerade_all {
            text += " --masquerade-all";
        }
        if self.localhost_node_ports {
            text += " --localhost-node-ports";
        }
        text
    }
}

impl fmt::Display for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.arguments())?;
        self.objects.iter().try_for_each(|object| writeln!(f, "---\n{object}"))
    }
}

/// A Service and its slices.
fn service(random: &mut Rng, number: usize, objects: &mut Vec<Value>) {
    let families = of(random, &[&[0][..], &[0], &[1], &[0, 1], &[1, 0]]);
    let kind = of(random, &["ClusterIP", "NodePort", "LoadBalancer"]);
    let policy = |random: &mut Rng, share| if percent(random, share) { "Local" } else { "Cluster" };
    let ports: Vec<_> = of(random, &[&["TCP"][..], &["UDP"], &["TCP", "UDP"]])
        .iter()
        .enumerate()
        .map(|(i, protocol)| {
            let mut port = json!({ "name": format!("p{i}"), "port": 80, "protocol": protocol });
            // The same number in both protocols, and sometimes the number of a Service port.
            if kind != "ClusterIP" {
                port["nodePort"] = json!(if number == 1 { 80 } else { 30_000 + number });
            }
            port
        })
        .collect();
    let ips: Vec<_> = families.iter().map(|family| cluster_ip(*family, number)).collect();
    let mut spec = json!({
        "type": kind,
        "clusterIP": ips[0],
        "clusterIPs": ips,
        "internalTrafficPolicy": policy(random, 25),
        "ports": ports,
    });
    let mut status = json!({});
    let mut annotations = json!({});
    if percent(random, 25) {
        let ips: Vec<_> = families.iter().map(|family| outside_ip(random, *family)).collect();
        spec["externalIPs"] = json!(ips);
    }
    if kind == "LoadBalancer" {
        let ips: Vec<_> =
            families.iter().map(|family| json!({ "ip": outside_ip(random, *family) })).collect();
        status["loadBalancer"] = json!({ "ingress": ips });
        spec["loadBalancerSourceRanges"] = json!(of(random, &RANGES));
    }
    if kind != "ClusterIP" || spec.get("externalIPs").is_some() {
        spec["externalTrafficPolicy"] = json!(policy(random, 40));
    }
    match random.u32(0..100) {
        0..=7 => spec["sessionAffinity"] = json!("ClientIP"),
        8..=15 => annotations["kubenet.dev/algorithm"] = json!("maglev"),
        _ => {}
    }
    let name = format!("s{number}");
    // Some are of the same age: then the name decides whose a frontend is.
    let created = format!("2026-01-01T00:00:{:02}Z", random.u32(0..4));
    objects.push(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name, "namespace": "demo", "creationTimestamp": created, "annotations": annotations,
        },
        "spec": spec,
        "status": status,
    }));
    for family in families {
        let hinted = percent(random, 25);
        let count = of(random, &[0, 1, 1, 2, 3, 5]);
        let endpoints: Vec<_> = (0..count).map(|_| endpoint(random, *family, hinted)).collect();
        let weights: Vec<_> = match percent(random, 10) {
            true => endpoints
                .iter()
                .map(|e| format!("{}={}", e["addresses"][0].as_str().unwrap(), random.u32(0..5)))
                .collect(),
            false => Vec::new(),
        };
        let ports = ports
            .iter()
            .enumerate()
            .map(|(i, port)| json!({ "name": port["name"], "protocol": port["protocol"], "port": 8080 + i }));
        objects.push(json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-{family}"), "namespace": "demo",
                "labels": { "kubernetes.io/service-name": name },
                "annotations": { "kubenet.dev/weights": weights.join(",") },
            },
            "addressType": FAMILIES[*family],
            "ports": ports.collect::<Vec<_>>(),
            "endpoints": endpoints,
        }));
    }
}

fn endpoint(random: &mut Rng, family: usize, hinted: bool) -> Value {
    let node = of(random, &[0, 0, 1, 2]);
    let on_host = percent(random, 15);
    let address = if on_host { node_address(family, node) } else { pod(random, family, node) };
    let conditions = match random.u32(0..10) {
        0..=1 => json!({ "ready": false, "serving": true, "terminating": true }),
        2 => json!({ "ready": false, "serving": false }),
        _ => json!({}),
    };
    let mut endpoint = json!({ "addresses": [address], "conditions": conditions });
    // Those that nobody schedules have no node.
    if !(on_host && percent(random, 25)) {
        endpoint["nodeName"] = json!(NODES[node]);
    }
    if hinted {
        endpoint["hints"] = json!({ "forZones": [{ "name": of(random, &["a", "a", "b"]) }] });
    }
    endpoint
}
