//! The kernel's table of flows, over netlink.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use kubenet_core::model::{IpFamily, Protocol};
use netlink_packet_core::{
    DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
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
pub(super) struct Flow {
    pub(super) protocol: Protocol,
    pub(super) client: IpAddr,
    /// What the client dialled.
    pub(super) destination: SocketAddr,
    /// Who answers.
    pub(super) answers: SocketAddr,
    pub(super) translated: bool,
    /// A TCP connection that has ended.
    pub(super) ended: bool,
    /// Names the flow to the kernel.
    original: Vec<Tuple>,
}

/// Which flows the kernel lists: what the client dialled must be so. Kernels before 5.8 list all, and others
/// may be among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Selected {
    All,
    Udp,
    /// UDP to this port, at this address or at any.
    UdpTo(Option<IpAddr>, u16),
}

/// `IPCTNL_MSG_CT_GET`. The crate knows no filters, so that they are written attribute by attribute.
const GET: u8 = 1;
/// `CTA_TUPLE_ORIG` and `CTA_FILTER` of the kernel's `enum ctattr_type`.
const TUPLE: u16 = 1 | NLA_F_NESTED;
const FILTER: u16 = 25 | NLA_F_NESTED;
/// `CTA_FILTER_ORIG_FLAGS`: what of `CTA_TUPLE_ORIG` must be equal, as bits in the machine's byte order...
const FILTER_ORIGINAL: u16 = 1;
/// ...which are `CTA_FILTER_F_CTA_IP_DST`, `CTA_FILTER_F_CTA_PROTO_NUM` and `CTA_FILTER_F_CTA_PROTO_DST_PORT`
/// of net/netfilter/nf_internals.h.
const SAME_ADDRESS: u32 = 1 << 1;
const SAME_PROTOCOL: u32 = 1 << 3;
const SAME_PORT: u32 = 1 << 5;

impl Selected {
    fn question(self) -> ConntrackMessage {
        let mut same = SAME_PROTOCOL;
        let mut tuple = Vec::new();
        let mut protocol = vec![ProtoTuple::Protocol(Number::Udp)];
        match self {
            Self::All => return ConntrackMessage::Get(Vec::new()),
            Self::Udp => {}
            Self::UdpTo(address, port) => {
                same |= SAME_PORT;
                protocol.push(ProtoTuple::DestinationPort(port));
                if let Some(address) = address {
                    same |= SAME_ADDRESS;
                    tuple.push(Tuple::Ip(vec![IPTuple::DestinationAddress(address)]));
                }
            }
        }
        tuple.push(Tuple::Proto(protocol));
        let filter = DefaultNla::new(FILTER_ORIGINAL, same.to_ne_bytes().to_vec());
        let attributes = vec![
            DefaultNla::new(TUPLE, emitted(&tuple.as_slice())),
            DefaultNla::new(FILTER, emitted(&filter)),
        ];
        ConntrackMessage::Other { message_type: GET, attributes }
    }
}

fn emitted(attributes: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

/// A socket in the network namespace of the thread that opens it.
pub(super) struct Conntrack {
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
    pub(super) fn open() -> io::Result<Self> {
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

    /// The flows that are `wanted`, of those that are selected.
    pub(super) fn flows(
        &mut self,
        family: IpFamily,
        selected: Selected,
        mut wanted: impl FnMut(&Flow) -> bool,
    ) -> io::Result<Vec<Flow>> {
        self.send(family, NLM_F_DUMP, selected.question())?;
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

    pub(super) fn delete(&mut self, family: IpFamily, flow: Flow) -> io::Result<()> {
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
