//! Connections of the node itself, by real sockets: some datapaths translate there, and not the packets.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use kubenet_core::model::Protocol;
use nix::libc;
use socket2::{Domain, Socket, Type};

use super::frame;

/// The segment sizes that a socket may announce.
const SMALLEST: u16 = 88;
const LARGEST: u16 = 32_767;

/// The next mark of a TCP socket, whose packets tell nothing else that would survive every translation.
pub(super) fn next_segment_size(last: u16) -> u16 {
    if (SMALLEST..LARGEST).contains(&last) { last + 1 } else { SMALLEST }
}

/// Begins a connection and forgets it. What becomes of its packet is seen elsewhere; an error means that there
/// was none, or that the client was told.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] when the client's port is taken, and what the socket said.
pub(super) fn dial(
    client: SocketAddr,
    to: SocketAddr,
    protocol: Protocol,
    mark: u32,
    segment_size: u16,
) -> io::Result<()> {
    let domain = Domain::for_address(to);
    match protocol {
        Protocol::Tcp => {
            let socket = Socket::new(domain, Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            socket.set_tcp_mss(segment_size.into())?;
            socket.bind(&client.into())?;
            match socket.connect(&to.into()) {
                Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
                other => other,
            }
        }
        Protocol::Udp => {
            let socket = Socket::new(domain, Type::DGRAM, None)?;
            socket.set_nonblocking(true)?;
            socket.bind(&client.into())?;
            socket.connect(&to.into())?;
            socket.send(&frame::datagram(mark)).map(drop)
        }
        // Without the kernel's help, which it may not have.
        Protocol::Sctp => {
            let number = socket2::Protocol::from(libc::IPPROTO_SCTP);
            let socket = Socket::new(domain, Type::RAW, Some(number))?;
            socket.bind(&portless(client.ip()).into())?;
            let packet = frame::sctp_init(client.port(), to.port(), mark);
            socket.send_to(&packet, &portless(to.ip()).into()).map(drop)
        }
    }
}

fn portless(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, 0)
}
