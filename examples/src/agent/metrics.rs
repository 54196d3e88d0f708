use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kubenet_core::model::{IpFamily, NodeInfo};
use parking_lot::Mutex;
use prometheus::{
    Encoder, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder, exponential_buckets, linear_buckets,
};

/// The agent's metrics.
///
/// What kube-proxy measures, too, has kube-proxy's names, units, labels and buckets, so that dashboards keep
/// working. As there, a label says the address family; one update of ours serves all families of the node and
/// counts for each. The rest begins with `kubenet_`.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    registry: Registry,
    /// Those that the datapath serves.
    all_families: BTreeSet<IpFamily>,
    /// Of these, those that the node has addresses of.
    families: Arc<Mutex<BTreeSet<IpFamily>>>,
    pub(super) sync: HistogramVec,
    pub(super) full_sync: HistogramVec,
    pub(super) partial_sync: HistogramVec,
    pub(super) programming: HistogramVec,
    pub(super) endpoint_changes: IntCounter,
    pub(super) endpoint_changes_pending: IntGauge,
    pub(super) service_changes: IntCounter,
    pub(super) service_changes_pending: IntGauge,
    pub(super) last_sync: GaugeVec,
    pub(super) last_queued: GaugeVec,
    pub(super) no_local_endpoints: IntGaugeVec,
    pub(super) healthz: IntCounterVec,
    pub(super) livez: IntCounterVec,
    pub(super) services: IntGauge,
    pub(super) routes: IntGauge,
    pub(super) failed_routes: IntGauge,
    pub(super) conflicts: IntGauge,
    pub(super) refused: IntGauge,
    pub(super) failed_updates: IntCounter,
    pub(super) drifts: IntCounter,
    pub(super) watch_failures: IntCounterVec,
    pub(super) lists: IntCounterVec,
    pub(super) dropped_events: IntCounter,
    pub(super) datapath: IntGaugeVec,
}

const FAMILY: &str = "ip_family";

impl Metrics {
    pub(super) fn new(families: BTreeSet<IpFamily>) -> prometheus::Result<Self> {
        let registry = Registry::new();
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let new = Maker(&registry);
        Ok(Self {
            sync: new.sync("sync_proxy_rules", "Duration of updates of the kernel")?,
            full_sync: new.sync("sync_full_proxy_rules", "Duration of updates that write all routes")?,
            partial_sync: new
                .sync("sync_partial_proxy_rules", "Duration of updates that write what changed")?,
            programming: new.histogram(
                "kubeproxy_network_programming_duration_seconds",
                "From the change of a pod or Service, as the control plane saw it, until the kernel had it",
                programming_buckets()?,
            )?,
            endpoint_changes: new
                .counter("kubeproxy_sync_proxy_rules_endpoint_changes_total", "Changes of EndpointSlices")?,
            endpoint_changes_pending: new.gauge(
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                "Changes of EndpointSlices that the kernel does not have yet",
            )?,
            service_changes: new
                .counter("kubeproxy_sync_proxy_rules_service_changes_total", "Changes of Services")?,
            service_changes_pending: new.gauge(
                "kubeproxy_sync_proxy_rules_service_changes_pending",
                "Changes of Services that the kernel does not have yet",
            )?,
            last_sync: new.times(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "When the kernel was last brought up to date",
            )?,
            last_queued: new.times(
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "When the last change was queued",
            )?,
            no_local_endpoints: new.gauges(
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
                "Service ports with a Local traffic policy whose endpoints are all on other nodes",
                &["traffic_policy", FAMILY],
            )?,
            healthz: new.counters("kubeproxy_proxy_healthz_total", "Answers of /healthz", &["code"])?,
            livez: new.counters("kubeproxy_proxy_livez_total", "Answers of /livez", &["code"])?,
            services: new.gauge("kubenet_services", "Services that are routed")?,
            routes: new.gauge("kubenet_routes", "Routes: one for each frontend of a Service port")?,
            failed_routes: new.gauge("kubenet_failed_routes", "Routes that the datapath cannot serve")?,
            conflicts: new
                .gauge("kubenet_frontend_conflicts", "Claims of frontends that an older Service has")?,
            refused: new.gauge(
                "kubenet_refused_objects",
                "Objects that break a rule; their last good state is served",
            )?,
            failed_updates: new
                .counter("kubenet_failed_updates_total", "Updates of the kernel that failed")?,
            drifts: new.counter(
                "kubenet_drifts_total",
                "Times that the kernel held something else than programmed",
            )?,
            watch_failures: new.counters(
                "kubenet_watch_failures_total",
                "Failed lists and watches",
                &["kind"],
            )?,
            lists: new.counters("kubenet_lists_total", "Complete lists of a kind of object", &["kind"])?,
            dropped_events: new
                .counter("kubenet_dropped_events_total", "Kubernetes Events that could not be posted")?,
            datapath: new.gauges("kubenet_datapath", "1 for the datapath in use", &["datapath"])?,
            registry,
            families: Arc::new(Mutex::new(families.clone())),
            all_families: families,
        })
    }

    /// The families are those of the node's addresses.
    pub(super) fn set_node(&self, node: &NodeInfo) {
        let on_node: BTreeSet<_> = node.addresses().iter().map(|address| IpFamily::of(*address)).collect();
        if !on_node.is_empty() {
            *self.families.lock() = self.all_families.intersection(&on_node).copied().collect();
        }
    }

    /// An update ended.
    pub(super) fn updated(&self, full: bool, took: Duration) {
        let kind = if full { &self.full_sync } else { &self.partial_sync };
        for family in &*self.families.lock() {
            let family = &[family.as_str()];
            self.sync.with_label_values(family).observe(took.as_secs_f64());
            kind.with_label_values(family).observe(took.as_secs_f64());
            self.last_sync.with_label_values(family).set(now());
        }
    }

    /// Changes were queued.
    pub(super) fn queued(&self) {
        for family in &*self.families.lock() {
            self.last_queued.with_label_values(&[family.as_str()]).set(now());
        }
    }

    /// All metrics in Prometheus' text format.
    pub(super) fn render(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// Seconds since the Unix epoch.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// A quarter and half a second, each second of the first minute, every five of the second, then every thirty.
fn programming_buckets() -> prometheus::Result<Vec<f64>> {
    Ok([
        linear_buckets(0.25, 0.25, 2)?,
        linear_buckets(1.0, 1.0, 59)?,
        linear_buckets(60.0, 5.0, 12)?,
        linear_buckets(120.0, 30.0, 7)?,
    ]
    .concat())
}

/// Makes metrics and registers them.
struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn register<M: prometheus::core::Collector + Clone + 'static>(
        &self,
        metric: prometheus::Result<M>,
    ) -> prometheus::Result<M> {
        let metric = metric?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn sync(&self, name: &str, help: &str) -> prometheus::Result<HistogramVec> {
        let name = format!("kubeproxy_{name}_duration_seconds");
        self.histogram(&name, help, exponential_buckets(0.001, 2.0, 15)?)
    }

    fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> prometheus::Result<HistogramVec> {
        self.register(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), &[FAMILY]))
    }

    fn times(&self, name: &str, help: &str) -> prometheus::Result<GaugeVec> {
        self.register(GaugeVec::new(Opts::new(name, help), &[FAMILY]))
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.register(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.register(IntGauge::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels))
    }
}
