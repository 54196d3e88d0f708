use std::sync::Arc;

use futures::{Stream, StreamExt};
use k8s_openapi::{
    api::{
        core::v1::{Node, Service},
        discovery::v1::EndpointSlice,
    },
    jiff::Timestamp,
};
use kube::{
    Resource,
    runtime::watcher::{Error, Event},
};
use kubenet_core::{
    cluster::Change,
    kubernetes::{Converter, Intake, Taken},
    model::{InvalidObject, NodeInfo},
    router::{RouterError, ServiceRouter},
};
use tracing::{info, warn};

use super::{
    config::Config,
    health::Health,
    metrics::Metrics,
    progress::{Progress, Subject},
    raw::Raw,
    reports::{Report, Reports},
};

/// What a watch delivers.
pub(super) enum Delivery {
    Service(Result<Event<Raw<Service>>, Error>),
    Slice(Result<Event<Raw<EndpointSlice>>, Error>),
    Node(Result<Event<Raw<Node>>, Error>),
}

/// Hands what the watches deliver to the router.
pub(super) struct Feed {
    config: Arc<Config>,
    router: Arc<ServiceRouter>,
    progress: Arc<Progress>,
    metrics: Metrics,
    reports: Reports,
    health: Arc<Health>,
    started: Timestamp,
    intake: Intake,
    services: Listing,
    slices: Listing,
    node: NodeState,
    synced: bool,
}

/// A list that is being read.
#[derive(Default)]
struct Listing {
    is_open: bool,
    /// What it changes. The router gets all of it at once, so that nothing moves through a state that never was.
    held: Vec<(Change, Subject)>,
}

/// What is known of the node's object.
#[derive(Default)]
struct NodeState {
    info: Option<NodeInfo>,
    /// Whether the current list named it.
    is_named: bool,
    was_listed: bool,
    problem: Option<InvalidObject>,
}

/// When the control plane saw the reason for a slice's change.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

impl Feed {
    pub(super) fn new(
        config: Arc<Config>,
        router: Arc<ServiceRouter>,
        progress: Arc<Progress>,
        metrics: Metrics,
        reports: Reports,
        health: Arc<Health>,
    ) -> Self {
        let converter = match &config.service_proxy_name {
            Some(name) => Converter::new().service_proxy_name(name.as_str()),
            None => Converter::new(),
        };
        Self {
            config,
            router,
            progress,
            metrics,
            reports,
            health,
            started: Timestamp::now(),
            intake: Intake::new(converter),
            services: Listing::default(),
            slices: Listing::default(),
            node: NodeState::default(),
            synced: false,
        }
    }

    /// Runs until the router is closed.
    pub(super) async fn run(mut self, deliveries: impl Stream<Item = Delivery>) -> RouterError {
        let mut deliveries = std::pin::pin!(deliveries);
        while let Some(delivery) = deliveries.next().await {
            if let Err(error) = self.take(delivery) {
                return error;
            }
        }
        RouterError::Closed
    }

    fn take(&mut self, delivery: Delivery) -> Result<(), RouterError> {
        match delivery {
            Delivery::Service(Ok(event)) => self.service(event)?,
            Delivery::Slice(Ok(event)) => self.slice(event)?,
            Delivery::Node(Ok(event)) => self.node(event)?,
            Delivery::Service(Err(_)) => self.failed("Service"),
            Delivery::Slice(Err(_)) => self.failed("EndpointSlice"),
            Delivery::Node(Err(_)) => self.failed("Node"),
        }
        if !self.synced && self.intake.is_complete() && self.node.was_listed {
            self.synced = true;
            info!("Services, EndpointSlices and the Node are listed: the kernel is programmed from now on");
            self.router.synced()?;
        }
        Ok(())
    }

    fn failed(&self, kind: &str) {
        self.metrics.watch_failures.with_label_values(&[kind]).inc();
    }

    fn service(&mut self, event: Event<Raw<Service>>) -> Result<(), RouterError> {
        let taken = match event {
            Event::Init => {
                self.services.is_open = true;
                self.intake.begin_services();
                return Ok(());
            }
            Event::InitDone => {
                self.services.is_open = false;
                self.metrics.lists.with_label_values(&["Service"]).inc();
                self.intake.end_services()
            }
            Event::InitApply(raw) | Event::Apply(raw) => {
                let taken = self.intake.service_json(&raw.object);
                self.report(&raw, &taken);
                taken
            }
            Event::Delete(raw) => self.intake.service_gone(raw.namespace(), raw.name()),
        };
        self.metrics.service_changes.inc_by(taken.changes.len() as u64);
        let changes = taken.changes.into_iter().map(|change| (change, Subject::Service));
        self.services.held.extend(changes);
        self.metrics.refused.set(i64::try_from(self.intake.refused()).unwrap_or(i64::MAX));
        if self.services.is_open {
            return Ok(());
        }
        let changes = std::mem::take(&mut self.services.held);
        self.submit(changes)
    }

    fn slice(&mut self, event: Event<Raw<EndpointSlice>>) -> Result<(), RouterError> {
        let mut triggered = None;
        let taken = match event {
            Event::Init => {
                self.slices.is_open = true;
                self.intake.begin_endpoint_slices();
                return Ok(());
            }
            Event::InitDone => {
                self.slices.is_open = false;
                self.metrics.lists.with_label_values(&["EndpointSlice"]).inc();
                self.intake.end_endpoint_slices()
            }
            Event::InitApply(raw) | Event::Apply(raw) => {
                triggered = self.triggered(&raw);
                let taken = self.intake.endpoint_slice_json(&raw.object);
                self.report(&raw, &taken);
                taken
            }
            Event::Delete(raw) => self.intake.endpoint_slice_gone(raw.namespace(), raw.name()),
        };
        self.metrics.endpoint_changes.inc_by(taken.changes.len() as u64);
        let changes = taken.changes.into_iter().map(|change| {
            let triggered = match &change {
                Change::EndpointSlice(slice) => triggered.map(|time| (time, slice.family())),
                _ => None,
            };
            (change, Subject::Slice { triggered })
        });
        self.slices.held.extend(changes);
        self.metrics.refused.set(i64::try_from(self.intake.refused()).unwrap_or(i64::MAX));
        if self.slices.is_open {
            return Ok(());
        }
        let changes = std::mem::take(&mut self.slices.held);
        self.submit(changes)
    }

    /// What happened before the start says nothing about us.
    fn triggered(&self, slice: &Raw<EndpointSlice>) -> Option<Timestamp> {
        let time: Timestamp = slice.annotation(TRIGGER_TIME)?.parse().ok()?;
        (time > self.started).then_some(time)
    }

    fn node(&mut self, event: Event<Raw<Node>>) -> Result<(), RouterError> {
        match event {
            Event::Init => self.node.is_named = false,
            Event::InitApply(raw) | Event::Apply(raw) => {
                self.node.is_named = true;
                return self.node_is(&raw);
            }
            Event::InitDone => {
                self.metrics.lists.with_label_values(&["Node"]).inc();
                self.node.was_listed = true;
                if !self.node.is_named {
                    self.node_gone();
                }
            }
            Event::Delete(_) => self.node_gone(),
        }
        Ok(())
    }

    fn node_is(&mut self, raw: &Raw<Node>) -> Result<(), RouterError> {
        let converted = serde_json::from_value::<Node>(raw.object.clone())
            .map_err(|error| InvalidObject::new(format!("Node {}", raw.name()), "", "", error.to_string()))
            .and_then(|node| {
                self.health.set_eligibility(Some(&node));
                self.config.node(NodeInfo::try_from(&node)?)
            });
        match converted {
            Ok(info) => {
                self.node.problem = None;
                self.health.set_node(&info);
                self.metrics.set_node(&info);
                if self.node.info.as_ref() != Some(&info) {
                    self.node.info = Some(info.clone());
                    self.submit(vec![(Change::Node(info), Subject::Node)])?;
                }
            }
            Err(problem) => {
                if self.node.problem.as_ref() != Some(&problem) {
                    self.node.problem = Some(problem.clone());
                    self.refused(raw, &problem);
                }
            }
        }
        Ok(())
    }

    /// What is known of it stays: its traffic is not gone.
    fn node_gone(&mut self) {
        self.health.set_eligibility(None);
        warn!(node = self.config.node_name, "the cluster has no Node object of this name");
    }

    fn submit(&mut self, changes: Vec<(Change, Subject)>) -> Result<(), RouterError> {
        if changes.is_empty() {
            return Ok(());
        }
        let (changes, subjects): (Vec<_>, Vec<_>) = changes.into_iter().unzip();
        self.progress.submitting(subjects);
        self.metrics.queued();
        self.router.submit_all(changes)
    }

    /// Says in the log and in Kubernetes Events what is wrong with an object.
    fn report<K: Resource<DynamicType = ()>>(&self, raw: &Raw<K>, taken: &Taken) {
        for problem in &taken.problems {
            self.refused(raw, problem);
        }
        for notice in &taken.notices {
            warn!("{notice}");
            self.tell(raw, "Ignored", &notice.field, notice.to_string());
        }
    }

    fn refused<K: Resource<DynamicType = ()>>(&self, raw: &Raw<K>, problem: &InvalidObject) {
        warn!("{problem}; the last good state stays");
        self.tell(raw, "Refused", &problem.field, problem.to_string());
    }

    fn tell<K: Resource<DynamicType = ()>>(
        &self,
        raw: &Raw<K>,
        reason: &'static str,
        field: &str,
        note: String,
    ) {
        let mut regarding = raw.object_ref(&());
        regarding.resource_version = raw.meta().resource_version.clone();
        regarding.field_path = Some(field.to_owned()).filter(|field| !field.is_empty());
        self.reports.tell(Report { regarding, related: None, reason, action: "Read", note });
    }
}
