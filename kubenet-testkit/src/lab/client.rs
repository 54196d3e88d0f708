//! Clients: one request, or a connection that lives on.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use socket2::Type;

use super::{
    Lab, Place, RequestError,
    server::{Body, MAX_DATAGRAM},
};

/// What a server of the lab answered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// Name of the pod or node that answered.
    pub backend: String,
    /// The client's address as the server saw it.
    pub peer: SocketAddr,
    /// Time to open the connection; zero for UDP and on an open connection.
    pub connect: Duration,
    /// Time from the beginning to the end of the answer.
    pub total: Duration,
}

impl Lab {
    /// One HTTP request on a connection of its own. Never retried.
    ///
    /// # Errors
    /// [`RequestError`] tells refused from timed out from cut off.
    pub fn http_get(
        &self,
        from: impl Into<Place>,
        to: SocketAddr,
        timeout: Duration,
    ) -> Result<Answer, RequestError> {
        let mut connection = self.connect(from, to, timeout)?;
        let mut answer = connection.ask(timeout.saturating_sub(connection.connect))?;
        answer.connect = connection.connect;
        answer.total += connection.connect;
        Ok(answer)
    }

    /// Opens a TCP connection that can be asked again and again.
    ///
    /// # Errors
    /// [`RequestError`] tells refused from timed out.
    pub fn connect(
        &self,
        from: impl Into<Place>,
        to: SocketAddr,
        timeout: Duration,
    ) -> Result<Connection, RequestError> {
        self.connect_from_port(from, 0, to, timeout)
    }

    /// Opens a TCP connection from a port of the client's own; 0 is any.
    ///
    /// # Errors
    /// Those of [`Lab::connect`]; the port is taken.
    pub fn connect_from_port(
        &self,
        from: impl Into<Place>,
        port: u16,
        to: SocketAddr,
        timeout: Duration,
    ) -> Result<Connection, RequestError> {
        let socket = self.netns(&from.into())?.socket_for(to, Type::STREAM).map_err(RequestError::Io)?;
        if port != 0 {
            let any: IpAddr = match to {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            socket.set_reuse_address(true).map_err(RequestError::Io)?;
            socket.bind(&SocketAddr::new(any, port).into()).map_err(RequestError::Io)?;
        }
        let begin = Instant::now();
        socket.connect_timeout(&to.into(), timeout).map_err(|e| RequestError::from_io(e, timeout))?;
        let connect = begin.elapsed();
        let _ = socket.set_tcp_nodelay(true);
        Ok(Connection { stream: socket.into(), to, connect })
    }

    /// One datagram from a new socket, and its answer. Never retried.
    ///
    /// # Errors
    /// [`RequestError`] tells refused (ICMP port unreachable) from timed out.
    pub fn udp_ask(
        &self,
        from: impl Into<Place>,
        to: SocketAddr,
        timeout: Duration,
    ) -> Result<Answer, RequestError> {
        self.udp_flow(from, to)?.ask(timeout)
    }

    /// Opens a connected UDP socket that can be asked again and again. Where connecting fails, each question tries
    /// again.
    ///
    /// # Errors
    /// The socket could not be opened.
    pub fn udp_flow(&self, from: impl Into<Place>, to: SocketAddr) -> Result<UdpFlow, RequestError> {
        let socket = self.netns(&from.into())?.socket_for(to, Type::DGRAM).map_err(RequestError::Io)?;
        let connected = socket.connect(&to.into()).is_ok();
        Ok(UdpFlow { socket: socket.into(), to, connected: connected.into() })
    }
}

/// A TCP connection to a server of the lab.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    to: SocketAddr,
    connect: Duration,
}

impl Connection {
    /// How long it took to open.
    pub fn connect_time(&self) -> Duration {
        self.connect
    }

    /// The client's own address.
    ///
    /// # Errors
    /// Those of the system call.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// Asks who is at the other end.
    ///
    /// # Errors
    /// The connection was cut, or nothing came in time. It is of no use then.
    pub fn ask(&mut self, timeout: Duration) -> Result<Answer, RequestError> {
        self.ask_at_length(0, timeout)
    }

    /// The same with a question of at least this many bytes, at most 15,000. The answer is as long.
    ///
    /// # Errors
    /// Those of [`Connection::ask`].
    pub fn ask_at_length(&mut self, length: usize, timeout: Duration) -> Result<Answer, RequestError> {
        let begin = Instant::now();
        let sort = |error| RequestError::from_io(error, timeout);
        let filler = "x".repeat(length);
        let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nX-Filler: {filler}\r\n\r\n", self.to);
        self.stream.write_all(request.as_bytes()).map_err(sort)?;
        let mut input = Vec::with_capacity(512);
        let mut chunk = [0; 1024];
        loop {
            let left = timeout.saturating_sub(begin.elapsed());
            if left.is_zero() {
                return Err(RequestError::TimedOut { after: timeout });
            }
            self.stream.set_read_timeout(Some(left)).map_err(sort)?;
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(RequestError::Closed),
                Ok(n) => input.extend_from_slice(&chunk[..n]),
                // A socket with a time limit is interrupted by whatever stops the thread for a moment.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(sort(error)),
            }
            if let Some(body) = complete_response(&input)? {
                return Ok(Answer {
                    backend: body.name,
                    peer: body.peer,
                    connect: Duration::ZERO,
                    total: begin.elapsed(),
                });
            }
        }
    }
}

/// The body, once the answer is complete.
fn complete_response(input: &[u8]) -> Result<Option<Body>, RequestError> {
    let bad = |what: &dyn fmt::Display| RequestError::Protocol(what.to_string());
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(input).map_err(|e| bad(&e))? {
        httparse::Status::Partial => return Ok(None),
        httparse::Status::Complete(head) => head,
    };
    if response.code != Some(200) {
        return Err(bad(&format!("status {:?}", response.code)));
    }
    let length = response
        .headers
        .iter()
        .find(|h| h.name.eq_ignore_ascii_case("content-length"))
        .and_then(|h| std::str::from_utf8(h.value).ok()?.parse::<usize>().ok())
        .ok_or_else(|| bad(&"no Content-Length"))?;
    match input[head..].get(..length) {
        None => Ok(None),
        Some(body) => serde_json::from_slice(body).map(Some).map_err(|e| bad(&e)),
    }
}

/// A connected UDP socket to a server of the lab. When it is cut, the next question connects it again.
#[derive(Debug)]
pub struct UdpFlow {
    socket: UdpSocket,
    to: SocketAddr,
    connected: AtomicBool,
}

impl UdpFlow {
    /// Where it sends.
    pub fn destination(&self) -> SocketAddr {
        self.to
    }

    /// Sends one datagram and waits for its answer.
    ///
    /// # Errors
    /// Refused, cut, or nothing came in time. The next datagram may be answered all the same.
    pub fn ask(&self, timeout: Duration) -> Result<Answer, RequestError> {
        self.ask_at_length(1, timeout)
    }

    /// The same with a datagram of this many bytes, at most 9,000. The answer is as long.
    ///
    /// # Errors
    /// Those of [`UdpFlow::ask`]; the datagram is larger than the path takes and may not be divided.
    pub fn ask_at_length(&self, length: usize, timeout: Duration) -> Result<Answer, RequestError> {
        let begin = Instant::now();
        let sort = |error| RequestError::from_io(error, timeout);
        if !self.connected.load(Ordering::Relaxed) {
            self.socket.connect(self.to).map_err(sort)?;
            self.connected.store(true, Ordering::Relaxed);
        }
        let sort = |error: io::Error| {
            // Who sends is told only that the socket is connected to nobody any more.
            let is_gone = error.raw_os_error() == Some(nix::libc::EDESTADDRREQ);
            let why = if is_gone { self.socket.take_error().ok().flatten() } else { None };
            let error = why.unwrap_or(error);
            if is_gone || error.kind() == io::ErrorKind::ConnectionAborted {
                self.connected.store(false, Ordering::Relaxed);
            }
            sort(error)
        };
        self.socket.set_read_timeout(Some(timeout.max(Duration::from_millis(1)))).map_err(sort)?;
        match self.socket.send(&vec![b'?'; length]) {
            // A rule of the client's own host took it: lost like any other, unless an ICMP error follows.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
            sent => drop(sent.map_err(sort)?),
        }
        let mut buffer = [0; MAX_DATAGRAM];
        let length = loop {
            match self.socket.recv(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => break received.map_err(sort)?,
            }
        };
        let text = String::from_utf8_lossy(&buffer[..length]);
        let parsed =
            text.trim_end().split_once(' ').and_then(|(name, peer)| Some((name, peer.parse().ok()?)));
        let (name, peer) = parsed.ok_or_else(|| RequestError::Protocol(text.to_string()))?;
        Ok(Answer { backend: name.into(), peer, connect: Duration::ZERO, total: begin.elapsed() })
    }
}
