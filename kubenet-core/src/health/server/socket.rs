use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, Socket, Type};

const BACKLOG: i32 = 1024;

/// Listens at an address. With `dual`, `::` is all addresses of both families, or all of IPv4 where the system
/// has no IPv6; otherwise an IPv6 address is of IPv6 alone.
pub(super) fn listen(address: SocketAddr, dual: bool) -> io::Result<TcpListener> {
    if dual && address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        listen_dual(address.port(), open)
    } else {
        open(address, true)
    }
}

fn listen_dual<T>(port: u16, open: impl Fn(SocketAddr, bool) -> io::Result<T>) -> io::Result<T> {
    match open((Ipv6Addr::UNSPECIFIED, port).into(), false) {
        // The ways in which systems without IPv6 fail are many. A busy port must not end as half a success.
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            open((Ipv4Addr::UNSPECIFIED, port).into(), true)
        }
        result => result,
    }
}

fn open(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    // Connections that linger from before a restart do not keep the port. On Windows the option means more.
    #[cfg(not(windows))]
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h1_without_ipv6_all_of_ipv4_is_listened_on() {
        let opened = listen_dual(80, |address, only_v6| {
            if address.is_ipv6() {
                assert!(!only_v6);
                Err(io::Error::from(io::ErrorKind::Unsupported))
            } else {
                Ok(address)
            }
        });
        assert_eq!(opened.unwrap(), "0.0.0.0:80".parse().unwrap());
    }

    #[test]
    fn h1_a_port_that_is_busy_for_one_family_is_not_taken_for_the_other() {
        let opened = listen_dual(80, |address, _| {
            if address.is_ipv6() { Err(io::Error::from(io::ErrorKind::AddrInUse)) } else { Ok(address) }
        });
        assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
