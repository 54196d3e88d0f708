//! The declared cluster, and the reference datapath that it is programmed into.

use std::{collections::BTreeMap, error::Error, sync::Arc};

use futures::executor::block_on;
use ipnet::IpNet;
use kubenet_core::{
    cluster::{Change, Cluster, FrontendConflict},
    datapath::Datapath,
    model::{EndpointSlice, NodeInfo, ObjectName, Service},
    route::{Route, ServicePortName},
};
use kubenet_examples::{manifests, trace::Dialled};
use kubenet_testkit::memory::MemoryDatapath;

use crate::args::Args;

pub(crate) struct Model {
    pub(crate) node: NodeInfo,
    pub(crate) cluster: Cluster,
    pub(crate) datapath: MemoryDatapath,
    pub(crate) conflicts: Vec<FrontendConflict>,
    /// Those of the node itself, where a Node declares them.
    pub(crate) pod_cidrs: Vec<IpNet>,
    services: BTreeMap<ObjectName, Service>,
    slices: BTreeMap<ObjectName, Vec<EndpointSlice>>,
}

impl Model {
    /// Reads the manifests, and programs what they mean.
    pub(crate) fn load(args: &Args) -> Result<Self, Box<dyn Error>> {
        let manifests = manifests::load(&args.manifests)?;
        let node = args.node.node(&manifests.nodes)?;
        if node.addresses().is_empty() {
            eprintln!("note: the node has no address: node ports answer nowhere. Give --node-ip, or a Node");
        }

        let declared = manifests.nodes.iter().find(|declared| declared.name() == node.name());
        let pod_cidrs = declared.map(|declared| declared.pod_cidrs().to_vec()).unwrap_or_default();

        let mut cluster = Cluster::new(node.clone());
        let services = manifests.services.iter().map(|s| (s.name().clone(), s.clone())).collect();
        let mut slices: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for slice in &manifests.slices {
            slices.entry(slice.service().clone()).or_default().push(slice.clone());
        }
        cluster.change(Change::from(manifests));
        cluster.take_delta();
        let datapath = MemoryDatapath::new();
        let report = block_on(datapath.replace(Arc::clone(cluster.table())))?;
        for failed in report.failed {
            eprintln!("not served: {} ({}): {}", failed.frontend, failed.service_port, failed.error);
        }
        let conflicts = cluster.conflicts();
        for FrontendConflict { frontend, winner, loser } in &conflicts {
            eprintln!("note: {frontend} belongs to {winner}, the older claim, and not to {loser}");
        }
        Ok(Self { node, cluster, datapath, conflicts, pod_cidrs, services, slices })
    }

    /// What serves the flow.
    pub(crate) fn route(&self, Dialled { to, port, protocol, .. }: &Dialled) -> Option<&Route> {
        self.cluster.table().lookup(*to, *port, *protocol).map(|route| &**route)
    }

    /// The Service that a route comes from, and its slices.
    pub(crate) fn origin_of(&self, route: &Route) -> Option<(&Service, &[EndpointSlice])> {
        let ServicePortName { namespace, service, .. } = &route.service_port;
        let name = ObjectName::new("Service", namespace, service).ok()?;
        let slices = self.slices.get(&name).map_or(&[][..], Vec::as_slice);
        Some((self.services.get(&name)?, slices))
    }
}
