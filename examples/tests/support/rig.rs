//! An agent, the memory datapath that it programs, and the API server that it watches.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kubenet_core::model::Protocol;
use kubenet_examples::agent::{Agent, Config};
use kubenet_testkit::memory::{Flow, MemoryDatapath, Verdict};

use super::{
    api::{ApiServer, Kind},
    objects::{NODE, node},
};

pub(crate) struct Rig {
    pub(crate) api: ApiServer,
    pub(crate) datapath: Arc<MemoryDatapath>,
    pub(crate) agent: Agent,
}

/// The configuration of tests: short pages, ports of the system's choice.
pub(crate) fn config() -> Config {
    let mut config = Config::new(NODE);
    config.cluster_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
    config.metrics_bind_address = Some(([127, 0, 0, 1], 0).into());
    config.healthz_bind_address = Some(([127, 0, 0, 1], 0).into());
    config.min_sync_period = Duration::from_millis(5);
    config.page_size = 3;
    config
}

/// An API server that has the node.
pub(crate) async fn api() -> ApiServer {
    let api = ApiServer::start().await;
    api.put(Kind::Node, node());
    api
}

impl Rig {
    /// An agent with the configuration of tests.
    pub(crate) async fn start(api: ApiServer) -> Self {
        Self::start_with(api, config()).await
    }

    pub(crate) async fn start_with(api: ApiServer, config: Config) -> Self {
        let datapath = Arc::new(MemoryDatapath::new());
        let agent = Agent::start(config, api.client(), Arc::clone(&datapath) as _).await.unwrap();
        Self { api, datapath, agent }
    }

    /// Where a pod's connection to port 80 of this address goes: `drop`, `reject`, `pass`, or all backends.
    pub(crate) fn route(&self, address: &str) -> String {
        self.route_from("10.244.1.9:4000", &format!("{address}:80"))
    }

    pub(crate) fn route_from(&self, from: &str, to: &str) -> String {
        route(&self.datapath, from, to)
    }

    /// Waits until a pod's connection goes there.
    pub(crate) async fn routes(&self, address: &str, wanted: &str) {
        let what = || format!("{address} goes to {wanted}, and not to {}", self.route(address));
        eventually(what, || self.route(address) == wanted).await;
    }

    /// Waits until an Event was posted whose note contains the text.
    pub(crate) async fn posted(&self, note: &str) -> serde_json::Value {
        let find = || {
            let events = self.api.events();
            events.into_iter().find(|event| event["note"].as_str().is_some_and(|n| n.contains(note)))
        };
        eventually(|| format!("{note:?} in {:?}", self.api.events()), || find().is_some()).await;
        find().unwrap()
    }
}

pub(crate) fn route(datapath: &MemoryDatapath, from: &str, to: &str) -> String {
    let flow = Flow::new(from.parse().unwrap(), to.parse().unwrap(), Protocol::Tcp);
    match datapath.route(&flow) {
        Verdict::Pass => "pass".into(),
        Verdict::Reject => "reject".into(),
        Verdict::Drop => "drop".into(),
        Verdict::Forward(choices) => {
            let mut backends: Vec<_> = choices.iter().map(|c| c.backend.socket_addr().to_string()).collect();
            backends.sort();
            backends.join(" ")
        }
    }
}

/// Waits for something that happens by itself.
pub(crate) async fn eventually(what: impl Fn() -> String, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {}", what());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Asks over HTTP/1.1; the status and all that follows.
pub(crate) async fn http_get(address: std::net::SocketAddr, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("{answer:?}")), answer)
}
