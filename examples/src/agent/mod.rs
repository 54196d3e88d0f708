//! The per-node agent: watches Services, EndpointSlices and its Node, and keeps the kernel equal to them.
//!
//! | file | its subject |
//! |---|---|
//! | `client.rs`, `watch.rs`, `raw.rs` | Lists and watches that recover by themselves |
//! | `feed.rs` | From what they deliver to changes of the router |
//! | `observe.rs`, `progress.rs` | From the router's events to metrics and reports |
//! | `reports.rs` | Kubernetes Events |
//! | `health.rs` | Health-check node ports, `/healthz` and `/livez` |
//! | `metrics.rs`, `scrape.rs`, `http.rs` | `/metrics` |
//!
//! It is a library, so that tests can run it against an API server of their own; `src/bin/agent` is the program.

mod client;
mod config;
mod feed;
mod health;
mod http;
mod metrics;
mod observe;
mod progress;
mod raw;
mod reports;
mod scrape;
mod watch;

use std::{future::Future, io, net::SocketAddr, sync::Arc};

use futures::StreamExt;
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Api, Client, runtime::watcher};
use kubenet_core::{
    datapath::{Close, Datapath, DatapathError},
    model::{InvalidObject, NodeInfo},
    router::{RouterError, ServiceRouter},
};
use tokio::task::JoinSet;
use tracing::{info, warn};

pub use self::{client::client, config::Config};
use self::{
    feed::{Delivery, Feed},
    health::Health,
    metrics::Metrics,
    observe::Observer,
    progress::Progress,
    raw::Raw,
    reports::Reports,
    watch::watch,
};

/// A running agent. Dropping it stops it and leaves the datapath as it is.
#[derive(Debug)]
pub struct Agent {
    router: Arc<ServiceRouter>,
    datapath: Arc<dyn Datapath>,
    metrics_address: Option<SocketAddr>,
    health: Arc<Health>,
    tasks: JoinSet<Ended>,
}

/// Why a task of the agent ended.
type Ended = Result<(), AgentError>;

/// Why an agent could not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The configuration breaks a rule.
    #[error(transparent)]
    Config(#[from] InvalidObject),
    /// The router could not be started, or has ended.
    #[error(transparent)]
    Router(#[from] RouterError),
    /// An address could not be listened on.
    #[error("{what} cannot be served at {address}")]
    Listen {
        /// What is served there.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The system gives no thread for health checks.
    #[error("health checks cannot be served")]
    Health(#[source] io::Error),
    /// A mistake in the definition of the metrics.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    /// A task panicked.
    #[error("a task of the agent ended")]
    Task(#[from] tokio::task::JoinError),
    /// The datapath could not be closed.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
}

/// Runs an agent until `shutdown` is ready, and leaves the kernel forwarding.
///
/// # Errors
/// The agent could not start, or ended by itself.
pub async fn run(
    config: Config,
    client: Client,
    datapath: Arc<dyn Datapath>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), AgentError> {
    let mut agent = Agent::start(config, client, datapath).await?;
    tokio::select! {
        () = shutdown => {}
        ended = agent.ended() => ended?,
    }
    agent.stop().await
}

impl Agent {
    /// Starts to watch. Nothing is programmed before everything was listed once.
    ///
    /// # Errors
    /// The configuration, or an address that cannot be listened on.
    pub async fn start(
        config: Config,
        client: Client,
        datapath: Arc<dyn Datapath>,
    ) -> Result<Self, AgentError> {
        let config = Arc::new(config);
        let metrics = Metrics::new(datapath.capabilities().families.clone())?;
        let node = config.node(NodeInfo::builder(config.node_name.as_str()).build()?)?;
        let router = ServiceRouter::start_with(node, Arc::clone(&datapath), config.router_options())?;
        let router = Arc::new(router);
        metrics.datapath.with_label_values(&[datapath.name()]).set(1);

        let progress = Arc::new(Progress::default());
        let mut tasks = JoinSet::new();
        let mut metrics_address = None;
        if let Some(address) = config.metrics_bind_address {
            let (listener, bound) = http::listen(address).await.map_err(|source| AgentError::Listen {
                what: "/metrics",
                address,
                source,
            })?;
            metrics_address = Some(bound);
            let render = scrape::render(metrics.clone(), Arc::clone(&router), Arc::clone(&progress));
            tasks.spawn(async move {
                http::serve(listener, render).await;
                Ok(())
            });
        }
        let (reports, poster) =
            Reports::new(client.clone(), &config.node_name, metrics.dropped_events.clone());
        let observer =
            Observer { metrics: metrics.clone(), progress: Arc::clone(&progress), reports: reports.clone() };
        let health = Health::serve(&config, router.health(), &metrics, &reports);
        let health = Arc::new(health.map_err(AgentError::Health)?);
        let events = router.events();
        let feed = Feed::new(
            Arc::clone(&config),
            Arc::clone(&router),
            progress,
            metrics,
            reports,
            Arc::clone(&health),
        );
        let deliveries = deliveries(&config, &client);
        tasks.spawn(async move {
            poster.run().await;
            Ok(())
        });
        tasks.spawn(async move {
            observer.run(events).await;
            Ok(())
        });
        tasks.spawn(async move { Err(feed.run(deliveries).await.into()) });
        info!(node = config.node_name, datapath = datapath.name(), "started");
        Ok(Self { router, datapath, metrics_address, health, tasks })
    }

    /// The router that it feeds.
    pub fn router(&self) -> &ServiceRouter {
        &self.router
    }

    /// Where `/metrics` is served.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Where `/healthz` and `/livez` are served; `None` also while the address cannot be listened on.
    pub fn healthz_address(&self) -> Option<SocketAddr> {
        self.health.server().healthz_address()
    }

    /// Waits until it ends by itself, which is an error.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn ended(&mut self) -> Result<(), AgentError> {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => return Err(error),
                Some(Err(error)) => return Err(error.into()),
                None => return Err(RouterError::Closed.into()),
            }
        }
    }

    /// Stops, and leaves the kernel forwarding.
    ///
    /// # Errors
    /// The datapath could not be closed. What it programmed stays.
    pub async fn stop(mut self) -> Result<(), AgentError> {
        self.tasks.shutdown().await;
        if self.datapath.capabilities().keep_on_close {
            self.router.close(Close::Keep).await?;
            info!(datapath = self.datapath.name(), "stopped; the kernel goes on forwarding");
            return Ok(());
        }
        warn!(
            datapath = self.datapath.name(),
            "stopped without closing the datapath, which cannot outlive its process by itself: what the kernel \
             holds for the process ends with it"
        );
        // Never dropped: that would detach its programs.
        std::mem::forget((self.router, self.datapath));
        Ok(())
    }
}

/// All that the API server tells.
fn deliveries(config: &Config, client: &Client) -> impl futures::Stream<Item = Delivery> + Send + use<> {
    const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
    let selector = match &config.service_proxy_name {
        Some(name) => format!("{PROXY_NAME}={name}"),
        None => format!("!{PROXY_NAME}"),
    };
    let mut base = watcher::Config::default().page_size(config.page_size);
    if config.streaming_lists {
        base = base.streaming_lists();
    }
    let services: Api<Raw<Service>> = Api::all(client.clone());
    let slices: Api<Raw<EndpointSlice>> = Api::all(client.clone());
    let nodes: Api<Raw<Node>> = Api::all(client.clone());
    let this_node = format!("metadata.name={}", config.node_name);
    futures::stream::select_all([
        watch(services, base.clone().labels(&selector)).map(Delivery::Service).boxed(),
        watch(slices, base.clone().labels("!service.kubernetes.io/headless")).map(Delivery::Slice).boxed(),
        watch(nodes, base.fields(&this_node)).map(Delivery::Node).boxed(),
    ])
}
