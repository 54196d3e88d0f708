use std::net::{IpAddr, SocketAddr};

/// The increment of SplitMix64.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The hash of a client's address, as [the module](super#hash-of-a-client) specifies it.
pub fn client_hash(client: IpAddr) -> u32 {
    (address_hash(client) >> 32) as u32
}

/// What a backend's random numbers are drawn from.
pub(super) fn backend_id(backend: SocketAddr) -> u64 {
    mix(address_hash(backend.ip()) ^ u64::from(backend.port()))
}

/// Number `n` of the SplitMix64 sequence that begins at `id`.
pub(super) fn draw(id: u64, n: u32) -> u64 {
    mix(id.wrapping_add(GAMMA.wrapping_mul(n.into())))
}

fn address_hash(address: IpAddr) -> u64 {
    let address = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
    .to_bits();
    mix(mix((address >> 64) as u64) ^ address as u64)
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
