//! The world of real packets.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use kubenet_core::{
    datapath::{Datapath, DatapathError},
    model::{IpFamily, Protocol},
};

use super::{
    Subject,
    fixture::{BACKEND_PORT, PODS},
    world::{Got, Live, Narrow, World},
};
use crate::{
    lab::{Answer, Connection, Lab, LabConfig, LabError, NarrowPath, RequestError, Server, UdpFlow},
    place::{Node, Place},
};

pub(super) struct Real<'s> {
    // Before the lab, so that the sockets go first.
    _servers: Vec<Server>,
    lab: Lab,
    subject: &'s dyn Subject,
}

impl<'s> Real<'s> {
    pub(super) fn new(subject: &'s dyn Subject) -> Result<Self, LabError> {
        let mut config = LabConfig::new();
        for (pod, node) in PODS {
            config = config.pod(pod, node);
        }
        let lab = Lab::new(config)?;
        let mut servers = Vec::new();
        let backends =
            PODS.iter().map(|(pod, _)| Place::from(*pod)).filter(|p| !p.name().starts_with("client"));
        for place in backends.chain(Node::ALL.map(Place::from)) {
            servers.push(lab.serve(place, BACKEND_PORT.get())?);
        }
        Ok(Self { _servers: servers, lab, subject })
    }
}

impl World for Real<'_> {
    fn simulated(&self) -> bool {
        false
    }

    fn families(&self) -> &[IpFamily] {
        self.lab.families()
    }

    fn protocols(&self) -> &[Protocol] {
        &[Protocol::Tcp, Protocol::Udp]
    }

    fn start(&self) -> Result<Arc<dyn Datapath>, DatapathError> {
        self.subject.start(&self.lab)
    }

    fn address(&self, place: &Place, family: IpFamily) -> Result<IpAddr, String> {
        self.lab.address(place, family).map_err(|e| e.to_string())
    }

    fn ask(&self, from: &Place, to: SocketAddr, protocol: Protocol, timeout: Duration) -> Got {
        got(match protocol {
            Protocol::Udp => self.lab.udp_ask(from, to, timeout),
            _ => self.lab.http_get(from, to, timeout),
        })
    }

    fn open(
        &self,
        (from, port): (&Place, u16),
        to: SocketAddr,
        protocol: Protocol,
        timeout: Duration,
    ) -> Result<Box<dyn Live>, Got> {
        let opened = match protocol {
            Protocol::Udp => self.lab.udp_flow(from, to).map(|flow| Box::new(flow) as Box<dyn Live>),
            _ => self
                .lab
                .connect_from_port(from, port, to, timeout)
                .map(|connection| Box::new(connection) as _),
        };
        opened.map_err(|error| got(Err(error)))
    }

    fn narrow(&self, node: Node, to: &Place, mtu: u32) -> Result<Option<Box<dyn Narrow>>, String> {
        let narrow = self.lab.narrow(node, to, mtu).map_err(|e| e.to_string())?;
        Ok(Some(Box::new(narrow)))
    }

    fn wait(&self, time: Duration) {
        std::thread::sleep(time);
    }

    fn leftovers(&self) -> Vec<String> {
        self.subject.leftovers(&self.lab)
    }
}

impl Live for Connection {
    fn ask(&mut self, timeout: Duration) -> Got {
        got(Connection::ask(self, timeout))
    }

    fn ask_at_length(&mut self, length: usize, timeout: Duration) -> Got {
        got(Connection::ask_at_length(self, length, timeout))
    }
}

impl Live for UdpFlow {
    fn ask(&mut self, timeout: Duration) -> Got {
        got(UdpFlow::ask(self, timeout))
    }

    fn ask_at_length(&mut self, length: usize, timeout: Duration) -> Got {
        got(UdpFlow::ask_at_length(self, length, timeout))
    }
}

impl Narrow for NarrowPath {}

fn got(result: Result<Answer, RequestError>) -> Got {
    match result {
        Ok(answer) => Got::Answer { backend: answer.backend, peer: answer.peer.ip() },
        Err(RequestError::Refused) => Got::Refused,
        Err(RequestError::TimedOut { .. }) => Got::Silence,
        // A SYN that is dropped on its way out of this node's own socket may fail the call.
        Err(RequestError::Io(error)) if error.kind() == std::io::ErrorKind::PermissionDenied => Got::Silence,
        Err(RequestError::Unreachable) => Got::Unreachable,
        Err(RequestError::Reset | RequestError::Closed) => Got::Cut,
        Err(error) => Got::Error(error.to_string()),
    }
}
