use std::{
    fmt,
    fs::File,
    io,
    net::SocketAddr,
    panic,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use futures::executor::block_on;
use kubenet_core::worker::Worker;
use nix::sched::{CloneFlags, setns};
use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};

use super::LabError;

/// A named network namespace of a lab. Cheap to clone.
#[derive(Clone)]
pub struct Netns(Arc<Inner>);

struct Inner {
    name: String,
    path: PathBuf,
    /// A thread that stays inside and opens sockets. Taken away when the namespace is removed, because a
    /// thread or a socket would keep it alive.
    inside: Mutex<Option<Arc<Worker<()>>>>,
}

impl Netns {
    /// Refers to an existing namespace by its name under `/run/netns`.
    ///
    /// # Errors
    /// It does not exist, or this process may not enter it.
    pub fn open(name: &str) -> Result<Self, LabError> {
        let path = Path::new("/run/netns").join(name);
        let entered = path.clone();
        let inside = Worker::spawn("lab-netns", move || enter(&entered))
            .map_err(LabError::io(format!("enter network namespace {name}")))?;
        Ok(Self(Arc::new(Inner { name: name.into(), path, inside: Mutex::new(Some(Arc::new(inside))) })))
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its file, for `setns`.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Runs a closure on a new thread inside the namespace and waits for it. The closure may borrow. A panic
    /// in it goes on in the caller.
    ///
    /// # Errors
    /// The namespace could not be entered.
    pub fn run<R: Send>(&self, job: impl FnOnce() -> R + Send) -> Result<R, LabError> {
        let ran = thread::scope(|scope| {
            scope
                .spawn(|| {
                    enter(&self.0.path)?;
                    Ok(job())
                })
                .join()
        });
        match ran {
            Ok(result) => result.map_err(LabError::io(format!("enter network namespace {}", self.0.name))),
            Err(panic) => panic::resume_unwind(panic),
        }
    }

    /// Opens a socket that belongs to the namespace. Any thread may use it.
    ///
    /// # Errors
    /// Those of the system call, or that the namespace was removed.
    pub fn socket(&self, domain: Domain, kind: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
        let inside = self.0.inside.lock().clone();
        let gone = || io::Error::other(format!("network namespace {} was removed", self.0.name));
        let inside = inside.ok_or_else(gone)?;
        block_on(inside.run(move |()| Socket::new(domain, kind, protocol))).map_err(|_| gone())?
    }

    /// Opens a socket for the family of an address.
    pub(super) fn socket_for(&self, address: SocketAddr, kind: Type) -> io::Result<Socket> {
        self.socket(Domain::for_address(address), kind, None)
    }

    /// Lets go of the namespace: no thread of ours stays inside.
    pub(super) fn leave(&self) {
        self.0.inside.lock().take();
    }
}

impl fmt::Debug for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Netns").field(&self.0.name).finish()
    }
}

/// Moves the calling thread into a namespace, for good.
fn enter(path: &Path) -> io::Result<()> {
    setns(File::open(path)?, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
}
