//! What the kernel says of an interface. Asked by netlink: `/sys` may show another network namespace than this
//! thread's.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    net::if_::if_nameindex,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

use super::netlink::{HEADER, NLM_F_REQUEST, attribute, word};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;

const ARPHRD_ETHER: u16 = 1;

const IFLA_ADDRESS: u16 = 1;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_SLAVE_KIND: u16 = 4;

/// What matters here of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Device {
    /// The bridge that it is a port of.
    pub(crate) bridge: Option<u32>,
    /// Its MAC address, if it is one of Ethernet.
    pub(crate) mac: Option<[u8; 6]>,
    /// Its driver has no kind of virtual device: a network card, or what a virtual machine has in its place.
    pub(crate) is_physical: bool,
    /// The interface that a VLAN is on.
    vlan_on: Option<u32>,
}

impl Device {
    /// The interface of this index.
    pub(crate) fn of(index: u32) -> io::Result<Self> {
        let socket: OwnedFd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        // The header, and `struct ifinfomsg`, which is as long.
        let mut request = Vec::with_capacity(2 * HEADER);
        request.extend((2 * HEADER as u32).to_ne_bytes());
        request.extend(RTM_GETLINK.to_ne_bytes());
        request.extend(NLM_F_REQUEST.to_ne_bytes());
        // Sequence and sender: nothing else comes to this socket. Then family and type: any.
        request.extend([0; 12]);
        request.extend(index.to_ne_bytes());
        request.extend([0; 8]);
        send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut answer = vec![0; 1 << 16];
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        Self::parse(answer.get(..length).unwrap_or_default())
    }

    fn parse(answer: &[u8]) -> io::Result<Self> {
        let cut = || io::Error::new(io::ErrorKind::InvalidData, "the answer of netlink is cut off");
        let [_, _, _, _, a, b, ..] = *answer else { return Err(cut()) };
        if u16::from_ne_bytes([a, b]) != RTM_NEWLINK {
            let code = answer.get(HEADER..).and_then(word).ok_or_else(cut)?.cast_signed();
            return Err(Errno::from_raw(code.wrapping_neg()).into());
        }
        let [_, _, a, b, ..] = *answer.get(HEADER..).ok_or_else(cut)? else { return Err(cut()) };
        let is_ethernet = u16::from_ne_bytes([a, b]) == ARPHRD_ETHER;
        let attributes = answer.get(2 * HEADER..).ok_or_else(cut)?;
        let info = |wanted| {
            let kind = attribute(attribute(attributes, IFLA_LINKINFO)?, wanted)?;
            Some(kind.strip_suffix(&[0]).unwrap_or(kind))
        };
        let number = |wanted| attribute(attributes, wanted).and_then(word);
        let kind = info(IFLA_INFO_KIND);
        let mac = attribute(attributes, IFLA_ADDRESS).and_then(|mac| mac.try_into().ok());
        Ok(Self {
            bridge: if info(IFLA_INFO_SLAVE_KIND) == Some(b"bridge") { number(IFLA_MASTER) } else { None },
            mac: mac.filter(|_| is_ethernet),
            is_physical: is_ethernet && kind.is_none(),
            vlan_on: if kind == Some(b"vlan") { number(IFLA_LINK) } else { None },
        })
    }
}

/// Whether there are VLANs on the interface of this index.
pub(crate) fn has_vlans(index: u32) -> io::Result<bool> {
    let all = if_nameindex()?;
    let mut devices = all.iter().filter_map(|interface| Device::of(interface.index()).ok());
    Ok(devices.any(|device| device.vlan_on == Some(index)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

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
        let vlan = ethernet(&[mac.clone(), attr(IFLA_LINK, &3u32.to_ne_bytes()), kind(b"vlan\0")]);
        assert_eq!((vlan.vlan_on, vlan.is_physical), (Some(3), false));
        // The loopback interface, and one of Infiniband.
        for other in [772, 32] {
            let other = Device::parse(&answer(RTM_NEWLINK, other, std::slice::from_ref(&mac))).unwrap();
            assert_eq!((other.mac, other.is_physical), (None, false));
        }
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
        assert!(!has_vlans(1).unwrap());
    }
}
