//! The XDP program: not every device can have one, and where there is none, TC serves alone.

use std::{collections::BTreeSet, io};

use aya::programs::ProgramError;
use kubenet_core::datapath::{DatapathError, ErrorKind};
use nix::{errno::Errno, net::if_::if_nametoindex};

use super::{
    super::device::{self, Device},
    Attachments,
    hook::{Side, Spot},
    programs::{Programs, XDP_PROGRAM, errno},
};
use crate::{XdpMode, error::error, layout};

impl Attachments {
    /// The programs that are to hang at an interface.
    pub(super) fn spots(&self, side: Side, index: u32) -> Vec<Spot> {
        let tc = match side {
            Side::Pod => self.hooks.pods,
            Side::External => self.hooks.external,
        };
        let mut spots = if tc { vec![Spot::Egress, Spot::Ingress] } else { Vec::new() };
        if side == Side::External && self.wants_xdp(index) {
            spots.push(Spot::Xdp);
        }
        spots
    }

    fn wants_xdp(&self, index: u32) -> bool {
        match self.hooks.xdp {
            XdpMode::Off => false,
            XdpMode::Native => true,
            // Nobody would translate what backends here answer.
            XdpMode::Auto if !self.hooks.external && !self.hooks.pods => false,
            XdpMode::Auto => Device::of(index).is_ok_and(|device| device.is_physical),
        }
    }

    /// Whether the XDP program is to hang anywhere.
    pub(crate) fn wants_any_xdp(&self) -> bool {
        let indexes = self.external.iter().filter_map(|name| if_nametoindex(name.as_str()).ok());
        self.hooks.xdp != XdpMode::Off && indexes.into_iter().any(|index| self.wants_xdp(index))
    }

    /// The devices that the XDP program may hang at, and their addresses.
    pub(crate) fn xdp_devices(&self) -> layout::XdpDevices {
        let mut devices = layout::XdpDevices::default();
        let indexes = self.external.iter().filter_map(|name| if_nametoindex(name.as_str()).ok());
        let wanted = indexes.filter(|index| self.wants_xdp(*index));
        let found = wanted.filter_map(|index| Some((index, Device::of(index).ok()?.mac?)));
        for (place, (ifindex, mac)) in devices.at.iter_mut().zip(found) {
            *place = layout::XdpDevice { ifindex, mac, pad: 0 };
        }
        devices
    }

    /// Why no XDP program may hang at a device, before anything is tried.
    pub(super) fn xdp_obstacle(&self, programs: &Programs, index: u32) -> Option<String> {
        if let Some(why) = programs.why_no_xdp() {
            return Some(why.to_owned());
        }
        if self.xdp_devices().at.iter().all(|device| device.ifindex != index) {
            return Some(format!(
                "it has no Ethernet address, or is not among the first {} devices with XDP",
                layout::XDP_DEVICES
            ));
        }
        have_vlans().contains(&index).then(|| {
            "there are VLANs on it, whose tags the device may take off before XDP sees them: name the VLANs as \
             external interfaces, or remove them"
                .to_owned()
        })
    }

    /// The interfaces that have VLANs now, where it matters to somebody.
    pub(super) fn have_vlans_below_xdp(&self) -> BTreeSet<u32> {
        let has_xdp = self.interfaces.values().any(|attached| attached.hooks.contains_key(&Spot::Xdp));
        if has_xdp { have_vlans() } else { BTreeSet::new() }
    }

    /// Why the kernel did not attach it.
    pub(super) fn xdp_refusal(e: &ProgramError) -> String {
        match errno(e) {
            Some(Errno::EBUSY | Errno::EEXIST) => {
                "another XDP program hangs there, which is not replaced: detach it first, or choose XdpMode::Off"
                    .to_owned()
            }
            Some(Errno::EOPNOTSUPP) => {
                "its driver has no native XDP: choose XdpMode::Off, or another device".to_owned()
            }
            Some(e) => format!(
                "{}: its driver may want a smaller MTU, fewer queues or LRO off; or choose XdpMode::Off",
                io::Error::from(e)
            ),
            None => e.to_string(),
        }
    }

    /// A device goes without the XDP program. Said once, until the reason is another.
    pub(super) fn go_without_xdp(
        &mut self,
        name: &str,
        why: String,
        operation: &'static str,
    ) -> Result<(), DatapathError> {
        if let Some(attached) = self.interfaces.get_mut(name)
            && let Some(hook) = attached.hooks.remove(&Spot::Xdp)
            && let Err(error) = hook.detach()
        {
            tracing::warn!(interface = name, error, "cannot detach the program {XDP_PROGRAM}");
        }
        let message = format!("interface {name}: cannot attach the program {XDP_PROGRAM}: {why}");
        if !self.hooks.external {
            let message =
                format!("{message}; and EbpfBuilder::external_tc is off, so that nothing serves it");
            return Err(error(operation, ErrorKind::Unsupported, message));
        }
        if self.without_xdp.get(name) != Some(&why) {
            self.drift(format!("{message}; until then TC serves it"));
            self.without_xdp.insert(name.to_owned(), why);
        }
        Ok(())
    }
}

/// The interfaces that have VLANs on them.
fn have_vlans() -> BTreeSet<u32> {
    device::below(device::VLAN).unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot find out which interfaces have VLANs");
        BTreeSet::new()
    })
}
