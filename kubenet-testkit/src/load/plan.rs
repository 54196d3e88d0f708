//! One Service in few bytes, and the objects that it is declared by.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use kubenet_core::model::{
    Affinity, Conditions, Endpoint, EndpointPort, EndpointSlice, InvalidObject, IpFamily, ObjectName,
    Protocol, Service, ServicePort, ServiceType, TrafficPolicy,
};

use super::{
    BOTH, Load,
    names::{Nodes, Use, address},
};

/// Each of these as two or three would choose it.
const PORTS: &[&[(&str, Protocol, u16, u16)]] = &[
    &[("", Protocol::Tcp, 80, 8080)],
    &[("http", Protocol::Tcp, 80, 8080), ("https", Protocol::Tcp, 443, 8443)],
    &[("dns", Protocol::Udp, 53, 5353), ("dns-tcp", Protocol::Tcp, 53, 5353)],
    &[("grpc", Protocol::Tcp, 50_051, 50_051)],
    &[("diameter", Protocol::Sctp, 3868, 3868)],
];
const PORT_WEIGHTS: &[u32] = &[60, 20, 10, 9, 1];
const V4: &[IpFamily] = &[IpFamily::V4];
const V6: &[IpFamily] = &[IpFamily::V6];
const SIX_FIRST: &[IpFamily] = &[IpFamily::V6, IpFamily::V4];
const FAMILIES: &[&[IpFamily]] = &[V4, BOTH, SIX_FIRST, V6];
const TYPES: &[ServiceType] = &[ServiceType::ClusterIp, ServiceType::NodePort, ServiceType::LoadBalancer];
const SLICE_SIZES: &[usize] = &[100, 4];
/// Some customers, and the nodes.
const SOURCE_RANGES: &[IpNet] = &[
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 0), 24)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 24)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0), 64)),
];

/// How many pods a Service of so many endpoints may have, those that come and go included.
pub(super) const fn most_pods(endpoints: u32) -> u32 {
    endpoints * 2 + 4
}

#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) number: u32,
    pub(super) exists: bool,
    /// Of its cluster IPs, and of its other addresses, should it have them.
    pub(super) address: u32,
    created: i64,
    pub(super) families: &'static [IpFamily],
    pub(super) service_type: ServiceType,
    ports: &'static [(&'static str, Protocol, u16, u16)],
    pub(super) node_ports: Vec<u32>,
    pub(super) internal: TrafficPolicy,
    pub(super) external: TrafficPolicy,
    pub(super) affinity: Option<Affinity>,
    pub(super) has_external_ip: bool,
    pub(super) has_load_balancer: bool,
    pub(super) has_source_ranges: bool,
    pub(super) hints: HintsFor,
    slice_size: usize,
    slices: Vec<Vec<Pod>>,
}

/// What the control plane makes of `spec.trafficDistribution`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HintsFor {
    Nobody,
    Zones,
    Nodes,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Pod {
    pub(super) number: u32,
    node: u32,
    pub(super) state: PodState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PodState {
    Starting,
    Ready,
    Terminating,
}

impl Load {
    /// Gives a Service that does not exist a new life, with as many ready pods as the options say.
    pub(super) fn declare(&mut self, plan: &mut Plan) {
        let Some(address) = self.addresses.take() else { return };
        self.now += 1;
        let random = &mut self.random;
        let mut percent = |share: u32| random.u32(0..100) < share;
        let local = |yes: bool| if yes { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        plan.exists = true;
        plan.address = address;
        plan.created = self.now;
        plan.internal = local(percent(5));
        plan.external = local(percent(30));
        plan.affinity = percent(5).then(Affinity::default);
        plan.has_external_ip = percent(3);
        plan.has_load_balancer = percent(90);
        plan.has_source_ranges = percent(30);
        plan.families = pick(random, FAMILIES, &[75, 15, 5, 5]);
        plan.service_type = pick(random, TYPES, &[75, 13, 12]);
        plan.ports = pick(random, PORTS, PORT_WEIGHTS);
        plan.hints = pick(random, &[HintsFor::Nobody, HintsFor::Zones, HintsFor::Nodes], &[80, 15, 5]);
        plan.slice_size = pick(random, SLICE_SIZES, &[90, 10]);
        if plan.service_type != ServiceType::ClusterIp {
            // One more for the health check.
            plan.node_ports = (0..=plan.ports.len()).map_while(|_| self.node_ports.take()).collect();
        }
        for _ in 0..self.endpoints {
            self.add_pod(plan, PodState::Ready);
        }
    }

    /// Adds a pod on any node, and says to which slice.
    pub(super) fn add_pod(&mut self, plan: &mut Plan, state: PodState) -> Option<(usize, Pod)> {
        let pod = Pod { number: self.pods.take()?, node: self.random.u32(0..self.nodes.len()), state };
        let room = plan.slices.iter().position(|pods| pods.len() < plan.slice_size);
        let index = room.unwrap_or_else(|| {
            plan.slices.push(Vec::new());
            plan.slices.len() - 1
        });
        plan.slices.get_mut(index)?.push(pod);
        Some((index, pod))
    }
}

/// One of several, in proportion to their weights.
pub(super) fn pick<T: Copy>(random: &mut fastrand::Rng, of: &[T], weights: &[u32]) -> T {
    let mut at = random.u32(0..weights.iter().sum());
    let mut chosen = 0;
    while at >= weights[chosen] {
        at -= weights[chosen];
        chosen += 1;
    }
    of[chosen]
}

impl Plan {
    pub(super) fn absent(number: u32) -> Self {
        Self {
            number,
            exists: false,
            address: 0,
            created: 0,
            families: V4,
            service_type: ServiceType::ClusterIp,
            ports: PORTS[0],
            node_ports: Vec::new(),
            internal: TrafficPolicy::Cluster,
            external: TrafficPolicy::Cluster,
            affinity: None,
            has_external_ip: false,
            has_load_balancer: false,
            has_source_ranges: false,
            hints: HintsFor::Nobody,
            slice_size: SLICE_SIZES[0],
            slices: Vec::new(),
        }
    }

    /// Its slices that exist: those that are not empty, and the first.
    pub(super) fn slices(&self) -> impl Iterator<Item = usize> + use<> {
        let exist = |(i, pods): (usize, &Vec<Pod>)| (i == 0 || !pods.is_empty()).then_some(i);
        let found: Vec<_> = self.slices.iter().enumerate().filter_map(exist).collect();
        found.into_iter()
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.slices.iter().flatten()
    }

    /// A pod, and the slice that it is in.
    pub(super) fn pod_mut(&mut self, number: u32) -> Option<(usize, &mut Pod)> {
        let numbered = self.slices.iter_mut().enumerate();
        numbered.flat_map(|(i, pods)| pods.iter_mut().map(move |p| (i, p))).find(|(_, p)| p.number == number)
    }

    /// Removes a pod, and says from which slice, and whether that one is gone, too.
    pub(super) fn remove_pod(&mut self, number: u32) -> Option<(usize, bool)> {
        let (index, _) = self.pod_mut(number)?;
        let pods = self.slices.get_mut(index)?;
        pods.retain(|pod| pod.number != number);
        Some((index, index > 0 && pods.is_empty()))
    }

    /// Ends the Service. Its pods go with it.
    pub(super) fn end(&mut self) -> Vec<Pod> {
        self.exists = false;
        std::mem::take(&mut self.slices).into_iter().flatten().collect()
    }

    fn namespace(&self) -> String {
        format!("team-{}", self.number % 16)
    }

    fn name(&self) -> String {
        format!("service-{}", self.number)
    }

    fn slice_name(&self, index: usize, family: IpFamily) -> String {
        format!("{}-{}-{index}", self.name(), family.as_str().to_ascii_lowercase())
    }

    pub(super) fn object_name(&self) -> Option<ObjectName> {
        ObjectName::new("Service", &self.namespace(), &self.name()).ok()
    }

    pub(super) fn slice_object_name(&self, index: usize, family: IpFamily) -> Option<ObjectName> {
        ObjectName::new("EndpointSlice", &self.namespace(), &self.slice_name(index, family)).ok()
    }

    /// The Service as an object; `None` where it does not exist.
    pub(super) fn service(&self) -> Option<Result<Service, InvalidObject>> {
        self.exists.then(|| self.build_service())
    }

    fn build_service(&self) -> Result<Service, InvalidObject> {
        let is_external = self.service_type != ServiceType::ClusterIp;
        let is_load_balancer = self.service_type == ServiceType::LoadBalancer;
        let mut builder = Service::builder(self.namespace(), self.name())
            .service_type(self.service_type)
            .internal_traffic_policy(self.internal)
            .created(self.created);
        for family in self.families {
            builder = builder.cluster_ip(address(Use::Cluster, *family, self.address));
            if self.has_external_ip {
                builder = builder.external_ip(address(Use::External, *family, self.address));
            }
            if is_load_balancer && self.has_load_balancer {
                builder = builder.load_balancer_ip(address(Use::LoadBalancer, *family, self.address));
            }
        }
        if is_external || self.has_external_ip {
            builder = builder.external_traffic_policy(self.external);
        }
        if is_load_balancer && self.has_source_ranges {
            builder = SOURCE_RANGES.iter().fold(builder, |builder, range| builder.source_range(*range));
        }
        if let Some(affinity) = self.affinity {
            builder = builder.affinity(affinity);
        }
        let mut node_ports =
            self.node_ports.iter().filter_map(|number| u16::try_from(*number).ok().and_then(NonZeroU16::new));
        for (name, protocol, number, _) in self.ports {
            let Some(number) = NonZeroU16::new(*number) else { continue };
            let port = ServicePort::new(name, *protocol, number);
            builder = builder.port(match node_ports.next() {
                Some(node_port) if is_external => port.with_node_port(node_port),
                _ => port,
            });
        }
        if let Some(port) = node_ports.next().filter(|_| is_load_balancer) {
            builder = builder.health_check_node_port(port);
        }
        builder.build()
    }

    /// One slice as an object; `None` where it does not exist.
    pub(super) fn slice(
        &self,
        nodes: &Nodes,
        index: usize,
        family: IpFamily,
    ) -> Option<Result<EndpointSlice, InvalidObject>> {
        let pods = self.slices.get(index)?;
        let mut builder =
            EndpointSlice::builder(self.namespace(), self.slice_name(index, family), self.name(), family);
        for (name, protocol, _, target) in self.ports {
            builder = builder.port(EndpointPort {
                name: (*name).into(),
                protocol: *protocol,
                port: NonZeroU16::new(*target),
            });
        }
        Some(builder.endpoints(pods.iter().map(|pod| self.endpoint(nodes, family, pod))).build())
    }

    fn endpoint(&self, nodes: &Nodes, family: IpFamily, pod: &Pod) -> Endpoint {
        let (ready, serving, terminating) = match pod.state {
            PodState::Starting => (false, false, false),
            PodState::Ready => (true, true, false),
            PodState::Terminating => (false, true, true),
        };
        let mut endpoint = Endpoint::new(address(Use::Pod, family, pod.number))
            .named(&format!("{}-{:x}", self.name(), pod.number))
            .with_conditions(Conditions { ready, serving, terminating });
        if let Some(node) = nodes.get(pod.node) {
            endpoint.node_name = Some(Arc::clone(&node.name));
            endpoint.hints = match self.hints {
                HintsFor::Nobody => None,
                HintsFor::Zones => Some(Arc::clone(&node.for_zone)),
                HintsFor::Nodes => Some(Arc::clone(&node.for_node)),
            };
        }
        endpoint
    }
}
