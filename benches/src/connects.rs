//! TCP connections, one after another, each timed from its first packet to the end of its handshake.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use kubenet_core::model::IpFamily;
use kubenet_testkit::lab::{Lab, Netns, Place};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

use crate::{Failure, machine, stats::Samples};

/// A client in one place of a lab and a listener in another, both on the calling thread, so that no scheduler
/// is measured: what one end sends is at the other when the system call returns.
#[derive(Debug)]
pub struct Dialer {
    pub(crate) client: Netns,
    pub(crate) listener: TcpListener,
}

/// What connections cost.
#[derive(Clone, Debug, Default)]
pub struct Connects {
    /// From the call to its return.
    pub latency: Samples,
    /// CPU time in it: both ends' packets are handled inside the client's system call.
    pub cpu: Samples,
}

impl Connects {
    /// Adds those of another run.
    pub fn extend(&mut self, other: Connects) {
        self.latency.extend(other.latency);
        self.cpu.extend(other.cpu);
    }
}

impl Dialer {
    /// Listens in one place for a client in another, IPv4.
    ///
    /// # Errors
    /// No such pod, or the port is taken.
    pub fn new(
        lab: &Lab,
        client: impl Into<Place>,
        server: impl Into<Place>,
        port: u16,
    ) -> Result<Self, Failure> {
        let server = server.into();
        let socket = lab.netns(&server)?.socket(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(lab.address(&server, IpFamily::V4)?, port).into())?;
        socket.listen(64)?;
        socket.set_nonblocking(true)?;
        Ok(Self { client: lab.netns(&client.into())?, listener: socket.into() })
    }

    /// The same listener, for a client elsewhere.
    ///
    /// # Errors
    /// No such pod, or no file descriptor is left.
    pub fn from(&self, lab: &Lab, client: impl Into<Place>) -> Result<Self, Failure> {
        Ok(Self { client: lab.netns(&client.into())?, listener: self.listener.try_clone()? })
    }

    /// Where the listener is.
    ///
    /// # Errors
    /// Those of the system call.
    pub fn server(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Makes so many connections. Each must arrive at the listener, and is cut from both ends before the next.
    ///
    /// # Errors
    /// A connection that fails or ends up elsewhere.
    pub fn connect(&self, to: SocketAddr, count: usize) -> Result<Connects, Failure> {
        self.client.run(|| {
            machine::pin();
            let mut connects = Connects::default();
            for _ in 0..count {
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
                socket.set_linger(Some(Duration::ZERO))?;
                let cpu = machine::thread_cpu()?;
                let begin = Instant::now();
                socket.connect_timeout(&to.into(), Duration::from_secs(5))?;
                connects.latency.push(begin.elapsed());
                connects.cpu.push(machine::thread_cpu()?.saturating_sub(cpu));
                drop(socket);
                self.accept()?;
            }
            Ok(connects)
        })?
    }

    /// The connection that was made just now.
    pub(crate) fn accept(&self) -> Result<TcpStream, Failure> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => return Ok(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut waiting = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
                    if poll(&mut waiting, PollTimeout::from(1000u16))? == 0 {
                        return Err("a connection was made, but not to the backend".into());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
