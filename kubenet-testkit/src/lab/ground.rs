use std::{collections::BTreeMap, path::Path};

use super::{
    LabError, Netns,
    cgroup::Cgroup,
    cleanup::{self, PREFIX, Registration},
    ip, require_root, sysctl, topology,
};

/// Network namespaces for a lab of a shape of your own, empty at first. They are removed as those of a
/// [`Lab`](super::Lab) are: on drop, by a panic, SIGINT and SIGTERM, and by the next lab if this process is
/// killed.
///
/// ```no_run
/// use kubenet_testkit::lab::Ground;
///
/// let mut ground = Ground::new(true)?;
/// ground.add("router", true)?;
/// let host = ground.add("host", false)?;
/// let wire = format!("link add eth0 type veth peer name eth0 netns {}\nlink set eth0 up\n", host.name());
/// ground.ip("router", &wire)?;
/// ground.ip("host", "link set eth0 up\naddr add 192.0.2.1/24 dev eth0\n")?;
/// ground.wait_until_running("host", &["eth0"])?;
/// # Ok::<_, kubenet_testkit::lab::LabError>(())
/// ```
#[derive(Debug)]
pub struct Ground {
    id: String,
    ipv6: bool,
    spaces: BTreeMap<String, Netns>,
    cgroup: Result<Cgroup, String>,
    // Last: the namespaces go when all that is inside has gone.
    registration: Registration,
}

impl Ground {
    /// Nothing yet, with or without IPv6. Removes labs of processes that were killed first.
    ///
    /// # Errors
    /// [`LabError::Unsupported`] without root.
    pub fn new(ipv6: bool) -> Result<Self, LabError> {
        require_root()?;
        cleanup::remove_stale();
        let id = cleanup::new_id();
        let registration = Registration::new(&id);
        let cgroup = Cgroup::join().map_err(|e| e.to_string());
        Ok(Self { id, ipv6, spaces: BTreeMap::new(), cgroup, registration })
    }

    /// Adds a namespace, called `kubenet-<id>-<part>`. It has no interface but `lo`, which is down, and neither
    /// checks nor redirects packets, nor limits ICMP errors. A router forwards; another one has IPv6 only if the
    /// ground has.
    ///
    /// # Errors
    /// Those of `ip`; settings that cannot be written.
    pub fn add(&mut self, part: &str, router: bool) -> Result<Netns, LabError> {
        let name = format!("{PREFIX}{}-{part}", self.id);
        self.registration.create(std::slice::from_ref(&name))?;
        let netns = Netns::open(&name)?;
        netns.run(|| topology::harden(router, self.ipv6))??;
        self.spaces.insert(part.to_owned(), netns.clone());
        Ok(netns)
    }

    /// A namespace that was added.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn netns(&self, part: &str) -> Result<&Netns, LabError> {
        let found = self.spaces.get(part);
        found.ok_or_else(|| LabError::InvalidInput(format!("there is no namespace {part:?} on this ground")))
    }

    /// Runs `ip -batch` with these lines in one of the namespaces.
    ///
    /// # Errors
    /// The line that failed, and why.
    pub fn ip(&self, part: &str, lines: &str) -> Result<(), LabError> {
        ip::batch(Some(self.netns(part)?.name()), lines)
    }

    /// Writes a file below `/proc/sys/net` of one of the namespaces, where the kernel has it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn sysctl(&self, part: &str, path: &str, value: &str) -> Result<(), LabError> {
        self.netns(part)?.run(|| sysctl(path, value))?
    }

    /// Waits until interfaces of one of the namespaces carry packets: what is sent before is lost.
    ///
    /// # Errors
    /// One did not come up in time.
    pub fn wait_until_running(&self, part: &str, interfaces: &[&str]) -> Result<(), LabError> {
        self.netns(part)?.run(|| topology::running(interfaces))?
    }

    /// The cgroup of this process, as [`Lab::cgroup`](super::Lab::cgroup) has it.
    ///
    /// # Errors
    /// It could not be made; the rest works without.
    pub fn cgroup(&self) -> Result<&Path, LabError> {
        match &self.cgroup {
            Ok(cgroup) => Ok(cgroup.path()),
            Err(why) => Err(LabError::Unsupported(format!("no cgroup of version 2: {why}"))),
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // A thread keeps a namespace alive even without its name.
        self.spaces.values().for_each(Netns::leave);
    }
}
