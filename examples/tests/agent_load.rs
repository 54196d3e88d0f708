//! The agent following 5,000 Services: how long from the API server's event until the kernel has it.
//!
//! `cargo test -p kubenet-examples --release --test agent_load -- --nocapture` prints the figures.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step fails the test")]
#![allow(dead_code, reason = "the other test uses the rest of the support")]

mod support;

use std::{
    collections::HashMap,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::{StreamExt, executor::block_on, stream::BoxStream};
use kubenet_core::{
    datapath::{
        ApplyReport, Capabilities, Close, Counters, Datapath, DatapathError, DatapathEvent, DrainStatus,
    },
    route::{Frontend, FrontendAddress, Revision, RouteDelta, RouteTable},
    router::{RouterEvent, ServiceRouter},
};
use kubenet_examples::agent::{Agent, Config};
use kubenet_testkit::memory::MemoryDatapath;
use parking_lot::Mutex;

use self::support::{
    api::{ApiServer, Kind},
    objects::{NODE, node, service, slice},
};

const SERVICES: usize = 5_000;

/// A memory datapath that remembers what each update changed.
#[derive(Debug, Default)]
struct Recording {
    memory: MemoryDatapath,
    changes: Mutex<HashMap<Revision, Vec<Frontend>>>,
}

#[async_trait]
impl Datapath for Recording {
    fn name(&self) -> &'static str {
        "recording"
    }

    fn capabilities(&self) -> &Capabilities {
        self.memory.capabilities()
    }

    async fn replace(&self, table: Arc<RouteTable>) -> Result<ApplyReport, DatapathError> {
        let frontends = table.routes().map(|route| route.frontend).collect();
        self.changes.lock().insert(table.revision(), frontends);
        self.memory.replace(table).await
    }

    async fn apply(&self, delta: Arc<RouteDelta>) -> Result<ApplyReport, DatapathError> {
        self.changes.lock().insert(delta.revision, delta.touched().into_iter().collect());
        self.memory.apply(delta).await
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

/// When the router said that the kernel has the last change of a Service, by its cluster IP.
type Applied = Arc<Mutex<HashMap<String, Vec<Instant>>>>;

fn listen(router: &ServiceRouter, datapath: Arc<Recording>) -> Applied {
    let applied = Applied::default();
    let seen = Arc::clone(&applied);
    let mut events = router.events();
    thread::spawn(move || {
        while let Some(event) = block_on(events.next()) {
            let RouterEvent::Applied { revision, .. } = event else { continue };
            let now = Instant::now();
            for frontend in datapath.changes.lock().remove(&revision).unwrap_or_default() {
                if let FrontendAddress::Ip(address) = frontend.address {
                    seen.lock().entry(address.to_string()).or_default().push(now);
                }
            }
        }
    });
    applied
}

fn address(i: usize) -> String {
    format!("10.{}.{}.{}", 97 + i / 62_500, i / 250 % 250, i % 250 + 1)
}

/// Sends so many changes, so many per second, waits until all are applied, and says how long each took.
async fn phase(what: &str, applied: &Applied, count: usize, rate: u32, change: impl Fn(usize)) {
    applied.lock().clear();
    let mut sent = Vec::with_capacity(count);
    let began = Instant::now();
    for i in 0..count {
        let due = began + Duration::from_secs(1) / rate * u32::try_from(i).unwrap();
        if let Some(wait) = due.checked_duration_since(Instant::now()).filter(|wait| wait.as_millis() > 0) {
            tokio::time::sleep(wait).await;
        }
        sent.push(Instant::now());
        change(i);
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while applied.lock().len() < count {
        assert!(Instant::now() < deadline, "{what}: only {} of {count} arrived", applied.lock().len());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let applied = applied.lock();
    let last = |i: usize| *applied[&address(i)].last().unwrap();
    let mut took: Vec<Duration> = (0..count).map(|i| last(i).saturating_duration_since(sent[i])).collect();
    took.sort();
    let at = |quantile: f64| took[((took.len() - 1) as f64 * quantile) as usize];
    println!(
        "{what}: {count} Services at {rate}/s; event to applied: p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
        at(0.5).as_secs_f64() * 1e3,
        at(0.99).as_secs_f64() * 1e3,
        at(1.0).as_secs_f64() * 1e3,
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_services_are_created_changed_and_deleted() {
    let api = ApiServer::start().await;
    api.put(Kind::Node, node());
    let datapath = Arc::new(Recording::default());
    let agent = Agent::start(Config::new(NODE), api.client(), Arc::clone(&datapath) as _).await.unwrap();
    let applied = listen(agent.router(), Arc::clone(&datapath));
    while !agent.router().status().is_healthy() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let name = |i: usize| format!("s{i}");
    phase("created", &applied, SERVICES, 1000, |i| api.put(Kind::Service, service(&name(i), &address(i))))
        .await;
    phase("changed", &applied, SERVICES, 1000, |i| api.put(Kind::Slice, slice(&name(i), &["10.244.1.2"])))
        .await;
    assert_eq!(agent.router().status().routes, SERVICES);
    // Slower than the agent's interval between updates, so that each is the first after quiet.
    phase("changed one by one", &applied, 60, 15, |i| {
        api.put(Kind::Slice, slice(&name(i), &["10.244.1.3"]));
    })
    .await;
    phase("deleted", &applied, SERVICES, 1000, |i| api.delete(Kind::Service, "demo", &name(i))).await;
    assert_eq!(agent.router().status().routes, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_services_that_are_there_already() {
    for pages in [false, true] {
        let api = ApiServer::start().await;
        api.put(Kind::Node, node());
        if pages {
            api.list_by_pages();
        }
        for i in 0..SERVICES {
            api.put(Kind::Service, service(&format!("s{i}"), &address(i)));
            api.put(Kind::Slice, slice(&format!("s{i}"), &["10.244.1.2"]));
        }
        let datapath = Arc::new(Recording::default());
        let began = Instant::now();
        let agent = Agent::start(Config::new(NODE), api.client(), datapath).await.unwrap();
        while !agent.router().status().is_healthy() {
            assert!(began.elapsed() < Duration::from_secs(60));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let took = began.elapsed().as_secs_f64() * 1e3;
        assert_eq!(agent.router().status().routes, SERVICES);
        println!(
            "start with {SERVICES} Services, {}: {took:.0} ms",
            if pages { "paged" } else { "streamed" }
        );
    }
}
