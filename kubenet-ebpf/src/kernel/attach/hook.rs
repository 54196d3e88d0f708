//! One program at one interface.

use std::collections::BTreeMap;

use aya::programs::ProgramError;

use super::{
    super::link::{BpfLink, Place, Tcx},
    filter::Filter,
    programs::{Programs, XDP_PROGRAM},
};

/// What an interface leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Pod,
    External,
}

/// A place for a program at an interface, in the order in which programs are attached. What leaves first: replies
/// must be translated before the first request is. Then what comes in, and last who passes on to that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Spot {
    Egress,
    Ingress,
    Xdp,
}

impl Spot {
    pub(super) const ALL: [Spot; 3] = [Spot::Egress, Spot::Ingress, Spot::Xdp];

    const fn name(self) -> &'static str {
        match self {
            Spot::Egress => "egress",
            Spot::Ingress => "ingress",
            Spot::Xdp => "xdp",
        }
    }

    /// The direction of a program of TC.
    pub(super) const fn of(direction: Tcx) -> Self {
        match direction {
            Tcx::Egress => Spot::Egress,
            Tcx::Ingress => Spot::Ingress,
        }
    }
}

pub(super) const DIRECTIONS: [Tcx; 2] = [Tcx::Egress, Tcx::Ingress];

impl Side {
    /// The program for packets that arrive there, or for packets that leave there.
    pub(super) const fn program(self, spot: Spot) -> &'static str {
        match (self, spot) {
            (_, Spot::Egress) => "kubenet_to_device",
            (_, Spot::Xdp) => XDP_PROGRAM,
            (Side::Pod, Spot::Ingress) => "kubenet_from_pod",
            (Side::External, Spot::Ingress) => "kubenet_from_external",
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Side::Pod => "pod",
            Side::External => "external",
        }
    }
}

/// The name of a link's pin.
pub(super) fn pin_name(side: Side, index: u32, spot: Spot) -> String {
    format!("{}_{index}_{}", side.name(), spot.name())
}

/// What a pin of that name hangs at.
pub(super) fn parse_pin_name(name: &str) -> Option<(Side, u32, Spot)> {
    let mut parts = name.split('_');
    let side = match parts.next()? {
        "pod" => Side::Pod,
        "external" => Side::External,
        _ => return None,
    };
    let index = parts.next()?.parse().ok()?;
    let spot = parts.next()?;
    let spot = Spot::ALL.into_iter().find(|s| s.name() == spot)?;
    parts.next().is_none().then_some((side, index, spot))
}

/// Programs at one interface.
pub(super) struct Attached {
    /// An interface that is made again under the same name has another index.
    pub(super) index: u32,
    pub(super) side: Side,
    pub(super) hooks: BTreeMap<Spot, Hook>,
}

impl Attached {
    pub(super) fn hangs(&self, spot: Spot) -> bool {
        self.hooks.get(&spot).is_some_and(|hook| hook.hangs_at(self.index))
    }
}

/// One program at one interface.
pub(super) enum Hook {
    Link(BpfLink),
    Filter(Filter),
}

impl Hook {
    /// Whether it hangs where it was attached. Only a link can tell; of filters, the index of the interface
    /// must do.
    pub(super) fn hangs_at(&self, index: u32) -> bool {
        match self {
            Hook::Link(link) => link.hangs_at(Place::Interface(index)),
            Hook::Filter(_) => true,
        }
    }

    /// The id of its program.
    pub(super) fn program(&self) -> u32 {
        match self {
            Hook::Link(link) => link.program(),
            Hook::Filter(filter) => filter.program(),
        }
    }

    /// Puts another program in its place.
    pub(super) fn update(&mut self, programs: &mut Programs, name: &str) -> Result<(), ProgramError> {
        match self {
            Hook::Link(link) => Ok(link.update(programs.packet_fd(name)?)?),
            Hook::Filter(filter) => {
                let id = programs.id(name);
                filter.update((programs.classifier(name)?, id))
            }
        }
    }

    pub(super) fn detach(self) -> Result<(), Box<dyn std::error::Error>> {
        match self {
            Hook::Link(link) => Ok(link.detach()?),
            Hook::Filter(filter) => Ok(filter.detach()?),
        }
    }

    /// Leaves it where it hangs. A link hangs on by its pin.
    pub(super) fn leave(&mut self) {
        if let Hook::Filter(filter) = self {
            filter.leave();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_pin_says_where_it_hangs() {
        for side in [Side::Pod, Side::External] {
            for spot in Spot::ALL {
                let name = pin_name(side, 17, spot);
                assert!(!name.contains('.'), "the file system reserves dots");
                assert_eq!(parse_pin_name(&name), Some((side, 17, spot)));
            }
        }
        for name in ["pod_17", "pod_x_ingress", "pod_17_ingress_new", "node_17_ingress", ""] {
            assert_eq!(parse_pin_name(name), None, "{name}");
        }
    }
}
