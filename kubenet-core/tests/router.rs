//! The router against the in-memory datapath, and against one that fails where told.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::{executor::block_on, stream, stream::BoxStream};
use kubenet_core::{
    cluster::Change,
    datapath::{
        ApplyReport, Capabilities, Close, Counters, Datapath, DatapathError, DatapathEvent, DrainStatus,
        ErrorKind, FailedRoute,
    },
    model::{Endpoint, EndpointPort, EndpointSlice, IpFamily, NodeInfo, Protocol, Service, ServicePort},
    route::{RouteDelta, RouteTable},
    router::{RouterError, RouterOptions, ServiceRouter},
};
use kubenet_testkit::memory::MemoryDatapath;
use parking_lot::Mutex;

/// Counts what reaches a memory datapath, and fails where told.
#[derive(Debug, Default)]
struct Scripted {
    memory: MemoryDatapath,
    script: Mutex<Script>,
}

#[derive(Debug, Default)]
struct Script {
    /// Errors for the next calls of `apply` and `replace`, in order.
    fail: Vec<ErrorKind>,
    /// Routes of this Service fail alone, so many times.
    fail_route: Option<(&'static str, u32)>,
    replaces: u32,
    applies: u32,
    drains: u32,
    flows: u64,
    closed: Option<Close>,
}

impl Scripted {
    fn next_error(&self) -> Result<(), DatapathError> {
        let mut script = self.script.lock();
        if script.fail.is_empty() {
            return Ok(());
        }
        let kind = script.fail.remove(0);
        Err(DatapathError::new("scripted", "apply", kind, "wanted by the test"))
    }

    fn fail_routes(&self, delta: &RouteDelta, report: &mut ApplyReport) {
        let mut script = self.script.lock();
        let Some((service, times)) = &mut script.fail_route else { return };
        for route in delta.upserts.iter().filter(|route| &*route.service_port.service == *service) {
            if *times > 0 {
                *times -= 1;
                report.failed.push(FailedRoute {
                    frontend: route.frontend,
                    service_port: route.service_port.clone(),
                    error: DatapathError::new("scripted", "apply", ErrorKind::Capacity, "wanted by the test"),
                });
            }
        }
    }
}

#[async_trait]
impl Datapath for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn capabilities(&self) -> &Capabilities {
        self.memory.capabilities()
    }

    async fn replace(&self, table: Arc<RouteTable>) -> Result<ApplyReport, DatapathError> {
        self.script.lock().replaces += 1;
        self.next_error()?;
        self.memory.replace(table).await
    }

    async fn apply(&self, delta: Arc<RouteDelta>) -> Result<ApplyReport, DatapathError> {
        self.script.lock().applies += 1;
        self.next_error()?;
        let mut report = self.memory.apply(Arc::clone(&delta)).await?;
        self.fail_routes(&delta, &mut report);
        Ok(report)
    }

    async fn read(&self) -> Result<RouteTable, DatapathError> {
        self.memory.read().await
    }

    async fn counters(&self) -> Result<Counters, DatapathError> {
        self.memory.counters().await
    }

    async fn drain(&self) -> Result<DrainStatus, DatapathError> {
        let mut script = self.script.lock();
        script.drains += 1;
        Ok(DrainStatus { flows: script.flows })
    }

    async fn close(&self, how: Close) -> Result<(), DatapathError> {
        self.script.lock().closed = Some(how);
        self.memory.close(how).await
    }

    fn events(&self) -> BoxStream<'static, DatapathEvent> {
        self.memory.events()
    }
}

fn service(name: &str, ip: &str) -> Service {
    Service::builder("demo", name)
        .cluster_ip(ip.parse().unwrap())
        .port(ServicePort::new("", Protocol::Tcp, 80.try_into().unwrap()))
        .build()
        .unwrap()
}

fn slice(service: &str, address: &str) -> EndpointSlice {
    EndpointSlice::builder("demo", format!("{service}-1"), service, IpFamily::V4)
        .port(EndpointPort::new("", Protocol::Tcp, 8080.try_into().unwrap()))
        .endpoint(Endpoint::new(address.parse().unwrap()))
        .build()
        .unwrap()
}

fn node() -> NodeInfo {
    NodeInfo::builder("node-a").address("10.0.0.1".parse().unwrap()).build().unwrap()
}

fn fast() -> RouterOptions {
    let mut options = RouterOptions::default();
    options.retry_min = Duration::from_millis(5);
    options.retry_max = Duration::from_millis(20);
    options.drain_poll = Duration::from_millis(5);
    options
}

fn start(script: Script) -> (ServiceRouter, Arc<Scripted>) {
    let datapath = Arc::new(Scripted { script: Mutex::new(script), ..Scripted::default() });
    let router = ServiceRouter::start_with(node(), Arc::clone(&datapath) as _, fast()).unwrap();
    (router, datapath)
}

/// Waits for what the router does on its own.
fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn k0_nothing_is_written_before_everything_was_listed_once() {
    let (router, datapath) = start(Script::default());
    router.submit(service("a", "10.96.0.1")).unwrap();
    assert!(matches!(block_on(router.flush()), Err(RouterError::NotSynced)));
    assert_eq!(datapath.script.lock().replaces, 0);
    router.synced().unwrap();
    let status = block_on(router.flush()).unwrap();
    assert!(status.is_healthy());
    assert_eq!((status.services, status.routes), (1, 1));
}

#[test]
fn a_snapshot_is_complete_by_itself() {
    let (router, datapath) = start(Script::default());
    let slices = vec![slice("a", "10.244.1.2")];
    router.submit(Change::Snapshot { services: vec![service("a", "10.96.0.1")], slices }).unwrap();
    eventually("the snapshot is applied without being asked", || router.status().is_healthy());
    assert_eq!(datapath.script.lock().replaces, 1);
    assert_eq!(block_on(datapath.read()).unwrap().len(), 1);
}

#[test]
fn k1_a_burst_is_one_update() {
    let (router, datapath) = start(Script::default());
    router.synced().unwrap();
    block_on(router.flush()).unwrap();
    let burst = (1..=200).map(|i| Change::from(service(&format!("s{i}"), &format!("10.96.1.{i}"))));
    router.submit_all(burst).unwrap();
    block_on(router.flush()).unwrap();
    assert_eq!(datapath.script.lock().applies, 1);
    assert_eq!(router.status().routes, 200);
}

#[test]
fn a_stream_feeds_the_router() {
    let (router, _) = start(Script::default());
    let changes = [Change::from(service("a", "10.96.0.1")), Change::from(slice("a", "10.244.1.2"))];
    block_on(router.follow(stream::iter(changes))).unwrap();
    router.synced().unwrap();
    assert_eq!(block_on(router.flush()).unwrap().routes, 1);
}

#[test]
fn a_failed_update_is_reported_and_retried_with_everything_that_came_meanwhile() {
    let (router, datapath) = start(Script::default());
    router.synced().unwrap();
    block_on(router.flush()).unwrap();
    datapath.script.lock().fail = vec![ErrorKind::Unavailable; 3];
    router.submit(service("a", "10.96.0.1")).unwrap();
    let error = block_on(router.flush()).unwrap_err();
    assert!(error.to_string().contains("wanted by the test"), "{error}");
    router.submit(service("b", "10.96.0.2")).unwrap();
    eventually("the retry succeeds", || router.status().is_healthy());
    assert_eq!(block_on(datapath.read()).unwrap().len(), 2);
    assert_eq!(datapath.script.lock().replaces, 1, "deltas were enough");
}

#[test]
fn a_conflict_is_resolved_by_a_full_replacement() {
    let (router, datapath) = start(Script::default());
    router.synced().unwrap();
    block_on(router.flush()).unwrap();
    datapath.script.lock().fail = vec![ErrorKind::Conflict];
    router.submit(service("a", "10.96.0.1")).unwrap();
    assert!(block_on(router.flush()).unwrap().is_healthy());
    assert_eq!(datapath.script.lock().replaces, 2);
}

#[test]
fn a_route_that_fails_alone_is_named_and_retried_alone() {
    let (router, datapath) = start(Script::default());
    router.synced().unwrap();
    block_on(router.flush()).unwrap();
    datapath.script.lock().fail_route = Some(("bad", 2));
    router.submit_all([service("good", "10.96.0.1").into(), service("bad", "10.96.0.2").into()]).unwrap();
    let status = block_on(router.flush()).unwrap();
    assert_eq!(status.failed.len(), 1);
    assert_eq!(&*status.failed[0].service_port.service, "bad");
    assert!(!status.is_healthy());
    eventually("the route is served", || router.status().is_healthy());
    assert_eq!(datapath.script.lock().replaces, 1);
}

#[test]
fn k3_an_audit_finds_and_repairs_what_somebody_changed() {
    let (router, datapath) = start(Script::default());
    router
        .submit(Change::Snapshot { services: vec![service("a", "10.96.0.1")], slices: Vec::new() })
        .unwrap();
    block_on(router.flush()).unwrap();
    assert_eq!(block_on(router.audit()).unwrap(), None);
    let vandal = RouteTable::new(router.status().applied, Arc::default(), []);
    block_on(datapath.memory.replace(Arc::new(vandal))).unwrap();
    let found = block_on(router.audit()).unwrap().unwrap();
    assert!(found.contains("10.96.0.1:80/TCP (demo/a)"), "{found}");
    assert_eq!(block_on(datapath.read()).unwrap().len(), 1);
    assert_eq!(block_on(router.audit()).unwrap(), None);
}

#[test]
fn a_swap_programs_the_new_datapath_then_drains_and_removes_the_old_one() {
    let (router, old) = start(Script { flows: 3, ..Script::default() });
    router
        .submit(Change::Snapshot { services: vec![service("a", "10.96.0.1")], slices: Vec::new() })
        .unwrap();
    block_on(router.flush()).unwrap();
    let new = Arc::new(Scripted::default());
    let report = block_on(router.swap(Arc::clone(&new) as _, Duration::from_secs(60))).unwrap();
    assert_eq!(report.draining_flows, 3);
    assert_eq!(block_on(new.read()).unwrap().len(), 1);
    assert_eq!(router.status().retiring.len(), 1);
    assert_eq!(old.script.lock().closed, None);
    old.script.lock().flows = 0;
    eventually("the old datapath is removed", || router.status().retiring.is_empty());
    assert_eq!(old.script.lock().closed, Some(Close::Remove));
    router.submit(service("b", "10.96.0.2")).unwrap();
    assert!(block_on(router.flush()).unwrap().is_healthy());
    assert_eq!(block_on(new.read()).unwrap().len(), 2);
}

#[test]
fn a_deadline_ends_the_drain() {
    let (router, old) = start(Script { flows: 3, ..Script::default() });
    router.synced().unwrap();
    block_on(router.flush()).unwrap();
    block_on(router.swap(Arc::new(Scripted::default()), Duration::from_millis(20))).unwrap();
    eventually("the old datapath is removed", || old.script.lock().closed == Some(Close::Remove));
}

#[test]
fn a_swap_that_fails_leaves_the_old_datapath_at_work() {
    let (router, old) = start(Script::default());
    router
        .submit(Change::Snapshot { services: vec![service("a", "10.96.0.1")], slices: Vec::new() })
        .unwrap();
    block_on(router.flush()).unwrap();
    let broken = Scripted::default();
    broken.script.lock().fail = vec![ErrorKind::Permission];
    let error = block_on(router.swap(Arc::new(broken), Duration::ZERO)).unwrap_err();
    assert!(matches!(error, RouterError::Datapath(error) if error.kind() == ErrorKind::Permission));
    assert_eq!(old.script.lock().drains, 0);
    router.submit(service("b", "10.96.0.2")).unwrap();
    assert!(block_on(router.flush()).unwrap().is_healthy());
    assert_eq!(block_on(old.read()).unwrap().len(), 2);
}

#[test]
fn a_datapath_swapped_for_itself_goes_on() {
    let (router, datapath) = start(Script { flows: 1, ..Script::default() });
    router.synced().unwrap();
    block_on(router.flush()).unwrap();
    block_on(router.swap(Arc::clone(&datapath) as _, Duration::ZERO)).unwrap();
    assert_eq!(datapath.script.lock().drains, 0);
    assert!(router.status().retiring.is_empty());
}

#[test]
fn a_closed_router_says_so() {
    let (router, datapath) = start(Script::default());
    block_on(router.close(Close::Remove)).unwrap();
    assert_eq!(datapath.script.lock().closed, Some(Close::Remove));
    eventually("the thread has ended", || {
        matches!(router.submit(service("a", "10.96.0.1")), Err(RouterError::Closed))
    });
    assert!(matches!(block_on(router.flush()), Err(RouterError::Closed)));
}

#[test]
fn options_out_of_range_are_named() {
    let mut options = RouterOptions::default();
    options.retry_max = Duration::ZERO;
    let error = ServiceRouter::start_with(node(), Arc::new(MemoryDatapath::new()), options).unwrap_err();
    assert_eq!(error.to_string(), "retry_max: must not be below retry_min");
}
