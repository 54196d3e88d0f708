//! Servers that say who they are and whom they see. One thread serves all of a lab: a socket belongs to the
//! namespace in which it was opened, whichever thread uses it.

use std::{
    collections::HashMap,
    fmt,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    eventfd::EventFd,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Type};

use super::{Lab, LabError, Netns, Place};

/// Body of an HTTP answer.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Body {
    pub(super) name: String,
    pub(super) peer: SocketAddr,
}

const MAX_REQUEST: usize = 16 * 1024;
/// In bytes.
pub(super) const MAX_DATAGRAM: usize = 9000;
/// Token of the event that ends the thread.
const STOP: u64 = 0;

/// An HTTP server over TCP and an echo server over UDP on one port, both families. Stops when dropped.
///
/// HTTP answers any request with `{"name": …, "peer": …}`, and keeps the connection open unless asked
/// otherwise. UDP answers any datagram with `name peer`. Spaces make an answer as long as its question.
pub struct Server {
    reactor: Arc<Shared>,
    id: u64,
    place: Place,
    name: Arc<str>,
    port: u16,
}

impl Server {
    /// Where it runs.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What it calls itself: the name of its pod or node.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("place", &self.place).field("port", &self.port).finish_non_exhaustive()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.reactor.sources.lock().remove_if(|source| source.server == self.id);
    }
}

impl Lab {
    /// Serves HTTP and UDP on a port of a pod or a node, as the pod's or node's name.
    ///
    /// # Errors
    /// The port is taken there; there is no such pod.
    pub fn serve(&self, place: impl Into<Place>, port: u16) -> Result<Server, LabError> {
        let place = place.into();
        let name: Arc<str> = place.name().into();
        let netns = self.netns(&place)?;
        let (listener, udp) = open(&netns, port, self.has_ipv6())
            .map_err(LabError::io(format!("serve port {port} in {place}")))?;
        let server = self.reactor.shared.next();
        let mut sources = self.reactor.shared.sources.lock();
        for kind in [Kind::Listener(listener), Kind::Udp(udp)] {
            let source = Source { server, place: place.clone(), name: Arc::clone(&name), kind };
            self.reactor
                .shared
                .watch(&mut sources, source)
                .map_err(LabError::io(format!("serve port {port} in {place}")))?;
        }
        drop(sources);
        Ok(Server { reactor: Arc::clone(&self.reactor.shared), id: server, place, name, port })
    }
}

fn open(netns: &Netns, port: u16, ipv6: bool) -> io::Result<(TcpListener, UdpSocket)> {
    let (domain, any) = if ipv6 {
        (Domain::IPV6, IpAddr::V6(Ipv6Addr::UNSPECIFIED))
    } else {
        (Domain::IPV4, IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    };
    let bound = |kind| {
        let socket = netns.socket(domain, kind, None)?;
        if ipv6 {
            socket.set_only_v6(false)?;
        }
        if kind == Type::STREAM {
            socket.set_reuse_address(true)?;
        }
        socket.bind(&SocketAddr::new(any, port).into())?;
        socket.set_nonblocking(true)?;
        Ok::<_, io::Error>(socket)
    };
    let tcp = bound(Type::STREAM)?;
    tcp.listen(1024)?;
    Ok((tcp.into(), bound(Type::DGRAM)?.into()))
}

/// The servers' thread of a lab.
pub(super) struct Reactor {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    epoll: Epoll,
    wake: EventFd,
    stopping: AtomicBool,
    sources: Mutex<Sources>,
    next: std::sync::atomic::AtomicU64,
}

#[derive(Default)]
struct Sources(HashMap<u64, Source>);

impl Sources {
    /// Closes the sockets that match.
    fn remove_if(&mut self, matches: impl Fn(&Source) -> bool) {
        self.0.retain(|_, source| !matches(source));
    }
}

struct Source {
    server: u64,
    place: Place,
    name: Arc<str>,
    kind: Kind,
}

enum Kind {
    Listener(TcpListener),
    Udp(UdpSocket),
    Connection { stream: TcpStream, peer: SocketAddr, input: Vec<u8>, output: Vec<u8> },
}

impl Reactor {
    pub(super) fn start() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let wake = EventFd::new()?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
        let shared = Arc::new(Shared {
            epoll,
            wake,
            stopping: AtomicBool::new(false),
            sources: Mutex::default(),
            next: (STOP + 1).into(),
        });
        let served = Arc::clone(&shared);
        let thread = thread::Builder::new().name("lab-servers".into()).spawn(move || served.serve())?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    pub(super) fn stop_all_of(&self, place: &Place) {
        self.shared.sources.lock().remove_if(|source| source.place == *place);
    }

    /// Closes everything and ends the thread.
    pub(super) fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        let _ = self.shared.wake.write(1);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
        self.shared.sources.lock().0.clear();
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor").finish_non_exhaustive()
    }
}

impl Shared {
    fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn watch(&self, sources: &mut Sources, source: Source) -> io::Result<()> {
        let token = self.next();
        let event = EpollEvent::new(EpollFlags::EPOLLIN, token);
        match &source.kind {
            Kind::Listener(socket) => self.epoll.add(socket, event)?,
            Kind::Udp(socket) => self.epoll.add(socket, event)?,
            Kind::Connection { stream, .. } => self.epoll.add(stream, event)?,
        }
        sources.0.insert(token, source);
        Ok(())
    }

    fn serve(&self) {
        let mut events = [EpollEvent::empty(); 64];
        while !self.stopping.load(Ordering::Acquire) {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(ready) => ready,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => return,
            };
            let mut sources = self.sources.lock();
            for event in &events[..ready] {
                self.handle(&mut sources, event.data());
            }
        }
    }

    fn handle(&self, sources: &mut Sources, token: u64) {
        // An event may come for a source that was removed a moment ago.
        let Some(source) = sources.0.get_mut(&token) else { return };
        match &mut source.kind {
            Kind::Udp(socket) => answer_datagrams(socket, &source.name),
            Kind::Connection { stream, peer, input, output } => {
                let wants = if exchange(stream, *peer, &source.name, input, output).is_err() {
                    None
                } else if output.is_empty() {
                    Some(EpollFlags::EPOLLIN)
                } else {
                    Some(EpollFlags::EPOLLOUT)
                };
                let watched =
                    wants.map(|flags| self.epoll.modify(stream.as_fd(), &mut EpollEvent::new(flags, token)));
                if !matches!(watched, Some(Ok(()))) {
                    sources.0.remove(&token);
                }
            }
            Kind::Listener(listener) => {
                let accepted: Vec<_> = std::iter::from_fn(|| listener.accept().ok()).collect();
                let (server, place, name) = (source.server, source.place.clone(), Arc::clone(&source.name));
                for (stream, peer) in accepted {
                    if stream.set_nonblocking(true).is_err() {
                        continue;
                    }
                    let _ = stream.set_nodelay(true);
                    let peer = canonical(peer);
                    let kind = Kind::Connection { stream, peer, input: Vec::new(), output: Vec::new() };
                    let source = Source { server, place: place.clone(), name: Arc::clone(&name), kind };
                    // A connection that cannot be watched is closed by dropping it.
                    let _ = self.watch(sources, source);
                }
            }
        }
    }
}

/// A v4-mapped address as IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn answer_datagrams(socket: &UdpSocket, name: &str) {
    let mut buffer = [0; MAX_DATAGRAM];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, peer)) => {
                let answer = format!("{:length$}", format!("{name} {}", canonical(peer)));
                let _ = socket.send_to(answer.as_bytes(), peer);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            // ICMP errors about earlier answers arrive here; each is read once.
            Err(_) => {}
        }
    }
}

/// Reads what there is, answers complete requests and writes what fits.
fn exchange(
    stream: &mut TcpStream,
    peer: SocketAddr,
    name: &Arc<str>,
    input: &mut Vec<u8>,
    output: &mut Vec<u8>,
) -> io::Result<()> {
    let mut close = false;
    let mut chunk = [0; 4096];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => {
                close = true;
                break;
            }
            Ok(n) if input.len() + n > MAX_REQUEST => {
                return Err(io::Error::other("request too large"));
            }
            Ok(n) => {
                input.extend_from_slice(&chunk[..n]);
                if n < chunk.len() {
                    break;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    while let Some((used, keep_alive)) = complete_request(input)? {
        input.drain(..used);
        let body = serde_json::to_string(&Body { name: name.to_string(), peer })?;
        let body = format!("{body:used$}");
        let connection = if keep_alive { "keep-alive" } else { "close" };
        write!(
            output,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: {connection}\r\n\r\n{body}",
            body.len()
        )?;
        close |= !keep_alive;
    }
    while !output.is_empty() {
        match stream.write(output) {
            Ok(n) => drop(output.drain(..n)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    if close { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
}

/// Length of the first request, once its head is complete, and whether the connection stays open. Bodies are
/// not read: the clients send none.
fn complete_request(input: &[u8]) -> io::Result<Option<(usize, bool)>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(input).map_err(io::Error::other)? {
        httparse::Status::Partial => Ok(None),
        httparse::Status::Complete(used) => {
            let close = request
                .headers
                .iter()
                .any(|h| h.name.eq_ignore_ascii_case("connection") && h.value.eq_ignore_ascii_case(b"close"));
            Ok(Some((used, !close)))
        }
    }
}
