//! The rules of the module, and what plain Maglev does in the same cases.

mod disruption;
mod plain;
mod reference;
mod shares;
mod table;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU16,
};

use super::hash::draw;

type Backends = Vec<(SocketAddr, NonZeroU16)>;

fn weight(weight: u16) -> NonZeroU16 {
    NonZeroU16::new(weight).unwrap()
}

/// Addresses as pods have them: in turn on nodes with a /24 each.
fn pods(count: u32) -> Backends {
    let address = |i| Ipv4Addr::from((10 << 24) + (244 << 16) + i / 10 * 256 + i % 10 + 2);
    (0..count).map(|i| (SocketAddr::from((address(i), 8080)), NonZeroU16::MIN)).collect()
}

/// IPv6 addresses of one network.
fn ipv6_pods(count: u32) -> Backends {
    let address = |i| Ipv6Addr::from_bits((0x2001_0db8 << 96) + u128::from(i) + 1);
    (0..count).map(|i| (SocketAddr::from((address(i), 443)), NonZeroU16::MIN)).collect()
}

/// One address with many ports.
fn ports(count: u32) -> Backends {
    (0..count).map(|i| (SocketAddr::from(([192, 0, 2, 1], 30_000 + i as u16)), NonZeroU16::MIN)).collect()
}

/// Addresses and ports from a seed.
fn scattered(seed: u64, count: u32) -> Backends {
    (0..count)
        .map(|i| {
            let random = draw(seed, i);
            let address = Ipv4Addr::from((random >> 32) as u32);
            (SocketAddr::from((address, random as u16)), NonZeroU16::MIN)
        })
        .collect()
}

/// Random clients: three of four IPv4, the others IPv6.
fn clients(count: u32) -> Vec<IpAddr> {
    (0..count)
        .map(|i| match (i % 4, u128::from(draw(41, i)), u128::from(draw(42, i))) {
            (0, high, low) => Ipv6Addr::from_bits(high << 64 | low).into(),
            (_, high, _) => Ipv4Addr::from(high as u32).into(),
        })
        .collect()
}
