//! The baseline: the same routes in the layout that kube-proxy made known. One list of all Service ports, a
//! chain for each, and a chain for each endpoint.
//!
//! As there, comments are left out of clusters with more than 1,000 endpoints, and a change writes the list
//! anew with the chains of the Service ports that changed.

#[cfg(test)]
mod tests;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use data_encoding::BASE32;
use kubenet_core::{
    model::IpFamily,
    route::{Frontend, FrontendAddress, Route, RouteTable},
};
use sha2::{Digest, Sha256};

/// Above so many endpoints rules have no comments.
const LARGE: usize = 1_000;

/// What is programmed, and what is to be told to get there.
#[derive(Debug, Default)]
pub(crate) struct Classic {
    pod_cidr: String,
    ports: BTreeMap<Frontend, Port>,
    endpoints: usize,
    /// Whether the jumps from the kernel's chains have been told.
    started: bool,
}

/// A Service port.
#[derive(Debug)]
struct Port {
    name: String,
    frontend: SocketAddr,
    protocol: String,
    chain: String,
    endpoints: Vec<(SocketAddr, String)>,
}

impl Classic {
    /// A layout for a cluster with these pod addresses.
    pub(crate) fn new(pod_cidr: impl ToString) -> Self {
        Self { pod_cidr: pod_cidr.to_string(), ..Self::default() }
    }

    /// Takes all routes. The transaction that programs them where there is nothing yet.
    pub(crate) fn first(&mut self, table: &RouteTable) -> String {
        table.routes().for_each(|route| self.take(route));
        self.started = true;
        self.transaction(self.ports.keys().copied().collect(), &BTreeSet::new(), true)
    }

    /// Takes routes that are not there yet. Transactions of so many Service ports each, the list last.
    pub(crate) fn in_chunks(&mut self, table: &RouteTable, ports: usize) -> Vec<String> {
        let fresh: Vec<_> =
            table.routes().filter(|route| !self.ports.contains_key(&route.frontend)).collect();
        fresh.iter().for_each(|route| self.take(route));
        let frontends: Vec<_> = fresh.iter().map(|route| route.frontend).collect();
        let chunks = frontends.chunks(ports).map(|chunk| self.chains_alone(chunk));
        let mut texts: Vec<_> = chunks.collect();
        texts.push(self.transaction(Vec::new(), &BTreeSet::new(), !self.started));
        self.started = true;
        texts
    }

    /// Takes routes that changed. The transaction that gets there.
    pub(crate) fn change<'a>(&mut self, routes: impl IntoIterator<Item = &'a Route>) -> String {
        let (mut changed, mut gone) = (Vec::new(), BTreeSet::new());
        for route in routes {
            let before = self.ports.get(&route.frontend).map(|port| port.chains()).unwrap_or_default();
            self.take(route);
            let after = self.ports.get(&route.frontend).map(|port| port.chains()).unwrap_or_default();
            gone.extend(before.difference(&after).cloned());
            changed.push(route.frontend);
        }
        self.transaction(changed, &gone, false)
    }

    fn take(&mut self, route: &Route) {
        let FrontendAddress::Ip(address) = route.frontend.address else { return };
        if route.frontend.family() != IpFamily::V4 {
            return;
        }
        let protocol = route.frontend.protocol.to_string().to_lowercase();
        let name = route.service_port.to_string();
        let chain = format!("KUBE-SVC-{}", hash(&[&name, &protocol]));
        let endpoints = route.internal.backends.iter().map(|backend| {
            let at = backend.socket_addr();
            (at, format!("KUBE-SEP-{}", hash(&[&name, &protocol, &at.to_string()])))
        });
        let endpoints = endpoints.collect::<Vec<_>>();
        let frontend = SocketAddr::new(address, route.frontend.port.get());
        let port = Port { name, frontend, protocol, chain, endpoints };
        self.endpoints += port.endpoints.len();
        if let Some(before) = self.ports.insert(route.frontend, port) {
            self.endpoints -= before.endpoints.len();
        }
    }

    fn comments(&self) -> bool {
        self.endpoints <= LARGE
    }
}

impl Port {
    fn chains(&self) -> BTreeSet<String> {
        let endpoints = self.endpoints.iter().map(|(_, chain)| chain.clone());
        endpoints.chain([self.chain.clone()]).collect()
    }
}

fn hash(parts: &[&str]) -> String {
    let mut digest = Sha256::new();
    parts.iter().for_each(|part| digest.update(part));
    let mut text = BASE32.encode(&digest.finalize());
    text.truncate(16);
    text
}
