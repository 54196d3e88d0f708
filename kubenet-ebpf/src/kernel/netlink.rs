//! Messages of netlink, as far as a few questions need them.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

pub(super) const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;

/// The first word of some bytes.
pub(super) fn word(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// The value of the first attribute of this kind.
pub(super) fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    const FLAGS: u16 = 0xc000;
    const HEAD: usize = 4;
    while let [a, b, c, d, ..] = *attributes {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = attributes.get(HEAD..length)?;
        if u16::from_ne_bytes([c, d]) & !FLAGS == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

pub(super) fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the answer of netlink is cut off")
}

/// Sends a request, by a socket to which nothing comes but the answer.
pub(super) fn ask(protocol: SockProtocol, request: &[u8]) -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    send(socket.as_raw_fd(), request, MsgFlags::empty())?;
    Ok(socket)
}

/// Hands over every message of one kind that the kernel answers to a request for a dump.
pub(super) fn dump(
    protocol: SockProtocol,
    request: &[u8],
    kind: u16,
    mut visit: impl FnMut(&[u8]),
) -> io::Result<()> {
    let socket = ask(protocol, request)?;
    let mut answer = vec![0; 1 << 16];
    loop {
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        if length == 0 || read(answer.get(..length).unwrap_or_default(), kind, &mut visit)? {
            return Ok(());
        }
    }
}

/// Reads a part of a dump. True when it is the last one.
fn read(mut answer: &[u8], kind: u16, visit: &mut impl FnMut(&[u8])) -> io::Result<bool> {
    while let [a, b, c, d, e, f, ..] = *answer {
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let message = answer.get(..length).filter(|m| m.len() >= HEADER).ok_or_else(cut_off)?;
        match u16::from_ne_bytes([e, f]) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = message.get(HEADER..).and_then(word).ok_or_else(cut_off)?.cast_signed();
                return Err(Errno::from_raw(code.wrapping_neg()).into());
            }
            found if found == kind => visit(message),
            _ => {}
        }
        answer = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.resize(HEADER, 0);
        message.extend(body);
        message
    }

    fn bodies(answer: &[u8]) -> io::Result<(bool, Vec<Vec<u8>>)> {
        let mut found = Vec::new();
        let is_last = read(answer, 20, &mut |message: &[u8]| found.push(message[HEADER..].to_vec()))?;
        Ok((is_last, found))
    }

    #[test]
    fn a_part_of_a_dump_has_messages_and_perhaps_an_end() {
        let two = [message(20, &[1; 4]), message(21, &[2; 4]), message(20, &[3; 8])].concat();
        assert_eq!(bodies(&two).unwrap(), (false, vec![vec![1; 4], vec![3; 8]]));
        let ends = [&two[..], &message(NLMSG_DONE, &[0; 4])].concat();
        assert!(bodies(&ends).unwrap().0);
        for length in 0..ends.len() {
            let _result = bodies(&ends[..length]);
        }
    }

    #[test]
    fn an_error_is_no_end() {
        let refused = message(NLMSG_ERROR, &(-95i32).to_ne_bytes());
        assert_eq!(bodies(&refused).unwrap_err().raw_os_error(), Some(95));
    }
}
