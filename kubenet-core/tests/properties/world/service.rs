use std::{collections::BTreeSet, num::NonZeroU16};

use ipnet::IpNet;
use kubenet_core::model::{Affinity, Algorithm, Protocol, Service, ServicePort, ServiceType, TrafficPolicy};
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::{Name, address, any_name, percent, some_of};

/// A Service as declared.
#[derive(Clone, Debug)]
pub(crate) struct Svc {
    pub(crate) name: Name,
    pub(crate) service_type: ServiceType,
    pub(crate) cluster_ips: Vec<&'static str>,
    pub(crate) external_ips: Vec<&'static str>,
    pub(crate) load_balancer_ips: Vec<&'static str>,
    pub(crate) source_ranges: Vec<&'static str>,
    /// Whether one more of them could not be read.
    pub(crate) bad_source_range: bool,
    pub(crate) ports: Vec<Port>,
    pub(crate) internal: TrafficPolicy,
    pub(crate) external: TrafficPolicy,
    pub(crate) affinity: Option<u32>,
    pub(crate) maglev: bool,
    pub(crate) created: Option<i64>,
}

/// A port of it.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub(crate) name: &'static str,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) node_port: Option<u16>,
}

fn number(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

impl Svc {
    pub(crate) fn build(&self) -> Service {
        let (namespace, name) = self.name;
        let mut builder = Service::builder(namespace, name)
            .service_type(self.service_type)
            .internal_traffic_policy(self.internal)
            .external_traffic_policy(self.external)
            .algorithm(if self.maglev { Algorithm::Maglev } else { Algorithm::Random })
            .health_check_node_port(number(30_999));
        for text in &self.cluster_ips {
            builder = builder.cluster_ip(address(text));
        }
        for text in &self.external_ips {
            builder = builder.external_ip(address(text));
        }
        for text in &self.load_balancer_ips {
            builder = builder.load_balancer_ip(address(text));
        }
        for text in &self.source_ranges {
            builder = builder.source_range(text.parse::<IpNet>().unwrap());
        }
        if self.bad_source_range {
            builder = builder.unreadable_source_range();
        }
        for port in &self.ports {
            let built = ServicePort::new(port.name, port.protocol, number(port.port));
            builder = builder.port(match port.node_port {
                Some(node_port) => built.with_node_port(number(node_port)),
                None => built,
            });
        }
        if let Some(seconds) = self.affinity {
            builder = builder.affinity(Affinity::new(seconds).unwrap());
        }
        if let Some(created) = self.created {
            builder = builder.created(created);
        }
        builder.build().unwrap()
    }
}

/// The protocol that most ports of a name have, so that slices meet Services.
pub(super) fn any_protocol(name: &'static str) -> impl Strategy<Value = Protocol> {
    let usual = match name {
        "b" => Protocol::Udp,
        "c" => Protocol::Sctp,
        _ => Protocol::Tcp,
    };
    prop_oneof![4 => Just(usual), 1 => select(&Protocol::ALL[..])]
}

fn any_port(name: &'static str) -> impl Strategy<Value = Port> {
    let port = select(&[80, 81, 30_080, 30_080][..]);
    let node_port = option::weighted(0.8, select(&[30_080, 30_081][..]));
    (any_protocol(name), port, node_port).prop_map(move |(protocol, port, node_port)| Port {
        name,
        protocol,
        port,
        node_port,
    })
}

/// One unnamed port, or some named ones.
fn any_ports() -> impl Strategy<Value = Vec<Port>> {
    let named = vec(select(&["a", "b", "c"][..]).prop_flat_map(any_port), 1..4);
    prop_oneof![1 => any_port("").prop_map(|port| vec![port]), 3 => named]
}

/// Leaves out what the API would refuse.
fn fit(service_type: ServiceType, ports: Vec<Port>) -> Vec<Port> {
    let (mut names, mut numbers, mut node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut fitting = Vec::new();
    for mut port in ports {
        if names.contains(port.name) || !numbers.insert((port.port, port.protocol)) {
            continue;
        }
        names.insert(port.name);
        let allowed = |node_port: &u16| {
            service_type != ServiceType::ClusterIp && node_ports.insert((*node_port, port.protocol))
        };
        port.node_port = port.node_port.filter(allowed);
        fitting.push(port);
    }
    fitting
}

fn any_policy(local: u32) -> impl Strategy<Value = TrafficPolicy> {
    percent(local).prop_map(|local| if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster })
}

pub(crate) fn any_service() -> impl Strategy<Value = Svc> {
    const V4: &[&str] = &["10.96.0.1", "10.96.0.2", "10.96.0.3", "10.96.0.4", "10.96.0.5"];
    const V6: &[&str] = &["fd00:96::1", "fd00:96::2", "fd00:96::3"];
    const EXTERNAL: &[&str] = &["192.0.2.1", "198.51.100.1", "198.51.100.2", "fd00:1::1", "2001:db8::1"];
    const LOAD_BALANCER: &[&str] = &["198.51.100.1", "203.0.113.1", "2001:db8::1", "2001:db8::2"];
    const RANGES: &[&str] = &[
        "10.0.0.0/24",
        "10.244.1.0/24",
        "172.16.0.0/12",
        "172.16.0.7/32",
        "0.0.0.0/0",
        "128.0.0.0/1",
        "fd00:1::/64",
        "2001:db8:f::/48",
        "::/0",
    ];
    let cluster_ips = prop_oneof![
        4 => select(V4).prop_map(|v4| vec![v4]),
        1 => select(V6).prop_map(|v6| vec![v6]),
        2 => (select(V4), select(V6)).prop_map(|(v4, v6)| vec![v4, v6]),
        2 => (select(V4), select(V6)).prop_map(|(v4, v6)| vec![v6, v4]),
    ];
    let types = select(&[ServiceType::ClusterIp, ServiceType::NodePort, ServiceType::LoadBalancer][..]);
    let external_ips = prop_oneof![1 => Just(vec![]), 1 => some_of(EXTERNAL, 2)];
    let load_balancer_ips = prop_oneof![1 => Just(vec![]), 2 => some_of(LOAD_BALANCER, 2)];
    let ranges = prop_oneof![1 => Just(vec![]), 1 => some_of(RANGES, 3)];
    let addresses = (cluster_ips, external_ips, load_balancer_ips, ranges, percent(20));
    let rest = (
        any_policy(30),
        any_policy(50),
        option::weighted(0.3, select(&[10, 100, 10_800][..])),
        percent(10),
        select(&[None, Some(1), Some(2)][..]),
    );
    (any_name(&["x", "y", "z"]), types, any_ports(), addresses, rest).prop_map(
        |(name, service_type, ports, addresses, (internal, external, affinity, maglev, created))| {
            let (cluster_ips, external_ips, load_balancer_ips, source_ranges, bad_source_range) = addresses;
            Svc {
                name,
                service_type,
                cluster_ips,
                external_ips,
                load_balancer_ips,
                source_ranges,
                bad_source_range,
                ports: fit(service_type, ports),
                internal,
                external,
                affinity,
                maglev,
                created,
            }
        },
    )
}
