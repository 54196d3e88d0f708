//! Requests and bulk data over connections, by one thread for both ends.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

use crate::{Failure, connects::Dialer, machine, stats::Samples};

const PATIENCE: Duration = Duration::from_secs(5);

impl Dialer {
    /// Asks and answers so often on one connection, a byte each way.
    ///
    /// # Errors
    /// Those of the sockets, and a connection that ends up elsewhere.
    pub fn request_response(&self, to: SocketAddr, count: usize) -> Result<Samples, Failure> {
        self.client.run(|| {
            machine::pin();
            let (mut client, mut server) = self.open(to)?;
            let mut samples = Samples::default();
            for _ in 0..count {
                let begin = Instant::now();
                exchange(&mut client, &mut server)?;
                samples.push(begin.elapsed());
            }
            Ok(samples)
        })?
    }

    /// The CPU time of a packet of an established connection, both ends' work included: of so many questions
    /// and answers, a byte each, of which every one acknowledges the one before.
    ///
    /// # Errors
    /// Those of the sockets, and a connection that ends up elsewhere.
    pub fn packet_cpu(&self, to: SocketAddr, count: usize) -> Result<Samples, Failure> {
        self.client.run(|| {
            machine::pin();
            let (mut client, mut server) = self.open(to)?;
            let mut samples = Samples::default();
            for _ in 0..count {
                let begin = machine::thread_cpu()?;
                exchange(&mut client, &mut server)?;
                samples.push(machine::thread_cpu()?.saturating_sub(begin) / 2);
            }
            Ok(samples)
        })?
    }

    /// Connects, asks, answers and closes so often.
    ///
    /// # Errors
    /// Those of the sockets, and a connection that ends up elsewhere.
    pub fn connect_request_response(&self, to: SocketAddr, count: usize) -> Result<Samples, Failure> {
        self.client.run(|| {
            machine::pin();
            let mut samples = Samples::default();
            for _ in 0..count {
                let begin = Instant::now();
                let (mut client, mut server) = self.open(to)?;
                exchange(&mut client, &mut server)?;
                drop((client, server));
                samples.push(begin.elapsed());
            }
            Ok(samples)
        })?
    }

    /// Sends so many bytes over one connection. Bytes a second, of one CPU that does the work of both ends.
    ///
    /// # Errors
    /// Those of the sockets, and a connection that ends up elsewhere.
    pub fn throughput(&self, to: SocketAddr, bytes: usize) -> Result<f64, Failure> {
        self.client.run(|| {
            machine::pin();
            let (mut client, mut server) = self.open(to)?;
            client.set_nonblocking(true)?;
            server.set_nonblocking(true)?;
            let (chunk, mut buffer) = (vec![0x5a; 1 << 17], vec![0; 1 << 18]);
            let (mut sent, mut received) = (0, 0);
            let begin = Instant::now();
            while received < bytes {
                let out = if sent < bytes { progress(client.write(&chunk))? } else { 0 };
                sent += out;
                let mut took = 0;
                loop {
                    match progress(server.read(&mut buffer))? {
                        0 => break,
                        more => took += more,
                    }
                }
                received += took;
                if out + took == 0 {
                    wait(&server)?;
                }
            }
            Ok(received as f64 / begin.elapsed().as_secs_f64())
        })?
    }

    /// Both ends of a new connection, which are cut when they are dropped.
    fn open(&self, to: SocketAddr) -> Result<(TcpStream, TcpStream), Failure> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_linger(Some(Duration::ZERO))?;
        socket.set_tcp_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        let server = self.accept()?;
        server.set_read_timeout(Some(PATIENCE))?;
        server.set_nodelay(true)?;
        Ok((socket.into(), server))
    }
}

fn exchange(client: &mut TcpStream, server: &mut TcpStream) -> io::Result<()> {
    let mut byte = [0];
    client.write_all(b"?")?;
    server.read_exact(&mut byte)?;
    server.write_all(b"!")?;
    client.read_exact(&mut byte)
}

/// Nothing where the socket would have to wait.
fn progress(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        other => other,
    }
}

fn wait(socket: &TcpStream) -> Result<(), Failure> {
    let mut waiting = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    match poll(&mut waiting, PollTimeout::from(5000u16))? {
        0 => Err("bulk data got stuck".into()),
        _ => Ok(()),
    }
}
