//! Where the scenario plays: in the lab with real packets, or simulated.

use std::{
    error::Error,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use kubenet_core::{
    datapath::{Datapath, DatapathError},
    kubernetes::Manifests,
    model::{IpFamily, NodeInfo, Protocol},
};

use crate::{args::Kind, stage::Target};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Pod,
    Node,
    Outside,
}

impl From {
    pub(crate) const ALL: [From; 3] = [From::Pod, From::Node, From::Outside];
}

/// A request that was answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) backend: String,
    pub(crate) connect: Duration,
}

/// An open connection.
pub(crate) trait Connection: Send {
    fn ask(&mut self) -> Result<Answer, String>;
}

/// The cluster as the scenario sees it.
pub(crate) trait World: Send + Sync {
    fn is_simulated(&self) -> bool;
    fn node(&self) -> NodeInfo;
    /// Builds a datapath; it programs nothing yet.
    fn datapath(&self, kind: Kind) -> Result<Arc<dyn Datapath>, DatapathError>;
    /// Sends one request and waits for the answer.
    fn request(&self, from: From, protocol: Protocol, to: SocketAddr) -> Result<Answer, String>;
    fn connect(&self, from: From, to: SocketAddr) -> Result<Box<dyn Connection>, String>;
    /// Whether a client is refused at once.
    fn is_refused(&self, from: From, protocol: Protocol, to: SocketAddr) -> Result<(), String>;
    /// The node's address of a family, where clients outside dial node ports.
    fn node_address(&self, family: IpFamily) -> Option<IpAddr> {
        self.node().addresses().iter().copied().find(|address| IpFamily::of(*address) == family)
    }
    /// Where this client dials a target, if it can.
    fn dial(&self, from: From, target: &Target) -> Option<SocketAddr> {
        match from {
            From::Pod | From::Node => Some(target.inside),
            From::Outside => {
                let (family, port) = target.node_port?;
                Some(SocketAddr::new(self.node_address(family)?, port.get()))
            }
        }
    }
    /// Leaves everything up.
    fn keep(&self, manifests: &Manifests, kind: Option<Kind>) -> Result<(), Box<dyn Error>>;
}
