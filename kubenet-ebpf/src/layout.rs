//! Mirrors of `bpf/types.h`, field by field.
//!
//! Whatever the C side declares `__be16` or `__be32` is a newtype over bytes here, so that host and network
//! order cannot be mixed up, and no struct has padding that the compiler puts in.

mod flow;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::Pod;
use kubenet_core::model::LocalDetector;

#[cfg(test)]
pub(crate) use self::flow::CT_REPLY;
pub(crate) use self::flow::{CT_FIN, CT_PROTO_SHIFT, CT_RST, CT_SEEN_REPLY, Conntrack, FlowSeed, Pair};

/// `KUBENET_LAYOUT`: maps of another version are not adopted.
pub(crate) const VERSION: u32 = 5;

pub(crate) const SVC_MASQ_PODS: u32 = 0x01;
pub(crate) const SVC_MASQ_NODE: u32 = 0x02;
pub(crate) const SVC_MASQ_OUTSIDE: u32 = 0x04;
pub(crate) const SVC_INTERNAL_DROP: u32 = 0x08;
pub(crate) const SVC_EXTERNAL_DROP: u32 = 0x10;
pub(crate) const SVC_NODE_PORT: u32 = 0x20;
pub(crate) const SVC_MAGLEV: u32 = 0x40;
pub(crate) const SVC_LISTED: u32 = 0x80;
pub(crate) const SVC_SOURCE_RANGES: u32 = 0x100;
pub(crate) const SVC_SOURCE_NODE: u32 = 0x200;
pub(crate) const SVC_CUTS_SHIFT: u32 = 16;
#[cfg(test)]
pub(crate) const SVC_CUTS: u32 = 0xffff << SVC_CUTS_SHIFT;

pub(crate) const BACKEND_ALIVE: u16 = 0x01;
pub(crate) const BACKEND_LOCAL: u16 = 0x02;
pub(crate) const BACKEND_TERMINATING: u16 = 0x04;

pub(crate) const NODE_ADDR_LOCAL: u32 = 0x01;
pub(crate) const NODE_ADDR_NODE_PORT: u32 = 0x02;

pub(crate) const CONFIG_DRAINING: u32 = 0x01;
pub(crate) const CONFIG_SNAT6_SECOND: u32 = 0x02;
pub(crate) const CONFIG_BRIDGE: u32 = 0x100;
pub(crate) const CONFIG_PREFIX: u32 = 0x200;

/// Bits of the coarse monotonic clock in nanoseconds that a conntrack entry's `last_seen` leaves out: a tick
/// is 1.07 s.
pub(crate) const CLOCK_SHIFT: u32 = 30;
/// Ticks by which a stamp may be ahead of the clock; from further ahead is no stamp of this clock.
pub(crate) const CLOCK_SLACK: u32 = 2;

/// A port in network byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub(crate) struct Be16([u8; 2]);

impl From<u16> for Be16 {
    fn from(host: u16) -> Self {
        Self(host.to_be_bytes())
    }
}

impl From<Be16> for u16 {
    fn from(port: Be16) -> Self {
        u16::from_be_bytes(port.0)
    }
}

/// An IPv4 address in network byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub(crate) struct Addr4([u8; 4]);

impl From<Ipv4Addr> for Addr4 {
    fn from(address: Ipv4Addr) -> Self {
        Self(address.octets())
    }
}

impl From<Addr4> for IpAddr {
    fn from(address: Addr4) -> Self {
        IpAddr::V4(address.0.into())
    }
}

/// An IPv6 address in network byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub(crate) struct Addr6([u8; 16]);

impl From<Ipv6Addr> for Addr6 {
    fn from(address: Ipv6Addr) -> Self {
        Self(address.octets())
    }
}

impl From<Addr6> for IpAddr {
    fn from(address: Addr6) -> Self {
        IpAddr::V6(address.0.into())
    }
}

/// An address of the family that a set of maps is for.
pub(crate) trait Address:
    Pod + Default + Eq + std::hash::Hash + std::fmt::Debug + Into<IpAddr>
{
    /// What fills an entry of a flow up to whole lines of the cache.
    type Fill: Pod + Default + Eq + std::fmt::Debug;
}

impl Address for Addr4 {
    type Fill = [u32; 0];
}

impl Address for Addr6 {
    type Fill = [u32; 1];
}

/// `struct service_key4` and `service_key6`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub(crate) struct ServiceKey<A> {
    /// All zero for a node port.
    pub(crate) addr: A,
    pub(crate) port: Be16,
    pub(crate) proto: u8,
    pub(crate) pad: u8,
}

/// `struct service`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Service {
    pub(crate) internal_base: u32,
    pub(crate) internal_count: u32,
    pub(crate) external_base: u32,
    pub(crate) external_count: u32,
    pub(crate) id: u32,
    pub(crate) flags: u32,
    /// Shared by the frontends of a Service port; 0: none.
    pub(crate) affinity: u32,
    /// In seconds.
    pub(crate) timeout: u32,
}

/// `struct backend4` and `backend6`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Backend<A> {
    pub(crate) addr: A,
    pub(crate) port: Be16,
    pub(crate) flags: u16,
    pub(crate) generation: u32,
}

/// `struct traffic`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Traffic {
    pub(crate) generation: u32,
    /// The generation that the numbers are of.
    pub(crate) begun: u32,
    pub(crate) connections: u64,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) reply_packets: u64,
    pub(crate) reply_bytes: u64,
}

/// Most devices that have the XDP program.
pub(crate) const XDP_DEVICES: usize = 16;

/// `struct xdp_device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct XdpDevice {
    /// 0: the last one was before.
    pub(crate) ifindex: u32,
    pub(crate) mac: [u8; 6],
    pub(crate) pad: u16,
}

/// `struct xdp_devices`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct XdpDevices {
    pub(crate) at: [XdpDevice; XDP_DEVICES],
}

pub(crate) const EVENT_FLOW: u8 = 1;
pub(crate) const EVENT_DROP: u8 = 2;

/// `struct event`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Event {
    pub(crate) kind: u8,
    pub(crate) family: u8,
    pub(crate) proto: u8,
    pub(crate) reason: u8,
    pub(crate) client_port: Be16,
    pub(crate) frontend_port: Be16,
    pub(crate) backend_port: Be16,
    pub(crate) pad: u16,
    pub(crate) client: [u8; 16],
    pub(crate) frontend: [u8; 16],
    pub(crate) backend: [u8; 16],
}

impl Event {
    /// What a ring holds, or `None` where it is too short.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..size_of::<Self>())?;
        // SAFETY: as many bytes as the struct has, of which every pattern is a value, at any alignment.
        Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }
}

/// `struct listeners`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Listeners {
    /// Of the datapath's own process, and of one from outside.
    pub(crate) until: [u32; 2],
    pub(crate) budget: u32,
}

impl Listeners {
    /// The word with the budget.
    pub(crate) const BUDGET: usize = 2;
}

/// `struct affinity_key4` and `affinity_key6`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct AffinityKey<A> {
    /// [`Service::affinity`].
    pub(crate) affinity: u32,
    pub(crate) addr: A,
}

/// `struct affinity`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Choice {
    pub(crate) backend: u32,
    pub(crate) generation: u32,
    /// Of the coarse monotonic clock, in nanoseconds.
    pub(crate) last_new: u64,
}

/// `struct source_range4` and `source_range6`, without the length of the prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub(crate) struct SourceRange<A> {
    pub(crate) service: u32,
    pub(crate) addr: A,
}

/// `struct config`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Config {
    pub(crate) snat4: Addr4,
    pub(crate) flags: u32,
    /// One in use, and one to write the next address to: no program may see half of it.
    pub(crate) snat6: [Addr6; 2],
    pub(crate) netns_cookie: u64,
    pub(crate) snat_port_min: u16,
    pub(crate) snat_port_max: u16,
    pub(crate) snat_wide_min: u16,
    pub(crate) snat_wide_max: u16,
    /// The bridge's name, or how pods' interfaces begin; filled up with zeros.
    pub(crate) detector: [u8; 16],
}

impl Config {
    /// Keeps how pods are told by the interface, to read it back.
    pub(crate) fn set_detector(&mut self, detector: &LocalDetector) {
        let (flag, name) = match detector {
            LocalDetector::Bridge(name) => (CONFIG_BRIDGE, name.as_str()),
            LocalDetector::InterfacePrefix(name) => (CONFIG_PREFIX, name.as_str()),
            _ => (0, ""),
        };
        self.flags = self.flags & !(CONFIG_BRIDGE | CONFIG_PREFIX) | flag;
        self.detector = [0; 16];
        for (to, from) in self.detector.iter_mut().zip(name.bytes()) {
            *to = from;
        }
    }

    /// How pods are told by the interface, where they are.
    pub(crate) fn detector(&self) -> Option<LocalDetector> {
        let name = String::from_utf8_lossy(&self.detector).trim_end_matches('\0').to_owned();
        match self.flags & (CONFIG_BRIDGE | CONFIG_PREFIX) {
            CONFIG_BRIDGE => Some(LocalDetector::Bridge(name)),
            CONFIG_PREFIX => Some(LocalDetector::InterfacePrefix(name)),
            _ => None,
        }
    }

    /// Puts another IPv6 address in use. `settle` waits until no program reads the place that was in use
    /// before the last change.
    pub(crate) fn set_snat6(&mut self, address: Addr6, settle: impl FnOnce()) {
        let second = usize::from(self.flags & CONFIG_SNAT6_SECOND != 0);
        if self.snat6[second] == address {
            return;
        }
        // The first address of all goes where nobody ever read.
        if second == 1 || self.snat6 != [Addr6::default(); 2] {
            settle();
        }
        self.snat6[1 - second] = address;
        self.flags ^= CONFIG_SNAT6_SECOND;
    }
}

/// `struct socket_flow`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct SocketFlow {
    /// Of the backend; an IPv4 one is mapped to IPv6, as that of the frontend.
    pub(crate) addr: Addr6,
    pub(crate) frontend: Addr6,
    pub(crate) port: Be16,
    pub(crate) frontend_port: Be16,
    pub(crate) service: u32,
}

/// `struct service_name`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct ServiceName {
    pub(crate) namespace_len: u8,
    pub(crate) service_len: u8,
    pub(crate) port_len: u8,
    pub(crate) kind: u8,
    pub(crate) text: [u8; SERVICE_NAME_TEXT],
}

impl Default for ServiceName {
    fn default() -> Self {
        Self { namespace_len: 0, service_len: 0, port_len: 0, kind: 0, text: [0; SERVICE_NAME_TEXT] }
    }
}

/// Room for the three parts of a name.
pub(crate) const SERVICE_NAME_TEXT: usize = 192;

// SAFETY (all of these): repr(C) or transparent, made of integers and arrays of them only, without implicit
// padding (checked below), so every byte is initialised and every bit pattern is a value.
unsafe impl Pod for Be16 {}
unsafe impl Pod for Addr4 {}
unsafe impl Pod for Addr6 {}
unsafe impl<A: Address> Pod for ServiceKey<A> {}
unsafe impl Pod for Service {}
unsafe impl<A: Address> Pod for Backend<A> {}
unsafe impl<A: Address> Pod for AffinityKey<A> {}
unsafe impl Pod for Traffic {}
unsafe impl Pod for Listeners {}
unsafe impl Pod for Choice {}
unsafe impl<A: Address> Pod for SourceRange<A> {}
unsafe impl Pod for Config {}
unsafe impl Pod for XdpDevices {}
unsafe impl Pod for ServiceName {}
unsafe impl Pod for SocketFlow {}

// The sizes are the sums of the fields: no padding hides anywhere.
const _: () = {
    assert!(size_of::<ServiceKey<Addr4>>() == 4 + 2 + 1 + 1);
    assert!(size_of::<ServiceKey<Addr6>>() == 16 + 2 + 1 + 1);
    assert!(size_of::<Service>() == 8 * 4);
    assert!(size_of::<Backend<Addr4>>() == 4 + 2 + 2 + 4);
    assert!(size_of::<Backend<Addr6>>() == 16 + 2 + 2 + 4);
    assert!(size_of::<Event>() == 4 + 4 * 2 + 3 * 16);
    assert!(size_of::<Listeners>() == 3 * 4);
    assert!(size_of::<Traffic>() == 2 * 4 + 5 * 8);
    assert!(size_of::<AffinityKey<Addr4>>() == 4 + 4);
    assert!(size_of::<AffinityKey<Addr6>>() == 4 + 16);
    assert!(size_of::<Choice>() == 2 * 4 + 8);
    assert!(size_of::<SourceRange<Addr4>>() == 4 + 4);
    assert!(size_of::<SourceRange<Addr6>>() == 4 + 16);
    assert!(size_of::<Config>() == 4 + 4 + 2 * 16 + 8 + 4 * 2 + 16);
    assert!(size_of::<XdpDevices>() == XDP_DEVICES * (4 + 6 + 2));
    assert!(size_of::<SocketFlow>() == 2 * 16 + 2 * 2 + 4);
    assert!(size_of::<ServiceName>() == 4 + SERVICE_NAME_TEXT);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_both_sides_must_agree_on_is_that_of_the_programs() {
        for (name, value) in [("LAYOUT", VERSION), ("CLOCK_SHIFT", CLOCK_SHIFT), ("CLOCK_SLACK", CLOCK_SLACK)]
        {
            let line = format!("#define KUBENET_{name} {value}");
            assert!(include_str!("../bpf/types.h").lines().any(|l| l == line), "no line {line:?} in types.h");
        }
    }

    #[test]
    fn an_address_is_written_where_nobody_reads() {
        let [a, b] = [1u128, 2].map(|n| Addr6::from(Ipv6Addr::from_bits(n)));
        let mut config = Config { flags: CONFIG_DRAINING, ..Config::default() };
        let waits = std::cell::Cell::new(0);
        let mut set = |address| {
            config.set_snat6(address, || waits.set(waits.get() + 1));
            (config.snat6, config.flags, waits.get())
        };
        let (first, second) = (CONFIG_DRAINING, CONFIG_DRAINING | CONFIG_SNAT6_SECOND);
        assert_eq!(set(a), ([Addr6::default(), a], second, 0));
        assert_eq!(set(a), ([Addr6::default(), a], second, 0), "nothing to do");
        assert_eq!(set(b), ([b, a], first, 1));
        assert_eq!(set(Addr6::default()), ([b, Addr6::default()], second, 2));
    }

    #[test]
    fn what_tells_pods_by_the_interface_is_read_back() {
        let mut config = Config { flags: CONFIG_DRAINING, ..Config::default() };
        for detector in [
            LocalDetector::Bridge("fifteen-letters".into()),
            LocalDetector::InterfacePrefix("cali".into()),
            LocalDetector::Bridge("cni0".into()),
        ] {
            config.set_detector(&detector);
            assert_eq!(config.detector(), Some(detector));
        }
        config.set_detector(&LocalDetector::None);
        assert_eq!(
            (config.detector(), config),
            (None, Config { flags: CONFIG_DRAINING, ..Config::default() })
        );
    }

    #[test]
    fn ports_and_addresses_are_in_network_order() {
        let Be16(port) = 0x1234.into();
        assert_eq!(port, [0x12, 0x34]);
        assert_eq!(u16::from(Be16([0x12, 0x34])), 0x1234);
        assert_eq!(Addr4::from(Ipv4Addr::new(10, 1, 2, 3)), Addr4([10, 1, 2, 3]));
        assert_eq!(IpAddr::from(Addr6::from(Ipv6Addr::LOCALHOST)), IpAddr::V6(Ipv6Addr::LOCALHOST));
    }
}
