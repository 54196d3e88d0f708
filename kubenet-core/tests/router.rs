//! The router against the in-memory datapath, and against one that fails where told.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "router/events.rs"]
mod events;
#[path = "router/health.rs"]
mod health;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
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
use kubenet_testkit::{
    faults::{Call, FaultyDatapath},
    memory::{Delivery, Flow, MemoryDatapath},
};
use parking_lot::Mutex;

/// A memory datapath on which routes of one Service fail alone, so many times.
#[derive(Debug)]
struct BadRoute {
    memory: MemoryDatapath,
    service: &'static str,
    times: Mutex<usize>,
}

#[async_trait]
impl Datapath for BadRoute {
    fn name(&self) -> &'static str {
        "bad-route"
    }

    fn capabilities(&self) -> &Capabilities {
        self.memory.capabilities()
    }

    async fn replace(&self, table: Arc<RouteTable>) -> Result<ApplyReport, DatapathError> {
        self.memory.replace(table).await
    }

    async fn apply(&self, delta: Arc<RouteDelta>) -> Result<ApplyReport, DatapathError> {
        let mut report = self.memory.apply(Arc::clone(&delta)).await?;
        let mut times = self.times.lock();
        for route in delta.upserts.iter().filter(|route| &*route.service_port.service == self.service) {
            if *times > 0 {
                *times -= 1;
                report.failed.push(FailedRoute {
                    frontend: route.frontend,
                    service_port: route.service_port.clone(),
                    error: DatapathError::new(
                        "bad-route",
                        "apply",
                        ErrorKind::Capacity,
                        "wanted by the test",
                    ),
                });
            }
        }
        Ok(report)
    }

    async fn read(&self) -> Result<RouteTable, DatapathError> {
        self.memory.read().await
    }

    async fn counters(&self) -> Result<Counters, DatapathError> {
        self.memory.counters().await
    }

    async fn drain(&self) -> Result<DrainStatus, DatapathError> {
        self.memory.drain().await
    }

    async fn close(&self, how: Close) -> Result<(), DatapathError> {
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

/// A memory datapath, and the same with faults for the router.
struct Subject {
    memory: Arc<MemoryDatapath>,
    faulty: Arc<FaultyDatapath>,
}

impl Subject {
    fn new() -> Self {
        let memory = Arc::new(MemoryDatapath::new());
        Self { faulty: Arc::new(FaultyDatapath::new(Arc::clone(&memory) as _)), memory }
    }

    fn datapath(&self) -> Arc<dyn Datapath> {
        Arc::clone(&self.faulty) as _
    }

    fn routes(&self) -> usize {
        block_on(self.memory.read()).unwrap().len()
    }

    fn is_closed(&self) -> bool {
        block_on(self.memory.read()).is_err()
    }
}

fn start() -> (ServiceRouter, Subject) {
    let subject = Subject::new();
    (ServiceRouter::start_with(node(), subject.datapath(), fast()).unwrap(), subject)
}

/// One that serves Service a with one endpoint.
fn serving() -> (ServiceRouter, Subject) {
    let (router, subject) = start();
    let slices = vec![slice("a", "10.244.1.2")];
    router.submit(Change::Snapshot { services: vec![service("a", "10.96.0.1")], slices }).unwrap();
    block_on(router.flush()).unwrap();
    (router, subject)
}

/// A connection to Service a.
fn connection() -> Flow {
    Flow::new("10.244.1.9:4000".parse().unwrap(), "10.96.0.1:80".parse().unwrap(), Protocol::Tcp)
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
    let (router, subject) = start();
    router.submit(service("a", "10.96.0.1")).unwrap();
    assert!(matches!(block_on(router.flush()), Err(RouterError::NotSynced)));
    assert_eq!(Call::ALL.map(|call| subject.faulty.calls(call)), [0; 7]);
    router.synced().unwrap();
    let status = block_on(router.flush()).unwrap();
    assert!(status.is_healthy());
    assert_eq!((status.services, status.routes), (1, 1));
}

#[test]
fn a_snapshot_is_complete_by_itself() {
    let (router, subject) = start();
    let services = vec![service("a", "10.96.0.1")];
    router.submit(Change::Snapshot { services, slices: Vec::new() }).unwrap();
    eventually("the snapshot is applied without being asked", || router.status().is_healthy());
    assert_eq!(subject.faulty.calls(Call::Replace), 1);
    assert_eq!(subject.routes(), 1);
}

#[test]
fn k1_a_burst_is_one_update() {
    let (router, subject) = serving();
    let burst = (1..=200).map(|i| Change::from(service(&format!("s{i}"), &format!("10.96.1.{i}"))));
    router.submit_all(burst).unwrap();
    block_on(router.flush()).unwrap();
    assert_eq!(subject.faulty.calls(Call::Apply), 1);
    assert_eq!(router.status().routes, 201);
}

#[test]
fn a_stream_feeds_the_router() {
    let (router, _subject) = start();
    let changes = [Change::from(service("a", "10.96.0.1")), Change::from(slice("a", "10.244.1.2"))];
    block_on(router.follow(stream::iter(changes))).unwrap();
    router.synced().unwrap();
    assert_eq!(block_on(router.flush()).unwrap().routes, 1);
}

#[test]
fn a_failed_update_is_reported_and_retried_with_everything_that_came_meanwhile() {
    let (router, subject) = serving();
    subject.faulty.fail_next(Call::Apply, 3, ErrorKind::Unavailable);
    router.submit(service("b", "10.96.0.2")).unwrap();
    let error = block_on(router.flush()).unwrap_err();
    assert!(matches!(error, RouterError::Datapath(error) if error.kind() == ErrorKind::Unavailable));
    assert_eq!(subject.routes(), 1, "the last good state");
    router.submit(service("c", "10.96.0.3")).unwrap();
    eventually("the retry succeeds", || router.status().is_healthy());
    assert_eq!(subject.routes(), 3);
    assert_eq!(subject.faulty.calls(Call::Replace), 1, "deltas were enough");
}

#[test]
fn a_conflict_is_resolved_by_a_full_replacement() {
    let (router, subject) = serving();
    subject.faulty.fail_next(Call::Apply, 1, ErrorKind::Conflict);
    router.submit(service("b", "10.96.0.2")).unwrap();
    assert!(block_on(router.flush()).unwrap().is_healthy());
    assert_eq!(subject.faulty.calls(Call::Replace), 2);
    assert_eq!(subject.routes(), 2);
}

#[test]
fn a_route_that_fails_alone_is_named_and_retried_alone() {
    let memory = MemoryDatapath::new();
    let datapath = Arc::new(BadRoute { memory, service: "bad", times: Mutex::new(2) });
    let router = ServiceRouter::start_with(node(), datapath, fast()).unwrap();
    router.synced().unwrap();
    block_on(router.flush()).unwrap();
    router.submit_all([service("good", "10.96.0.1").into(), service("bad", "10.96.0.2").into()]).unwrap();
    let status = block_on(router.flush()).unwrap();
    assert_eq!(status.failed.len(), 1);
    assert_eq!(&*status.failed[0].service_port.service, "bad");
    assert!(!status.is_healthy());
    eventually("the route is served", || router.status().is_healthy());
}

#[test]
fn a_route_that_keeps_failing_holds_up_no_other_change() {
    let memory = MemoryDatapath::new();
    let datapath = Arc::new(BadRoute { memory, service: "bad", times: Mutex::new(usize::MAX) });
    let mut options = fast();
    options.retry_min = Duration::from_secs(600);
    options.retry_max = Duration::from_secs(600);
    let router = ServiceRouter::start_with(node(), Arc::clone(&datapath) as _, options).unwrap();
    router.synced().unwrap();
    router.submit(service("bad", "10.96.0.2")).unwrap();
    block_on(router.flush()).unwrap();
    // Not by flush(), which waits for nothing.
    router.submit(service("good", "10.96.0.1")).unwrap();
    eventually("the other route is applied", || block_on(datapath.read()).unwrap().len() == 2);
}

#[test]
fn routes_that_failed_are_listed_once_after_a_conflict() {
    let mut capabilities = Capabilities::basic();
    capabilities.protocols = [Protocol::Udp].into();
    let memory = Arc::new(MemoryDatapath::with_capabilities(capabilities));
    let faulty = Arc::new(FaultyDatapath::new(memory));
    let router = ServiceRouter::start_with(node(), Arc::clone(&faulty) as _, fast()).unwrap();
    router.submit(service("a", "10.96.0.1")).unwrap();
    router.synced().unwrap();
    assert_eq!(block_on(router.flush()).unwrap().failed.len(), 1);
    faulty.fail_next(Call::Apply, 1, ErrorKind::Conflict);
    router.submit(service("b", "10.96.0.2")).unwrap();
    assert_eq!(block_on(router.flush()).unwrap().failed.len(), 2);
}

#[test]
fn a_feed_without_end_starves_nothing() {
    let (router, subject) = start();
    router.synced().unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for i in (0..250u8).cycle() {
                if stop.load(Ordering::Relaxed)
                    || router.submit(service("a", &format!("10.96.0.{i}"))).is_err()
                {
                    break;
                }
            }
        });
        eventually("updates arrive all the same", || subject.faulty.calls(Call::Apply) > 3);
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn submitting_never_waits_for_a_datapath_that_stalls() {
    let (router, subject) = serving();
    let stall = subject.faulty.stall(Call::Apply);
    router.submit(service("b", "10.96.0.2")).unwrap();
    eventually("the call is held", || subject.faulty.calls(Call::Apply) == 1);
    router.submit(service("c", "10.96.0.3")).unwrap();
    assert!(!router.status().is_healthy());
    stall.release();
    eventually("both arrive", || router.status().is_healthy() && subject.routes() == 3);
}

#[test]
fn k3_an_audit_finds_and_repairs_what_somebody_changed() {
    let (router, subject) = serving();
    assert_eq!(block_on(router.audit()).unwrap(), None);
    let vandal = RouteTable::new(router.status().applied, Arc::default(), []);
    block_on(subject.memory.replace(Arc::new(vandal))).unwrap();
    let found = block_on(router.audit()).unwrap().unwrap();
    assert!(found.contains("10.96.0.1:80/TCP (demo/a)"), "{found}");
    assert_eq!(subject.routes(), 1);
    assert_eq!(block_on(router.audit()).unwrap(), None);
}

#[test]
fn the_routes_can_be_looked_at() {
    let (router, _subject) = serving();
    let names = block_on(
        router
            .inspect(|table| table.routes().map(|route| route.service_port.to_string()).collect::<Vec<_>>()),
    );
    assert_eq!(names.unwrap(), ["demo/a"]);
}

#[test]
fn a_swap_programs_the_new_datapath_then_drains_and_removes_the_old_one() {
    let (router, old) = serving();
    old.memory.connect(&connection());
    let new = Subject::new();
    let report = block_on(router.swap(new.datapath(), Duration::from_secs(60))).unwrap();
    assert_eq!(report.draining_flows, Some(1));
    assert_eq!(new.routes(), 1);
    assert_eq!(router.status().retiring.len(), 1);
    assert!(!old.is_closed());
    assert!(matches!(old.memory.send(&connection()), Delivery::To(_)), "the old flow lives on");
    old.memory.disconnect(&connection());
    eventually("the old datapath is removed", || router.status().retiring.is_empty());
    assert!(old.is_closed());
    router.submit(service("b", "10.96.0.2")).unwrap();
    assert!(block_on(router.flush()).unwrap().is_healthy());
    assert_eq!(new.routes(), 2);
}

#[test]
fn a_deadline_ends_the_drain() {
    let (router, old) = serving();
    old.memory.connect(&connection());
    block_on(router.swap(Subject::new().datapath(), Duration::from_millis(20))).unwrap();
    eventually("the old datapath is removed", || old.is_closed());
}

#[test]
fn a_swap_waits_for_ever_where_it_is_told_to() {
    let (router, old) = serving();
    old.memory.connect(&connection());
    block_on(router.swap(Subject::new().datapath(), Duration::MAX)).unwrap();
    assert_eq!(router.status().retiring.len(), 1);
    block_on(router.close(Close::Remove)).unwrap();
    assert!(old.is_closed());
}

#[test]
fn a_datapath_that_serves_less_does_not_take_over() {
    let (router, old) = serving();
    let mut capabilities = Capabilities::basic();
    capabilities.protocols = [Protocol::Udp].into();
    let less = Arc::new(MemoryDatapath::with_capabilities(capabilities));
    let error = block_on(router.swap(less, Duration::ZERO)).unwrap_err();
    assert!(error.to_string().contains("10.96.0.1:80/TCP (demo/a)"), "{error}");
    assert_eq!(old.faulty.calls(Call::Drain), 0);
    assert!(router.status().is_healthy());
}

#[test]
fn an_old_datapath_that_cannot_go_yet_is_asked_again() {
    let (router, old) = serving();
    old.faulty.fail_next(Call::Close, 2, ErrorKind::Unavailable);
    block_on(router.swap(Subject::new().datapath(), Duration::ZERO)).unwrap();
    eventually("it is removed", || router.status().retiring.is_empty());
    assert!(old.is_closed());
    block_on(router.close(Close::Remove)).unwrap();
}

#[test]
fn an_old_datapath_that_cannot_be_removed_is_reported_when_the_router_is_closed() {
    let (router, old) = serving();
    old.faulty.fail_next(Call::Close, 1, ErrorKind::Internal);
    block_on(router.swap(Subject::new().datapath(), Duration::ZERO)).unwrap();
    eventually("it is given up", || router.status().retiring.is_empty());
    let error = block_on(router.close(Close::Remove)).unwrap_err();
    assert!(matches!(error, RouterError::Close(errors) if errors.len() == 1));
}

#[test]
fn a_failed_audit_is_forgotten_after_a_good_one() {
    let (router, subject) = serving();
    subject.faulty.fail_next(Call::Read, 1, ErrorKind::Unavailable);
    assert!(block_on(router.audit()).is_err());
    assert!(!router.status().is_healthy());
    assert_eq!(block_on(router.audit()).unwrap(), None);
    assert!(router.status().is_healthy());
}

#[test]
fn a_swap_that_fails_leaves_the_old_datapath_at_work() {
    let (router, old) = serving();
    let broken = Subject::new();
    broken.faulty.fail_next(Call::Replace, 1, ErrorKind::Permission);
    let error = block_on(router.swap(broken.datapath(), Duration::ZERO)).unwrap_err();
    assert!(matches!(error, RouterError::Datapath(error) if error.kind() == ErrorKind::Permission));
    assert_eq!(old.faulty.calls(Call::Drain), 0);
    router.submit(service("b", "10.96.0.2")).unwrap();
    assert!(block_on(router.flush()).unwrap().is_healthy());
    assert_eq!(old.routes(), 2);
}

#[test]
fn a_datapath_swapped_for_itself_goes_on() {
    let (router, subject) = serving();
    block_on(router.swap(subject.datapath(), Duration::ZERO)).unwrap();
    assert_eq!(subject.faulty.calls(Call::Drain), 0);
    assert!(router.status().retiring.is_empty());
}

#[test]
fn a_closed_router_says_so() {
    // Its thread may take a moment to end.
    for _ in 0..50 {
        let (router, subject) = serving();
        block_on(router.close(Close::Remove)).unwrap();
        assert!(matches!(router.submit(service("a", "10.96.0.1")), Err(RouterError::Closed)));
        assert!(subject.is_closed());
        assert!(matches!(block_on(router.flush()), Err(RouterError::Closed)));
    }
}

#[test]
fn options_out_of_range_are_named() {
    let mut options = RouterOptions::default();
    options.retry_max = Duration::ZERO;
    let error = ServiceRouter::start_with(node(), Arc::new(MemoryDatapath::new()), options).unwrap_err();
    assert_eq!(error.to_string(), "retry_max: must not be below retry_min");
}
