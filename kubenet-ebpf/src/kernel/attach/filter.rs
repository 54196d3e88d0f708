//! Filters of a `clsact` queueing discipline. They stay by themselves, so that a later process must find them.

use std::{io, os::fd::AsRawFd};

use aya::programs::links::Link;
use aya::programs::{
    ProgramError, SchedClassifier, TcAttachType,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

use super::super::{
    link::Tcx,
    netlink::{HEADER, NLM_F_REQUEST, attribute, word},
};

/// Of filters, where there is no TCX: the one that the kernel gives to the first filter by itself.
const PRIORITY: u16 = 0xc000;

const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP: u16 = 0x300;
/// Of `struct tcmsg`.
const TCMSG: usize = 20;
const TC_H_CLSACT: u32 = 0xffff_fff1 & 0xffff_0000;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;

/// A program that hangs at an interface as a filter, until this is dropped or detached.
pub(super) struct Filter {
    /// `None` once it is left to itself.
    link: Option<SchedClassifierLink>,
    program: u32,
}

/// A filter that the kernel knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    priority: u16,
    handle: u32,
    /// The id of its program.
    pub(super) program: u32,
    /// The name of its program.
    pub(super) name: String,
}

impl Filter {
    /// Hangs a program at an interface. The queueing discipline is made where it is missing.
    pub(super) fn attach(
        (program, id): (&mut SchedClassifier, u32),
        interface: &str,
        direction: Tcx,
    ) -> Result<Self, ProgramError> {
        match qdisc_add_clsact(interface) {
            // It is there already.
            Err(TcError::NetlinkError(e)) if e.raw_os_error() == Some(Errno::EEXIST as i32) => {}
            other => other?,
        }
        // Filters of one priority run in the order in which they came; without a priority, the latest would
        // run first.
        let options = TcAttachOptions::Netlink(NlOptions { priority: PRIORITY, ..NlOptions::default() });
        let link = program.attach_with_options(interface, attach_type(direction), options)?;
        Ok(Self { link: Some(program.take_link(link)?), program: id })
    }

    /// One that another process attached.
    pub(super) fn adopt(interface: &str, direction: Tcx, found: &Found) -> io::Result<Self> {
        let handle = TcHandle::from(found.handle);
        let link =
            SchedClassifierLink::attached(interface, attach_type(direction), found.priority, handle, None)?;
        Ok(Self { link: Some(link), program: found.program })
    }

    /// Puts another program in the place of its program: each packet meets one or the other.
    pub(super) fn update(&mut self, (program, id): (&mut SchedClassifier, u32)) -> Result<(), ProgramError> {
        if let Some(link) = self.link.take() {
            let link = program.attach_to_link(link)?;
            self.link = Some(program.take_link(link)?);
            self.program = id;
        }
        Ok(())
    }

    pub(super) fn program(&self) -> u32 {
        self.program
    }

    pub(super) fn detach(mut self) -> Result<(), ProgramError> {
        self.link.take().map_or(Ok(()), Link::detach)
    }

    /// Leaves it where it hangs.
    pub(super) fn leave(&mut self) {
        // It owns nothing but numbers.
        std::mem::forget(self.link.take());
    }
}

fn attach_type(direction: Tcx) -> TcAttachType {
    match direction {
        Tcx::Ingress => TcAttachType::Ingress,
        Tcx::Egress => TcAttachType::Egress,
    }
}

/// The BPF filters of an interface.
pub(super) fn list(index: u32, direction: Tcx) -> io::Result<Vec<Found>> {
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    let parent = TC_H_CLSACT | if direction == Tcx::Ingress { 0xfff2 } else { 0xfff3 };
    let mut request = Vec::with_capacity(HEADER + TCMSG);
    request.extend(((HEADER + TCMSG) as u32).to_ne_bytes());
    request.extend(RTM_GETTFILTER.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    // Sequence and sender: nothing else comes to this socket. Then family and padding.
    request.extend([0; 12]);
    request.extend(index.to_ne_bytes());
    request.extend(0u32.to_ne_bytes());
    request.extend(parent.to_ne_bytes());
    request.extend(0u32.to_ne_bytes());
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut found = Vec::new();
    let mut answer = vec![0; 1 << 16];
    loop {
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        if length == 0 || parse(answer.get(..length).unwrap_or_default(), &mut found)? {
            return Ok(found);
        }
    }
}

/// Reads a part of an answer. True when it is the last one.
fn parse(mut answer: &[u8], found: &mut Vec<Found>) -> io::Result<bool> {
    while let [a, b, c, d, e, f, ..] = *answer {
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let cut = || io::Error::new(io::ErrorKind::InvalidData, "the answer of netlink is cut off");
        let message = answer.get(..length).filter(|m| m.len() >= HEADER).ok_or_else(cut)?;
        match u16::from_ne_bytes([e, f]) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = message.get(HEADER..).and_then(word).ok_or_else(cut)?.cast_signed();
                return match Errno::from_raw(code.wrapping_neg()) {
                    // No such queueing discipline.
                    Errno::EINVAL | Errno::ENOENT => Ok(true),
                    e => Err(e.into()),
                };
            }
            RTM_NEWTFILTER => found.extend(filter(message)),
            _ => {}
        }
        answer = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// The filter of a message, if it is one of BPF.
fn filter(message: &[u8]) -> Option<Found> {
    let number = |at: usize| message.get(HEADER + at..).and_then(word);
    let (handle, info) = (number(8)?, number(16)?);
    let options = attribute(message.get(HEADER + TCMSG..)?, TCA_OPTIONS)?;
    let name = attribute(options, TCA_BPF_NAME)?;
    let name = String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(name)).into_owned();
    let program = attribute(options, TCA_BPF_ID).and_then(word)?;
    Some(Found { priority: (info >> 16) as u16, handle, program, name })
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

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn filters_of_bpf_are_found_and_others_are_passed_over() {
        let tcmsg = |handle: u32| {
            let mut body = vec![0; 8];
            body.extend(handle.to_ne_bytes());
            body.extend(0u32.to_ne_bytes());
            body.extend((0xc000u32 << 16 | 3).to_ne_bytes());
            body
        };
        let options = [attr(TCA_BPF_NAME, b"kubenet_x\0"), attr(TCA_BPF_ID, &7u32.to_ne_bytes())].concat();
        let ours = [tcmsg(2), attr(1, b"bpf\0"), attr(TCA_OPTIONS, &options)].concat();
        let other = [tcmsg(3), attr(1, b"u32\0"), attr(TCA_OPTIONS, &[])].concat();
        let answer =
            [message(RTM_NEWTFILTER, &other), message(RTM_NEWTFILTER, &ours), message(NLMSG_DONE, &[0; 4])]
                .concat();
        let mut found = Vec::new();
        assert!(parse(&answer, &mut found).unwrap());
        assert_eq!(found, [Found { priority: 0xc000, handle: 2, program: 7, name: "kubenet_x".into() }]);
        for length in 0..answer.len() {
            let _result = parse(&answer[..length], &mut Vec::new());
        }
    }
}
