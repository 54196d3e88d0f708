//! Connected UDP sockets of this node: the programs translated their address once, and those that would stay with a
//! backend that is gone are cut, by `SOCK_DESTROY` of sock_diag(7). Their owners get `ECONNABORTED` and connect again.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    num::NonZeroU16,
    os::fd::AsRawFd,
};

use kubenet_core::{
    model::{IpFamily, Protocol},
    route::Frontend,
};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, SockProtocol, recv},
};

use super::netlink::{self, HEADER, NLM_F_DUMP, NLM_F_REQUEST, cut_off, word};
use crate::layout::SocketFlow;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_ACK: u16 = 4;
/// `TCP_ESTABLISHED`, which a UDP socket is when it is connected.
const CONNECTED: u32 = 1 << 1;

/// A connected UDP socket of the current network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Connected {
    /// `AF_INET` or `AF_INET6`.
    family: u8,
    /// `struct inet_diag_sockid`: both ends and the socket's cookie.
    id: [u8; 48],
    /// Where its packets go.
    pub(crate) peer: SocketAddr,
}

/// Where a Service sent a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) frontend: Frontend,
    pub(crate) service: u32,
    pub(crate) backend: SocketAddr,
}

impl Given {
    /// What the programs kept of it. The socket may be connected to something else: by now, which no program saw, or
    /// still.
    pub(crate) fn by(flow: &SocketFlow) -> Option<Self> {
        let backend = SocketAddr::new(IpAddr::from(flow.addr).to_canonical(), flow.port.into());
        let port = NonZeroU16::new(flow.frontend_port.into())?;
        let address = IpAddr::from(flow.frontend).to_canonical();
        let frontend = if address.is_unspecified() {
            Frontend::node_port(IpFamily::of(backend.ip()), port, Protocol::Udp)
        } else {
            Frontend::ip(address, port, Protocol::Udp)
        };
        Some(Self { frontend, service: flow.service, backend })
    }
}

impl Connected {
    /// The number by which the programs know it.
    pub(crate) fn cookie(&self) -> u64 {
        let half = |at: usize| self.id.get(at..).and_then(word).map_or(0, u64::from);
        half(40) | half(44) << 32
    }

    /// Cuts it. False when it is gone, or connected to something else by now.
    pub(crate) fn destroy(&self) -> io::Result<bool> {
        let request = request((SOCK_DESTROY, NLM_F_ACK), self.family, &self.id);
        let socket = netlink::ask(SockProtocol::NetlinkSockDiag, &request)?;
        let mut answer = vec![0; 1 << 12];
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let code = answer.get(..length).and_then(|answer| answer.get(HEADER..)).and_then(word);
        match code.map(|code| Errno::from_raw(code.cast_signed().wrapping_neg())) {
            Some(Errno::UnknownErrno) => Ok(true),
            Some(Errno::ENOENT) => Ok(false),
            Some(e) => Err(e.into()),
            None => Err(cut_off()),
        }
    }
}

/// All connected UDP sockets of the current network namespace, those of IPv4 in IPv6 sockets too.
pub(crate) fn list() -> io::Result<Vec<Connected>> {
    let mut found = Vec::new();
    for family in [nix::libc::AF_INET as u8, nix::libc::AF_INET6 as u8] {
        let request = request((SOCK_DIAG_BY_FAMILY, NLM_F_DUMP), family, &[0; 48]);
        netlink::dump(SockProtocol::NetlinkSockDiag, &request, SOCK_DIAG_BY_FAMILY, |message| {
            found.extend(connected(message));
        })?;
    }
    Ok(found)
}

/// Whether the kernel cuts UDP sockets (`CONFIG_INET_DIAG_DESTROY`, `CONFIG_INET_UDP_DIAG`): tries it on a socket of
/// its own that talks to itself.
pub(crate) fn can_destroy() -> bool {
    let attempt = || -> io::Result<bool> {
        let own = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = own.local_addr()?;
        own.connect(address)?;
        let is_own = |other: &Connected| {
            other.peer == address && other.id.first_chunk() == Some(&address.port().to_be_bytes())
        };
        let Some(found) = list()?.into_iter().find(is_own) else { return Ok(false) };
        found.destroy()
    };
    attempt().unwrap_or_else(|error| {
        tracing::debug!(%error, "sockets cannot be cut");
        false
    })
}

/// A header and `struct inet_diag_req_v2`.
fn request((kind, flags): (u16, u16), family: u8, id: &[u8; 48]) -> Vec<u8> {
    let length = HEADER + 8 + id.len();
    let mut request = Vec::with_capacity(length);
    request.extend((length as u32).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence and sender: nothing else comes to this socket.
    request.extend([0; 8]);
    request.extend([family, Protocol::Udp.number(), 0, 0]);
    request.extend(CONNECTED.to_ne_bytes());
    request.extend(id);
    request
}

fn connected(message: &[u8]) -> Option<Connected> {
    let body = message.get(HEADER..)?;
    let id: [u8; 48] = *body.get(4..)?.first_chunk()?;
    let family = *body.first()?;
    let port = u16::from_be_bytes(*id.get(2..)?.first_chunk()?);
    let address: IpAddr = if i32::from(family) == nix::libc::AF_INET {
        Ipv4Addr::from(*id.get(20..)?.first_chunk::<4>()?).into()
    } else {
        Ipv6Addr::from(*id.get(20..)?.first_chunk::<16>()?).to_canonical()
    };
    Some(Connected { family, id, peer: SocketAddr::new(address, port) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message about a socket.
    fn message(family: u8, peer: &[u8], port: u16) -> Vec<u8> {
        let mut body = vec![0; 72];
        body[0] = family;
        body[6..8].copy_from_slice(&port.to_be_bytes());
        body[24..24 + peer.len()].copy_from_slice(peer);
        body[44..48].copy_from_slice(&7u32.to_ne_bytes());
        body[48..52].copy_from_slice(&1u32.to_ne_bytes());
        let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        message.resize(HEADER, 0);
        message.extend(body);
        message
    }

    #[test]
    fn a_socket_says_what_it_was_given_and_by_whom() {
        let [v4, v6] = [nix::libc::AF_INET as u8, nix::libc::AF_INET6 as u8];
        let mapped = |a, b, c, d| Ipv4Addr::new(a, b, c, d).to_ipv6_mapped();
        let flow = SocketFlow {
            addr: mapped(10, 244, 0, 7).into(),
            frontend: mapped(10, 96, 0, 1).into(),
            port: 5353.into(),
            frontend_port: 53.into(),
            service: 9,
        };
        let port = NonZeroU16::new(53).unwrap();
        let expected = Given {
            frontend: Frontend::ip([10, 96, 0, 1].into(), port, Protocol::Udp),
            service: 9,
            backend: "10.244.0.7:5353".parse().unwrap(),
        };
        assert_eq!(Given::by(&flow), Some(expected));
        for (family, peer) in [(v4, &[10, 244, 0, 7][..]), (v6, &mapped(10, 244, 0, 7).octets())] {
            let socket = connected(&message(family, peer, 5353)).unwrap();
            assert_eq!((socket.cookie(), socket.peer), (1 << 32 | 7, expected.backend));
        }
        let given = Given::by(&SocketFlow { frontend: mapped(0, 0, 0, 0).into(), ..flow }).unwrap();
        assert_eq!(given.frontend, Frontend::node_port(IpFamily::V4, port, Protocol::Udp));
        assert_eq!(Given::by(&SocketFlow { frontend_port: 0.into(), ..flow }), None);
        let whole = message(v4, &[10, 244, 0, 7], 5353);
        for length in 0..whole.len() {
            let _result = connected(&whole[..length]);
        }
    }
}
