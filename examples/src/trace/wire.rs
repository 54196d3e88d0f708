//! Sends frames at the far ends, and listens there and to what reaches the node's own stack.

use std::{
    collections::HashMap,
    io::{self, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
};

use etherparse::{EtherType, IpNumber};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{LinkAddr, SockaddrIn6, bind, recvfrom, setsockopt, sockopt::RcvBufForce},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    TraceError,
    sight::{self, Sight},
    stage::Stage,
};

/// Far more than what is under way at any moment.
const BUFFER: usize = 16 << 20;

/// More in a row are no pending errors, but one that stays.
const PENDING_ERRORS: u32 = 16;

/// What our connections and the answers to them consist of, in each family.
const NUMBERS_V4: [IpNumber; 4] = [IpNumber::TCP, IpNumber::UDP, IpNumber::SCTP, IpNumber::ICMP];
const NUMBERS_V6: [IpNumber; 4] = [IpNumber::TCP, IpNumber::UDP, IpNumber::SCTP, IpNumber::IPV6_ICMP];

/// One socket for each far end, by which frames leave.
pub(super) struct Mouths {
    world: Socket,
    pods: Vec<Socket>,
}

impl Mouths {
    pub(super) fn open(stage: &Stage) -> Result<Self, TraceError> {
        let links = stage.far().run(|| {
            let found = getifaddrs()?;
            let link =
                |i: nix::ifaddrs::InterfaceAddress| Some((i.interface_name, *i.address?.as_link_addr()?));
            Ok::<HashMap<String, LinkAddr>, Errno>(found.filter_map(link).collect())
        })?;
        let links = links.map_err(|e| TraceError::io("list interfaces", e.into()))?;
        let open = |name: &str| {
            let link = links.get(name).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
            let open = || {
                // Of no protocol: it hears nothing.
                let socket = stage.far().socket(Domain::PACKET, Type::RAW, None)?;
                bind(socket.as_raw_fd(), link?)?;
                Ok(socket)
            };
            open().map_err(|e: io::Error| TraceError::io(format!("send at {name}"), e))
        };
        let pods = stage.pods().iter().map(|pod| open(&pod.name)).collect::<Result<_, _>>()?;
        Ok(Self { world: open(&stage.world().name)?, pods })
    }

    /// Sends a frame at the end of a pod's interface, or of the world's.
    pub(super) fn send(&self, pod: Option<usize>, frame: &[u8]) -> io::Result<()> {
        let mut mouth = pod.and_then(|pod| self.pods.get(pod)).unwrap_or(&self.world);
        mouth.write(frame).map(drop)
    }
}

/// Whose packets were heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// One that left the node.
    Far,
    /// One that was delivered to the node itself.
    Node,
}

/// What a socket hears.
enum Ear {
    /// Frames at the far ends.
    Frames(Socket),
    /// IPv4 packets for the node.
    Packets(Socket),
    /// What IPv6 packets for one of the node's addresses have in them.
    Contents(Socket, IpNumber, Ipv6Addr),
}

impl Ear {
    fn socket(&self) -> &Socket {
        match self {
            Ear::Frames(socket) | Ear::Packets(socket) | Ear::Contents(socket, ..) => socket,
        }
    }
}

/// All that listens. What the node's own programs do not take, the stack answers, so that it is not they who
/// must be asked whether a packet arrived: raw sockets get a copy of each before.
pub(super) struct Ears(Vec<Ear>);

impl Ears {
    /// Must be called inside the node's namespace.
    pub(super) fn open(stage: &Stage) -> Result<Self, TraceError> {
        let failed = |what: &'static str| move |e| TraceError::io(what, e);
        let mut ears = Vec::new();
        for kind in [EtherType::IPV4, EtherType::IPV6] {
            // By protocol: of all that comes in at any far end, and of nothing that goes out.
            let protocol = Protocol::from(i32::from(kind.0.to_be()));
            let socket = stage.far().socket(Domain::PACKET, Type::RAW, Some(protocol));
            ears.push(Ear::Frames(socket.map_err(failed("listen to frames"))?));
        }
        let raw = |domain, number: IpNumber| {
            Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(number.0))))
        };
        for number in NUMBERS_V4 {
            let socket = raw(Domain::IPV4, number);
            ears.push(Ear::Packets(socket.map_err(failed("listen to the node's packets"))?));
        }
        // What comes out of them has no header: who was meant is told by the address that they are bound to.
        let v6 = stage.places().node().iter().filter_map(|address| match address {
            IpAddr::V6(v6) if stage.has_ipv6() => Some(*v6),
            _ => None,
        });
        let loopback = Some(Ipv6Addr::LOCALHOST).filter(|_| stage.has_ipv6());
        for address in v6.chain(loopback) {
            for number in NUMBERS_V6 {
                let open = || {
                    let socket = raw(Domain::IPV6, number)?;
                    socket.bind(&SocketAddr::from((address, 0)).into())?;
                    Ok(Ear::Contents(socket, number, address))
                };
                ears.push(open().map_err(failed("listen to the node's packets"))?);
            }
        }
        for ear in &ears {
            let wide = || {
                ear.socket().set_nonblocking(true)?;
                Ok(setsockopt(&ear.socket(), RcvBufForce, &BUFFER)?)
            };
            wide().map_err(failed("make room for packets"))?;
        }
        Ok(Self(ears))
    }

    /// Takes all that has come.
    pub(super) fn listen(&self, mut tell: impl FnMut(Heard, Sight)) -> io::Result<()> {
        let mut buffer = [0; 2048];
        for ear in &self.0 {
            let mut errors = 0;
            loop {
                let fd = ear.socket().as_raw_fd();
                let received = match ear {
                    Ear::Frames(_) | Ear::Packets(_) => {
                        recvfrom::<()>(fd, &mut buffer).map(|(length, _)| (length, None))
                    }
                    Ear::Contents(..) => recvfrom::<SockaddrIn6>(fd, &mut buffer),
                };
                let (length, from) = match received {
                    Ok(received) => received,
                    Err(Errno::EAGAIN) => break,
                    // One that was pending, such as what somebody told of by ICMP; it is told once.
                    Err(_) if errors < PENDING_ERRORS => {
                        errors += 1;
                        continue;
                    }
                    Err(e) => return Err(e.into()),
                };
                let bytes = &buffer[..length.min(buffer.len())];
                let heard = match ear {
                    Ear::Frames(_) => sight::of_frame(bytes).map(|sight| (Heard::Far, sight)),
                    Ear::Packets(_) => sight::of_packet(bytes).map(|sight| (Heard::Node, sight)),
                    Ear::Contents(_, number, to) => from.and_then(|from| {
                        let (from, to) = (from.ip().into(), (*to).into());
                        Some((Heard::Node, sight::of_transport(*number, from, to, bytes)?))
                    }),
                };
                if let Some((heard, sight)) = heard {
                    tell(heard, sight);
                }
            }
        }
        Ok(())
    }

    /// Waits until something has come, or so many milliseconds.
    pub(super) fn wait(&self, milliseconds: u16) -> io::Result<()> {
        let sockets = self.0.iter().map(Ear::socket);
        let mut polled: Vec<_> =
            sockets.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
        match poll(&mut polled, PollTimeout::from(milliseconds)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}
