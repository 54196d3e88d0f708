//! What is known of a flow.

use aya::Pod;

use super::{Addr4, Addr6, Address, Be16};

#[cfg(test)]
pub(crate) const CT_REPLY: u32 = 0x01;
pub(crate) const CT_SEEN_REPLY: u32 = 0x02;
pub(crate) const CT_FIN: u32 = 0x04;
pub(crate) const CT_RST: u32 = 0x08;
pub(crate) const CT_PROTO_SHIFT: u32 = 8;

/// `struct ends4` and `ends6`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Ends<A> {
    pub(crate) saddr: A,
    pub(crate) daddr: A,
    pub(crate) sport: Be16,
    pub(crate) dport: Be16,
}

/// `struct conntrack4` and `conntrack6`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Conntrack<A: Address> {
    /// What packets have.
    pub(crate) key: Ends<A>,
    /// What they get instead.
    pub(crate) target: Ends<A>,
    pub(crate) service: u32,
    pub(crate) backend: u32,
    /// Of the backend; in the backend's direction, of the service.
    pub(crate) generation: u32,
    pub(crate) last_seen: u32,
    pub(crate) flags: u32,
    pub(crate) route: Hop<A>,
    pub(crate) packets: u32,
    pub(crate) bytes: u32,
    pub(crate) fill: A::Fill,
}

impl<A: Address> Conntrack<A> {
    /// The word with the flags.
    pub(crate) const FLAGS: usize = (2 * size_of::<Ends<A>>() + 4 * 4) / 4;

    /// The protocol; 0 of what is nobody's.
    pub(crate) fn proto(&self) -> u8 {
        (self.flags >> CT_PROTO_SHIFT) as u8
    }
}

/// `struct pair4` and `pair6`: both directions of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Pair<A: Address> {
    /// Of the client's packets.
    pub(crate) there: Conntrack<A>,
    /// Of the backend's.
    pub(crate) back: Conntrack<A>,
}

impl<A: Address> Pair<A> {
    /// Whether it is a flow's, and not on its way to the next.
    pub(crate) fn is_known(&self) -> bool {
        self.there.proto() != 0 && self.there.key.dport != Be16::default()
    }

    /// What makes it this flow's and no other's.
    pub(crate) fn keys(&self) -> (Ends<A>, Ends<A>, u8) {
        (self.there.key, self.back.key, self.there.proto())
    }
}

/// `struct flow_seed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct FlowSeed {
    pub(crate) word: [u64; 11],
}

/// `struct route4` and `route6`: only the programs read it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Hop<A> {
    pub(crate) ifindex: u32,
    pub(crate) hop: A,
    /// Of IPv4, with the rest of a MAC address.
    pub(crate) mtu: u32,
}

// SAFETY (all of these): repr(C) or transparent, made of integers and arrays of them only, without implicit
// padding (checked below), so every byte is initialised and every bit pattern is a value.
unsafe impl<A: Address> Pod for Conntrack<A> {}
unsafe impl<A: Address> Pod for Pair<A> {}
unsafe impl Pod for FlowSeed {}

// The sizes are the sums of the fields: no padding hides anywhere.
const _: () = {
    // One line of the cache, and two.
    assert!(size_of::<Conntrack<Addr4>>() == 2 * (2 * 4 + 2 * 2) + 5 * 4 + 3 * 4 + 2 * 4);
    assert!(size_of::<Conntrack<Addr4>>() == 64);
    assert!(size_of::<Conntrack<Addr6>>() == 2 * (2 * 16 + 2 * 2) + 5 * 4 + 2 * 4 + 16 + 2 * 4 + 4);
    assert!(size_of::<Conntrack<Addr6>>() == 128);
    assert!(size_of::<Pair<Addr6>>() == 2 * 128);
    assert!(size_of::<FlowSeed>() == 11 * 8);
};
