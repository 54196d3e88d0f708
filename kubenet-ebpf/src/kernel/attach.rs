//! Where the programs hang: interfaces and the cgroup.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        CgroupSockAddr, Program, ProgramError, SchedClassifier, TcAttachType,
        links::Link,
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, qdisc_add_clsact},
    },
};
use kubenet_core::datapath::{DatapathError, DatapathEvent, ErrorKind, EventHub};
use nix::{
    errno::Errno,
    net::if_::{if_indextoname, if_nametoindex},
    sys::signal::{SigSet, SigmaskHow},
};

use super::{
    bridge,
    sys::{BpfLink, Tcx},
};
use crate::error::{caused, error};

/// Programs of the socket hooks, and what they hang at (`enum bpf_attach_type`).
const SOCKET_PROGRAMS: [(&str, u32); 8] = [
    ("kubenet_connect4", 10),
    ("kubenet_connect6", 11),
    ("kubenet_sendmsg4", 14),
    ("kubenet_sendmsg6", 15),
    ("kubenet_recvmsg4", 19),
    ("kubenet_recvmsg6", 20),
    ("kubenet_getpeername4", 29),
    ("kubenet_getpeername6", 30),
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
    const fn programs(self) -> [(&'static str, Tcx); 2] {
        let ingress = match self {
            Side::Pod => "kubenet_from_pod",
            Side::External => "kubenet_from_external",
        };
        // What leaves first: replies must be translated before the first request is.
        [("kubenet_to_device", Tcx::Egress), (ingress, Tcx::Ingress)]
    }
}

/// Programs at one interface, by their names.
struct Attached {
    /// An interface that is made again under the same name has another index.
    index: u32,
    hooks: BTreeMap<&'static str, Hook>,
}

impl Attached {
    fn hangs(&self, program: &str) -> bool {
        self.hooks.get(program).is_some_and(|hook| hook.hangs_at(self.index))
    }
}

/// One program at one interface.
enum Hook {
    Link(BpfLink),
    Filter(SchedClassifierLink),
}

impl Hook {
    /// Whether it hangs where it was attached. Only a link can tell; of filters, the index of the interface
    /// must do.
    fn hangs_at(&self, index: u32) -> bool {
        match self {
            Hook::Link(link) => link.hangs_at_interface(index),
            Hook::Filter(_) => true,
        }
    }

    fn detach(self) -> Result<(), Box<dyn std::error::Error>> {
        match self {
            Hook::Link(link) => Ok(link.detach()?),
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
    sockets: BTreeMap<&'static str, BpfLink>,
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
            sockets: BTreeMap::new(),
            events,
        })
    }

    /// Whether packets meet the programs.
    pub(crate) fn is_active(&self) -> bool {
        self.active
    }

    /// Attaches what is not attached. The first time, either everything is attached afterwards or nothing.
    /// Later a failure is reported as an event: packets meet the new table already, and the others must go on.
    pub(crate) fn ensure(&mut self, ebpf: &mut Ebpf, operation: &'static str) -> Result<(), DatapathError> {
        let result = self.try_ensure(ebpf, operation);
        if result.is_ok() {
            self.active = true;
        } else {
            self.interfaces.clear();
            self.sockets.clear();
        }
        result
    }

    /// Fails only when packets do not meet the programs yet.
    fn try_ensure(&mut self, ebpf: &mut Ebpf, operation: &'static str) -> Result<(), DatapathError> {
        for (name, side) in self.wanted() {
            match self.attach(ebpf, &name, side, operation) {
                Err(e) if self.active || e.kind() == ErrorKind::Unavailable && side == Side::Pod => {
                    self.drift(e.message().to_owned());
                }
                result => result?,
            }
        }
        match self.attach_sockets(ebpf, operation) {
            Err(e) if self.active => self.drift(e.message().to_owned()),
            result => result?,
        }
        Ok(())
    }

    fn wanted(&self) -> Vec<(String, Side)> {
        let external = self.external.iter().map(|name| (name.clone(), Side::External));
        external.chain(self.pods.iter().map(|name| (name.clone(), Side::Pod))).collect()
    }

    fn drift(&self, detail: String) {
        self.events.emit(&DatapathEvent::Drift { detail });
    }

    /// Once packets meet the programs: where one does not hang that should. What is gone itself does not count.
    pub(crate) fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if !self.active {
            return missing;
        }
        for (name, side) in self.wanted() {
            let Ok(index) = if_nametoindex(name.as_str()) else { continue };
            let attached = self.interfaces.get(&name).filter(|attached| attached.index == index);
            for (program, _) in side.programs() {
                if !attached.is_some_and(|attached| attached.hangs(program)) {
                    missing.push(format!("{program} at interface {name}"));
                }
            }
        }
        if let Some(path) = &self.cgroup
            && let Ok(number) = cgroup_number(path)
        {
            let gone = SOCKET_PROGRAMS.into_iter().filter(|(name, _)| !self.hangs_in_cgroup(name, number));
            missing.extend(gone.map(|(name, _)| format!("{name} in cgroup {}", path.display())));
        }
        missing
    }

    fn hangs_in_cgroup(&self, program: &str, number: u64) -> bool {
        self.sockets.get(program).is_some_and(|link| link.hangs_in_cgroup(number))
    }

    /// Remembers a pod's interface, and attaches to it once the datapath is active.
    pub(crate) fn attach_pod(&mut self, ebpf: &mut Ebpf, name: &str) -> Result<(), DatapathError> {
        const OPERATION: &str = "attach_pod";
        if self.external.iter().any(|e| e == name) {
            let message = format!("interface {name} is an external interface of this datapath");
            return Err(error(OPERATION, ErrorKind::InvalidInput, message));
        }
        let index = index_of(name, OPERATION, ErrorKind::Unavailable)?;
        let bridge = bridge::of(index).map_err(|e| {
            let message = format!("interface {name}: cannot find out whether it is a port of a bridge");
            caused(OPERATION, ErrorKind::Unavailable, message, e)
        })?;
        if let Some(bridge) = bridge {
            // Its frames are for the bridge's address, not for its own: the programs would pass them all.
            let bridge =
                if_indextoname(bridge).map_or_else(|_| format!("interface {bridge}"), interface_name);
            let message = format!("{name} is a port of the bridge {bridge}: attach the bridge itself");
            return Err(error(OPERATION, ErrorKind::Unsupported, message));
        }
        if self.active {
            self.attach(ebpf, name, Side::Pod, OPERATION)?;
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
        for (program, link) in std::mem::take(&mut self.sockets) {
            if let Err(e) = link.detach() {
                failures.push(format!("cannot detach the program {program} from its cgroup: {e}"));
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

    /// Attaches to an interface the programs that do not hang there.
    fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        name: &str,
        side: Side,
        operation: &'static str,
    ) -> Result<(), DatapathError> {
        let index = index_of(name, operation, ErrorKind::Unavailable)?;
        let known = self.interfaces.get(name).filter(|attached| attached.index == index);
        let hangs = |program: &str| known.is_some_and(|attached| attached.hangs(program));
        let missing: Vec<_> = side.programs().into_iter().filter(|(program, _)| !hangs(program)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let mut detached = Vec::new();
        let mut hooks = BTreeMap::new();
        for (program, direction) in missing {
            if known.is_some() {
                detached.push(program);
            }
            let hook = self.attach_program(ebpf, (name, index), program, direction).map_err(|e| {
                let kind = match errno(&e) {
                    Some(Errno::EPERM) => ErrorKind::Permission,
                    Some(Errno::ENODEV) => ErrorKind::Unavailable,
                    _ => ErrorKind::Internal,
                };
                caused(operation, kind, format!("interface {name}: cannot attach the program {program}"), e)
            })?;
            hooks.insert(program, hook);
        }
        match self.interfaces.get_mut(name) {
            Some(attached) if attached.index == index => attached.hooks.extend(hooks),
            // Drops the links to an interface of that name that is gone.
            _ => drop(self.interfaces.insert(name.to_owned(), Attached { index, hooks })),
        }
        if !detached.is_empty() {
            self.drift(format!("interface {name}: somebody detached {}: put right", detached.join(" and ")));
        }
        self.events.emit(&DatapathEvent::Interface { name: name.to_owned(), attached: true });
        Ok(())
    }

    fn attach_program(
        &self,
        ebpf: &mut Ebpf,
        (interface, index): (&str, u32),
        program: &str,
        direction: Tcx,
    ) -> Result<Hook, ProgramError> {
        let program = classifier(ebpf, program)?;
        if self.tcx {
            // Behind an older instance that drains: it knows flows of which this one knows nothing.
            return Ok(Hook::Link(BpfLink::tcx(program.fd()?.as_fd(), index, direction)?));
        }
        match qdisc_add_clsact(interface) {
            // It is there already.
            Err(TcError::NetlinkError(e)) if e.raw_os_error() == Some(Errno::EEXIST as i32) => {}
            other => other?,
        }
        // Filters of one priority run in the order in which they came; without a priority, the latest would
        // run first.
        let options =
            TcAttachOptions::Netlink(NlOptions { priority: FILTER_PRIORITY, ..NlOptions::default() });
        let direction = match direction {
            Tcx::Ingress => TcAttachType::Ingress,
            Tcx::Egress => TcAttachType::Egress,
        };
        let id = program.attach_with_options(interface, direction, options)?;
        Ok(Hook::Filter(program.take_link(id)?))
    }

    /// Attaches the socket programs that do not hang in the cgroup.
    fn attach_sockets(&mut self, ebpf: &mut Ebpf, operation: &'static str) -> Result<(), DatapathError> {
        let Some(path) = self.cgroup.clone() else { return Ok(()) };
        let failed = |kind, what: String, source: Box<dyn std::error::Error + Send + Sync>| {
            caused(operation, kind, format!("cgroup {}: {what}", path.display()), source)
        };
        let opened = File::open(&path).and_then(|cgroup| Ok((cgroup.metadata()?.ino(), cgroup)));
        let (number, cgroup) =
            opened.map_err(|e| failed(ErrorKind::Unavailable, "cannot be opened".into(), e.into()))?;
        let mut detached = Vec::new();
        for (name, attach_type) in SOCKET_PROGRAMS {
            if self.hangs_in_cgroup(name, number) {
                continue;
            }
            let link = socket_program(ebpf, name)
                .and_then(|program| Ok(BpfLink::cgroup(program, cgroup.as_fd(), attach_type)?))
                .map_err(|e| {
                    let kind = match errno(&e) {
                        Some(Errno::EPERM) => ErrorKind::Permission,
                        Some(Errno::ENODEV | Errno::ENOENT) => ErrorKind::Unavailable,
                        _ => ErrorKind::Internal,
                    };
                    failed(kind, format!("cannot attach the program {name}"), e.into())
                })?;
            if self.sockets.insert(name, link).is_some() {
                detached.push(name);
            }
        }
        if !detached.is_empty() {
            let what = detached.join(", ");
            self.drift(format!("cgroup {}: somebody detached {what}: put right", path.display()));
        }
        Ok(())
    }
}

fn socket_program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<BorrowedFd<'a>, ProgramError> {
    let program: &'a mut CgroupSockAddr =
        ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()?;
    Ok(program.fd()?.as_fd())
}

/// The number by which links know a cgroup.
fn cgroup_number(path: &Path) -> io::Result<u64> {
    Ok(std::fs::metadata(path)?.ino())
}

fn detach(name: &str, attached: Attached, failures: &mut Vec<String>) {
    for (program, hook) in attached.hooks {
        if let Err(e) = hook.detach() {
            failures.push(format!("interface {name}: cannot detach the program {program}: {e}"));
        }
    }
}

fn interface_name(name: CString) -> String {
    name.to_string_lossy().into_owned()
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
