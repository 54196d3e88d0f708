//! The addresses that the tests use, in both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The addresses of the bench in one family.
#[derive(Clone, Copy, Debug)]
pub struct Net {
    pub vip: IpAddr,
    pub node: IpAddr,
    /// Has node addresses' flag, but not that of node ports.
    pub node_inner: IpAddr,
    pub pod: IpAddr,
    pub pod_here: IpAddr,
    pub pod_there: IpAddr,
    pub outside: IpAddr,
    /// A backend behind a route of 1300 bytes.
    pub narrow: IpAddr,
    /// A backend behind a blackhole.
    pub lost: IpAddr,
}

pub const V4: Net = Net {
    vip: IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)),
    node: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    node_inner: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9)),
    pod: IpAddr::V4(Ipv4Addr::new(10, 1, 0, 5)),
    pod_here: IpAddr::V4(Ipv4Addr::new(10, 1, 0, 10)),
    pod_there: IpAddr::V4(Ipv4Addr::new(10, 2, 0, 10)),
    outside: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)),
    narrow: IpAddr::V4(Ipv4Addr::new(10, 3, 0, 10)),
    lost: IpAddr::V4(Ipv4Addr::new(10, 9, 0, 10)),
};

pub const V6: Net = Net {
    vip: IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 1)),
    node: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    node_inner: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9)),
    pod: IpAddr::V6(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 5)),
    pod_here: IpAddr::V6(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 0x10)),
    pod_there: IpAddr::V6(Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 0x10)),
    outside: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 7)),
    narrow: IpAddr::V6(Ipv6Addr::new(0xfd03, 0, 0, 0, 0, 0, 0, 0x10)),
    lost: IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 0x10)),
};

/// The address behind this one.
pub fn next(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(a) => Ipv4Addr::from_bits(a.to_bits() + 1).into(),
        IpAddr::V6(a) => Ipv6Addr::from_bits(a.to_bits() + 1).into(),
    }
}

/// An address and a port.
pub fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}
