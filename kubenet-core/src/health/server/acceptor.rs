use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use socket2::SockRef;
use tracing::{debug, warn};

use super::{Subject, connections::Connections};

/// Pause after an error of the system, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a blocked accept may take to notice that its listener was shut down.
const NOTICE: Duration = Duration::from_millis(200);

/// A listener and the thread that accepts its connections. Dropping it closes the port and ends the thread.
pub(super) struct Acceptor {
    listener: Option<Arc<TcpListener>>,
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    ended: mpsc::Receiver<()>,
}

impl Acceptor {
    pub(super) fn start(
        listener: TcpListener,
        subject: Subject,
        connections: Arc<Connections>,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let listener = Arc::new(listener);
        let stopping = Arc::new(AtomicBool::new(false));
        let (end, ended) = mpsc::channel();
        let thread = thread::Builder::new().name("health-accept".to_owned()).spawn({
            let listener = Arc::clone(&listener);
            let stopping = Arc::clone(&stopping);
            move || {
                accept(&listener, subject, &connections, &stopping);
                // The port is closed before the end is told.
                drop(listener);
                drop(end);
            }
        })?;
        Ok(Self { listener: Some(listener), address, stopping, thread: Some(thread), ended })
    }

    /// Where it listens, with the port that the system chose if it was 0.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    fn has_ended_within(&self, wait: Duration) -> bool {
        self.ended.recv_timeout(wait) == Err(mpsc::RecvTimeoutError::Disconnected)
    }
}

fn accept(listener: &TcpListener, subject: Subject, connections: &Arc<Connections>, stopping: &AtomicBool) {
    loop {
        let accepted = listener.accept();
        if stopping.load(Ordering::SeqCst) {
            return;
        }
        match accepted {
            Ok((stream, peer)) => connections.admit(stream, peer.ip(), subject),
            // The client has gone already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                debug!(%error, "accepting a health check failed");
                thread::park_timeout(PAUSE);
            }
        }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        let (Some(listener), Some(thread)) = (self.listener.take(), self.thread.take()) else { return };
        self.stopping.store(true, Ordering::SeqCst);
        thread.thread().unpark();
        // Linux wakes the accept and closes the port at once. Where a system does not, a connection wakes it.
        let is_shut = SockRef::from(&*listener).shutdown(Shutdown::Both).is_ok();
        drop(listener);
        if !(is_shut && self.has_ended_within(NOTICE)) {
            drop(TcpStream::connect_timeout(&reachable(self.address), NOTICE));
            if !self.has_ended_within(NOTICE) {
                warn!(address = %self.address, "the listener of a health check did not end");
                return;
            }
        }
        let _ = thread.join();
    }
}

/// Where this machine reaches a listener of its own.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
