//! The lab: network namespaces, veth pairs and real packets.

use std::{error::Error, io::IsTerminal, net::SocketAddr, sync::Arc, time::Duration};

use futures::executor::block_on;
use kubenet_core::{
    datapath::{Close, Datapath, DatapathError},
    kubernetes::Manifests,
    model::{NodeInfo, Protocol},
    router::ServiceRouter,
};
use kubenet_ebpf::EbpfDatapath;
use kubenet_iptables::{IptablesDatapath, Variant};
use kubenet_testkit::lab::{self, Lab, LabConfig, LabError, Place, RequestError, Server};

use crate::{
    args::Kind,
    stage::{HERE, Stage},
    world::{Answer, Connection, From, World},
};

/// Name of the pod that the demo's own requests come from.
const CLIENT: &str = "client";

const TIMEOUT: Duration = Duration::from_secs(3);

pub(crate) struct LabWorld {
    _servers: Vec<Server>,
    lab: Lab,
}

impl LabWorld {
    /// Builds the lab and starts the servers. The inner error says why this machine cannot have one.
    pub(crate) fn build(stage: &Stage) -> Result<Result<Self, String>, Box<dyn Error>> {
        eprintln!("Building two nodes, {} pods and a client outside ...", stage.pods.len() + 1);
        let lab = match Lab::new(LabConfig::new()) {
            Ok(lab) => lab,
            Err(LabError::Unsupported(reason)) => return Ok(Err(reason)),
            Err(error) => return Err(error.into()),
        };
        let mut servers = Vec::new();
        for pod in &stage.pods {
            lab.add_pod_with(&pod.name, pod.node, &pod.addresses)?;
            for port in &pod.ports {
                servers.push(lab.serve(pod.name.as_str(), port.get())?);
            }
        }
        let client = if stage.pods.iter().any(|pod| pod.name == CLIENT) { None } else { Some(CLIENT) };
        if let Some(client) = client {
            lab.add_pod(client, HERE)?;
        }
        Ok(Ok(Self { _servers: servers, lab }))
    }

    /// Leaves out the datapaths that this machine cannot run; an error if one was asked for by name.
    pub(crate) fn usable(&self, kinds: &[Kind], asked: bool) -> Result<Vec<Kind>, Box<dyn Error>> {
        let mut usable = Vec::new();
        for &kind in kinds {
            match self.datapath(kind).and_then(|datapath| block_on(datapath.close(Close::Remove))) {
                Ok(()) => usable.push(kind),
                Err(error) if asked => return Err(error.into()),
                Err(error) => eprintln!("Left out: {error}"),
            }
        }
        if usable.is_empty() {
            return Err("no datapath runs on this machine".into());
        }
        Ok(usable)
    }

    fn place(&self, from: From) -> Place {
        match from {
            From::Pod => Place::from(CLIENT),
            From::Node => Place::from(HERE),
            From::Outside => Place::Outside,
        }
    }
}

impl World for LabWorld {
    fn is_simulated(&self) -> bool {
        false
    }

    fn node(&self) -> NodeInfo {
        self.lab.node_info(HERE).unwrap_or_else(|error| unreachable!("the lab's own node: {error}"))
    }

    fn datapath(&self, kind: Kind) -> Result<Arc<dyn Datapath>, DatapathError> {
        let node = self.lab.node(HERE);
        let iptables = |variant| -> Result<Arc<dyn Datapath>, DatapathError> {
            let builder = IptablesDatapath::builder().variant(variant);
            Ok(Arc::new(builder.network_namespace(node.netns().path()).build()?))
        };
        match kind {
            Kind::IptablesNft => iptables(Variant::Nft),
            Kind::IptablesLegacy => iptables(Variant::Legacy),
            Kind::Ebpf => {
                let mut builder = EbpfDatapath::builder()
                    .network_namespace(node.netns().path())
                    .external_interface(node.external_interface());
                if let Ok(cgroup) = self.lab.cgroup() {
                    builder = builder.cgroup(cgroup);
                }
                for interface in node.pod_interfaces() {
                    builder = builder.pod_interface(interface);
                }
                Ok(Arc::new(builder.build()?))
            }
            Kind::Memory => unreachable!("the memory datapath has a world of its own"),
        }
    }

    fn request(&self, from: From, protocol: Protocol, to: SocketAddr) -> Result<Answer, String> {
        let place = self.place(from);
        let answer = match protocol {
            Protocol::Udp => match self.lab.udp_ask(place.clone(), to, TIMEOUT) {
                // The backend went just then, and eBPF has the socket choose again: so does a client.
                Err(RequestError::Reset) => self.lab.udp_ask(place, to, TIMEOUT),
                answer => answer,
            },
            _ => self.lab.http_get(place, to, TIMEOUT),
        };
        let answer = answer.map_err(|error| format!("{from:?} to {to}: {error}"))?;
        Ok(Answer { backend: answer.backend, connect: answer.connect })
    }

    fn connect(&self, from: From, to: SocketAddr) -> Result<Box<dyn Connection>, String> {
        let connection = self.lab.connect(self.place(from), to, TIMEOUT);
        Ok(Box::new(connection.map_err(|error| format!("{from:?} to {to}: {error}"))?))
    }

    fn is_refused(&self, from: From, protocol: Protocol, to: SocketAddr) -> Result<(), String> {
        let place = self.place(from);
        let result = match protocol {
            Protocol::Udp => self.lab.udp_ask(place, to, TIMEOUT),
            _ => self.lab.http_get(place, to, TIMEOUT),
        };
        match result {
            Err(error) if error.is_refused() => Ok(()),
            Err(error) => Err(format!("{from:?} to {to}: {error} instead of refused")),
            Ok(answer) => Err(format!("{from:?} to {to}: answered by {}", answer.backend)),
        }
    }

    fn keep(&self, manifests: &Manifests, kind: Option<Kind>) -> Result<(), Box<dyn Error>> {
        let Some(kind) = kind else { return Ok(()) };
        let datapath = self.datapath(kind)?;
        let outlives_us = datapath.capabilities().keep_on_close;
        let router = ServiceRouter::start(self.node(), datapath)?;
        router.submit(manifests.clone())?;
        block_on(router.flush())?;
        println!("Node node-a routes through {}.", kind.name());
        if std::io::stdin().is_terminal() {
            print!("{}", self.lab.instructions());
            println!("Press Enter to remove everything.");
            std::io::stdin().read_line(&mut String::new())?;
            block_on(router.close(Close::Remove))?;
        } else {
            let (what, how) = if outlives_us {
                ("the servers with it; its rules stay", Close::Keep)
            } else {
                ("the servers and its programs with it", Close::Remove)
            };
            println!("Nobody is at the terminal, so this process ends, and {what}.");
            self.lab.keep()?;
            block_on(router.close(how))?;
        }
        Ok(())
    }
}

impl Connection for lab::Connection {
    fn ask(&mut self) -> Result<Answer, String> {
        let answer = lab::Connection::ask(self, TIMEOUT).map_err(|error| error.to_string())?;
        Ok(Answer { backend: answer.backend, connect: Duration::ZERO })
    }
}
