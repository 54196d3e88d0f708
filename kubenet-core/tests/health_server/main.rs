//! Health checks over HTTP, asked by plain TCP clients.
#![cfg(feature = "health-server")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod hostile;
mod ports;
mod requests;

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    process,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use kubenet_core::{
    health::{HealthBoard, HealthServer, HealthServerBuilder, NodeEligibility, ServiceHealth},
    model::{IpFamily, ObjectName},
};
use parking_lot::Mutex;
use serde_json::{Value, json};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Far longer than anything here takes, far shorter than a connection's life in these tests.
const PATIENCE: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(600);

fn name(name: &str) -> ObjectName {
    ObjectName::new("Service", "demo", name).unwrap()
}

fn health(service: &str, port: u16, local_endpoints: usize) -> ServiceHealth {
    ServiceHealth { service: name(service), port: port.try_into().unwrap(), local_endpoints }
}

/// A port that nobody listens on, outside the range from which systems choose ports.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let offset = NEXT.fetch_add(1, Ordering::SeqCst);
        let port = 20_000 + (u16::try_from(process::id() % 10_000).unwrap() + offset) % 10_000;
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
}

fn server(board: &Arc<HealthBoard>) -> HealthServerBuilder {
    HealthServer::builder(Arc::clone(board)).addresses([LOCALHOST]).connection_life(LONG)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn connect(address: impl Into<SocketAddr>) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address.into())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(known, _)| *known == name).map(|(_, value)| value)
    }
}

/// The whole of what comes, until the server ends the connection.
fn reply(stream: &mut TcpStream) -> io::Result<Reply> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Ok(Reply { status, head: head.to_owned(), body: body.to_owned() })
}

fn ask(address: impl Into<SocketAddr>, request: impl AsRef<[u8]>) -> io::Result<Reply> {
    let mut stream = connect(address)?;
    stream.write_all(request.as_ref())?;
    reply(&mut stream)
}

fn get(address: impl Into<SocketAddr>, path: &str) -> io::Result<Reply> {
    ask(address, format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n"))
}

fn status(port: u16) -> Option<u16> {
    get((LOCALHOST, port), "/").ok().map(|reply| reply.status)
}

fn is_refused(port: u16) -> bool {
    connect((LOCALHOST, port)).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}
