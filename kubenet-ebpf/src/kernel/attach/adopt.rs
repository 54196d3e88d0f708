//! Links and filters of another process are found again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
};

use nix::net::if_::{if_indextoname, if_nameindex};

use super::{
    super::link::{BpfLink, Place, Tcx},
    Attachments, PinnedMaps,
    filter::{self, Filter},
    hook::{self, Attached, DIRECTIONS, Hook, Side, Spot},
    interface_name,
    programs::Programs,
    sockets,
};
use crate::pin::Pins;

impl Attachments {
    /// Takes what is pinned there, and what is to be pinned from now on belongs there. Detaches nothing.
    ///
    /// # Errors
    /// Everything hangs as it did.
    pub(crate) fn adopt(&mut self, pins: Pins, maps: PinnedMaps) -> io::Result<()> {
        let result = self.try_adopt(&pins);
        if result.is_ok() {
            self.pins = Some(pins);
            self.maps = Some(maps);
        } else {
            self.leave_all();
        }
        result
    }

    /// Leaves everything where it hangs.
    pub(super) fn leave_all(&mut self) {
        self.interfaces.values_mut().flat_map(|a| a.hooks.values_mut()).for_each(Hook::leave);
        self.interfaces.clear();
        self.sockets.clear();
        self.unwanted.clear();
        self.active = false;
        self.pins = None;
    }

    fn try_adopt(&mut self, pins: &Pins) -> io::Result<()> {
        for name in pins.links()? {
            let link = BpfLink::pinned(&pins.link(&name))?;
            self.adopt_link(&name, link);
        }
        let programs: BTreeSet<u32> = pins.filters()?.into_iter().collect();
        if !programs.is_empty() {
            self.adopt_filters(&programs)?;
        }
        let external = &self.external;
        let pods = self.interfaces.iter().filter(|(name, a)| a.side == Side::Pod && !external.contains(name));
        self.pods.extend(pods.map(|(name, _)| name.clone()));
        self.active = !self.interfaces.is_empty() || !self.sockets.is_empty();
        Ok(())
    }

    fn adopt_link(&mut self, name: &str, link: BpfLink) {
        if let Some((side, index, spot)) = hook::parse_pin_name(name)
            && link.place() == Some(Place::Interface(index))
            && let Ok(interface) = if_indextoname(index)
        {
            self.adopt_hook(interface_name(interface), (index, side), spot, Hook::Link(link));
        } else if let Some(program) = sockets::parse_pin_name(name)
            && matches!(link.place(), Some(Place::Cgroup(_)))
        {
            self.sockets.insert(program, link);
        } else {
            self.unwanted.push(link);
        }
    }

    /// Filters have no names of their own: they are known by their programs.
    fn adopt_filters(&mut self, programs: &BTreeSet<u32>) -> io::Result<()> {
        for interface in &if_nameindex()? {
            let index = interface.index();
            let name = interface.name().to_string_lossy().into_owned();
            for direction in DIRECTIONS {
                for found in filter::list(index, direction)? {
                    if !programs.contains(&found.program) {
                        continue;
                    }
                    let filter = Hook::Filter(Filter::adopt(&name, direction, &found)?);
                    // What leaves meets the same program on both sides.
                    let is_external = self.external.contains(&name)
                        || direction == Tcx::Ingress && found.name == Side::External.program(Spot::Ingress);
                    let side = if is_external { Side::External } else { Side::Pod };
                    self.adopt_hook(name.clone(), (index, side), Spot::of(direction), filter);
                }
            }
        }
        Ok(())
    }

    fn adopt_hook(&mut self, interface: String, (index, side): (u32, Side), spot: Spot, hook: Hook) {
        let new = || Attached { index, side, hooks: BTreeMap::new() };
        let attached = self.interfaces.entry(interface).or_insert_with(new);
        // Egress comes first, and does not tell of filters.
        if side == Side::External {
            attached.side = side;
        }
        // Where a link and a filter hang, which nobody makes, the link goes on.
        attached.hooks.entry(spot).or_insert(hook);
    }

    /// Removes the filters with these programs from the current network namespace.
    pub(crate) fn remove_filters(programs: &BTreeSet<u32>) -> io::Result<()> {
        for interface in &if_nameindex()? {
            let name = interface.name().to_string_lossy();
            for direction in DIRECTIONS {
                for found in filter::list(interface.index(), direction)? {
                    if programs.contains(&found.program) {
                        let removed = Filter::adopt(&name, direction, &found)?.detach();
                        removed.map_err(io::Error::other)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Detaches what was adopted and nobody wants, and forgets programs that hang nowhere.
    pub(super) fn tidy(&mut self, programs: &Programs) {
        self.detach_switched_off();
        let Some(pins) = &self.pins else { return };
        let wanted: BTreeSet<&String> = self.external.iter().chain(&self.pods).collect();
        let unwanted = self.interfaces.keys().filter(|name| !wanted.contains(name)).cloned();
        for name in unwanted.collect::<Vec<String>>() {
            let Some(attached) = self.interfaces.remove(&name) else { continue };
            for failure in super::detach(&name, attached) {
                tracing::warn!("{failure}");
            }
        }
        if self.cgroup.is_none() {
            self.unwanted.extend(std::mem::take(&mut self.sockets).into_values());
        }
        for link in std::mem::take(&mut self.unwanted) {
            if let Err(error) = link.detach() {
                tracing::warn!(%error, "cannot detach a program that hangs where nobody wants it");
            }
        }
        let hooks = self.interfaces.values().flat_map(|attached| attached.hooks.values());
        let mut used: BTreeSet<u32> = hooks.map(Hook::program).collect();
        let all = [Side::Pod, Side::External].into_iter().flat_map(|s| Spot::ALL.map(|d| s.program(d)));
        used.extend(all.map(|name| programs.id(name)));
        for program in pins.filters().unwrap_or_default() {
            if !used.contains(&program) {
                // A pin that stays costs memory; the next table tries again.
                drop(fs::remove_file(pins.filter(program)));
            }
        }
    }

    /// Detaches what was adopted at interfaces that are wanted, of hooks that are not.
    fn detach_switched_off(&mut self) {
        let sides: Vec<_> = self.interfaces.iter().map(|(n, a)| (n.clone(), a.side, a.index)).collect();
        for (name, side, index) in sides {
            let spots = self.spots(side, index);
            let Some(attached) = self.interfaces.get_mut(&name) else { continue };
            for spot in Spot::ALL.into_iter().filter(|spot| !spots.contains(spot)) {
                if let Some(hook) = attached.hooks.remove(&spot)
                    && let Err(error) = hook.detach()
                {
                    tracing::warn!(interface = name, error, "cannot detach {}", side.program(spot));
                }
            }
            if attached.hooks.is_empty() {
                self.interfaces.remove(&name);
            }
        }
    }
}
