//! Connections of the node itself, by real sockets: some datapaths translate there, and not the packets.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use kubenet_core::model::Protocol;
use nix::libc;
use socket2::{Domain, Socket, Type};

use super::{Dialled, frame};

/// The segment sizes that a socket may announce.
const SMALLEST: u16 = 88;
const LARGEST: u16 = 32_767;

/// The next mark of a TCP socket, whose packets tell nothing else that would survive every translation.
pub(super) fn next_segment_size(last: u16) -> u16 {
    if (SMALLEST..LARGEST).contains(&last) { last + 1 } else { SMALLEST }
}

/// Begins a connection and forgets it. What becomes of its packet is seen elsewhere; an error means that there
/// was none, or that the client was told. Whoever [is unbound](Dialled::is_unbound) is bound to a port alone;
/// `client` becomes what the kernel chose.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] when the client's port is taken, and what the socket said.
pub(super) fn dial(client: &mut SocketAddr, flow: &Dialled, mark: u32, segment_size: u16) -> io::Result<()> {
    let (to, mut bound) = (flow.destination(), *client);
    if flow.is_unbound() {
        bound.set_ip(match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        });
    }
    let mut chosen = |socket: &Socket| {
        if let Some(address) = socket.local_addr()?.as_socket() {
            client.set_ip(address.ip());
        }
        Ok::<_, io::Error>(())
    };
    let domain = Domain::for_address(to);
    match flow.protocol {
        Protocol::Tcp => {
            let socket = Socket::new(domain, Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            socket.set_tcp_mss(segment_size.into())?;
            socket.bind(&bound.into())?;
            match socket.connect(&to.into()) {
                Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => Err(e),
                _ => chosen(&socket),
            }
        }
        Protocol::Udp => {
            let socket = Socket::new(domain, Type::DGRAM, None)?;
            socket.set_nonblocking(true)?;
            socket.bind(&bound.into())?;
            socket.connect(&to.into())?;
            chosen(&socket)?;
            socket.send(&frame::datagram(mark)).map(drop)
        }
        // Without the kernel's help, which it may not have.
        Protocol::Sctp => {
            let number = socket2::Protocol::from(libc::IPPROTO_SCTP);
            let socket = Socket::new(domain, Type::RAW, Some(number))?;
            socket.bind(&portless(bound.ip()).into())?;
            socket.connect(&portless(to.ip()).into())?;
            chosen(&socket)?;
            socket.send(&frame::sctp_init(bound.port(), to.port(), mark)).map(drop)
        }
    }
}

fn portless(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, 0)
}
