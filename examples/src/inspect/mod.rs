//! What `inspect` shows of a running eBPF datapath: read from its pins, for a person or for a program.

mod event;
mod table;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use kubenet_core::{
    datapath::{BackendName, DatapathError, Traffic},
    route::{Backend, BackendState, RouteTable, ServicePortName},
};
use kubenet_ebpf::Inspector;
use serde::Serialize;

pub use self::event::line;
use self::table::Table;

/// All that is pinned, at one time.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether known flows are served only.
    pub draining: bool,
    /// Every frontend.
    pub routes: Vec<RouteRow>,
    /// Every backend of a frontend.
    pub backends: Vec<BackendRow>,
    /// Addresses that had an id and that no frontend has any more. Connections may still go there.
    pub retired_backends: Vec<String>,
    /// Every flow whose packets are translated.
    pub connections: Vec<ConnectionRow>,
    /// Every client that stays with its backend.
    pub clients: Vec<ClientRow>,
    /// What the programs counted, dropped packets by reason among it.
    pub counters: BTreeMap<&'static str, u64>,
}

/// What a route or a backend has served.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct TrafficRow {
    /// Flows for which a backend was picked.
    pub connections: u64,
    /// Packets from clients.
    pub packets: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Packets from backends.
    pub reply_packets: u64,
    /// Bytes of those.
    pub reply_bytes: u64,
}

impl From<Traffic> for TrafficRow {
    fn from(traffic: Traffic) -> Self {
        let Traffic { connections, packets, bytes, reply_packets, reply_bytes, .. } = traffic;
        Self { connections, packets, bytes, reply_packets, reply_bytes }
    }
}

/// A frontend.
#[derive(Debug, Serialize)]
pub struct RouteRow {
    /// Address or node port, port and protocol.
    pub frontend: String,
    /// Whose it is.
    pub service_port: String,
    /// Cluster IP, node port, and so on.
    pub kind: &'static str,
    /// How a backend is picked.
    pub algorithm: String,
    /// How long a client stays with its backend.
    pub affinity_seconds: Option<u32>,
    /// Backends of flows from pods and from this node.
    pub internal: Vec<String>,
    /// Backends of flows from outside.
    pub external: Vec<String>,
    /// What it has served.
    #[serde(flatten)]
    pub traffic: TrafficRow,
}

/// A backend.
#[derive(Debug, Serialize)]
pub struct BackendRow {
    /// Where it is.
    pub address: String,
    /// Its protocol.
    pub protocol: String,
    /// Whose it is.
    pub service_port: String,
    /// On this node.
    pub local: bool,
    /// It takes no new flows while others are there.
    pub terminating: bool,
    /// What it has served.
    #[serde(flatten)]
    pub traffic: TrafficRow,
}

/// A flow.
#[derive(Debug, Serialize)]
pub struct ConnectionRow {
    /// Its protocol.
    pub protocol: String,
    /// Who opened it.
    pub client: String,
    /// What the client dialled.
    pub frontend: String,
    /// Whom the backend sees.
    pub source: String,
    /// Where it goes.
    pub backend: String,
    /// Whose it is, as far as the frontend still is that Service's.
    pub service_port: Option<String>,
    /// Seconds since the client was heard.
    pub idle_seconds: u64,
    /// `opening`, `open` or `closing`.
    pub state: &'static str,
}

/// A client that stays with its backend.
#[derive(Debug, Serialize)]
pub struct ClientRow {
    /// Its address.
    pub client: String,
    /// Of which Service port, if that still has affinity.
    pub service_port: Option<String>,
    /// With which backend, if that is still in use.
    pub backend: Option<String>,
    /// Seconds since its last new connection.
    pub idle_seconds: u64,
}

fn addresses(backends: &[Backend]) -> Vec<String> {
    backends.iter().map(|backend| backend.socket_addr().to_string()).collect()
}

fn text(name: Option<&ServicePortName>) -> Option<String> {
    name.map(ToString::to_string)
}

impl Report {
    /// Reads everything.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn read(inspector: &Inspector) -> Result<Self, DatapathError> {
        let table = inspector.table()?;
        let counters = inspector.counters()?;
        let routes = table.routes().map(|route| RouteRow {
            frontend: route.frontend.to_string(),
            service_port: route.service_port.to_string(),
            kind: route.kind.as_str(),
            algorithm: route.algorithm.to_string(),
            affinity_seconds: route.affinity.map(|affinity| affinity.timeout_seconds()),
            internal: addresses(&route.internal.backends),
            external: addresses(&route.external.backends),
            traffic: counters.routes.get(&route.frontend).copied().unwrap_or_default().into(),
        });
        let mut flows = inspector.connections()?;
        flows.sort_unstable_by_key(|flow| (flow.frontend, flow.protocol, flow.client));
        let connections = flows.into_iter().map(|flow| ConnectionRow {
            protocol: flow.protocol.to_string(),
            client: flow.client.to_string(),
            frontend: flow.frontend.to_string(),
            source: flow.source.to_string(),
            backend: flow.backend.to_string(),
            service_port: text(flow.service_port.as_ref()),
            idle_seconds: flow.idle.as_secs(),
            state: match (flow.is_closing, flow.is_answered) {
                (true, _) => "closing",
                (false, true) => "open",
                (false, false) => "opening",
            },
        });
        let mut clients = inspector.clients()?;
        clients.sort_unstable_by_key(|client| client.client);
        let clients = clients.into_iter().map(|client| ClientRow {
            client: client.client.to_string(),
            service_port: text(client.service_port.as_ref()),
            backend: client.backend.map(|backend| backend.socket_addr().to_string()),
            idle_seconds: client.idle.as_secs(),
        });
        let retired = inspector.backends().into_iter().filter(|entry| !entry.in_use);
        let metrics = inspector.metrics()?;
        Ok(Self {
            draining: inspector.is_draining(),
            routes: routes.collect(),
            backends: backends(&table, &counters.backends),
            retired_backends: retired.map(|entry| entry.backend.socket_addr().to_string()).collect(),
            connections: connections.collect(),
            clients: clients.collect(),
            counters: metrics.into_iter().map(|(metric, count)| (metric.as_str(), count)).collect(),
        })
    }
}

fn backends(table: &RouteTable, counters: &BTreeMap<BackendName, Traffic>) -> Vec<BackendRow> {
    // By name: there may be 100,000 of both.
    let mut known: HashMap<_, &Backend> = HashMap::new();
    for route in table.routes() {
        for backend in route.internal.backends.iter().chain(&*route.external.backends) {
            known.entry((&route.service_port, backend.socket_addr())).or_insert(backend);
        }
    }
    let row = |(name, traffic): (&BackendName, &Traffic)| {
        let known = known.get(&(&name.service_port, name.address));
        BackendRow {
            address: name.address.to_string(),
            protocol: name.protocol.to_string(),
            service_port: name.service_port.to_string(),
            local: known.is_some_and(|backend| backend.local),
            terminating: known.is_some_and(|backend| backend.state == BackendState::Terminating),
            traffic: (*traffic).into(),
        }
    };
    counters.iter().map(row).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const TRAFFIC: [&str; 5] = ["CONNECTIONS", "PACKETS", "BYTES", "REPLY PACKETS", "REPLY BYTES"];
        let traffic = |row: &TrafficRow| {
            [row.connections, row.packets, row.bytes, row.reply_packets, row.reply_bytes]
                .map(|n| n.to_string())
        };
        if self.draining {
            writeln!(f, "draining: known flows are served only\n")?;
        }
        let mut routes = Table::new("Frontends", ["FRONTEND", "KIND", "SERVICE PORT", "BACKENDS"], TRAFFIC);
        for row in &self.routes {
            let backends = if row.internal == row.external {
                row.internal.len().to_string()
            } else {
                format!("{} inside, {} outside", row.internal.len(), row.external.len())
            };
            let first = [row.frontend.clone(), row.kind.to_owned(), row.service_port.clone(), backends];
            routes.row(first.into_iter().chain(traffic(&row.traffic)));
        }
        let mut backends = Table::new("Backends", ["BACKEND", "PROTOCOL", "SERVICE PORT", "STATE"], TRAFFIC);
        for row in &self.backends {
            let state = match (row.terminating, row.local) {
                (true, _) => "terminating",
                (false, true) => "here",
                (false, false) => "elsewhere",
            };
            let first =
                [row.address.clone(), row.protocol.clone(), row.service_port.clone(), state.to_owned()];
            backends.row(first.into_iter().chain(traffic(&row.traffic)));
        }
        let heads = ["PROTOCOL", "CLIENT", "FRONTEND", "BACKEND SEES", "BACKEND", "SERVICE PORT", "STATE"];
        let mut connections = Table::new("Connections", heads, ["IDLE"]);
        for row in &self.connections {
            let owner = row.service_port.clone().unwrap_or_else(|| "-".to_owned());
            let first =
                [&row.protocol, &row.client, &row.frontend, &row.source, &row.backend].map(Clone::clone);
            let last = [owner, row.state.to_owned(), format!("{} s", row.idle_seconds)];
            connections.row(first.into_iter().chain(last));
        }
        let mut clients =
            Table::new("Clients with affinity", ["CLIENT", "SERVICE PORT", "BACKEND"], ["IDLE"]);
        for row in &self.clients {
            let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            let idle = format!("{} s", row.idle_seconds);
            clients.row([row.client.clone(), or_none(&row.service_port), or_none(&row.backend), idle]);
        }
        let mut counters = Table::new("Counters", ["COUNTER"], ["COUNT"]);
        for (name, count) in &self.counters {
            counters.row([(*name).to_owned(), count.to_string()]);
        }
        for table in [routes, backends, connections, clients] {
            writeln!(f, "{table}")?;
        }
        if !self.retired_backends.is_empty() {
            writeln!(f, "Backends that no frontend has any more: {}\n", self.retired_backends.join(", "))?;
        }
        write!(f, "{counters}")
    }
}
