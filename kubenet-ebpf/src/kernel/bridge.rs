//! Which bridge an interface is a port of.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

use super::netlink::{HEADER, NLM_F_REQUEST, attribute, word};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;

const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_SLAVE_KIND: u16 = 4;

/// The index of the bridge that the interface of this index is a port of. Asked by netlink: `/sys` may show
/// another network namespace than this thread's.
pub(crate) fn of(index: u32) -> io::Result<Option<u32>> {
    let socket: OwnedFd =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
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
    parse(answer.get(..length).unwrap_or_default())
}

fn parse(answer: &[u8]) -> io::Result<Option<u32>> {
    let cut = || io::Error::new(io::ErrorKind::InvalidData, "the answer of netlink is cut off");
    let [_, _, _, _, a, b, ..] = *answer else { return Err(cut()) };
    if u16::from_ne_bytes([a, b]) != RTM_NEWLINK {
        let code = answer.get(HEADER..).and_then(word).ok_or_else(cut)?.cast_signed();
        return Err(Errno::from_raw(code.wrapping_neg()).into());
    }
    let attributes = answer.get(2 * HEADER..).ok_or_else(cut)?;
    let kind = attribute(attributes, IFLA_LINKINFO).and_then(|info| attribute(info, IFLA_INFO_SLAVE_KIND));
    if kind.is_none_or(|kind| kind.strip_suffix(&[0]).unwrap_or(kind) != b"bridge") {
        return Ok(None);
    }
    Ok(attribute(attributes, IFLA_MASTER).and_then(word))
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

    fn answer(kind: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(2 * HEADER, 0);
        bytes.extend(attributes.concat());
        bytes
    }

    #[test]
    fn only_a_bridges_port_has_a_bridge() {
        let master = attr(IFLA_MASTER, &7u32.to_ne_bytes());
        let info = |kind: &[u8]| attr(IFLA_LINKINFO, &attr(IFLA_INFO_SLAVE_KIND, kind));
        let name = attr(3, b"veth0\0");
        let of = |attributes: &[Vec<u8>]| parse(&answer(RTM_NEWLINK, attributes)).unwrap();
        assert_eq!(of(&[name.clone(), master.clone(), info(b"bridge\0")]), Some(7));
        assert_eq!(of(&[name.clone(), master.clone(), info(b"vrf\0")]), None);
        assert_eq!(of(&[name, master]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn errors_and_nonsense_are_errors_or_nothing() {
        let mut refused = answer(2, &[]);
        refused[HEADER..HEADER + 4].copy_from_slice(&(-19i32).to_ne_bytes());
        assert_eq!(parse(&refused).unwrap_err().raw_os_error(), Some(19));
        let whole = answer(RTM_NEWLINK, &[attr(IFLA_LINKINFO, &[0; 3]), vec![0, 0, 0, 0], vec![255; 8]]);
        for length in 0..whole.len() {
            let _result = parse(&whole[..length]);
        }
    }

    #[test]
    fn the_loopback_interface_is_nobodys_port() {
        assert_eq!(of(1).unwrap(), None);
        assert_eq!(of(u32::MAX >> 1).unwrap_err().raw_os_error(), Some(nix::libc::ENODEV));
    }
}
