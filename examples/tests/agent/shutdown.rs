//! How the agent ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use kubenet_core::{
    datapath::{
        ApplyReport, Capabilities, Close, Counters, Datapath, DatapathError, DatapathEvent, DrainStatus,
    },
    route::{RouteDelta, RouteTable},
};
use kubenet_examples::agent::{self, Agent, AgentError};
use kubenet_testkit::memory::MemoryDatapath;
use tokio::sync::oneshot;

use crate::support::{
    api::Kind,
    objects::{service, slice},
    rig::{Rig, api, config, eventually, route},
};

const A: &str = "10.96.0.1";

#[tokio::test]
async fn a_stopped_agent_leaves_the_kernel_forwarding() {
    let api = api().await;
    api.put(Kind::Service, service("a", A));
    api.put(Kind::Slice, slice("a", &["10.244.1.2"]));
    let datapath = Arc::new(MemoryDatapath::new());
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async { drop(stopped.await) };
    let running = tokio::spawn(agent::run(config(), api.client(), Arc::clone(&datapath) as _, shutdown));
    let served = || route(&datapath, "10.244.1.9:4000", "10.96.0.1:80") == "10.244.1.2:8080";
    eventually(|| "served".into(), served).await;
    stop.send(()).unwrap();
    running.await.unwrap().unwrap();
    assert!(served(), "as before");
    assert!(datapath.read().await.is_err(), "closed all the same");
}

#[tokio::test]
async fn an_agent_that_dies_leaves_the_kernel_forwarding() {
    let api = api().await;
    api.put(Kind::Service, service("a", A));
    let rig = Rig::start(api).await;
    rig.routes(A, "reject").await;
    let Rig { datapath, agent, .. } = rig;
    drop(agent);
    assert_eq!(route(&datapath, "10.244.1.9:4000", "10.96.0.1:80"), "reject");
}

/// A datapath whose programs go with it, as those of eBPF do that are not pinned.
#[derive(Debug)]
struct Mortal {
    memory: MemoryDatapath,
    capabilities: Capabilities,
    ended: Arc<AtomicUsize>,
}

impl Drop for Mortal {
    fn drop(&mut self) {
        self.ended.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Datapath for Mortal {
    fn name(&self) -> &'static str {
        "mortal"
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn replace(&self, table: Arc<RouteTable>) -> Result<ApplyReport, DatapathError> {
        self.memory.replace(table).await
    }

    async fn apply(&self, delta: Arc<RouteDelta>) -> Result<ApplyReport, DatapathError> {
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
        self.ended.fetch_add(1, Ordering::SeqCst);
        self.memory.close(how).await
    }

    fn events(&self) -> BoxStream<'static, DatapathEvent> {
        self.memory.events()
    }
}

#[tokio::test]
async fn a_datapath_that_cannot_be_kept_is_neither_closed_nor_dropped() {
    let api = api().await;
    api.put(Kind::Service, service("a", A));
    let ended = Arc::new(AtomicUsize::new(0));
    let mut capabilities = Capabilities::full();
    capabilities.keep_on_close = false;
    let mortal = Mortal { memory: MemoryDatapath::new(), capabilities, ended: Arc::clone(&ended) };
    let agent = Agent::start(config(), api.client(), Arc::new(mortal)).await.unwrap();
    eventually(|| "applied".into(), || agent.router().status().routes == 1).await;
    agent.stop().await.unwrap();
    // Whoever would drop it had the time to.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(ended.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_agent_whose_router_ends_says_so() {
    let mut rig = Rig::start(api().await).await;
    rig.api.put(Kind::Service, service("a", A));
    rig.routes(A, "reject").await;
    rig.agent.router().close(Close::Keep).await.unwrap();
    rig.api.put(Kind::Service, service("b", "10.96.0.2"));
    assert!(matches!(rig.agent.ended().await, Err(AgentError::Router(_))));
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let api = api().await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let listener = std::net::TcpListener::bind(taken).unwrap();
    let mut config = config();
    config.metrics_bind_address = Some(taken);
    let error = Agent::start(config, api.client(), Arc::new(MemoryDatapath::new())).await.unwrap_err();
    assert_eq!(error.to_string(), format!("/metrics cannot be served at {taken}"));
    drop(listener);
}
