//! Where the programs hang: interfaces and the cgroup.

mod adopt;
mod filter;
mod hook;
mod named;
mod pins;
mod programs;
mod sockets;
mod xdp;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CString,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use aya::programs::ProgramError;
use kubenet_core::datapath::{DatapathError, DatapathEvent, ErrorKind, EventHub};
use nix::{
    errno::Errno,
    net::if_::{if_indextoname, if_nametoindex},
};

use self::{
    filter::Filter,
    hook::{Attached, Hook, Side, Spot, pin_name},
    programs::{SOCKET_PROGRAMS, errno},
};
pub(crate) use self::{
    pins::PinnedMaps,
    programs::{Programs, Wanted},
};
use super::{
    device::Device,
    link::{self, BpfLink, Tcx},
};
use crate::{
    builder::Hooks,
    error::{caused, error},
    pin::Pins,
};

/// All attachments. Dropping it detaches everything, unless it is pinned and in use.
pub(crate) struct Attachments {
    external: Vec<String>,
    pods: BTreeSet<String>,
    cgroup: Option<PathBuf>,
    hooks: Hooks,
    tcx: bool,
    /// External interfaces that go without the XDP program that they should have, and why.
    without_xdp: BTreeMap<String, String>,
    /// Set by the first route table: from then on packets may meet the programs.
    active: bool,
    interfaces: BTreeMap<String, Attached>,
    sockets: BTreeMap<&'static str, BpfLink>,
    /// Links of another process that hang nowhere, or where nobody wants them.
    unwanted: Vec<BpfLink>,
    pins: Option<Pins>,
    /// What is pinned there beside programs.
    maps: Option<PinnedMaps>,
    events: EventHub,
}

impl Drop for Attachments {
    fn drop(&mut self) {
        if self.pins.is_some() && self.active {
            self.leave_all();
            return;
        }
        for failure in self.remove() {
            tracing::warn!("{failure}");
        }
    }
}

impl Attachments {
    pub(crate) fn new(
        external: Vec<String>,
        cgroup: Option<PathBuf>,
        hooks: Hooks,
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
            hooks,
            tcx,
            without_xdp: BTreeMap::new(),
            active: false,
            interfaces: BTreeMap::new(),
            sockets: BTreeMap::new(),
            unwanted: Vec::new(),
            pins: None,
            maps: None,
            events,
        })
    }

    /// Whether packets meet the programs.
    pub(crate) fn is_active(&self) -> bool {
        self.active
    }

    /// Whether the attachments outlive this process.
    pub(crate) fn is_pinned(&self) -> bool {
        self.pins.is_some()
    }

    /// Attaches what is not attached. The first time, either everything is attached afterwards or nothing.
    /// Later a failure is reported as an event: packets meet the new table already, and the others must go on.
    pub(crate) fn ensure(
        &mut self,
        programs: &mut Programs,
        operation: &'static str,
    ) -> Result<(), DatapathError> {
        let result = self.try_ensure(programs, operation);
        if result.is_ok() {
            self.active = true;
            self.tidy(programs);
        } else {
            for failure in self.detach_all() {
                tracing::warn!("{failure}");
            }
        }
        result
    }

    /// Fails only when packets do not meet the programs yet.
    fn try_ensure(&mut self, programs: &mut Programs, operation: &'static str) -> Result<(), DatapathError> {
        for (name, side) in self.wanted() {
            match self.attach(programs, &name, side, operation) {
                Err(e) if self.active || e.kind() == ErrorKind::Unavailable && side == Side::Pod => {
                    self.drift(e.message().to_owned());
                }
                result => result?,
            }
        }
        match self.attach_sockets(programs, operation) {
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

    /// Once packets meet the programs: where one does not hang that should, or hangs where it must not any more. What
    /// is gone itself does not count.
    pub(crate) fn amiss(&self) -> Vec<String> {
        let mut amiss = Vec::new();
        if !self.active {
            return amiss;
        }
        let have_vlans = self.have_vlans_below_xdp();
        for (name, side) in self.wanted() {
            let Ok(index) = if_nametoindex(name.as_str()) else { continue };
            let attached = self.interfaces.get(&name).filter(|attached| attached.index == index);
            for spot in self.spots(side, index) {
                let goes_without = spot == Spot::Xdp
                    && self.without_xdp.contains_key(&name)
                    && attached.is_some_and(|attached| !attached.hooks.contains_key(&spot));
                if !goes_without && !attached.is_some_and(|attached| attached.hangs(spot)) {
                    amiss.push(format!("{} does not hang at interface {name}", side.program(spot)));
                } else if !goes_without && spot == Spot::Xdp && have_vlans.contains(&index) {
                    let program = side.program(spot);
                    amiss.push(format!("{program} hangs at interface {name}, which has VLANs now"));
                }
            }
        }
        if let Some(path) = &self.cgroup
            && let Ok(number) = cgroup_number(path)
        {
            let gone = SOCKET_PROGRAMS.into_iter().filter(|(name, _)| !self.hangs_in_cgroup(name, number));
            amiss.extend(gone.map(|(name, _)| format!("{name} does not hang in cgroup {}", path.display())));
        }
        amiss
    }

    /// Remembers a pod's interface, to attach to it with the first table.
    pub(crate) fn declare_pod(&mut self, name: &str, operation: &'static str) -> Result<(), DatapathError> {
        self.check_pod(name, operation)?;
        self.pods.insert(name.to_owned());
        Ok(())
    }

    /// Remembers a pod's interface, and attaches to it once the datapath is active.
    pub(crate) fn attach_pod(&mut self, programs: &mut Programs, name: &str) -> Result<(), DatapathError> {
        const OPERATION: &str = "attach_pod";
        self.check_pod(name, OPERATION)?;
        if self.active {
            self.attach(programs, name, Side::Pod, OPERATION)?;
        }
        self.pods.insert(name.to_owned());
        Ok(())
    }

    fn check_pod(&self, name: &str, operation: &'static str) -> Result<(), DatapathError> {
        if self.is_external(name) {
            let message = format!("interface {name} is an external interface of this datapath");
            return Err(error(operation, ErrorKind::InvalidInput, message));
        }
        let index = index_of(name, operation, ErrorKind::Unavailable)?;
        let device = Device::of(index).map_err(|e| {
            let message = format!("interface {name}: cannot find out whether it is a port of a bridge");
            caused(operation, ErrorKind::Unavailable, message, e)
        })?;
        if let Some(bridge) = device.bridge {
            // Its frames are for the bridge's address, not for its own: the programs would pass them all.
            let bridge =
                if_indextoname(bridge).map_or_else(|_| format!("interface {bridge}"), interface_name);
            let message = format!("{name} is a port of the bridge {bridge}: attach the bridge itself");
            return Err(error(operation, ErrorKind::Unsupported, message));
        }
        Ok(())
    }

    /// Forgets a pod's interface. One that is gone or was never attached is no error.
    pub(crate) fn detach_pod(&mut self, name: &str) -> Result<(), DatapathError> {
        const OPERATION: &str = "detach_pod";
        if self.is_external(name) {
            let message = format!("interface {name} is an external interface of this datapath");
            return Err(error(OPERATION, ErrorKind::InvalidInput, message));
        }
        self.pods.remove(name);
        let Some(attached) = self.interfaces.remove(name) else { return Ok(()) };
        self.events.emit(&DatapathEvent::Interface { name: name.to_owned(), attached: false });
        let mut failures = detach(name, attached);
        failures.pop().map_or(Ok(()), |failure| Err(error(OPERATION, ErrorKind::Unavailable, failure)))
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
            failures.extend(detach(&name, attached));
        }
        for link in std::mem::take(&mut self.unwanted) {
            if let Err(e) = link.detach() {
                failures.push(format!("cannot detach a program that hangs where nobody wants it: {e}"));
            }
        }
        self.active = false;
        failures
    }

    /// Detaches everything, removes the pins and gives up their lock.
    pub(crate) fn remove(&mut self) -> Vec<String> {
        let mut failures = self.detach_all();
        if let Some(pins) = self.pins.take() {
            failures.extend(pins.remove_all());
        }
        failures
    }

    /// Attaches to an interface the programs that do not hang there, and puts ours in the place of those of
    /// another process.
    fn attach(
        &mut self,
        programs: &mut Programs,
        name: &str,
        side: Side,
        operation: &'static str,
    ) -> Result<(), DatapathError> {
        let index = index_of(name, operation, ErrorKind::Unavailable)?;
        if self.interfaces.get(name).is_some_and(|attached| attached.index != index)
            && let Some(gone) = self.interfaces.remove(name)
        {
            // With the interface, the kernel removed what hung on it; here go the pins.
            drop(detach(name, gone));
        }
        let spots = self.spots(side, index);
        if spots.is_empty() {
            return Ok(());
        }
        let mut detached = Vec::new();
        let is_known = self.interfaces.contains_key(name);
        for spot in spots {
            let program = side.program(spot);
            let failed = |e: ProgramError| {
                let kind = match errno(&e) {
                    Some(Errno::EPERM) => ErrorKind::Permission,
                    Some(Errno::ENODEV) => ErrorKind::Unavailable,
                    _ => ErrorKind::Internal,
                };
                caused(operation, kind, format!("interface {name}: cannot attach the program {program}"), e)
            };
            if spot == Spot::Xdp
                && let Some(why) = self.xdp_obstacle(programs, index)
            {
                self.go_without_xdp(name, why, operation)?;
                continue;
            }
            if let Some(attached) = self.interfaces.get_mut(name)
                && attached.hangs(spot)
                && let Some(hook) = attached.hooks.get_mut(&spot)
            {
                if hook.program() != programs.id(program) {
                    let kept = keep_program(self.pins.as_ref(), programs, program, hook);
                    or_served(self.active, kept).map_err(failed)?;
                    hook.update(programs, program).map_err(failed)?;
                }
                continue;
            }
            let hook = match self.attach_program(programs, (name, index), side, spot) {
                Err(e) if spot == Spot::Xdp => {
                    self.go_without_xdp(name, Self::xdp_refusal(&e), operation)?;
                    continue;
                }
                result => result.map_err(failed)?,
            };
            let attached = self.interfaces.entry(name.to_owned()).or_insert_with(|| Attached {
                index,
                side,
                hooks: BTreeMap::new(),
            });
            // Drops a link that hangs nowhere: the new one has the place of its pin.
            let before = attached.hooks.insert(spot, hook);
            if is_known && (before.is_some() || spot != Spot::Xdp) {
                detached.push(program);
            }
            if spot == Spot::Xdp {
                self.without_xdp.remove(name);
            }
        }
        if let Some(attached) = self.interfaces.get_mut(name).filter(|attached| attached.side != side) {
            attached.side = side;
            let moved = self.pins.as_ref().map_or(Ok(()), |pins| rename_pins(pins, attached));
            moved.map_err(|e| {
                let message = format!("interface {name}: cannot rename what is pinned for it");
                caused(operation, ErrorKind::Unavailable, message, e)
            })?;
        }
        if !detached.is_empty() {
            self.drift(format!("interface {name}: somebody detached {}: put right", detached.join(" and ")));
        }
        if !is_known || !detached.is_empty() {
            self.events.emit(&DatapathEvent::Interface { name: name.to_owned(), attached: true });
        }
        Ok(())
    }

    fn attach_program(
        &self,
        programs: &mut Programs,
        (interface, index): (&str, u32),
        side: Side,
        spot: Spot,
    ) -> Result<Hook, ProgramError> {
        let name = side.program(spot);
        let direction = match spot {
            Spot::Egress => Tcx::Egress,
            Spot::Ingress => Tcx::Ingress,
            Spot::Xdp => {
                let mut link = BpfLink::xdp(programs.packet_fd(name)?, index)?;
                self.pin(&mut link, &pin_name(side, index, spot))?;
                return Ok(Hook::Link(link));
            }
        };
        if self.tcx {
            // Behind an older instance that drains: it knows flows of which this one knows nothing.
            let mut link = BpfLink::tcx(programs.packet_fd(name)?, index, direction)?;
            self.pin(&mut link, &pin_name(side, index, spot))?;
            return Ok(Hook::Link(link));
        }
        let id = programs.id(name);
        if let Some(pins) = &self.pins {
            or_served(self.active, pin_program(pins, programs, name))?;
        }
        Ok(Hook::Filter(Filter::attach((programs.classifier(name)?, id), interface, direction)?))
    }

    /// Makes a link outlive this process, where that is wanted.
    fn pin(&self, link: &mut BpfLink, name: &str) -> io::Result<()> {
        if let Some(pins) = &self.pins {
            let path = pins.link(name);
            let pinned = pins.put(&path, |path| link.pin(path)).map(|()| link.set_pin(path));
            or_served(self.active, pinned)?;
        }
        Ok(())
    }
}

/// Where packets meet the programs, one that cannot be pinned must serve them all the same:
/// [`Attachments::restore_pins`] tries again, and says why it cannot be.
fn or_served<E: std::fmt::Display>(active: bool, pinned: Result<(), E>) -> Result<(), E> {
    match pinned {
        Err(error) if active => {
            tracing::warn!(%error, "a program is not pinned");
            Ok(())
        }
        pinned => pinned,
    }
}

/// A filter's program is pinned before it hangs there, so that a later process knows it by its id.
fn keep_program(
    pins: Option<&Pins>,
    programs: &Programs,
    name: &str,
    hook: &Hook,
) -> Result<(), ProgramError> {
    match (pins, hook) {
        (Some(pins), Hook::Filter(_)) => pin_program(pins, programs, name),
        _ => Ok(()),
    }
}

fn pin_program(pins: &Pins, programs: &Programs, name: &str) -> Result<(), ProgramError> {
    let path = pins.filter(programs.id(name));
    if !path.exists() {
        let program = programs.packet_fd(name)?;
        pins.put(&path, |path| link::pin(program, path))?;
    }
    Ok(())
}

/// The names of pins say on which side an interface is.
fn rename_pins(pins: &Pins, attached: &mut Attached) -> io::Result<()> {
    for (spot, hook) in &mut attached.hooks {
        let Hook::Link(link) = hook else { continue };
        let to = pins.link(&pin_name(attached.side, attached.index, *spot));
        if let Some(from) = link.pin_path().filter(|from| *from != to) {
            match fs::rename(from, &to) {
                // Somebody removed it: it is put back by its new name.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                renamed => renamed?,
            }
            link.set_pin(to);
        }
    }
    Ok(())
}

/// Detaches from an interface. What went with the interface is no failure.
fn detach(name: &str, attached: Attached) -> Vec<String> {
    let gone = if_nametoindex(name).ok() != Some(attached.index);
    let mut failures = Vec::new();
    // Who passes packets on before those who take them.
    for (spot, hook) in attached.hooks.into_iter().rev() {
        if let Err(e) = hook.detach()
            && !gone
        {
            let program = attached.side.program(spot);
            failures.push(format!("interface {name}: cannot detach the program {program}: {e}"));
        }
    }
    failures
}

/// The number by which links know a cgroup.
fn cgroup_number(path: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path)?.ino())
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
