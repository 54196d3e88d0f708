use std::{num::NonZeroU16, sync::Arc};

use crate::model::Protocol;

/// A port of a [`Service`](super::Service).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    pub(super) name: Arc<str>,
    pub(super) protocol: Protocol,
    pub(super) port: NonZeroU16,
    pub(super) node_port: Option<NonZeroU16>,
}

impl ServicePort {
    /// A port. An empty name is allowed where it is the only one.
    pub fn new(name: &str, protocol: Protocol, port: NonZeroU16) -> Self {
        Self { name: name.into(), protocol, port, node_port: None }
    }

    /// The same on a port of every node.
    #[must_use]
    pub fn with_node_port(mut self, node_port: NonZeroU16) -> Self {
        self.node_port = Some(node_port);
        self
    }

    /// Its name; slices refer to it.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its protocol.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The port that clients dial on the Service's addresses.
    pub fn port(&self) -> NonZeroU16 {
        self.port
    }

    /// The port that clients dial on the nodes.
    pub fn node_port(&self) -> Option<NonZeroU16> {
        self.node_port
    }
}
