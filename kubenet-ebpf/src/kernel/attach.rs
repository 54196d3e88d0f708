//! Where the programs hang: interfaces and the cgroup.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    path::PathBuf,
};

use aya::{
    Ebpf,
    programs::{
        CgroupAttachMode, CgroupSockAddr, LinkOrder, Program, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, Link, LinkError},
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, qdisc_add_clsact},
    },
};
use kubenet_core::datapath::{DatapathError, DatapathEvent, ErrorKind, EventHub};
use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    sys::signal::{SigSet, SigmaskHow},
};

use super::sys;
use crate::error::{caused, error};

/// Programs of the socket hooks.
const SOCKET_PROGRAMS: [&str; 8] = [
    "kubenet_connect4",
    "kubenet_connect6",
    "kubenet_sendmsg4",
    "kubenet_sendmsg6",
    "kubenet_recvmsg4",
    "kubenet_recvmsg6",
    "kubenet_getpeername4",
    "kubenet_getpeername6",
];

/// Of filters, where there is no TCX: the one that the kernel gives to the first filter by itself.
const FILTER_PRIORITY: u16 = 0xc000;

/// The verifier gives up with `EAGAIN` when the thread is notified of something.
const VERIFIER_RETRIES: u32 = 10;

/// What an interface leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Pod,
    External,
}

impl Side {
    /// The program for packets that arrive there, and the one for packets that leave there.
    const fn programs(self) -> [(&'static str, TcAttachType); 2] {
        let ingress = match self {
            Side::Pod => "kubenet_from_pod",
            Side::External => "kubenet_from_external",
        };
        // What leaves first: replies must be translated before the first request is.
        [("kubenet_to_device", TcAttachType::Egress), (ingress, TcAttachType::Ingress)]
    }
}

/// Programs at one interface.
struct Attached {
    /// An interface that is made again under the same name has another index.
    index: u32,
    hooks: Vec<Hook>,
}

/// One program at one interface.
enum Hook {
    Tcx(FdLink),
    Filter(SchedClassifierLink),
}

impl Hook {
    fn detach(self) -> Result<(), Box<dyn std::error::Error>> {
        match self {
            Hook::Tcx(link) => Ok(sys::detach(link)?),
            Hook::Filter(link) => Ok(link.detach()?),
        }
    }
}

/// All attachments. Dropping it detaches everything.
pub(crate) struct Attachments {
    external: Vec<String>,
    pods: BTreeSet<String>,
    cgroup: Option<PathBuf>,
    tcx: bool,
    /// Set by the first route table: from then on packets may meet the programs.
    active: bool,
    interfaces: BTreeMap<String, Attached>,
    sockets: Vec<FdLink>,
    events: EventHub,
}

impl Drop for Attachments {
    fn drop(&mut self) {
        for failure in self.detach_all() {
            tracing::warn!("{failure}");
        }
    }
}

/// Loads the programs into the kernel, those for sockets only where they are used.
pub(crate) fn load(ebpf: &mut Ebpf, sockets: bool) -> Result<(), DatapathError> {
    // A pending signal, even an ignored one for the end of a child, stops the verifier: others may take it.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
    let result = load_programs(ebpf, sockets);
    if let Ok(before) = before
        && let Err(e) = before.thread_set_mask()
    {
        tracing::warn!("signals stay blocked on the datapath's thread: {e}");
    }
    result
}

fn load_programs(ebpf: &mut Ebpf, sockets: bool) -> Result<(), DatapathError> {
    for (name, program) in ebpf.programs_mut() {
        let mut load = || match program {
            Program::SchedClassifier(program) => program.load(),
            Program::CgroupSockAddr(program) if sockets => program.load(),
            Program::CgroupSockAddr(_) => Ok(()),
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        let mut result = load();
        for _ in 0..VERIFIER_RETRIES {
            if !matches!(&result, Err(e) if errno(e) == Some(Errno::EAGAIN)) {
                break;
            }
            result = load();
        }
        result.map_err(|e| {
            let kind = match errno(&e) {
                Some(Errno::EPERM | Errno::EACCES) if verifier_is_silent(&e) => ErrorKind::Permission,
                _ => ErrorKind::Unsupported,
            };
            caused("build", kind, format!("the kernel does not take the program {name}"), e)
        })?;
    }
    Ok(())
}

/// The verifier refuses programs with `EACCES`, too, but says why.
fn verifier_is_silent(error: &ProgramError) -> bool {
    match error {
        ProgramError::LoadError { verifier_log, .. } => verifier_log.to_string().is_empty(),
        _ => true,
    }
}

fn errno(error: &ProgramError) -> Option<Errno> {
    let code = match error {
        ProgramError::LoadError { io_error, .. } => io_error.raw_os_error(),
        ProgramError::SyscallError(e) => e.io_error.raw_os_error(),
        ProgramError::IOError(e) | ProgramError::TcError(TcError::IoError(e)) => e.raw_os_error(),
        _ => None,
    };
    code.map(Errno::from_raw)
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, ProgramError> {
    ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
}

impl Attachments {
    pub(crate) fn new(
        external: Vec<String>,
        cgroup: Option<PathBuf>,
        tcx: bool,
        events: EventHub,
    ) -> Result<Self, DatapathError> {
        for name in &external {
            index_of(name, "build", ErrorKind::InvalidInput)?;
        }
        if let Some(path) = &cgroup
            && !path.join("cgroup.controllers").exists()
        {
            let message =
                format!("cgroup: {}: must be a directory of a cgroup file system, version 2", path.display());
            return Err(error("build", ErrorKind::InvalidInput, message));
        }
        Ok(Self {
            external,
            pods: BTreeSet::new(),
            cgroup,
            tcx,
            active: false,
            interfaces: BTreeMap::new(),
            sockets: Vec::new(),
            events,
        })
    }

    /// Whether packets meet the programs.
    pub(crate) fn is_active(&self) -> bool {
        self.active
    }

    /// Attaches what is not attached. The first time, either everything is attached afterwards or nothing.
    /// Later an interface that is gone is reported as an event: the others must go on.
    pub(crate) fn ensure(&mut self, ebpf: &mut Ebpf, operation: &'static str) -> Result<(), DatapathError> {
        let result = self.try_ensure(ebpf, operation);
        if result.is_ok() {
            self.active = true;
        } else if !self.active {
            self.interfaces.clear();
            self.sockets.clear();
        }
        result
    }

    fn try_ensure(&mut self, ebpf: &mut Ebpf, operation: &'static str) -> Result<(), DatapathError> {
        let sides =
            [(Side::External, self.external.clone()), (Side::Pod, self.pods.iter().cloned().collect())];
        for (side, names) in sides {
            for name in names {
                match self.attach(ebpf, &name, side, operation) {
                    Ok(_) => {}
                    Err(e) if e.kind() == ErrorKind::Unavailable && (self.active || side == Side::Pod) => {
                        self.events.emit(&DatapathEvent::Drift { detail: e.message().to_owned() });
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        self.attach_sockets(ebpf, operation)
    }

    /// Remembers a pod's interface, and attaches to it once the datapath is active.
    pub(crate) fn attach_pod(&mut self, ebpf: &mut Ebpf, name: &str) -> Result<(), DatapathError> {
        const OPERATION: &str = "attach_pod";
        if self.external.iter().any(|e| e == name) {
            let message = format!("interface {name} is an external interface of this datapath");
            return Err(error(OPERATION, ErrorKind::InvalidInput, message));
        }
        if self.active {
            self.attach(ebpf, name, Side::Pod, OPERATION)?;
        } else {
            index_of(name, OPERATION, ErrorKind::Unavailable)?;
        }
        self.pods.insert(name.to_owned());
        Ok(())
    }

    /// Forgets a pod's interface. One that is gone or was never attached is no error.
    pub(crate) fn detach_pod(&mut self, name: &str) -> Result<(), DatapathError> {
        const OPERATION: &str = "detach_pod";
        if self.external.iter().any(|e| e == name) {
            let message = format!("interface {name} is an external interface of this datapath");
            return Err(error(OPERATION, ErrorKind::InvalidInput, message));
        }
        self.pods.remove(name);
        let Some(attached) = self.interfaces.remove(name) else { return Ok(()) };
        self.events.emit(&DatapathEvent::Interface { name: name.to_owned(), attached: false });
        // With the interface, the kernel removed what hung on it.
        let gone = if_nametoindex(name).ok() != Some(attached.index);
        let mut failures = Vec::new();
        detach(name, attached, &mut failures);
        match failures.pop() {
            Some(failure) if !gone => Err(error(OPERATION, ErrorKind::Unavailable, failure)),
            _ => Ok(()),
        }
    }

    /// Detaches everything. Carries on after a failure, and returns all of them.
    pub(crate) fn detach_all(&mut self) -> Vec<String> {
        let mut failures = Vec::new();
        for link in self.sockets.drain(..) {
            if let Err(e) = sys::detach(link) {
                failures.push(format!("cannot detach a socket program from its cgroup: {e}"));
            }
        }
        for (name, attached) in std::mem::take(&mut self.interfaces) {
            let gone = if_nametoindex(name.as_str()).ok() != Some(attached.index);
            let before = failures.len();
            detach(&name, attached, &mut failures);
            if gone {
                failures.truncate(before);
            }
        }
        self.active = false;
        failures
    }

    /// Attaches to an interface unless that is done. True when it was not.
    fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        name: &str,
        side: Side,
        operation: &'static str,
    ) -> Result<bool, DatapathError> {
        let index = index_of(name, operation, ErrorKind::Unavailable)?;
        if let Some(attached) = self.interfaces.get(name)
            && attached.index == index
            && self.hangs(ebpf, name, side)
        {
            return Ok(false);
        }
        let mut hooks = Vec::new();
        for (program, direction) in side.programs() {
            let hook = self.attach_program(ebpf, name, program, direction).map_err(|e| {
                let kind = match errno(&e) {
                    Some(Errno::EPERM) => ErrorKind::Permission,
                    Some(Errno::ENODEV) => ErrorKind::Unavailable,
                    _ => ErrorKind::Internal,
                };
                caused(operation, kind, format!("interface {name}: cannot attach the program {program}"), e)
            })?;
            hooks.push(hook);
        }
        // Drops the links to an interface of that name that is gone.
        self.interfaces.insert(name.to_owned(), Attached { index, hooks });
        self.events.emit(&DatapathEvent::Interface { name: name.to_owned(), attached: true });
        Ok(true)
    }

    fn attach_program(
        &self,
        ebpf: &mut Ebpf,
        interface: &str,
        program: &str,
        direction: TcAttachType,
    ) -> Result<Hook, ProgramError> {
        let options = if self.tcx {
            // Behind an older instance that drains: it knows flows of which this one knows nothing.
            TcAttachOptions::TcxOrder(LinkOrder::last())
        } else {
            match qdisc_add_clsact(interface) {
                // It is there already.
                Err(TcError::NetlinkError(e)) if e.raw_os_error() == Some(Errno::EEXIST as i32) => {}
                other => other?,
            }
            // Filters of one priority run in the order in which they came; without a priority, the latest
            // would run first.
            TcAttachOptions::Netlink(NlOptions { priority: FILTER_PRIORITY, ..NlOptions::default() })
        };
        let program = classifier(ebpf, program)?;
        let id = program.attach_with_options(interface, direction, options)?;
        let link = program.take_link(id)?;
        Ok(if self.tcx { Hook::Tcx(link.try_into().map_err(unlinked)?) } else { Hook::Filter(link) })
    }

    /// Whether our programs still hang where they were attached. Only TCX can tell; before it, the index of
    /// the interface must do.
    fn hangs(&self, ebpf: &mut Ebpf, interface: &str, side: Side) -> bool {
        if !self.tcx {
            return true;
        }
        side.programs().into_iter().all(|(program, direction)| {
            let ours = classifier(ebpf, program).and_then(|p| p.info()).map(|i| i.id());
            let there = SchedClassifier::query_tcx(interface, direction);
            match (ours, there) {
                (Ok(ours), Ok((_, there))) => there.iter().any(|p| p.id() == ours),
                _ => false,
            }
        })
    }

    fn attach_sockets(&mut self, ebpf: &mut Ebpf, operation: &'static str) -> Result<(), DatapathError> {
        let Some(path) = self.cgroup.as_ref().filter(|_| self.sockets.is_empty()) else { return Ok(()) };
        let failed = |kind, what: String, source: Box<dyn std::error::Error + Send + Sync>| {
            caused(operation, kind, format!("cgroup {}: {what}", path.display()), source)
        };
        let cgroup = File::open(path)
            .map_err(|e| failed(ErrorKind::Unavailable, "cannot be opened".into(), e.into()))?;
        let mut links = Vec::new();
        for name in SOCKET_PROGRAMS {
            let attach = |ebpf: &mut Ebpf| -> Result<FdLink, ProgramError> {
                let program: &mut CgroupSockAddr =
                    ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()?;
                // A link, and so beside other programs, whatever the mode says.
                let id = program.attach(&cgroup, CgroupAttachMode::Single)?;
                program.take_link(id)?.try_into().map_err(unlinked)
            };
            links.push(attach(ebpf).map_err(|e| {
                let kind = match errno(&e) {
                    Some(Errno::EPERM) => ErrorKind::Permission,
                    _ => ErrorKind::Internal,
                };
                failed(kind, format!("cannot attach the program {name}"), e.into())
            })?);
        }
        self.sockets = links;
        Ok(())
    }
}

/// The kernel made something else than a link.
fn unlinked(e: LinkError) -> ProgramError {
    io::Error::other(e).into()
}

fn detach(name: &str, attached: Attached, failures: &mut Vec<String>) {
    for hook in attached.hooks {
        if let Err(e) = hook.detach() {
            failures.push(format!("interface {name}: cannot detach a program: {e}"));
        }
    }
}

fn index_of(name: &str, operation: &'static str, kind: ErrorKind) -> Result<u32, DatapathError> {
    crate::builder::check_interface(name)
        .map_err(|rule| error(operation, ErrorKind::InvalidInput, format!("interface {name:?}: {rule}")))?;
    if_nametoindex(name).map_err(|e| {
        let message = format!(
            "interface {name} does not exist in the node's network namespace: create it first, or detach it \
             where it is gone for good"
        );
        caused(operation, kind, message, io::Error::from(e))
    })
}
