//! The kernel's connection tracking over netlink: what rules cannot do about flows that began before them.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use ipnet::Ipv4Net;
use kubenet_core::{
    model::{IpFamily, Protocol},
    route::{Frontend, FrontendAddress, NodeRouting, RouteTable, SourceRanges},
};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{
        ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple,
        Protocol as Number, Status, Tuple,
    },
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_NETFILTER};

/// A flow, as far as it concerns us.
#[derive(Clone, Debug)]
struct Flow {
    protocol: Protocol,
    client: IpAddr,
    /// What the client dialled.
    destination: SocketAddr,
    /// Who answers.
    answers: SocketAddr,
    translated: bool,
    /// A TCP connection that has ended.
    ended: bool,
    /// Names the flow to the kernel.
    original: Vec<Tuple>,
}

/// A socket in the network namespace of the thread that opens it.
struct Conntrack {
    socket: Socket,
    sequence: u32,
}

fn family_number(family: IpFamily) -> NetfilterProtoFamily {
    match family {
        IpFamily::V4 => NetfilterProtoFamily::IPv4,
        IpFamily::V6 => NetfilterProtoFamily::IPv6,
    }
}

impl Conntrack {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    fn send(&mut self, family: IpFamily, flags: u16, message: ConntrackMessage) -> io::Result<()> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let header_of_family = NetfilterHeader::new(family_number(family), 0, 0);
        let payload = NetlinkPayload::from(NetfilterMessage::new(header_of_family, message));
        let mut packet = NetlinkMessage::new(header, payload);
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    /// Hands every message of the answer to `each`, until the kernel ends it.
    fn receive(&mut self, mut each: impl FnMut(ConntrackMessage)) -> io::Result<()> {
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while rest.len() >= 16 {
                let message =
                    NetlinkMessage::<NetfilterMessage>::deserialize(rest).map_err(io::Error::other)?;
                // Messages are aligned to 4 bytes.
                let length = (message.header.length as usize).next_multiple_of(4).max(16);
                rest = rest.get(length..).unwrap_or_default();
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(NetfilterMessage {
                        inner: NetfilterMessageInner::Conntrack(message),
                        ..
                    }) => each(message),
                    _ => {}
                }
            }
        }
    }

    fn flows(&mut self, family: IpFamily, mut wanted: impl FnMut(&Flow) -> bool) -> io::Result<Vec<Flow>> {
        self.send(family, NLM_F_DUMP, ConntrackMessage::Get(Vec::new()))?;
        let mut flows = Vec::new();
        self.receive(|message| {
            if let ConntrackMessage::New(attributes) = message
                && let Some(flow) = flow(attributes)
                && wanted(&flow)
            {
                flows.push(flow);
            }
        })?;
        Ok(flows)
    }

    fn delete(&mut self, family: IpFamily, flow: Flow) -> io::Result<()> {
        let attributes = vec![ConntrackAttribute::CtaTupleOrig(flow.original)];
        self.send(family, NLM_F_ACK, ConntrackMessage::Delete(attributes))?;
        match self.receive(|_| ()) {
            // It ended by itself.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

/// Addresses, ports and protocol of one direction: source, destination, IANA number.
fn endpoints(tuples: &[Tuple]) -> Option<(SocketAddr, SocketAddr, u8)> {
    let (mut source, mut destination): (Option<IpAddr>, Option<IpAddr>) = (None, None);
    let (mut source_port, mut destination_port, mut number) = (0, 0, None);
    for tuple in tuples {
        match tuple {
            Tuple::Ip(parts) => {
                for part in parts {
                    match part {
                        IPTuple::SourceAddress(address) => source = Some(*address),
                        IPTuple::DestinationAddress(address) => destination = Some(*address),
                        _ => {}
                    }
                }
            }
            Tuple::Proto(parts) => {
                for part in parts {
                    match part {
                        ProtoTuple::Protocol(Number::Tcp) => number = Some(6),
                        ProtoTuple::Protocol(Number::Udp) => number = Some(17),
                        ProtoTuple::Protocol(Number::Sctp) => number = Some(132),
                        ProtoTuple::SourcePort(port) => source_port = *port,
                        ProtoTuple::DestinationPort(port) => destination_port = *port,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some((SocketAddr::new(source?, source_port), SocketAddr::new(destination?, destination_port), number?))
}

/// TCP states of connections that have ended: TIME_WAIT and CLOSE.
const ENDED: [u8; 2] = [7, 8];

fn flow(attributes: Vec<ConntrackAttribute>) -> Option<Flow> {
    let (mut original, mut reply, mut status, mut state) = (None, None, Status::empty(), None);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuples) => original = Some(tuples),
            ConntrackAttribute::CtaTupleReply(tuples) => reply = Some(tuples),
            ConntrackAttribute::CtaStatus(bits) => status = bits,
            ConntrackAttribute::CtaProtoInfo(infos) => {
                state = infos.iter().find_map(|info| match info {
                    ProtoInfo::TCP(parts) => parts.iter().find_map(|part| match part {
                        ProtoInfoTCP::State(state) => Some(*state),
                        _ => None,
                    }),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let original = original?;
    let (client, destination, number) = endpoints(&original)?;
    let (answers, _, _) = endpoints(&reply?)?;
    Some(Flow {
        protocol: Protocol::from_number(number)?,
        client: client.ip(),
        destination,
        answers,
        translated: status.contains(Status::DstNat),
        ended: state.is_some_and(|state| ENDED.contains(&state)),
        original,
    })
}

/// UDP frontends whose flows are to be looked at after an update ([L2]), with the backends that they may
/// keep, and the clients that may keep them ([R1]). Other flows are cut, so that the client's next datagram is
/// routed anew.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    frontends: HashMap<SocketAddr, Verdict>,
    /// The loopback addresses that had node ports, or have them. In the frontends they are 127.0.0.1.
    loopback: Vec<Ipv4Net>,
    families: BTreeSet<IpFamily>,
}

#[derive(Debug)]
enum Verdict {
    /// Served: flows must lead to one of these, and come from a client that is admitted.
    Only(Vec<SocketAddr>, Option<Guard>),
    /// No longer served: flows that led to one of these end.
    Not(Vec<SocketAddr>),
}

/// Source ranges, and whom they are about.
#[derive(Debug)]
struct Guard {
    ranges: Arc<SourceRanges>,
    node: Arc<NodeRouting>,
}

impl Guard {
    fn admits(&self, client: IpAddr) -> bool {
        self.ranges.admits(self.node.origin(client, None), client)
    }
}

impl Cut {
    pub(crate) fn is_empty(&self) -> bool {
        self.frontends.is_empty()
    }

    /// Looks at the flows of a UDP frontend that `old` or `new` serves.
    pub(crate) fn add(&mut self, frontend: &Frontend, old: Option<&RouteTable>, new: &RouteTable) {
        if frontend.protocol != Protocol::Udp {
            return;
        }
        let backends = |table: &RouteTable| -> Option<Vec<SocketAddr>> {
            Some(table.get(frontend)?.backends().map(|b| b.socket_addr()).collect())
        };
        let node_addresses = new.node().node_port_addresses.iter();
        let node_addresses = node_addresses.chain(old.iter().flat_map(|t| &t.node().node_port_addresses));
        let addresses: BTreeSet<IpAddr> = match frontend.address {
            FrontendAddress::Ip(address) => [address].into(),
            FrontendAddress::NodePort(family) => {
                let loopback = (family == IpFamily::V4).then(|| self.loopback(old, new)).flatten();
                node_addresses.copied().filter(|a| IpFamily::of(*a) == family).chain(loopback).collect()
            }
        };
        for address in addresses {
            // Another route may have taken the address over, or the address may be the node's no more.
            let served = match address.is_loopback() {
                true => new.get(frontend).filter(|_| !new.node().loopback_node_ports.is_empty()),
                false => new.lookup(address, frontend.port, frontend.protocol),
            };
            let verdict = match served {
                Some(route) => {
                    let guard = |ranges| Guard { ranges: Arc::clone(ranges), node: Arc::clone(new.node()) };
                    let backends = route.backends().map(|b| b.socket_addr()).collect();
                    Verdict::Only(backends, route.source_ranges.as_ref().map(guard))
                }
                None => Verdict::Not(old.and_then(backends).unwrap_or_default()),
            };
            self.frontends.insert(SocketAddr::new(address, frontend.port.get()), verdict);
            self.families.insert(frontend.family());
        }
    }

    /// Looks at loopback addresses, too, where either table has node ports on them.
    fn loopback(&mut self, old: Option<&RouteTable>, new: &RouteTable) -> Option<IpAddr> {
        if self.loopback.is_empty() {
            let tables = old.into_iter().chain([new]);
            self.loopback =
                tables.flat_map(|table| table.node().loopback_node_ports.iter().copied()).collect();
        }
        (!self.loopback.is_empty()).then_some(Ipv4Addr::LOCALHOST.into())
    }

    fn concerns(&self, flow: &Flow) -> bool {
        if flow.protocol != Protocol::Udp {
            return false;
        }
        let mut destination = flow.destination;
        if let IpAddr::V4(address) = destination.ip()
            && self.loopback.iter().any(|net| net.contains(&address))
        {
            destination.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        match self.frontends.get(&destination) {
            Some(Verdict::Only(backends, guard)) => {
                !backends.contains(&flow.answers)
                    || guard.as_ref().is_some_and(|guard| !guard.admits(flow.client))
            }
            Some(Verdict::Not(backends)) => flow.translated && backends.contains(&flow.answers),
            None => false,
        }
    }

    /// Cuts, and says how many flows.
    pub(crate) fn run(&self) -> io::Result<usize> {
        let mut conntrack = Conntrack::open()?;
        let mut cut = 0;
        for family in &self.families {
            for flow in conntrack.flows(*family, |flow| self.concerns(flow))? {
                conntrack.delete(*family, flow)?;
                cut += 1;
            }
        }
        Ok(cut)
    }
}

/// How many flows of a family the kernel translates.
pub(crate) fn translated_flows(family: IpFamily) -> io::Result<u64> {
    let flows = Conntrack::open()?.flows(family, |flow| flow.translated && !flow.ended)?;
    Ok(flows.len() as u64)
}
