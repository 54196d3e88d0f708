//! What the kernel says of an interface. Asked by netlink: `/sys` may show another network namespace than this
//! thread's.

use std::{collections::BTreeSet, io, os::fd::AsRawFd};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, SockProtocol, recv},
};

use super::netlink::{self, HEADER, NLM_F_DUMP, NLM_F_REQUEST, attribute, cut_off, word};

/// The kind of a device for one VLAN. Tests have another: the kernel that they run on may know no VLANs.
pub(crate) const VLAN: &str = if cfg!(test) { "macvlan" } else { "vlan" };

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;

const ARPHRD_ETHER: u16 = 1;

const IFLA_ADDRESS: u16 = 1;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_LINK_NETNSID: u16 = 37;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

/// What matters here of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Device {
    /// The bridge that it is a port of.
    pub(crate) bridge: Option<u32>,
    /// Its MAC address, if it is one of Ethernet.
    pub(crate) mac: Option<[u8; 6]>,
    /// Its driver has no kind of virtual device: a network card, or what a virtual machine has in its place.
    pub(crate) is_physical: bool,
    /// It is one end of a pair that packets may be put through, and the other end is in another network namespace.
    pub(crate) leads_elsewhere: bool,
}

impl Device {
    /// The interface of this index.
    pub(crate) fn of(index: u32) -> io::Result<Self> {
        let socket = netlink::ask(SockProtocol::NetlinkRoute, &request(NLM_F_REQUEST, index, &[]))?;
        let mut answer = vec![0; 1 << 16];
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        Self::parse(answer.get(..length).unwrap_or_default())
    }

    fn parse(answer: &[u8]) -> io::Result<Self> {
        let [_, _, _, _, a, b, ..] = *answer else { return Err(cut_off()) };
        if u16::from_ne_bytes([a, b]) != RTM_NEWLINK {
            let code = answer.get(HEADER..).and_then(word).ok_or_else(cut_off)?.cast_signed();
            return Err(Errno::from_raw(code.wrapping_neg()).into());
        }
        let [_, _, a, b, ..] = *answer.get(HEADER..).ok_or_else(cut_off)? else { return Err(cut_off()) };
        let is_ethernet = u16::from_ne_bytes([a, b]) == ARPHRD_ETHER;
        let attributes = answer.get(2 * HEADER..).ok_or_else(cut_off)?;
        let master = attribute(attributes, IFLA_MASTER).and_then(word);
        let mac = attribute(attributes, IFLA_ADDRESS).and_then(|mac| mac.try_into().ok());
        Ok(Self {
            bridge: master.filter(|_| info(attributes, IFLA_INFO_SLAVE_KIND) == Some(b"bridge")),
            mac: mac.filter(|_| is_ethernet),
            is_physical: is_ethernet && info(attributes, IFLA_INFO_KIND).is_none(),
            leads_elsewhere: leads_elsewhere(attributes),
        })
    }
}

/// The interfaces that have devices of a kind on them: one question, whatever the number of interfaces.
pub(crate) fn below(kind: &str) -> io::Result<BTreeSet<u32>> {
    let filter = attribute_of(IFLA_LINKINFO, &attribute_of(IFLA_INFO_KIND, kind.as_bytes()));
    let brief = attribute_of(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    let request = request(NLM_F_REQUEST | NLM_F_DUMP, 0, &[filter, brief].concat());
    let mut found = BTreeSet::new();
    netlink::dump(SockProtocol::NetlinkRoute, &request, RTM_NEWLINK, |message| {
        found.extend(lower(message, kind));
    })?;
    Ok(found)
}

/// The interface of this namespace that a device of this kind is on. A kernel that does not know the kind answers with
/// devices of all kinds.
fn lower(message: &[u8], kind: &str) -> Option<u32> {
    let attributes = message.get(2 * HEADER..)?;
    let is_one = info(attributes, IFLA_INFO_KIND) == Some(kind.as_bytes());
    let is_here = attribute(attributes, IFLA_LINK_NETNSID).is_none();
    attribute(attributes, IFLA_LINK).filter(|_| is_one && is_here).and_then(word)
}

/// The interfaces with [`Device::leads_elsewhere`]: one question, whatever the number of interfaces.
pub(crate) fn leading_elsewhere() -> io::Result<BTreeSet<u32>> {
    let brief = attribute_of(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    let request = request(NLM_F_REQUEST | NLM_F_DUMP, 0, &brief);
    let mut found = BTreeSet::new();
    netlink::dump(SockProtocol::NetlinkRoute, &request, RTM_NEWLINK, |message| {
        found.extend(elsewhere(message));
    })?;
    Ok(found)
}

/// The interface of a message, if it is one of those.
fn elsewhere(message: &[u8]) -> Option<u32> {
    let index = message.get(HEADER + 4..).and_then(word)?;
    leads_elsewhere(message.get(2 * HEADER..)?).then_some(index)
}

/// Of these kinds, `bpf_redirect_peer` finds the other end; all other packets it drops.
fn leads_elsewhere(attributes: &[u8]) -> bool {
    let is_pair = matches!(info(attributes, IFLA_INFO_KIND), Some(b"veth" | b"netkit"));
    is_pair && attribute(attributes, IFLA_LINK_NETNSID).is_some()
}

/// What a device says of its driver.
fn info(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    let kind = attribute(attribute(attributes, IFLA_LINKINFO)?, wanted)?;
    Some(kind.strip_suffix(&[0]).unwrap_or(kind))
}

/// A question about one interface, or about all.
fn request(flags: u16, index: u32, attributes: &[u8]) -> Vec<u8> {
    // The header, and `struct ifinfomsg`, which is as long.
    let length = 2 * HEADER + attributes.len();
    let mut request = Vec::with_capacity(length);
    request.extend((length as u32).to_ne_bytes());
    request.extend(RTM_GETLINK.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    // Sequence and sender: nothing else comes to this socket. Then family and type: any.
    request.extend([0; 12]);
    request.extend(index.to_ne_bytes());
    request.extend([0; 8]);
    request.extend(attributes);
    request
}

fn attribute_of(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::{attribute_of as attr, *};

    fn answer(kind: u16, device: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER + 2, 0);
        bytes.extend(device.to_ne_bytes());
        bytes.resize(2 * HEADER, 0);
        bytes.extend(attributes.concat());
        bytes
    }

    fn ethernet(attributes: &[Vec<u8>]) -> Device {
        Device::parse(&answer(RTM_NEWLINK, ARPHRD_ETHER, attributes)).unwrap()
    }

    #[test]
    fn only_a_bridges_port_has_a_bridge() {
        let master = attr(IFLA_MASTER, &7u32.to_ne_bytes());
        let info = |kind: &[u8]| attr(IFLA_LINKINFO, &attr(IFLA_INFO_SLAVE_KIND, kind));
        let name = attr(3, b"veth0\0");
        let of = |attributes: &[Vec<u8>]| ethernet(attributes).bridge;
        assert_eq!(of(&[name.clone(), master.clone(), info(b"bridge\0")]), Some(7));
        assert_eq!(of(&[name.clone(), master.clone(), info(b"vrf\0")]), None);
        assert_eq!(of(&[name, master]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_device_without_a_virtual_kind_is_physical() {
        let kind = |kind: &[u8]| attr(IFLA_LINKINFO, &attr(IFLA_INFO_KIND, kind));
        let mac = attr(IFLA_ADDRESS, &[2, 0, 0, 0, 0, 7]);
        let card = ethernet(std::slice::from_ref(&mac));
        assert!(card.is_physical);
        assert_eq!(card.mac, Some([2, 0, 0, 0, 0, 7]));
        for virtual_kind in [&b"veth\0"[..], b"bridge\0", b"bond\0", b"tun\0"] {
            assert!(!ethernet(&[mac.clone(), kind(virtual_kind)]).is_physical);
        }
        // The loopback interface, and one of Infiniband.
        for other in [772, 32] {
            let other = Device::parse(&answer(RTM_NEWLINK, other, std::slice::from_ref(&mac))).unwrap();
            assert_eq!((other.mac, other.is_physical), (None, false));
        }
    }

    #[test]
    fn a_device_is_on_an_interface_of_its_own_namespace() {
        let mac = attr(IFLA_ADDRESS, &[2, 0, 0, 0, 0, 7]);
        let link = attr(IFLA_LINK, &3u32.to_ne_bytes());
        let of_kind = attr(IFLA_LINKINFO, &attr(IFLA_INFO_KIND, b"vlan\0"));
        let elsewhere = attr(IFLA_LINK_NETNSID, &[0; 4]);
        let vlan = [mac, link, of_kind];
        assert!(!ethernet(&vlan).is_physical);
        let message = answer(RTM_NEWLINK, ARPHRD_ETHER, &vlan);
        assert_eq!((lower(&message, "vlan"), lower(&message, "macvlan")), (Some(3), None));
        assert_eq!(lower(&[message, elsewhere].concat(), "vlan"), None);
        assert_eq!(lower(&[], "vlan"), None);
    }

    #[test]
    fn only_a_pair_leads_into_another_namespace() {
        let kind = |kind: &[u8]| attr(IFLA_LINKINFO, &attr(IFLA_INFO_KIND, kind));
        let netns = attr(IFLA_LINK_NETNSID, &[0; 4]);
        for (of_kind, is_one) in
            [(&b"veth\0"[..], true), (b"netkit\0", true), (b"macvlan\0", false), (b"vethx\0", false)]
        {
            assert_eq!(ethernet(&[kind(of_kind), netns.clone()]).leads_elsewhere, is_one);
            assert!(!ethernet(&[kind(of_kind)]).leads_elsewhere);
            let mut message = answer(RTM_NEWLINK, ARPHRD_ETHER, &[kind(of_kind), netns.clone()]);
            message[HEADER + 4..HEADER + 8].copy_from_slice(&9u32.to_ne_bytes());
            assert_eq!(elsewhere(&message), is_one.then_some(9));
        }
        assert!(!ethernet(&[netns]).leads_elsewhere);
        assert_eq!(elsewhere(&[]), None);
    }

    #[test]
    fn errors_and_nonsense_are_errors_or_nothing() {
        let mut refused = answer(2, 0, &[]);
        refused[HEADER..HEADER + 4].copy_from_slice(&(-19i32).to_ne_bytes());
        assert_eq!(Device::parse(&refused).unwrap_err().raw_os_error(), Some(19));
        let whole = answer(RTM_NEWLINK, 1, &[attr(IFLA_LINKINFO, &[0; 3]), vec![0, 0, 0, 0], vec![255; 8]]);
        for length in 0..whole.len() {
            let _result = Device::parse(&whole[..length]);
        }
    }

    #[test]
    fn the_loopback_interface_is_nobodys_port() {
        assert_eq!(Device::of(1).unwrap(), Device::default());
        assert_eq!(Device::of(u32::MAX >> 1).unwrap_err().raw_os_error(), Some(nix::libc::ENODEV));
        assert!(!below("veth").unwrap().contains(&1));
        assert!(!leading_elsewhere().unwrap().contains(&1));
    }
}
