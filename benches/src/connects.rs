//! TCP connections, one after another, each timed from its first packet to the end of its handshake.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use kubenet_testkit::lab::{Lab, Netns};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

use crate::{Failure, machine, stats::Samples};

/// A client in one pod and a listener in another.
#[derive(Debug)]
pub struct Dialer {
    client: Netns,
    listener: TcpListener,
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
    /// Listens in a pod for a client in another.
    ///
    /// # Errors
    /// No such pod, or the port is taken.
    pub fn new(lab: &Lab, client: &str, server: &str, port: u16) -> Result<Self, Failure> {
        let server = lab.pod(server)?;
        let socket = server.netns().socket(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((server.v4(), port)).into())?;
        socket.listen(64)?;
        socket.set_nonblocking(true)?;
        Ok(Self { client: lab.pod(client)?.netns().clone(), listener: socket.into() })
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

    fn accept(&self) -> Result<(), Failure> {
        loop {
            match self.listener.accept() {
                Ok(_) => return Ok(()),
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
