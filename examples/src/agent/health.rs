use std::{io, sync::Arc};

use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kubenet_core::{
    health::{HealthBoard, HealthServer, NodeEligibility, PortProblem},
    model::{NodeInfo, NodePortAddresses},
};

use super::{
    config::Config,
    metrics::Metrics,
    reports::{Report, Reports},
};

/// The health checks, served and kept up to date with the node.
#[derive(Debug)]
pub(super) struct Health {
    board: Arc<HealthBoard>,
    server: HealthServer,
    /// Whether health-check node ports follow the addresses of node ports. Else they are on all addresses.
    follows_addresses: bool,
}

impl Health {
    pub(super) fn serve(
        config: &Config,
        board: Arc<HealthBoard>,
        metrics: &Metrics,
        reports: &Reports,
    ) -> io::Result<Self> {
        let (metrics, reports) = (metrics.clone(), reports.clone());
        let follows_addresses = config.node_port_addresses != NodePortAddresses::All;
        let mut server = HealthServer::builder(Arc::clone(&board))
            .on_answer(move |path, status| {
                let counter = if path == "/healthz" { &metrics.healthz } else { &metrics.livez };
                counter.with_label_values(&[&status.to_string()]).inc();
            })
            .on_problem(move |problem| tell(&reports, problem));
        if let Some(address) = config.healthz_bind_address {
            server = server.healthz(address);
        }
        if follows_addresses {
            // Not known yet.
            server = server.addresses([]);
        }
        Ok(Self { board, server: server.start()?, follows_addresses })
    }

    pub(super) fn server(&self) -> &HealthServer {
        &self.server
    }

    /// Where the node's node ports answer.
    pub(super) fn set_node(&self, node: &NodeInfo) {
        if self.follows_addresses {
            self.server.set_addresses(node.routing().node_port_addresses);
        }
    }

    /// Whether the node may take traffic; without an object of its name it may not.
    pub(super) fn set_eligibility(&self, node: Option<&Node>) {
        self.board.set_node(node.map_or(NodeEligibility::Missing, |node| {
            let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
            NodeEligibility::of(
                node.metadata.deletion_timestamp.is_some(),
                taints.map(|taint| taint.key.as_str()),
            )
        }));
    }
}

/// kube-proxy posts an Event about the Service, too.
fn tell(reports: &Reports, problem: &PortProblem) {
    let Some(service) = &problem.service else { return };
    let regarding = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Service".into()),
        namespace: Some(service.namespace().to_string()),
        name: Some(service.name().to_string()),
        field_path: Some("spec.healthCheckNodePort".into()),
        ..ObjectReference::default()
    };
    reports.tell(Report {
        regarding,
        related: None,
        reason: "HealthCheckFailed",
        action: "Listen",
        note: problem.to_string(),
    });
}
